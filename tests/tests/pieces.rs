//! A cold blob in pieces by open-ended ranges that are abandoned, as containerd 2.1 with
//! `concurrent_layer_fetch_buffer` asks for it.
//!
//! Each connection asks from its offset to the end and hangs up when it has its piece. What the
//! first asks for is `bytes=0-`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;
use std::time::Duration;

use larder_core::Digest;
use larder_testkit::{Fault, Image, On};
use larder_tests::scene::{HOST, REPOSITORY};
use larder_tests::{Containerd, Generation, Scene};
use tokio::task::JoinSet;

const PIECE: usize = 8 << 20;
const N_PIECES: usize = 8;
/// What is on its way when a client hangs up: a tenth.
const MOST: usize = N_PIECES * PIECE * 11 / 10;

#[tokio::test]
async fn pieces_of_a_cold_blob_cost_upstream_the_blob_once() {
    let scene = Arc::new(Scene::new().await);
    let image = Arc::new(scene.push(500, &[N_PIECES * PIECE]));
    assert_pieces_are_right(&scene, &image).await;
    assert_was_fetched_once(&scene, &image).await;
}

#[tokio::test]
async fn pieces_of_a_cold_blob_cost_a_slow_upstream_the_blob_once() {
    let scene = Arc::new(Scene::new().await);
    let image = Arc::new(scene.push(501, &[N_PIECES * PIECE]));
    // Some 25 MB/s on each connection.
    let slow = Fault::Dribble(256 << 10, Duration::from_millis(10));
    scene.upstream.fault(On::blobs().get(), slow);
    assert_pieces_are_right(&scene, &image).await;
    assert_was_fetched_once(&scene, &image).await;
}

#[tokio::test]
async fn containerd_in_pieces_costs_upstream_a_layer_once() {
    let generation = Generation::V2_1 { fetch_buffer: PIECE as u64 };
    if !generation.suite().has("containerd") {
        return;
    }
    let scene = Scene::new().await;
    let image = Image::from_seed(502).layers(&[N_PIECES * PIECE]).unpackable().build();
    scene.upstream.push(REPOSITORY, "1", &image);
    let slow = Fault::Dribble(256 << 10, Duration::from_millis(10));
    scene.upstream.fault(On::blobs().get(), slow);
    let containerd = Containerd::start_as(generation).await;
    containerd.mirror(HOST, &scene.upstream.url(), &scene.larder.url(""));
    let reference = format!("{HOST}/{REPOSITORY}:1");
    containerd.pull(&reference).await.unwrap();
    let files = containerd.files(&reference).await.into_values();
    assert!(files.eq([Digest::sha256_of(&image.files[0].1)]));
    assert_was_fetched_once(&scene, &image).await;
}

/// The first piece, abandoned half-way; when that has come, all others at once.
async fn assert_pieces_are_right(scene: &Arc<Scene>, image: &Arc<Image>) {
    piece(scene, image, 0, PIECE / 2).await;
    let mut pieces = JoinSet::new();
    for n in 0..N_PIECES {
        let (scene, image) = (scene.clone(), image.clone());
        pieces.spawn(async move { piece(&scene, &image, n * PIECE, PIECE).await });
    }
    while let Some(finished) = pieces.join_next().await {
        finished.unwrap();
    }
}

/// Asks from `start` to the end, and hangs up after `len` bytes.
async fn piece(scene: &Scene, image: &Image, start: usize, len: usize) {
    let layer = &image.layers[0];
    let range = format!("bytes={start}-");
    let mut response = scene.blob(&layer.digest).header("range", &range).send().await;
    assert_eq!(response.status, 206, "{range}");
    let all = layer.bytes.len();
    assert_eq!(response.header("content-range"), format!("bytes {start}-{}/{all}", all - 1));
    // The last byte of all comes with the clean end.
    if start + len == all {
        response.expect_body(&layer.bytes[start..]).await.unwrap();
        return;
    }
    let piece = response.at_least(len).await;
    assert!(piece[..len] == layer.bytes[start..start + len], "{range}");
}

async fn assert_was_fetched_once(scene: &Scene, image: &Image) {
    let layer = &image.layers[0];
    scene.get_blob(&layer.digest).await.expect_body(&layer.bytes).await.unwrap();
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
    let sent = scene.upstream.bytes_sent(&layer.digest);
    assert!(sent <= MOST as u64, "{} MiB of {} were sent", sent >> 20, layer.bytes.len() >> 20);
}
