//! The program is killed in the middle of fills, again and again.
//!
//! After each restart, what a client had received to its end is served without asking upstream, and
//! nothing that is served or stored is wrong. `LARDER_CRASH_ROUNDS` says how often.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use larder_core::Digest;
use larder_testkit::random::Numbers;
use larder_testkit::{Content, Image, Upstream, patiently};
use larder_tests::larder::Settings;
use larder_tests::process::Stream;
use larder_tests::scene::{REPOSITORY, blob_path};
use larder_tests::scratch::files_below;
use larder_tests::{Larder, Scene};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// How many blobs are fetched at once in each round.
const N_BLOBS: usize = 5;

/// The largest blob: long enough to be in mid-fill, with others, at most moments.
const MAX_SIZE: u64 = 6 << 20;

/// How many blobs of earlier rounds are looked at again in each round.
const N_LOOKED_AT_AGAIN: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kill_in_the_middle_of_fills_loses_nothing_that_a_client_has() {
    let n_rounds = match std::env::var("LARDER_CRASH_ROUNDS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 25,
    };
    let upstream = Upstream::start().await;
    let mut settings = Scene::settings(&upstream, "");
    let mut stored = Vec::new();
    for round in 0..n_rounds {
        let mut chance = Numbers::new(round);
        let sizes: Vec<usize> = (0..N_BLOBS).map(|_| 1 + chance.below(MAX_SIZE) as usize).collect();
        let image = Arc::new(Image::random(1000 + round, &sizes));
        upstream.push(REPOSITORY, &round.to_string(), &image);

        let larder = Arc::new(settings.start().await);
        let received = fetch_until_killed(&larder, &image, &mut chance).await;
        settings = Arc::into_inner(larder).expect("all clients have ended").kill();
        println!("round {round}: {} of {N_BLOBS} blobs received whole", received.len());

        settings = kill_while_starting(settings, &mut chance).await;
        let larder = settings.start().await;
        for layer in &image.layers {
            if received.contains(&layer.digest) {
                expect_hit(&larder, &upstream, layer, round).await;
            } else {
                let response = larder.get(&blob_path(&layer.digest)).await;
                response.expect_body(&layer.bytes).await.unwrap();
            }
        }
        for _ in 0..N_LOOKED_AT_AGAIN.min(stored.len()) {
            let layer = &stored[chance.below(stored.len() as u64) as usize];
            expect_hit(&larder, &upstream, layer, round).await;
        }
        stored.extend(image.layers.iter().cloned());
        settings = larder.kill();
    }
    let larder = settings.start().await;
    for layer in &stored {
        expect_hit(&larder, &upstream, layer, n_rounds).await;
    }
    assert_all_files_have_their_names(&larder.data());
    assert_eq!(files_below(&larder.data().join("staging")).len(), 0);
}

/// How far the clients of one round have come.
#[derive(Clone, Copy, Default)]
struct Received {
    n_bytes: u64,
    n_whole: u64,
}

/// Fetches all layers at once, and kills the program when so many bytes, or so many whole blobs,
/// have been received. Returns those whose body ended cleanly.
async fn fetch_until_killed(
    larder: &Arc<Larder>,
    image: &Arc<Image>,
    chance: &mut Numbers,
) -> BTreeSet<Digest> {
    let total: usize = image.layers.iter().map(|layer| layer.bytes.len()).sum();
    let enough = Received {
        n_bytes: chance.below(total as u64),
        // At least one: its client has its last byte, and the program must not have it to lose.
        n_whole: 1 + chance.below(N_BLOBS as u64),
    };
    let counts_bytes = chance.below(2) == 0;
    let is_enough = |received: &Received| match counts_bytes {
        true => received.n_bytes >= enough.n_bytes,
        false => received.n_whole >= enough.n_whole,
    };
    let received = watch::Sender::new(Received::default());
    let mut counted = received.subscribe();
    let mut clients = JoinSet::new();
    for n in 0..image.layers.len() {
        let (larder, image, received) = (larder.clone(), image.clone(), received.clone());
        clients.spawn(async move {
            let layer = &image.layers[n];
            let asked = larder.request(&blob_path(&layer.digest)).try_send().await;
            let mut response = asked.ok()?;
            let mut position = 0;
            while let Some(chunk) = response.chunk().await {
                let chunk = chunk.ok()?;
                assert!(layer.bytes[position..].starts_with(&chunk), "layer {n} at {position}");
                position += chunk.len();
                received.send_modify(|received| received.n_bytes += chunk.len() as u64);
            }
            assert_eq!(position, layer.bytes.len(), "layer {n} ended cleanly");
            received.send_modify(|received| received.n_whole += 1);
            Some(layer.digest.clone())
        });
    }
    patiently("enough is received", counted.wait_for(is_enough)).await.unwrap();
    rustix::process::kill_process(larder.pid(), rustix::process::Signal::KILL).unwrap();
    // Clients read on: what was sent before the end still arrives.
    let mut whole = BTreeSet::new();
    while let Some(finished) = clients.join_next().await {
        whole.extend(finished.unwrap());
    }
    whole
}

/// Sometimes, starts the program and kills it before it serves: as soon as it is there, or when it
/// has begun to look at what the last kill left.
async fn kill_while_starting(settings: Settings, chance: &mut Numbers) -> Settings {
    let when = chance.below(3);
    if when < 2 {
        let mut starting = settings.spawn();
        if when == 1 {
            let begun = |lines: &[String]| (!lines.is_empty()).then_some(());
            starting.find(Stream::Stderr, "it says that it starts", begun).await;
        }
        starting.kill();
    }
    settings
}

async fn expect_hit(larder: &Larder, upstream: &Upstream, layer: &Content, round: u64) {
    upstream.forget_requests();
    let response = larder.get(&blob_path(&layer.digest)).await;
    assert_eq!((response.status, response.outcome()), (200, "hit"), "round {round}");
    response.expect_body(&layer.bytes).await.unwrap();
    let requests = upstream.requests();
    assert!(requests.is_empty(), "round {round}: {requests:?}");
}

/// `blobs/<algorithm>/<first 2 hex digits>/<all hex digits>`
fn assert_all_files_have_their_names(data: &Path) {
    let blobs = data.join("blobs");
    let files = files_below(&blobs);
    assert!(!files.is_empty());
    for file in files {
        let digest = Digest::sha256_of(&fs::read(&file).unwrap());
        let hex = digest.hex();
        assert_eq!(file, blobs.join("sha256").join(&hex[..2]).join(&hex));
    }
}
