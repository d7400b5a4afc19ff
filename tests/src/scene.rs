//! The usual scene: the program before one upstream that can be made to fail.

use larder_core::Digest;
use larder_testkit::{Image, Upstream};

use crate::http::{BodyError, Request, Response};
use crate::larder::{Larder, Settings};
use crate::scratch::files_below;

/// What clients call the upstream. Nobody could reach it by this name.
pub const HOST: &str = "registry.test";

/// The repository that the tests push to.
pub const REPOSITORY: &str = "team/app";

/// The program and its upstream.
#[derive(Debug)]
pub struct Scene {
    /// The upstream, which clients call [`HOST`].
    pub upstream: Upstream,
    /// The program.
    pub larder: Larder,
}

impl Scene {
    /// Both, empty.
    pub async fn new() -> Self {
        Self::with("").await
    }

    /// Both, empty, with these settings for the upstream (TOML).
    pub async fn with(config: &str) -> Self {
        let upstream = Upstream::start().await;
        let larder = Self::settings(&upstream, config).start().await;
        Self { upstream, larder }
    }

    /// How the program is started before `upstream`, with these settings for it (TOML).
    pub fn settings(upstream: &Upstream, config: &str) -> Settings {
        let config = format!("[upstreams.\"{HOST}\"]\nurls = [\"{}\"]\n{config}", upstream.url());
        Larder::settings().config(&config)
    }

    /// An image with layers of these sizes, under [`REPOSITORY`] and tag `1`.
    pub fn push(&self, seed: u64, sizes: &[usize]) -> Image {
        let image = Image::random(seed, sizes);
        self.upstream.push(REPOSITORY, "1", &image);
        image
    }

    /// Begins a GET of a blob.
    pub fn blob(&self, digest: &Digest) -> Request {
        self.larder.request(&blob_path(digest))
    }

    /// GETs a blob.
    pub async fn get_blob(&self, digest: &Digest) -> Response {
        self.blob(digest).send().await
    }

    /// GETs the manifest that `reference`, a tag or digest, names.
    pub async fn get_manifest(&self, reference: &str) -> Response {
        self.larder.get(&manifest_path(reference)).await
    }

    /// Asserts that a blob can be had, whole, and how it came about.
    ///
    /// # Panics
    ///
    /// If not.
    pub async fn expect_blob(&self, digest: &Digest, expected: &[u8], outcome: &str) {
        let response = self.get_blob(digest).await;
        assert_eq!((response.status, response.outcome()), (200, outcome));
        response.expect_body(expected).await.unwrap();
    }

    /// Asserts that what answered failed in a way that no client takes for success: by its status,
    /// or by a body that broke off.
    ///
    /// # Panics
    ///
    /// If not.
    pub async fn expect_failure(&self, response: Response) {
        let status = response.status;
        match response.bytes().await {
            Err(BodyError::Aborted { .. }) => {}
            Ok(_) => assert!((500..600).contains(&status), "{status} with a clean end"),
            Err(other) => panic!("{status}: {other:?}"),
        }
    }

    /// The names of the blobs that are stored.
    ///
    /// # Panics
    ///
    /// If a file has no name.
    pub fn stored_blobs(&self) -> Vec<String> {
        let files = files_below(&self.larder.data().join("blobs"));
        files.iter().map(|path| path.file_name().unwrap().to_str().unwrap().to_owned()).collect()
    }
}

/// Where a blob is, by the host in the path.
pub fn blob_path(digest: &Digest) -> String {
    format!("/v2/{HOST}/{REPOSITORY}/blobs/{digest}")
}

/// Where a manifest is, by the host in the path.
pub fn manifest_path(reference: &str) -> String {
    format!("/v2/{HOST}/{REPOSITORY}/manifests/{reference}")
}
