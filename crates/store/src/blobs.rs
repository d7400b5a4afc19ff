//! Blobs that are stored.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_core::Digest;
use larder_core::name::Named;
use parking_lot::Mutex;
use tracing::warn;

use crate::file::SharedFile;
use crate::index::{IndexError, ManifestRow};
use crate::staging::Published;
use crate::{Store, StoreError};

/// A stored blob, open for reading. It stays readable while it is held, also when it is evicted.
#[derive(Clone, Debug)]
pub struct Blob {
    /// What it is called.
    pub digest: Digest,
    /// Its length in bytes.
    pub len: u64,
    /// Its bytes.
    pub file: SharedFile,
    used: Arc<LastUse>,
}

impl Store {
    /// The stored blob of that name.
    ///
    /// # Errors
    ///
    /// The disk or the index can't say; upstream may still have it.
    pub async fn blob(&self, digest: &Digest) -> Result<Option<Blob>, StoreError> {
        if let Some(blob) = self.0.blobs.get(digest) {
            self.0.uses.note(digest, &blob.used);
            return Ok(Some(blob));
        }
        let Some((len, _)) = self.index().blob(digest).await? else {
            return Ok(None);
        };
        match self.open_blob(digest, len).await {
            Ok(blob) => {
                self.0.blobs.insert(digest.clone(), blob.clone());
                self.0.uses.note(digest, &blob.used);
                Ok(Some(blob))
            }
            Err(error) if is_lost(&error) => {
                warn!(blob.digest = %digest, %error, "the file of {digest} is lost, forgetting it");
                self.forget(digest, len).await?;
                Ok(None)
            }
            Err(error) => Err(StoreError::io("opening a blob", error)),
        }
    }

    async fn open_blob(&self, digest: &Digest, len: u64) -> io::Result<Blob> {
        let path = self.layout().blob(digest);
        let open = move || {
            let file = File::open(path)?;
            let actual = file.metadata()?.len();
            Ok::<_, io::Error>((file, actual))
        };
        let opening = tokio::task::spawn_blocking(open).await;
        let (file, actual) = opening.expect("opening a file does not panic")?;
        if actual != len {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "its length has changed"));
        }
        Ok(self.readable(digest.clone(), len, Arc::new(file)))
    }

    fn readable(&self, digest: Digest, len: u64, file: Arc<File>) -> Blob {
        Blob { digest, len, file: self.share(file), used: Arc::default() }
    }

    /// Records a published file in the index; on return every lookup finds it.
    pub(crate) async fn record(
        &self,
        published: &Published,
        repository: &Named,
    ) -> Result<Blob, IndexError> {
        self.record_as(published, repository, None).await
    }

    pub(crate) async fn record_as(
        &self,
        published: &Published,
        repository: &Named,
        manifest: Option<ManifestRow<'_>>,
    ) -> Result<Blob, IndexError> {
        let Published { digest, file, len } = published;
        let added = self.index().put_blob(digest, *len, repository, manifest).await?;
        self.add(added);
        let blob = self.readable(digest.clone(), *len, Arc::clone(file));
        self.0.blobs.insert(digest.clone(), blob.clone());
        self.sync_later(Published { digest: digest.clone(), file: Arc::clone(file), len: *len });
        Ok(blob)
    }

    /// Forgets a blob whose file is gone or is not what it was.
    pub(crate) async fn forget(&self, digest: &Digest, len: u64) -> Result<(), StoreError> {
        self.index().remove_blobs(std::slice::from_ref(digest)).await?;
        self.0.blobs.invalidate(digest);
        self.0.manifests.invalidate(digest);
        self.subtract(len);
        Ok(())
    }
}

fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof)
}

/// When something was last noted as used, in seconds since 1970.
#[derive(Debug, Default)]
pub(crate) struct LastUse(AtomicU64);

/// Uses that the index does not know yet.
#[derive(Debug, Default)]
pub(crate) struct Uses(Mutex<HashMap<Digest, SystemTime>>);

/// Uses closer together than this are one, so that a busy blob costs nothing.
const RESOLUTION: Duration = Duration::from_secs(60);

/// How many uses may wait to be written down. Beyond it they are lost: eviction then takes a blob
/// for less used than it is.
const MAX_USES: usize = 100_000;

impl Uses {
    pub(crate) fn note(&self, digest: &Digest, last: &LastUse) {
        let now = SystemTime::now();
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let noted = last.0.load(Ordering::Relaxed);
        if seconds < noted.saturating_add(RESOLUTION.as_secs()) && noted != 0 {
            return;
        }
        last.0.store(seconds, Ordering::Relaxed);
        let mut uses = self.0.lock();
        if uses.len() < MAX_USES {
            uses.insert(digest.clone(), now);
        }
    }

    pub(crate) fn take(&self) -> Vec<(Digest, SystemTime)> {
        std::mem::take(&mut *self.0.lock()).into_iter().collect()
    }
}
