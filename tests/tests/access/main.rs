//! Who may read what, where each caller's own right counts (`access = "caller"`).

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod world;

use larder_core::{Digest, media};
use larder_testkit::{Content, Fault, Gate, Image, On, Upstream};
use larder_tests::scene::HOST;
use larder_tests::{Scene, http};

use crate::world::*;

/// Every right is proved for every request.
const NO_MEMORY: &str = "access = \"caller\"\naccess_memory = \"0s\"\n";

#[tokio::test]
async fn nobody_gets_anything_that_upstream_would_not_give_them() {
    for by_token in [false, true] {
        let world = World::new(by_token, "access = \"caller\"\n").await;
        let image = world.push(PRIVATE, 1, &[100, 2 << 20]);
        world.push(OTHER, 2, &[100]);
        world.expect_image(ALICE, PRIVATE, &image).await;

        let stranger = world.as_caller(MALLORY, PRIVATE);
        let nobody = String::new();
        let wrong = basic(("alice", "wrong"));
        for shown in [&stranger, &nobody, &wrong] {
            for path in everything(PRIVATE, &image) {
                for method in ["GET", "HEAD"] {
                    let refused = world.send(method, &path, shown).await;
                    assert_refused(refused, &format!("{method} {path} {shown}")).await;
                }
                let part = world.request("GET", &path, shown).header("range", "bytes=0-9");
                assert_refused(part.send().await, &format!("a part of {path} {shown}")).await;
                let has = world.request("GET", &path, shown).header("if-none-match", "*");
                assert_refused(has.send().await, &format!("{path} {shown}, which it has")).await;
            }
        }
        // Nor by the name of a repository that they may read.
        let own = world.as_caller(MALLORY, OTHER);
        for content in image.blobs() {
            let guess = world.send("GET", &blob(OTHER, &content.digest), &own).await;
            assert_eq!(guess.status, 404);
        }
        let guess = manifest(OTHER, &image.digest().to_string());
        assert_eq!(world.send("GET", &guess, &own).await.status, 404);
        // What is stored is still there for who may have it.
        world.expect_image(ALICE, PRIVATE, &image).await;
    }
}

#[tokio::test]
async fn what_everybody_may_read_needs_no_login() {
    for by_token in [false, true] {
        let world = World::new(by_token, "access = \"caller\"\n").await;
        let image = world.push(PUBLIC, 1, &[100, 2 << 20]);
        for _ in 0..2 {
            for (path, content) in content(PUBLIC, &image) {
                let answer = world.send("GET", &path, "").await;
                assert_eq!(answer.status, 200, "{path}");
                answer.expect_body(&content.bytes).await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn who_is_refused_is_told_what_upstream_wants_to_see() {
    let world = World::new(true, "access = \"caller\"\nalias = \"ours\"\n").await;
    let image = world.push(PRIVATE, 1, &[100]);
    let url = world.upstream.url();
    let expected = format!(
        "Bearer realm=\"{url}/token\",service=\"testkit\",scope=\"repository:{PRIVATE}:pull\""
    );
    let by_ns = format!("/v2/{PRIVATE}/manifests/1?ns={HOST}");
    let by_alias = format!("/v2/ours/{PRIVATE}/blobs/{}", image.layers[0].digest);
    for path in [manifest(PRIVATE, "1"), by_ns, by_alias] {
        let refused = world.send("GET", &path, "").await;
        assert_eq!((refused.status, refused.header("www-authenticate")), (401, &*expected));
        assert_eq!(refused.error_code().await, "UNAUTHORIZED");
    }
    let world = World::new(false, "access = \"caller\"\n").await;
    world.push(PRIVATE, 1, &[100]);
    let refused = world.send("GET", &manifest(PRIVATE, "1"), &basic(MALLORY)).await;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, "Basic realm=\"testkit\"")
    );
}

#[tokio::test]
async fn those_who_show_nothing_cost_upstream_little() {
    let world = World::new(true, "access = \"caller\"\n").await;
    let image = world.push(PRIVATE, 1, &[100]);
    for path in everything(PRIVATE, &image).iter().cycle().take(50) {
        assert_eq!(world.send("GET", path, "").await.status, 401);
    }
    // What it takes to hear what upstream wants is remembered for five seconds, of which this takes
    // one or two.
    let n_asked = world.upstream.count(|_| true);
    assert!(n_asked < 50, "{n_asked}");
}

#[tokio::test]
async fn a_client_that_looks_for_a_login_at_the_base_finds_it() {
    for by_token in [false, true] {
        let upstream = Upstream::start().await;
        upstream.require(login(by_token));
        let settings = Scene::settings(&upstream, "access = \"caller\"\n");
        let settings = settings.config_first(&format!("default_upstream = \"{HOST}\""));
        let world = World { upstream, larder: settings.start().await, by_token };
        let bare = world.send("GET", "/v2/", "").await;
        let direct = http::get(&format!("{}/v2/", world.upstream.url())).send().await;
        assert_eq!((bare.status, direct.status), (401, 401));
        assert_eq!(bare.header("www-authenticate"), direct.header("www-authenticate"));
        if !by_token {
            assert_eq!(world.send("GET", "/v2/", &basic(ALICE)).await.status, 200);
            assert_eq!(world.send("GET", "/v2/", &basic(("alice", "wrong"))).await.status, 401);
        }
    }
}

#[tokio::test]
async fn a_stored_image_is_asked_about_once_in_the_time_that_a_right_counts() {
    let world = World::new(false, "access = \"caller\"\n").await;
    let image = world.push(PRIVATE, 1, &[100, 100, 100]);
    world.expect_image(ALICE, PRIVATE, &image).await;
    world.upstream.forget_requests();
    world.expect_image(ALICE, PRIVATE, &image).await;
    assert_eq!(world.upstream.count(|_| true), 0);
    // Another one who may read it is asked about once, and nothing is fetched again.
    world.expect_image(BOB, PRIVATE, &image).await;
    let asked = world.upstream.requests();
    assert_eq!(asked.len(), 1, "{asked:?}");
    assert_eq!(asked[0].header("authorization"), Some(&*basic(BOB)));
}

#[tokio::test]
async fn a_right_that_is_not_remembered_is_proved_each_time() {
    let world = World::new(false, NO_MEMORY).await;
    let image = world.push(PRIVATE, 1, &[100]);
    world.expect_image(ALICE, PRIVATE, &image).await;
    world.upstream.forget_requests();
    world.expect_image(ALICE, PRIVATE, &image).await;
    let n_content = content(PRIVATE, &image).len();
    assert_eq!(world.upstream.count(|it| it.method == "HEAD" && it.status == 200), n_content);
    world.allow(&[BOB]);
    for path in everything(PRIVATE, &image) {
        let refused = world.send("GET", &path, &basic(ALICE)).await;
        assert_refused(refused, &path).await;
    }
    world.expect_image(BOB, PRIVATE, &image).await;
}

#[tokio::test]
async fn a_credential_that_upstream_refuses_loses_its_right_at_once() {
    let world = World::new(false, "access = \"caller\"\n").await;
    let image = world.push(PRIVATE, 1, &[100, 100]);
    let (cold, warm) = (&image.layers[0], &image.layers[1]);
    let get =
        async |digest: &Digest| world.send("GET", &blob(PRIVATE, digest), &basic(ALICE)).await;
    get(&warm.digest).await.expect_body(&warm.bytes).await.unwrap();
    world.allow(&[BOB]);
    // It is still remembered.
    get(&warm.digest).await.expect_body(&warm.bytes).await.unwrap();
    // Upstream is asked for what is not stored, and says no.
    assert_refused(get(&cold.digest).await, "what is not stored").await;
    assert_refused(get(&warm.digest).await, "what is stored").await;
    world.allow(&[ALICE, BOB]);
    get(&cold.digest).await.expect_body(&cold.bytes).await.unwrap();
}

#[tokio::test]
async fn a_callers_refusal_is_not_the_images_end() {
    let config = "access = \"caller\"\nfreshness = \"0s\"\n";
    let world = World::new(false, config).await;
    let image = world.push(PRIVATE, 1, &[100]);
    let tag = manifest(PRIVATE, "1");
    for caller in [ALICE, BOB] {
        let answer = world.send("GET", &tag, &basic(caller)).await;
        answer.expect_body(&image.manifest.bytes).await.unwrap();
    }
    world.allow(&[BOB]);
    // Alice's right is remembered, so it is the tag's own revalidation that is refused.
    assert_refused(world.send("GET", &tag, &basic(ALICE)).await, "a tag").await;
    // What the tag names is still known.
    world.upstream.fault(On::path(""), Fault::Status(503));
    let answer = world.send("GET", &tag, &basic(BOB)).await;
    assert_eq!(answer.outcome(), "stale");
    answer.expect_body(&image.manifest.bytes).await.unwrap();
}

#[tokio::test]
async fn in_an_outage_only_those_are_served_whose_right_was_proved_lately() {
    for fault in [Fault::Status(503), Fault::TooManyRequests { retry_after: 7 }] {
        let world = World::new(false, NO_MEMORY).await;
        let image = world.push(PRIVATE, 1, &[100, 2 << 20]);
        world.expect_image(ALICE, PRIVATE, &image).await;
        world.upstream.fault(On::path(""), fault);
        world.expect_image(ALICE, PRIVATE, &image).await;
        for shown in [basic(BOB), basic(MALLORY), String::new()] {
            for path in everything(PRIVATE, &image) {
                let refused = world.send("GET", &path, &shown).await;
                assert_eq!(refused.status, 503, "{path} {shown}");
                assert_eq!(refused.error_code().await, "UNAVAILABLE");
            }
        }
    }
}

#[tokio::test]
async fn without_a_grace_an_outage_is_one_for_everybody() {
    let mut world = World::new(false, &format!("{NO_MEMORY}access_grace = \"0s\"\n")).await;
    let image = world.push(PRIVATE, 1, &[100]);
    world.expect_image(ALICE, PRIVATE, &image).await;
    world.upstream.stop().await;
    for path in everything(PRIVATE, &image) {
        assert_eq!(world.send("GET", &path, &basic(ALICE)).await.status, 503, "{path}");
    }
}

#[tokio::test]
async fn offline_nobody_has_a_right() {
    let world = World::new(false, "access = \"caller\"\n").await;
    let image = world.push(PRIVATE, 1, &[100]);
    world.expect_image(ALICE, PRIVATE, &image).await;
    let settings =
        Scene::settings(&world.upstream, "access = \"caller\"\n").config_first("offline = true");
    let settings = settings.data_of(&world.larder);
    world.larder.kill();
    let larder = settings.start().await;
    let world = World { larder, upstream: world.upstream, by_token: false };
    for path in everything(PRIVATE, &image) {
        assert_eq!(world.send("GET", &path, &basic(ALICE)).await.status, 503, "{path}");
    }
}

#[tokio::test]
async fn callers_with_a_right_share_one_fill_and_others_read_nothing_of_it() {
    let world = World::new(false, "access = \"caller\"\n").await;
    let image = world.push(PRIVATE, 1, &[8 << 20]);
    let layer = &image.layers[0];
    let path = blob(PRIVATE, &layer.digest);
    let gate = Gate::closed();
    let once = On::digest(&layer.digest).get().times(1);
    world.upstream.fault(once, Fault::WaitAfter(4 << 20, gate.clone()));
    let mut first = world.send("GET", &path, &basic(ALICE)).await;
    let beginning = first.at_least(1 << 20).await;
    let second = world.send("GET", &path, &basic(BOB)).await;
    for shown in [basic(MALLORY), String::new()] {
        assert_refused(world.send("GET", &path, &shown).await, "a fill").await;
        let part = world.request("GET", &path, &shown).header("range", "bytes=0-9");
        assert_refused(part.send().await, "a part of a fill").await;
    }
    let own = world.send("GET", &blob(OTHER, &layer.digest), &basic(MALLORY)).await;
    assert_eq!(own.status, 404);
    gate.open();
    first.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    second.expect_body(&layer.bytes).await.unwrap();
    assert_eq!(world.upstream.n_fetches(&layer.digest), 1);
}

#[tokio::test]
async fn a_fill_goes_on_with_the_credential_of_another_one_who_waits() {
    let world = World::new(false, "access = \"caller\"\n").await;
    let image = world.push(PRIVATE, 1, &[8 << 20]);
    let layer = &image.layers[0];
    let path = blob(PRIVATE, &layer.digest);
    let gate = Gate::closed();
    let once = || On::digest(&layer.digest).get().times(1);
    world.upstream.fault(once(), Fault::WaitAfter(4 << 20, gate.clone()));
    world.upstream.fault(once(), Fault::CutAfter(5 << 20));
    let mut first = world.send("GET", &path, &basic(ALICE)).await;
    let beginning = first.at_least(1 << 20).await;
    let second = world.send("GET", &path, &basic(BOB)).await;
    world.allow(&[BOB]);
    gate.open();
    second.expect_body(&layer.bytes).await.unwrap();
    first.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    assert_eq!(world.upstream.bytes_sent(&layer.digest), 8 << 20);
    // Alice's own right is gone all the same.
    assert_refused(world.send("GET", &path, &basic(ALICE)).await, "a stored blob").await;
}

#[tokio::test]
async fn who_is_refused_before_the_first_byte_gets_none_and_others_get_theirs() {
    let world = World::new(false, NO_MEMORY).await;
    let image = world.push(PRIVATE, 1, &[2 << 20]);
    let (layer, by_digest) = (&image.layers[0], image.digest().to_string());
    let paths = [blob(PRIVATE, &layer.digest), manifest(PRIVATE, &by_digest)];
    for (path, content) in paths.iter().zip([layer, &image.manifest]) {
        world.allow(&[ALICE, BOB]);
        world.upstream.forget_requests();
        let gate = Gate::closed();
        let once = On::digest(&content.digest).get().times(1);
        world.upstream.fault(once, Fault::Wait(gate.clone()));
        let (alice, bob) = (basic(ALICE), basic(BOB));
        let first = tokio::spawn(world.request("GET", path, &alice).send());
        gate.reached(1).await;
        let second = tokio::spawn(world.request("GET", path, &bob).send());
        // His right is proved; then he waits for what was begun in her name.
        let is_proved = |it: &larder_testkit::upstream::Request| {
            it.header("authorization") == Some(&bob) && it.method == "HEAD"
        };
        world.upstream.wait_for("his right is proved", |all| all.iter().any(is_proved)).await;
        while path.contains("/blobs/") && world.n_readers().await < 2 {}
        world.allow(&[BOB]);
        gate.open();
        assert_refused(first.await.unwrap(), path).await;
        second.await.unwrap().expect_body(&content.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn a_fill_that_nobody_has_a_right_to_any_more_is_cut_off() {
    let world = World::new(false, "access = \"caller\"\n").await;
    let image = world.push(PRIVATE, 1, &[8 << 20]);
    let layer = &image.layers[0];
    let once = On::digest(&layer.digest).get().times(1);
    let gate = Gate::closed();
    world.upstream.fault(once.clone(), Fault::WaitAfter(4 << 20, gate.clone()));
    world.upstream.fault(once, Fault::CutAfter(5 << 20));
    let mut first = world.send("GET", &blob(PRIVATE, &layer.digest), &basic(ALICE)).await;
    let beginning = first.at_least(1 << 20).await;
    world.allow(&[]);
    gate.open();
    let end = first.expect_body(&layer.bytes[beginning.len()..]).await;
    assert!(matches!(end, Err(http::BodyError::Aborted { .. })), "{end:?}");
}

#[tokio::test]
async fn a_reference_that_no_registry_checks_gives_no_right() {
    let world = World::new(false, "access = \"caller\"\n").await;
    let image = world.push(PRIVATE, 1, &[100]);
    world.expect_image(ALICE, PRIVATE, &image).await;
    let layer = &image.layers[0];
    let mut forged = Image::random(2, &[100]);
    let config = forged.config.clone().unwrap();
    let text = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_MANIFEST,
        "config": {
            "mediaType": config.media_type, "digest": config.digest, "size": config.bytes.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "digest": layer.digest, "size": layer.bytes.len(), "urls": ["https://elsewhere.test/"],
        }],
    });
    forged.manifest = Content::new(media::OCI_MANIFEST, text.to_string());
    world.upstream.push(OTHER, "1", &forged);
    let get = async |path: &str| world.send("GET", path, &basic(MALLORY)).await;
    get(&manifest(OTHER, "1")).await.expect_body(&forged.manifest.bytes).await.unwrap();
    get(&blob(OTHER, &config.digest)).await.expect_body(&config.bytes).await.unwrap();
    assert_eq!(get(&blob(OTHER, &layer.digest)).await.status, 404);
}

#[tokio::test]
async fn the_catalog_leaves_out_what_not_everybody_may_read() {
    let world = World::new(false, "access = \"caller\"\n").await;
    let image = world.push(PRIVATE, 1, &[100]);
    world.expect_image(ALICE, PRIVATE, &image).await;
    for shown in [basic(ALICE), String::new()] {
        let catalog = world.send("GET", "/v2/_catalog", &shown).await.json().await;
        assert_eq!(catalog["repositories"], serde_json::json!([]));
    }
}

#[tokio::test]
async fn warming_asks_as_nobody_and_harms_nobody() {
    let world = World::new(false, "access = \"caller\"\nfreshness = \"0s\"\n").await;
    let private = world.push(PRIVATE, 1, &[100]);
    let public = world.push(PUBLIC, 2, &[100]);
    world.expect_image(ALICE, PRIVATE, &private).await;
    let warmed = world.larder.command(&["warm", &format!("{HOST}/{PUBLIC}:1")]).await;
    assert_eq!(warmed.code, Some(0), "{warmed:?}");
    assert_eq!(world.upstream.n_fetches(&public.layers[0].digest), 1);
    let refused = world.larder.command(&["warm", &format!("{HOST}/{PRIVATE}:1")]).await;
    assert_eq!(refused.code, Some(1), "{refused:?}");
    world.expect_image(ALICE, PRIVATE, &private).await;
}

#[tokio::test]
async fn refusals_are_counted_and_no_secret_is_told() {
    for by_token in [false, true] {
        let world = World::new(by_token, "access = \"caller\"\n").await;
        let image = world.push(PRIVATE, 1, &[100]);
        world.expect_image(ALICE, PRIVATE, &image).await;
        let path = manifest(PRIVATE, "1");
        let (stranger, odd) = (world.as_caller(MALLORY, PRIVATE), "Basic bWFsbG9yeTpvZGQ=");
        world.send("GET", &path, "").await;
        world.send("GET", &path, &stranger).await;
        let unreadable = world.request("GET", &path, odd).header("authorization", "Odd hunter3");
        assert_eq!(unreadable.send().await.status, 400);
        world.larder.logged(&["denied", "does not let this caller read"]).await;
        let counted = async |outcome| {
            world.larder.metric("larder_requests_total", &[("outcome", outcome)]).await
        };
        assert_eq!((counted("challenged").await, counted("denied").await), (1.0, 1.0));

        let metrics = world.larder.admin("/metrics").await.bytes().await.unwrap();
        let upstreams = world.larder.admin("/api/v1/upstreams").await.bytes().await.unwrap();
        world.larder.terminate();
        let (ended, _) = world.larder.wait().await;
        let told = [&metrics, &upstreams].map(|it| String::from_utf8_lossy(it).into_owned());
        let said = format!("{}{}{}", ended.stdout, ended.stderr, told.concat());
        let secrets = [ALICE, MALLORY].map(basic);
        let secrets = secrets.iter().map(|it| it.trim_start_matches("Basic "));
        for secret in secrets.chain([ALICE.1, MALLORY.1, "token-", "hunter3", "bWFsbG9yeTpvZGQ="]) {
            assert!(!said.contains(secret), "it said {secret}\n{said}");
        }
    }
}
