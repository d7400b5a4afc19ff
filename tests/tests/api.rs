//! The REST API, and the commands that ask it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeSet;

use larder_core::Digest;
use larder_testkit::{Fault, Gate, Image, On, patiently};
use larder_tests::Scene;
use larder_tests::scene::{HOST, REPOSITORY};
use serde_json::{Value, json};

#[tokio::test]
async fn stored_images_are_listed_with_their_tags_and_sizes() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[1000, 2000]);
    scene.upstream.push(REPOSITORY, "latest", &image);
    for tag in ["1", "latest"] {
        scene.get_manifest(tag).await.bytes().await.unwrap();
    }
    let listed = images(&scene, "").await;
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), 1, "{listed:?}");
    let missing: usize = image.blobs().map(|blob| blob.bytes.len()).sum();
    let expected = json!({
        "host": HOST,
        "repository": REPOSITORY,
        "tags": ["1", "latest"],
        "digest": image.digest(),
        "media_type": image.manifest.media_type,
        "stored_bytes": image.manifest.bytes.len(),
        "missing_bytes": missing,
        "last_used": listed[0]["last_used"],
        "images": [],
    });
    assert_eq!(listed[0], expected);

    pull(&scene, &image).await;
    let listed = images(&scene, "").await;
    assert_eq!(listed[0]["missing_bytes"], 0);
    assert_eq!(listed[0]["stored_bytes"], missing + image.manifest.bytes.len());
}

#[tokio::test]
async fn an_index_counts_the_images_of_it_that_are_stored() {
    let scene = Scene::new().await;
    let parts = [1, 2].map(|seed| Image::random(seed, &[100]));
    let index = Image::index(parts.to_vec());
    scene.upstream.push(REPOSITORY, "1", &index);
    scene.get_manifest("1").await.bytes().await.unwrap();
    scene.get_manifest(&parts[0].digest().to_string()).await.bytes().await.unwrap();
    pull(&scene, &parts[0]).await;

    let all = images(&scene, "").await;
    let of = |digest: &Digest| {
        all.as_array().unwrap().iter().find(|it| it["digest"] == json!(digest)).unwrap().clone()
    };
    let part = of(parts[0].digest());
    assert_eq!(of(index.digest())["images"], json!([parts[0].digest()]));
    let whole = part["stored_bytes"].as_u64().unwrap() + index.manifest.bytes.len() as u64;
    assert_eq!(of(index.digest())["stored_bytes"], whole);
    assert_eq!(of(index.digest())["missing_bytes"], 0);

    let shown = scene.larder.command(&["ls"]).await.expect("ls");
    assert_eq!(shown.lines().count(), 2, "{shown}");
    let shown = scene.larder.command(&["ls", "--all"]).await.expect("ls --all");
    assert_eq!(shown.lines().count(), 3, "{shown}");
}

#[tokio::test]
async fn a_long_list_comes_in_pages_that_have_everything_once() {
    let scene = Scene::new().await;
    let mut pushed = BTreeSet::new();
    for n in 0..7 {
        for seed in 0..3 {
            // Repositories share images, so that a page may end between two of them.
            let (name, tag) = (format!("team/{n}"), seed.to_string());
            scene.upstream.push(&name, &tag, &Image::random(seed, &[10]));
            let path = format!("/v2/{HOST}/{name}/manifests/{tag}");
            scene.larder.get(&path).await.bytes().await.unwrap();
            pushed.insert(format!("{name}:{tag}"));
        }
    }
    for limit in [1, 4, 21, 1000] {
        let (mut seen, mut n_seen, mut after) = (BTreeSet::new(), 0, String::new());
        loop {
            let page = api(&scene, &format!("/images?limit={limit}{after}")).await;
            for image in page["images"].as_array().unwrap() {
                let (name, tag) = (&image["repository"], &image["tags"][0]);
                seen.insert(format!("{}:{}", name.as_str().unwrap(), tag.as_str().unwrap()));
                n_seen += 1;
            }
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        assert_eq!((&seen, n_seen), (&pushed, pushed.len()), "limit {limit}");
    }
    assert_eq!(images(&scene, "?matching=*/team/3:*").await.as_array().unwrap().len(), 3);
    assert_eq!(images(&scene, "?matching=*:2").await.as_array().unwrap().len(), 7);
    assert_eq!(images(&scene, "?matching=nothing").await, json!([]));
}

#[tokio::test]
async fn a_blob_is_known_while_it_is_fetched_and_when_it_is_stored() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[3 << 20]);
    let layer = &image.layers[0];
    let path = format!("/blobs/{}", layer.digest);
    assert_eq!(scene.larder.admin(&format!("/api/v1{path}")).await.status, 404);

    let gate = Gate::closed();
    scene.upstream.fault(On::digest(&layer.digest), Fault::WaitAfter(2 << 20, gate.clone()));
    let reading = scene.get_blob(&layer.digest).await;
    let fill = patiently("all that has come is told", async {
        loop {
            let fills = api(&scene, "/fills").await;
            if fills["fills"][0]["bytes"].as_u64() == Some((2 << 20) - 1) {
                return fills["fills"][0].clone();
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let expected = json!({
        "digest": layer.digest,
        "repository": format!("{HOST}/{REPOSITORY}"),
        "phase": "streaming",
        "bytes": (2 << 20) - 1,
        "size": 3 << 20,
        "readers": 1,
    });
    assert_eq!(fill, expected);
    let blob = api(&scene, &path).await;
    assert_eq!((&blob["stored"], &blob["fill"]), (&Value::Null, &expected));

    gate.open();
    reading.expect_body(&layer.bytes).await.unwrap();
    let blob = api(&scene, &path).await;
    assert_eq!(blob["stored"]["size"], 3 << 20);
    assert_eq!(blob["stored"]["media_type"], Value::Null);
    assert_eq!(blob["repositories"], json!([format!("{HOST}/{REPOSITORY}")]));
}

#[tokio::test]
async fn upstreams_are_listed_with_how_they_are_doing_and_without_secrets() {
    let config = "alias = [\"reg\"]\ndescription = \"ours\"\ninsecure_skip_verify = true\n\
                  credentials = { username = \"u\", password = \"hunter2\" }\n";
    let scene = Scene::with(config).await;
    let answer = api(&scene, "/upstreams").await;
    assert!(!answer.to_string().contains("hunter2"), "{answer}");
    let find = |answer: &Value| {
        let upstreams = answer["upstreams"].as_array().unwrap();
        upstreams.iter().find(|it| it["host"] == HOST).unwrap().clone()
    };
    let ours = find(&answer);
    assert_eq!(ours["alias"], json!(["reg"]));
    assert_eq!((&ours["freshness"], &ours["deadline"]), (&json!("1m"), &json!("2s")));
    assert_eq!((&ours["has_credentials"], &ours["description"]), (&json!(true), &json!("ours")));
    assert_eq!(ours["hosts"], json!([{ "host": HOST, "standing": "well" }]));

    scene.push(1, &[10]);
    scene.upstream.fault(On::path(""), Fault::Status(503));
    scene.get_manifest("1").await;
    let ours = find(&api(&scene, "/upstreams").await);
    assert_eq!(ours["hosts"][0]["standing"], "suspect");
}

#[tokio::test]
async fn what_is_wrong_is_said_in_a_sentence() {
    let scene = Scene::new().await;
    for (path, status, part) in [
        ("/nothing", 404, "no such path"),
        ("/blobs/sha256:12", 400, "64 lower-case hex digits"),
        ("/images?limit=0", 400, "must be 1 to 1000"),
        ("/images?limit=many", 400, "limit"),
        ("/images?after=x", 400, "`next` of the page before"),
        ("/images?matching=[", 400, "not a pattern"),
        ("/images?colour=red", 400, "unknown field `colour`"),
    ] {
        let response = scene.larder.admin(&format!("/api/v1{path}")).await;
        assert_eq!(response.status, status, "{path}");
        let answer = response.json().await;
        assert_eq!(answer["version"], 1);
        assert!(answer["error"].as_str().unwrap().contains(part), "{path}: {answer}");
    }
    let post = scene.larder.admin_request("POST", "/api/v1/images");
    assert_eq!(post.send().await.status, 405);
    let post = scene.larder.admin_request("POST", "/api/v1/images");
    let response = post.header("origin", "http://evil.example").send().await;
    assert_eq!(response.status, 403);
    assert!(response.json().await["error"].as_str().unwrap().contains("another origin"));
    let post = scene.larder.admin_request("POST", "/api/v1/images");
    let response = post.header("authorization", "Bearer 0123456789abcdef").send().await;
    assert_eq!(response.status, 403);
    assert!(response.json().await["error"].as_str().unwrap().contains("set `admin_token_file`"));
}

#[tokio::test]
async fn the_token_of_the_file_is_accepted_and_may_be_exchanged() {
    let upstream = larder_testkit::Upstream::start().await;
    let settings = Scene::settings(&upstream, "");
    let file = settings.scratch().write("token", "0123456789abcdef\n");
    let larder = settings.config_first(&format!("admin_token_file = {file:?}")).start().await;
    let ask = async |token: &str| {
        let post = larder.admin_request("POST", "/api/v1/images");
        post.header("authorization", &format!("Bearer {token}")).send().await.status
    };
    // Who may is told that there is no such thing to do.
    assert_eq!((ask("0123456789abcdef").await, ask("another-one-0123").await), (405, 403));
    std::fs::write(&file, "another-one-0123").unwrap();
    assert_eq!((ask("0123456789abcdef").await, ask("another-one-0123").await), (403, 405));
    std::fs::write(&file, "short").unwrap();
    assert_eq!(ask("short").await, 403);
}

#[tokio::test]
async fn ls_lists_names_and_says_where_it_has_asked() {
    let scene = Scene::new().await;
    scene.push(1, &[10]);
    scene.upstream.push("other/thing", "v1", &Image::random(2, &[10]));
    scene.get_manifest("1").await.bytes().await.unwrap();
    let path = format!("/v2/{HOST}/other/thing/manifests/v1");
    scene.larder.get(&path).await.bytes().await.unwrap();
    let names = async |arguments: &[&str]| {
        let shown = scene.larder.command(arguments).await.expect("ls");
        let names = shown.lines().skip(1).map(|line| line.split(' ').next().unwrap().to_owned());
        names.collect::<Vec<_>>()
    };
    let (app, thing) = (format!("{HOST}/{REPOSITORY}:1"), format!("{HOST}/other/thing:v1"));
    assert_eq!(names(&["ls"]).await, [thing.clone(), app.clone()]);
    assert_eq!(names(&["ls", "team"]).await, [app]);
    assert_eq!(names(&["ls", "*:v?"]).await, [thing]);
    assert_eq!(names(&["ls", "nothing"]).await, [""; 0]);
    let json: Value =
        serde_json::from_str(&scene.larder.command(&["ls", "--json"]).await.expect("ls")).unwrap();
    assert_eq!((&json["version"], json["images"].as_array().unwrap().len()), (&json!(1), 2));

    let ended = scene.larder.command(&["ls", "--server", "http://127.0.0.1:9"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("is `larder serve` running there?"), "{}", ended.stderr);
    let ended = scene.larder.command(&["ls", "--server", "127.0.0.1:5001"]).await;
    assert_eq!(ended.code, Some(2), "{}", ended.stderr);
    // The address for images is not the one for this.
    let ended = scene.larder.command(&["ls", "--server", &scene.larder.url("")]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("no larder's admin address"), "{}", ended.stderr);
}

async fn api(scene: &Scene, path: &str) -> Value {
    let response = scene.larder.admin(&format!("/api/v1{path}")).await;
    assert_eq!(response.status, 200, "{path}");
    let mut answer = response.json().await;
    assert_eq!(answer.as_object_mut().unwrap().remove("version"), Some(json!(1)));
    answer
}

async fn images(scene: &Scene, query: &str) -> Value {
    api(scene, &format!("/images{query}")).await["images"].clone()
}

/// Fetches all blobs of an image.
async fn pull(scene: &Scene, image: &Image) {
    for blob in image.blobs() {
        scene.get_blob(&blob.digest).await.expect_body(&blob.bytes).await.unwrap();
    }
}
