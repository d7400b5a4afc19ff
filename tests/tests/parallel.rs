//! A large blob over several connections comes whole and in order.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_testkit::{Fault, Gate, On};
use larder_tests::Scene;

const MIB: usize = 1 << 20;
/// Three segments of 8 MiB and a bit.
const SIZE: usize = 25 * MIB + 17;

#[tokio::test]
async fn a_large_blob_is_fetched_in_parts_that_cover_it_once() {
    let scene = Scene::with("parallel = 4").await;
    let image = scene.push(30, &[SIZE]);
    let layer = &image.layers[0];
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 4);
    assert_eq!(scene.upstream.bytes_sent(&layer.digest), SIZE as u64);
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
}

#[tokio::test]
async fn later_parts_are_asked_for_while_the_first_one_comes() {
    let scene = Scene::with("parallel = 4").await;
    let image = scene.push(31, &[SIZE]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    scene.upstream.fault(On::digest(&layer.digest), Fault::WaitAfter(MIB as u64, gate.clone()));
    let response = scene.get_blob(&layer.digest).await;
    gate.reached(4).await;
    gate.open();
    response.expect_body(&layer.bytes).await.unwrap();
}

#[tokio::test]
async fn parts_that_break_off_are_gone_on_with() {
    let scene = Scene::with("parallel = 3").await;
    let image = scene.push(32, &[SIZE]);
    let layer = &image.layers[0];
    let cut = Fault::CutAfter(3 * MIB as u64);
    scene.upstream.fault(On::digest(&layer.digest).times(4), cut);
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    assert_eq!(scene.upstream.bytes_sent(&layer.digest), SIZE as u64);
}

#[tokio::test]
async fn an_upstream_that_ignores_ranges_is_asked_once() {
    let scene = Scene::with("parallel = 4").await;
    let image = scene.push(33, &[SIZE]);
    let layer = &image.layers[0];
    scene.upstream.fault(On::digest(&layer.digest), Fault::IgnoreRange);
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
}

#[tokio::test]
async fn a_part_with_a_wrong_byte_is_never_ended_cleanly() {
    let scene = Scene::with("parallel = 4").await;
    let image = scene.push(34, &[SIZE]);
    let layer = &image.layers[0];
    scene.upstream.fault(On::digest(&layer.digest), Fault::Corrupt(20 * MIB as u64));
    let response = scene.get_blob(&layer.digest).await;
    scene.expect_failure(response).await;
    assert!(!scene.stored_blobs().contains(&layer.digest.hex()));
}

#[tokio::test]
async fn a_small_blob_takes_one_request() {
    let scene = Scene::with("parallel = 4").await;
    let image = scene.push(35, &[3000]);
    let layer = &image.layers[0];
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
}
