//! Callers with rights of their own, and the upstream that knows them.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use larder_core::Digest;
use larder_testkit::{Accounts, Content, Image, Login, Upstream};
use larder_tests::http::{Request, Response};
use larder_tests::scene::HOST;
use larder_tests::{Larder, Scene, http};

pub(crate) const PRIVATE: &str = "team/app";
pub(crate) const PUBLIC: &str = "public/app";
/// What `mallory` may read, and `alice` may not.
pub(crate) const OTHER: &str = "mallory/app";

pub(crate) const ALICE: (&str, &str) = ("alice", "alices-own-secret");
pub(crate) const BOB: (&str, &str) = ("bob", "bobs-own-secret");
pub(crate) const MALLORY: (&str, &str) = ("mallory", "mallorys-own-secret");

/// The program before an upstream where `alice` and `bob` may read [`PRIVATE`], `mallory` may read
/// [`OTHER`], and everybody [`PUBLIC`].
pub(crate) struct World {
    pub(crate) upstream: Upstream,
    pub(crate) larder: Larder,
    pub(crate) by_token: bool,
}

impl World {
    pub(crate) async fn new(by_token: bool, config: &str) -> Self {
        let upstream = Upstream::start().await;
        upstream.require(login(by_token));
        let config = format!("{config}deadline = \"10s\"\n");
        let larder =
            Scene::settings(&upstream, &config).arguments(&["--log-level", "trace"]).start().await;
        Self { upstream, larder, by_token }
    }

    /// From now on, these may read [`PRIVATE`], by their passwords.
    pub(crate) fn allow(&self, who: &[(&str, &str)]) {
        self.upstream.require(login_of(false, who));
    }

    pub(crate) fn push(&self, repository: &str, seed: u64, sizes: &[usize]) -> Image {
        let image = Image::random(seed, sizes);
        self.upstream.push(repository, "1", &image);
        image
    }

    /// What a caller shows for `repository`, as upstream wants it.
    pub(crate) fn as_caller(&self, who: (&str, &str), repository: &str) -> String {
        match self.by_token {
            false => basic(who),
            true => format!("Bearer {}", self.upstream.token(&basic(who), repository)),
        }
    }

    pub(crate) fn request(&self, method: &str, path: &str, shown: &str) -> Request {
        let request = http::request(method, &self.larder.url(path));
        if shown.is_empty() { request } else { request.header("authorization", shown) }
    }

    pub(crate) async fn send(&self, method: &str, path: &str, shown: &str) -> Response {
        self.request(method, path, shown).send().await
    }

    /// How many read along with the one fill that is under way.
    pub(crate) async fn n_readers(&self) -> u64 {
        let fills = self.larder.admin("/api/v1/fills").await.json().await;
        fills["fills"][0]["readers"].as_u64().unwrap()
    }

    pub(crate) async fn expect_image(&self, who: (&str, &str), repository: &str, image: &Image) {
        let shown = self.as_caller(who, repository);
        for (path, content) in content(repository, image) {
            let answer = self.send("GET", &path, &shown).await;
            assert_eq!(answer.status, 200, "{path}");
            answer.expect_body(&content.bytes).await.unwrap();
        }
    }
}

/// Where each part of an image is.
pub(crate) fn content<'i>(repository: &str, image: &'i Image) -> Vec<(String, &'i Content)> {
    let manifests = ["1".to_owned(), image.digest().to_string()];
    let manifests = manifests.map(|it| (manifest(repository, &it), &image.manifest));
    let blobs = image.blobs().map(|it| (blob(repository, &it.digest), it));
    manifests.into_iter().chain(blobs).collect()
}

/// Every path that tells something of an image.
pub(crate) fn everything(repository: &str, image: &Image) -> Vec<String> {
    let content = content(repository, image).into_iter().map(|(path, _)| path);
    let tags = format!("/v2/{HOST}/{repository}/tags/list");
    let referrers = format!("/v2/{HOST}/{repository}/referrers/{}", image.digest());
    content.chain([tags, referrers]).collect()
}

pub(crate) async fn assert_refused(answer: Response, what: &str) {
    assert!(matches!(answer.status, 401 | 403), "{what}: {}", answer.status);
    assert_eq!(answer.outcome(), "", "{what}");
    assert!(!answer.has_header("docker-content-digest"), "{what}");
}

pub(crate) fn login(by_token: bool) -> Login {
    login_of(by_token, &[ALICE, BOB])
}

pub(crate) fn login_of(by_token: bool, who: &[(&str, &str)]) -> Login {
    let account = |(name, word): &(&str, &str), repository: &str| {
        ((*name).to_owned(), (*word).to_owned(), vec![repository.to_owned()])
    };
    let accounts = who.iter().map(|it| account(it, PRIVATE)).chain([account(&MALLORY, OTHER)]);
    let public = vec![PUBLIC.to_owned()];
    Login::Each(Accounts { by_token, accounts: accounts.collect(), public })
}

pub(crate) fn basic((name, word): (&str, &str)) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{name}:{word}")))
}

pub(crate) fn manifest(repository: &str, reference: &str) -> String {
    format!("/v2/{HOST}/{repository}/manifests/{reference}")
}

pub(crate) fn blob(repository: &str, digest: &Digest) -> String {
    format!("/v2/{HOST}/{repository}/blobs/{digest}")
}
