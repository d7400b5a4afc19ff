//! Manifests that are stored: blobs small enough to be kept and served whole.

use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use larder_core::Digest;
use larder_core::manifest::Manifest as Parsed;
use larder_core::name::Named;
use tracing::warn;

use crate::blobs::{Found, LastUse, damaged, is_lost, open_whole};
use crate::index::{Manifest, References};
use crate::shared::SharedManifest;
use crate::work::blocking;
use crate::{CommitError, Staging, Store, StoreError};

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
    /// The stored manifest of that name; one that is shared is stored here, too.
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
        let manifest = self.look_up_manifest(digest).await?;
        match manifest {
            Some(manifest) => {
                self.note_use(digest, &manifest.used);
                Ok(Some(manifest))
            }
            // Boxed, so that those who find it here do not carry along what it takes.
            None => Ok(Box::pin(self.shared_manifest(digest)).await),
        }
    }

    /// The manifest that other replicas have, which is stored here from now on, if that can be.
    async fn shared_manifest(&self, digest: &Digest) -> Option<Arc<StoredManifest>> {
        let SharedManifest { media_type, bytes, repository } =
            self.shared()?.manifest(digest).await?;
        let references = Parsed::parse(&bytes).map_or_else(
            |_| References::default(),
            |parsed| References {
                children: parsed.children().map(|child| child.digest.clone()).collect(),
                subject: parsed.subject.map(|subject| subject.digest),
            },
        );
        let put = self.put_manifest(&repository, digest, &media_type, bytes.clone(), references);
        match put.await {
            Ok(manifest) => Some(manifest),
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "not storing {digest}");
                Some(stored(digest, media_type, bytes))
            }
        }
    }

    /// As [`Store::manifest`], without being a use of it.
    pub(crate) async fn look_up_manifest(
        &self,
        digest: &Digest,
    ) -> Result<Option<Arc<StoredManifest>>, StoreError> {
        if let Some(manifest) = self.0.manifests.get(digest) {
            return Ok(Some(manifest));
        }
        let seen = self.removals();
        let found = self.find_manifest(digest).await?;
        let find = |store: Self, digest| async move { store.find_manifest(&digest).await };
        let Some(manifest) = self.whole(digest, found, find).await? else {
            return Ok(None);
        };
        self.0.manifests.insert(digest.clone(), Arc::clone(&manifest));
        self.recheck(digest, seen);
        Ok(Some(manifest))
    }

    async fn find_manifest(
        &self,
        digest: &Digest,
    ) -> Result<Found<Arc<StoredManifest>>, StoreError> {
        let Some((len, Some(media_type))) = self.index().blob(digest).await? else {
            return Ok(Found::Nothing);
        };
        let (path, name) = (self.layout().blob(digest), digest.clone());
        match blocking(move || read_whole(&path, len, &name)).await {
            Ok(bytes) => Ok(Found::Whole(stored(digest, media_type, bytes.into()))),
            Err(error) if is_lost(&error) => Ok(Found::Lost(error)),
            Err(error) => Err(StoreError::io("reading a manifest", error)),
        }
    }

    /// At most `limit` stored manifests of `repository` whose subject is `subject`. One that cannot
    /// be read is left out.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn referrers(
        &self,
        repository: &Named,
        subject: &Digest,
        limit: u32,
    ) -> Result<Vec<Arc<StoredManifest>>, StoreError> {
        let mut referrers = Vec::new();
        for digest in self.index().referrers(repository, subject, limit).await? {
            if let Ok(Some(manifest)) = self.manifest(&digest).await {
                referrers.push(manifest);
            }
        }
        Ok(referrers)
    }

    /// Stores a manifest that `repository` serves. Its children may be served under it from now on.
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
        references: References,
    ) -> Result<Arc<StoredManifest>, CommitError> {
        let io = |source| CommitError::Io { digest: digest.clone(), source };
        let (store, name) = (self.clone(), digest.clone());
        let staging = blocking(move || Staging::create(&store, &name)).await.map_err(io)?;
        let staging = staging.write(vec![bytes.clone()]).await.map_err(|error| io(error.source))?;
        let manifest = Manifest { media_type: media_type.to_owned(), references };
        let seen = self.removals();
        staging.commit_manifest(repository, manifest).await?;
        let manifest = stored(digest, media_type.to_owned(), bytes);
        self.0.manifests.insert(digest.clone(), Arc::clone(&manifest));
        self.recheck(digest, seen);
        Ok(manifest)
    }
}

fn stored(digest: &Digest, media_type: String, bytes: Bytes) -> Arc<StoredManifest> {
    let used = LastUse::default();
    Arc::new(StoredManifest { digest: digest.clone(), media_type, bytes, used })
}

/// The bytes of a file that has to be `len` bytes long and to hash to `digest`. Blocks.
fn read_whole(path: &Path, len: u64, digest: &Digest) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_whole(path, len)?.read_to_end(&mut bytes)?;
    let mut hasher = digest.hasher();
    hasher.update(&bytes);
    match hasher.finish() == *digest {
        true => Ok(bytes),
        false => Err(damaged("its bytes have changed")),
    }
}
