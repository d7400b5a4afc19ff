//! Mirrors of mirrors: the program behind itself, before and behind docker-registry as a cache.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;

use larder_testkit::{Fault, Image, On, Upstream};
use larder_tests::scene::{HOST, REPOSITORY, blob_path, manifest_path};
use larder_tests::{Copier, DockerRegistry, Larder};
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;
const SIZE: usize = 16 * MIB;

/// `near` asks `far`, which asks `origin`.
struct Chain {
    origin: Upstream,
    far: Larder,
    near: Larder,
    image: Image,
}

impl Chain {
    async fn new(seed: u64) -> Self {
        let origin = Upstream::start().await;
        let image = Image::random(seed, &[SIZE, 1000]);
        origin.push(REPOSITORY, "1", &image);
        let far = default_of(&origin.url()).await;
        let config =
            format!("[upstreams.\"{HOST}\"]\nurls = [\"{}\"]\nfreshness = \"0s\"", far.url(""));
        let near = Larder::settings().config(&config).start().await;
        Self { origin, far, near, image }
    }

    async fn expect_image(&self) {
        let manifest = self.near.get(&manifest_path("1")).await;
        manifest.expect_body(&self.image.manifest.bytes).await.unwrap();
        for blob in self.image.blobs() {
            let response = self.near.get(&blob_path(&blob.digest)).await;
            assert_eq!(response.status, 200);
            response.expect_body(&blob.bytes).await.unwrap();
        }
    }
}

/// The program before `url`, which is meant by requests that name no upstream.
async fn default_of(url: &str) -> Larder {
    let flags = ["--default-upstream", HOST];
    Larder::settings().upstream(HOST, url).arguments(&flags).start().await
}

#[tokio::test]
async fn two_in_a_row_fetch_each_byte_from_the_origin_once() {
    let chain = Chain::new(400).await;
    chain.expect_image().await;
    chain.expect_image().await;
    for blob in chain.image.blobs() {
        assert_eq!(chain.origin.n_fetches(&blob.digest), 1);
        assert_eq!(chain.origin.bytes_sent(&blob.digest), blob.bytes.len() as u64);
    }
    let sent_by_far = chain.far.metric("larder_client_bytes_total", &[]).await;
    let image: usize = chain.image.blobs().map(|blob| blob.bytes.len()).sum();
    // Beside the blobs, manifests and their like.
    assert!((image as f64..image as f64 + 10_000.0).contains(&sent_by_far), "{sent_by_far}");
}

#[tokio::test]
async fn many_clients_of_two_in_a_row_are_one_client_of_the_origin() {
    let chain = Arc::new(Chain::new(401).await);
    let mut clients = JoinSet::new();
    for _ in 0..16 {
        let chain = chain.clone();
        clients.spawn(async move { chain.expect_image().await });
    }
    while let Some(finished) = clients.join_next().await {
        finished.unwrap();
    }
    for blob in chain.image.blobs() {
        assert_eq!(chain.origin.n_fetches(&blob.digest), 1);
    }
}

#[tokio::test]
async fn ranges_pass_through_two_in_a_row() {
    let chain = Chain::new(402).await;
    let layer = &chain.image.layers[0];
    let range = async |range: &str| {
        let request = chain.near.request(&blob_path(&layer.digest)).header("range", range);
        let response = request.send().await;
        assert_eq!(response.status, 206, "{range}");
        response.bytes().await.unwrap()
    };
    assert_eq!(range("bytes=1000-1999").await, layer.bytes[1000..2000]);
    assert_eq!(range("bytes=-5").await, layer.bytes[SIZE - 5..]);
    let parts = range("bytes=10-19,5000000-5000009").await;
    let holds = |part: &[u8]| parts.windows(part.len()).any(|window| window == part);
    assert!(holds(&layer.bytes[10..20]) && holds(&layer.bytes[5_000_000..5_000_010]));
    chain.expect_image().await;
    assert_eq!(chain.origin.bytes_sent(&layer.digest), SIZE as u64);
}

#[tokio::test]
async fn a_body_that_the_origin_cuts_is_gone_on_with_once_and_by_the_first_in_the_row() {
    let chain = Chain::new(403).await;
    let layer = &chain.image.layers[0];
    let cut = Fault::CutAfter(3 * MIB as u64);
    chain.origin.fault(On::digest(&layer.digest).get().times(1), cut);
    chain.expect_image().await;
    assert_eq!(chain.origin.n_fetches(&layer.digest), 2);
    assert_eq!(chain.origin.bytes_sent(&layer.digest), SIZE as u64);
    let labels = [("kind", "blob"), ("outcome", "miss")];
    let asked = chain.far.metric("larder_requests_total", &labels).await;
    assert_eq!(asked, chain.image.blobs().count() as f64);
}

#[tokio::test]
async fn wrong_bytes_of_the_origin_end_nowhere_cleanly() {
    let chain = Chain::new(404).await;
    let layer = &chain.image.layers[0];
    chain.origin.fault(On::digest(&layer.digest), Fault::Corrupt(SIZE as u64 / 2));
    let response = chain.near.get(&blob_path(&layer.digest)).await;
    let status = response.status;
    let ended = response.bytes().await;
    assert!(ended.is_err() || (500..600).contains(&status), "{status}");
    chain.origin.heal();
    chain.expect_image().await;
}

#[tokio::test]
async fn the_second_in_the_row_goes_on_when_the_first_and_the_origin_are_gone() {
    let mut chain = Chain::new(405).await;
    chain.expect_image().await;
    chain.origin.stop().await;
    chain.expect_image().await;
    let Chain { far, near, image, .. } = chain;
    far.kill();
    for (path, content) in [
        (manifest_path("1"), &image.manifest),
        (blob_path(&image.layers[0].digest), &image.layers[0]),
    ] {
        near.get(&path).await.expect_body(&content.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn a_docker_registry_cache_serves_as_an_upstream() {
    let (origin, image) = docker_registry_with_image(406).await;
    let cache = DockerRegistry::start_before(&origin.url()).await;
    let larder = Larder::with_upstream(HOST, &cache.url()).await;
    let reference = format!("{}/{HOST}/{REPOSITORY}:1", larder.host);
    expect_copy(&reference, &image).await;
    expect_copy(&reference, &image).await;
    assert_each_blob_was_asked_for(&cache, &image, 1).await;
}

#[tokio::test]
async fn the_program_serves_a_docker_registry_cache_as_its_upstream() {
    let (origin, image) = docker_registry_with_image(407).await;
    let larder = default_of(&origin.url()).await;
    let cache = DockerRegistry::start_before(&larder.url("")).await;
    let reference = format!("{}/{REPOSITORY}:1", cache.host);
    expect_copy(&reference, &image).await;
    expect_copy(&reference, &image).await;
    // It asks for blobs more than once while it has none; the origin does not notice.
    assert_each_blob_was_asked_for(&origin, &image, 1).await;
}

async fn docker_registry_with_image(seed: u64) -> (DockerRegistry, Image) {
    let origin = DockerRegistry::start().await;
    let image = Image::from_seed(seed).layers(&[4 * MIB, 300]).unpackable().build();
    origin.push(REPOSITORY, "1", &image).await;
    (origin, image)
}

async fn expect_copy(reference: &str, image: &Image) {
    let copied = Copier::Skopeo.copy(reference).await.unwrap();
    for content in image.blobs().chain([&image.manifest]) {
        assert!(copied.contains(&content.digest), "{copied:?}");
    }
}

async fn assert_each_blob_was_asked_for(registry: &DockerRegistry, image: &Image, n: usize) {
    let requests = registry.requests().await;
    for blob in image.blobs() {
        let digest = blob.digest.to_string();
        let fetches =
            requests.iter().filter(|it| it.method == "GET" && it.target.contains(&digest));
        assert_eq!(fetches.count(), n, "{digest}");
    }
}
