//! What is stored, for people who look. None of this is on a client's way.

use larder_core::Digest;
use larder_core::name::Named;

use crate::index::{BlobRecord, Listed, OfRepository, Place};
use crate::{Store, StoreError};

impl Store {
    /// At most `limit` stored manifests after `place`, each once for each repository that serves
    /// it; from the first one after [`Place::default`]. The order is that in which repositories
    /// became known.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn manifests(&self, place: Place, limit: u32) -> Result<Vec<Listed>, StoreError> {
        Ok(self.index().manifests(place, limit).await?)
    }

    /// At most `limit` tags that named the manifest at `place` when upstream was last asked, in
    /// byte order.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn tags_of(&self, place: Place, limit: u32) -> Result<Vec<String>, StoreError> {
        Ok(self.index().tags_of(place, limit).await?)
    }

    /// What the index has of a blob; `None` if it is not stored. The file is not looked at, and
    /// this is no use of the blob.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn blob_record(&self, digest: &Digest) -> Result<Option<BlobRecord>, StoreError> {
        Ok(self.index().blob_record(digest).await?)
    }

    /// At most `limit` repositories that may serve `digest`, stored or not.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn repositories_of(
        &self,
        digest: &Digest,
        limit: u32,
    ) -> Result<Vec<Named>, StoreError> {
        Ok(self.index().repositories_of(digest, limit).await?)
    }

    /// The bytes of a stored manifest, as [`Store::manifest`], without being a use of it.
    ///
    /// # Errors
    ///
    /// The disk or the index can't say.
    pub async fn peek_manifest(&self, digest: &Digest) -> Result<Option<bytes::Bytes>, StoreError> {
        Ok(self.look_up_manifest(digest).await?.map(|manifest| manifest.bytes.clone()))
    }

    /// What was fetched from each host, in bytes of the disk, in the order of their names.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn usage_by_host(&self) -> Result<Vec<(String, u64)>, StoreError> {
        Ok(self.index().room_by_host().await?)
    }

    /// What repositories have stored, at most `limit`, those first that have most. Looks at every
    /// membership: a second for a million of them.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn usage_by_repository(&self, limit: u32) -> Result<Vec<OfRepository>, StoreError> {
        Ok(self.index().room_by_repository(limit).await?)
    }
}
