//! Images fetched ahead, taken away in a file, and brought where no registry is.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeSet;
use std::path::Path;

use larder_core::Digest;
use larder_testkit::Image;
use larder_tests::scene::{HOST, REPOSITORY, blob_path, manifest_path};
use larder_tests::scratch::digests_below;
use larder_tests::{Larder, Scene, Skopeo};
use serde_json::Value;

const SIGNATURE: &str = "application/x-signature";

#[tokio::test]
async fn what_was_warmed_is_there_for_its_platforms_and_asks_nobody() {
    let scene = Scene::with("freshness = \"1h\"").await;
    let [ours, theirs] = platforms();
    let index = Image::index(vec![ours.clone(), theirs.clone()]);
    scene.upstream.push(REPOSITORY, "1", &index);
    let signature = Image::artifact(SIGNATURE, b"signed", Some(&index));
    scene.upstream.push_untagged(REPOSITORY, &signature);

    let name = format!("{HOST}/{REPOSITORY}:1");
    let arguments = ["warm", &name, "--platform", "linux/ppc64le", "--referrers"];
    let shown = scene.larder.command(&arguments).await.expect("warm");
    assert!(shown.contains(&name) && shown.contains(&index.digest().to_string()), "{shown}");
    assert_eq!(scene.upstream.n_fetches(theirs.digest()), 0);
    scene.upstream.forget_requests();
    let manifests = [&index, &ours, &signature].map(|image| image.manifest.clone());
    for manifest in manifests {
        let path = manifest_path(&manifest.digest.to_string());
        scene.larder.get(&path).await.expect_body(&manifest.bytes).await.unwrap();
    }
    for blob in ours.blobs().chain(signature.blobs()) {
        scene.expect_blob(&blob.digest, &blob.bytes, "hit").await;
    }
    assert_eq!(scene.upstream.requests().len(), 0);

    let all = scene.larder.command(&["warm", &name, "--platform", "all", "--json"]).await;
    let all: Value = serde_json::from_str(&all.expect("warm")).unwrap();
    let blobs = ours.blobs().chain(theirs.blobs()).map(|blob| &blob.digest);
    assert_eq!(all["images"][0]["blobs"], blobs.collect::<BTreeSet<_>>().len());
    assert_eq!(all["images"][0]["bytes"], all["images"][0]["total_bytes"]);
    assert_eq!(scene.upstream.n_fetches(theirs.digest()), 1);
}

#[tokio::test]
async fn what_cannot_be_warmed_is_named_and_the_rest_is_fetched() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[100_000]);
    let index = Image::index(platforms().to_vec());
    scene.upstream.push(REPOSITORY, "all", &index);
    let list = scene.larder.data().parent().unwrap().join("images.txt");
    let names = [1, 2].map(|n| format!("{HOST}/{REPOSITORY}:{n}"));
    std::fs::write(&list, format!("# images\n{}\n{}\n", names[0], names[1])).unwrap();
    let other = format!("{HOST}/{REPOSITORY}:all");
    let list = list.to_str().unwrap();
    let arguments = ["warm", "nohost.test/a", &other, "--file", list, "--platform", "linux/s390x"];
    let ended = scene.larder.command(&arguments).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains(&names[0]), "{}", ended.stdout);
    for part in
        [&names[1], "`nohost.test` is not a known upstream", "but for linux/ppc64le, linux/"]
    {
        assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
    }
    let layer = &image.layers[0];
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
    assert_eq!(scene.larder.command(&["warm"]).await.code, Some(2));
}

#[tokio::test]
async fn an_exported_image_is_served_where_no_registry_is() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[3 << 20, 1000]);
    let signature = Image::artifact(SIGNATURE, b"signed", Some(&image));
    scene.upstream.push_untagged(REPOSITORY, &signature);
    let (name, file) = (format!("{HOST}/{REPOSITORY}:1"), archive(&scene, "all.tar"));
    scene.larder.command(&["export", &name, "-o", &file, "--referrers"]).await.expect("export");

    let offline = offline().await;
    let shown = offline.command(&["import", &file]).await.expect("import");
    assert!(shown.contains(&name), "{shown}");
    let manifest = offline.get(&manifest_path("1")).await;
    assert_eq!(manifest.header("content-type"), image.manifest.media_type);
    manifest.expect_body(&image.manifest.bytes).await.unwrap();
    for blob in image.blobs().chain(signature.blobs()) {
        offline.get(&blob_path(&blob.digest)).await.expect_body(&blob.bytes).await.unwrap();
    }
    let path = format!("/v2/{HOST}/{REPOSITORY}/referrers/{}", image.digest());
    let referrers = offline.get(&path).await.json().await;
    assert_eq!(referrers["manifests"][0]["digest"], signature.digest().to_string());
    let again = offline.command(&["import", &file]).await.expect("import");
    assert!(again.contains("0 B in 0 blobs"), "{again}");

    // Only what is not there: the next version shares a layer.
    let next = Image::random(1, &[3 << 20, 2000]);
    assert_eq!(next.layers[0], image.layers[0]);
    scene.upstream.push(REPOSITORY, "2", &next);
    let have = scene.larder.data().parent().unwrap().join("have.txt");
    std::fs::write(&have, offline.command(&["ls", "--digests"]).await.expect("ls")).unwrap();
    let (name, file) = (format!("{HOST}/{REPOSITORY}:2"), archive(&scene, "more.tar"));
    let arguments = ["export", &name, "-o", &file, "--without", have.to_str().unwrap()];
    scene.larder.command(&arguments).await.expect("export");
    assert!(std::fs::metadata(&file).unwrap().len() < 1 << 20);
    offline.command(&["import", &file]).await.expect("import");
    let manifest = offline.get(&manifest_path("2")).await;
    manifest.expect_body(&next.manifest.bytes).await.unwrap();

    // Where the rest is not, that is said.
    let empty = Larder::settings().config(&config()).start().await;
    let ended = empty.command(&["import", &file]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("neither in the file nor stored"), "{}", ended.stderr);
}

#[tokio::test]
async fn skopeo_reads_what_is_exported_and_what_it_writes_is_imported() {
    let scene = Scene::new().await;
    // skopeo packs what is not packed.
    let image = Image::from_seed(1).layers(&[100_000, 1000]).unpackable().build();
    scene.upstream.push(REPOSITORY, "1", &image);
    let (name, file) = (format!("{HOST}/{REPOSITORY}:1"), archive(&scene, "all.tar"));
    scene.larder.command(&["export", &name, "-o", &file]).await.expect("export");
    let skopeo = Skopeo::default();
    let folder = skopeo.folder("copied");
    let to = format!("dir:{}", folder.display());
    skopeo.copy(&format!("oci-archive:{file}:1"), &to).await.expect("skopeo");
    let copied: BTreeSet<Digest> = digests_below(&folder).into_values().collect();
    assert!(image.blobs().all(|blob| copied.contains(&blob.digest)));

    let theirs = archive(&scene, "theirs.tar");
    let from = format!("docker://{}/{HOST}/{REPOSITORY}:1", scene.larder.host);
    skopeo.copy(&from, &format!("oci-archive:{theirs}:some-name")).await.expect("skopeo");
    let offline = offline().await;
    let ended = offline.command(&["import", &theirs]).await;
    assert!(ended.stderr.contains("--as HOST/NAME:TAG says it"), "{}", ended.stderr);
    let name = format!("{HOST}/other/name:v1");
    offline.command(&["import", &theirs, "--as", &name]).await.expect("import");
    for blob in image.blobs() {
        let path = format!("/v2/{HOST}/other/name/blobs/{}", blob.digest);
        offline.get(&path).await.expect_body(&blob.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn a_damaged_archive_leaves_nothing_wrong_behind() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[500_000]);
    let (name, file) = (format!("{HOST}/{REPOSITORY}:1"), archive(&scene, "all.tar"));
    scene.larder.command(&["export", &name, "-o", &file]).await.expect("export");
    let mut bytes = std::fs::read(&file).unwrap();
    let layer = &image.layers[0];
    let at = bytes.windows(64).position(|window| window == &layer.bytes[1000..1064]).unwrap();
    bytes[at] ^= 1;
    std::fs::write(&file, &bytes).unwrap();
    let offline = offline().await;
    let ended = offline.command(&["import", &file]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("not what its name says"), "{}", ended.stderr);
    assert_eq!(offline.get(&blob_path(&layer.digest)).await.status, 404);
    assert_eq!(offline.get(&manifest_path("1")).await.status, 404);

    std::fs::write(&file, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(offline.command(&["import", &file]).await.code, Some(1));
    let ended = offline.command(&["import", "/dev/null"]).await;
    assert!(ended.stderr.contains("no index.json"), "{}", ended.stderr);
}

#[tokio::test]
async fn what_is_not_stored_is_not_exported_and_leaves_no_file() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[100]);
    scene.get_manifest("1").await.expect_body(&image.manifest.bytes).await.unwrap();
    let (name, file) = (format!("{HOST}/{REPOSITORY}:1"), archive(&scene, "all.tar"));
    let ended = scene.larder.command(&["export", &name, "-o", &file, "--stored"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("2 of its blobs are missing"), "{}", ended.stderr);
    assert!(!Path::new(&file).exists());
}

/// One image for the platform that was asked for in these tests, and one for another.
fn platforms() -> [Image; 2] {
    [(3, "ppc64le"), (4, "arm64")].map(|(seed, architecture)| {
        Image::from_seed(seed).layers(&[200_000, 1000]).platform("linux", architecture).build()
    })
}

fn config() -> String {
    format!("[upstreams.\"{HOST}\"]\nurls = \"http://127.0.0.1:9\"\n")
}

async fn offline() -> Larder {
    Larder::settings().config(&config()).arguments(&["--offline"]).start().await
}

fn archive(scene: &Scene, name: &str) -> String {
    scene.larder.data().parent().unwrap().join(name).to_str().unwrap().to_owned()
}
