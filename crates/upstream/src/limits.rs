//! How much is asked of an upstream at a time.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::error::Error;

/// The bounds of one upstream.
pub(crate) struct Limits {
    slots: Arc<Semaphore>,
    rate: Option<DefaultDirectRateLimiter>,
    patience: Duration,
}

/// One of the requests that may be under way; it counts until this is dropped.
#[derive(Debug)]
pub(crate) struct Slot(#[allow(dead_code, reason = "held, not used")] OwnedSemaphorePermit);

impl Limits {
    /// At most `requests` at a time, and `rate` per second; nobody waits for longer than `patience`.
    pub(crate) fn new(requests: usize, rate: Option<NonZeroU32>, patience: Duration) -> Self {
        let slots = Arc::new(Semaphore::new(requests.clamp(1, Semaphore::MAX_PERMITS)));
        let rate = rate.map(|rate| RateLimiter::direct(Quota::per_second(rate)));
        Self { slots, rate, patience }
    }

    /// Waits until one more may be under way.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`]: that took too long.
    pub(crate) async fn enter(&self) -> Result<Slot, Error> {
        let slot = Arc::clone(&self.slots).acquire_owned();
        let slot = timeout(self.patience, slot).await.map_err(|_| Error::Busy)?;
        Ok(Slot(slot.expect("the semaphore is never closed")))
    }

    /// Waits until one more may be sent.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`]: that took too long.
    pub(crate) async fn pace(&self) -> Result<(), Error> {
        let Some(rate) = &self.rate else { return Ok(()) };
        timeout(self.patience, rate.until_ready()).await.map_err(|_| Error::Busy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn no_more_are_under_way_than_may_be() {
        let limits = Limits::new(2, None, SHORT);
        let (one, _two) = (limits.enter().await.unwrap(), limits.enter().await.unwrap());
        assert!(matches!(limits.enter().await, Err(Error::Busy)));
        drop(one);
        limits.enter().await.unwrap();
    }

    #[tokio::test]
    async fn no_more_are_sent_per_second_than_may_be() {
        let limits = Limits::new(9, NonZeroU32::new(2), SHORT);
        limits.pace().await.unwrap();
        limits.pace().await.unwrap();
        assert!(matches!(limits.pace().await, Err(Error::Busy)));
    }
}
