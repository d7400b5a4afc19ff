//! Makes blobs that clients already have survive a loss of power.
//!
//! A blob is renamed and recorded before its last byte is sent; waiting for the disk as well would
//! add its latency to each layer of a pull. So syncing follows at once, in the background: first
//! the file, then its directories, then the mark in the index that says so. Until then a start
//! verifies the blob before it believes in it.

use std::collections::BTreeSet;
use std::path::PathBuf;

use larder_core::Digest;
use tokio::sync::mpsc;
use tracing::warn;

use crate::Store;
use crate::layout::sync_directory;
use crate::staging::Published;

/// How many blobs are synced together; their directories are then synced once.
const BATCH: usize = 64;

impl Store {
    /// Has a recorded blob synced soon. Without a place in the queue it stays marked as unsynced.
    pub(crate) fn sync_later(&self, published: Published) {
        let _ = self.0.to_sync.try_send(published);
    }
}

/// Syncs what comes, until the store closes; then what is still there.
pub(crate) async fn run(store: Store, mut unsynced: mpsc::Receiver<Published>) {
    let mut batch = Vec::with_capacity(BATCH);
    loop {
        tokio::select! {
            biased;
            n = unsynced.recv_many(&mut batch, BATCH) => if n == 0 { break },
            () = store.0.closing.cancelled() => unsynced.close(),
        }
        if !batch.is_empty() {
            sync(&store, std::mem::take(&mut batch)).await;
        }
    }
}

async fn sync(store: &Store, batch: Vec<Published>) {
    let layout = store.layout().clone();
    let blocking = move || {
        let mut synced = Vec::new();
        let mut directories = BTreeSet::new();
        for Published { digest, file, .. } in batch {
            match file.sync_data() {
                Ok(()) => {
                    directories.extend(directories_of(layout.blob(&digest)));
                    synced.push(digest);
                }
                Err(error) => warn!(blob.digest = %digest, %error, "syncing {digest}"),
            }
        }
        for directory in directories {
            if let Err(error) = sync_directory(&directory) {
                warn!(%error, "syncing {}", directory.display());
                return Vec::new();
            }
        }
        synced
    };
    let synced: Vec<Digest> =
        tokio::task::spawn_blocking(blocking).await.expect("syncing does not panic");
    if let Err(error) = store.index().set_synced(&synced).await {
        warn!(%error, "recording that {} blobs are synced", synced.len());
    }
}

/// The blob's directory, and the one above it, which may have been made for it.
fn directories_of(blob: PathBuf) -> impl Iterator<Item = PathBuf> {
    let mut above = blob.ancestors().skip(1).map(PathBuf::from);
    [above.next(), above.next()].into_iter().flatten().collect::<Vec<_>>().into_iter()
}
