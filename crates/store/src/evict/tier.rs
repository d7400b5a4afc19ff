//! What a pass goes over: what one process has on its disk, or what replicas share.

use std::collections::HashSet;
use std::sync::Arc;

use larder_core::Digest;
use larder_core::eviction::Order;
use larder_core::retention::{ImagePattern, Retention};

use crate::index::turns::Candidate;
use crate::index::{Index, IndexError};
use crate::{Store, StoreError};

/// How many blobs that have not been uploaded are looked up, and spared. During an outage there may
/// be more.
const MAX_UNSHARED: u32 = 100_000;

/// Somewhere content is kept, and goes from by the rules.
pub(crate) trait Tier: Sync {
    /// Why a pass ends early. What went before is gone.
    type Error: Send;

    /// What is known of it.
    fn index(&self) -> &Index;

    /// What the index answers.
    fn ask<T: Send>(
        &self,
        work: impl Future<Output = Result<T, IndexError>> + Send,
    ) -> impl Future<Output = Result<T, Self::Error>> + Send;

    /// The rules.
    fn retention(&self) -> Arc<Retention>;

    /// The images that stay.
    fn pins(&self) -> impl Future<Output = Result<Vec<ImagePattern>, Self::Error>> + Send;

    /// Down to where eviction goes, in bytes, of what may be stored.
    fn low_watermark(&self, high: u64) -> u64;

    /// In which order content goes.
    fn order(&self) -> Order;

    /// The order has become this one, and the index is about to know it.
    fn set_order(&self, order: Order);

    /// The bytes that are stored.
    fn used(&self) -> u64;

    /// Whether somebody is using it just now.
    fn is_held(&self, candidate: &Candidate) -> bool;

    /// Contents that nobody else could give, which are the last to go for the budget.
    fn unshared(&self) -> impl Future<Output = Result<HashSet<i64>, Self::Error>> + Send;

    /// Removes content, its bytes first if it `is_urgent`, and remembers how often it was used where
    /// that is given.
    fn remove(
        &self,
        victims: &[(Candidate, Option<u32>)],
        is_urgent: bool,
    ) -> impl Future<Output = Result<(), Self::Error>> + Send;

    /// Removes the kept beginning of a blob; how many bytes that frees.
    fn drop_beginning(
        &self,
        digest: &Digest,
    ) -> impl Future<Output = Result<u64, Self::Error>> + Send;
}

impl Tier for Store {
    type Error = StoreError;

    fn index(&self) -> &Index {
        self.index()
    }

    async fn ask<T: Send>(
        &self,
        work: impl Future<Output = Result<T, IndexError>> + Send,
    ) -> Result<T, StoreError> {
        Ok(work.await?)
    }

    fn retention(&self) -> Arc<Retention> {
        self.retention()
    }

    async fn pins(&self) -> Result<Vec<ImagePattern>, StoreError> {
        self.pins().await
    }

    fn low_watermark(&self, high: u64) -> u64 {
        let low = u128::from(high) * u128::from(self.0.low_watermark) / 100;
        u64::try_from(low).unwrap_or(high)
    }

    fn order(&self) -> Order {
        *self.0.order.lock()
    }

    fn set_order(&self, order: Order) {
        *self.0.order.lock() = order;
    }

    fn used(&self) -> u64 {
        self.usage().bytes
    }

    /// One that could never stay is nobody's reason to keep it.
    fn is_held(&self, candidate: &Candidate) -> bool {
        self.is_read(&candidate.digest) && self.is_small(candidate.room)
    }

    async fn unshared(&self) -> Result<HashSet<i64>, StoreError> {
        if self.shared().is_none() {
            return Ok(HashSet::new());
        }
        let unshared = self.index().unshared(0, MAX_UNSHARED).await?;
        Ok(unshared.into_iter().map(|(content, _)| content).collect())
    }

    async fn remove(
        &self,
        victims: &[(Candidate, Option<u32>)],
        is_urgent: bool,
    ) -> Result<(), StoreError> {
        let digests: Vec<_> = victims.iter().map(|(it, _)| it.digest.clone()).collect();
        let contents: Vec<_> = victims.iter().map(|(it, uses)| (it.content, *uses)).collect();
        self.remove(&contents, &digests, is_urgent).await.map(drop)
    }

    async fn drop_beginning(&self, digest: &Digest) -> Result<u64, StoreError> {
        self.drop_beginning(digest).await
    }
}
