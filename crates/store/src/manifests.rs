//! Manifests that are stored: blobs small enough to be kept and served whole.

use std::sync::Arc;

use bytes::Bytes;
use larder_core::Digest;
use larder_core::name::Named;
use tracing::warn;

use crate::blobs::LastUse;
use crate::index::ManifestRow;
use crate::staging::Published;
use crate::{CommitError, Store, StoreError};

/// A stored manifest, byte for byte as upstream sent it.
#[derive(Debug)]
pub struct StoredManifest {
    /// What it is called.
    pub digest: Digest,
    /// The media type that upstream gave it.
    pub media_type: String,
    /// Its bytes, which have been verified.
    pub bytes: Bytes,
    used: LastUse,
}

impl StoredManifest {
    /// What it costs to keep in memory, in bytes.
    pub(crate) fn weight(&self) -> u32 {
        u32::try_from(self.bytes.len() + 256).unwrap_or(u32::MAX)
    }
}

impl Store {
    /// The stored manifest of that name.
    ///
    /// Its bytes are verified when they are read from disk, so that a damaged file is forgotten
    /// and fetched again.
    ///
    /// # Errors
    ///
    /// The disk or the index can't say; upstream may still have it.
    pub async fn manifest(
        &self,
        digest: &Digest,
    ) -> Result<Option<Arc<StoredManifest>>, StoreError> {
        if let Some(manifest) = self.0.manifests.get(digest) {
            self.0.uses.note(digest, &manifest.used);
            return Ok(Some(manifest));
        }
        let Some((len, Some(media_type))) = self.index().blob(digest).await? else {
            return Ok(None);
        };
        let path = self.layout().blob(digest);
        let reading = tokio::task::spawn_blocking(move || std::fs::read(path));
        let bytes = match reading.await.expect("reading a file does not panic") {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(StoreError::io("reading a manifest", error)),
        };
        let mut hasher = digest.hasher();
        hasher.update(&bytes);
        if hasher.finish() != *digest {
            warn!(blob.digest = %digest, "the manifest {digest} is damaged, forgetting it");
            self.forget(digest, len).await?;
            return Ok(None);
        }
        let manifest = self.remember(digest, media_type, bytes.into());
        self.0.uses.note(digest, &manifest.used);
        Ok(Some(manifest))
    }

    /// Stores a manifest that `repository` serves. Everything in `children` may be served under it
    /// from now on.
    ///
    /// # Errors
    ///
    /// As [`crate::Staging::commit`]; with [`CommitError::Digest`] the bytes are not what `digest`
    /// names, with the others they may be given to clients all the same.
    pub async fn put_manifest(
        &self,
        repository: &Named,
        digest: &Digest,
        media_type: &str,
        bytes: Bytes,
        children: &[Digest],
    ) -> Result<Arc<StoredManifest>, CommitError> {
        let io = |source| CommitError::Io { digest: digest.clone(), source };
        let (store, name) = (self.clone(), digest.clone());
        let create = move || crate::Staging::create(&store, &name);
        let created = tokio::task::spawn_blocking(create).await;
        let staging = created.expect("creating does not panic").map_err(io)?;
        let staging = staging.write(vec![bytes.clone()]).await.map_err(|error| io(error.source))?;
        let (_, published) = staging.publish(None).await?;
        self.record_manifest(&published, repository, media_type, children).await?;
        Ok(self.remember(digest, media_type.to_owned(), bytes))
    }

    async fn record_manifest(
        &self,
        published: &Published,
        repository: &Named,
        media_type: &str,
        children: &[Digest],
    ) -> Result<(), CommitError> {
        let row = ManifestRow { media_type, children };
        let recorded = self.record_as(published, repository, Some(row)).await;
        recorded
            .map(drop)
            .map_err(|source| CommitError::Index { digest: published.digest.clone(), source })
    }

    fn remember(&self, digest: &Digest, media_type: String, bytes: Bytes) -> Arc<StoredManifest> {
        let used = LastUse::default();
        let manifest = StoredManifest { digest: digest.clone(), media_type, bytes, used };
        let manifest = Arc::new(manifest);
        self.0.manifests.insert(digest.clone(), Arc::clone(&manifest));
        manifest
    }
}
