//! Who the program is to an upstream, and who gets to see it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_testkit::upstream::{Listener, Request};
use larder_testkit::{Fault, Image, Login, On, Upstream};
use larder_tests::larder::Settings;
use larder_tests::scene::{HOST, REPOSITORY, blob_path, manifest_path};
use larder_tests::{Larder, Scene};

const USERNAME: &str = "robot";
const PASSWORD: &str = "hunter2-and-more";
/// `printf robot:hunter2-and-more | base64`
const BASIC: &str = "cm9ib3Q6aHVudGVyMi1hbmQtbW9yZQ==";

#[tokio::test]
async fn an_upstream_that_asks_for_a_password_gets_it() {
    for (name, settings) in ways_to_say_it() {
        let (upstream, image) = upstream_with_image(basic()).await;
        let larder = settings(&upstream).start().await;
        expect_image(&larder, &image).await;
        assert_kept_quiet(larder, name).await;
    }
}

#[tokio::test]
async fn an_upstream_that_asks_for_a_token_gets_one() {
    for (name, settings) in ways_to_say_it() {
        let (upstream, image) = upstream_with_image(bearer()).await;
        let larder = settings(&upstream).start().await;
        expect_image(&larder, &image).await;
        // One token for the repository serves all requests.
        let n_tokens = upstream.count(|request| request.path == "/token");
        assert!((1..=2).contains(&n_tokens), "{name}: {n_tokens}");
        let to_registry = |header: &str| {
            upstream.count(|request| {
                request.path != "/token"
                    && request.header("authorization").is_some_and(|it| it.starts_with(header))
            })
        };
        assert!(to_registry("Bearer ") > 0);
        assert_kept_quiet(larder, name).await;
    }
}

#[tokio::test]
async fn a_token_that_is_no_longer_good_is_renewed_unnoticed() {
    let (upstream, image) = upstream_with_image(bearer()).await;
    let larder = password_in_config(&upstream).start().await;
    let manifest = larder.get(&manifest_path("1")).await;
    manifest.expect_body(&image.manifest.bytes).await.unwrap();
    upstream.revoke_tokens();
    let layer = &image.layers[0];
    larder.get(&blob_path(&layer.digest)).await.expect_body(&layer.bytes).await.unwrap();
}

#[tokio::test]
async fn an_upstream_that_gives_tokens_to_everyone_is_asked_for_one() {
    let (upstream, image) = upstream_with_image(Login::Anonymous).await;
    let larder = Larder::with_upstream(HOST, &upstream.url()).await;
    expect_image(&larder, &image).await;
}

#[tokio::test]
async fn a_wrong_password_is_an_error_and_not_a_missing_image() {
    let (upstream, _) = upstream_with_image(basic()).await;
    let config = "credentials = { username = \"robot\", password = \"wrong\" }\n";
    let larder = Scene::settings(&upstream, config).start().await;
    let refused = larder.get(&manifest_path("1")).await;
    assert!(matches!(refused.status, 404 | 500..), "{}", refused.status);
    // The people who run this have to hear of it.
    larder.logged(&[HOST]).await;
}

#[tokio::test]
async fn a_redirect_to_another_host_is_followed_without_the_credential() {
    for login in [basic(), bearer()] {
        let (upstream, image) = upstream_with_image(login).await;
        upstream.fault(On::blobs().at(Listener::Registry), Fault::Redirect);
        let larder = password_in_config(&upstream).start().await;
        // The storage refuses whoever brings a credential.
        expect_image(&larder, &image).await;
        let requests = upstream.requests();
        let at_storage: Vec<_> =
            requests.iter().filter(|request| request.listener == Listener::Storage).collect();
        assert!(!at_storage.is_empty());
        for request in at_storage {
            assert_eq!(request.header("authorization"), None, "{request:?}");
        }
    }
}

#[tokio::test]
async fn a_redirected_body_that_is_cut_is_resumed() {
    let (upstream, _) = upstream_with_image(bearer()).await;
    let image = Image::random(2, &[8 << 20]);
    upstream.push(REPOSITORY, "2", &image);
    let layer = &image.layers[0];
    upstream.fault(On::blobs().at(Listener::Registry), Fault::Redirect);
    upstream.fault(On::blobs().at(Listener::Storage).times(1), Fault::CutAfter(3 << 20));
    let larder = password_in_config(&upstream).start().await;
    larder.get(&blob_path(&layer.digest)).await.expect_body(&layer.bytes).await.unwrap();
    assert_eq!(upstream.bytes_sent(&layer.digest), 8 << 20);
}

#[tokio::test]
async fn a_signed_address_that_runs_out_in_mid_body_is_asked_for_anew() {
    let (upstream, _) = upstream_with_image(bearer()).await;
    let image = Image::random(3, &[8 << 20]);
    upstream.push(REPOSITORY, "3", &image);
    let layer = &image.layers[0];
    let storage = || On::blobs().at(Listener::Storage);
    upstream.fault(On::blobs().at(Listener::Registry), Fault::Redirect);
    upstream.fault(storage().times(1), Fault::CutAfter(3 << 20));
    // Each address is given out by the registry, and the second one is good no more.
    upstream.fault(storage().sparing(1).times(1), Fault::Status(403));
    let larder = password_in_config(&upstream).start().await;
    larder.get(&blob_path(&layer.digest)).await.expect_body(&layer.bytes).await.unwrap();
    let is_it = |it: &Request| it.path.contains(&layer.digest.to_string());
    assert_eq!(upstream.count(|it| is_it(it) && it.status == 307), 3);
    assert_eq!(upstream.count(|it| is_it(it) && it.listener == Listener::Storage), 3);
    assert_eq!(upstream.bytes_sent(&layer.digest), 8 << 20);
}

#[tokio::test]
async fn a_clients_own_credential_is_not_passed_on() {
    let (upstream, image) = upstream_with_image(basic()).await;
    let larder = password_in_config(&upstream).start().await;
    let request = larder.request(&manifest_path("1"));
    let response = request.header("authorization", "Basic bWFsbG9yeTp4").send().await;
    response.expect_body(&image.manifest.bytes).await.unwrap();
    assert_eq!(upstream.count(|it| it.header("authorization") == Some("Basic bWFsbG9yeTp4")), 0);
}

type WayToSayIt = (&'static str, fn(&Upstream) -> Settings);

fn ways_to_say_it() -> [WayToSayIt; 3] {
    [
        ("password in the configuration", password_in_config),
        ("password in a file", password_in_file),
        ("docker's config.json", docker_config),
    ]
}

fn password_in_config(upstream: &Upstream) -> Settings {
    let config =
        format!("credentials = {{ username = \"{USERNAME}\", password = \"{PASSWORD}\" }}\n");
    Scene::settings(upstream, &config)
}

fn password_in_file(upstream: &Upstream) -> Settings {
    let settings = Scene::settings(upstream, "");
    let path = settings.scratch().write("password", &format!("{PASSWORD}\n"));
    settings.config(&format!(
        "credentials = {{ username = \"{USERNAME}\", password_file = \"{}\" }}",
        path.display()
    ))
}

fn docker_config(upstream: &Upstream) -> Settings {
    let settings = Scene::settings(upstream, "");
    let login = format!("{{\"auths\":{{\"{HOST}\":{{\"auth\":\"{BASIC}\"}}}}}}");
    let path = settings.scratch().write("docker/config.json", &login);
    settings.config(&format!("credentials = {{ docker_config = \"{}\" }}", path.display()))
}

fn basic() -> Login {
    Login::Basic { username: USERNAME.to_owned(), password: PASSWORD.to_owned() }
}

fn bearer() -> Login {
    Login::Bearer { username: USERNAME.to_owned(), password: PASSWORD.to_owned() }
}

async fn upstream_with_image(login: Login) -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::random(1, &[100, 2 << 20]);
    upstream.push(REPOSITORY, "1", &image);
    upstream.require(login);
    (upstream, image)
}

async fn expect_image(larder: &Larder, image: &Image) {
    let manifest = larder.get(&manifest_path("1")).await;
    manifest.expect_body(&image.manifest.bytes).await.unwrap();
    for blob in image.blobs() {
        larder.get(&blob_path(&blob.digest)).await.expect_body(&blob.bytes).await.unwrap();
    }
}

/// Nothing that the program has said holds a secret.
async fn assert_kept_quiet(larder: Larder, name: &str) {
    let metrics = larder.admin("/metrics").await.bytes().await.unwrap();
    larder.terminate();
    let (ended, _) = larder.wait().await;
    let said = format!("{}{}{}", ended.stdout, ended.stderr, String::from_utf8_lossy(&metrics));
    assert!(said.contains("listening on"));
    for secret in [PASSWORD, BASIC, "token-1"] {
        assert!(!said.contains(secret), "{name}: it said {secret}\n{said}");
    }
}
