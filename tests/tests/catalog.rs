//! Which repositories are stored.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_testkit::Image;
use larder_tests::Scene;
use larder_tests::scene::HOST;
use serde_json::json;

#[tokio::test]
async fn the_catalog_lists_what_is_stored_by_the_names_to_pull_it_under() {
    let scene = Scene::with("deny = [\"hidden/**\"]\n").await;
    assert_eq!(catalog(&scene, "").await, (json!([]), None));
    for name in ["b", "a/b/c", "a"] {
        scene.upstream.push(name, "1", &Image::random(1, &[10]));
        let path = format!("/v2/{HOST}/{name}/manifests/1");
        scene.larder.get(&path).await.bytes().await.unwrap();
    }
    scene.upstream.push("never-pulled", "1", &Image::random(2, &[10]));
    let names = ["a", "a/b/c", "b"].map(|name| format!("{HOST}/{name}"));
    assert_eq!(catalog(&scene, "").await, (json!(names), None));
    assert_eq!(catalog(&scene, "?n=3").await, (json!(names), None));

    let (page, next) = catalog(&scene, "?n=2").await;
    assert_eq!(page, json!(names[..2]));
    let next = next.unwrap();
    assert_eq!(catalog(&scene, &next).await, (json!(names[2..]), None));
    assert_eq!(catalog(&scene, "?n=0").await.0, json!([]));
}

#[tokio::test]
async fn what_is_not_served_any_more_is_not_listed() {
    let scene = Scene::new().await;
    for name in ["open/a", "hidden/b"] {
        scene.upstream.push(name, "1", &Image::random(1, &[10]));
        let path = format!("/v2/{HOST}/{name}/manifests/1");
        scene.larder.get(&path).await.bytes().await.unwrap();
    }
    let settings = Scene::settings(&scene.upstream, "deny = [\"hidden/**\"]\n");
    let settings = settings.data_of(&scene.larder);
    let Scene { upstream, larder } = scene;
    larder.terminate();
    let (_, _scratch) = larder.wait().await;
    let scene = Scene { upstream, larder: settings.start().await };
    assert_eq!(catalog(&scene, "").await.0, json!([format!("{HOST}/open/a")]));
}

/// The names of one page, and the query for the next one.
async fn catalog(scene: &Scene, query: &str) -> (serde_json::Value, Option<String>) {
    let response = scene.larder.get(&format!("/v2/_catalog{query}")).await;
    assert_eq!(response.status, 200);
    let next = response.has_header("link").then(|| {
        let link = response.header("link").strip_prefix("</v2/_catalog").unwrap();
        link.split_once('>').unwrap().0.to_owned()
    });
    (response.json().await["repositories"].clone(), next)
}
