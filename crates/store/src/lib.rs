//! The embedded store: blobs as files, an index in SQLite, one directory, no services. Behind it, what
//! replicas share, if they do: blobs in an S3 bucket, an index in PostgreSQL.
//!
//! - [`Store::stage`], [`Staging`]: bytes on their way in;
//! - [`Store::blob`], [`SharedFile`]: bytes on their way out;
//! - [`Store::manifest`], [`Store::put_manifest`]: manifests, which are small, and served whole;
//! - [`Store::is_member`]: which repository may serve what;
//! - [`Store::tag`]: what tags named when upstream was last asked;
//! - [`Store::collect`], [`Store::pin`]: what goes, and what stays;
//! - [`Store::manifests`]: what there is, for people who look;
//! - [`Store::verify`], [`rebuild_index`]: when disks forget;
//! - [`Store::shared`], [`Shared`]: what other replicas have, too.
//!
//! Promises:
//! - a blob that a lookup finds has the bytes of its name, also after a crash at any point;
//! - what has been read once goes on being readable by whoever holds it, also when it is evicted;
//! - one process at a time has the directory open;
//! - memory is bounded: each cache below says by what, and why.
//!
//! Nothing here knows of HTTP or of upstreams.

mod blobs;
mod buffers;
mod evict;
mod file;
mod index;
mod layout;
mod listing;
mod manifests;
mod names;
mod partial;
mod pins;
mod reading;
mod rebuild;
mod recover;
mod shared;
mod space;
mod staging;
mod sync;
mod tags;
mod verify;
mod work;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use larder_core::Digest;
use larder_core::eviction::Order;
use larder_core::name::Named;
use larder_core::retention::Retention;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{MutexGuard, Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::buffers::Buffers;
use crate::index::Index;
use crate::layout::Layout;
use crate::names::Names;
use crate::reading::Reading;
use crate::shared::Note;
use crate::space::Volume;
use crate::work::{Ending, Slow, blocking};

pub use crate::blobs::Blob;
pub use crate::evict::{Gone, Reason, Swept};
pub use crate::file::SharedFile;
pub use crate::index::{
    BlobRecord, IndexError, Listed, OfRepository, OpenIndexError, ParsePlaceError, Place,
    References, TagRecord, Unverified,
};
pub use crate::manifests::StoredManifest;
pub use crate::rebuild::{Found as Rebuilt, rebuild_index};
pub use crate::shared::{
    DatabaseUrl, OpenSharedError, S3Keys, S3Settings, SetupBucketError, Shared, SharedBlob,
    SharedBody, SharedError, SharedSettings, SharedStatus,
};
pub use crate::space::volume_size;
pub use crate::staging::{CommitError, Prefix, Staging, WriteError};
pub use crate::verify::{Fault, Pace, Verdict};

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory; made if it is missing.
    pub directory: PathBuf,
    /// How many bytes of the disk it may take; `None`: as many as the volume has.
    pub budget: Option<u64>,
    /// Down to which share of the budget eviction goes once it has begun, in percent: 1 to 100.
    pub low_watermark: u8,
    /// What is kept, and for how long.
    pub retention: Retention,
    /// What is shared with other replicas.
    pub shared: Option<SharedSettings>,
}

impl Settings {
    /// A store without budget, from which nothing goes for its age.
    pub fn new(directory: PathBuf) -> Self {
        let retention = Retention::default();
        Self { directory, budget: None, low_watermark: 90, retention, shared: None }
    }
}

/// A store that is open. Cheap to clone; [`Store::close`] ends it.
#[derive(Clone)]
pub struct Store(Arc<Inner>);

struct Inner {
    layout: Layout,
    index: Index,
    names: Names,
    buffers: Buffers,
    blobs: moka::sync::Cache<Digest, Blob>,
    manifests: moka::sync::Cache<Digest, Arc<StoredManifest>>,
    members: moka::sync::Cache<(Arc<Named>, Digest), ()>,
    tags: moka::sync::Cache<tags::TagKey, Arc<TagRecord>>,
    /// Goes up when something has been taken out of the index, so that it stays out of the caches.
    removals: AtomicU64,
    /// The same for `tags`: goes up when one has changed.
    tag_changes: AtomicU64,
    uses: blobs::Uses,
    reading: Reading,
    /// What blobs and kept beginnings take of the disk, in bytes.
    total: AtomicU64,
    /// The bytes of which files take whole ones.
    volume: Volume,
    budget: Option<u64>,
    low_watermark: u8,
    retention: RwLock<Arc<Retention>>,
    order: Mutex<Order>,
    /// One sweep at a time.
    sweeping: tokio::sync::Mutex<()>,
    evicted: AtomicU64,
    over_budget: Notify,
    made_room: Notify,
    /// Whether more is stored than the budget allows and nothing more can go now.
    is_full: AtomicBool,
    unsynced: Notify,
    shared: Option<Shared>,
    tasks: TaskTracker,
    ending: Ending,
    closing: CancellationToken,
    /// Held open: the lock goes with the file, after everything else.
    _lock: File,
}

/// How long who stores waits for who removes: some fifty times what removing one batch takes.
const MAX_WAIT_FOR_ROOM: std::time::Duration = std::time::Duration::from_secs(1);

/// How many blobs are kept open: more than a large pull has layers, and far below the 1,024 open
/// files that a process may have by default.
const MAX_OPEN_BLOBS: u64 = 256;

/// Manifests kept in memory, in bytes: some 10,000 of the usual 1 to 3 KiB.
const MAX_MANIFEST_BYTES: u64 = 24 << 20;

/// Memberships kept in memory: those of some 5,000 images with a dozen layers, at 150 bytes each.
const MAX_MEMBERS: u64 = 64 << 10;

/// Tags kept in memory, at some 400 bytes each.
const MAX_TAGS: u64 = 16 << 10;

/// Why a store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{} is in use by another larder; stop that one, or give this one a --data of its own", .0.display())]
    InUse(PathBuf),
    /// There is none, where one was expected.
    #[error("there is no store in {}", .0.display())]
    Absent(PathBuf),
    /// The directory can't be used.
    #[error("opening the store in {}", .directory.display())]
    Io {
        /// The store's directory.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The index can't be used.
    #[error("opening the store in {}", .directory.display())]
    Index {
        /// The store's directory.
        directory: PathBuf,
        /// What the database said.
        source: OpenIndexError,
    },
    /// What is shared with other replicas can't be used.
    #[error(transparent)]
    Shared(#[from] OpenSharedError),
    /// What was stored could not be checked.
    #[error("recovering the store")]
    Recover(#[source] StoreError),
}

/// The store can't do what was asked. The content can still be fetched from upstream and passed on.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The disk refused.
    #[error("{what}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// The index refused.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// What replicas share can't be asked or changed.
    #[error("asking what replicas share")]
    Shared(#[from] SharedError),
}

impl StoreError {
    pub(crate) fn io(what: &'static str, source: io::Error) -> Self {
        Self::Io { what, source }
    }
}

/// What a store holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// What all blobs, manifests and kept beginnings take of the disk, in bytes.
    pub bytes: u64,
    /// How much that may be.
    pub budget: Option<u64>,
    /// What was removed since it was opened, in bytes of the disk.
    pub evicted: u64,
}

// === impl Store ===

impl Store {
    /// Opens the store in a directory, and makes it if there is none.
    ///
    /// What a crash left behind is put right first: stagings are removed, and blobs that had not
    /// been synced are verified. That takes as long as reading what the disk was behind with when
    /// the crash came, usually what was written in the last second before it.
    ///
    /// # Errors
    ///
    /// [`OpenError`]: the directory is in use, unusable, or written by a newer version.
    pub async fn open(settings: Settings) -> Result<Self, OpenError> {
        let directory = settings.directory.clone();
        let (layout, lock) = blocking(move || recover::open_directory(&directory)).await?;
        let in_directory = |source| OpenError::Index { directory: settings.directory, source };
        let is_forgotten = recover::is_forgotten(&layout).await;
        let index = Index::open(&layout.index()).await.map_err(in_directory)?;
        recover::verify_unsynced(&layout, &index).await.map_err(OpenError::Recover)?;
        let recover = |error: IndexError| OpenError::Recover(error.into());
        let total = index.total().await.map_err(recover)?;
        let order = index.order().await.map_err(recover)?;
        let root = layout.root().to_owned();
        let volume = blocking(move || Volume::of(&root)).await;
        let measure = |source| OpenError::Recover(StoreError::io("measuring the disk", source));
        let volume = volume.map_err(measure)?;

        let (shared, noted) = match settings.shared {
            Some(settings) => {
                Shared::open(settings).await.map(|(it, noted)| (Some(it), Some(noted)))?
            }
            None => (None, None),
        };

        let tasks = TaskTracker::new();
        let store = Self(Arc::new(Inner {
            layout,
            index,
            names: Names::default(),
            buffers: Buffers::default(),
            blobs: moka::sync::Cache::builder()
                .max_capacity(MAX_OPEN_BLOBS)
                .time_to_idle(std::time::Duration::from_secs(60))
                .build(),
            manifests: moka::sync::Cache::builder()
                .weigher(|_, manifest: &Arc<StoredManifest>| manifest.weight())
                .max_capacity(MAX_MANIFEST_BYTES)
                .build(),
            members: moka::sync::Cache::new(MAX_MEMBERS),
            tags: moka::sync::Cache::new(MAX_TAGS),
            removals: AtomicU64::new(0),
            tag_changes: AtomicU64::new(0),
            uses: blobs::Uses::default(),
            reading: Reading::default(),
            total: AtomicU64::new(total),
            volume,
            budget: settings.budget,
            low_watermark: settings.low_watermark.clamp(1, 100),
            retention: RwLock::new(Arc::new(settings.retention)),
            order: Mutex::new(order),
            sweeping: tokio::sync::Mutex::new(()),
            evicted: AtomicU64::new(0),
            over_budget: Notify::new(),
            made_room: Notify::new(),
            is_full: AtomicBool::new(false),
            unsynced: Notify::new(),
            shared,
            ending: Ending::new(tasks.clone()),
            tasks,
            closing: CancellationToken::new(),
            _lock: lock,
        }));
        store.0.tasks.spawn(sync::run(store.clone()));
        store.0.tasks.spawn(evict::run(store.clone()));
        // Without an index every file would be one that nobody knows.
        if !is_forgotten {
            store.0.tasks.spawn(recover::sweep(store.clone()));
        }
        if let (Some(shared), Some(noted)) = (store.0.shared.clone(), noted) {
            // The last process may have left something.
            shared.is_behind();
            store.share_with_others(&shared, noted);
        }
        Ok(store)
    }

    /// Starts what is done for the other replicas; it ends when the store closes.
    fn share_with_others(&self, shared: &Shared, noted: mpsc::Receiver<Note>) {
        let until_closing = |work: Pin<Box<dyn Future<Output = ()> + Send>>| {
            let closing = self.0.closing.clone();
            async move {
                tokio::select! {
                    () = work => {}
                    () = closing.cancelled() => {}
                }
            }
        };
        let works: [Pin<Box<dyn Future<Output = ()> + Send>>; 6] = [
            Box::pin({
                let shared = shared.clone();
                async move { shared.prepare().await }
            }),
            Box::pin(shared.clone().probe()),
            Box::pin(shared.clone().write_notes(noted)),
            Box::pin(shared.clone().upload(self.clone())),
            Box::pin(shared.clone().keep(self.clone())),
            Box::pin(shared.clone().scrub()),
        ];
        for work in works {
            self.0.tasks.spawn(until_closing(work));
        }
    }

    /// What is shared with other replicas, if anything is.
    pub fn shared(&self) -> Option<&Shared> {
        self.0.shared.as_ref()
    }

    /// As [`Store::open`], where there is a store already.
    ///
    /// # Errors
    ///
    /// [`OpenError`]; [`OpenError::Absent`] where there is none, and then nothing is made.
    pub async fn open_existing(settings: Settings) -> Result<Self, OpenError> {
        let index = settings.directory.join("index.sqlite");
        match blocking(move || index.try_exists()).await {
            Ok(true) => Self::open(settings).await,
            Ok(false) => Err(OpenError::Absent(settings.directory)),
            Err(source) => Err(OpenError::Io { directory: settings.directory, source }),
        }
    }

    /// Finishes what is under way, writes down what is only in memory, and closes the index. Later
    /// calls fail, or find only what is in memory; blobs that are being read stay readable.
    ///
    /// The directory can be opened again once the last clone of this store, and the last
    /// [`Staging`], is dropped.
    pub async fn close(&self) {
        self.0.closing.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
        if let Some(shared) = self.shared() {
            shared.close().await;
        }
        self.0.index.close().await;
    }

    /// What the store holds now.
    pub fn usage(&self) -> Usage {
        Usage {
            bytes: self.0.total.load(Ordering::Relaxed),
            budget: self.0.budget,
            evicted: self.0.evicted.load(Ordering::Relaxed),
        }
    }

    /// Whether `repository` may serve `digest`: a manifest stored for it refers to the digest, or
    /// upstream has confirmed it.
    ///
    /// # Errors
    ///
    /// The index can't say; ask upstream.
    pub async fn is_member(
        &self,
        repository: &Arc<Named>,
        digest: &Digest,
    ) -> Result<bool, StoreError> {
        let key = (Arc::clone(repository), digest.clone());
        if self.0.members.contains_key(&key) {
            return Ok(true);
        }
        let mut is_member = self.index().is_member(repository, digest).await?;
        if !is_member
            && let Some(shared) = self.shared()
            && shared.is_member(repository, digest).await
        {
            self.index().put_member(repository, digest).await?;
            is_member = true;
        }
        if is_member {
            self.0.members.insert(key, ());
        }
        Ok(is_member)
    }

    /// Remembers that upstream has confirmed `digest` for `repository`.
    ///
    /// # Errors
    ///
    /// The index can't remember it; upstream will be asked again.
    pub async fn add_member(
        &self,
        repository: &Arc<Named>,
        digest: &Digest,
    ) -> Result<(), StoreError> {
        self.index().put_member(repository, digest).await?;
        self.0.members.insert((Arc::clone(repository), digest.clone()), ());
        self.note_members(repository, vec![digest.clone()]);
        Ok(())
    }

    /// Remembers that upstream has confirmed a stored manifest for `repository`, which therefore may
    /// serve the `children` that it refers to, too.
    ///
    /// # Errors
    ///
    /// The index can't remember it; upstream will be asked again.
    pub async fn add_manifest_member(
        &self,
        repository: &Arc<Named>,
        digest: &Digest,
        children: Vec<Digest>,
    ) -> Result<(), StoreError> {
        let mut digests = children;
        digests.push(digest.clone());
        self.index().put_members(repository, &digests).await?;
        for digest in &digests {
            self.0.members.insert((Arc::clone(repository), digest.clone()), ());
        }
        self.note_members(repository, digests);
        Ok(())
    }

    /// Has the other replicas know, too, what a repository may serve.
    fn note_members(&self, repository: &Arc<Named>, mut digests: Vec<Digest>) {
        if let Some(shared) = self.shared() {
            // Whoever writes to the index does so in this order.
            digests.sort();
            shared.note(Note::Members { repository: Arc::clone(repository), digests });
        }
    }

    /// At most `limit` repositories that have a stored manifest, after `last`, in the byte order of
    /// `HOST/NAME`.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn repositories(&self, last: &str, limit: u32) -> Result<Vec<Named>, StoreError> {
        Ok(self.index().repositories(last, limit).await?)
    }

    pub(crate) fn index(&self) -> &Index {
        &self.0.index
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.0.layout
    }

    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.0.tasks
    }

    /// Waits until nobody else changes what is stored under `digest`, see [`Names`].
    pub(crate) async fn lock(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.0.names.lock(digest).await
    }

    pub(crate) fn slow<T: Send + 'static>(&self, value: T) -> Slow<T> {
        Slow::new(value, &self.0.ending)
    }

    pub(crate) fn share(&self, file: Arc<Slow<File>>) -> SharedFile {
        SharedFile::new(file, self.0.buffers.clone())
    }

    /// What a file of `len` bytes takes of the disk.
    pub(crate) fn room(&self, len: u64) -> u64 {
        self.0.volume.room(len)
    }

    /// Whether what takes `room` bytes of the disk can stay, if everything else goes.
    pub(crate) fn is_small(&self, room: u64) -> bool {
        room <= self.0.volume.size && self.0.budget.is_none_or(|budget| room <= budget)
    }

    pub(crate) fn add(&self, bytes: u64) {
        let total = self.0.total.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let is_over = self.0.budget.is_some_and(|budget| total > budget);
        // When nothing can go, looking through everything for each blob would not help.
        if is_over && !self.0.is_full.load(Ordering::Relaxed) {
            self.0.over_budget.notify_one();
        }
    }

    pub(crate) fn subtract(&self, bytes: u64) {
        let less = |total: u64| Some(total.saturating_sub(bytes));
        let _ = self.0.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        self.0.made_room.notify_waiters();
    }

    /// Waits while more is stored than the budget allows and something can still go, so that who
    /// stores is no faster than who removes; and not for long.
    pub(crate) async fn wait_for_room(&self) {
        let Some(budget) = self.0.budget else { return };
        let wait = async {
            loop {
                let made_room = self.0.made_room.notified();
                let is_within = self.0.total.load(Ordering::Relaxed) <= budget;
                if is_within || self.0.is_full.load(Ordering::Relaxed) {
                    return;
                }
                made_room.await;
            }
        };
        let _ = tokio::time::timeout(MAX_WAIT_FOR_ROOM, wait).await;
    }
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Store").field(&self.0.layout.root()).finish()
    }
}
