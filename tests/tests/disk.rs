//! A full disk costs the caching, never a client its bytes.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::path::Path;

use larder_testkit::{Image, Upstream, patiently};
use larder_tests::scene::{REPOSITORY, blob_path, manifest_path};
use larder_tests::scratch::files_below;
use larder_tests::{Larder, Scene};
use rustix::fs::{Advice, fadvise};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_blob_larger_than_the_disk_reaches_its_clients_all_the_same() {
    let (upstream, larder) = on_a_disk_of(24 * MIB).await;
    let image = Image::random(1, &[32 * MIB, 100]);
    upstream.push(REPOSITORY, "1", &image);
    let [too_large, small] = &image.layers[..] else { unreachable!() };

    // Both read along with one fill until the disk is full, and then each goes on by itself.
    let path = blob_path(&too_large.digest);
    let (one, other) = tokio::join!(larder.get(&path), larder.get(&path));
    let (one, other) =
        tokio::join!(one.expect_body(&too_large.bytes), other.expect_body(&too_large.bytes));
    one.unwrap();
    other.unwrap();
    assert!(larder.metric("larder_store_errors_total", &[]).await >= 1.0);

    // What is small is still had, and nothing is left half done.
    larder.get(&blob_path(&small.digest)).await.expect_body(&small.bytes).await.unwrap();
    let manifest = larder.get(&manifest_path("1")).await;
    manifest.expect_body(&image.manifest.bytes).await.unwrap();
}

#[tokio::test]
async fn no_pull_fails_while_the_disk_is_full_and_storing_goes_on_when_it_is_not() {
    let (upstream, larder) = on_a_disk_of(24 * MIB).await;
    let images: Vec<Image> = (0..8).map(|seed| Image::random(seed, &[2 * MIB, 3 * MIB])).collect();
    for (n, image) in images.iter().enumerate() {
        upstream.push(REPOSITORY, &n.to_string(), image);
    }
    let filler = larder.data().join("filler");
    let pull = async |client: usize| {
        for (n, image) in images.iter().enumerate().cycle().skip(client).take(images.len()) {
            let manifest = larder.get(&manifest_path(&n.to_string())).await;
            manifest.expect_body(&image.manifest.bytes).await.unwrap();
            for blob in image.blobs() {
                let body = larder.get(&blob_path(&blob.digest)).await;
                body.expect_body(&blob.bytes).await.unwrap();
            }
            // Somebody else takes all that is left of the disk, and lets go of it again.
            match client {
                0 if n % 2 == 0 => assert!(fs::write(&filler, vec![1; 32 * MIB]).is_err()),
                0 => fs::remove_file(&filler).unwrap(),
                _ => {}
            }
        }
    };
    futures_util::future::join_all((0..32).map(pull)).await;
    becomes_a_hit(&larder, &images[0]).await;
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
    becomes_a_hit(&larder, &image).await;
}

#[tokio::test]
async fn a_disk_that_breaks_costs_no_pull() {
    let upstream = Upstream::start().await;
    let settings = Scene::settings(&upstream, "");
    let disk = settings.scratch().breakable_disk("data", 96 * MIB as u64);
    let larder = settings.start().await;
    let images = push_images(&upstream, 6);
    for (n, image) in images.iter().enumerate().take(3) {
        pull(&larder, n, image).await;
    }
    // What is in memory could still be read.
    forget_pages(&disk.path);
    disk.break_after(MIB as u64);
    let pull_all = async |client: usize| {
        for n in 0..images.len() {
            let n = (client + n) % images.len();
            pull(&larder, n, &images[n]).await;
        }
    };
    futures_util::future::join_all((0..32).map(pull_all)).await;
    assert!(larder.metric("larder_store_errors_total", &[]).await >= 1.0);
    assert!(upstream.n_fetches(&images[0].layers[0].digest) > 1, "nothing was broken");
}

#[tokio::test]
async fn a_disk_that_turns_read_only_costs_no_pull_and_is_used_again_when_it_does_not() {
    let upstream = Upstream::start().await;
    let settings = Scene::settings(&upstream, "");
    let disk = settings.scratch().lockable_disk("data", 160 * MIB as u64);
    let larder = settings.start().await;
    let images = push_images(&upstream, 8);
    // Half of them are stored.
    for (n, image) in images.iter().enumerate().take(4) {
        pull(&larder, n, image).await;
    }
    assert_eq!(reason(&larder).await, None);

    let pull_all = async |client: usize| {
        for n in 0..images.len() {
            // Some have begun by then, and others have not.
            if (client, n) == (0, 2) {
                disk.set_read_only(true);
            }
            let n = (client + n) % images.len();
            pull(&larder, n, &images[n]).await;
        }
    };
    futures_util::future::join_all((0..32).map(pull_all)).await;
    let new = expect_unstored(&upstream, &larder).await;
    told(&larder, "could not be stored").await;
    assert_eq!(larder.admin("/readyz").await.status, 200);

    disk.set_read_only(false);
    becomes_a_hit(&larder, &new).await;
    patiently("it says nothing any more", async { while reason(&larder).await.is_some() {} }).await;
}

#[tokio::test]
async fn a_file_system_that_the_kernel_has_made_read_only_costs_no_pull() {
    let upstream = Upstream::start().await;
    let settings = Scene::settings(&upstream, "");
    let disk = settings.scratch().breakable_disk("data", 96 * MIB as u64);
    let larder = settings.start().await;
    let images = push_images(&upstream, 8);
    for (n, image) in images.iter().enumerate().take(4) {
        pull(&larder, n, image).await;
    }
    let pull_all = async |client: usize| {
        for n in 0..images.len() {
            // The index cannot be written from then on, either.
            if (client, n) == (0, 2) {
                disk.turn_read_only();
            }
            let n = (client + n) % images.len();
            pull(&larder, n, &images[n]).await;
        }
    };
    futures_util::future::join_all((0..32).map(pull_all)).await;
    expect_unstored(&upstream, &larder).await;
    told(&larder, "could not be stored").await;

    // Whoever repairs it has to stop the program for that.
    larder.terminate();
    let (_, settings) = larder.wait().await;
    disk.repair();
    let larder = settings.start().await;
    for (n, image) in images.iter().enumerate() {
        pull(&larder, n, image).await;
        becomes_a_hit(&larder, image).await;
    }
}

/// Images with a few megabytes, under the tags 0, 1 and so on.
fn push_images(upstream: &Upstream, n: u64) -> Vec<Image> {
    let image = |seed| {
        let image = Image::random(seed, &[2 * MIB, 3 * MIB]);
        upstream.push(REPOSITORY, &seed.to_string(), &image);
        image
    };
    (0..n).map(image).collect()
}

/// Pulls an image, whole and right.
async fn pull(larder: &Larder, tag: impl ToString, image: &Image) {
    let manifest = larder.get(&manifest_path(&tag.to_string())).await;
    manifest.expect_body(&image.manifest.bytes).await.unwrap();
    for blob in image.blobs() {
        let body = larder.get(&blob_path(&blob.digest)).await;
        body.expect_body(&blob.bytes).await.unwrap();
    }
}

/// An image that nobody has pulled is, twice, and comes from upstream each time.
async fn expect_unstored(upstream: &Upstream, larder: &Larder) -> Image {
    let image = Image::random(99, &[2 * MIB]);
    upstream.push(REPOSITORY, "new", &image);
    for _ in 0..2 {
        pull(larder, "new", &image).await;
    }
    assert_eq!(upstream.n_fetches(&image.layers[0].digest), 2, "it was stored");
    assert!(larder.metric("larder_store_errors_total", &[]).await >= 1.0);
    image
}

/// Asks for an image's first layer until it is stored.
async fn becomes_a_hit(larder: &Larder, image: &Image) {
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
    patiently("the blob is stored", stored).await;
}

/// What it says to who watches it is wrong with its store, if anything is.
async fn reason(larder: &Larder) -> Option<String> {
    let ready = larder.admin("/readyz").await.json().await;
    ready["components"]["store"]["reason"].as_str().map(str::to_owned)
}

/// Returns once it says so.
async fn told(larder: &Larder, what: &str) {
    let is_told = async || reason(larder).await.is_some_and(|reason| reason.contains(what));
    patiently("it is told", async { while !is_told().await {} }).await;
}

/// Has everything below a folder written to its disk, and read from there again.
fn forget_pages(folder: &Path) {
    for path in files_below(folder) {
        let file = fs::File::open(path).unwrap();
        file.sync_all().unwrap();
        fadvise(&file, 0, None, Advice::DontNeed).unwrap();
    }
}

/// The program, with its data on a disk of so many bytes.
async fn on_a_disk_of(size: usize) -> (Upstream, Larder) {
    let upstream = Upstream::start().await;
    let settings = Scene::settings(&upstream, "");
    settings.scratch().small_disk("data", size as u64);
    let larder = settings.start().await;
    (upstream, larder)
}

#[tokio::test]
async fn others_go_before_a_blob_is_not_stored_for_want_of_space() {
    let (upstream, larder) = on_a_disk_of(24 * MIB).await;
    let image = Image::random(3, &[16 * MIB, 16 * MIB]);
    upstream.push(REPOSITORY, "1", &image);
    for layer in &image.layers {
        let blob = larder.get(&blob_path(&layer.digest)).await;
        blob.expect_body(&layer.bytes).await.unwrap();
    }
    for (layer, outcome) in image.layers.iter().rev().zip(["hit", "miss"]) {
        let blob = larder.get(&blob_path(&layer.digest)).await;
        assert_eq!(blob.outcome(), outcome);
        blob.expect_body(&layer.bytes).await.unwrap();
    }
    assert_eq!(larder.metric("larder_store_errors_total", &[]).await, 0.0);
}
