//! Who sees what when a registry sends us elsewhere.

use larder_upstream::{Error, Url};

use crate::fake::*;

const U_P: &str = "Basic dTpw";

#[tokio::test]
async fn storage_at_another_port_sees_the_range_and_no_credential() {
    let storage = Fake::start(|seen| match seen.header("range") {
        "bytes=2-" => with(206, &[("content-range", "bytes 2-5/6")], "llo\n"),
        _ => status(400),
    })
    .await;
    let fake = basic_registry(storage.url.join("/blob?signature=s").unwrap()).await;
    let client = client_with(&fake, "u", "p");
    let blob = client.blob(&repository(), &digest(), Some((2, None))).await.unwrap();
    assert_eq!((blob.start, blob.length), (2, Some(6)));
    assert_eq!(fake.count(U_P), 1);
    assert_eq!(storage.log(), ["GET /blob?signature=s"]);
}

#[tokio::test]
async fn a_detour_over_another_origin_does_not_bring_the_credential_back() {
    let registry = std::sync::Arc::new(std::sync::OnceLock::<Url>::new());
    let home = registry.clone();
    let detour =
        Fake::start(move |_| redirect(home.get().unwrap().join("/home").unwrap().as_str())).await;
    let away = detour.url.clone();
    let fake = Fake::start(move |seen| match (seen.path(), seen.header("authorization")) {
        ("/home", _) => ok("hello\n"),
        (_, U_P) => redirect(away.as_str()),
        _ => with(401, &[("www-authenticate", "Basic")], ""),
    })
    .await;
    registry.set(fake.url.clone()).unwrap();
    client_with(&fake, "u", "p").blob(&repository(), &digest(), None).await.unwrap();
    assert_eq!(fake.log().last().unwrap(), "GET /home");
    assert_eq!(detour.log(), ["GET /"]);
}

#[tokio::test]
async fn a_redirect_within_the_registry_keeps_the_credential() {
    let fake = Fake::start(|seen| match (seen.path(), seen.header("authorization")) {
        ("/elsewhere", U_P) => ok("{}"),
        (_, U_P) => redirect("/elsewhere"),
        _ => with(401, &[("www-authenticate", "Basic")], ""),
    })
    .await;
    client_with(&fake, "u", "p").manifest(&repository(), &tag(), &all()).await.unwrap();
}

#[tokio::test]
async fn storage_that_asks_who_we_are_is_not_told() {
    let storage = Fake::start(|_| with(401, &[("www-authenticate", "Basic")], "")).await;
    let fake = basic_registry(storage.url.clone()).await;
    let error = client_with(&fake, "u", "p").blob(&repository(), &digest(), None).await;
    assert!(matches!(error, Err(Error::Unavailable { status: Some(401), .. })), "{error:?}");
    assert_eq!(storage.log(), ["GET /"]);
}

#[tokio::test]
async fn the_signature_of_an_address_is_not_shown() {
    let storage = Fake::start(|_| status(403)).await;
    let fake = basic_registry(storage.url.join("/b?signature=hunter2").unwrap()).await;
    let gone = basic_registry(dead_url().await.join("/b?signature=hunter2").unwrap()).await;
    for fake in [fake, gone] {
        let error = client_with(&fake, "u", "p").blob(&repository(), &digest(), None).await;
        let error = error.unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    }
}

#[tokio::test]
async fn a_redirect_loop_ends() {
    let fake = Fake::start(|_| redirect("/again")).await;
    let error = client(&fake).head_blob(&repository(), &digest()).await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
    assert_eq!(fake.count("HEAD"), 11);
}

#[tokio::test]
async fn ten_redirects_are_followed() {
    let fake = Fake::start(|seen| match seen.path().strip_prefix("/hop/") {
        None => redirect("/hop/2"),
        Some("10") => ok("{}"),
        Some(n) => redirect(&format!("/hop/{}", n.parse::<u32>().unwrap() + 1)),
    })
    .await;
    client(&fake).manifest(&repository(), &tag(), &all()).await.unwrap();
    assert_eq!(fake.log().len(), 10);
}

#[tokio::test]
async fn a_redirect_to_nowhere_is_refused() {
    for location in
        ["ftp://a/b", "http://user:hunter2@127.0.0.1/", "http://[", "file:///etc/passwd"]
    {
        let fake = Fake::start(move |_| redirect(location)).await;
        let error = client(&fake).head_blob(&repository(), &digest()).await.unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{location}: {error}");
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }
    let fake = Fake::start(|_| status(302)).await;
    let error = client(&fake).head_blob(&repository(), &digest()).await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error}");
}

/// A registry that wants `u` and `p`, and keeps everything at `storage`.
async fn basic_registry(storage: Url) -> Fake {
    Fake::start(move |seen| match seen.header("authorization") {
        U_P => redirect(storage.as_str()),
        _ => with(401, &[("www-authenticate", "Basic")], ""),
    })
    .await
}
