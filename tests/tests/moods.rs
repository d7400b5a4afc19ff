//! What upstream is asked, and what it is spared.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use larder_testkit::{Fault, Gate, Image, On, patiently};
use larder_tests::Scene;
use larder_tests::larder::Larder;
use larder_tests::scene::{REPOSITORY, manifest_path};

#[tokio::test]
async fn what_is_not_there_is_asked_for_once_in_a_while() {
    let scene = Scene::new().await;
    for _ in 0..5 {
        assert_eq!(scene.get_manifest("typo").await.status, 404);
    }
    let absent = larder_core::Digest::sha256_of(b"nobody has this");
    for _ in 0..5 {
        assert_eq!(scene.get_blob(&absent).await.status, 404);
        assert_eq!(scene.get_manifest(&absent.to_string()).await.status, 404);
    }
    let asked = |part: &str| scene.upstream.count(|request| request.path.contains(part));
    assert_eq!((asked("typo"), asked("/blobs/")), (1, 1));

    // Who pushes it then finds it soon.
    let image = Image::random(1, &[10]);
    scene.upstream.push(REPOSITORY, "typo", &image);
    patiently("the new tag is found", async {
        while scene.get_manifest("typo").await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_tag_that_never_changes_is_asked_about_once() {
    let config = "freshness = \"0s\"\ntags = [{ match = \"v*\", freshness = \"forever\" }]\n";
    let scene = Scene::with(config).await;
    let image = Image::random(1, &[10]);
    for tag in ["v1.2", "latest"] {
        scene.upstream.push(REPOSITORY, tag, &image);
        assert_eq!(scene.get_manifest(tag).await.outcome(), "miss");
    }
    scene.upstream.forget_requests();
    for _ in 0..3 {
        assert_eq!(scene.get_manifest("v1.2").await.outcome(), "hit");
        assert_eq!(scene.get_manifest("latest").await.outcome(), "hit");
    }
    let asked = |tag: &str| scene.upstream.count(|request| request.path.ends_with(tag));
    assert_eq!((asked("v1.2"), asked("latest")), (0, 3));
}

#[tokio::test]
async fn an_upstream_that_is_away_is_refused_for_at_once_after_a_while() {
    let mut scene = Scene::new().await;
    let image = scene.push(1, &[100]);
    scene.upstream.stop().await;
    let mut n_asked = 0;
    let response = loop {
        let response = scene.get_manifest(&format!("unknown-{n_asked}")).await;
        n_asked += 1;
        if response.has_header("retry-after") {
            break response;
        }
        assert!((500..600).contains(&response.status) && n_asked < 20, "{}", response.status);
    };
    assert_eq!((response.status, response.error_code().await.as_str()), (503, "UNAVAILABLE"));
    scene.upstream.resume().await;
    patiently("it is asked again", async {
        while scene.get_manifest("1").await.status != 200 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(scene.get_manifest(&image.digest().to_string()).await.status, 200);
}

#[tokio::test]
async fn no_more_requests_are_under_way_than_may_be() {
    let scene = Scene::with("max_requests = 2\n").await;
    let images = [1, 2, 3].map(|seed| scene.push(seed, &[100]));
    let gate = Gate::closed();
    scene.upstream.fault(On::blobs().get(), Fault::WaitAfter(50, gate.clone()));
    let layers = images.each_ref().map(|image| &image.layers[0]);
    let expected = ["miss"; 3];
    let (one, two, three, ()) = tokio::join!(
        scene.expect_blob(&layers[0].digest, &layers[0].bytes, expected[0]),
        scene.expect_blob(&layers[1].digest, &layers[1].bytes, expected[1]),
        scene.expect_blob(&layers[2].digest, &layers[2].bytes, expected[2]),
        async {
            gate.reached(2).await;
            let n_asked = scene.upstream.count(|request| request.path.contains("/blobs/"));
            assert_eq!(n_asked, 2);
            gate.open();
        }
    );
    let ((), (), ()) = (one, two, three);
}

#[tokio::test]
async fn an_upstream_that_is_silent_in_mid_body_is_asked_for_the_rest() {
    let scene = Scene::with("read_timeout = \"1s\"\n").await;
    let image = scene.push(1, &[3 << 20]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    scene
        .upstream
        .fault(On::digest(&layer.digest).times(1), Fault::WaitAfter(1 << 20, gate.clone()));
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 2);
    gate.open();
}

#[tokio::test]
async fn any_registry_can_be_asked_for_but_none_at_a_private_address() {
    let scene = Scene::new().await;
    let any =
        |config: &str| Larder::settings().config(&format!("[upstreams.\"*\"]\n{config}")).start();
    let larder = any("").await;
    let port = scene.upstream.host().rsplit_once(':').unwrap().1.to_owned();
    for host in [format!("127.0.0.1:{port}"), format!("localhost:{port}"), "10.0.0.1".to_owned()] {
        let ask = larder.get(&format!("/v2/{host}/a/b/manifests/1"));
        let response = tokio::time::timeout(Duration::from_secs(5), ask).await.unwrap();
        assert_eq!(response.status, 403, "{host}");
        assert_eq!(response.error_code().await, "DENIED");
    }
    // It speaks no TLS, but it is asked.
    let larder = any("addresses = [\"127.0.0.0/8\"]\n").await;
    let response = larder.get(&format!("/v2/127.0.0.1:{port}/a/b/manifests/1")).await;
    assert_eq!(response.status, 502);
    let known = larder.get(&manifest_path("1")).await;
    assert_ne!(known.status, 403);
}
