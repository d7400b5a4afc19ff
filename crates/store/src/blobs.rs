//! Blobs that are stored.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_core::Digest;
use larder_core::name::Named;
use parking_lot::Mutex;
use tracing::warn;

use crate::file::SharedFile;
use crate::index::{IndexError, Manifest, Stored};
use crate::layout::RemoveOnDrop;
use crate::staging::Placed;
use crate::work::{Slow, blocking, finish};
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
            // An open file may have been cut short meanwhile; asking costs no disk.
            if blob.file.len().is_ok_and(|len| len == blob.len) {
                self.note_use(digest, &blob.used);
                return Ok(Some(blob));
            }
            self.0.blobs.invalidate(digest);
        }
        let seen = self.removals();
        let found = self.find_blob(digest).await?;
        let find = |store: Self, digest| async move { store.find_blob(&digest).await };
        let Some(blob) = self.whole(digest, found, find).await? else {
            return Ok(None);
        };
        self.0.blobs.insert(digest.clone(), blob.clone());
        self.recheck(digest, seen);
        self.note_use(digest, &blob.used);
        Ok(Some(blob))
    }

    pub(crate) async fn find_blob(&self, digest: &Digest) -> Result<Found<Blob>, StoreError> {
        let Some((len, _)) = self.index().blob(digest).await? else {
            return Ok(Found::Nothing);
        };
        let path = self.layout().blob(digest);
        match blocking(move || open_whole(&path, len)).await {
            Ok(file) => {
                let file = Arc::new(self.slow(file));
                Ok(Found::Whole(self.readable(digest.clone(), len, file)))
            }
            Err(error) if is_lost(&error) => Ok(Found::Lost(error)),
            Err(error) => Err(StoreError::io("opening a blob", error)),
        }
    }

    /// What was found, if it is whole. What is lost is looked for once more while nobody else
    /// changes it (it may just have been evicted, or stored again), and then forgotten.
    pub(crate) async fn whole<T, F>(
        &self,
        digest: &Digest,
        found: Found<T>,
        find: impl FnOnce(Self, Digest) -> F + Send + 'static,
    ) -> Result<Option<T>, StoreError>
    where
        T: Send + 'static,
        F: Future<Output = Result<Found<T>, StoreError>> + Send,
    {
        match found {
            Found::Whole(it) => return Ok(Some(it)),
            Found::Nothing => return Ok(None),
            Found::Lost(_) => {}
        }
        let (store, digest) = (self.clone(), digest.clone());
        let look_again = async move {
            let _name = store.lock(&digest).await;
            match find(store.clone(), digest.clone()).await? {
                Found::Whole(it) => Ok(Some(it)),
                Found::Nothing => Ok(None),
                Found::Lost(error) => {
                    warn!(blob.digest = %digest, %error, "the file of {digest} is lost, forgetting it");
                    store.take_out(&digest).await?;
                    Ok(None)
                }
            }
        };
        finish(self.tasks(), look_again).await
    }

    fn readable(&self, digest: Digest, len: u64, file: Arc<Slow<File>>) -> Blob {
        self.0.reading.note(&digest, &file);
        Blob { digest, len, file: self.share(file), used: Arc::default() }
    }

    /// Records a file that is at its place; on return every lookup finds it. The caller holds the
    /// name's lock.
    pub(crate) async fn record(
        &self,
        placed: &Placed,
        repository: &Named,
        manifest: Option<&Manifest>,
    ) -> Result<Blob, IndexError> {
        let Placed { digest, file, len, .. } = placed;
        let now = SystemTime::now();
        let stored = Stored {
            len: *len,
            room: self.room(*len),
            now,
            order: *self.0.order.lock(),
            fits: self.is_small(self.room(*len)),
        };
        self.add(self.index().put_blob(digest, stored, repository, manifest).await?);
        let blob = self.readable(digest.clone(), *len, Arc::clone(file));
        // Manifests have a cache of their own, and need no open file.
        match manifest {
            None => self.0.blobs.insert(digest.clone(), blob.clone()),
            Some(_) => self.0.blobs.invalidate(digest),
        }
        self.0.unsynced.notify_one();
        if let Some(shared) = self.shared() {
            shared.is_behind();
        }
        Ok(blob)
    }

    /// Takes a blob out of the index, so that no lookup finds it, and its file out of its place.
    /// The caller holds the name's lock.
    ///
    /// Returns the file, which goes when it is dropped, and the bytes that were counted; `None` if
    /// there was no such blob.
    pub(crate) async fn take_out(
        &self,
        digest: &Digest,
    ) -> Result<Option<(Slow<RemoveOnDrop>, u64)>, StoreError> {
        let Some(size) = self.index().remove_blob(digest).await? else {
            return Ok(None);
        };
        self.subtract(size);
        self.0.removals.fetch_add(1, Ordering::SeqCst);
        self.forget_cached(digest);
        // Freeing the bytes of a large file takes long; renaming it does not.
        let (path, aside) = (self.layout().blob(digest), self.layout().new_staging());
        let file = self.slow(RemoveOnDrop::new(aside.clone()));
        let renamed = blocking(move || std::fs::rename(path, aside)).await;
        if let Err(error) = renamed
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(blob.digest = %digest, %error, "removing the file of {digest}");
        }
        Ok(Some((file, size)))
    }

    /// How often something has been taken out, see [`Store::recheck`].
    pub(crate) fn removals(&self) -> u64 {
        self.0.removals.load(Ordering::SeqCst)
    }

    /// To be called when something that was found has been put into a cache. If anything has been
    /// taken out since [`Store::removals`] was `seen`, it may be that, and must not be found there.
    pub(crate) fn recheck(&self, digest: &Digest, seen: u64) {
        if self.removals() != seen {
            self.forget_cached(digest);
        }
    }

    pub(crate) fn forget_cached(&self, digest: &Digest) {
        self.0.blobs.invalidate(digest);
        self.0.manifests.invalidate(digest);
    }

    pub(crate) fn note_use(&self, digest: &Digest, last: &LastUse) {
        self.0.uses.note(digest, last, SystemTime::now());
    }
}

/// What a lookup comes to.
pub(crate) enum Found<T> {
    /// It is stored.
    Whole(T),
    /// The index does not know it.
    Nothing,
    /// The index knows it, but its file is gone or is not what it was.
    Lost(io::Error),
}

/// Opens a file that has to be `len` bytes long. Blocks.
pub(crate) fn open_whole(path: &Path, len: u64) -> io::Result<File> {
    let file = File::open(path)?;
    match file.metadata()?.len() == len {
        true => Ok(file),
        false => Err(damaged("its length has changed")),
    }
}

pub(crate) fn damaged(how: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, how)
}

/// Whether an error says that the file is gone or damaged, and not that it cannot be read now.
pub(crate) fn is_lost(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData)
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
    pub(crate) fn note(&self, digest: &Digest, last: &LastUse, now: SystemTime) {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let noted = last.0.load(Ordering::Relaxed);
        // The clock may have been set back: the difference counts, not the direction.
        if noted != 0 && seconds.abs_diff(noted) < RESOLUTION.as_secs() {
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

#[cfg(test)]
mod tests {
    use larder_core::name::Named;

    use super::*;
    use crate::Settings;

    #[tokio::test]
    async fn a_blob_that_is_evicted_while_it_is_looked_up_is_not_remembered() {
        let (_directory, store, found) = store_with_a_blob().await;
        let digest = found.digest.clone();
        let seen = store.removals();
        drop(store.take_out(&digest).await.unwrap());
        store.0.blobs.insert(digest.clone(), found);
        store.recheck(&digest, seen);
        assert!(store.blob(&digest).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_blob_that_seemed_lost_while_it_was_replaced_is_found() {
        let (_directory, store, blob) = store_with_a_blob().await;
        let seemed = Found::Lost(damaged("it was being replaced"));
        let find = |store: Store, digest| async move { store.find_blob(&digest).await };
        assert!(store.whole(&blob.digest, seemed, find).await.unwrap().is_some());
        assert!(store.blob(&blob.digest).await.unwrap().is_some());
    }

    async fn store_with_a_blob() -> (tempfile::TempDir, Store, Blob) {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::new(directory.path().to_owned());
        let store = Store::open(settings).await.unwrap();
        let named = Named { host: "a.io".parse().unwrap(), repository: "b".parse().unwrap() };
        let staging = store.stage(&Digest::sha256_of(b"")).await.unwrap();
        let blob = staging.commit(None, &named).await.unwrap();
        (directory, store, blob)
    }

    #[test]
    fn uses_within_a_minute_are_one() {
        assert_eq!(noted(&[1000, 1059]), [1000]);
        assert_eq!(noted(&[1000, 1060]), [1060]);
    }

    #[test]
    fn a_use_is_noted_after_the_clock_was_set_back() {
        assert_eq!(noted(&[5000, 1000]), [1000]);
    }

    /// What is noted last of uses at these seconds.
    fn noted(seconds: &[u64]) -> Vec<u64> {
        let (uses, last) = (Uses::default(), LastUse::default());
        let digest = Digest::sha256_of(b"");
        for seconds in seconds {
            uses.note(&digest, &last, UNIX_EPOCH + Duration::from_secs(*seconds));
        }
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap().as_secs();
        uses.take().into_iter().map(|(_, time)| seconds(time)).collect()
    }
}
