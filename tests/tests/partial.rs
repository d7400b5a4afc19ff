//! What has come of a blob is not fetched again.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::os::unix::fs::FileExt as _;

use larder_core::Digest;
use larder_testkit::{Fault, Gate, Image, On, Upstream, patiently};
use larder_tests::Scene;
use larder_tests::larder::Larder;
use larder_tests::scene::{REPOSITORY, blob_path};
use larder_tests::scratch::files_below;

const MIB: usize = 1 << 20;
const SIZE: usize = 24 * MIB;
/// Upstream stops here, so that nothing more comes whatever the timing.
const STOP: u64 = 8 << 20;

#[tokio::test]
async fn a_fill_goes_on_after_a_restart_from_where_it_was_stopped() {
    let (upstream, larder, image) = stopped_in_mid_fill(40).await;
    let digest = &image.layers[0].digest;
    assert_eq!(kept(&larder).len(), 1);
    let response = larder.get(&blob_path(digest)).await;
    response.expect_body(&image.layers[0].bytes).await.unwrap();
    let range = format!("bytes={STOP}-");
    assert_eq!(upstream.count(|it| it.header("range") == Some(&range)), 1);
    assert_eq!(upstream.bytes_sent(digest), SIZE as u64);
    assert!(kept(&larder).is_empty());
    assert_eq!(larder.metric("larder_store_bytes", &[]).await, SIZE as f64);
}

#[tokio::test]
async fn a_beginning_counts_as_stored_bytes() {
    let (_upstream, larder, _) = stopped_in_mid_fill(41).await;
    assert_eq!(larder.metric("larder_store_bytes", &[]).await, STOP as f64);
}

#[tokio::test]
async fn a_beginning_that_has_changed_on_disk_is_fetched_again() {
    let (upstream, larder, image) = stopped_in_mid_fill(42).await;
    let file = std::fs::File::options().write(true).open(&kept(&larder)[0]).unwrap();
    file.write_all_at(&[!image.layers[0].bytes[1000]], 1000).unwrap();
    let response = larder.get(&blob_path(&image.layers[0].digest)).await;
    response.expect_body(&image.layers[0].bytes).await.unwrap();
    assert_eq!(upstream.count(|it| it.header("range").is_some()), 0);
}

#[tokio::test]
async fn a_fill_with_much_to_go_that_nobody_waits_for_is_given_up_and_kept() {
    let scene = Scene::new().await;
    let image = scene.push(43, &[1100 * MIB]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    scene.upstream.fault(On::digest(&layer.digest).times(1), Fault::WaitAfter(STOP, gate.clone()));
    let mut client = scene.get_blob(&layer.digest).await;
    client.at_least(MIB).await;
    gate.reached(1).await;
    drop(client);
    gate.open();
    scene.larder.logged(&["nobody waits for"]).await;
    patiently("the beginning is kept", async {
        while scene.larder.metric("larder_fills_in_flight", &[]).await > 0.0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(kept(&scene.larder).len(), 1);
    scene.get_blob(&layer.digest).await.expect_body(&layer.bytes).await.unwrap();
    assert_eq!(scene.upstream.count(|it| it.header("range").is_some()), 1);
}

/// A program that was stopped when it had the first [`STOP`] bytes of a layer, and started again.
async fn stopped_in_mid_fill(seed: u64) -> (Upstream, Larder, Image) {
    let upstream = Upstream::start().await;
    let image = Image::random(seed, &[SIZE]);
    upstream.push(REPOSITORY, "1", &image);
    let digest: &Digest = &image.layers[0].digest;
    let gate = Gate::closed();
    upstream.fault(On::digest(digest).times(1), Fault::WaitAfter(STOP, gate.clone()));
    let larder = Scene::settings(&upstream, "").start().await;
    let mut client = larder.get(&blob_path(digest)).await;
    // All that has come but the byte that is kept back.
    client.at_least(usize::try_from(STOP).unwrap() - 1).await;
    drop(client);
    larder.terminate();
    let (ended, settings) = larder.wait().await;
    ended.expect("the program stops");
    (upstream, settings.start().await, image)
}

fn kept(larder: &Larder) -> Vec<std::path::PathBuf> {
    files_below(&larder.data().join("partial"))
}
