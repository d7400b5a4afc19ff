//! What replicas share: blobs in an S3 bucket, and an index of them in PostgreSQL.
//!
//! ```text
//! lookup ──▶ local store ── miss ──▶ Shared: index ──▶ bucket
//!              │   ▲                    ▲  ▲
//!  unshared    │   └── a fill           │  └── notes: tags, memberships, uses
//!              └──────── upload ────────┘
//! ```
//!
//! - [`bucket`]: blobs as objects;
//! - [`upload`]: what is stored here, on its way there;
//! - [`notes`]: what else the others are to know;
//! - [`pins`]: which images stay;
//! - [`upkeep`]: what one replica at a time does for all: scrub, what a crash has left, and
//!   [`keeping`], which is what goes;
//! - [`breaker`]: what a service that is away costs.
//!
//! The local store never waits for any of this but in a lookup of what it does not have, and that
//! waits for a bounded time. What is recorded in the shared index is in the bucket: it is recorded
//! after it was put there, and forgotten before it is removed.

mod breaker;
mod bucket;
mod keeping;
mod notes;
mod pins;
mod upkeep;
mod upload;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use larder_core::name::Named;
use larder_core::retention::ImagePattern;
use larder_core::{Digest, Tag};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::{sleep, timeout};
use tracing::{error, warn};
use url::Url;
use uuid::Uuid;

use self::breaker::{Breaker, Unanswered};
use self::bucket::{Bucket, BucketError};
pub(crate) use self::notes::Note;
use crate::index::{Index, IndexError, OpenIndexError, TagRecord};

pub use self::bucket::{S3Keys, S3Settings, SetupBucketError};

/// How long a question to the index may take: a hundred times the usual.
const ANSWER: Duration = Duration::from_secs(1);

/// How long recording something may take that nobody waits for.
const RECORD: Duration = Duration::from_secs(20);

/// How long preparing the index may take: a migration reads all of it.
const PREPARE: Duration = Duration::from_secs(600);

/// How long a start waits for the index to be prepared; then it goes on without.
const PREPARE_AT_START: Duration = Duration::from_secs(3);

/// How often a bucket that is away is asked, at most.
const PROBE: Duration = Duration::from_secs(1);

/// How long a replica is there after it was last heard of: three times what it takes to be heard of.
const REPLICA: Duration = Duration::from_secs(3);

/// The longest manifest: as upstreams are asked for no longer ones.
const MAX_MANIFEST: u64 = 4 << 20;

/// Where a database is, with all that is needed to use it. Not shown, as a password may be in it.
#[derive(Clone, PartialEq)]
pub struct DatabaseUrl(pub String);

impl fmt::Debug for DatabaseUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DatabaseUrl(…)")
    }
}

/// What replicas share, and how it is kept.
#[derive(Clone, Debug)]
pub struct SharedSettings {
    /// The index.
    pub database: DatabaseUrl,
    /// The blobs.
    pub s3: S3Settings,
    /// How many bytes of the bucket they may take; `None`: any number.
    pub budget: Option<u64>,
    /// In which time every object is read once. `None`: never.
    pub scrub: Option<Duration>,
}

/// Why what is shared cannot be used at all. That it is away now is no reason.
#[derive(Debug, thiserror::Error)]
pub enum OpenSharedError {
    /// The bucket's settings cannot work.
    #[error(transparent)]
    Bucket(#[from] SetupBucketError),
    /// The index cannot be used.
    #[error(transparent)]
    Index(#[from] OpenIndexError),
}

/// What is shared can't be had now.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SharedError {
    /// It is not there, whatever was said before.
    #[error("it is not shared any more")]
    Missing,
    /// The bucket or the index is away, or has refused.
    #[error("{0}")]
    Away(String),
}

impl From<BucketError> for SharedError {
    fn from(error: BucketError) -> Self {
        match error {
            BucketError::Missing => Self::Missing,
            error => Self::Away(error.to_string()),
        }
    }
}

/// How what is shared is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedStatus {
    /// Whether the bucket answered when it was last asked.
    pub bucket: bool,
    /// Whether the index answered when it was last asked.
    pub index: bool,
    /// How many blobs this process has uploaded, and their bytes.
    pub uploaded: (u64, u64),
    /// About how many have yet to be uploaded.
    pub waiting: u64,
    /// How many bytes it has read from the bucket.
    pub read: u64,
}

/// What replicas share, as one of them sees it. Cheap to clone.
#[derive(Clone)]
pub struct Shared(Arc<Inner>);

struct Inner {
    /// What this process calls itself where it takes a lease or a claim.
    me: String,
    index: Index,
    database: Breaker,
    is_prepared: AtomicBool,
    bucket: Bucket,
    budget: Option<u64>,
    scrub: Option<Duration>,
    notes: mpsc::Sender<Note>,
    /// What was pinned when that was asked last.
    pins: Mutex<Vec<ImagePattern>>,
    /// Something is to be uploaded.
    unshared: Notify,
    /// How often something was stored; up to which of these times it was looked for, and how many
    /// had to wait then.
    n_stored: AtomicU64,
    n_seen: AtomicU64,
    n_later: AtomicU64,
    n_uploaded: AtomicU64,
    bytes_uploaded: AtomicU64,
    bytes_read: AtomicU64,
}

/// A blob that is shared.
#[derive(Clone, Debug)]
pub struct SharedBlob {
    /// What it is called.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
    shared: Shared,
}

/// A part of a shared blob, or all of it, as it comes.
pub struct SharedBody {
    /// The first byte that comes.
    pub start: u64,
    /// The bytes of the whole.
    pub length: u64,
    /// The bytes that come.
    pub remaining: u64,
    /// They, in order; nothing after an error.
    pub body: BoxStream<'static, Result<Bytes, SharedError>>,
}

/// A manifest that is shared.
pub(crate) struct SharedManifest {
    pub(crate) media_type: String,
    pub(crate) bytes: Bytes,
    /// A repository that may serve it.
    pub(crate) repository: Named,
}

impl Shared {
    /// Returns what the tasks of the store are to be given, too.
    fn new(settings: SharedSettings) -> Result<(Self, mpsc::Receiver<Note>), OpenSharedError> {
        let SharedSettings { database, s3, budget, scrub } = settings;
        let (notes, noted) = mpsc::channel(notes::MAX_WAITING);
        let shared = Self(Arc::new(Inner {
            me: Uuid::now_v7().to_string(),
            index: Index::attach(&database.0)?,
            database: Breaker::new("PostgreSQL"),
            is_prepared: AtomicBool::new(false),
            bucket: Bucket::new(&s3)?,
            budget,
            scrub,
            notes,
            pins: Mutex::default(),
            unshared: Notify::new(),
            n_stored: AtomicU64::new(0),
            n_seen: AtomicU64::new(0),
            n_later: AtomicU64::new(0),
            n_uploaded: AtomicU64::new(0),
            bytes_uploaded: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
        }));
        Ok((shared, noted))
    }

    /// Begins to use what is shared, as soon as it is there.
    ///
    /// # Errors
    ///
    /// It can't be used, also not later.
    pub(crate) async fn open(
        settings: SharedSettings,
    ) -> Result<(Self, mpsc::Receiver<Note>), OpenSharedError> {
        let (shared, noted) = Self::new(settings)?;
        match timeout(PREPARE_AT_START, shared.0.index.prepare()).await {
            Ok(Ok(())) => shared.0.is_prepared.store(true, Ordering::Release),
            Ok(Err(newer @ OpenIndexError::Newer)) => return Err(newer.into()),
            Ok(Err(error)) => {
                warn!(error = &error as &dyn std::error::Error, "going on without PostgreSQL");
            }
            Err(_) => warn!("PostgreSQL does not answer, going on without"),
        }
        Ok((shared, noted))
    }

    /// Prepares the index once it is there, if it was not.
    pub(crate) async fn prepare(&self) {
        while !self.0.is_prepared.load(Ordering::Acquire) {
            match timeout(PREPARE, self.0.index.prepare()).await {
                Ok(Ok(())) => self.0.is_prepared.store(true, Ordering::Release),
                Ok(Err(OpenIndexError::Newer)) => {
                    error!("the shared index was written by a newer version of larder");
                    sleep(Duration::from_secs(60)).await;
                }
                Ok(Err(_)) | Err(_) => sleep(Duration::from_secs(1)).await,
            }
        }
    }

    /// Asks the bucket while it is away: where all that is wanted is at hand, nobody else would find
    /// out that it is back. The index is asked by every heartbeat. Ends when it is dropped.
    pub(crate) async fn probe(self) {
        loop {
            sleep(PROBE).await;
            if !self.0.bucket.is_up() {
                self.0.bucket.probe().await;
            }
        }
    }

    pub(crate) async fn close(&self) {
        let _ = self.ask(self.0.index.release_leases(&self.0.me)).await;
        // Connections to a server that is away are not worth waiting for.
        let _ = timeout(ANSWER, self.0.index.close()).await;
    }

    /// Asks the index, within its deadline.
    async fn ask<T>(
        &self,
        work: impl Future<Output = Result<T, IndexError>>,
    ) -> Result<T, SharedError> {
        if !self.0.is_prepared.load(Ordering::Acquire) {
            return Err(SharedError::Away("PostgreSQL has not answered yet".to_owned()));
        }
        let answer = self.0.database.ask(ANSWER, work, IndexError::away).await;
        answer.map_err(|error| match error {
            Unanswered::Failed(IndexError(error)) => SharedError::Away(error.to_string()),
            error => SharedError::Away(error.to_string()),
        })
    }

    /// As [`Self::ask`], of what nobody waits for and may take long: a manifest can have thousands of
    /// parts to record.
    async fn record<T>(
        &self,
        work: impl Future<Output = Result<T, IndexError>>,
    ) -> Result<T, SharedError> {
        match timeout(RECORD, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(IndexError(error))) => Err(SharedError::Away(error.to_string())),
            Err(_) => Err(SharedError::Away("PostgreSQL did not answer in time".to_owned())),
        }
    }

    /// How it is doing.
    pub fn status(&self) -> SharedStatus {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        SharedStatus {
            bucket: self.0.bucket.is_up(),
            index: self.0.is_prepared.load(Ordering::Acquire) && self.0.database.is_up(),
            uploaded: (load(&self.0.n_uploaded), load(&self.0.bytes_uploaded)),
            waiting: self.n_waiting(),
            read: load(&self.0.bytes_read),
        }
    }

    // === replicas ===

    /// Says that the replica at `url` is there, and returns the URLs of all that are.
    ///
    /// # Errors
    ///
    /// The index is away.
    pub async fn heartbeat(&self, url: &str) -> Result<Vec<String>, SharedError> {
        self.ask(self.0.index.put_replica(url)).await?;
        self.ask(self.0.index.replicas(REPLICA)).await
    }

    /// Says that it is there no more. If the index is away, the others find out.
    pub async fn leave(&self, url: &str) {
        let _ = self.ask(self.0.index.remove_replica(url)).await;
    }

    // === lookups ===

    /// The blob of that name, if it is shared and the index says so.
    pub async fn blob(&self, digest: &Digest) -> Option<SharedBlob> {
        // While the bucket is away there is none to be had.
        if !self.0.bucket.may_be_asked() {
            return None;
        }
        let (len, _) = self.ask(self.0.index.blob(digest)).await.ok()??;
        Some(SharedBlob { digest: digest.clone(), len, shared: self.clone() })
    }

    /// The manifest of that name, if it is shared, verified.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Option<SharedManifest> {
        let (_, media_type) = self.ask(self.0.index.blob(digest)).await.ok()??;
        let media_type = media_type?;
        let repository = self.ask(self.0.index.repositories_of(digest, 1)).await.ok()?;
        let repository = repository.into_iter().next()?;
        match self.0.bucket.get_small(digest, MAX_MANIFEST).await {
            Ok(bytes) => {
                let mut hasher = digest.hasher();
                hasher.update(&bytes);
                if hasher.finish() == *digest {
                    self.0.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
                    return Some(SharedManifest { media_type, bytes, repository });
                }
                self.forget(digest).await;
                None
            }
            Err(BucketError::Missing) => {
                self.forget(digest).await;
                None
            }
            Err(_) => None,
        }
    }

    pub(crate) async fn is_member(&self, repository: &Named, digest: &Digest) -> bool {
        self.ask(self.0.index.is_member(repository, digest)).await.unwrap_or(false)
    }

    pub(crate) async fn tag(
        &self,
        repository: &Named,
        tag: &Tag,
        variant: &str,
    ) -> Option<TagRecord> {
        self.ask(self.0.index.tag(repository, tag, variant)).await.ok()?
    }

    /// Forgets that a blob is shared, which somebody has found to be lost or wrong; whoever
    /// fetches it next will upload it again.
    pub async fn forget(&self, digest: &Digest) {
        warn!(blob.digest = %digest, "the bucket has lost {digest}, forgetting it");
        let _ = self.let_go(digest).await;
    }
}

impl SharedBlob {
    /// Begins to read it: all of it, or from a byte to another one (included), or to its end.
    ///
    /// # Errors
    ///
    /// [`SharedError::Missing`]: it is forgotten now.
    pub async fn read(&self, range: Option<(u64, Option<u64>)>) -> Result<SharedBody, SharedError> {
        let object = match self.shared.0.bucket.get(&self.digest, range).await {
            Err(BucketError::Missing) => {
                self.shared.forget(&self.digest).await;
                return Err(SharedError::Missing);
            }
            object => object?,
        };
        if object.length != self.len {
            self.shared.forget(&self.digest).await;
            return Err(SharedError::Missing);
        }
        let shared = self.shared.clone();
        let counted = move |bytes: &Bytes| {
            shared.0.bytes_read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        };
        let body = object.body.map_err(SharedError::from).inspect_ok(counted).boxed();
        let (start, length, remaining) = (object.start, object.length, object.remaining);
        Ok(SharedBody { start, length, remaining, body })
    }

    /// An address at which anybody may GET it for some time.
    ///
    /// # Errors
    ///
    /// There are no credentials to sign it with.
    pub async fn url(&self, expires_in: Duration) -> Result<Url, SharedError> {
        Ok(self.shared.0.bucket.url(&self.digest, expires_in).await?)
    }

    /// Forgets it: what came was not what it is called.
    pub async fn forget(&self) {
        self.shared.forget(&self.digest).await;
    }
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Shared").field(&self.0.bucket).finish()
    }
}

#[cfg(test)]
mod tests;
