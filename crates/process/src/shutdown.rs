//! The first signal asks to stop, the second insists.

use std::io;

use tokio::signal::unix::{self, SignalKind};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// The signals that ask a process to stop: SIGTERM and SIGINT.
#[derive(Debug)]
pub struct Signals {
    terminate: unix::Signal,
    interrupt: unix::Signal,
}

impl Signals {
    /// Takes the two signals over from the operating system, for the rest of the process's life.
    ///
    /// # Errors
    ///
    /// What the operating system says.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime with I/O.
    pub fn listen() -> io::Result<Self> {
        Ok(Self {
            terminate: unix::signal(SignalKind::terminate())?,
            interrupt: unix::signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next signal.
    pub async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Cancels `stopping` at the first signal, and returns at the second: end the process then,
/// without waiting for anything, with exit code 1.
///
/// `next_signal` is where signals come from: [`Signals::next`].
pub async fn second_signal(
    mut next_signal: impl AsyncFnMut() -> &'static str,
    stopping: &CancellationToken,
) {
    let name = next_signal().await;
    info!("{name}: stopping; a second signal ends at once");
    stopping.cancel();
    let name = next_signal().await;
    warn!("{name} again: ending at once");
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn the_first_signal_stops_and_the_second_ends() {
        let (sender, mut receiver) = mpsc::channel(1);
        let stopping = CancellationToken::new();
        let next_signal = async || receiver.recv().await.unwrap();
        let mut ends = pin!(second_signal(next_signal, &stopping));

        assert!(is_pending(ends.as_mut()).await);
        assert!(!stopping.is_cancelled());
        sender.send("SIGTERM").await.unwrap();
        assert!(is_pending(ends.as_mut()).await);
        assert!(stopping.is_cancelled());
        sender.send("SIGINT").await.unwrap();
        ends.await;
    }

    async fn is_pending(future: impl Future<Output = ()>) -> bool {
        tokio::select! {
            biased;
            () = future => false,
            () = async {} => true,
        }
    }

    #[tokio::test]
    async fn a_real_signal_is_heard() {
        let mut signals = Signals::listen().unwrap();
        rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::TERM)
            .unwrap();
        assert_eq!(signals.next().await, "SIGTERM");
    }
}
