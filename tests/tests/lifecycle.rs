//! How the program starts, shares, and stops.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_testkit::{Fault, Gate, On, Upstream};
use larder_tests::scene::{HOST, blob_path, manifest_path};
use larder_tests::{Larder, Scene};

#[tokio::test]
async fn a_second_process_on_the_same_data_is_refused() {
    let upstream = Upstream::start().await;
    let larder = Larder::with_upstream(HOST, &upstream.url()).await;
    let second = Larder::settings().upstream(HOST, &upstream.url()).data_of(&larder);
    let refused = second.run().await;
    assert_eq!(refused.code, Some(1), "{}", refused.stderr);
    assert!(refused.stderr.contains("in use"), "{}", refused.stderr);
    assert!(refused.stderr.contains(larder.data().to_str().unwrap()), "{}", refused.stderr);
    assert!(!refused.stdout.contains("listening"), "{}", refused.stdout);
    // The first is none the worse for it.
    assert_eq!(larder.get("/v2/").await.status, 200);
}

#[tokio::test]
async fn a_restarted_process_serves_what_the_killed_one_stored() {
    let mut scene = Scene::new().await;
    let image = scene.push(1, &[100, 3 << 20]);
    scene.get_manifest("1").await.expect_body(&image.manifest.bytes).await.unwrap();
    for layer in &image.layers {
        scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    }
    scene.upstream.stop().await;
    let larder = scene.larder.kill().start().await;
    let manifest = larder.get(&manifest_path("1")).await;
    assert!(matches!(manifest.outcome(), "hit" | "stale"), "{}", manifest.outcome());
    manifest.expect_body(&image.manifest.bytes).await.unwrap();
    for layer in &image.layers {
        let blob = larder.get(&blob_path(&layer.digest)).await;
        assert_eq!(blob.outcome(), "hit");
        blob.expect_body(&layer.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn a_body_that_is_being_sent_is_finished_before_the_program_stops() {
    let scene = Scene::new().await;
    let image = scene.push(2, &[8 << 20]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    let stall = Fault::WaitAfter(2 << 20, gate.clone());
    scene.upstream.fault(On::digest(&layer.digest).get(), stall);
    let mut response = scene.get_blob(&layer.digest).await;
    let beginning = response.at_least(1 << 20).await;

    scene.larder.terminate();
    scene.larder.logged(&["stopping"]).await;
    gate.open();
    response.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    let (ended, settings) = scene.larder.wait().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);

    let larder = settings.start().await;
    let blob = larder.get(&blob_path(&layer.digest)).await;
    assert_eq!(blob.outcome(), "hit");
    blob.expect_body(&layer.bytes).await.unwrap();
}

#[tokio::test]
async fn an_idle_program_stops_at_once() {
    let scene = Scene::new().await;
    scene.larder.terminate();
    let (ended, _) = scene.larder.wait().await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[tokio::test]
async fn a_second_signal_ends_a_program_that_is_finishing() {
    let scene = Scene::new().await;
    let image = scene.push(3, &[8 << 20]);
    let gate = Gate::closed();
    let stall = Fault::WaitAfter(2 << 20, gate.clone());
    scene.upstream.fault(On::digest(&image.layers[0].digest).get(), stall);
    let mut response = scene.get_blob(&image.layers[0].digest).await;
    response.at_least(1 << 20).await;
    scene.larder.terminate();
    scene.larder.logged(&["stopping"]).await;
    scene.larder.terminate();
    let (ended, _) = scene.larder.wait().await;
    assert_ne!(ended.code, Some(0), "{}", ended.stderr);
    let aborted = response.bytes().await;
    assert!(aborted.is_err(), "{} bytes and a clean end", aborted.unwrap().len());
}

#[tokio::test]
async fn a_wrong_configuration_is_refused_with_where_it_is_wrong() {
    let settings = Larder::settings().config("budgett = \"1 GiB\"\n");
    let refused = settings.run().await;
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
    assert!(refused.stderr.contains("larder.toml:1"), "{}", refused.stderr);
    assert!(refused.stderr.contains("budgett"), "{}", refused.stderr);
}

#[tokio::test]
async fn the_admin_address_tells_how_it_is() {
    let scene = Scene::new().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(scene.larder.admin(path).await.status, 200, "{path}");
    }
    let image = scene.push(4, &[3 << 20]);
    let layer = &image.layers[0];
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
    let metrics = scene.larder.admin("/metrics").await;
    assert!(metrics.header("content-type").starts_with("application/openmetrics-text"));
    let larder = &scene.larder;
    let requests = async |outcome: &str| {
        let labels = [("upstream", HOST), ("kind", "blob"), ("outcome", outcome)];
        larder.metric("larder_requests_total", &labels).await
    };
    assert_eq!((requests("miss").await, requests("hit").await), (1.0, 1.0));
    let of_upstream = [("upstream", HOST)];
    let size = layer.bytes.len() as f64;
    assert_eq!(larder.metric("larder_upstream_bytes_total", &of_upstream).await, size);
    assert_eq!(larder.metric("larder_client_bytes_total", &of_upstream).await, 2.0 * size);
    assert_eq!(larder.metric("larder_fills_in_flight", &[]).await, 0.0);
    assert!(larder.metric("larder_store_bytes", &[]).await >= size);
    let get = [("upstream", HOST), ("method", "GET"), ("code", "200")];
    assert_eq!(larder.metric("larder_upstream_requests_total", &get).await, 1.0);
}
