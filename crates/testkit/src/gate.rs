//! A point where an upstream waits until a test lets it go on.

use std::sync::Arc;

use tokio::sync::watch;

use crate::patiently;

/// Whoever comes to a closed gate waits until the test opens it. Clones are one gate.
#[derive(Clone, Debug)]
pub struct Gate(Arc<State>);

#[derive(Debug)]
struct State {
    is_open: watch::Sender<bool>,
    n_arrived: watch::Sender<usize>,
}

impl Gate {
    /// A gate that is closed and that nobody has come to.
    pub fn closed() -> Self {
        let state = State { is_open: watch::Sender::new(false), n_arrived: watch::Sender::new(0) };
        Self(Arc::new(state))
    }

    /// Lets everybody through, now and later.
    pub fn open(&self) {
        self.0.is_open.send_replace(true);
    }

    /// Returns once `n` requests have come to the gate since it was made.
    ///
    /// # Panics
    ///
    /// If they don't come within [`crate::PATIENCE`].
    pub async fn reached(&self, n: usize) {
        let mut arrived = self.0.n_arrived.subscribe();
        let what = format!("{n} requests come to the gate");
        let reached = patiently(&what, arrived.wait_for(|arrived| *arrived >= n)).await;
        reached.expect("the sender lives as long as the gate");
    }

    /// How many requests have come to the gate since it was made.
    pub fn n_arrived(&self) -> usize {
        *self.0.n_arrived.borrow()
    }

    /// Waits at the gate, without bound: the test decides.
    pub async fn pass(&self) {
        self.0.n_arrived.send_modify(|arrived| *arrived += 1);
        let mut is_open = self.0.is_open.subscribe();
        is_open.wait_for(|is_open| *is_open).await.expect("the sender lives as long as the gate");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_passes_before_the_gate_is_opened() {
        let gate = Gate::closed();
        let passing = tokio::spawn({
            let gate = gate.clone();
            async move { gate.pass().await }
        });
        gate.reached(1).await;
        assert!(!passing.is_finished());
        gate.open();
        patiently("the gate lets it pass", passing).await.unwrap();
    }
}
