//! A full disk costs the caching, never a client its bytes.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;

use larder_testkit::{Image, Upstream};
use larder_tests::scene::{REPOSITORY, blob_path, manifest_path};
use larder_tests::{Larder, Scene};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_blob_that_does_not_fit_reaches_its_clients_all_the_same() {
    let (upstream, larder) = on_a_disk_of(24 * MIB).await;
    let image = Image::random(1, &[16 * MIB, 16 * MIB, 100]);
    upstream.push(REPOSITORY, "1", &image);
    let [fits, too_large, small] = &image.layers[..] else { unreachable!() };
    larder.get(&blob_path(&fits.digest)).await.expect_body(&fits.bytes).await.unwrap();

    // Both read along with one fill until the disk is full, and then each goes on by itself.
    let path = blob_path(&too_large.digest);
    let (one, other) = tokio::join!(larder.get(&path), larder.get(&path));
    let (one, other) =
        tokio::join!(one.expect_body(&too_large.bytes), other.expect_body(&too_large.bytes));
    one.unwrap();
    other.unwrap();
    assert!(larder.metric("larder_store_errors_total", &[]).await >= 1.0);

    // What is stored is served, what is small is still had, and nothing is left half done.
    let hit = larder.get(&blob_path(&fits.digest)).await;
    assert_eq!(hit.outcome(), "hit");
    hit.expect_body(&fits.bytes).await.unwrap();
    larder.get(&blob_path(&small.digest)).await.expect_body(&small.bytes).await.unwrap();
    let manifest = larder.get(&manifest_path("1")).await;
    manifest.expect_body(&image.manifest.bytes).await.unwrap();
}

#[tokio::test]
async fn a_disk_without_a_free_byte_lets_every_request_through() {
    let (upstream, larder) = on_a_disk_of(8 * MIB).await;
    let image = Image::random(2, &[3 * MIB, 100]);
    upstream.push(REPOSITORY, "1", &image);
    // Until it does not fit: the end of the disk is then used up too.
    let filler = larder.data().join("filler");
    assert!(fs::write(&filler, vec![1; 16 * MIB]).is_err());
    for _ in 0..2 {
        let manifest = larder.get(&manifest_path("1")).await;
        manifest.expect_body(&image.manifest.bytes).await.unwrap();
        for layer in &image.layers {
            let blob = larder.get(&blob_path(&layer.digest)).await;
            blob.expect_body(&layer.bytes).await.unwrap();
        }
    }
    // And when there is room again, it is used.
    fs::remove_file(filler).unwrap();
    let layer = &image.layers[0];
    let stored = async {
        loop {
            let blob = larder.get(&blob_path(&layer.digest)).await;
            let outcome = blob.outcome().to_owned();
            blob.expect_body(&layer.bytes).await.unwrap();
            if outcome == "hit" {
                break;
            }
        }
    };
    larder_testkit::patiently("the blob is stored", stored).await;
}

/// The program, with its data on a disk of so many bytes.
async fn on_a_disk_of(size: usize) -> (Upstream, Larder) {
    let upstream = Upstream::start().await;
    let settings = Scene::settings(&upstream, "");
    settings.scratch().small_disk("data", size as u64);
    let larder = settings.start().await;
    (upstream, larder)
}
