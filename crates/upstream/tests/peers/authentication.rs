//! Challenges, tokens and credentials.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Body;
use axum::http::Response;
use futures_util::future::join_all;
use larder_upstream::{Credentials, Error, Settings};
use tokio::sync::Notify;

use crate::fake::*;

const U_P: &str = "Basic dTpw";
const MANIFEST: &str = "/v2/team/app/manifests/v1";
const TOKEN: &str = "/token?service=fake&scope=repository%3Ateam%2Fapp%3Apull";

#[tokio::test]
async fn an_anonymous_token_is_asked_for_once_and_then_shown_unasked() {
    let fake = registry(|_| ok(r#"{"token":"t","expires_in":300}"#)).await;
    let client = client(&fake);
    for _ in 0..2 {
        client.manifest(&repository(), &tag(), &all()).await.unwrap();
    }
    let expected = [
        format!("GET {MANIFEST}"),
        format!("GET {TOKEN}"),
        format!("GET {MANIFEST} Bearer t"),
        format!("GET {MANIFEST} Bearer t"),
    ];
    assert_eq!(fake.log(), expected);
}

#[tokio::test]
async fn a_token_that_does_not_say_how_long_it_is_good_is_used_again() {
    for answer in [r#"{"token":"t"}"#, r#"{"token":"t","expires_in":null}"#] {
        let fake = registry(move |_| ok(answer)).await;
        let client = client(&fake);
        for _ in 0..3 {
            client.manifest(&repository(), &tag(), &all()).await.unwrap();
        }
        assert_eq!(fake.count("/token"), 1);
    }
}

#[tokio::test]
async fn a_token_service_is_asked_at_its_whole_address_commas_included() {
    let fake = Fake::start(|seen| match (seen.path(), seen.header("authorization")) {
        ("/a,b/token", _) => ok(r#"{"token":"t"}"#),
        (_, "Bearer t") => ok("{}"),
        _ => {
            let realm = format!("{}/a,b/token?x=1,2", seen.origin());
            let challenge = format!(r#"Bearer realm="{realm}",service="one, \"two\" ""#);
            with(401, &[("www-authenticate", &challenge)], "")
        }
    })
    .await;
    client(&fake).manifest(&repository(), &tag(), &all()).await.unwrap();
    let query = "x=1,2&service=one%2C+%22two%22+&scope=repository%3Ateam%2Fapp%3Apull";
    assert_eq!(fake.log()[1], format!("GET /a,b/token?{query}"));
}

#[tokio::test]
async fn a_password_goes_to_the_token_service_and_not_to_the_registry() {
    let fake = registry(|_| ok(r#"{"access_token":"t"}"#)).await;
    client_with(&fake, "u", "p").head_manifest(&repository(), &tag(), &all()).await.unwrap();
    let expected = [
        format!("HEAD {MANIFEST}"),
        format!("GET {TOKEN} {U_P}"),
        format!("HEAD {MANIFEST} Bearer t"),
    ];
    assert_eq!(fake.log(), expected);
}

#[tokio::test]
async fn the_scope_of_the_challenge_is_the_one_asked_for() {
    let fake = Fake::start(|seen| match seen.path() {
        "/token" => ok(r#"{"token":"t"}"#),
        _ if seen.header("authorization") == "Bearer t" => ok("{}"),
        _ => {
            let bearer = format!(
                r#"Bearer realm="{}/token",service="a, b",scope="repository:other/name:pull""#,
                seen.origin()
            );
            with(401, &[("www-authenticate", "Basic"), ("www-authenticate", &bearer)], "")
        }
    })
    .await;
    client(&fake).manifest(&repository(), &tag(), &all()).await.unwrap();
    assert_eq!(fake.log()[1], "GET /token?service=a%2C+b&scope=repository%3Aother%2Fname%3Apull");
}

#[tokio::test]
async fn many_who_need_a_token_share_one() {
    let fake = registry(|_| ok(r#"{"token":"t","expires_in":300}"#)).await;
    let client = client(&fake);
    let (name, digest) = (repository(), digest());
    let heads = join_all((0..30).map(|_| client.head_blob(&name, &digest))).await;
    assert!(heads.iter().all(Result::is_ok));
    assert_eq!(fake.count("/token"), 1);
}

#[tokio::test]
async fn a_token_that_is_revoked_in_mid_life_is_replaced_once() {
    let epoch = Arc::new(AtomicU64::new(1));
    let fake = registry_in(epoch.clone()).await;
    let client = client(&fake);
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
    epoch.store(2, Ordering::SeqCst);
    let (name, reference, accept) = (repository(), tag(), all());
    let answers = join_all((0..10).map(|_| client.manifest(&name, &reference, &accept))).await;
    assert!(answers.iter().all(Result::is_ok), "{answers:?}");
    assert_eq!(fake.count("/token"), 2);
}

#[tokio::test]
async fn a_late_refusal_of_an_old_token_does_not_cost_the_new_one() {
    let (arrived, cue) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let epoch = Arc::new(AtomicU64::new(1));
    let (tell, wait, now) = (arrived.clone(), cue.clone(), epoch.clone());
    let fake = Fake::start(move |seen| {
        let epoch = now.load(Ordering::SeqCst);
        let is_slow = epoch == 2 && seen.path().contains("/blobs/");
        match (seen.path(), seen.header("authorization")) {
            ("/token", _) => ok(format!(r#"{{"token":"t{epoch}","expires_in":300}}"#)).into(),
            (_, "Bearer t1") if is_slow => {
                tell.notify_one();
                Reply::After(wait.clone(), challenge(seen))
            }
            (_, token) if token == format!("Bearer t{epoch}") => ok("{}").into(),
            _ => challenge(seen).into(),
        }
    })
    .await;
    let client = client(&fake);
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
    epoch.store(2, Ordering::SeqCst);
    let (name, digest) = (repository(), digest());
    let ((), head) = tokio::join!(
        async {
            arrived.notified().await;
            client.manifest(&repository(), &tag(), &all()).await.unwrap();
            cue.notify_one();
        },
        client.head_blob(&name, &digest),
    );
    head.unwrap();
    assert_eq!(fake.count("/token"), 2);
}

#[tokio::test]
async fn a_token_about_to_end_is_used_for_one_request_only() {
    let fake = registry(|_| ok(r#"{"token":"t","expires_in":5}"#)).await;
    let client = client(&fake);
    for _ in 0..3 {
        client.manifest(&repository(), &tag(), &all()).await.unwrap();
    }
    assert_eq!((fake.count("/token"), fake.log().len()), (3, 7));
}

#[tokio::test]
async fn a_refused_credential_is_an_alarm_and_is_not_shown_again_at_once() {
    for code in [401, 403] {
        let fake = registry(move |_| status(code)).await;
        let client = client_with(&fake, "u", "wrong");
        for _ in 0..2 {
            let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
            assert!(matches!(error, Error::CredentialRefused(_)), "{code}: {error}");
            assert!(!format!("{error} {error:?}").contains("wrong"));
        }
        // 403 may be about the repository, so that is asked for too.
        let n_asked = if code == 403 { 2 } else { 1 };
        assert_eq!(fake.count("/token"), n_asked, "{code}");
    }
}

#[tokio::test]
async fn a_good_credential_without_the_right_is_denied() {
    let fake = registry(|seen| match seen.uri.query().unwrap().contains("scope") {
        true => status(403),
        false => ok(r#"{"token":"t"}"#),
    })
    .await;
    let error = client_with(&fake, "u", "p").manifest(&repository(), &tag(), &all()).await;
    assert!(matches!(error, Err(Error::Denied)), "{error:?}");
}

#[tokio::test]
async fn what_anonymous_may_not_see_is_denied() {
    let by_token_service = registry(|_| status(401)).await;
    let by_registry = Fake::start(|_| status(403)).await;
    let without_challenge = Fake::start(|_| status(401)).await;
    let basic = Fake::start(|_| with(401, &[("www-authenticate", "Basic")], "")).await;
    for fake in [by_token_service, by_registry, without_challenge, basic] {
        let error = client(&fake).manifest(&repository(), &tag(), &all()).await.unwrap_err();
        assert!(matches!(error, Error::Denied), "{error}");
    }
}

#[tokio::test]
async fn a_registry_that_accepts_no_token_is_not_asked_for_ever() {
    let fake = registry(|_| ok(r#"{"token":"not this one","expires_in":300}"#)).await;
    let client = client(&fake);
    for n_requests in [3, 6] {
        let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
        assert!(matches!(error, Error::Denied), "{error}");
        assert_eq!(fake.log().len(), n_requests);
    }
}

#[tokio::test]
async fn a_password_is_shown_to_a_registry_that_asks_for_it_and_then_unasked() {
    let fake = Fake::start(|seen| match seen.header("authorization") {
        U_P => ok("{}"),
        _ => with(401, &[("www-authenticate", r#"Basic realm="x""#)], ""),
    })
    .await;
    let client = client_with(&fake, "u", "p");
    for _ in 0..2 {
        client.manifest(&repository(), &tag(), &all()).await.unwrap();
    }
    let with_password = format!("GET {MANIFEST} {U_P}");
    assert_eq!(fake.log(), [format!("GET {MANIFEST}"), with_password.clone(), with_password]);

    let client = client_with(&fake, "u", "wrong");
    for _ in 0..2 {
        let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
        assert!(matches!(error, Error::CredentialRefused(_)), "{error}");
    }
    assert_eq!(fake.count("Basic dTp3cm9uZw=="), 1);
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let fake = registry(|seen| {
        let form = "grant_type=refresh_token&client_id=larder&refresh_token=i%26d\
                    &service=fake&scope=repository%3Ateam%2Fapp%3Apull";
        match seen.body == form.as_bytes() && seen.method == "POST" {
            true => ok(r#"{"access_token":"t"}"#),
            false => status(400),
        }
    })
    .await;
    let (_dir, client) = docker_config_client(&fake, "i&d");
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
    let (_dir, client) = docker_config_client(&fake, "stale");
    let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::CredentialRefused(_)), "{error}");
}

#[tokio::test]
async fn an_identity_token_is_not_posted_to_where_the_token_service_redirects() {
    let thief = Fake::start(|_| ok(r#"{"access_token":"t"}"#)).await;
    let to = thief.url.to_string();
    let fake = registry(move |_| redirect(&to)).await;
    let (_dir, client) = docker_config_client(&fake, "i");
    let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
    assert_eq!(thief.log(), [""; 0]);
}

#[tokio::test]
async fn a_password_that_was_changed_in_its_file_is_used() {
    let fake = registry(|seen| match seen.header("authorization") {
        U_P => ok(r#"{"token":"t","expires_in":300}"#),
        _ => status(401),
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let entry = |auth| format!(r#"{{"auths":{{"registry.example":{{"auth":"{auth}"}}}}}}"#);
    let docker_config = Credentials::DockerConfig(path.clone());
    let in_file = Credentials::PasswordFile { username: "u".to_owned(), path: path.clone() };
    for (credentials, wrong, right) in [
        (docker_config, entry("dTp3cm9uZw=="), entry("dTpw")),
        (in_file, "wrong\n".to_owned(), "p\n".to_owned()),
    ] {
        std::fs::write(&path, wrong).unwrap();
        let client = client_of(Settings { credentials, ..settings(&[&fake.url]) });
        let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
        assert!(matches!(error, Error::CredentialRefused(_)), "{error}");
        std::fs::write(&path, right).unwrap();
        client.manifest(&repository(), &tag(), &all()).await.unwrap();
    }
}

#[tokio::test]
async fn what_a_token_service_sends_is_bounded_and_checked() {
    let large = registry(|_| ok(vec![b' '; (1 << 20) + 1])).await;
    let error = client(&large).manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 0x100000 }), "{error}");
    for code in [200, 404] {
        let fake = registry(move |_| status(code)).await;
        let error = client(&fake).manifest(&repository(), &tag(), &all()).await.unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{code}: {error}");
    }
    let busy = registry(|_| with(429, &[("retry-after", "7")], "")).await;
    let error = client(&busy).manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::RateLimited { retry_after: Some(wait) } if wait.as_secs() == 7));
}

#[tokio::test]
async fn the_same_repository_elsewhere_needs_a_token_of_its_own() {
    let fake = Fake::start(|seen| match (seen.path(), seen.header("authorization")) {
        ("/token", _) => ok(format!(r#"{{"token":"{}"}}"#, seen.uri.query().unwrap().len())),
        (_, "") => challenge(seen),
        _ => ok("{}"),
    })
    .await;
    let client = client(&fake);
    for name in ["a", "a/bcd", "a"] {
        client.manifest(&name.parse().unwrap(), &tag(), &all()).await.unwrap();
    }
    let shown: Vec<_> =
        fake.seen().iter().map(|seen| seen.header("authorization").to_owned()).collect();
    let of = |name: &str| {
        format!("Bearer {}", format!("service=fake&scope=repository%3A{name}%3Apull").len())
    };
    let (a, b) = (of("a"), of("a%2Fbcd"));
    assert_eq!(shown, ["", "", &a, "", "", &b, &a]);
}

/// A client whose identity token is in a file.
fn docker_config_client(fake: &Fake, token: &str) -> (tempfile::TempDir, larder_upstream::Client) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    let text = format!(r#"{{"auths":{{"registry.example":{{"identitytoken":"{token}"}}}}}}"#);
    std::fs::write(&path, text).unwrap();
    let credentials = Credentials::DockerConfig(path);
    (dir, client_of(Settings { credentials, ..settings(&[&fake.url]) }))
}

/// A registry that lets in whoever has the token `t`, with this token service.
async fn registry(token_service: impl Fn(&Seen) -> Response<Body> + Send + Sync + 'static) -> Fake {
    Fake::start(move |seen| match seen.path() {
        "/token" => token_service(seen),
        _ if seen.header("authorization") == "Bearer t" => ok("{}"),
        _ => challenge(seen),
    })
    .await
}

/// A registry whose tokens are good for one epoch.
async fn registry_in(epoch: Arc<AtomicU64>) -> Fake {
    Fake::start(move |seen| {
        let epoch = epoch.load(Ordering::SeqCst);
        match seen.path() {
            "/token" => ok(format!(r#"{{"token":"t{epoch}","expires_in":300}}"#)),
            _ if seen.header("authorization") == format!("Bearer t{epoch}") => ok("{}"),
            _ => challenge(seen),
        }
    })
    .await
}

fn challenge(seen: &Seen) -> Response<Body> {
    let challenge = format!(r#"Bearer realm="{}/token",service="fake""#, seen.origin());
    with(401, &[("www-authenticate", &challenge)], r#"{"errors":[]}"#)
}
