//! Bytes on their way into the store.
//!
//! A blob becomes visible in one step. Its bytes arrive in a file under `staging/` and are hashed
//! as they are written; the file is renamed into `blobs/` only when length and digest are both the
//! ones that were asked for.
//!
//! ```text
//! upstream ── bytes ──▶ Staging ── commit ──▶ blobs/sha256/ab/abcdef…
//!                          ├────── park ────▶ partial/sha256-abcdef… ── stage ──▶ Staging
//!                          └────── drop ────▶ gone
//! ```
//!
//! Invariants:
//! - a file under `blobs/` never changes, and hashes to its own name;
//! - a crash leaves files only under `staging/`, which [`Store::open`] empties;
//! - two stagings of one digest never share a file, so neither can damage the other.
//!
//! Who reads along while a blob arrives is decided elsewhere; here is only the file they read.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use larder_core::Digest;
use larder_core::digest::Hasher;
use larder_core::name::Named;
use tracing::warn;

use crate::file::SharedFile;
use crate::index::Manifest;
use crate::layout::RemoveOnDrop;
use crate::work::{Slow, blocking, finish};
use crate::{Blob, IndexError, Store};

/// How often others are removed for one write. Bytes that are freed may go to others at once; beyond
/// this many times there are too many of them.
const MAX_RELIEFS: u32 = 3;

/// A blob that is being written and that no lookup finds yet.
///
/// Dropping a `Staging` removes its file, soon after.
#[derive(Debug)]
#[must_use = "a staging that is not committed removes its bytes"]
pub struct Staging {
    pub(crate) store: Store,
    pub(crate) expected: Digest,
    pub(crate) path: Slow<RemoveOnDrop>,
    pub(crate) file: Arc<Slow<File>>,
    pub(crate) hasher: Hasher,
    pub(crate) len: u64,
}

/// Why staged bytes did not become a blob.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// Fewer or more bytes came than were announced.
    #[error("expected {expected} bytes, got {actual}")]
    Length {
        /// Announced length in bytes.
        expected: u64,
        /// Received length in bytes.
        actual: u64,
    },

    /// The bytes hash to something other than what was asked for.
    #[error("expected {expected}, got {actual}")]
    Digest {
        /// The digest that was asked for.
        expected: Digest,
        /// The digest of the bytes that came.
        actual: Digest,
    },

    /// The disk refused.
    #[error("storing {digest}")]
    Io {
        /// The blob that was being stored.
        digest: Digest,
        /// What the operating system said.
        source: io::Error,
    },

    /// The index refused.
    #[error("recording {digest}")]
    Index {
        /// The blob that was being stored.
        digest: Digest,
        /// What the database said.
        source: IndexError,
    },
}

/// A write that failed, with what was good before it.
///
/// The bytes before the failure are still readable, and the hash over them is known: whoever reads
/// along can get the rest from upstream and still be sure of the whole.
#[derive(Debug, thiserror::Error)]
#[error("writing byte {} of {}", .prefix.len, .prefix.digest)]
pub struct WriteError {
    /// What had been written before.
    pub prefix: Box<Prefix>,
    /// What the operating system said.
    pub source: io::Error,
}

/// The good beginning of a blob that cannot be stored. Its file goes soon after it is dropped.
#[derive(Debug)]
pub struct Prefix {
    /// The blob that this is the beginning of.
    pub digest: Digest,
    /// The file; only its first `len` bytes count.
    pub file: SharedFile,
    /// How many bytes are good.
    pub len: u64,
    /// The hash over those bytes.
    pub hasher: Hasher,
    _path: Slow<RemoveOnDrop>,
}

impl Staging {
    /// Begins an empty staging. Blocks.
    pub(crate) fn create(store: &Store, expected: &Digest) -> io::Result<Self> {
        let path = store.layout().new_staging();
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(&path)?;
        Ok(Self {
            path: store.slow(RemoveOnDrop::new(path)),
            file: Arc::new(store.slow(file)),
            store: store.clone(),
            expected: expected.clone(),
            hasher: expected.hasher(),
            len: 0,
        })
    }

    /// How many bytes have been written.
    #[expect(clippy::len_without_is_empty, reason = "a count of bytes, not a collection")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The file for those who read along. Only its first [`Staging::len`] bytes count; they stay
    /// readable after the commit, and as long as somebody holds the file.
    pub fn reader(&self) -> SharedFile {
        self.store.share(Arc::clone(&self.file))
    }

    /// Appends `chunks`, in their order, and hands the staging back. If the disk is full, others go
    /// first.
    ///
    /// # Errors
    ///
    /// [`WriteError`]: the disk refused, or is full of what must stay. The staging is gone, since
    /// part of the bytes may be in the file; the error has the good beginning.
    pub async fn write(self, chunks: Vec<Bytes>) -> Result<Self, WriteError> {
        let n_bytes = chunks.iter().map(|chunk| chunk.len() as u64).sum();
        let (mut staging, mut written) = self.try_write(&chunks).await;
        for _ in 0..MAX_RELIEFS {
            match written {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    let freed = staging.store.relieve(n_bytes).await.unwrap_or_else(|error| {
                        warn!(error = &error as &dyn std::error::Error, "making room on the disk");
                        0
                    });
                    if freed == 0 {
                        written = Err(error);
                        break;
                    }
                    (staging, written) = staging.try_write(&chunks).await;
                }
                _ => break,
            }
        }
        match written {
            Ok(()) => Ok(staging),
            Err(source) => Err(WriteError { prefix: Box::new(staging.into_prefix()), source }),
        }
    }

    async fn try_write(self, chunks: &[Bytes]) -> (Self, io::Result<()>) {
        let chunks = chunks.to_vec();
        blocking(move || self.write_blocking(&chunks)).await
    }

    /// After an error the staging is as it was: what it has beyond its length does not count.
    fn write_blocking(mut self, chunks: &[Bytes]) -> (Self, io::Result<()>) {
        let mut at = self.len;
        for chunk in chunks {
            if let Err(source) = self.file.write_all_at(chunk, at) {
                return (self, Err(source));
            }
            at += chunk.len() as u64;
        }
        for chunk in chunks {
            self.hasher.update(chunk);
        }
        self.len = at;
        (self, Ok(()))
    }

    fn into_prefix(self) -> Prefix {
        Prefix {
            digest: self.expected.clone(),
            file: self.store.share(Arc::clone(&self.file)),
            len: self.len,
            hasher: self.hasher.clone(),
            _path: self.path,
        }
    }

    /// Publishes the staged bytes as the blob they were meant to be, a member of `repository`.
    ///
    /// On return every lookup finds the blob: the file is renamed to its place and the index has
    /// it. It survives a crash of this process at once, and a loss of power within a second: until
    /// its file and directory are synced, the index marks it as to be verified at the next start.
    /// Publishing a blob that is already there puts equal bytes in its place; whoever is reading
    /// the old file keeps reading it.
    ///
    /// # Errors
    ///
    /// - [`CommitError::Length`]: upstream closed early or sent too much. Nothing is published;
    ///   another try may succeed.
    /// - [`CommitError::Digest`]: upstream sent other content. Nothing is published. A client that
    ///   has already been sent these bytes must be cut off, never given a clean end of body.
    /// - [`CommitError::Io`], [`CommitError::Index`]: the bytes are what was asked for and may be
    ///   given to clients, but are not stored; a later request fetches them again.
    ///
    /// Source: OCI image-spec, `descriptor.md`, "Verification" (the size first, then the digest).
    pub async fn commit(
        self,
        expected_len: Option<u64>,
        repository: &Named,
    ) -> Result<Blob, CommitError> {
        self.check(expected_len)?;
        let store = self.store.clone();
        let blob = self.publish(repository, None).await?;
        store.wait_for_room().await;
        Ok(blob)
    }

    /// Whether these are all the bytes, and the right ones.
    fn check(&self, expected_len: Option<u64>) -> Result<(), CommitError> {
        if let Some(expected) = expected_len
            && self.len != expected
        {
            return Err(CommitError::Length { expected, actual: self.len });
        }
        let actual = self.hasher.clone().finish();
        if actual != self.expected {
            return Err(CommitError::Digest { expected: self.expected.clone(), actual });
        }
        Ok(())
    }

    /// As [`Staging::commit`], of a manifest.
    pub(crate) async fn commit_manifest(
        self,
        repository: &Named,
        manifest: Manifest,
    ) -> Result<Blob, CommitError> {
        self.check(None)?;
        self.publish(repository, Some(manifest)).await
    }

    /// Gives the file its place and its row: both, or none.
    async fn publish(
        self,
        repository: &Named,
        manifest: Option<Manifest>,
    ) -> Result<Blob, CommitError> {
        let (store, repository) = (self.store.clone(), repository.clone());
        let tasks = store.tasks().clone();
        let publish = async move {
            let digest = self.expected.clone();
            let _name = store.lock(&digest).await;
            let placed = blocking(move || self.place()).await;
            let io = |source| CommitError::Io { digest: digest.clone(), source };
            let placed = placed.map_err(io)?;
            match store.record(&placed, &repository, manifest.as_ref()).await {
                Ok(blob) => Ok(blob),
                Err(source) => {
                    blocking(move || placed.undo()).await;
                    Err(CommitError::Index { digest, source })
                }
            }
        };
        finish(&tasks, publish).await
    }

    /// Renames the file to its place. Blocks.
    fn place(self) -> io::Result<Placed> {
        let path = self.store.layout().blob(&self.expected);
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        let replaces = path.try_exists()?;
        if replaces {
            // The index may already say that what is in this place survives a loss of power.
            self.file.sync_data()?;
        }
        std::fs::rename(self.path.path(), &path)?;
        self.path.into_inner().keep();
        Ok(Placed { digest: self.expected, file: self.file, len: self.len, path, replaces })
    }
}

/// A file that is at its place and that the index does not know yet.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) digest: Digest,
    pub(crate) file: Arc<Slow<File>>,
    pub(crate) len: u64,
    path: PathBuf,
    /// Whether another file had that place before.
    replaces: bool,
}

impl Placed {
    /// Leaves no file that the index does not know, and that would not be counted. Blocks.
    fn undo(self) {
        // One that has replaced another has equal bytes, which the index may know.
        if !self.replaces
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            warn!(%error, "removing {}", self.path.display());
        }
    }
}
