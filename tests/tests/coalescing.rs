//! Each byte of a blob comes from upstream once, however many ask, and memory stays bounded.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;

use larder_testkit::{Fault, Gate, Image, On};
use larder_tests::Scene;
use larder_tests::memory::PeakMemory;
use larder_tests::scene::{REPOSITORY, blob_path};
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_share_one_fetch_of_a_large_cold_blob() {
    let scene = Arc::new(Scene::new().await);
    let image = Arc::new(scene.push(1, &[256 * MIB]));
    let layer = &image.layers[0];
    let peak = PeakMemory::watch(scene.larder.pid());

    let mut clients = JoinSet::new();
    for _ in 0..64 {
        let (scene, image) = (scene.clone(), image.clone());
        clients.spawn(async move {
            let layer = &image.layers[0];
            let response = scene.get_blob(&layer.digest).await;
            assert_eq!(response.status, 200);
            response.expect_body(&layer.bytes).await.unwrap();
        });
    }
    while let Some(finished) = clients.join_next().await {
        finished.unwrap();
    }

    let peak = peak.finish();
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
    let sent = scene.upstream.bytes_sent(&layer.digest);
    assert!(sent as f64 <= layer.bytes.len() as f64 * 1.01, "{sent}");
    assert!(peak <= 100 << 20, "peak of anonymous memory: {} MiB", peak >> 20);
}

#[tokio::test]
async fn clients_that_come_before_upstream_answers_share_one_fetch() {
    let scene = Arc::new(Scene::new().await);
    let image = Arc::new(scene.push(2, &[4 * MIB]));
    let layer = &image.layers[0];
    let gate = Gate::closed();
    scene.upstream.fault(On::digest(&layer.digest), Fault::Wait(gate.clone()));

    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let (scene, image) = (scene.clone(), image.clone());
        clients.spawn(async move {
            let layer = &image.layers[0];
            scene.get_blob(&layer.digest).await.expect_body(&layer.bytes).await.unwrap();
        });
    }
    gate.reached(1).await;
    // All twenty are being answered, and none has been.
    wait_for_connections(&scene, 20).await;
    gate.open();
    while let Some(finished) = clients.join_next().await {
        finished.unwrap();
    }
    let asked = |method: &str| {
        let digest = layer.digest.to_string();
        scene.upstream.count(|it| it.method == method && it.path.ends_with(&digest))
    };
    assert_eq!(asked("GET"), 1);
    assert_eq!(scene.upstream.bytes_sent(&layer.digest), layer.bytes.len() as u64);
}

#[tokio::test]
async fn clients_that_ask_for_one_cold_tag_share_one_fetch() {
    let scene = Arc::new(Scene::new().await);
    let image = scene.push(3, &[100]);
    let gate = Gate::closed();
    scene.upstream.fault(On::manifests(), Fault::Wait(gate.clone()));
    let mut clients = JoinSet::new();
    for _ in 0..20 {
        let (scene, expected) = (scene.clone(), image.manifest.bytes.clone());
        clients.spawn(async move {
            scene.get_manifest("1").await.expect_body(&expected).await.unwrap();
        });
    }
    gate.reached(1).await;
    wait_for_connections(&scene, 20).await;
    gate.open();
    while let Some(finished) = clients.join_next().await {
        finished.unwrap();
    }
    assert_eq!(scene.upstream.count(|it| it.is_for_manifest() && it.method == "GET"), 1);
}

#[tokio::test]
async fn a_fill_goes_on_when_the_client_that_began_it_leaves() {
    let scene = Scene::new().await;
    let image = scene.push(4, &[16 * MIB]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    scene.upstream.fault(On::digest(&layer.digest), Fault::WaitAfter(2 << 20, gate.clone()));

    let mut first = scene.get_blob(&layer.digest).await;
    first.at_least(MIB).await;
    gate.reached(1).await;
    drop(first);
    gate.open();
    let is_whole = |requests: &[larder_testkit::upstream::Request]| {
        requests.iter().any(|it| it.is_fetch_of(&layer.digest) && it.is_whole)
    };
    scene.upstream.wait_for("the blob is fetched whole", is_whole).await;
    let second = scene.get_blob(&layer.digest).await;
    second.expect_body(&layer.bytes).await.unwrap();
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
}

#[tokio::test]
async fn a_client_that_comes_late_reads_from_the_first_byte() {
    let scene = Scene::new().await;
    let image = scene.push(5, &[16 * MIB]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    scene.upstream.fault(On::digest(&layer.digest), Fault::WaitAfter(8 << 20, gate.clone()));
    let mut first = scene.get_blob(&layer.digest).await;
    // The last byte that has come may be kept back until it is known not to be the last of all.
    let by_first = first.at_least(7 * MIB).await;
    let mut second = scene.get_blob(&layer.digest).await;
    let by_second = second.at_least(7 * MIB).await;
    assert!(by_second[..7 * MIB] == layer.bytes[..7 * MIB]);
    gate.open();
    first.expect_body(&layer.bytes[by_first.len()..]).await.unwrap();
    second.expect_body(&layer.bytes[by_second.len()..]).await.unwrap();
    assert_eq!(scene.upstream.bytes_sent(&layer.digest), layer.bytes.len() as u64);
}

#[tokio::test]
async fn a_slow_client_holds_up_neither_the_fill_nor_the_others() {
    let scene = Scene::new().await;
    let image = scene.push(6, &[64 * MIB]);
    let layer = &image.layers[0];
    // It reads the beginning, and nothing more until the end.
    let mut slow = scene.get_blob(&layer.digest).await;
    let beginning = slow.at_least(1).await;
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
    slow.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
}

#[tokio::test]
async fn a_range_of_a_cold_blob_is_answered_while_the_fill_is_under_way() {
    let scene = Scene::new().await;
    let image = scene.push(7, &[16 * MIB]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    let whole_only = On::digest(&layer.digest).get().times(1);
    scene.upstream.fault(whole_only, Fault::WaitAfter(4 << 20, gate.clone()));

    // Nothing was asked for before: the range itself begins the fill.
    let range = async |range: &str| {
        let response = scene.blob(&layer.digest).header("range", range).send().await;
        assert_eq!(response.status, 206, "{range}");
        response.bytes().await.unwrap()
    };
    assert_eq!(range("bytes=1000000-1000999").await, layer.bytes[1_000_000..1_001_000]);
    gate.reached(1).await;
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
    // Far beyond what has come, and what will come while the gate is closed.
    let (start, end) = (12 * MIB, 12 * MIB + 1000);
    assert_eq!(range(&format!("bytes={start}-{}", end - 1)).await, layer.bytes[start..end]);
    gate.open();
    assert_eq!(range("bytes=-10").await, layer.bytes[16 * MIB - 10..]);
    scene.get_blob(&layer.digest).await.expect_body(&layer.bytes).await.unwrap();
    // The blob, the far range, and whatever the end of the blob was taken from.
    let sent = scene.upstream.bytes_sent(&layer.digest);
    assert!(sent <= layer.bytes.len() as u64 + (2 << 20), "{sent}");
}

#[tokio::test]
async fn open_ended_ranges_in_parallel_cost_upstream_each_part_twice_at_most() {
    // As containerd 2 fetches a layer: each connection asks from its offset to the end, and hangs
    // up when it has its part.
    const PART: usize = 24 * MIB;
    let scene = Arc::new(Scene::new().await);
    let image = Arc::new(scene.push(8, &[8 * PART]));
    let layer = &image.layers[0];
    let mut parts = JoinSet::new();
    for n in 0..8 {
        let (scene, image) = (scene.clone(), image.clone());
        parts.spawn(async move {
            let (layer, start) = (&image.layers[0], n * PART);
            let range = format!("bytes={start}-");
            let mut response = scene.blob(&layer.digest).header("range", &range).send().await;
            assert_eq!(response.status, 206);
            let part = response.at_least(PART).await;
            assert!(part[..PART] == layer.bytes[start..start + PART], "{range}");
        });
    }
    while let Some(finished) = parts.join_next().await {
        finished.unwrap();
    }
    scene.get_blob(&layer.digest).await.expect_body(&layer.bytes).await.unwrap();
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
    // By itself and by the fill; and what is on its way when a client hangs up, some 10 MiB in the
    // buffers of the sockets. The sum of all ranges is 4.5 times the blob.
    let sent = scene.upstream.bytes_sent(&layer.digest);
    assert!(sent <= 3 * layer.bytes.len() as u64, "{} MiB", sent >> 20);
}

#[tokio::test]
async fn a_blob_that_two_repositories_share_is_stored_once_and_asked_for_in_each() {
    let scene = Scene::new().await;
    let image = scene.push(9, &[2 * MIB]);
    let layer = &image.layers[0];
    scene.upstream.push("team/other", "1", &image);
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    let path = |repository: &str| blob_path(&layer.digest).replace(REPOSITORY, repository);

    let shared = scene.larder.get(&path("team/other")).await;
    shared.expect_body(&layer.bytes).await.unwrap();
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
    // Upstream says that the third repository does not have it.
    let foreign = Image::random(10, &[100]);
    scene.upstream.push("team/third", "1", &foreign);
    assert_eq!(scene.larder.get(&path("team/third")).await.status, 404);
    assert_eq!(scene.larder.head(&path("team/third")).await.status, 404);
}

/// Returns once `n` connections to the program are open.
async fn wait_for_connections(scene: &Scene, n: usize) {
    let port = scene.larder.host.rsplit(':').next().unwrap().parse::<u16>().unwrap();
    let wanted = format!("0100007F:{port:04X}");
    let enough = async {
        loop {
            let connections = std::fs::read_to_string("/proc/net/tcp").unwrap();
            let established = connections.lines().filter(|line| {
                let mut fields = line.split_whitespace().skip(1);
                fields.next() == Some(&wanted) && fields.nth(1) == Some("01")
            });
            if established.count() >= n {
                break;
            }
            tokio::task::yield_now().await;
        }
    };
    larder_testkit::patiently("the clients connect", enough).await;
}
