//! What stays and what goes, as people say and ask it: `larder pin`, `gc`, `du`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_testkit::{Image, Upstream, patiently};
use larder_tests::Scene;
use larder_tests::scene::{HOST, REPOSITORY};

const MIB: usize = 1 << 20;

#[tokio::test]
async fn a_pinned_image_stays_while_others_push_each_other_out() {
    let upstream = Upstream::start().await;
    let larder = Scene::settings(&upstream, "").arguments(&["--budget", "8MiB"]).start().await;
    let scene = Scene { upstream, larder };
    let image = pushed(&scene, "stays", 1, 2 * MIB);
    let pattern = format!("{HOST}/{REPOSITORY}:stays");
    scene.larder.command(&["pin", &pattern]).await.expect("pin");
    assert_eq!(
        scene.larder.command(&["ls", "--pinned"]).await.expect("ls"),
        format!("{pattern}\n")
    );
    pull(&scene, "stays", &image).await;
    for n in 0..8 {
        let other = pushed(&scene, &format!("other-{n}"), 10 + n, 2 * MIB);
        pull(&scene, &format!("other-{n}"), &other).await;
    }
    assert!(scene.larder.metric("larder_evicted_bytes_total", &[]).await > 0.0);
    for blob in image.blobs() {
        scene.expect_blob(&blob.digest, &blob.bytes, "hit").await;
    }

    scene.larder.command(&["unpin", &pattern]).await.expect("unpin");
    let error = scene.larder.command(&["unpin", &pattern]).await.ok().unwrap_err();
    assert!(error.contains("is not pinned"), "{error}");
    let error = scene.larder.command(&["pin", "alpine"]).await.ok().unwrap_err();
    assert!(error.contains("registry's host"), "{error}");
}

#[tokio::test]
async fn what_would_go_is_said_with_its_reason_before_it_goes() {
    let upstream = Upstream::start().await;
    let settings = Scene::settings(&upstream, "ttl = \"1s\"\n");
    let scene = Scene { larder: settings.start().await, upstream };
    let image = pushed(&scene, "v1", 1, 1000);
    pull(&scene, "v1", &image).await;
    patiently("it has gone unused for a second", async {
        while scene.larder.metric("larder_evicted_bytes_total", &[]).await == 0.0 {
            let said = scene.larder.command(&["gc", "--dry-run"]).await.expect("gc --dry-run");
            let is_said = said.contains("unused for more than 1s");
            assert!(is_said || said.starts_with("would remove 0 blobs"), "{said}");
            tokio::task::yield_now().await;
        }
    })
    .await;
    let said = scene.larder.command(&["gc"]).await.expect("gc");
    assert!(said.starts_with("removed "), "{said}");
    scene.expect_blob(&image.layers[0].digest, &image.layers[0].bytes, "miss").await;
}

#[tokio::test]
async fn who_takes_how_much_is_told_by_upstream_and_repository() {
    let scene = Scene::new().await;
    let image = pushed(&scene, "v1", 1, 10 * MIB);
    pull(&scene, "v1", &image).await;
    let said = scene.larder.command(&["du"]).await.expect("du");
    let line = |name: &str| {
        let line = said.lines().find(|line| line.ends_with(name));
        line.unwrap_or_else(|| panic!("{name} in {said}")).trim().to_owned()
    };
    assert!(line(HOST).starts_with("10.0 MiB"), "{said}");
    assert!(line(&format!("{HOST}/{REPOSITORY}")).starts_with("10.0 MiB"), "{said}");
    let said = scene.larder.command(&["du", "--json"]).await.expect("du --json");
    let said: serde_json::Value = serde_json::from_str(&said).unwrap();
    assert_eq!(said["version"], 1);
    assert_eq!(said["upstreams"][0]["host"], HOST);
    assert_eq!(said["bytes"], said["upstreams"][0]["bytes"]);
}

fn pushed(scene: &Scene, tag: &str, seed: u64, len: usize) -> Image {
    let image = Image::random(seed, &[len]);
    scene.upstream.push(REPOSITORY, tag, &image);
    image
}

async fn pull(scene: &Scene, tag: &str, image: &Image) {
    scene.get_manifest(tag).await.bytes().await.unwrap();
    for blob in image.blobs() {
        scene.get_blob(&blob.digest).await.bytes().await.unwrap();
    }
}
