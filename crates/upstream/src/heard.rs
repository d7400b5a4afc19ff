//! When somebody was heard of last.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::Observer;

/// When the one on the other side of a connection last answered or sent something. Before that, the
/// time counts from when this was made.
#[derive(Debug)]
pub struct Heard {
    since: Instant,
    /// Milliseconds after `since`.
    at: AtomicU64,
}

impl Heard {
    /// How long ago.
    pub fn ago(&self) -> Duration {
        let at = Duration::from_millis(self.at.load(Ordering::Relaxed));
        self.since.elapsed().saturating_sub(at)
    }

    fn now(&self) {
        let at = u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at.store(at, Ordering::Relaxed);
    }
}

impl Default for Heard {
    fn default() -> Self {
        Self { since: Instant::now(), at: AtomicU64::new(0) }
    }
}

impl Observer for Heard {
    fn request(&self, _method: &'static str, code: Option<u16>) {
        if code.is_some() {
            self.now();
        }
    }

    fn bytes(&self, _n: u64) {
        self.now();
    }

    fn quota(&self, _remaining: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_and_a_byte_are_heard_and_silence_is_not() {
        let since = Instant::now().checked_sub(Duration::from_secs(60)).unwrap();
        let heard = Heard { since, at: AtomicU64::new(0) };
        heard.request("GET", None);
        assert!(heard.ago() >= Duration::from_secs(60));
        heard.request("GET", Some(503));
        assert!(heard.ago() < Duration::from_secs(30));
        let heard = Heard { since, at: AtomicU64::new(0) };
        heard.bytes(1);
        assert!(heard.ago() < Duration::from_secs(30));
    }
}
