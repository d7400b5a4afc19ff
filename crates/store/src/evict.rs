//! Keeps the store within its budget.
//!
//! When more is stored than the budget allows, blobs and kept beginnings go in the order of their
//! last use, until a tenth of the budget is free again: that way eviction comes in batches and not
//! once per blob.
//! Whoever is reading a blob goes on reading it; its bytes are freed by the operating system when
//! the last reader is done.

use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use larder_core::size::human_size;
use tracing::{info, warn};

use crate::index::Candidate;
use crate::work::blocking;
use crate::{Store, StoreError};

/// How often uses are written down, and old beginnings looked for.
const PERIOD: Duration = Duration::from_secs(30);

/// How many candidates are asked for at once.
const BATCH: u32 = 64;

/// How many uses are written down in one transaction; a commit waits for one at most, some 20 ms.
const USES_AT_ONCE: usize = 500;

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
        // Each of these matters also when another fails.
        report("writing down what was used", write_uses(&store).await);
        let dropped = store.drop_old_beginnings(SystemTime::now()).await;
        report("removing old beginnings", dropped);
        report("keeping the store's budget", keep_budget(&store).await);
        // Without this, files that nobody reads any more stay open until the next lookup.
        store.0.blobs.run_pending_tasks();
        if closing {
            return;
        }
    }
}

fn report(what: &'static str, done: Result<(), StoreError>) {
    if let Err(error) = done {
        warn!(error = &error as &dyn std::error::Error, "{what}");
    }
}

async fn write_uses(store: &Store) -> Result<(), StoreError> {
    for uses in store.0.uses.take().chunks(USES_AT_ONCE) {
        store.index().set_used(uses).await?;
    }
    Ok(())
}

async fn keep_budget(store: &Store) -> Result<(), StoreError> {
    let Some(budget) = store.0.budget.filter(|budget| store.usage().bytes > *budget) else {
        return Ok(());
    };
    let (mut n_removed, mut n_bytes) = (0_u64, 0);
    while let excess @ 1.. = excess(store.usage().bytes, budget) {
        let victims = cover(excess, store.index().least_recently_used(BATCH).await?);
        if victims.is_empty() {
            break;
        }
        for victim in victims {
            let removed = remove(store, &victim).await?;
            store.0.evicted.fetch_add(removed, Ordering::Relaxed);
            n_removed += 1;
            n_bytes += removed;
        }
        store.0.blobs.run_pending_tasks();
    }
    let (n_bytes, budget) = (human_size(n_bytes), human_size(budget));
    info!("evicted {n_removed} blobs of {n_bytes} to keep the budget of {budget}");
    Ok(())
}

/// How many bytes have to go when eviction has begun, so that a tenth of the budget is free.
fn excess(bytes: u64, budget: u64) -> u64 {
    bytes.saturating_sub(budget - budget / 10)
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

/// Removes one; returns the bytes that it was counted with.
pub(crate) async fn remove(store: &Store, victim: &Candidate) -> Result<u64, StoreError> {
    if victim.is_beginning {
        return store.drop_beginning(&victim.digest).await;
    }
    let name = store.lock(&victim.digest).await;
    let Some((file, size)) = store.take_out(&victim.digest).await? else {
        return Ok(0);
    };
    drop(name);
    // One after the other, so that no more is on disk than is counted, and one file.
    blocking(move || drop(file.into_inner())).await;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use larder_core::Digest;

    use super::*;

    #[test]
    fn a_tenth_of_the_budget_becomes_free_and_no_more() {
        assert_eq!(excess(1001, 1000), 101);
        assert_eq!(excess(901, 1000), 1);
        assert_eq!(excess(900, 1000), 0);
        // A beginning may have been taken meanwhile.
        assert_eq!(excess(10, 1000), 0);
    }

    #[test]
    fn no_more_is_removed_than_covers_the_excess() {
        let covered = |excess, sizes: &[u64]| {
            let candidate = |size: &u64| Candidate {
                digest: Digest::sha256_of(b""),
                size: *size,
                is_beginning: false,
            };
            cover(excess, sizes.iter().map(candidate).collect()).len()
        };
        assert_eq!(covered(10, &[4, 6, 1]), 2);
        assert_eq!(covered(11, &[4, 6, 1]), 3);
        assert_eq!(covered(1, &[4, 6, 1]), 1);
        assert_eq!(covered(0, &[4]), 0);
        assert_eq!(covered(100, &[4]), 1);
    }
}
