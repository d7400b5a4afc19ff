//! Content that is brought instead of fetched: by `larder import`, where no upstream can be asked.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use larder_core::manifest::{Manifest, ParseManifestError};
use larder_core::name::Named;
use larder_core::{Digest, Tag};
use larder_store::{CommitError, References, Store, StoreError, TagRecord, WriteError};
use std::sync::Arc;

/// The most that is written at once.
const BATCH: usize = 1 << 20;

/// How long whoever brings something may be silent.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why something was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IntakeError {
    #[error("the body broke off")]
    BrokeOff(#[source] axum::Error),
    #[error("nothing came for {} s", PATIENCE.as_secs())]
    Silent,
    #[error("it is not what its name says")]
    Wrong(#[source] CommitError),
    #[error("it is no manifest")]
    Unreadable(#[from] ParseManifestError),
    #[error("it could not be stored")]
    Store(#[from] StoreError),
    #[error("it could not be stored")]
    Write(#[from] WriteError),
    #[error("it could not be stored")]
    Commit(#[source] CommitError),
}

impl From<CommitError> for IntakeError {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Length { .. } | CommitError::Digest { .. } => Self::Wrong(error),
            CommitError::Io { .. } | CommitError::Index { .. } => Self::Commit(error),
        }
    }
}

/// Stores a blob, which `repository` may serve from now on. Returns its length in bytes.
pub(crate) async fn take_blob(
    store: &Store,
    repository: &Named,
    digest: &Digest,
    mut chunks: impl Stream<Item = Result<Bytes, axum::Error>> + Unpin,
) -> Result<u64, IntakeError> {
    let mut staging = store.stage(digest).await?;
    // A beginning that was kept is not written again.
    let mut to_skip = staging.len();
    let (mut batch, mut batched) = (Vec::new(), 0);
    loop {
        let next = tokio::time::timeout(PATIENCE, chunks.next()).await;
        let chunk = next.map_err(|_| IntakeError::Silent)?;
        let is_last = chunk.is_none();
        if let Some(chunk) = chunk {
            let mut chunk = chunk.map_err(IntakeError::BrokeOff)?;
            let skipped = to_skip.min(chunk.len() as u64);
            to_skip -= skipped;
            let chunk = chunk.split_off(skipped as usize);
            batched += chunk.len();
            batch.push(chunk);
        }
        if batched >= BATCH || (is_last && batched > 0) {
            staging = staging.write(std::mem::take(&mut batch)).await?;
            batched = 0;
        }
        if is_last {
            // Whoever brought less than was here already has not brought the blob.
            let expected = (to_skip > 0).then(|| staging.len() - to_skip);
            return Ok(staging.commit(expected, repository).await?.len);
        }
    }
}

/// Stores a manifest, which `repository` may serve from now on, as what `tag` names. Returns which
/// blobs it is made of are not stored; of an index that is none, since nobody needs all images of it.
pub(crate) async fn take_manifest(
    store: &Store,
    repository: &Arc<Named>,
    digest: &Digest,
    media_type: Option<&str>,
    tag: Option<&Tag>,
    bytes: Bytes,
) -> Result<Vec<Digest>, IntakeError> {
    let manifest = Manifest::parse(&bytes)?;
    let media_type = media_type.unwrap_or(manifest.media_type_or_guess()).to_owned();
    let references = References {
        children: manifest.children().map(|child| child.digest.clone()).collect(),
        subject: manifest.subject.as_ref().map(|subject| subject.digest.clone()),
    };
    let size = bytes.len() as u64;
    store.put_manifest(repository, digest, &media_type, bytes, references).await?;
    if let Some(tag) = tag {
        let digest = digest.clone();
        let record = TagRecord { digest, media_type, size, checked_at: SystemTime::now() };
        store.put_tag(repository, tag, &Arc::from(""), record).await?;
    }
    let mut missing = Vec::new();
    for blob in manifest.blobs {
        if store.blob_record(&blob.digest).await?.is_none() {
            missing.push(blob.digest);
        }
    }
    Ok(missing)
}
