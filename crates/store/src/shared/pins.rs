//! Which images all replicas keep.

use std::time::SystemTime;

use larder_core::retention::ImagePattern;

use super::{Shared, SharedError};

impl Shared {
    /// # Errors
    ///
    /// The index is away, and nobody keeps them for it.
    pub(crate) async fn pin(
        &self,
        pattern: &ImagePattern,
        now: SystemTime,
    ) -> Result<(), SharedError> {
        self.ask(self.0.index.put_pin(pattern, now)).await
    }

    /// Whether there was such a pin.
    ///
    /// # Errors
    ///
    /// The index is away, and they are kept as before.
    pub(crate) async fn unpin(&self, pattern: &ImagePattern) -> Result<bool, SharedError> {
        self.ask(self.0.index.remove_pin(pattern)).await
    }

    /// All pins; while the index is away, those that were heard of last.
    pub(crate) async fn pins(&self) -> Vec<ImagePattern> {
        if let Ok(pins) = self.ask(self.0.index.pins()).await {
            *self.0.pins.lock() = pins;
        }
        self.0.pins.lock().clone()
    }
}
