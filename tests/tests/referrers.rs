//! Lists of what refers to an image: signatures, bills of materials, indexes for lazy pulling.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use larder_core::media::OCI_INDEX;
use larder_core::{Digest, referrer};
use larder_testkit::{Fault, Gate, Image, On};
use larder_tests::Scene;
use larder_tests::http::Response;
use larder_tests::scene::{HOST, REPOSITORY};
use serde_json::Value;

const SIGNATURE: &str = "application/x-signature";
const PARTS: &str = "application/x-parts";

/// Upstream is asked each time.
const ALWAYS_ASK: &str = "freshness = \"0s\"\n";

#[tokio::test]
async fn what_upstream_lists_is_listed_whole_though_it_sends_pages() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[100]);
    let mut expected: Vec<String> =
        (0..10).map(|n| attach(&scene, &image, SIGNATURE, n).digest().to_string()).collect();
    let response = list(&scene, image.digest(), "").await;
    assert_eq!((response.status, response.outcome()), (200, "pass"));
    assert_eq!(response.header("content-type"), OCI_INDEX);
    let mut digests = digests(response).await;
    digests.sort();
    expected.sort();
    assert_eq!(digests, expected);
}

#[tokio::test]
async fn a_list_can_be_asked_for_by_type() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[100]);
    attach(&scene, &image, SIGNATURE, 1);
    let parts = attach(&scene, &image, PARTS, 2);
    let response = list(&scene, image.digest(), "?artifactType=application%2Fx-parts").await;
    assert_eq!(response.header("oci-filters-applied"), "artifactType");
    assert_eq!(digests(response).await, [parts.digest().to_string()]);
    // The filter is our own: the list itself is known now.
    scene.upstream.forget_requests();
    let response = list(&scene, image.digest(), "").await;
    assert!(!response.has_header("oci-filters-applied"));
    assert_eq!((response.outcome(), scene.upstream.requests().len()), ("hit", 0));
    assert_eq!(digests(response).await.len(), 2);
    let none = list(&scene, image.digest(), "?artifactType=x%2Fy").await;
    assert_eq!((none.status, digests(none).await.len()), (200, 0));
}

#[tokio::test]
async fn a_list_comes_in_pages_where_the_client_wants_pages() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[100]);
    for n in 0..5 {
        attach(&scene, &image, SIGNATURE, n);
    }
    let mut found = Vec::new();
    let mut query = "?n=2&artifactType=application%2Fx-signature".to_owned();
    let mut n_pages = 0;
    loop {
        let response = list(&scene, image.digest(), &query).await;
        let link = response.has_header("link").then(|| response.header("link").to_owned());
        found.extend(digests(response).await);
        n_pages += 1;
        let Some(link) = link else { break };
        let target = link.strip_prefix('<').unwrap().split_once('>').unwrap().0;
        query = format!("?{}", target.split_once('?').unwrap().1);
    }
    found.sort();
    found.dedup();
    assert_eq!((n_pages, found.len()), (3, 5));
}

#[tokio::test]
async fn without_the_api_the_list_under_the_tag_is_given_and_what_is_stored_with_it() {
    for answer in [404, 405, 501] {
        let scene = Scene::with(ALWAYS_ASK).await;
        scene.upstream.fault(On::path("/referrers/"), Fault::Status(answer));
        let image = scene.push(1, &[100]);
        let response = list(&scene, image.digest(), "").await;
        assert_eq!((response.status, digests(response).await.len()), (200, 0), "{answer}");

        let signature = attach(&scene, &image, SIGNATURE, 1);
        let parts = attach(&scene, &image, PARTS, 2);
        let index = Image::index(vec![signature.clone()]);
        let tag = referrer::fallback_tag(image.digest()).unwrap().to_string();
        scene.upstream.push(REPOSITORY, &tag, &index);
        let response = list(&scene, image.digest(), "").await;
        assert_eq!(digests(response).await, [signature.digest().to_string()]);

        scene.get_manifest(&parts.digest().to_string()).await.bytes().await.unwrap();
        let both = [signature.digest().to_string(), parts.digest().to_string()];
        assert_eq!(digests(list(&scene, image.digest(), "").await).await, both);
    }
}

#[tokio::test]
async fn what_upstream_has_deleted_is_not_listed() {
    let scene = Scene::with(ALWAYS_ASK).await;
    let image = scene.push(1, &[100]);
    let signature = attach(&scene, &image, SIGNATURE, 1);
    scene.get_manifest(&signature.digest().to_string()).await.bytes().await.unwrap();
    assert_eq!(digests(list(&scene, image.digest(), "").await).await.len(), 1);
    scene.upstream.remove(REPOSITORY);
    scene.push(1, &[100]);
    assert_eq!(digests(list(&scene, image.digest(), "").await).await.len(), 0);
}

#[tokio::test]
async fn while_upstream_is_away_what_is_known_is_listed_as_stale() {
    let mut scene = Scene::with(ALWAYS_ASK).await;
    let image = scene.push(1, &[100]);
    let known = attach(&scene, &image, SIGNATURE, 1);
    assert_eq!(digests(list(&scene, image.digest(), "").await).await.len(), 1);
    let other = scene.push(2, &[100]);
    let stored = attach(&scene, &other, SIGNATURE, 2);
    scene.get_manifest(&stored.digest().to_string()).await.bytes().await.unwrap();
    let unknown = scene.push(3, &[100]);
    attach(&scene, &unknown, SIGNATURE, 3);
    scene.upstream.stop().await;

    for (image, referrer) in [(&image, &known), (&other, &stored)] {
        let response = list(&scene, image.digest(), "").await;
        assert_eq!((response.status, response.outcome()), (200, "stale"));
        assert_eq!(digests(response).await, [referrer.digest().to_string()]);
    }
    // Whoever looks for a signature is not told that there is none.
    let response = list(&scene, unknown.digest(), "").await;
    assert!((500..600).contains(&response.status), "{}", response.status);
}

#[tokio::test]
async fn a_slow_upstream_delays_a_known_list_no_longer_than_its_deadline() {
    let scene = Scene::with("freshness = \"0s\"\ndeadline = \"200ms\"\n").await;
    let image = scene.push(1, &[100]);
    attach(&scene, &image, SIGNATURE, 1);
    assert_eq!(digests(list(&scene, image.digest(), "").await).await.len(), 1);
    let gate = Gate::closed();
    scene.upstream.fault(On::path("/referrers/"), Fault::Wait(gate.clone()));
    let listed = tokio::time::timeout(Duration::from_secs(10), list(&scene, image.digest(), ""));
    let response = listed.await.unwrap();
    assert_eq!((response.status, response.outcome()), (200, "stale"));
    gate.open();
}

/// Pushes an artifact about `image`.
fn attach(scene: &Scene, image: &Image, artifact_type: &str, n: u64) -> Image {
    let artifact = Image::artifact(artifact_type, &n.to_le_bytes(), Some(image));
    scene.upstream.push_untagged(REPOSITORY, &artifact);
    artifact
}

async fn list(scene: &Scene, subject: &Digest, query: &str) -> Response {
    scene.larder.get(&format!("/v2/{HOST}/{REPOSITORY}/referrers/{subject}{query}")).await
}

async fn digests(response: Response) -> Vec<String> {
    let list: Value = response.json().await;
    assert_eq!(list["schemaVersion"], 2, "{list}");
    let manifests = list["manifests"].as_array().unwrap();
    manifests.iter().map(|it| it["digest"].as_str().unwrap().to_owned()).collect()
}
