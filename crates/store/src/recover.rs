//! What is put right when a store is opened.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use larder_core::Digest;
use rustix::fs::FlockOperation;
use tracing::{info, warn};

use crate::index::{Candidate, Index};
use crate::layout::{self, Layout, sync_directory};
use crate::{OpenError, Store, StoreError};

/// Makes the directories, takes the lock, and removes what a crash left in staging. Blocks.
pub(crate) fn open_directory(root: &Path) -> Result<(Layout, File), OpenError> {
    let io = |source| OpenError::Io { directory: root.to_owned(), source };
    std::fs::create_dir_all(root).map_err(io)?;
    let layout = Layout::create(root).map_err(io)?;
    let options = OpenOptions::new().create(true).truncate(false).write(true).open(layout.lock());
    let lock = options.map_err(io)?;
    match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Err(OpenError::InUse(root.to_owned())),
        Err(error) => return Err(io(error.into())),
    }
    layout::empty(&layout.staging()).map_err(io)?;
    Ok((layout, lock))
}

/// Verifies the blobs that may not have reached the disk before a loss of power, and forgets those
/// that did not.
pub(crate) async fn verify_unsynced(layout: &Layout, index: &Index) -> Result<(), StoreError> {
    let candidates = index.unsynced().await?;
    if candidates.is_empty() {
        return Ok(());
    }
    info!("verifying {} blobs that were stored just before the last stop", candidates.len());
    let (mut whole, mut lost) = (Vec::new(), Vec::new());
    for candidate in candidates {
        let path = layout.blob(&candidate.digest);
        let (digest, verified) = tokio::task::spawn_blocking(move || {
            let verified = verify_and_sync(&path, &candidate);
            (candidate.digest, verified)
        })
        .await
        .expect("verifying a file does not panic");
        match verified {
            Ok(()) => whole.push(digest),
            Err(error) => {
                warn!(blob.digest = %digest, %error, "the blob {digest} did not survive the last stop");
                lost.push(digest);
            }
        }
    }
    index.set_synced(&whole).await?;
    index.remove_blobs(&lost).await?;
    Ok(())
}

fn verify_and_sync(path: &Path, candidate: &Candidate) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut hasher = candidate.digest.hasher();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    if hasher.finish() != candidate.digest {
        return Err(io::Error::other("its bytes are not all there"));
    }
    file.sync_data()?;
    path.parent().map_or(Ok(()), sync_directory)
}

/// Removes files that the index does not know: blobs that were renamed but not recorded before a
/// crash, and beginnings without a row. Only files from before `opened_at` count, as newer ones may
/// be about to be recorded.
pub(crate) async fn sweep(store: Store, opened_at: SystemTime) {
    match sweep_blobs(&store, opened_at).await {
        Ok(0) => {}
        Ok(n) => info!("removed {n} files that the index does not know"),
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "looking for files without an owner");
        }
    }
    if let Err(error) = sweep_partials(&store).await {
        warn!(error = &error as &dyn std::error::Error, "looking for beginnings without an owner");
    }
}

async fn sweep_blobs(store: &Store, opened_at: SystemTime) -> Result<u64, StoreError> {
    let mut n_removed = 0;
    for algorithm in ["sha256", "sha512"] {
        let directory = store.layout().blobs().join(algorithm);
        for directory in list(directory).await? {
            for path in list(directory).await? {
                if store.0.closing.is_cancelled() {
                    return Ok(n_removed);
                }
                let Some(digest) = name_of(algorithm, &path) else {
                    continue;
                };
                if store.index().blob(&digest).await?.is_none() && is_older(&path, opened_at).await
                {
                    remove(path).await?;
                    n_removed += 1;
                }
            }
        }
    }
    Ok(n_removed)
}

async fn sweep_partials(store: &Store) -> Result<(), StoreError> {
    let files = list(store.layout().partial()).await?;
    if files.is_empty() {
        return Ok(());
    }
    // A beginning is renamed to its place before it is recorded, so one may appear meanwhile; it
    // was not among the files listed before.
    let known: HashSet<PathBuf> =
        store.index().parked().await?.iter().map(|digest| store.layout().parked(digest)).collect();
    for path in files.into_iter().filter(|path| !known.contains(path)) {
        remove(path).await?;
    }
    Ok(())
}

fn name_of(algorithm: &str, path: &Path) -> Option<Digest> {
    format!("{algorithm}:{}", path.file_name()?.to_str()?).parse().ok()
}

async fn is_older(path: &Path, than: SystemTime) -> bool {
    let modified = tokio::fs::metadata(path).await.and_then(|metadata| metadata.modified());
    modified.is_ok_and(|modified| modified < than)
}

async fn list(directory: PathBuf) -> Result<Vec<PathBuf>, StoreError> {
    let read = move || match std::fs::read_dir(&directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    let listing = tokio::task::spawn_blocking(read).await.expect("listing does not panic");
    listing.map_err(|source| StoreError::io("listing a directory", source))
}

async fn remove(path: PathBuf) -> Result<(), StoreError> {
    let removed = tokio::fs::remove_file(path).await;
    removed.map_err(|source| StoreError::io("removing a file without an owner", source))
}
