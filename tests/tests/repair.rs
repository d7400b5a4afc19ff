//! What a disk forgets is found, reaches nobody, and is fetched again.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use larder_core::Digest;
use larder_testkit::process::{peer, run};
use larder_testkit::random::Numbers;
use larder_testkit::{Fault, Gate, Image, On, Upstream, patiently};
use larder_tests::Scene;
use larder_tests::larder::Larder;
use larder_tests::scene::{HOST, REPOSITORY};
use larder_tests::scratch::files_below;
use serde_json::Value;

const N_FLIPS: usize = 1000;

#[tokio::test]
async fn a_thousand_flipped_bits_are_found_and_no_client_gets_one_of_them() {
    let scene = Scene::new().await;
    let images = many_images(&scene);
    pull_all(&scene, &images, |_| None).await;
    let mut random = Numbers::new(7);

    // First they are fetched again when clients want them.
    let flipped = flip_bits(&scene.larder, &mut random, N_FLIPS);
    let ended = scene.larder.command(&["verify"]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(bad_of(&ended.stdout, ""), flipped);
    assert!(ended.stdout.contains(&format!(": {N_FLIPS} bad\n")), "{}", ended.stdout);
    let is_flipped = |digest: &Digest| flipped.contains(&digest.to_string());
    let outcome = |digest: &Digest| Some(if is_flipped(digest) { "miss" } else { "hit" });
    pull_all(&scene, &images, outcome).await;
    assert_eq!(scene.larder.metric("larder_corrupt_total", &[]).await, N_FLIPS as f64);

    // And then at once.
    let flipped = flip_bits(&scene.larder, &mut random, N_FLIPS);
    let ended = scene.larder.command(&["verify", "--repair"]).await;
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert_eq!(bad_of(&ended.stdout, " fetched again"), flipped);
    scene.upstream.forget_requests();
    pull_all(&scene, &images, |_| Some("hit")).await;
    assert_eq!(scene.upstream.requests().len(), 0);
    let ended = scene.larder.command(&["verify"]).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stdout);
    assert!(files_below(&scene.larder.data().join("quarantine")).len() <= 16);
}

#[tokio::test]
async fn a_body_that_is_being_sent_goes_on_with_right_bytes_when_wrong_ones_are_found() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[40 << 20]);
    let layer = &image.layers[0];
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    let mut reading = scene.get_blob(&layer.digest).await;
    let begun = reading.at_least(1).await;
    // Beyond what the sockets hold.
    flip_bit(&path_of(&scene.larder, &layer.digest), 39 << 23);
    assert_eq!(scene.larder.command(&["verify"]).await.code, Some(1));
    reading.expect_body(&layer.bytes[begun.len()..]).await.unwrap();
    assert_eq!(scene.upstream.n_fetches(&layer.digest), 2);
    scene.expect_blob(&layer.digest, &layer.bytes, "hit").await;
}

#[tokio::test]
async fn what_cannot_be_fetched_again_is_named_with_the_reason() {
    let mut scene = Scene::new().await;
    let image = scene.push(1, &[1000]);
    pull_all(&scene, std::slice::from_ref(&image), |_| None).await;
    fs::remove_file(path_of(&scene.larder, &image.layers[0].digest)).unwrap();
    scene.upstream.stop().await;
    let ended = scene.larder.command(&["verify", "--repair"]).await;
    assert_eq!(ended.code, Some(1));
    let digest = &image.layers[0].digest;
    let line = format!("missing {digest} could not be fetched again: {HOST}/{REPOSITORY}: ");
    assert!(ended.stdout.contains(&line), "{}", ended.stdout);
    // It is when upstream is back and a client asks.
    scene.upstream.resume().await;
    scene.get_blob(digest).await.expect_body(&image.layers[0].bytes).await.unwrap();
}

#[tokio::test]
async fn one_verification_is_under_way_at_a_time_and_can_be_ended() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[1000]);
    pull_all(&scene, std::slice::from_ref(&image), |_| None).await;
    let layer = &image.layers[0];
    assert_eq!(scene.larder.admin("/api/v1/verify").await.status, 404);
    flip_bit(&path_of(&scene.larder, &layer.digest), 9);
    let gate = Gate::closed();
    scene.upstream.fault(On::digest(&layer.digest), Fault::Wait(gate.clone()));
    let post = async |body: &'static str| {
        scene.larder.admin_request("POST", "/api/v1/verify").body(body).send().await
    };
    assert_eq!(post("{\"repare\": true}").await.status, 400);
    let begun = post("{\"repair\": true}").await;
    assert_eq!(begun.status, 202);
    assert_eq!(begun.json().await["total_blobs"], 3);
    gate.reached(1).await;
    let refused = scene.larder.command(&["verify"]).await;
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("under way already"), "{}", refused.stderr);
    let now = scene.larder.admin("/api/v1/verify").await.json().await;
    assert_eq!((&now["state"], &now["n_bad"]), (&Value::from("running"), &Value::from(1)));
    assert_eq!(now["bad"][0]["repair"], "pending");

    let delete = scene.larder.admin_request("DELETE", "/api/v1/verify").send().await;
    assert_eq!(delete.status, 204);
    let ended = larder_testkit::patiently("it ends", async {
        loop {
            let now = scene.larder.admin("/api/v1/verify").await.json().await;
            if now["state"] != "running" {
                return now;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(ended.await["state"], "cancelled");
    gate.open();
    assert_eq!(scene.larder.command(&["verify"]).await.code, Some(0));
}

#[tokio::test]
async fn a_store_that_nobody_has_open_is_verified_by_its_directory() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[3 << 20, 10]);
    pull_all(&scene, std::slice::from_ref(&image), |_| None).await;
    let data = scene.larder.data();
    let data = data.to_str().unwrap();
    let ended = scene.larder.command(&["verify", "--data", data]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("in use by another larder"), "{}", ended.stderr);
    assert_eq!(scene.larder.command(&["verify", "--data", data, "--repair"]).await.code, Some(2));

    let Scene { upstream, larder } = scene;
    larder.terminate();
    let (_, settings) = larder.wait().await;
    let ended = settings.offline(&["verify"]).await;
    assert_eq!((ended.code, ended.stdout.contains("0 bad")), (Some(0), true), "{}", ended.stdout);
    let digest = &image.layers[0].digest;
    flip_bit(&blob_below(&settings.data(), digest), 8 * (2 << 20) + 3);
    let ended = settings.offline(&["verify", "--json"]).await;
    assert_eq!(ended.code, Some(1));
    let told: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&told["version"], &told["n_bad"]), (&Value::from(1), &Value::from(1)));
    assert_eq!(told["bad"][0]["digest"], digest.to_string());
    assert_eq!(told["bad"][0]["fault"], "corrupt");
    let nowhere = settings.scratch().join("nowhere");
    let scene = Scene { upstream, larder: settings.start().await };
    scene.expect_blob(digest, &image.layers[0].bytes, "miss").await;
    let ended = scene.larder.command(&["verify", "--data", nowhere.to_str().unwrap()]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stderr.contains("there is no store in"), "{}", ended.stderr);
}

#[tokio::test]
async fn after_its_index_is_lost_a_store_is_used_again_without_a_download() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[3 << 20, 1000]);
    let by_digest = Image::random(2, &[2000]);
    scene.upstream.push_untagged(REPOSITORY, &by_digest);
    let images = [image, by_digest];
    pull_all(&scene, &images, |_| None).await;

    let Scene { upstream, larder } = scene;
    larder.terminate();
    let (_, settings) = larder.wait().await;
    fs::remove_file(settings.data().join("index.sqlite")).unwrap();
    let said = settings.offline(&["rebuild-index"]).await.expect("rebuild-index");
    assert!(said.starts_with("the index has 7 blobs of 3.00 MiB, 2 of them manifests"), "{said}");
    let scene = Scene { upstream, larder: settings.start().await };

    scene.upstream.forget_requests();
    // By digest upstream says that the repository has the manifest; the rest follows from that.
    let digest = images[1].digest().to_string();
    let manifest = scene.get_manifest(&digest).await;
    assert_eq!((manifest.status, manifest.outcome()), (200, "hit"));
    pull_all(&scene, &images[1..], |_| Some("hit")).await;
    let methods: Vec<String> =
        scene.upstream.requests().iter().map(|it| it.method.clone()).collect();
    assert_eq!(methods, ["HEAD"]);
    // By tag it is the manifest that is fetched, as what a tag names is not known.
    scene.get_manifest("1").await.expect_body(&images[0].manifest.bytes).await.unwrap();
    pull_all(&scene, &images[..1], |_| Some("hit")).await;
    assert_eq!(scene.upstream.count(|request| request.path.contains("/blobs/")), 0);

    // Nothing is served where upstream does not have it.
    let path = format!("/v2/{HOST}/other/app/blobs/{}", images[0].layers[0].digest);
    assert_eq!(scene.larder.get(&path).await.status, 404);
}

#[tokio::test]
async fn an_offline_server_finds_what_is_bad_and_serves_it_no_more() {
    let upstream = Upstream::start().await;
    let scene = Scene { larder: Scene::settings(&upstream, "").start().await, upstream };
    let image = scene.push(1, &[1000]);
    pull_all(&scene, std::slice::from_ref(&image), |_| None).await;
    let settings = Scene::settings(&scene.upstream, "").data_of(&scene.larder);
    let Scene { upstream, larder } = scene;
    larder.terminate();
    let (_, _scratch) = larder.wait().await;
    let larder = settings.arguments(&["--offline"]).start().await;
    let scene = Scene { upstream, larder };
    let layer = &image.layers[0];
    flip_bit(&path_of(&scene.larder, &layer.digest), 1);
    let ended = scene.larder.command(&["verify", "--repair"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("`offline` is set"), "{}", ended.stdout);
    assert_eq!(scene.get_blob(&layer.digest).await.status, 404);
}

#[tokio::test]
async fn the_scrub_finds_what_is_bad_without_anybody_asking_and_it_is_served_to_nobody() {
    let upstream = Upstream::start().await;
    let settings = Scene::settings(&upstream, "").config_first("scrub = \"1h\"");
    let scene = Scene { larder: settings.start().await, upstream };
    let image = scene.push(1, &[3 << 20, 2 << 20, 1 << 20]);
    pull_all(&scene, std::slice::from_ref(&image), |_| None).await;
    let [corrupt, missing, _] = &image.layers[..] else { unreachable!() };

    let Scene { upstream, larder } = scene;
    larder.terminate();
    let (_, settings) = larder.wait().await;
    let data = settings.data();
    flip_bit(&blob_below(&data, &corrupt.digest), 8 * (1 << 20));
    fs::remove_file(blob_below(&data, &missing.digest)).unwrap();
    // All of it is due, as it would be if it had been stored two hours ago.
    let statement = "UPDATE blobs SET stored_at = stored_at - 7200000";
    let ended = run(peer("sqlite3", "sqlite3").arg(data.join("index.sqlite")).arg(statement)).await;
    ended.expect("making it older");
    upstream.forget_requests();
    let scene = Scene { upstream, larder: settings.start().await };

    let n_corrupt = async || scene.larder.metric("larder_corrupt_total", &[]).await;
    patiently("both are found", async { while n_corrupt().await < 2.0 {} }).await;
    let path = blob_below(&data, &corrupt.digest);
    patiently("it is out of its place", async { while path.exists() {} }).await;
    let kept = files_below(&data.join("quarantine"));
    let [kept] = &kept[..] else { panic!("{kept:?}") };
    let kept = fs::read(kept).unwrap();
    assert_eq!(kept.len(), corrupt.bytes.len());
    assert_ne!(kept, corrupt.bytes);
    assert_eq!(scene.upstream.requests().len(), 0, "nobody has asked for it");

    let is_bad = |digest: &Digest| [&corrupt.digest, &missing.digest].contains(&digest);
    let outcome = |digest: &Digest| Some(if is_bad(digest) { "miss" } else { "hit" });
    pull_all(&scene, std::slice::from_ref(&image), outcome).await;
    for layer in [corrupt, missing] {
        assert_eq!(scene.upstream.n_fetches(&layer.digest), 1);
    }
    pull_all(&scene, std::slice::from_ref(&image), |_| Some("hit")).await;
    let ended = scene.larder.command(&["verify"]).await;
    assert_eq!((ended.code, n_corrupt().await), (Some(0), 2.0), "{}", ended.stdout);
}

/// Images with some 1,100 small blobs and a few larger ones, all under one repository.
fn many_images(scene: &Scene) -> Vec<Image> {
    let images = (0..50).map(|seed| {
        let mut sizes: Vec<usize> = (0..20).map(|n| 1000 + 37 * n).collect();
        if seed % 10 == 0 {
            sizes.push(3 << 20);
        }
        let image = Image::random(seed, &sizes);
        scene.upstream.push(REPOSITORY, &format!("v{seed}"), &image);
        image
    });
    images.collect()
}

/// Fetches the manifests and blobs of all images, whole and right, each with its outcome if one is
/// expected.
async fn pull_all(
    scene: &Scene,
    images: &[Image],
    outcome: impl Fn(&Digest) -> Option<&'static str>,
) {
    for image in images {
        let digest = image.digest();
        let response = scene.get_manifest(&digest.to_string()).await;
        assert_eq!(response.status, 200, "{digest}");
        assert!(outcome(digest).is_none_or(|it| it == response.outcome()), "{digest}");
        response.expect_body(&image.manifest.bytes).await.unwrap();
        for blob in image.blobs() {
            let response = scene.get_blob(&blob.digest).await;
            assert_eq!(response.status, 200, "{}", blob.digest);
            let expected = outcome(&blob.digest);
            assert!(expected.is_none_or(|it| it == response.outcome()), "{}", blob.digest);
            response.expect_body(&blob.bytes).await.unwrap();
        }
    }
}

/// Flips one bit in each of `n` stored blobs, and says which.
fn flip_bits(larder: &Larder, random: &mut Numbers, n: usize) -> BTreeSet<String> {
    let mut files = files_below(&larder.data().join("blobs"));
    files.sort();
    assert!(files.len() >= n, "{}", files.len());
    let mut flipped = BTreeSet::new();
    while flipped.len() < n {
        let path = files.swap_remove(random.below(files.len() as u64) as usize);
        flip_bit(&path, random.below(path.metadata().unwrap().len() * 8));
        flipped.insert(format!("sha256:{}", path.file_name().unwrap().to_str().unwrap()));
    }
    flipped
}

fn flip_bit(path: &std::path::Path, bit: u64) {
    use std::os::unix::fs::FileExt as _;
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, bit / 8).unwrap();
    file.write_all_at(&[byte[0] ^ (1 << (bit % 8))], bit / 8).unwrap();
}

/// The digests of the lines `corrupt DIGEST…` that end in `ending`.
fn bad_of(stdout: &str, ending: &str) -> BTreeSet<String> {
    let digest = |line: &str| {
        let digest = line.strip_prefix("corrupt ")?.strip_suffix(ending)?;
        (!digest.contains(' ')).then(|| digest.to_owned())
    };
    stdout.lines().filter_map(digest).collect()
}

fn path_of(larder: &Larder, digest: &Digest) -> PathBuf {
    blob_below(&larder.data(), digest)
}

fn blob_below(data: &std::path::Path, digest: &Digest) -> PathBuf {
    let hex = digest.hex();
    data.join("blobs").join(digest.algorithm()).join(&hex[..2]).join(hex)
}
