//! Beginnings of blobs that nobody waited for, kept so that the next fill need not start over.
//!
//! The index has the digest of each beginning. It is checked before a fill goes on from there, so
//! that what a disk has lost or changed in between never becomes part of a body.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder_core::Digest;
use larder_core::digest::Hasher;
use tracing::warn;

use crate::blobs::damaged;
use crate::index::Parked;
use crate::layout::{RemoveOnDrop, sync_directory};
use crate::staging::Staging;
use crate::work::{Slow, blocking, finish};
use crate::{Store, StoreError};

/// How long a beginning is kept. A node that failed to pull an image tries again within minutes; a
/// day covers whoever comes back the next morning.
const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// How many old beginnings are looked for at once.
const BATCH: u32 = 64;

impl Store {
    /// Begins to stage `digest`, going on from its kept beginning if there is one.
    ///
    /// A beginning is hashed again first, at about a second per gigabyte; [`Staging::len`] says how
    /// much of it was good.
    ///
    /// # Errors
    ///
    /// The disk or the index refuses: the blob can't be stored now, but can still be passed on.
    pub async fn stage(&self, digest: &Digest) -> Result<Staging, StoreError> {
        if let Some((parked, path)) = self.take_beginning(digest).await? {
            match self.unpark(digest, parked, path).await {
                Ok(staging) => return Ok(staging),
                Err(error) => {
                    warn!(blob.digest = %digest, %error, "discarding the kept beginning of {digest}");
                }
            }
        }
        let (store, digest) = (self.clone(), digest.clone());
        let created = blocking(move || Staging::create(&store, &digest)).await;
        created.map_err(|source| StoreError::io("creating a staging file", source))
    }

    /// Takes a kept beginning out of the index and its file to `staging/`, where it goes when the
    /// path is dropped.
    async fn take_beginning(
        &self,
        digest: &Digest,
    ) -> Result<Option<(Parked, Slow<RemoveOnDrop>)>, StoreError> {
        let (store, digest) = (self.clone(), digest.clone());
        let take = async move {
            let _name = store.lock(&digest).await;
            let Some(parked) = store.index().take_parked(&digest).await? else {
                return Ok(None);
            };
            store.subtract(parked.room);
            let (from, to) = (store.layout().parked(&digest), store.layout().new_staging());
            let path = store.slow(RemoveOnDrop::new(to.clone()));
            if let Err(error) = blocking(move || std::fs::rename(from, to)).await {
                warn!(blob.digest = %digest, %error, "taking the kept beginning of {digest}");
            }
            Ok(Some((parked, path)))
        };
        finish(self.tasks(), take).await
    }

    async fn unpark(
        &self,
        digest: &Digest,
        parked: Parked,
        path: Slow<RemoveOnDrop>,
    ) -> io::Result<Staging> {
        let (store, expected) = (self.clone(), digest.clone());
        blocking(move || {
            let file = OpenOptions::new().read(true).write(true).open(path.path())?;
            let hasher = hash_beginning(&file, parked.size, expected.hasher())?;
            if hasher.clone().finish() != parked.prefix {
                return Err(damaged("its bytes have changed"));
            }
            let file = Arc::new(store.slow(file));
            Ok(Staging { store, expected, path, file, hasher, len: parked.size })
        })
        .await
    }

    /// Removes the beginnings that at `now` have been kept for longer than [`MAX_AGE`].
    pub(crate) async fn drop_old_beginnings(&self, now: SystemTime) -> Result<(), StoreError> {
        let limit = now.checked_sub(MAX_AGE).unwrap_or(SystemTime::UNIX_EPOCH);
        loop {
            let old = self.index().parked_before(limit, BATCH).await?;
            if old.is_empty() {
                return Ok(());
            }
            for digest in old {
                self.drop_beginning(&digest).await?;
            }
        }
    }

    /// Removes a kept beginning; returns the bytes that were counted.
    pub(crate) async fn drop_beginning(&self, digest: &Digest) -> Result<u64, StoreError> {
        let Some((parked, path)) = self.take_beginning(digest).await? else {
            return Ok(0);
        };
        blocking(move || drop(path.into_inner())).await;
        Ok(parked.room)
    }
}

impl Staging {
    /// Keeps what has been written for the next fill of this blob, for a day or until the budget
    /// needs its place.
    ///
    /// # Errors
    ///
    /// The disk or the index refuses; the beginning is then gone.
    pub async fn park(self) -> Result<(), StoreError> {
        if self.len == 0 {
            return Ok(());
        }
        let store = self.store.clone();
        let park = async move {
            let digest = self.expected.clone();
            let parked = Parked {
                size: self.len,
                room: self.store.room(self.len),
                prefix: self.hasher.clone().finish(),
            };
            let io = |source| StoreError::io("keeping the beginning of a blob", source);
            let staging = blocking(move || self.sync_beginning()).await.map_err(io)?;
            let store = staging.store.clone();
            let _name = store.lock(&digest).await;
            let path = blocking(move || staging.move_beginning()).await.map_err(io)?;
            let replaced = store.index().put_parked(&digest, &parked, SystemTime::now()).await?;
            path.into_inner().keep();
            store.subtract(replaced);
            store.add(parked.room);
            Ok(())
        };
        finish(store.tasks(), park).await
    }

    fn sync_beginning(self) -> io::Result<Self> {
        self.file.set_len(self.len)?;
        self.file.sync_data()?;
        Ok(self)
    }

    /// Returns the place that the file was moved to.
    fn move_beginning(self) -> io::Result<Slow<RemoveOnDrop>> {
        let to = self.store.layout().parked(&self.expected);
        std::fs::rename(self.path.path(), &to)?;
        self.path.into_inner().keep();
        sync_directory(&self.store.layout().partial())?;
        Ok(self.store.slow(RemoveOnDrop::new(to)))
    }
}

fn hash_beginning(mut file: &File, size: u64, mut hasher: Hasher) -> io::Result<Hasher> {
    if file.metadata()?.len() != size {
        return Err(damaged("its length has changed"));
    }
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hasher);
        }
        hasher.update(&buffer[..n]);
    }
}
