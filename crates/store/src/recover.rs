//! What is put right when a store is opened.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use larder_core::Digest;
use rustix::fs::FlockOperation;
use tracing::{info, warn};

use crate::blobs::damaged;
use crate::index::{Index, Unsynced};
use crate::layout::{self, ALGORITHMS, Layout};
use crate::work::blocking;
use crate::{OpenError, Store, StoreError};

/// How many blobs are looked up at once.
const BATCH: u32 = 4096;

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

/// Whether there are blobs and no index that knows them: somebody has removed it.
pub(crate) async fn is_forgotten(layout: &Layout) -> bool {
    let layout = layout.clone();
    let looked = blocking(move || {
        let is_empty = |directory: PathBuf| {
            std::fs::read_dir(directory).map_or(true, |mut entries| entries.next().is_none())
        };
        let mut directories = ALGORITHMS.iter().map(|it| layout.blobs().join(it));
        let is_forgotten = !layout.index().exists() && !directories.all(is_empty);
        is_forgotten.then(|| layout.root().to_owned())
    });
    let Some(root) = looked.await else { return false };
    let root = root.display();
    warn!(
        "the index is gone, so nothing that is stored is found; stop larder and run `larder \
         rebuild-index --data {root}` to have it back"
    );
    true
}

/// Verifies the blobs that may not have reached the disk before a loss of power, and forgets those
/// that did not. The others are still to be synced.
pub(crate) async fn verify_unsynced(layout: &Layout, index: &Index) -> Result<(), StoreError> {
    let (mut n_verified, mut after) = (0, 0);
    loop {
        let batch = index.unsynced(after, BATCH).await?;
        let Some(last) = batch.last() else {
            break;
        };
        after = last.content;
        n_verified += batch.len();
        let layout = layout.clone();
        for digest in blocking(move || lost_of(&layout, batch)).await {
            index.remove_blob(&digest).await?;
        }
    }
    if n_verified > 0 {
        info!("verified {n_verified} blobs that were stored just before the last stop");
    }
    Ok(())
}

/// Those that are lost; what is left of their files is removed.
fn lost_of(layout: &Layout, batch: Vec<Unsynced>) -> Vec<Digest> {
    let mut lost = Vec::new();
    for Unsynced { digest, .. } in batch {
        let path = layout.blob(&digest);
        if let Err(error) = verify(&path, &digest) {
            warn!(blob.digest = %digest, %error, "the blob {digest} did not survive the last stop");
            // If it can't be removed, it will be swept as a file without an owner.
            let _ = std::fs::remove_file(&path);
            lost.push(digest);
        }
    }
    lost
}

fn verify(path: &Path, digest: &Digest) -> io::Result<()> {
    let mut file = File::open(path)?;
    let len = file.metadata()?.len();
    let mut hasher = digest.hasher();
    // Most blobs are small, and clearing a large buffer for each would take longer than reading it.
    let mut buffer = vec![0; usize::try_from(len).unwrap_or(usize::MAX).clamp(1, 1 << 20)];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
    }
    match hasher.finish() == *digest {
        true => Ok(()),
        false => Err(damaged("its bytes are not all there")),
    }
}

/// Removes files that the index does not know: blobs that were renamed but not recorded before a
/// crash, and beginnings without a row.
pub(crate) async fn sweep(store: Store) {
    match sweep_blobs(&store).await {
        Ok(0) => {}
        Ok(n) => info!("removed {n} files that the index does not know"),
        Err(error) => {
            warn!(error = &error as &dyn std::error::Error, "looking for files without an owner");
        }
    }
    if let Err(error) = sweep_beginnings(&store).await {
        warn!(error = &error as &dyn std::error::Error, "looking for beginnings without an owner");
    }
}

async fn sweep_blobs(store: &Store) -> Result<u64, StoreError> {
    let mut n_removed = 0;
    for algorithm in ALGORITHMS {
        for directory in list(store.layout().blobs().join(algorithm)).await? {
            if store.0.closing.is_cancelled() {
                return Ok(n_removed);
            }
            let Some(beginning) = directory.file_name().and_then(OsStr::to_str) else {
                continue;
            };
            let known = store.index().stored(&format!("{algorithm}:{beginning}")).await?;
            let names = list(directory).await?.into_iter().filter_map(|path| {
                format!("{algorithm}:{}", path.file_name()?.to_str()?).parse::<Digest>().ok()
            });
            for digest in names.filter(|digest| !known.contains(digest)) {
                // With the lock held nobody is between giving a file its place and its row.
                let _name = store.lock(&digest).await;
                if store.index().blob(&digest).await?.is_none() {
                    remove(store.layout().blob(&digest)).await?;
                    n_removed += 1;
                }
            }
        }
    }
    Ok(n_removed)
}

async fn sweep_beginnings(store: &Store) -> Result<(), StoreError> {
    for path in list(store.layout().partial()).await? {
        let Some(digest) = name_of(&path) else {
            continue;
        };
        let _name = store.lock(&digest).await;
        if !store.index().is_parked(&digest).await? {
            remove(path).await?;
        }
    }
    Ok(())
}

/// The digest after which a kept beginning is called.
fn name_of(path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    name.replacen('-', ":", 1).parse().ok()
}

async fn list(directory: PathBuf) -> Result<Vec<PathBuf>, StoreError> {
    let read = move || match std::fs::read_dir(&directory) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    };
    blocking(read).await.map_err(|source| StoreError::io("listing a directory", source))
}

/// Removes a file, if it is still there.
async fn remove(path: PathBuf) -> Result<(), StoreError> {
    match blocking(move || std::fs::remove_file(path)).await {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(StoreError::io("removing a file without an owner", error))
        }
        _ => Ok(()),
    }
}
