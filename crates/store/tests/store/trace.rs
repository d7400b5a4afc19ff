//! A store that is much too small for what is asked of it. `LARDER_TRACE_REQUESTS` says how often it is
//! asked; a tenth as many blobs are asked for.

use std::io::Write as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use larder_core::Digest;
use larder_simulation::orders::{Gdsf, Lru, Ours, S3Fifo};
use larder_simulation::{Kind, Order, Trace};

use crate::home::{Home, close, content, try_commit};

/// How many ask at the same time.
const CLIENTS: usize = 8;

/// The share of all bytes that the store may hold.
const BUDGET: u64 = 10;

/// How much smaller blobs are here than those of images, and the largest, in bytes.
const SCALE: u64 = 400;
const MAX_LEN: u64 = 256 << 10;

/// How near to what is simulated the store comes. It writes uses down now and then, removes in batches,
/// and clients overtake each other.
const CLOSE: f64 = 0.97;

#[tokio::test(flavor = "multi_thread")]
async fn the_budget_is_kept_but_for_what_is_in_flight_and_what_is_wanted_again_is_there() {
    let n_requests = std::env::var("LARDER_TRACE_REQUESTS").map_or(10_000, |n| n.parse().unwrap());
    let home = Home::new();
    // Whole blocks, so that they count as here in every order.
    let room = |size: u64| home.room((size / SCALE).clamp(1, MAX_LEN));
    let trace = Trace::generate(Kind::Scans, n_requests / 10, n_requests, 1).resized(room);
    let budget = trace.total() / BUDGET;
    let simulated: [(&str, Box<dyn Order>); 4] = [
        ("larder", Box::new(Ours::new(budget))),
        ("S3-FIFO", Box::new(S3Fifo::new(budget))),
        ("GDSF", Box::new(Gdsf::new(budget))),
        ("LRU", Box::new(Lru::new(budget))),
    ];
    let simulated = simulated.map(|(name, mut order)| (name, trace.byte_hit_ratio(order.as_mut())));

    let asked = Arc::new(Asked {
        digests: trace.sizes().iter().map(|_| OnceLock::new()).collect(),
        trace,
        next: AtomicUsize::new(0),
        most: AtomicU64::new(0),
        hits: AtomicU64::new(0),
        all: AtomicU64::new(0),
    });
    let store = home.open_with_budget(budget).await;
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..CLIENTS {
        let (store, asked) = (store.clone(), Arc::clone(&asked));
        clients.spawn(async move { while asked.ask_next(&store).await {} });
    }
    clients.join_all().await;

    let load = |number: &AtomicU64| number.load(Ordering::Relaxed);
    let (most, real) = (load(&asked.most), load(&asked.hits) as f64 / load(&asked.all) as f64);
    let in_flight = CLIENTS as u64 * home.room(MAX_LEN);
    let mut told = format!(
        "{n_requests} requests, a budget of {budget} bytes, exceeded by {} at most\n\
         the store       {real:.3} of the bytes were at hand\n",
        most.saturating_sub(budget)
    );
    for (name, ratio) in &simulated {
        told += &format!("{name:<15} {ratio:.3} by simulation\n");
    }
    // Past the test runner, which would keep it to itself.
    let _ = std::io::stderr().write_all(told.as_bytes());
    assert!(most <= budget + in_flight, "{told}");
    assert!(store.usage().evicted > budget, "nothing had to go");
    let [(_, ours), .., (_, lru)] = simulated;
    assert!(real >= ours * CLOSE && real > lru, "{told}");
    close(store.clone()).await;
    home.assert_agrees_with(&store).await;
}

/// What is asked, and what came of it.
struct Asked {
    trace: Trace,
    /// What blobs are called that have been asked for.
    digests: Vec<OnceLock<Digest>>,
    next: AtomicUsize,
    /// The most bytes that were stored at any time.
    most: AtomicU64,
    /// The bytes that were at hand, and all that were asked for.
    hits: AtomicU64,
    all: AtomicU64,
}

impl Asked {
    /// Asks for the next blob, and stores it if it is not there; whether there was one.
    async fn ask_next(&self, store: &larder_store::Store) -> bool {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(&blob) = self.trace.requests().get(at) else { return false };
        let len = self.trace.sizes()[blob];
        let content = || content(blob as u64, usize::try_from(len).unwrap());
        let digest = self.digests[blob].get_or_init(|| Digest::sha256_of(&content()));
        self.all.fetch_add(len, Ordering::Relaxed);
        match store.blob(digest).await.unwrap() {
            Some(found) => {
                assert_eq!(found.len, len);
                self.hits.fetch_add(len, Ordering::Relaxed);
            }
            None => drop(try_commit(store, &content()).await.unwrap()),
        }
        self.most.fetch_max(store.usage().bytes, Ordering::Relaxed);
        true
    }
}
