//! When a tag's answer is given without asking, when it is given stale, and when not at all.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::{Duration, Instant};

use larder_testkit::blackhole::Blackhole;
use larder_testkit::{Fault, Gate, Image, On, Upstream};
use larder_tests::Scene;
use larder_tests::http::Response;
use larder_tests::scene::{HOST, REPOSITORY, manifest_path};

/// A tag is asked for again each time.
const ALWAYS_ASK: &str = "freshness = \"0s\"\n";

#[tokio::test]
async fn a_fresh_tag_is_answered_without_asking() {
    let scene = Scene::with("freshness = \"1h\"").await;
    let image = scene.push(1, &[100]);
    expect(scene.get_manifest("1").await, "miss", &image).await;
    scene.upstream.forget_requests();
    scene.push(2, &[100]);
    for _ in 0..3 {
        expect(scene.get_manifest("1").await, "hit", &image).await;
    }
    assert_eq!(scene.upstream.requests().len(), 0);
}

#[tokio::test]
async fn a_moved_tag_is_followed_when_its_freshness_has_run_out() {
    let scene = Scene::with(ALWAYS_ASK).await;
    let old = scene.push(1, &[100]);
    expect(scene.get_manifest("1").await, "miss", &old).await;
    let new = scene.push(2, &[100]);
    expect(scene.get_manifest("1").await, "miss", &new).await;
    // The old one is stored under its digest all the same.
    expect(scene.get_manifest(&old.digest().to_string()).await, "hit", &old).await;
}

#[tokio::test]
async fn a_tag_that_did_not_move_costs_one_head() {
    let scene = Scene::with(ALWAYS_ASK).await;
    let image = scene.push(1, &[100]);
    expect(scene.get_manifest("1").await, "miss", &image).await;
    scene.upstream.forget_requests();
    expect(scene.get_manifest("1").await, "hit", &image).await;
    let requests = scene.upstream.requests();
    let methods: Vec<&str> = requests.iter().map(|request| request.method.as_str()).collect();
    assert_eq!(methods, ["HEAD"]);
}

#[tokio::test]
async fn an_upstream_that_does_not_tell_digests_is_asked_for_the_manifest() {
    let scene = Scene::with(ALWAYS_ASK).await;
    scene.upstream.fault(On::manifests(), Fault::Without("docker-content-digest"));
    let old = scene.push(1, &[100]);
    expect(scene.get_manifest("1").await, "miss", &old).await;
    let head = scene.larder.head(&manifest_path("1")).await;
    assert_eq!(head.header("docker-content-digest"), old.digest().to_string());
    let new = scene.push(2, &[100]);
    expect(scene.get_manifest("1").await, "miss", &new).await;
}

#[tokio::test]
async fn a_digest_is_answered_without_asking_for_ever() {
    let mut scene = Scene::with(ALWAYS_ASK).await;
    let image = scene.push(1, &[100]);
    let digest = image.digest().to_string();
    expect(scene.get_manifest(&digest).await, "miss", &image).await;
    scene.upstream.forget_requests();
    expect(scene.get_manifest(&digest).await, "hit", &image).await;
    assert_eq!(scene.upstream.requests().len(), 0);
    scene.upstream.stop().await;
    expect(scene.get_manifest(&digest).await, "hit", &image).await;
}

#[tokio::test]
async fn a_stored_tag_is_given_stale_when_upstream_fails() {
    for fault in [
        Fault::Status(500),
        Fault::Status(503),
        Fault::TooManyRequests { retry_after: 60 },
        Fault::CutAfter(0),
    ] {
        let scene = Scene::with(ALWAYS_ASK).await;
        let image = scene.push(1, &[100]);
        expect(scene.get_manifest("1").await, "miss", &image).await;
        scene.upstream.fault(On::path(""), fault.clone());
        // A HEAD has no body that could be cut.
        scene.upstream.fault(On::path("").head(), Fault::Status(502));
        let stale = scene.get_manifest("1").await;
        stale.header("age").parse::<u64>().unwrap();
        expect(stale, "stale", &image).await;
        let head = scene.larder.head(&manifest_path("1")).await;
        assert_eq!((head.status, head.outcome()), (200, "stale"), "{fault:?}");
        assert!(scene.larder.metric("larder_requests_total", &[("outcome", "stale")]).await >= 2.0);
    }
}

#[tokio::test]
async fn a_stored_tag_is_given_stale_when_upstream_is_gone_until_it_is_back() {
    let mut scene = Scene::with(ALWAYS_ASK).await;
    let old = scene.push(1, &[100]);
    expect(scene.get_manifest("1").await, "miss", &old).await;
    scene.upstream.stop().await;
    expect(scene.get_manifest("1").await, "stale", &old).await;
    scene.upstream.resume().await;
    let new = scene.push(2, &[100]);
    // How soon it is asked again after it failed is not for this test.
    let followed = async {
        while scene.get_manifest("1").await.bytes().await.unwrap() != new.manifest.bytes {}
    };
    larder_testkit::patiently("the tag is followed again", followed).await;
}

#[tokio::test]
async fn a_silent_upstream_costs_the_first_client_the_deadline_and_others_nothing() {
    let scene = Scene::with("freshness = \"0s\"\ndeadline = \"1s\"\n").await;
    let image = scene.push(1, &[100]);
    expect(scene.get_manifest("1").await, "miss", &image).await;
    let gate = Gate::closed();
    scene.upstream.fault(On::path(""), Fault::Wait(gate.clone()));
    assert_outage_is_bounded(async || scene.get_manifest("1").await, &image).await;

    // The question goes on while stale answers are given, and its answer is taken.
    scene.upstream.heal();
    let new = scene.push(2, &[100]);
    gate.open();
    let followed = async {
        while scene.get_manifest("1").await.bytes().await.unwrap() != new.manifest.bytes {}
    };
    larder_testkit::patiently("the tag is followed again", followed).await;
}

#[tokio::test]
async fn an_unreachable_upstream_costs_the_first_client_the_deadline_and_others_nothing() {
    for hole in [Blackhole::unreachable(), Blackhole::silent()] {
        let config = "freshness = \"0s\"\ndeadline = \"1s\"\n";
        let upstream = Upstream::start().await;
        let image = Image::random(1, &[100]);
        upstream.push(REPOSITORY, "1", &image);
        let larder = Scene::settings(&upstream, config).start().await;
        expect(larder.get(&manifest_path("1")).await, "miss", &image).await;
        // The same store, before an upstream that has since gone dark.
        let larder = larder.kill().upstream(HOST, &hole.url()).start().await;
        assert_outage_is_bounded(async || larder.get(&manifest_path("1")).await, &image).await;
    }
}

#[tokio::test]
async fn a_tag_that_upstream_deleted_is_gone_here() {
    let scene = Scene::with(ALWAYS_ASK).await;
    let image = scene.push(1, &[100]);
    expect(scene.get_manifest("1").await, "miss", &image).await;
    scene.upstream.untag(REPOSITORY, "1");
    let gone = scene.get_manifest("1").await;
    assert_eq!(gone.status, 404);
    assert_eq!(gone.error_code().await, "MANIFEST_UNKNOWN");
}

#[tokio::test]
async fn a_tag_that_upstream_deleted_is_served_where_that_is_wanted() {
    let scene = Scene::with("freshness = \"0s\"\nserve_deleted = true\n").await;
    let image = scene.push(1, &[100]);
    expect(scene.get_manifest("1").await, "miss", &image).await;
    scene.upstream.untag(REPOSITORY, "1");
    let kept = scene.get_manifest("1").await;
    assert_eq!((kept.status, kept.outcome()), (200, "stale"));
    kept.expect_body(&image.manifest.bytes).await.unwrap();
    assert_eq!(scene.get_manifest("never").await.status, 404);
}

#[tokio::test]
async fn an_image_that_upstream_refuses_is_not_found_here() {
    for status in [401, 403] {
        let scene = Scene::with(ALWAYS_ASK).await;
        scene.push(1, &[100]);
        scene.upstream.fault(On::path(""), Fault::Status(status));
        let refused = scene.get_manifest("1").await;
        assert_eq!(refused.status, 404, "upstream says {status}");
        refused.error_code().await;
    }
}

#[tokio::test]
async fn a_head_tells_what_a_get_would_give() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[100]);
    for outcome in ["miss", "hit"] {
        let head = scene.larder.head(&manifest_path("1")).await;
        assert_eq!(head.status, 200, "{outcome}");
        assert_eq!(head.header("docker-content-digest"), image.digest().to_string());
        assert_eq!(head.header("content-type"), image.manifest.media_type);
        assert_eq!(head.header("content-length"), image.manifest.bytes.len().to_string());
        assert_eq!(head.bytes().await.unwrap().len(), 0);
        scene.get_manifest("1").await.expect_body(&image.manifest.bytes).await.unwrap();
    }
}

/// The first stale answer comes at about the deadline of 1 s, each one after it at once. The bounds
/// are far above that, as the machine may be busy, and far below what an unbounded wait takes.
async fn assert_outage_is_bounded(get: impl AsyncFn() -> Response, image: &Image) {
    let since = Instant::now();
    expect(get().await, "stale", image).await;
    assert!(since.elapsed() < Duration::from_secs(5), "first: {:?}", since.elapsed());
    for n in 0..5 {
        let since = Instant::now();
        expect(get().await, "stale", image).await;
        assert!(since.elapsed() < Duration::from_millis(500), "{n}: {:?}", since.elapsed());
    }
}

async fn expect(response: Response, outcome: &str, image: &Image) {
    assert_eq!((response.status, response.outcome()), (200, outcome));
    assert_eq!(response.header("docker-content-digest"), image.digest().to_string());
    assert_eq!(response.header("content-type"), image.manifest.media_type);
    response.expect_body(&image.manifest.bytes).await.unwrap();
}
