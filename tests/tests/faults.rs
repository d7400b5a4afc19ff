//! What clients see when an upstream sends wrong bytes, too many, too few, or none.
//!
//! The end of a body is the promise that the bytes are right: whatever the upstream does, no client
//! gets a clean end of wrong content, and nothing wrong is stored.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_testkit::{Fault, Gate, Image, On};
use larder_tests::Scene;
use larder_tests::http::{BodyError, Response};

/// Large enough that clients are sent the beginning before the end is known.
const LARGE: usize = 8 << 20;

/// Small enough to be verified before the first byte is sent.
const SMALL: usize = 100_000;

#[tokio::test]
async fn a_body_that_upstream_cuts_once_is_resumed_unnoticed() {
    for cut in [Fault::CutAfter(3 << 20), Fault::ResetAfter(3 << 20)] {
        let scene = Scene::new().await;
        let image = scene.push(1, &[LARGE]);
        let layer = &image.layers[0];
        scene.upstream.fault(On::digest(&layer.digest).get().times(1), cut.clone());

        scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
        let requests = scene.upstream.requests();
        let fetches: Vec<_> = requests.iter().filter(|it| it.is_fetch_of(&layer.digest)).collect();
        assert_eq!(fetches.len(), 2, "{cut:?}");
        assert_eq!(fetches[1].status, 206, "{cut:?}");
        if let Fault::CutAfter(n) = cut {
            let range = fetches[1].header("range").unwrap();
            assert!(range.starts_with(&format!("bytes={n}-")), "{range}");
            assert_eq!(scene.upstream.bytes_sent(&layer.digest), LARGE as u64);
        }
        scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
        assert_eq!(scene.upstream.n_fetches(&layer.digest), 2, "{cut:?}");
    }
}

#[tokio::test]
async fn a_resumed_body_is_right_where_upstream_ignores_ranges() {
    let scene = Scene::new().await;
    let image = scene.push(2, &[LARGE]);
    let layer = &image.layers[0];
    let fetches = || On::digest(&layer.digest).get();
    scene.upstream.fault(fetches().times(1), Fault::CutAfter(3 << 20));
    scene.upstream.fault(fetches(), Fault::IgnoreRange);
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
}

#[tokio::test]
async fn a_resumed_body_is_never_continued_with_other_bytes() {
    let scene = Scene::new().await;
    let image = scene.push(3, &[LARGE]);
    let layer = &image.layers[0];
    let fetches = || On::digest(&layer.digest).get();
    scene.upstream.fault(fetches().times(1), Fault::CutAfter(3 << 20));
    scene.upstream.fault(fetches(), Fault::WrongRange);
    expect_aborted(scene.get_blob(&layer.digest).await, &layer.bytes).await;
    assert_recovers(&scene, &image).await;
}

#[tokio::test]
async fn a_body_that_upstream_cuts_again_and_again_is_aborted() {
    let scene = Scene::new().await;
    let image = scene.push(4, &[LARGE]);
    let layer = &image.layers[0];
    let fetches = || On::digest(&layer.digest).get();
    scene.upstream.fault(fetches().times(1), Fault::CutAfter(3 << 20));
    scene.upstream.fault(fetches().sparing(1), Fault::CutAfter(0));
    expect_aborted(scene.get_blob(&layer.digest).await, &layer.bytes).await;
    assert_recovers(&scene, &image).await;
}

#[tokio::test]
async fn a_body_that_cannot_be_resumed_is_aborted() {
    let scene = Scene::new().await;
    let image = scene.push(5, &[LARGE]);
    let layer = &image.layers[0];
    let fetches = || On::digest(&layer.digest).get();
    scene.upstream.fault(fetches().times(1), Fault::CutAfter(3 << 20));
    scene.upstream.fault(fetches().sparing(1), Fault::Status(404));
    expect_aborted(scene.get_blob(&layer.digest).await, &layer.bytes).await;
    assert_recovers(&scene, &image).await;
}

#[tokio::test]
async fn a_large_blob_with_a_wrong_byte_is_aborted() {
    for offset in [0, LARGE as u64 / 2, LARGE as u64 - 1] {
        let scene = Scene::new().await;
        let image = scene.push(6, &[LARGE]);
        let layer = &image.layers[0];
        scene.upstream.fault(On::digest(&layer.digest), Fault::Corrupt(offset));
        let response = scene.get_blob(&layer.digest).await;
        assert_eq!(response.status, 200);
        let ended = response.bytes().await;
        assert!(matches!(ended, Err(BodyError::Aborted { .. })), "offset {offset}: {ended:?}");
        assert!(scene.larder.metric("larder_corrupt_total", &[]).await >= 1.0);
        assert_recovers(&scene, &image).await;
    }
}

#[tokio::test]
async fn a_small_blob_with_a_wrong_byte_is_refused_before_its_first_byte() {
    let scene = Scene::new().await;
    let image = scene.push(7, &[SMALL]);
    scene.upstream.fault(On::digest(&image.layers[0].digest), Fault::Corrupt(5));
    let response = scene.get_blob(&image.layers[0].digest).await;
    assert!((500..600).contains(&response.status), "{}", response.status);
    response.error_code().await;
    assert_recovers(&scene, &image).await;
}

#[tokio::test]
async fn a_manifest_with_a_wrong_byte_is_refused() {
    let scene = Scene::new().await;
    let image = scene.push(8, &[SMALL]);
    // In the middle of the layer's digest, so that the JSON stays sound.
    let digest = image.layers[0].digest.to_string();
    let text = String::from_utf8(image.manifest.bytes.to_vec()).unwrap();
    let offset = text.find(&digest).unwrap() as u64 + 20;
    scene.upstream.fault(On::manifests(), Fault::Corrupt(offset));
    for reference in ["1", &image.digest().to_string()] {
        let response = scene.get_manifest(reference).await;
        assert!((500..600).contains(&response.status), "{reference}: {}", response.status);
    }
    scene.upstream.heal();
    for reference in ["1", &image.digest().to_string()] {
        let response = scene.get_manifest(reference).await;
        response.expect_body(&image.manifest.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_announced_never_ends_cleanly() {
    for size in [LARGE, SMALL] {
        for fault in [Fault::Misannounce(5), Fault::Misannounce(-5), Fault::Append(5)] {
            let scene = Scene::new().await;
            let image = scene.push(9, &[size]);
            let layer = &image.layers[0];
            scene.upstream.fault(On::digest(&layer.digest).get(), fault);
            scene.expect_failure(scene.get_blob(&layer.digest).await).await;
            assert_recovers(&scene, &image).await;
        }
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_the_manifest_says_ends_cleanly_only_if_it_is_right() {
    for fault in [Fault::Misannounce(5), Fault::Misannounce(-5), Fault::Append(5)] {
        let scene = Scene::new().await;
        let image = scene.push(10, &[LARGE]);
        let layer = &image.layers[0];
        scene.get_manifest("1").await.expect_body(&image.manifest.bytes).await.unwrap();
        scene.upstream.fault(On::digest(&layer.digest).get(), fault);
        expect_right_or_failed(scene.get_blob(&layer.digest).await, &layer.bytes).await;
        scene.upstream.heal();
        scene.get_blob(&layer.digest).await.expect_body(&layer.bytes).await.unwrap();
        scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
    }
}

#[tokio::test]
async fn a_body_without_a_length_is_served_and_stored() {
    for size in [LARGE, SMALL] {
        let scene = Scene::new().await;
        let image = scene.push(11, &[size]);
        let layer = &image.layers[0];
        scene.upstream.fault(On::digest(&layer.digest), Fault::Chunked);
        scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
        scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
        assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
    }
}

#[tokio::test]
async fn a_body_without_an_end_is_read_no_further_than_the_manifest_says() {
    let scene = Scene::new().await;
    let image = scene.push(12, &[LARGE]);
    let layer = &image.layers[0];
    scene.get_manifest("1").await.expect_body(&image.manifest.bytes).await.unwrap();
    scene.upstream.fault(On::digest(&layer.digest).get(), Fault::Endless);
    expect_right_or_failed(scene.get_blob(&layer.digest).await, &layer.bytes).await;
    let sent = scene.upstream.bytes_sent(&layer.digest);
    // What waits in the sockets' and the program's buffers comes on top.
    assert!(sent < LARGE as u64 + (16 << 20), "{sent}");
    scene.upstream.heal();
    scene.get_blob(&layer.digest).await.expect_body(&layer.bytes).await.unwrap();
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
}

#[tokio::test]
async fn a_manifest_without_an_end_is_given_up() {
    let scene = Scene::new().await;
    let image = scene.push(13, &[SMALL]);
    scene.upstream.fault(On::manifests(), Fault::Endless);
    let response = scene.get_manifest("1").await;
    assert!((500..600).contains(&response.status), "{}", response.status);
    let sent: u64 = scene.upstream.requests().iter().map(|request| request.n_sent).sum();
    assert!(sent < 100 << 20, "{sent}");
    scene.upstream.heal();
    scene.get_manifest("1").await.expect_body(&image.manifest.bytes).await.unwrap();
}

#[tokio::test]
async fn a_body_that_stalls_goes_on_when_upstream_does() {
    let scene = Scene::new().await;
    let image = scene.push(14, &[LARGE]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    let stall = Fault::WaitAfter(3 << 20, gate.clone());
    scene.upstream.fault(On::digest(&layer.digest).get(), stall);

    let mut response = scene.get_blob(&layer.digest).await;
    // What has come reaches the client while the rest is waited for.
    let beginning = response.at_least(2 << 20).await;
    assert!(beginning == layer.bytes[..beginning.len()]);
    gate.reached(1).await;
    gate.open();
    response.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
}

#[tokio::test]
async fn an_upstream_that_fails_is_asked_again_by_the_next_client() {
    for status in [500, 502, 503] {
        let scene = Scene::new().await;
        let image = scene.push(15, &[SMALL]);
        let layer = &image.layers[0];
        scene.upstream.fault(On::path(""), Fault::Status(status));
        for response in [scene.get_blob(&layer.digest).await, scene.get_manifest("1").await] {
            assert!((500..600).contains(&response.status), "{status}: {}", response.status);
            response.error_code().await;
        }
        scene.upstream.heal();
        scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
        scene.get_manifest("1").await.expect_body(&image.manifest.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn one_failure_of_upstream_is_not_noticed() {
    let scene = Scene::new().await;
    let image = scene.push(16, &[SMALL]);
    let layer = &image.layers[0];
    scene.upstream.fault(On::blobs().times(1), Fault::Status(503));
    scene.upstream.fault(On::manifests().times(1), Fault::Status(503));
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    scene.get_manifest("1").await.expect_body(&image.manifest.bytes).await.unwrap();
}

#[tokio::test]
async fn what_upstream_limits_is_refused_with_the_time_to_wait() {
    let scene = Scene::new().await;
    let image = scene.push(17, &[SMALL]);
    scene.upstream.fault(On::path(""), Fault::TooManyRequests { retry_after: 33 });
    let by_digest = image.digest().to_string();
    for response in [
        scene.get_manifest("1").await,
        scene.get_manifest(&by_digest).await,
        scene.get_blob(&image.layers[0].digest).await,
    ] {
        assert_eq!((response.status, response.header("retry-after")), (429, "33"));
        assert_eq!(response.error_code().await, "TOOMANYREQUESTS");
    }
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_said_to_be_so() {
    let mut scene = Scene::new().await;
    let image = scene.push(18, &[SMALL]);
    scene.upstream.stop().await;
    for response in [scene.get_manifest("1").await, scene.get_blob(&image.layers[0].digest).await] {
        assert!((500..600).contains(&response.status), "{}", response.status);
        response.error_code().await;
    }
    scene.upstream.resume().await;
    scene.expect_blob(&image.layers[0].digest, &image.layers[0].bytes, "miss").await;
}

/// The body breaks off; what came before is right, and is not all of it.
async fn expect_aborted(mut response: Response, expected: &[u8]) {
    assert_eq!(response.status, 200);
    let mut position = 0;
    loop {
        match response.chunk().await {
            Some(Ok(chunk)) => {
                assert!(chunk == expected[position..position + chunk.len()], "at {position}");
                position += chunk.len();
            }
            Some(Err(_)) => break,
            None => panic!("a clean end after {position} of {} bytes", expected.len()),
        }
    }
    assert!(position < expected.len());
}

/// The body is right, or fails in a way that no client takes for success.
async fn expect_right_or_failed(response: Response, expected: &[u8]) {
    let status = response.status;
    match response.bytes().await {
        Err(BodyError::Aborted { .. }) => {}
        Ok(bytes) if status == 200 => assert!(bytes == expected, "a clean end of wrong bytes"),
        Ok(_) => assert!((500..600).contains(&status), "{status}"),
        Err(other) => panic!("{other:?}"),
    }
}

/// Nothing was stored, and the first layer can be had once the upstream is well again.
async fn assert_recovers(scene: &Scene, image: &Image) {
    let layer = &image.layers[0];
    assert_eq!(scene.stored_blobs(), [""; 0]);
    scene.upstream.heal();
    scene.upstream.forget_requests();
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    assert!(scene.upstream.n_fetches(&layer.digest) >= 1);
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
    assert_eq!(scene.stored_blobs(), [layer.digest.hex()]);
}
