//! The fills under way: one for each blob, however many want it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use larder_core::Digest;
use larder_core::manifest::Manifest;
use larder_core::name::Named;
use larder_store::Store;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use crate::fill::{Job, Phase, Progress};
use crate::metrics::Metrics;
use crate::source::Wanted;

/// How many blobs are fetched at one time; more wait their turn. Each has one connection, one file
/// and up to 2 MiB of memory.
const MAX_FILLS: usize = 64;

/// How many lengths of blobs are remembered from manifests, at some 50 bytes each.
const MAX_LENGTHS: u64 = 32 << 10;

/// The fills under way. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Fills(Arc<Inner>);

struct Inner {
    under_way: Mutex<HashMap<Digest, UnderWay>>,
    lengths: moka::sync::Cache<Digest, u64>,
    store: Store,
    metrics: Metrics,
    places: Arc<Semaphore>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

struct UnderWay {
    name: Arc<Named>,
    progress: Arc<watch::Sender<Progress>>,
}

/// A fill that is under way, for people who look.
#[derive(Debug)]
pub(crate) struct Listed {
    pub(crate) digest: Digest,
    pub(crate) name: Arc<Named>,
    pub(crate) progress: Progress,
    /// How many read along.
    pub(crate) readers: usize,
}

impl UnderWay {
    /// Whether it has ended without the blob and is about to leave the map: whoever comes now
    /// starts anew, so that no failure outlives those who waited for it.
    fn has_failed(&self) -> bool {
        let phase = &self.progress.borrow().phase;
        matches!(phase, Phase::Failed(_) | Phase::Stopped | Phase::Unstored { .. })
    }
}

impl Fills {
    pub(crate) fn new(store: Store, metrics: Metrics) -> Self {
        Self(Arc::new(Inner {
            under_way: Mutex::default(),
            lengths: moka::sync::Cache::new(MAX_LENGTHS),
            store,
            metrics,
            places: Arc::new(Semaphore::new(MAX_FILLS)),
            tasks: TaskTracker::new(),
            stopping: CancellationToken::new(),
        }))
    }

    /// Remembers how long the blobs of a manifest are, for upstreams that don't say it.
    pub(crate) fn learn(&self, manifest: &Manifest) {
        for blob in &manifest.blobs {
            self.0.lengths.insert(blob.digest.clone(), blob.size);
        }
    }

    /// What is being fetched now.
    pub(crate) fn list(&self) -> Vec<Listed> {
        let under_way = self.0.under_way.lock();
        let listed = |(digest, fill): (&Digest, &UnderWay)| Listed {
            digest: digest.clone(),
            name: Arc::clone(&fill.name),
            progress: fill.progress.borrow().clone(),
            readers: fill.progress.receiver_count(),
        };
        under_way.iter().map(listed).collect()
    }

    /// Reads along with the fill of `digest`, if there is one, and says for which repository it is.
    pub(crate) fn join(&self, digest: &Digest) -> Option<(Arc<Named>, watch::Receiver<Progress>)> {
        let under_way = self.0.under_way.lock();
        let fill = under_way.get(digest).filter(|fill| !fill.has_failed())?;
        Some((Arc::clone(&fill.name), fill.progress.subscribe()))
    }

    /// Reads along with the fill of a blob, which is begun if there is none.
    pub(crate) fn start(&self, wanted: Wanted, name: Arc<Named>) -> watch::Receiver<Progress> {
        let mut under_way = self.0.under_way.lock();
        if let Some(fill) = under_way.get(&wanted.digest)
            && !fill.has_failed()
        {
            return fill.progress.subscribe();
        }
        let (progress, follower) = watch::channel(Progress { phase: Phase::Opening, visible: 0 });
        let progress = Arc::new(progress);
        let fill = UnderWay { name: Arc::clone(&name), progress: Arc::clone(&progress) };
        under_way.insert(wanted.digest.clone(), fill);
        let place = Place {
            fills: self.clone(),
            digest: wanted.digest.clone(),
            progress: Arc::clone(&progress),
        };
        let job = Job {
            expected: self.0.lengths.get(&wanted.digest),
            wanted,
            name,
            store: self.0.store.clone(),
            metrics: self.0.metrics.clone(),
            stopping: self.0.stopping.clone(),
            progress,
        };
        let places = Arc::clone(&self.0.places);
        let task = async move {
            // The semaphore is never closed, so this waits for a place and nothing else.
            let _place = places.acquire_owned().await;
            job.metrics.fills.inc();
            let fills = job.metrics.fills.clone();
            job.run(|| place.leave_if_unwanted()).await;
            fills.dec();
        };
        self.0.tasks.spawn(task.in_current_span());
        follower
    }

    /// Ends all fills and keeps what has come. To be called when nobody reads along any more.
    pub(crate) async fn close(&self) {
        self.0.stopping.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

/// A fill's place on the map, which it leaves when it ends, also by a panic.
struct Place {
    fills: Fills,
    digest: Digest,
    progress: Arc<watch::Sender<Progress>>,
}

impl Place {
    /// Leaves unless somebody reads along. Who joins does so under the same lock.
    fn leave_if_unwanted(&self) -> bool {
        let mut under_way = self.fills.0.under_way.lock();
        let is_unwanted = self.progress.receiver_count() == 0;
        if is_unwanted {
            under_way.remove(&self.digest);
        }
        is_unwanted
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut under_way = self.fills.0.under_way.lock();
        if let Entry::Occupied(entry) = under_way.entry(self.digest.clone())
            && Arc::ptr_eq(&entry.get().progress, &self.progress)
        {
            entry.remove();
        }
    }
}
