//! What goes from what replicas share: by the rules of each one's own store, in the same passes.
//!
//! What was used is noted by all of them ([`super::notes`]), and where it stands is in the shared
//! index; so is the order's age, which each replica asks for where it needs it.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use larder_core::Digest;
use larder_core::eviction::Order;
use larder_core::retention::{ImagePattern, Retention, distinct};
use larder_core::size::human_size;
use parking_lot::Mutex;

use super::upkeep::KEEPING;
use super::{Shared, SharedError};
use crate::Store;
use crate::evict::{Kind, Limits, Sweep, Tier, tell};
use crate::index::turns::Candidate;
use crate::index::{Index, IndexError};

/// What replicas share, for the time of one pass.
struct Common<'s> {
    shared: &'s Shared,
    /// Whose rules they are: all replicas have the same.
    store: &'s Store,
    used: AtomicU64,
    order: Mutex<Order>,
}

impl Shared {
    /// Lets go of what has gone unused for longer than it may, and of what is beyond a quota.
    pub(super) async fn expire(&self, store: &Store) -> Result<(), SharedError> {
        let common = Common::look_at(self, store).await?;
        let mut sweep = Sweep::begin(&common, Kind::Real).await?;
        sweep.expire().await?;
        sweep.keep_quotas().await?;
        tell(&sweep.end().await?, "of what is shared, by its time or quota");
        Ok(())
    }

    /// Lets go of what is beyond the budget.
    pub(super) async fn keep_budget(&self, store: &Store) -> Result<(), SharedError> {
        let Some(high) = self.0.budget else { return Ok(()) };
        let common = Common::look_at(self, store).await?;
        if common.used() <= high {
            return Ok(());
        }
        let mut sweep = Sweep::begin(&common, Kind::Real).await?;
        sweep.keep_budget(Limits { high, low: common.low_watermark(high) }).await?;
        let swept = sweep.end().await?;
        tell(&swept, &format!("of what is shared, to keep its budget of {}", human_size(high)));
        self.record(self.0.index.trim_gone(Order::memory(high))).await
    }

    /// In which order content goes, as far as it is known.
    pub(super) async fn order(&self) -> Order {
        self.ask(self.0.index.order()).await.unwrap_or_default()
    }
}

impl<'s> Common<'s> {
    async fn look_at(shared: &'s Shared, store: &'s Store) -> Result<Self, SharedError> {
        let index = &shared.0.index;
        let (used, order) =
            (shared.record(index.total()).await?, shared.record(index.order()).await?);
        Ok(Self { shared, store, used: AtomicU64::new(used), order: Mutex::new(order) })
    }
}

impl Tier for Common<'_> {
    type Error = SharedError;

    fn index(&self) -> &Index {
        &self.shared.0.index
    }

    /// Nobody waits for it, and it may look through much.
    async fn ask<T: Send>(
        &self,
        work: impl Future<Output = Result<T, IndexError>> + Send,
    ) -> Result<T, SharedError> {
        self.shared.record(work).await
    }

    fn retention(&self) -> Arc<Retention> {
        self.store.retention()
    }

    async fn pins(&self) -> Result<Vec<ImagePattern>, SharedError> {
        // Rather nothing goes than what is pinned.
        let unknown = |error| SharedError::Away(format!("the pins are not known: {error}"));
        let known = self.store.pins().await.map_err(unknown)?;
        Ok(distinct(known.into_iter().chain(self.ask(self.index().pins()).await?)))
    }

    fn low_watermark(&self, high: u64) -> u64 {
        self.store.low_watermark(high)
    }

    fn order(&self) -> Order {
        *self.order.lock()
    }

    fn set_order(&self, order: Order) {
        *self.order.lock() = order;
    }

    fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Who reads an object that goes has the rest from the owner or upstream.
    fn is_held(&self, _: &Candidate) -> bool {
        false
    }

    async fn unshared(&self) -> Result<HashSet<i64>, SharedError> {
        Ok(HashSet::new())
    }

    async fn remove(
        &self,
        victims: &[(Candidate, Option<u32>)],
        _is_urgent: bool,
    ) -> Result<(), SharedError> {
        if !self.shared.has_lease(KEEPING).await {
            return Err(SharedError::Away("another replica keeps what is shared now".to_owned()));
        }
        for (Candidate { content, digest, room, .. }, uses) in victims {
            let forget = [(*content, *uses)];
            let forget = self.index().remove_blobs(&forget, SystemTime::now());
            if self.shared.remove(digest, forget).await? {
                let less = |used: u64| Some(used.saturating_sub(*room));
                let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
            }
        }
        Ok(())
    }

    /// There is none: what is shared is whole.
    async fn drop_beginning(&self, _: &Digest) -> Result<u64, SharedError> {
        Ok(0)
    }
}
