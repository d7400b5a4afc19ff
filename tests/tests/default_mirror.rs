//! One `_default` entry of containerd's makes the program the mirror of every registry.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_core::Digest;
use larder_testkit::{Image, Upstream};
use larder_tests::{Containerd, Generation, Larder};

const HOSTS: [&str; 3] = ["one.test", "two.test", "three.test:5000"];

#[tokio::test]
async fn containerd_1_6_pulls_from_every_registry_through_one_mirror() {
    pull_from_every_registry(Generation::V1_6).await;
}

#[tokio::test]
async fn containerd_1_7_pulls_from_every_registry_through_one_mirror() {
    pull_from_every_registry(Generation::V1_7).await;
}

#[tokio::test]
async fn containerd_2_1_pulls_from_every_registry_through_one_mirror() {
    pull_from_every_registry(Generation::V2_1 { fetch_buffer: 0 }).await;
}

#[tokio::test]
async fn containerd_2_1_in_pieces_pulls_from_every_registry_through_one_mirror() {
    pull_from_every_registry(Generation::V2_1 { fetch_buffer: 1 << 20 }).await;
}

/// The same name is another image in each registry; only `ns` says which is meant.
async fn pull_from_every_registry(generation: Generation) {
    if !generation.suite().has("containerd") {
        return;
    }
    let mut settings = Larder::settings();
    let mut registries = Vec::new();
    for (n, host) in HOSTS.into_iter().enumerate() {
        let upstream = Upstream::start().await;
        let image = Image::from_seed(300 + n as u64).layers(&[2 << 20, 100]).unpackable().build();
        upstream.push("team/app", "1", &image);
        settings = settings.upstream(host, &upstream.url());
        registries.push((host, upstream, image));
    }
    let larder = settings.start().await;
    let containerd = Containerd::start_as(generation).await;
    containerd.mirror_everything(&larder.url(""));

    for (host, upstream, image) in &registries {
        let reference = format!("{host}/team/app:1");
        containerd.pull(&reference).await.unwrap();
        let files = containerd.files(&reference).await;
        let expected: Vec<Digest> =
            image.files.iter().map(|(_, bytes)| Digest::sha256_of(bytes)).collect();
        assert!(files.into_values().eq(expected), "{host}");
        let asked: Vec<usize> =
            image.blobs().map(|blob| upstream.n_fetches(&blob.digest)).collect();
        assert_eq!(asked, [1, 1, 1], "{host}");
    }
}
