//! The store keeps its budget, and nobody notices but the disk.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_testkit::{Upstream, patiently};
use larder_tests::Scene;
use larder_tests::larder::Larder;

const MIB: usize = 1 << 20;
const BUDGET: f64 = 10.0 * 1024.0 * 1024.0;

#[tokio::test]
async fn the_least_recently_used_goes_when_the_budget_is_full() {
    let upstream = Upstream::start().await;
    let larder = Scene::settings(&upstream, "").arguments(&["--budget", "10MiB"]).start().await;
    let scene = Scene { upstream, larder };
    let image = scene.push(50, &[3 * MIB; 6]);
    for layer in &image.layers {
        scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
        within_budget(&scene.larder).await;
    }
    let (oldest, newest) = (&image.layers[0], &image.layers[5]);
    scene.expect_blob(&newest.digest, &newest.bytes, "hit").await;
    scene.expect_blob(&oldest.digest, &oldest.bytes, "miss").await;
    assert!(scene.larder.metric("larder_evicted_bytes_total", &[]).await >= 6.0 * 1024.0 * 1024.0);
}

#[tokio::test]
async fn a_blob_that_is_being_read_stays_and_another_goes() {
    let upstream = Upstream::start().await;
    let larder = Scene::settings(&upstream, "").arguments(&["--budget", "40MiB"]).start().await;
    let scene = Scene { upstream, larder };
    let image = scene.push(51, &[30 * MIB, 30 * MIB]);
    let (first, second) = (&image.layers[0], &image.layers[1]);
    scene.expect_blob(&first.digest, &first.bytes, "miss").await;
    let mut reading = scene.get_blob(&first.digest).await;
    let begun = reading.at_least(1).await;
    scene.expect_blob(&second.digest, &second.bytes, "miss").await;
    patiently("the second one is evicted", async {
        while scene.stored_blobs().contains(&second.digest.hex()) {
            tokio::task::yield_now().await;
        }
    })
    .await;
    reading.expect_body(&first.bytes[begun.len()..]).await.unwrap();
    assert_eq!(scene.get_blob(&first.digest).await.outcome(), "hit");
}

async fn within_budget(larder: &Larder) {
    patiently("the store is within its budget", async {
        while larder.metric("larder_store_bytes", &[]).await > BUDGET {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
