//! A limit on bytes per second.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far behind its schedule a link may catch up. Sleeps end late by tens of microseconds; what
/// is lost by that is made up, what was lost by idling is not.
const CATCH_UP: Duration = Duration::from_millis(2);

/// A link that carries so many bytes per second, whoever sends them.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When the link has carried everything that was given to it.
    free_at: Mutex<Instant>,
}

impl Pace {
    /// An idle link.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second, free_at: Mutex::new(Instant::now()) }
    }

    /// Gives the link `bytes` to carry. When it has carried them.
    pub(crate) fn carry(&self, bytes: usize) -> Instant {
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = arrival(*free_at, Instant::now(), bytes, self.bytes_per_second);
        *free_at
    }

    /// Gives the link `bytes` to carry, and sleeps until it has.
    pub(crate) fn wait(&self, bytes: usize) {
        sleep_until(self.carry(bytes));
    }
}

/// Sleeps until `then`, which may be past.
pub(crate) fn sleep_until(then: Instant) {
    let left = then.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        std::thread::sleep(left);
    }
}

/// When `bytes` that are sent at `now` have come over a link that is busy until `free_at`.
fn arrival(free_at: Instant, now: Instant, bytes: usize, bytes_per_second: u64) -> Instant {
    let begin = free_at.max(now.checked_sub(CATCH_UP).unwrap_or(now));
    begin + Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);

    #[test]
    fn a_busy_link_carries_one_piece_after_the_other() {
        let now = Instant::now();
        let first = arrival(now, now, 1000, 100_000);
        assert_eq!(first, now + 10 * MILLISECOND);
        assert_eq!(arrival(first, now, 1000, 100_000), now + 20 * MILLISECOND);
    }

    #[test]
    fn a_late_sender_catches_up_a_little_but_idle_time_is_lost() {
        let start = Instant::now();
        let late = arrival(start, start + MILLISECOND, 1000, 1_000_000);
        assert_eq!(late, start + MILLISECOND);
        let idle = arrival(start, start + 100 * MILLISECOND, 1000, 1_000_000);
        assert_eq!(idle, start + 99 * MILLISECOND);
    }
}
