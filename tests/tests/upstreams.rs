//! Upstreams that come, change and go while the program runs: through the API, and in its
//! configuration.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::os::unix::fs::PermissionsExt as _;

use larder_testkit::{Fault, Gate, Image, Login, On, Upstream, patiently};
use larder_tests::http::Response;
use larder_tests::scene::{HOST, REPOSITORY, blob_path, manifest_path};
use larder_tests::{Larder, Scene};
use serde_json::{Value, json};

const MADE: &str = "made.test";
const PASSWORD: &str = "hunter2-and-more";

#[tokio::test]
async fn an_upstream_made_through_the_api_is_tested_served_and_remembered() {
    let scene = Scene::new().await;
    let (other, image) = with_image(1).await;
    let basic = Login::Basic { username: "robot".to_owned(), password: PASSWORD.to_owned() };
    other.require(basic);
    let by_host = format!("/v2/{MADE}/{REPOSITORY}/manifests/1");
    let by_alias = format!("/v2/mine/{REPOSITORY}/manifests/1");
    assert_eq!(scene.larder.get(&by_host).await.status, 404);

    let credentials = json!({"username": "robot", "password": PASSWORD});
    let wanted = json!({"urls": other.url(), "alias": "mine", "credentials": credentials});
    let made = put(&scene.larder, MADE, &wanted).await;
    assert_eq!(made.status, 201);
    let made = made.json().await;
    assert_eq!(made["upstream"]["origin"], "api");
    let steps = made["steps"].as_array().unwrap();
    let token = steps.iter().find(|step| step["check"] == "token").unwrap();
    assert_eq!(token["outcome"], "passed", "{steps:?}");
    for path in [&by_host, &by_alias] {
        scene.larder.get(path).await.expect_body(&image.manifest.bytes).await.unwrap();
    }

    let listed = scene.larder.admin("/api/v1/upstreams").await.json().await;
    assert_eq!(origin(&listed, MADE), "api");
    assert_eq!(origin(&listed, HOST), "configuration");
    assert_eq!(origin(&listed, "docker.io"), "built_in");
    assert!(!listed.to_string().contains(PASSWORD) && !made.to_string().contains(PASSWORD));
    let file = scene.larder.data().join("upstreams.toml");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    let larder = scene.larder.kill().start().await;
    let layer = &image.layers[0];
    let path = format!("/v2/mine/{REPOSITORY}/blobs/{}", layer.digest);
    larder.get(&path).await.expect_body(&layer.bytes).await.unwrap();

    let gone = larder.admin_request("DELETE", "/api/v1/upstreams/made.test").send().await;
    assert_eq!(gone.status, 204);
    assert_eq!(larder.get(&by_host).await.status, 404);
    let gone = larder.admin_request("DELETE", "/api/v1/upstreams/made.test").send().await;
    assert_eq!(gone.status, 404);
}

#[tokio::test]
async fn one_that_does_not_work_is_not_made_unless_asked_for() {
    let scene = Scene::new().await;
    let mut other = Upstream::start().await;
    let wanted = json!({"urls": other.url()});
    other.stop().await;
    let refused = put(&scene.larder, MADE, &wanted).await;
    assert_eq!(refused.status, 422);
    let refused = refused.json().await;
    assert!(refused["error"].as_str().unwrap().contains("?test=false"), "{refused}");
    let steps = refused["steps"].as_array().unwrap();
    let failed: Vec<_> = steps.iter().filter(|step| step["outcome"] == "failed").collect();
    assert_eq!((failed.len(), &failed[0]["check"]), (1, &json!("tcp")), "{steps:?}");
    assert!(!scene.larder.data().join("upstreams.toml").exists());

    assert_eq!(put(&scene.larder, "made.test?test=false", &wanted).await.status, 201);
    other.resume().await;
    assert_eq!(put(&scene.larder, MADE, &wanted).await.status, 200);
}

#[tokio::test]
async fn what_cannot_be_meant_says_why() {
    let scene = Scene::with("alias = \"theirs\"").await;
    let cases = [
        (MADE, json!({"url": "https://a.example"}), 400, "write urls"),
        (MADE, json!({"freshness": "soon", "deadline": "0s"}), 400, "soon"),
        (MADE, json!({"credentials": {"docker_config": "/etc/shadow"}}), 400, "docker_config"),
        (MADE, json!({"alias": "theirs"}), 409, "alias"),
        (MADE, json!(["urls"]), 400, "the body must be as"),
        ("nohost", json!({}), 400, "nohost"),
        (HOST, json!({}), 409, "configuration"),
    ];
    for (host, wanted, status, part) in cases {
        let refused = put(&scene.larder, host, &wanted).await;
        assert_eq!(refused.status, status, "{wanted}");
        let error = refused.json().await["error"].as_str().unwrap().to_owned();
        assert!(error.contains(part), "{wanted}: {error}");
    }
    let path = format!("/api/v1/upstreams/{HOST}");
    assert_eq!(scene.larder.admin_request("DELETE", &path).send().await.status, 409);
}

#[tokio::test]
async fn a_changed_configuration_counts_without_a_restart() {
    let (one, image) = with_image(1).await;
    let (other, other_image) = with_image(2).await;
    let table = |host: &str, upstream: &Upstream| {
        format!("[upstreams.\"{host}\"]\nurls = [\"{}\"]\n", upstream.url())
    };
    let settings = Larder::settings().config(&table(HOST, &one));
    let file = settings.scratch().join("larder.toml");
    let larder = settings.start().await;
    larder.get(&manifest_path("1")).await.expect_body(&image.manifest.bytes).await.unwrap();
    let gate = Gate::closed();
    let layer = &image.layers[0];
    one.fault(On::digest(&layer.digest), Fault::WaitAfter(1 << 20, gate.clone()));
    let reading = larder.get(&blob_path(&layer.digest)).await;

    std::fs::write(&file, table(MADE, &other)).unwrap();
    larder.hang_up();
    larder.logged(&["the configuration has changed"]).await;
    let path = format!("/v2/{MADE}/{REPOSITORY}/manifests/1");
    larder.get(&path).await.expect_body(&other_image.manifest.bytes).await.unwrap();
    assert_eq!(larder.get(&manifest_path("1")).await.status, 404);
    // Who was being served goes on.
    gate.open();
    reading.expect_body(&layer.bytes).await.unwrap();

    std::fs::write(&file, "upstreams = 1\nbudget = \"much\"\n").unwrap();
    larder.hang_up();
    larder.logged(&["the one before counts"]).await;
    larder.logged(&["larder.toml:2: budget"]).await;
    assert_eq!(larder.get(&path).await.status, 200);
    std::fs::write(&file, format!("listen = \"127.0.0.1:1\"\n{}", table(MADE, &other))).unwrap();
    larder.hang_up();
    // A flag says where it listens.
    patiently("it says that nothing else is different", larder.logged(&["is as it was"])).await;
}

async fn with_image(seed: u64) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::random(seed, &[2 << 20]);
    upstream.push(REPOSITORY, "1", &image);
    (upstream, image)
}

async fn put(larder: &Larder, host: &str, wanted: &Value) -> Response {
    let put = larder.admin_request("PUT", &format!("/api/v1/upstreams/{host}"));
    put.body(wanted.to_string()).send().await
}

fn origin(listed: &Value, host: &str) -> String {
    let mut upstreams = listed["upstreams"].as_array().unwrap().iter();
    let upstream = upstreams.find(|it| it["host"] == host).unwrap();
    upstream["origin"].as_str().unwrap().to_owned()
}
