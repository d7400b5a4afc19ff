//! Many clients for a while, with an upstream that fails in one way after the other: nothing wrong,
//! nothing that hangs, and nothing left behind.
//!
//! `LARDER_SOAK_SECONDS` says how long (60), `LARDER_SOAK_SEED` in which order things happen (1).

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_testkit::random::Numbers;
use larder_testkit::{Content, Fault, Gate, Image, On, Upstream, patiently};
use larder_tests::http::Response;
use larder_tests::memory::{anonymous_bytes, open_files};
use larder_tests::scene::{HOST, REPOSITORY, blob_path};
use larder_tests::{Larder, Scene};
use tokio::task::JoinSet;
use tokio::time::timeout;

const N_CLIENTS: u64 = 32;

const N_IMAGES: u64 = 24;
const LAYERS: [usize; 4] = [3 << 20, 1_500_000, 200_000, 3000];

/// A quarter of all images, so that things are evicted and fetched again all the time.
const BUDGET: &str = "budget = \"28MB\"";

/// Of the first images, upstream never sends wrong bytes: parts of them are asked for, which have no
/// digest of their own to be checked against. Repositories of the others are called `ODD…`.
const N_SOUND: u64 = 16;
const ODD: &str = "team/odd";

/// The longest that any request may take: twice the time that a client without a stored answer
/// waits for upstream (25 s), and some for the body.
const LIMIT: Duration = Duration::from_secs(60);

/// What memory may differ by at the end: what the allocator keeps of 32 fills (two batches of 1 MiB
/// each).
const MEMORY_TOLERANCE: u64 = 32 << 20;

/// What open files may differ by: idle connections to upstream, which are kept for a minute.
const FILES_TOLERANCE: usize = 24;

/// How a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Right,
    /// The client has left by itself.
    Left,
    /// By a status that says that this is upstream's fault.
    Refused(u16),
    Aborted,
    Wrong(&'static str),
    TooLate,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_leaves_no_wrong_byte_no_late_answer_and_nothing_behind() {
    let seed = number("LARDER_SOAK_SEED", 1);
    let duration = Duration::from_secs(number("LARDER_SOAK_SECONDS", 60));
    eprintln!("seed {seed}, {duration:?}");
    let upstream = Upstream::start().await;
    let images: Vec<Image> = (0..N_IMAGES).map(|n| Image::random(600 + n, &LAYERS)).collect();
    for (n, image) in images.iter().enumerate() {
        upstream.push(&repository(n as u64), "1", image);
    }
    let images = Arc::new(images);
    let settings = Scene::settings(&upstream, "freshness = \"500ms\"").config_first(BUDGET);
    let larder = Arc::new(settings.start().await);

    // As it will be at the end: all images asked for, by nobody any more.
    expect_all(&larder, &images).await;
    let before = Footprint::of(&larder).await;

    let until = Instant::now() + duration;
    let mut clients = JoinSet::new();
    for n in 0..N_CLIENTS {
        let numbers = Numbers::new(seed.wrapping_mul(1000).wrapping_add(n));
        clients.spawn(ask_until(until, larder.clone(), images.clone(), numbers));
    }
    let upstream = fail_until(until, upstream, Numbers::new(seed)).await;
    let mut ends: BTreeMap<End, u64> = BTreeMap::new();
    while let Some(finished) = clients.join_next().await {
        for (end, n) in finished.unwrap() {
            *ends.entry(end).or_default() += n;
        }
    }
    eprintln!("{ends:?}");
    let is_bad = |end: &End| matches!(end, End::Wrong(_) | End::TooLate);
    assert!(!ends.keys().any(is_bad), "seed {seed}: {ends:?}");
    // Otherwise the failures have not come through, and this shows nothing.
    let n_corrupt = larder.metric("larder_corrupt_total", &[]).await;
    let has_failed = ends.contains_key(&End::Aborted) || n_corrupt > 0.0;
    assert!(ends.contains_key(&End::Right) && has_failed, "{ends:?}, {n_corrupt} corrupt");
    assert!(larder.metric("larder_evicted_bytes_total", &[]).await > 0.0);

    expect_all(&larder, &images).await;
    drop(upstream);
    let after = before.expect_again(&larder).await;
    eprintln!("{before:?} before, {after:?} after");
}

/// Asks for one thing after the other, and counts how that ended.
async fn ask_until(
    until: Instant,
    larder: Arc<Larder>,
    images: Arc<Vec<Image>>,
    mut numbers: Numbers,
) -> BTreeMap<End, u64> {
    let mut ends = BTreeMap::new();
    while Instant::now() < until {
        let end = timeout(LIMIT, ask(&larder, &images, &mut numbers)).await;
        *ends.entry(end.unwrap_or(End::TooLate)).or_default() += 1;
    }
    ends
}

/// Asks for something.
async fn ask(larder: &Larder, images: &[Image], numbers: &mut Numbers) -> End {
    // Whoever is cut off before the head of an answer knows that it failed.
    try_ask(larder, images, numbers).await.unwrap_or(End::Aborted)
}

async fn try_ask(
    larder: &Larder,
    images: &[Image],
    numbers: &mut Numbers,
) -> Result<End, Box<dyn std::error::Error + Send + Sync>> {
    let what = numbers.below(10);
    let n = numbers.below(if matches!(what, 6..=8) { N_SOUND } else { N_IMAGES });
    let image = &images[n as usize];
    let blobs: Vec<&Content> = image.blobs().collect();
    let blob = blobs[numbers.below(blobs.len() as u64) as usize];
    let tag = format!("/v2/{HOST}/{}/manifests/1", repository(n));
    let by_digest = tag.replace("/1", &format!("/{}", image.digest()));
    let blob_at = blob_path_in(n, blob);
    let get = async |path: &str| larder.request(path).try_send().await;
    Ok(match what {
        0 | 1 => end_of(get(&tag).await?, 200, &image.manifest.bytes).await,
        2 => end_of(get(&by_digest).await?, 200, &image.manifest.bytes).await,
        3..=5 => end_of(get(&blob_at).await?, 200, &blob.bytes).await,
        6 | 7 => {
            let start = numbers.below(blob.bytes.len() as u64) as usize;
            let left = (blob.bytes.len() - start) as u64;
            let end = start + 1 + numbers.below(left) as usize;
            let range = format!("bytes={start}-{}", end - 1);
            let response = larder.request(&blob_at).header("range", &range).try_send().await?;
            end_of(response, 206, &blob.bytes[start..end]).await
        }
        // A piece of an open-ended range.
        8 => {
            let start = numbers.below(blob.bytes.len() as u64) as usize;
            let range = format!("bytes={start}-");
            let response = larder.request(&blob_at).header("range", &range).try_send().await?;
            leave(response, 206, &blob.bytes[start..]).await
        }
        _ => leave(get(&blob_at).await?, 200, &[]).await,
    })
}

/// Reads all of an answer.
async fn end_of(response: Response, status: u16, expected: &[u8]) -> End {
    if response.status != status {
        return refused(response.status);
    }
    match response.bytes().await {
        Err(_) => End::Aborted,
        Ok(bytes) if bytes == expected => End::Right,
        Ok(_) => End::Wrong("bytes"),
    }
}

/// Reads some of an answer, compares it if there is something to compare it with, and leaves.
async fn leave(mut response: Response, status: u16, expected: &[u8]) -> End {
    if response.status != status {
        return refused(response.status);
    }
    match response.chunk().await {
        Some(Err(_)) => End::Aborted,
        Some(Ok(chunk)) if !expected.is_empty() && !expected.starts_with(&chunk) => {
            End::Wrong("piece")
        }
        _ => End::Left,
    }
}

fn refused(status: u16) -> End {
    match status {
        429 | 500..=599 => End::Refused(status),
        // Upstream has everything, always.
        _ => End::Wrong("status"),
    }
}

/// Makes upstream fail in one way after the other, each for up to a second, with as much good
/// weather between: all ways in a random order, and again. Heals it at the end.
async fn fail_until(until: Instant, mut upstream: Upstream, mut numbers: Numbers) -> Upstream {
    let mut ways = Vec::new();
    while Instant::now() < until {
        let way = ways.pop().unwrap_or_else(|| {
            ways = shuffled(&mut numbers);
            ways.remove(0)
        });
        let gate = Gate::closed();
        match fault(way, &gate, &mut numbers) {
            Some((on, fault)) => upstream.fault(on, fault),
            None => upstream.stop().await,
        }
        weather(&mut numbers).await;
        if way == Way::Away {
            upstream.resume().await;
        }
        gate.open();
        upstream.heal();
        upstream.forget_requests();
        weather(&mut numbers).await;
    }
    upstream
}

/// A way to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Away,
    Unavailable,
    Broken,
    Limiting,
    Silent,
    Stalling,
    Cutting,
    Resetting,
    Dribbling,
    WithoutLength,
    WithoutRanges,
    Redirecting,
    Corrupting,
    Appending,
}

fn shuffled(numbers: &mut Numbers) -> Vec<Way> {
    let mut ways = vec![
        Way::Away,
        Way::Unavailable,
        Way::Broken,
        Way::Limiting,
        Way::Silent,
        Way::Stalling,
        Way::Cutting,
        Way::Resetting,
        Way::Dribbling,
        Way::WithoutLength,
        Way::WithoutRanges,
        Way::Redirecting,
        Way::Corrupting,
        Way::Appending,
    ];
    for n in (1..ways.len()).rev() {
        ways.swap(n, numbers.below(n as u64 + 1) as usize);
    }
    ways
}

/// What upstream is told; `None`: it is stopped.
fn fault(way: Way, gate: &Gate, numbers: &mut Numbers) -> Option<(On, Fault)> {
    let (all, blobs, odd) = (On::path(""), On::blobs(), On::path(ODD));
    let somewhere = numbers.below(2 << 20);
    Some(match way {
        Way::Away => return None,
        Way::Unavailable => (all, Fault::Status(503)),
        Way::Broken => (all, Fault::Status(500)),
        Way::Limiting => (all, Fault::TooManyRequests { retry_after: 1 }),
        Way::Silent => (all, Fault::Wait(gate.clone())),
        Way::Stalling => (blobs, Fault::WaitAfter(somewhere, gate.clone())),
        Way::Cutting => (blobs, Fault::CutAfter(somewhere)),
        Way::Resetting => (blobs, Fault::ResetAfter(somewhere)),
        Way::Dribbling => (blobs, Fault::Dribble(50_000, Duration::from_millis(20))),
        Way::WithoutLength => (blobs, Fault::Chunked),
        Way::WithoutRanges => (blobs, Fault::IgnoreRange),
        Way::Redirecting => (blobs, Fault::Redirect),
        // All content is longer than that.
        Way::Corrupting => (odd, Fault::Corrupt(100)),
        Way::Appending => (odd, Fault::Append(5)),
    })
}

/// How long a failure, or the time between two, lasts: nothing is waited for, time has to pass.
async fn weather(numbers: &mut Numbers) {
    tokio::time::sleep(Duration::from_millis(100 + numbers.below(900))).await;
}

/// Everything can be had, and is right.
async fn expect_all(larder: &Larder, images: &[Image]) {
    for (n, image) in (0..).zip(images) {
        let tag = format!("/v2/{HOST}/{}/manifests/1", repository(n));
        larder.get(&tag).await.expect_body(&image.manifest.bytes).await.unwrap();
        for blob in image.blobs() {
            let response = larder.get(&blob_path_in(n, blob)).await;
            response.expect_body(&blob.bytes).await.unwrap();
        }
    }
}

/// What the program holds of the machine.
#[derive(Clone, Copy, Debug)]
struct Footprint {
    memory: u64,
    n_files: usize,
}

impl Footprint {
    /// When nothing is going on.
    async fn of(larder: &Larder) -> Self {
        patiently("all fills end", async {
            while larder.metric("larder_fills_in_flight", &[]).await > 0.0 {
                tokio::task::yield_now().await;
            }
        })
        .await;
        let pid = larder.pid();
        Self { memory: anonymous_bytes(pid).unwrap(), n_files: open_files(pid).unwrap() }
    }

    /// Returns once it is as it was, within the tolerances; what is idle may take its time to go.
    async fn expect_again(self, larder: &Larder) -> Self {
        let deadline = Instant::now() + 2 * LIMIT;
        loop {
            let now = Self::of(larder).await;
            let is_back = now.memory <= self.memory + MEMORY_TOLERANCE
                && now.n_files <= self.n_files + FILES_TOLERANCE;
            if is_back {
                return now;
            }
            assert!(Instant::now() < deadline, "{self:?} before, {now:?} after");
            tokio::task::yield_now().await;
        }
    }
}

fn repository(n: u64) -> String {
    if n < N_SOUND { format!("{REPOSITORY}{n}") } else { format!("{ODD}{n}") }
}

fn blob_path_in(n: u64, blob: &Content) -> String {
    blob_path(&blob.digest).replace(REPOSITORY, &repository(n))
}

fn number(variable: &str, default: u64) -> u64 {
    let value = std::env::var(variable).ok();
    value.map_or(default, |value| value.parse().expect("a whole number"))
}
