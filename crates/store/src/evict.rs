//! Keeps the store within its budget.
//!
//! When more is stored than the budget allows, blobs go in the order of their last use, until a
//! tenth of the budget is free again: that way eviction comes in batches and not once per blob.
//! Whoever is reading a blob goes on reading it; its bytes are freed by the operating system when
//! the last reader is done.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

use larder_core::Digest;
use larder_core::size::human_size;
use tracing::{info, warn};

use crate::index::Candidate;
use crate::{Store, StoreError};

/// How often uses are written down, and old beginnings looked for.
const PERIOD: Duration = Duration::from_secs(30);

/// How many blobs are removed in one transaction.
const BATCH: u32 = 64;

/// The size in bytes of the volume that holds `directory`.
///
/// # Errors
///
/// What the operating system says; the directory is missing, most likely.
pub fn volume_size(directory: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(directory)?;
    Ok(volume.f_blocks.saturating_mul(volume.f_frsize))
}

/// Writes down uses and keeps the budget, until the store closes.
pub(crate) async fn run(store: Store) {
    let mut period = tokio::time::interval(PERIOD);
    period.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let closing = tokio::select! {
            _ = period.tick() => false,
            () = store.0.over_budget.notified() => false,
            () = store.0.closing.cancelled() => true,
        };
        if let Err(error) = keep_up(&store).await {
            warn!(error = &error as &dyn std::error::Error, "keeping the store's budget");
        }
        if closing {
            return;
        }
    }
}

async fn keep_up(store: &Store) -> Result<(), StoreError> {
    let uses = store.0.uses.take();
    if !uses.is_empty() {
        store.index().set_used(&uses).await?;
    }
    store.drop_old_partials().await?;
    let Some(budget) = store.0.budget else {
        return Ok(());
    };
    if store.usage().bytes <= budget {
        return Ok(());
    }
    let low = budget - budget / 10;
    let mut n_blobs = 0;
    let mut n_bytes = 0;
    while store.usage().bytes > low {
        let oldest = store.index().least_recently_used(BATCH).await?;
        let excess = store.usage().bytes - low;
        let victims = cover(excess, oldest);
        if victims.is_empty() {
            break;
        }
        n_blobs += victims.len();
        n_bytes += victims.iter().map(|it| it.size).sum::<u64>();
        remove(store, victims).await?;
    }
    let (n_bytes, budget) = (human_size(n_bytes), human_size(budget));
    info!("evicted {n_blobs} blobs of {n_bytes} to keep the budget of {budget}");
    Ok(())
}

/// The first candidates, as many as cover `excess` bytes.
fn cover(excess: u64, candidates: Vec<Candidate>) -> Vec<Candidate> {
    let mut covered = 0;
    let mut is_needed = |it: &Candidate| {
        let needed = covered < excess;
        covered += it.size;
        needed
    };
    candidates.into_iter().take_while(|it| is_needed(it)).collect()
}

/// Removes blobs: first from the index, so that no lookup finds what is about to go.
async fn remove(store: &Store, victims: Vec<Candidate>) -> Result<(), StoreError> {
    let digests: Vec<Digest> = victims.iter().map(|it| it.digest.clone()).collect();
    store.index().remove_blobs(&digests).await?;
    let mut paths = Vec::new();
    for Candidate { digest, size } in victims {
        store.0.blobs.invalidate(&digest);
        store.0.manifests.invalidate(&digest);
        store.subtract(size);
        store.0.evicted.fetch_add(size, Ordering::Relaxed);
        paths.push(store.layout().blob(&digest));
    }
    let unlink = move || {
        for path in paths {
            if let Err(error) = std::fs::remove_file(&path) {
                warn!(%error, "removing {}", path.display());
            }
        }
    };
    tokio::task::spawn_blocking(unlink).await.expect("removing files does not panic");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_removed_than_covers_the_excess() {
        let covered = |excess, sizes: &[u64]| {
            let candidate = |size: &u64| Candidate { digest: Digest::sha256_of(b""), size: *size };
            cover(excess, sizes.iter().map(candidate).collect()).len()
        };
        assert_eq!(covered(10, &[4, 6, 1]), 2);
        assert_eq!(covered(11, &[4, 6, 1]), 3);
        assert_eq!(covered(1, &[4, 6, 1]), 1);
        assert_eq!(covered(0, &[4]), 0);
        assert_eq!(covered(100, &[4]), 1);
    }
}
