//! Which images somebody wants to stay.
//!
//! Replicas that share what they hold share this, too: what one of them is told to keep, all keep, each
//! on its disk and together in the bucket. While PostgreSQL is away, each goes by what it heard last.

use std::time::SystemTime;

use larder_core::retention::{ImagePattern, distinct};

use crate::{Store, StoreError};

impl Store {
    /// Has images stay until they are unpinned.
    ///
    /// # Errors
    ///
    /// The index can't remember it. [`StoreError::Shared`]: try again when it is back.
    pub async fn pin(&self, pattern: &ImagePattern) -> Result<(), StoreError> {
        let now = SystemTime::now();
        match self.shared() {
            Some(shared) => Ok(shared.pin(pattern, now).await?),
            None => Ok(self.index().put_pin(pattern, now).await?),
        }
    }

    /// Takes a pin back; whether there was such a one. Those of the configuration stay.
    ///
    /// # Errors
    ///
    /// The index can't forget it. [`StoreError::Shared`]: try again when it is back.
    pub async fn unpin(&self, pattern: &ImagePattern) -> Result<bool, StoreError> {
        let was_shared = match self.shared() {
            Some(shared) => shared.unpin(pattern).await?,
            None => false,
        };
        // Also one from a time when this replica shared nothing.
        Ok(self.index().remove_pin(pattern).await? || was_shared)
    }

    /// All pins: those of the configuration first, then the others, in the order of their text.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn pins(&self) -> Result<Vec<ImagePattern>, StoreError> {
        let mut stored = self.index().pins().await?;
        if let Some(shared) = self.shared() {
            stored.extend(shared.pins().await);
            stored.sort_by(|one, other| one.as_str().cmp(other.as_str()));
        }
        Ok(distinct(self.retention().pins.iter().cloned().chain(stored)))
    }
}
