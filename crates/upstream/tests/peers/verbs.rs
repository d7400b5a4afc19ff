//! What can be asked, and what is made of good and bad answers.

use std::sync::Arc;

use futures_util::StreamExt as _;
use larder_core::manifest::MAX_MANIFEST;
use larder_core::{Digest, Reference};
use larder_upstream::{Client, Error};

use crate::fake::*;

const OCI: &str = "application/vnd.oci.image.manifest.v1+json";

#[tokio::test]
async fn a_head_tells_what_the_headers_say() {
    let fake = Fake::start(|_| {
        let digest = digest().to_string();
        with(200, &[("content-type", OCI), ("docker-content-digest", &digest)], "hello\n")
    })
    .await;
    let client = client(&fake);
    let head = client.head_manifest(&repository(), &tag(), &all()).await.unwrap();
    assert_eq!(head.digest, Some(digest()));
    assert_eq!((head.media_type.as_deref(), head.length), (Some(OCI), Some(6)));
    assert_eq!(client.head_blob(&repository(), &digest()).await.unwrap(), Some(6));
    let seen = fake.seen();
    assert_eq!(seen[0].header("accept"), all().to_string());
    assert!(seen[0].header("user-agent").starts_with("larder/"));
    assert_eq!(fake.log()[1], format!("HEAD /v2/team/app/blobs/{}", digest()));
}

#[tokio::test]
async fn a_manifest_has_the_digest_it_was_asked_for_by() {
    let fake = Fake::start(|_| with(200, &[("content-type", OCI)], "hello\n")).await;
    let client = client(&fake);
    let good = Reference::Digest(digest());
    let manifest = client.manifest(&repository(), &good, &all()).await.unwrap();
    assert_eq!((&manifest.bytes[..], manifest.digest), (&b"hello\n"[..], None));
    assert_eq!(manifest.media_type.as_deref(), Some(OCI));

    let other = Digest::sha256_of(b"other");
    let error = client.manifest(&repository(), &Reference::Digest(other.clone()), &all()).await;
    let Err(Error::Digest { expected, actual }) = error else { panic!("{error:?}") };
    assert_eq!((expected, actual), (other, digest()));
}

#[tokio::test]
async fn a_manifest_has_the_digest_that_its_answer_names() {
    // `printf 'hello\n' | sha512sum`, and one that is not it.
    let sha512 = "sha512:e7c22b994c59d9cf2b48e549b1e24666636045930d3da7c1acb299d1c3b7f931\
                  f94aae41edda2c2b207a36e10f8bcb8d45223e54878f5b316e7ce3b6bc019629";
    for (announced, is_good) in [(sha512.to_owned(), true), (sha512.replace("e7c", "e7d"), false)] {
        let fake =
            Fake::start(move |_| with(200, &[("docker-content-digest", &announced)], "hello\n"))
                .await;
        let manifest = client(&fake).manifest(&repository(), &tag(), &all()).await;
        assert_eq!(manifest.is_ok(), is_good, "{manifest:?}");
        assert!(matches!(manifest, Ok(_) | Err(Error::Digest { .. })), "{manifest:?}");
    }
}

#[tokio::test]
async fn a_manifest_of_more_than_4_mib_is_not_read() {
    let exact = Fake::start(|_| ok(vec![b' '; MAX_MANIFEST])).await;
    client(&exact).manifest(&repository(), &tag(), &all()).await.unwrap();
    let announced = Fake::start(|_| ok(vec![b' '; MAX_MANIFEST + 1])).await;
    let endless = Fake::start(|_| {
        let pieces = std::iter::repeat_with(|| Ok::<_, std::io::Error>(vec![b' '; 1 << 16]));
        ok(axum::body::Body::from_stream(futures_util::stream::iter(pieces)))
    })
    .await;
    for fake in [announced, endless] {
        let error = client(&fake).manifest(&repository(), &tag(), &all()).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_web_page_is_neither_an_image_nor_the_lack_of_one() {
    for code in [200, 404] {
        let fake = Fake::start(move |_| {
            with(code, &[("content-type", "text/html; charset=utf-8")], "<html>")
        })
        .await;
        let client = client(&fake);
        let manifest = client.manifest(&repository(), &tag(), &all()).await;
        assert!(matches!(manifest, Err(Error::Protocol(_))), "{code}: {manifest:?}");
        let head = client.head_manifest(&repository(), &tag(), &all()).await;
        assert!(matches!(head, Err(Error::Protocol(_))), "{code}: {head:?}");
        let tags = client.tags(&repository(), None, None).await;
        assert!(matches!(tags, Err(Error::Protocol(_))), "{code}: {tags:?}");
        assert!(matches!(client.ping().await, Err(Error::Protocol(_))), "{code}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_not_found() {
    let fake = Fake::start(|_| status(404)).await;
    let client = client(&fake);
    let manifest = client.manifest(&repository(), &tag(), &all()).await;
    assert!(matches!(manifest, Err(Error::NotFound)), "{manifest:?}");
    let blob = client.head_blob(&repository(), &digest()).await;
    assert!(matches!(blob, Err(Error::NotFound)), "{blob:?}");
    assert!(matches!(client.ping().await, Err(Error::Protocol(_))));
}

#[tokio::test]
async fn a_ping_asks_for_the_base() {
    let fake = Fake::start(|_| ok("{}")).await;
    client(&fake).ping().await.unwrap();
    assert_eq!(fake.log(), ["GET /v2/"]);
}

#[tokio::test]
async fn tags_come_page_by_page() {
    let fake = Fake::start(|seen| match seen.uri.query() {
        Some("n=2") => {
            let link = r#"</v2/team/app/tags/list?last=b%2B&n=2>; rel="next""#;
            with(200, &[("link", link)], r#"{"name":"team/app","tags":["a","b+"]}"#)
        }
        Some("n=2&last=b%2B") => {
            let link = "<list?n=2&next_page=xyz>; rel=next";
            with(200, &[("link", link)], r#"{"name":"team/app","tags":["c"]}"#)
        }
        Some("n=2&next_page=xyz") => ok(r#"{"name":"team/app","tags":null}"#),
        _ => status(400),
    })
    .await;
    let client = client(&fake);
    let mut pages = Vec::new();
    let mut last = None;
    loop {
        let page = client.tags(&repository(), Some(2), last.as_deref()).await.unwrap();
        pages.push(page.tags);
        last = page.next;
        if last.is_none() {
            break;
        }
    }
    assert_eq!(pages, [vec!["a", "b+"], vec!["c"], vec![]]);
}

#[tokio::test]
async fn what_is_no_list_of_tags_is_refused() {
    for body in ["1", r#"{"tags":[1]}"#, "{\"tags\":["] {
        let fake = Fake::start(move |_| ok(body)).await;
        let error = client(&fake).tags(&repository(), None, None).await.unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{body}: {error}");
    }
    let fake = Fake::start(|_| ok(vec![b' '; (16 << 20) + 1])).await;
    let error = client(&fake).tags(&repository(), None, None).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_body_can_be_read_by_another_task_after_its_client_is_gone() {
    let fake = Fake::start(|_| ok("hello\n")).await;
    let client = client(&fake);
    let asked = tokio::spawn(async move { client.blob(&repository(), &digest(), None).await });
    let mut body = asked.await.unwrap().unwrap().body;
    let read = tokio::spawn(async move { body.next().await.unwrap().unwrap() });
    assert_eq!(read.await.unwrap(), "hello\n");
}

#[tokio::test]
async fn an_observer_hears_of_every_request_and_byte() {
    let fake = Fake::start(|seen| match seen.path() {
        "/token" => ok(r#"{"token":"t"}"#),
        _ if seen.header("authorization").is_empty() => {
            let challenge = format!(r#"Bearer realm="{}/token""#, seen.origin());
            with(401, &[("www-authenticate", &challenge)], "")
        }
        "/v2/team/app/manifests/v1" => with(200, &[("ratelimit-remaining", "76;w=21600")], "{}"),
        "/storage" => ok("hello\n"),
        _ => redirect("/storage"),
    })
    .await;
    let recorder = Arc::new(Recorder::default());
    let client = Client::new(settings(&[&fake.url]), recorder.clone()).unwrap();
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
    client.head_manifest(&repository(), &tag(), &all()).await.unwrap();
    let mut blob = client.blob(&repository(), &digest(), None).await.unwrap();
    while let Some(piece) = blob.body.next().await {
        piece.unwrap();
    }
    let heard = recorder.get();
    let codes = [401, 200, 200, 200, 307, 200];
    let methods = ["GET", "GET", "GET", "HEAD", "GET", "GET"];
    let expected: Vec<_> = methods.into_iter().zip(codes.map(Some)).collect();
    assert_eq!(heard.requests, expected);
    assert_eq!((heard.bytes, heard.quota), (13 + 2 + 6, Some(76)));
}
