//! A store that is much too small for what is asked of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_core::Digest;

use crate::home::{Home, close, content, try_commit};

/// How many ask at the same time.
const CLIENTS: u64 = 8;

/// The largest blob, in bytes.
const MAX_LEN: u64 = 64 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_is_exceeded_by_no_more_than_what_is_in_flight() {
    let n_requests = std::env::var("LARDER_TRACE_REQUESTS").map_or(10_000, |n| n.parse().unwrap());
    let n_blobs = (n_requests / 10).max(500);
    let home = Home::new();
    let total: u64 = (0..n_blobs).map(|seed| home.room(len(seed))).sum();
    let budget = total / 10;
    let store = home.open_with_budget(budget).await;
    let most = Arc::new(AtomicU64::new(0));
    let mut clients = tokio::task::JoinSet::new();
    for client in 0..CLIENTS {
        let (store, most) = (store.clone(), Arc::clone(&most));
        clients.spawn(async move {
            let (mut state, mut n_hits) = (client + 1, 0);
            for _ in 0..n_requests / CLIENTS {
                let seed = popular(&mut state, n_blobs);
                let bytes = content(seed, usize::try_from(len(seed)).unwrap());
                match store.blob(&Digest::sha256_of(&bytes)).await.unwrap() {
                    Some(blob) => {
                        assert_eq!(blob.len, len(seed));
                        n_hits += 1;
                    }
                    None => drop(try_commit(&store, &bytes).await.unwrap()),
                }
                most.fetch_max(store.usage().bytes, Ordering::Relaxed);
            }
            n_hits
        });
    }
    let n_hits: u64 = clients.join_all().await.into_iter().sum();
    let most = most.load(Ordering::Relaxed);
    assert!(most <= budget + CLIENTS * home.room(MAX_LEN), "{most} against {budget}");
    assert!(store.usage().evicted > budget, "nothing had to go");
    assert!(n_hits > n_requests / 4, "{n_hits} hits of {n_requests} requests");
    close(store.clone()).await;
    home.assert_agrees_with(&store).await;
}

/// One to sixteen blocks, so that sizes differ.
fn len(seed: u64) -> u64 {
    1 + seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) % MAX_LEN
}

/// A blob of which the first are asked for most.
fn popular(state: &mut u64, n_blobs: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    let share = (*state >> 11) as f64 / (1_u64 << 53) as f64;
    (n_blobs as f64).powf(share) as u64 - 1
}
