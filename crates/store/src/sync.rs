//! Makes blobs that clients already have survive a loss of power.
//!
//! A blob is renamed and recorded before its last byte is sent; waiting for the disk as well would
//! add its latency to each layer of a pull. So syncing follows at once, in the background: first
//! the file, then its directories, then the mark in the index that says so. Until then a start
//! verifies the blob before it believes in it.
//!
//! The index itself is the queue: however far the disk falls behind, nothing is lost from it, and
//! no file is held open for it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::PathBuf;

use tracing::warn;

use crate::index::Unsynced;
use crate::layout::{Layout, sync_directory};
use crate::work::blocking;
use crate::{Store, StoreError};

/// How many blobs are looked up at once.
const BATCH: u32 = 4096;

/// How many blobs are synced one by one. When more are waiting, the whole file system is synced
/// instead, at once for all of them: small blobs can come a hundred times faster than a disk syncs
/// them one after the other.
const FEW: usize = 64;

/// What came of syncing some blobs.
#[derive(Default)]
struct Outcome {
    synced: Vec<Unsynced>,
    /// The disk could not keep their bytes, and a second try would not tell: the operating system
    /// reports such a failure once.
    lost: Vec<Unsynced>,
}

/// Syncs what the last process left, then what comes, until the store closes; then what is still
/// there.
pub(crate) async fn run(store: Store) {
    store.0.unsynced.notify_one();
    loop {
        let closing = tokio::select! {
            () = store.0.unsynced.notified() => false,
            () = store.0.closing.cancelled() => true,
        };
        if let Err(error) = sync_all(&store).await {
            warn!(error = &error as &dyn std::error::Error, "syncing what was stored");
        }
        if closing {
            return;
        }
    }
}

async fn sync_all(store: &Store) -> Result<(), StoreError> {
    let mut after = 0;
    loop {
        let batch = store.index().unsynced(after, BATCH).await?;
        let Some(last) = batch.last() else {
            return Ok(());
        };
        after = last.content;
        let layout = store.layout().clone();
        let Outcome { synced, lost } = blocking(move || sync(&layout, batch)).await;
        for synced in synced.chunks(FEW) {
            store.index().set_synced(synced).await?;
        }
        for Unsynced { digest, .. } in lost {
            let _name = store.lock(&digest).await;
            store.take_out(&digest).await?;
        }
    }
}

fn sync(layout: &Layout, batch: Vec<Unsynced>) -> Outcome {
    if batch.len() <= FEW {
        return sync_each(layout, batch);
    }
    let synced = File::open(layout.root()).and_then(|root| Ok(rustix::fs::syncfs(root)?));
    match synced {
        Ok(()) => Outcome { synced: batch, lost: Vec::new() },
        Err(error) => {
            warn!(%error, "syncing the file system of {}", layout.root().display());
            Outcome::default()
        }
    }
}

fn sync_each(layout: &Layout, batch: Vec<Unsynced>) -> Outcome {
    let mut outcome = Outcome::default();
    let mut directories = BTreeSet::new();
    for unsynced in batch {
        let path = layout.blob(&unsynced.digest);
        let file = match File::open(&path) {
            Ok(file) => file,
            // Evicted meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => {
                warn!(%error, "opening {} to sync it", path.display());
                continue;
            }
        };
        match file.sync_data() {
            Ok(()) => {
                directories.extend(directories_of(path));
                outcome.synced.push(unsynced);
            }
            Err(error) => {
                let digest = &unsynced.digest;
                warn!(blob.digest = %digest, %error, "the disk has lost {digest}, forgetting it");
                outcome.lost.push(unsynced);
            }
        }
    }
    for directory in directories {
        if let Err(error) = sync_directory(&directory) {
            warn!(%error, "syncing {}", directory.display());
            outcome.synced.clear();
        }
    }
    outcome
}

/// The blob's directory, and the one above it, which may have got it as a new entry.
fn directories_of(blob: PathBuf) -> impl Iterator<Item = PathBuf> {
    blob.ancestors().skip(1).take(2).map(PathBuf::from).collect::<Vec<_>>().into_iter()
}
