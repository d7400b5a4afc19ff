//! Every client under every condition of the upstream: right bytes or a clear error, in time.
//!
//! The table's columns are [`CONDITIONS`], its rows the tests: each starts its client once, and puts
//! it before a program and an upstream of its own for each condition, all at the same time. Between
//! pulls a client forgets what it has, so that all of it comes from the program.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fmt::Write as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_testkit::{Fault, Gate, Image, On, Upstream};
use larder_tests::suite::{Suite, are_all_wanted};
use larder_tests::{Client, Containerd, Copier, Docker, Generation, Larder};
use tokio::task::JoinSet;

const REPOSITORY: &str = "team/app";

/// A layer that clients get the beginning of before its end is known, and two that are verified
/// first.
const LAYERS: [usize; 3] = [3 << 20, 300_000, 100];

/// A column.
struct Condition {
    /// Part of the upstream's name, too: `NAME.test`.
    name: &'static str,
    /// What upstream does when the client comes (for the second time, if `stored`).
    upstream: Does,
    /// Whether the client has pulled the image before, so that all of it is stored.
    stored: bool,
    then: Then,
    /// The longest that a pull may take, in seconds. Twice what the slowest client takes on a busy
    /// machine, or more; of failures, most is the client's own repeating.
    within: u64,
}

/// What upstream does.
#[derive(Clone, Copy)]
enum Does {
    /// All that it should.
    Well,
    /// Nothing: connections are refused.
    Away,
    /// Takes requests and never answers.
    Silent,
    /// Answers with this status.
    Status(u16),
    /// Sends some 1 MB/s.
    Dribble,
    /// Breaks off each body after 1 MiB.
    Cut,
    /// Breaks off each body after 1000 bytes, so that there is no getting to the end.
    Shred,
}

/// What the client gets.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Then {
    /// The image.
    Right,
    /// An error that has one of these in it, in letters of any case: the status or the reason that
    /// the program gave, whichever the client shows.
    Error(&'static [&'static str]),
}

const UNAVAILABLE: Then = Then::Error(&["502", "could not be had from"]);
const LIMITED: Then = Then::Error(&["503", "429", "toomanyrequests"]);
const TOO_SLOW: Then = Then::Error(&["504", "did not answer in time"]);
/// oras panics when a body breaks off for good, so what it says is not looked at.
const BROKEN: Then = Then::Error(&[""]);

const CONDITIONS: [Condition; 13] = [
    column("well", Does::Well, false, Then::Right, 60),
    column("away-stored", Does::Away, true, Then::Right, 60),
    column("away", Does::Away, false, UNAVAILABLE, 60),
    column("silent-stored", Does::Silent, true, Then::Right, 60),
    column("silent", Does::Silent, false, TOO_SLOW, 240),
    column("status-429-stored", Does::Status(429), true, Then::Right, 60),
    column("status-429", Does::Status(429), false, LIMITED, 180),
    column("status-503-stored", Does::Status(503), true, Then::Right, 60),
    column("status-503", Does::Status(503), false, UNAVAILABLE, 60),
    column("dribbling-stored", Does::Dribble, true, Then::Right, 60),
    column("dribbling", Does::Dribble, false, Then::Right, 60),
    column("cutting", Does::Cut, false, Then::Right, 60),
    column("shredding", Does::Shred, false, BROKEN, 240),
];

const fn column(
    name: &'static str,
    upstream: Does,
    stored: bool,
    then: Then,
    within: u64,
) -> Condition {
    Condition { name, upstream, stored, then, within }
}

#[tokio::test]
async fn containerd_1_6_gets_right_bytes_or_an_error_whatever_upstream_does() {
    containerd_row(Generation::V1_6).await;
}

#[tokio::test]
async fn containerd_1_7_gets_right_bytes_or_an_error_whatever_upstream_does() {
    containerd_row(Generation::V1_7).await;
}

#[tokio::test]
async fn containerd_2_1_gets_right_bytes_or_an_error_whatever_upstream_does() {
    containerd_row(Generation::V2_1 { fetch_buffer: 0 }).await;
}

#[tokio::test]
async fn containerd_2_1_in_pieces_gets_right_bytes_or_an_error_whatever_upstream_does() {
    containerd_row(Generation::V2_1 { fetch_buffer: 1 << 20 }).await;
}

#[tokio::test]
async fn dockerd_gets_right_bytes_or_an_error_whatever_upstream_does() {
    row(Client::Docker(Docker::start(&[]).await)).await;
}

#[tokio::test]
async fn podman_gets_right_bytes_or_an_error_whatever_upstream_does() {
    row(Client::Podman).await;
}

#[tokio::test]
async fn skopeo_gets_right_bytes_or_an_error_whatever_upstream_does() {
    row(Client::Copier(Copier::Skopeo)).await;
}

#[tokio::test]
async fn oras_gets_right_bytes_or_an_error_whatever_upstream_does() {
    row(Client::Copier(Copier::Oras)).await;
}

#[tokio::test]
async fn crane_gets_right_bytes_or_an_error_whatever_upstream_does() {
    if Suite::Sid.has("crane") {
        row(Client::Copier(Copier::Crane)).await;
    }
}

#[tokio::test]
async fn newer_podman_gets_right_bytes_or_an_error_whatever_upstream_does() {
    if are_all_wanted("podman 5 is large") {
        row(Client::NewerPodman).await;
    }
}

#[tokio::test]
async fn newer_skopeo_gets_right_bytes_or_an_error_whatever_upstream_does() {
    if are_all_wanted("skopeo 1.18 is large") {
        row(Client::Copier(Copier::NewerSkopeo)).await;
    }
}

async fn containerd_row(generation: Generation) {
    if generation.suite().has("containerd") {
        row(Client::Containerd(Containerd::start_as(generation).await)).await;
    }
}

/// Asserts that all cells of a client's row are as the table says, and names those that aren't.
async fn row(client: Client) {
    let client = Arc::new(client);
    let mut cells = JoinSet::new();
    for (n, condition) in CONDITIONS.iter().enumerate() {
        let client = client.clone();
        cells.spawn(async move { (condition, cell(&client, condition, n as u64).await) });
    }
    let mut wrong = String::new();
    while let Some(finished) = cells.join_next().await {
        if let (condition, Err(what)) = finished.unwrap() {
            let _ = writeln!(wrong, "{}: {what}", condition.name);
        }
    }
    assert!(wrong.is_empty(), "\n{wrong}");
}

async fn cell(client: &Client, condition: &Condition, seed: u64) -> Result<(), String> {
    let host = format!("{}.test", condition.name);
    let mut upstream = Upstream::start().await;
    let image = Image::from_seed(100 + seed).layers(&LAYERS).unpackable().build();
    upstream.push(REPOSITORY, "1", &image);
    // Every pull asks upstream about the tag.
    let config =
        format!("[upstreams.\"{host}\"]\nurls = [\"{}\"]\nfreshness = \"0s\"", upstream.url());
    let larder = Larder::settings().config(&config).start().await;
    let limit = Duration::from_secs(condition.within);
    if condition.stored {
        let first = client.pull(&larder, &host, REPOSITORY, limit).await;
        first.map_err(|error| format!("the first pull: {error:?}"))?;
    }
    begin(condition.upstream, &mut upstream).await;

    let begun = Instant::now();
    let pulled = client.pull(&larder, &host, REPOSITORY, limit).await;
    let took = begun.elapsed();
    match (pulled, condition.then) {
        (Ok(content), Then::Right) if content.is_superset(&client.content_of(&image)) => Ok(()),
        (Ok(content), _) => Err(format!("a clean end with {content:?}")),
        (Err(None), _) => Err(format!("no end within {limit:?}")),
        (Err(Some(error)), Then::Error(clear)) if says_any(&error, clear) => Ok(()),
        (Err(Some(error)), _) => Err(format!("after {took:?}: {error:?}")),
    }
}

fn says_any(error: &str, parts: &[&str]) -> bool {
    let error = error.to_lowercase();
    !error.is_empty() && parts.iter().any(|part| error.contains(part))
}

async fn begin(upstream_does: Does, upstream: &mut Upstream) {
    match upstream_does {
        Does::Well => {}
        Does::Away => upstream.stop().await,
        Does::Silent => upstream.fault(On::path(""), Fault::Wait(Gate::closed())),
        Does::Status(429) => {
            upstream.fault(On::path(""), Fault::TooManyRequests { retry_after: 5 });
        }
        Does::Status(status) => upstream.fault(On::path(""), Fault::Status(status)),
        Does::Dribble => {
            upstream.fault(On::blobs(), Fault::Dribble(50_000, Duration::from_millis(50)));
        }
        Does::Cut => upstream.fault(On::blobs(), Fault::CutAfter(1 << 20)),
        Does::Shred => upstream.fault(On::blobs(), Fault::CutAfter(1000)),
    }
}
