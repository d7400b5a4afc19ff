//! Keeps the store within its budget, and lets go what has gone unused for too long.
//!
//! - `sweep`: what goes, and why;
//! - `tier`: where from, as what replicas share goes by the same rules;
//! - here: when that is asked, and how what goes is removed.
//!
//! When more is stored than the budget allows, or the disk is nearly full, eviction goes on down to
//! the low watermark: that way it comes in batches and not once per blob. Nothing here waits for a
//! reader or makes one wait: a blob that is being read is passed over, and everything goes in small
//! transactions.

mod sweep;
mod tier;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use futures_util::future::join_all;
use larder_core::Digest;
use larder_core::eviction::Order;
use larder_core::manifest::Manifest;
use larder_core::retention::{Retention, Ttl};
use larder_core::size::human_size;
use tracing::{info, warn};

use crate::layout::RemoveOnDrop;
use crate::shared::Note;
use crate::space::Volume;
use crate::work::{Slow, blocking, finish};
use crate::{Store, StoreError};

pub use self::sweep::{Gone, Reason, Swept};
pub(crate) use self::sweep::{Kind, Sweep};
pub(crate) use self::tier::Tier;

/// How often uses are written down, and space is looked at.
const PERIOD: Duration = Duration::from_secs(10);

/// How often content is looked for that has gone unused for too long, at most and at least: a tenth
/// of the shortest time that counts, in between.
const EXPIRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(600));

/// How often the index is looked through for names that nothing refers to. It only gets smaller.
const FORGETTING: Duration = Duration::from_secs(60 * 60);

/// How many uses are written down in one transaction; a commit waits for one at most, some 20 ms.
const USES_AT_ONCE: usize = 200;

/// How many manifests are read in one go, to learn what they are made of.
const UNREAD_AT_ONCE: u32 = 100;

/// The part of what is stored that goes when the disk is full in the middle of a write.
const RELIEF: u64 = 20;

/// Up to which size freeing a file's bytes takes no longer than moving the file.
const FREED_AT_ONCE: u64 = 1 << 20;

/// How many threads remove small files: each waits for the disk to say where a file is. Four were
/// faster, and kept readers waiting on a machine of two cores.
const N_REMOVING: usize = 2;

/// Writes down uses and keeps budget and times, until the store closes.
pub(crate) async fn run(store: Store) {
    report("reading what manifests are made of", store.learn_parts().await);
    let mut next_expiry = Instant::now() + store.expiry_interval();
    let mut next_forgetting = Instant::now() + FORGETTING;
    // The budget may be another one than before.
    store.0.over_budget.notify_one();
    loop {
        let period = PERIOD.min(next_expiry.saturating_duration_since(Instant::now()));
        let closing = tokio::select! {
            () = tokio::time::sleep(period) => false,
            () = store.0.over_budget.notified() => false,
            () = store.0.closing.cancelled() => true,
        };
        // Each of these matters also when another fails.
        report("writing down what was used", write_uses(&store).await);
        let dropped = store.drop_old_beginnings(SystemTime::now()).await;
        report("removing old beginnings", dropped);
        if next_expiry <= Instant::now() && !closing {
            report("removing what has gone unused", store.expire().await);
            next_expiry = Instant::now() + store.expiry_interval();
        }
        if next_forgetting <= Instant::now() && !closing {
            report("forgetting names", store.forget_names().await);
            next_forgetting = Instant::now() + FORGETTING;
        }
        report("keeping the store's budget", store.keep_budget().await);
        // Without this, files that nobody reads any more stay open until the next lookup.
        store.0.blobs.run_pending_tasks();
        if closing {
            return;
        }
    }
}

fn report(what: &'static str, done: Result<(), StoreError>) {
    if let Err(error) = done {
        warn!(error = &error as &dyn std::error::Error, "{what}");
    }
}

async fn write_uses(store: &Store) -> Result<(), StoreError> {
    let order = *store.0.order.lock();
    let uses = store.0.uses.take();
    if let (Some(shared), false) = (store.shared(), uses.is_empty()) {
        shared.note(Note::Uses(uses.clone()));
    }
    for uses in uses.chunks(USES_AT_ONCE) {
        store.index().set_used(uses, order).await?;
    }
    Ok(())
}

impl Store {
    /// Removes what has to go now: what has gone unused for too long, and what is beyond a quota or
    /// the budget. With `is_dry` nothing is removed, only said.
    ///
    /// # Errors
    ///
    /// The index or the disk refuses; what was removed before is gone.
    pub async fn collect(&self, is_dry: bool) -> Result<Swept, StoreError> {
        let store = self.clone();
        let collect = async move {
            report("writing down what was used", write_uses(&store).await);
            let _turn = store.0.sweeping.lock().await;
            let mut sweep =
                Sweep::begin(&store, if is_dry { Kind::Dry } else { Kind::Real }).await?;
            sweep.expire().await?;
            sweep.keep_quotas().await?;
            sweep.keep_budget(store.limits().await?).await?;
            sweep.end().await
        };
        finish(self.tasks(), collect).await
    }

    pub(crate) fn expiry_interval(&self) -> Duration {
        match self.retention().shortest() {
            Ttl::After(ttl) => (ttl / 10).clamp(EXPIRY.0, EXPIRY.1),
            Ttl::Never => EXPIRY.1,
        }
    }

    async fn expire(&self) -> Result<(), StoreError> {
        let _turn = self.0.sweeping.lock().await;
        let mut sweep = Sweep::begin(self, Kind::Real).await?;
        sweep.expire().await?;
        sweep.keep_quotas().await?;
        tell(&sweep.end().await?, "of what has gone unused for too long");
        Ok(())
    }

    async fn keep_budget(&self) -> Result<(), StoreError> {
        let limits = self.limits().await?;
        if self.usage().bytes <= limits.high {
            self.0.is_full.store(false, Ordering::Relaxed);
            return Ok(());
        }
        let _turn = self.0.sweeping.lock().await;
        let mut sweep = Sweep::begin(self, Kind::Real).await?;
        sweep.keep_budget(limits).await?;
        let swept = sweep.end().await?;
        let is_over = self.usage().bytes > limits.high;
        self.0.is_full.store(is_over && swept.count() == 0, Ordering::Relaxed);
        self.0.made_room.notify_waiters();
        if is_over && swept.count() > 0 {
            // More has come meanwhile.
            self.0.over_budget.notify_one();
        }
        tell(&swept, &format!("to keep the budget of {}", human_size(limits.high)));
        self.index().trim_gone(Order::memory(limits.high)).await?;
        Ok(())
    }

    /// Frees some space because the disk is full; how many bytes.
    pub(crate) async fn relieve(&self, needed: u64) -> Result<u64, StoreError> {
        let _turn = self.0.sweeping.lock().await;
        let used = self.usage().bytes;
        let low = used.saturating_sub(needed.max(used / RELIEF));
        let mut sweep = Sweep::begin(self, Kind::Urgent).await?;
        sweep.keep_budget(Limits { high: low, low }).await?;
        let swept = sweep.end().await?;
        tell(&swept, "because the disk is full");
        Ok(swept.bytes())
    }

    /// How much may be stored at this moment.
    async fn limits(&self) -> Result<Limits, StoreError> {
        let (root, budget) = (self.layout().root().to_owned(), self.0.budget);
        let volume = blocking(move || Volume::of(&root)).await;
        let volume = volume.map_err(|source| StoreError::io("measuring the disk", source))?;
        let high = volume.limit(self.usage().bytes, budget);
        Ok(Limits { high, low: self.low_watermark(high) })
    }

    /// What is kept, and for how long.
    pub fn retention(&self) -> Arc<Retention> {
        Arc::clone(&self.0.retention.read())
    }

    /// Changes what is kept and for how long, also for what is stored already.
    pub fn set_retention(&self, retention: Retention) {
        *self.0.retention.write() = Arc::new(retention);
        self.0.over_budget.notify_one();
    }

    /// Removes blobs: takes them out of the index and out of their places at once, and frees their
    /// bytes; with `is_urgent` those first. Returns what they were counted with.
    pub(crate) async fn remove(
        &self,
        victims: &[(i64, Option<u32>)],
        digests: &[Digest],
        is_urgent: bool,
    ) -> Result<u64, StoreError> {
        let names = self.0.names.lock_all(digests).await;
        if is_urgent {
            // On a full disk the index has no room to forget in. A row without its file is one that
            // lookups know to be lost, so the files may go first; who reads one goes on reading it.
            let paths: Vec<_> = digests.iter().map(|it| self.layout().blob(it)).collect();
            digests.iter().for_each(|digest| self.forget_cached(digest));
            self.0.blobs.run_pending_tasks();
            blocking(move || paths.iter().for_each(|path| unlink(path))).await;
        }
        let removed = self.index().remove_blobs(victims, SystemTime::now()).await?;
        let mut room = 0;
        let (mut small, mut large) = (Vec::new(), Vec::new());
        for blob in removed {
            room += blob.room;
            self.subtract(blob.room);
            self.0.removals.fetch_add(1, Ordering::SeqCst);
            self.forget_cached(&blob.digest);
            let path = self.layout().blob(&blob.digest);
            match blob.room <= FREED_AT_ONCE {
                true => small.push(path),
                false => {
                    let aside = RemoveOnDrop::new(self.layout().new_staging());
                    large.push((path, self.slow(aside)));
                }
            }
        }
        unlink_all(small).await;
        if !large.is_empty() {
            let files = blocking(move || {
                for (path, aside) in &large {
                    report_removal(path, std::fs::rename(path, aside.path()));
                }
                large.into_iter().map(|(_, aside)| aside).collect::<Vec<_>>()
            })
            .await;
            drop(names);
            // By now nobody waits for it.
            blocking(move || files.into_iter().map(Slow::into_inner).for_each(drop)).await;
        }
        self.0.blobs.run_pending_tasks();
        self.0.evicted.fetch_add(room, Ordering::Relaxed);
        Ok(room)
    }

    /// Reads the manifests of which it is not known yet what they are made of.
    async fn learn_parts(&self) -> Result<(), StoreError> {
        loop {
            let unread = self.index().unread_manifests(UNREAD_AT_ONCE).await?;
            if unread.is_empty() || self.0.closing.is_cancelled() {
                return Ok(());
            }
            for digest in unread {
                let manifest = self.peek_manifest(&digest).await?;
                let parsed = manifest.and_then(|bytes| Manifest::parse(&bytes).ok());
                let children = parsed.iter().flat_map(|it| it.children());
                let parts: Vec<_> = children.map(|child| child.digest.clone()).collect();
                self.index().put_parts(&digest, &parts).await?;
            }
        }
    }

    /// Forgets what is known of contents that nothing here refers to any more.
    async fn forget_names(&self) -> Result<(), StoreError> {
        Ok(self.index().forget_names(SystemTime::now(), &self.0.closing).await?)
    }
}

/// How much may be stored, in bytes: beyond `high` it goes down to `low`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    pub(crate) high: u64,
    pub(crate) low: u64,
}

/// Removes a file that is about to go. Blocks.
fn unlink(path: &Path) {
    report_removal(path, std::fs::remove_file(path));
}

/// Removes files, several at a time.
async fn unlink_all(paths: Vec<PathBuf>) {
    let share = paths.len().div_ceil(N_REMOVING).max(1);
    let unlink_some = |paths: &[PathBuf]| {
        let paths = paths.to_vec();
        blocking(move || paths.iter().for_each(|path| unlink(path)))
    };
    join_all(paths.chunks(share).map(unlink_some)).await;
}

fn report_removal(path: &Path, done: io::Result<()>) {
    if let Err(error) = done
        && error.kind() != io::ErrorKind::NotFound
    {
        warn!(%error, "removing {}", path.display());
    }
}

pub(crate) fn tell(swept: &Swept, why: &str) {
    if swept.count() > 0 {
        info!("removed {} blobs of {} {why}", swept.count(), human_size(swept.bytes()));
    }
}
