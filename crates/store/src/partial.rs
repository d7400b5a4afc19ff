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

use crate::index::Parked;
use crate::layout::{RemoveOnDrop, sync_directory};
use crate::staging::Staging;
use crate::{Store, StoreError};

/// How long a beginning is kept. A node that failed to pull an image tries again within minutes; a
/// day covers whoever comes back the next morning.
pub(crate) const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

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
        if let Some(parked) = self.index().take_parked(digest).await? {
            match self.unpark(digest, parked).await {
                Ok(staging) => return Ok(staging),
                Err(error) => {
                    warn!(blob.digest = %digest, %error, "discarding the kept beginning of {digest}");
                }
            }
        }
        let (store, digest) = (self.clone(), digest.clone());
        let create = move || Staging::create(&store, &digest);
        let created = tokio::task::spawn_blocking(create).await.expect("creating does not panic");
        created.map_err(|source| StoreError::io("creating a staging file", source))
    }

    async fn unpark(&self, digest: &Digest, parked: Parked) -> io::Result<Staging> {
        self.subtract(parked.size);
        let (store, digest) = (self.clone(), digest.clone());
        let unpark = move || {
            let path = RemoveOnDrop::new(store.layout().parked(&digest));
            let staged = store.layout().new_staging();
            let file = OpenOptions::new().read(true).write(true).open(path.path())?;
            let hasher = hash_beginning(&file, parked.size, digest.hasher())?;
            if hasher.clone().finish() != parked.prefix {
                return Err(io::Error::other("its bytes have changed"));
            }
            std::fs::rename(path.path(), &staged)?;
            path.keep();
            Ok(Staging {
                store,
                expected: digest,
                path: RemoveOnDrop::new(staged),
                file: Arc::new(file),
                hasher,
                len: parked.size,
            })
        };
        tokio::task::spawn_blocking(unpark).await.expect("hashing a file does not panic")
    }

    /// Removes kept beginnings that are too old, and files that the index does not know.
    pub(crate) async fn drop_old_partials(&self) -> Result<(), StoreError> {
        let limit = SystemTime::now().checked_sub(MAX_AGE).unwrap_or(SystemTime::UNIX_EPOCH);
        for (digest, size) in self.index().forget_parked_before(limit).await? {
            self.subtract(size);
            let path = self.layout().parked(&digest);
            tokio::task::spawn_blocking(move || std::fs::remove_file(path).ok())
                .await
                .expect("removing a file does not panic");
        }
        Ok(())
    }
}

impl Staging {
    /// Keeps what has been written for the next fill of this blob, for a day.
    ///
    /// # Errors
    ///
    /// The disk or the index refuses; the beginning is then gone.
    pub async fn park(self) -> Result<(), StoreError> {
        if self.len == 0 {
            return Ok(());
        }
        let (store, digest, size) = (self.store.clone(), self.expected.clone(), self.len);
        let prefix = self.hasher.clone().finish();
        let park = move || {
            let to = self.store.layout().parked(&self.expected);
            self.file.set_len(self.len)?;
            self.file.sync_data()?;
            std::fs::rename(self.path.path(), &to)?;
            self.path.keep();
            sync_directory(&self.store.layout().partial())
        };
        tokio::task::spawn_blocking(park)
            .await
            .expect("parking does not panic")
            .map_err(|source| StoreError::io("keeping the beginning of a blob", source))?;
        let parked = Parked { size, prefix };
        let replaced = store.index().put_parked(&digest, &parked, SystemTime::now()).await?;
        store.subtract(replaced);
        store.add(size);
        Ok(())
    }
}

fn hash_beginning(file: &File, size: u64, mut hasher: Hasher) -> io::Result<Hasher> {
    let mut beginning = io::Read::take(file, size);
    let mut buffer = vec![0; 1 << 20];
    let mut len = 0;
    loop {
        let n = beginning.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        len += n as u64;
    }
    match len == size {
        true => Ok(hasher),
        false => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it has become shorter")),
    }
}
