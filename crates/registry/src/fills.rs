//! The fills under way: one for each blob, however many want it.
//!
//! A fill may wait for another replica, and another replica's fill for this one. So that they never
//! wait for each other, a replica reads along only with fills that wait for upstream alone, and those
//! have places of their own: none of them is ever taken by what waits for a replica.

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
use crate::source::{StandIns, Wanted};

/// How many blobs are fetched at one time from upstreams, and as many from replicas; more wait their
/// turn. Each has one connection, one file and up to 2 MiB of memory.
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
    places_at_peers: Arc<Semaphore>,
    tasks: TaskTracker,
    stopping: CancellationToken,
}

struct UnderWay {
    name: Arc<Named>,
    progress: Arc<watch::Sender<Progress>>,
    alone: CancellationToken,
    stand_ins: StandIns,
}

/// A fill that can be read along with.
pub(crate) struct Joined {
    /// What it is for.
    pub(crate) name: Arc<Named>,
    pub(crate) progress: watch::Receiver<Progress>,
    /// Cancelled once the fill waits for no other replica.
    pub(crate) alone: CancellationToken,
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

    fn joined(&self) -> Joined {
        let (name, progress) = (Arc::clone(&self.name), self.progress.subscribe());
        Joined { name, progress, alone: self.alone.clone() }
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
            places_at_peers: Arc::new(Semaphore::new(MAX_FILLS)),
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

    /// Reads along with the fill of a blob, which is begun if there is none.
    pub(crate) fn join(&self, wanted: Wanted) -> Joined {
        let mut under_way = self.0.under_way.lock();
        if let Some(fill) = under_way.get(&wanted.digest)
            && !fill.has_failed()
        {
            if wanted.upstream.asker.is_some() && wanted.name == fill.name {
                fill.stand_ins.add(&wanted.upstream);
            }
            return fill.joined();
        }
        let progress = watch::Sender::new(Progress { phase: Phase::Opening, visible: 0 });
        let progress = Arc::new(progress);
        let (name, alone) = (Arc::clone(&wanted.name), CancellationToken::new());
        let places = match wanted.peers.is_empty() {
            true => {
                alone.cancel();
                &self.0.places
            }
            false => &self.0.places_at_peers,
        };
        let (places, progress_of_fill) = (Arc::clone(places), Arc::clone(&progress));
        let stand_ins = wanted.stand_ins.clone();
        let fill = UnderWay { name, progress: progress_of_fill, alone: alone.clone(), stand_ins };
        let joined = fill.joined();
        under_way.insert(wanted.digest.clone(), fill);
        let place = Place {
            fills: self.clone(),
            digest: wanted.digest.clone(),
            progress: Arc::clone(&progress),
        };
        let job = Job {
            expected: self.0.lengths.get(&wanted.digest),
            wanted,
            store: self.0.store.clone(),
            metrics: self.0.metrics.clone(),
            stopping: self.0.stopping.clone(),
            alone,
            progress,
        };
        let task = async move {
            // The semaphore is never closed, so this waits for a place and nothing else.
            let _place = places.acquire_owned().await;
            job.metrics.fills.inc();
            let fills = job.metrics.fills.clone();
            job.run(|| place.leave_if_unwanted()).await;
            fills.dec();
        };
        self.0.tasks.spawn(task.in_current_span());
        joined
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
