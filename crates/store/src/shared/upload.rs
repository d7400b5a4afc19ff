//! What is stored here, on its way to the others.
//!
//! The local index knows what has not been uploaded (`shared = 0`), so it is the queue, and a crash
//! or an outage loses nothing of it. One replica at a time uploads a blob, the one that has the claim
//! on it; the others, which have read it from that one, find it shared when they look again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use larder_core::Digest;
use larder_core::manifest::Manifest as Parsed;
use larder_core::name::Named;
use tokio::task::{JoinError, JoinSet};
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::bucket::{Bucket, BucketError};
use super::{Shared, SharedError};
use crate::blobs::{Blob, Found};
use crate::index::{Claim, Manifest, References, Stored};
use crate::{Store, StoreError};

/// How many blobs are uploaded at a time; each holds 16 MiB of memory at most.
const AT_ONCE: usize = 4;

/// How many are looked up at once.
const BATCH: u32 = 256;

/// How soon is looked again for what could not be uploaded.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a claim lasts unless it is kept, which it is with every part.
pub(super) const CLAIM: Duration = Duration::from_secs(30);

/// In how many repositories the others may find a blob without asking upstream.
const MAX_REPOSITORIES: u32 = 1000;

/// What came of looking at a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// It is shared, or not stored here any more.
    Done,
    /// Somebody else uploads it, or it could not be uploaded now.
    Later,
}

/// Why a blob was not uploaded.
#[derive(Debug, thiserror::Error)]
enum UploadError {
    #[error(transparent)]
    Shared(#[from] SharedError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<BucketError> for UploadError {
    fn from(error: BucketError) -> Self {
        Self::Shared(error.into())
    }
}

impl Shared {
    /// Something has been stored.
    pub(crate) fn is_behind(&self) {
        self.0.n_stored.fetch_add(1, Ordering::Relaxed);
        self.0.unshared.notify_one();
    }

    /// About how many blobs have not been uploaded, or not been looked at.
    pub(super) fn n_waiting(&self) -> u64 {
        let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
        let n_seen = load(&self.0.n_seen);
        load(&self.0.n_later) + load(&self.0.n_stored).saturating_sub(n_seen)
    }

    /// Uploads what the last process left, then what comes. Ends when it is dropped.
    pub(crate) async fn upload(self, store: Store) {
        loop {
            self.0.unshared.notified().await;
            let n_stored = self.0.n_stored.load(Ordering::Relaxed);
            let n_later = self.upload_all(&store).await.unwrap_or_else(|error| {
                warn!(error = &error as &dyn std::error::Error, "looking for what to upload");
                1
            });
            self.0.n_later.store(n_later, Ordering::Relaxed);
            self.0.n_seen.store(n_stored, Ordering::Relaxed);
            if n_later > 0 {
                sleep(AGAIN).await;
                self.0.unshared.notify_one();
            }
        }
    }

    /// Uploads what is not shared; returns how many of those looked at have to wait.
    async fn upload_all(&self, store: &Store) -> Result<u64, StoreError> {
        let (mut after, mut n_later) = (0, 0);
        loop {
            let batch = store.index().unshared(after, BATCH).await?;
            let Some((last, _)) = batch.last() else { return Ok(n_later) };
            after = *last;
            let is_later =
                |ended: Result<Outcome, JoinError>| u64::from(!matches!(ended, Ok(Outcome::Done)));
            let mut uploads = JoinSet::new();
            for (_, digest) in batch {
                if uploads.len() == AT_ONCE {
                    n_later += uploads.join_next().await.map_or(0, is_later);
                }
                uploads.spawn(self.clone().try_upload(store.clone(), digest));
            }
            while let Some(ended) = uploads.join_next().await {
                n_later += is_later(ended);
            }
            let status = self.status();
            if !status.bucket || !status.index {
                // The others would find it away, too.
                return Ok(n_later.max(1));
            }
        }
    }

    async fn try_upload(self, store: Store, digest: Digest) -> Outcome {
        self.upload_one(&store, &digest).await.unwrap_or_else(|error| {
            let error = &error as &dyn std::error::Error;
            debug!(blob.digest = %digest, error, "uploading {digest}, later");
            Outcome::Later
        })
    }

    async fn upload_one(&self, store: &Store, digest: &Digest) -> Result<Outcome, UploadError> {
        let repositories = store.index().repositories_of(digest, MAX_REPOSITORIES).await;
        let repositories = repositories.map_err(StoreError::from)?;
        if self.ask(self.0.index.blob(digest)).await?.is_some() {
            self.record(self.0.index.put_memberships(&repositories, digest)).await?;
            store.index().set_shared(digest, true).await.map_err(StoreError::from)?;
            return Ok(Outcome::Done);
        }
        let (index, me) = (&self.0.index, &self.0.me);
        let Some(claim) = self.ask(index.claim(digest, me, CLAIM)).await? else {
            return Ok(Outcome::Later);
        };
        let uploaded = self.upload_claimed(store, &claim, &repositories).await;
        // Without an answer it runs out by itself.
        let _ = self.ask(index.release_claim(digest, me)).await;
        uploaded
    }

    async fn upload_claimed(
        &self,
        store: &Store,
        claim: &Claim,
        repositories: &[Named],
    ) -> Result<Outcome, UploadError> {
        let Claim { digest, upload } = claim;
        if let Some(upload) = upload {
            self.0.bucket.abort(digest, upload).await?;
        }
        if self.ask(self.0.index.blob(digest)).await?.is_some() {
            // Somebody else was faster.
            return Ok(Outcome::Later);
        }
        let Found::Whole(blob) = store.find_blob(digest).await? else {
            return Ok(Outcome::Done);
        };
        let Some((first, others)) = repositories.split_first() else {
            // Nobody could be served it.
            store.index().set_shared(digest, true).await.map_err(StoreError::from)?;
            return Ok(Outcome::Done);
        };
        let manifest = manifest_of(store, digest).await?;
        self.put(digest, &blob).await?;
        let (len, now) = (blob.len, SystemTime::now());
        let stored = Stored { len, room: len, now, order: self.order().await, fits: true };
        self.record(self.0.index.put_blob(digest, stored, first, manifest.as_ref())).await?;
        self.record(self.0.index.put_memberships(others, digest)).await?;
        store.index().set_shared(digest, true).await.map_err(StoreError::from)?;
        self.0.n_uploaded.fetch_add(1, Ordering::Relaxed);
        self.0.bytes_uploaded.fetch_add(len, Ordering::Relaxed);
        info!(blob.digest = %digest, size_bytes = len, "uploaded {digest}");
        Ok(Outcome::Done)
    }

    async fn put(&self, digest: &Digest, blob: &Blob) -> Result<(), UploadError> {
        let (bucket, len) = (&self.0.bucket, blob.len);
        if !Bucket::comes_in_parts(len) {
            return Ok(bucket.put_small(digest, &blob.file, len).await?);
        }
        let upload = bucket.begin(digest).await?;
        let put = self.put_parts(digest, &upload, blob).await;
        if put.is_err() {
            // If the bucket is away, whoever finds the claim abandoned does it.
            let aborted = bucket.abort(digest, &upload).await;
            if aborted.is_ok() {
                let (index, me) = (&self.0.index, &self.0.me);
                let _ = self.ask(index.keep_claim(digest, me, None, CLAIM)).await;
            }
        }
        put
    }

    async fn put_parts(
        &self,
        digest: &Digest,
        upload: &str,
        blob: &Blob,
    ) -> Result<(), UploadError> {
        let mut parts = self.0.bucket.parts(digest, upload, &blob.file, blob.len);
        while !parts.is_over() {
            self.keep_claim(digest, upload).await?;
            parts.send_next().await?;
        }
        self.keep_claim(digest, upload).await?;
        Ok(parts.complete().await?)
    }

    async fn keep_claim(&self, digest: &Digest, upload: &str) -> Result<(), SharedError> {
        let (index, me) = (&self.0.index, &self.0.me);
        match self.ask(index.keep_claim(digest, me, Some(upload), CLAIM)).await? {
            true => Ok(()),
            false => Err(SharedError::Away("somebody else has the claim".to_owned())),
        }
    }
}

/// What the index has of a manifest beside its being a blob.
async fn manifest_of(store: &Store, digest: &Digest) -> Result<Option<Manifest>, StoreError> {
    let Some((_, Some(media_type))) = store.index().blob(digest).await? else {
        return Ok(None);
    };
    let Some(bytes) = store.peek_manifest(digest).await? else {
        return Ok(None);
    };
    let references = Parsed::parse(&bytes).map_or_else(
        |_| References::default(),
        |parsed| {
            let children = parsed.children().map(|child| child.digest.clone()).collect();
            References { children, subject: parsed.subject.map(|subject| subject.digest) }
        },
    );
    Ok(Some(Manifest { media_type, references }))
}
