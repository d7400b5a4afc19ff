//! Replicas with disks of their own: each blob comes from upstream once for all of them, and none of
//! them is needed.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::{Duration, Instant};

use larder_core::owner;
use larder_testkit::{Content, Fault, Gate, Image, On, Upstream, patiently};
use larder_tests::replicas::{acquainted, free_address};
use larder_tests::scene::{HOST, REPOSITORY, blob_path};
use larder_tests::{Larder, Replicas, Scene, http};
use rustix::process::{Signal, kill_process};
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

/// What dead replicas may cost the first pull.
const PASSED_OVER: Duration = Duration::from_secs(2);

/// How often that is measured, at most. The program's own waits are in every measurement, and what a
/// busy machine adds is not: so the shortest one counts. If the program waited for longer, all of
/// them would be too long.
const TRIES: usize = 5;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ninety_clients_over_three_replicas_share_one_fetch_of_a_large_cold_blob() {
    let replicas = Replicas::start(3).await;
    let image = replicas.push(1, &[256 * MIB]);
    let layer = &image.layers[0];

    let mut clients = JoinSet::new();
    for n in 0..90 {
        let (url, image) = (replicas.all[n % 3].url(&blob_path(&layer.digest)), image.clone());
        clients.spawn(async move { expect(&url, &image.layers[0]).await });
    }
    while let Some(finished) = clients.join_next().await {
        finished.unwrap();
    }

    let upstream = &replicas.upstream;
    assert_eq!(upstream.n_fetches(&layer.digest), 1);
    assert_eq!(upstream.bytes_sent(&layer.digest), layer.bytes.len() as u64);
    for replica in &replicas.all {
        let stored = replica.get(&blob_path(&layer.digest)).await;
        assert_eq!(stored.outcome(), "hit");
        stored.expect_body(&layer.bytes).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_the_others_notice_nothing_when_the_filling_owner_is_killed() {
    let mut replicas = Replicas::start(3).await;
    let image = replicas.push(2, &[256 * MIB]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    let first = On::digest(&layer.digest).get().times(1);
    replicas.upstream.fault(first, Fault::WaitAfter(128 << 20, gate.clone()));
    let [owner, second, third] = replicas.order(&layer.digest)[..] else { unreachable!() };

    let (half, mut reading) = tokio::sync::mpsc::channel(8);
    let mut clients = JoinSet::new();
    // Of ninety clients over three replicas, those of the two that stay.
    for n in 0..60 {
        let replica = if n % 2 == 0 { second } else { third };
        let (url, image) = (replicas.all[replica].url(&blob_path(&layer.digest)), image.clone());
        let half = half.clone();
        clients.spawn(async move {
            let layer = &image.layers[0];
            let mut response = http::get(&url).send().await;
            assert_eq!(response.status, 200);
            let mut at = 0;
            while at < 100 * MIB {
                let chunk = response.chunk().await.unwrap().unwrap();
                assert!(chunk == layer.bytes[at..at + chunk.len()]);
                at += chunk.len();
            }
            half.send(()).await.unwrap();
            response.expect_body(&layer.bytes[at..]).await.unwrap();
        });
    }
    for _ in 0..60 {
        patiently("all clients read the beginning", reading.recv()).await.unwrap();
    }
    gate.reached(1).await;
    assert_eq!(replicas.upstream.n_fetches(&layer.digest), 1, "only the owner asks");
    let owner = replicas.all.remove(owner);
    owner.kill();
    while let Some(finished) = clients.join_next().await {
        finished.unwrap();
    }
    gate.open();

    let sent = replicas.upstream.bytes_sent(&layer.digest);
    assert!(sent as f64 <= layer.bytes.len() as f64 * 2.1, "{} MiB", sent >> 20);
}

#[tokio::test]
async fn an_owner_that_refuses_costs_the_first_pull_little_and_the_next_ones_nothing() {
    let mut replicas = Replicas::start(3).await;
    let image = replicas.push(3, &[100; 128]);
    let [owner, asked, _] = replicas.order(&image.layers[0].digest)[..] else { unreachable!() };
    let mut blobs = replicas.owned_by(owner, &image).into_iter();
    let mut measured = Vec::new();
    while !is_met(&measured) {
        let settings = replicas.all.remove(owner).kill();
        let asked = &replicas.all[if asked > owner { asked - 1 } else { asked }];
        measured.push(expect_passing_over(asked, [(); 2].map(|()| blobs.next().unwrap())).await);
        assert_eq!(asked.admin("/readyz").await.status, 200);
        let owners = settings.start().await;
        nobody_is_lost(asked).await;
        replicas.all.insert(owner, owners);
    }
}

#[tokio::test]
async fn an_owner_that_is_silent_costs_the_first_pull_little_and_the_next_ones_nothing() {
    let replicas = Replicas::start(2).await;
    let image = replicas.push(4, &[100; 64]);
    let owner = replicas.order(&image.layers[0].digest)[0];
    let mut blobs = replicas.owned_by(owner, &image).into_iter();
    let (silent, other) = (&replicas.all[owner], &replicas.all[1 - owner]);
    let mut measured = Vec::new();
    while !is_met(&measured) {
        kill_process(silent.pid(), Signal::STOP).unwrap();
        measured.push(expect_passing_over(other, [(); 2].map(|()| blobs.next().unwrap())).await);
        kill_process(silent.pid(), Signal::CONT).unwrap();
        nobody_is_lost(other).await;
        other.logged(&["is back"]).await;
    }
}

#[tokio::test]
async fn two_replicas_that_are_silent_cost_no_more_than_one() {
    let replicas = Replicas::start(3).await;
    let image = replicas.push(11, &[100; 128]);
    let order = replicas.order(&image.layers[0].digest);
    let is_so = |layer: &&Content| replicas.order(&layer.digest) == order;
    let mut blobs = image.layers.iter().filter(is_so).cloned();
    let [one, two, other] = [0, 1, 2].map(|n| &replicas.all[order[n]]);
    let mut measured = Vec::new();
    while !is_met(&measured) {
        for silent in [one, two] {
            kill_process(silent.pid(), Signal::STOP).unwrap();
        }
        measured.push(expect_passing_over(other, [(); 2].map(|()| blobs.next().unwrap())).await);
        for silent in [one, two] {
            kill_process(silent.pid(), Signal::CONT).unwrap();
        }
        nobody_is_lost(other).await;
    }
}

#[tokio::test]
async fn an_owner_that_falls_silent_in_the_middle_is_replaced() {
    let replicas = Replicas::start(2).await;
    let image = replicas.push(5, &[32 * MIB]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    let first = On::digest(&layer.digest).get().times(1);
    replicas.upstream.fault(first, Fault::WaitAfter(16 << 20, gate.clone()));
    let [owner, other] = replicas.order(&layer.digest)[..] else { unreachable!() };
    let mut response = replicas.all[other].get(&blob_path(&layer.digest)).await;
    let beginning = response.at_least(8 * MIB).await;
    gate.reached(1).await;
    kill_process(replicas.all[owner].pid(), Signal::STOP).unwrap();
    response.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    kill_process(replicas.all[owner].pid(), Signal::CONT).unwrap();
    gate.open();
}

#[tokio::test]
async fn an_owner_that_waits_for_a_slow_upstream_is_waited_for() {
    let replicas = Replicas::start(2).await;
    let image = replicas.push(6, &[4 * MIB]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    replicas.upstream.fault(On::digest(&layer.digest), Fault::Wait(gate.clone()));
    let [owner, other] = replicas.order(&layer.digest)[..] else { unreachable!() };
    let greetings = [("kind", "other"), ("outcome", "hit")];
    let greeted = async || replicas.all[owner].metric("larder_requests_total", &greetings).await;
    let before = greeted().await;

    let url = replicas.all[other].url(&blob_path(&layer.digest));
    let client = tokio::spawn({
        let image = image.clone();
        async move { expect(&url, &image.layers[0]).await }
    });
    gate.reached(1).await;
    // It is greeted twice a second at most: this is 3 s.
    patiently("the owner is greeted", async { while greeted().await < before + 6.0 {} }).await;
    gate.open();
    client.await.unwrap();
    let digest = layer.digest.to_string();
    assert_eq!(replicas.upstream.count(|it| it.path.ends_with(&digest)), 1);
    let lost = [("state", "lost")];
    assert!(replicas.all[other].metric("larder_peers", &lost).await < 1.0);
}

#[tokio::test]
async fn a_range_of_a_cold_blob_is_read_from_the_owner() {
    let replicas = Replicas::start(2).await;
    let image = replicas.push(7, &[16 * MIB]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    let whole = On::digest(&layer.digest).get().times(1);
    replicas.upstream.fault(whole, Fault::WaitAfter(2 << 20, gate.clone()));
    let [_, other] = replicas.order(&layer.digest)[..] else { unreachable!() };
    let other = &replicas.all[other];
    let request = other.request(&blob_path(&layer.digest));
    let (start, end) = (12 * MIB, 12 * MIB + 1000);
    let response = request.header("range", &format!("bytes={start}-{}", end - 1)).send().await;
    assert_eq!(response.status, 206);
    assert_eq!(response.bytes().await.unwrap(), layer.bytes[start..end]);
    gate.open();
    other.get(&blob_path(&layer.digest)).await.expect_body(&layer.bytes).await.unwrap();
    assert!(other.metric("larder_upstream_bytes_total", &[]).await < 1.0);
}

#[tokio::test]
async fn replicas_that_take_each_other_for_the_owner_do_not_wait_for_each_other() {
    // Each has two addresses, and knows both replicas by others than the other one does.
    let [a1, a2, b1, b2] = [(); 4].map(|()| free_address());
    let names = |addresses: [&String; 2]| addresses.map(|it| format!("http://{it}"));
    let (by_a, by_b) = (names([&a1, &b1]), names([&a2, &b2]));
    let upstream = Upstream::start().await;
    let image = Image::random(8, &[2 * MIB; 24]);
    upstream.push(REPOSITORY, "1", &image);
    let start = async |peers: &[String; 2], listen: [&str; 2]| {
        let settings = Scene::settings(&upstream, "").config_first(&format!("peers = {peers:?}"));
        let settings = settings.arguments(&["--listen", listen[0], "--listen", listen[1]]);
        settings.start().await
    };
    let (a, b) = (start(&by_a, [&a1, &a2]).await, start(&by_b, [&b1, &b2]).await);
    acquainted(&a, 1).await;
    acquainted(&b, 1).await;
    let first = |peers, layer: &Content| owner::order(&layer.digest, peers, |it: &&String| it)[0];
    let is_crossed =
        |layer: &&Content| *first(&by_a, layer) == by_a[1] && *first(&by_b, layer) == by_b[0];
    let crossed: Vec<&Content> = image.layers.iter().filter(is_crossed).collect();
    assert!(!crossed.is_empty());

    let gate = Gate::closed();
    upstream.fault(On::blobs(), Fault::Wait(gate.clone()));
    let since = Instant::now();
    let mut clients = JoinSet::new();
    for layer in &crossed {
        for url in [a.url(&blob_path(&layer.digest)), b.url(&blob_path(&layer.digest))] {
            let layer = (*layer).clone();
            clients.spawn(async move { expect(&url, &layer).await });
        }
    }
    // Both have turned to upstream, or one has and the other reads along.
    gate.reached(crossed.len()).await;
    gate.open();
    while let Some(finished) = clients.join_next().await {
        finished.unwrap();
    }
    assert!(since.elapsed() < Duration::from_secs(15), "{:?}", since.elapsed());
    for layer in crossed {
        assert!(upstream.n_fetches(&layer.digest) <= 2);
    }
}

#[tokio::test]
async fn a_peer_gets_nothing_that_the_repository_does_not_have() {
    let replicas = Replicas::start(2).await;
    let image = replicas.push(9, &[2 * MIB]);
    replicas.upstream.push("team/other", "1", &Image::random(10, &[100]));
    let layer = &image.layers[0];
    for replica in &replicas.all {
        expect(&replica.url(&blob_path(&layer.digest)), layer).await;
    }
    let foreign = blob_path(&layer.digest).replace(REPOSITORY, "team/other");
    for replica in &replicas.all {
        let request = replica.request(&foreign).header("x-larder-peer", "anybody");
        assert_eq!(request.send().await.status, 404);
        assert_eq!(replica.get(&foreign).await.status, 404);
    }
    let elsewhere = replicas.all[0].request(&foreign.replace(HOST, "elsewhere.test"));
    assert_eq!(elsewhere.header("x-larder-peer", "anybody").send().await.status, 404);
}

async fn expect(url: &str, layer: &Content) {
    let response = http::get(url).send().await;
    assert_eq!(response.status, 200, "{url}");
    response.expect_body(&layer.bytes).await.unwrap();
}

/// Pulls two blobs whose owner is not there: the first waits a little, and how long is returned; the
/// second does not even try.
async fn expect_passing_over(replica: &Larder, blobs: [Content; 2]) -> Duration {
    let since = Instant::now();
    expect(&replica.url(&blob_path(&blobs[0].digest)), &blobs[0]).await;
    let waited = since.elapsed();
    replica.logged(&["passing over"]).await;
    let failed = [("outcome", "failed")];
    let before = replica.metric("larder_peer_requests_total", &failed).await;
    expect(&replica.url(&blob_path(&blobs[1].digest)), &blobs[1]).await;
    let after = replica.metric("larder_peer_requests_total", &failed).await;
    assert!(after < before + 1.0, "{before} {after}");
    waited
}

/// Whether one measurement was within the bound, of at most [`TRIES`].
fn is_met(measured: &[Duration]) -> bool {
    let is_met = measured.iter().any(|waited| *waited <= PASSED_OVER);
    assert!(is_met || measured.len() < TRIES, "{measured:?}");
    is_met
}

/// Returns once a replica takes no other one for lost.
async fn nobody_is_lost(replica: &Larder) {
    let lost = [("state", "lost")];
    patiently("all are back", async {
        while replica.metric("larder_peers", &lost).await >= 1.0 {}
    })
    .await;
}
