//! Bodies that are not what they should be.

use std::io;
use std::time::Duration;

use axum::body::Body;
use futures_util::{StreamExt as _, stream};
use larder_upstream::{Blob, Error, Settings};

use crate::fake::*;

#[tokio::test]
async fn a_blob_comes_as_it_is() {
    let fake = Fake::start(|_| ok("hello\n")).await;
    let blob = client(&fake).blob(&repository(), &digest(), None).await.unwrap();
    assert_eq!((blob.start, blob.length, blob.remaining), (0, Some(6), Some(6)));
    let (text, error) = read(blob).await;
    assert!(text == "hello\n" && error.is_none(), "{text} {error:?}");
}

#[tokio::test]
async fn a_body_that_breaks_off_is_not_taken_for_a_whole_one() {
    let head = "HTTP/1.1 200 OK\r\n";
    for (rest, length) in [
        ("content-length: 10\r\n\r\nhell", Some(10)),
        ("transfer-encoding: chunked\r\n\r\n4\r\nhell\r\n", None),
    ] {
        let raw = Raw::start(format!("{head}{rest}")).await;
        let client = client_of(settings(&[&raw.url]));
        let blob = client.blob(&repository(), &digest(), None).await.unwrap();
        assert_eq!(blob.remaining, length);
        let (text, error) = read(blob).await;
        assert_eq!(text, "hell");
        assert!(matches!(error, Some(Error::Unavailable { .. })), "{error:?}");
        assert_eq!(raw.n_requests(), 1);
    }
}

#[tokio::test]
async fn a_body_that_stalls_times_out() {
    let fake = Fake::start(|_| {
        let pieces = stream::iter([Ok::<_, io::Error>("hell")]).chain(stream::pending());
        ok(Body::from_stream(pieces))
    })
    .await;
    let read_timeout = Duration::from_millis(200);
    let client = client_of(Settings { read_timeout, ..settings(&[&fake.url]) });
    let (text, error) = read(client.blob(&repository(), &digest(), None).await.unwrap()).await;
    assert_eq!(text, "hell");
    assert!(matches!(error, Some(Error::TimedOut)), "{error:?}");
}

#[tokio::test]
async fn a_range_is_what_was_asked_for_or_an_error() {
    let range = |content_range: &'static str, body: &'static str| {
        move |_: &Seen| with(206, &[("content-range", content_range)], body)
    };
    for (content_range, body) in [
        ("bytes 1-3/6", "ell"),
        ("bytes 2-5/6", "llo\n"),
        ("bytes 2-3/6", "l"),
        ("bytes 2-3/3", "ll"),
        ("bytes */6", ""),
        ("pages 2-3/6", "ll"),
    ] {
        let fake = Fake::start(range(content_range, body)).await;
        let error = client(&fake).blob(&repository(), &digest(), Some((2, Some(4)))).await;
        assert!(matches!(error, Err(Error::Protocol(_))), "{content_range}: {error:?}");
        assert_eq!(fake.seen()[0].header("range"), "bytes=2-4");
    }
    let fake = Fake::start(range("bytes 2-3/*", "ll")).await;
    let blob = client(&fake).blob(&repository(), &digest(), Some((2, None))).await.unwrap();
    assert_eq!((blob.start, blob.length, blob.remaining), (2, None, Some(2)));
    let (text, error) = read(blob).await;
    assert!(text == "ll" && error.is_none(), "{text} {error:?}");
}

#[tokio::test]
async fn a_part_without_length_is_counted() {
    let fake = Fake::start(|_| {
        let mut response = with(206, &[("content-range", "bytes 2-5/6")], "");
        *response.body_mut() = Body::from_stream(stream::iter([Ok::<_, io::Error>("ll")]));
        response
    })
    .await;
    let blob = client(&fake).blob(&repository(), &digest(), Some((2, None))).await.unwrap();
    let (text, error) = read(blob).await;
    assert_eq!(text, "ll");
    assert!(matches!(error, Some(Error::Unavailable { .. })), "{error:?}");
}

#[tokio::test]
async fn a_registry_without_ranges_sends_all_and_it_is_said() {
    let fake = Fake::start(|_| ok("hello\n")).await;
    let blob = client(&fake).blob(&repository(), &digest(), Some((2, Some(3)))).await.unwrap();
    assert_eq!((blob.start, blob.remaining), (0, Some(6)));
}

#[tokio::test]
async fn a_range_outside_the_blob_is_said_to_be() {
    let fake = Fake::start(|_| with(416, &[("content-range", "bytes */6")], "")).await;
    for range in [(6, None), (4, Some(3))] {
        let error = client(&fake).blob(&repository(), &digest(), Some(range)).await;
        assert!(matches!(error, Err(Error::Range)), "{error:?}");
    }
}

#[tokio::test]
async fn a_part_that_nobody_asked_for_is_refused() {
    let fake = Fake::start(|_| with(206, &[("content-range", "bytes 0-1/2")], "{}")).await;
    let client = client(&fake);
    let blob = client.blob(&repository(), &digest(), None).await;
    assert!(matches!(blob, Err(Error::Protocol(_))), "{blob:?}");
    let manifest = client.manifest(&repository(), &tag(), &all()).await;
    assert!(matches!(manifest, Err(Error::Protocol(_))), "{manifest:?}");
}

#[tokio::test]
async fn an_encoded_body_is_refused() {
    let fake = Fake::start(|seen| {
        assert_eq!(seen.header("accept-encoding"), "identity");
        with(200, &[("content-encoding", "gzip")], "\x1f")
    })
    .await;
    let client = client(&fake);
    let error = client.blob(&repository(), &digest(), None).await;
    assert!(matches!(error, Err(Error::Protocol(_))), "{error:?}");
    let error = client.manifest(&repository(), &tag(), &all()).await;
    assert!(matches!(error, Err(Error::Protocol(_))), "{error:?}");
    let error = client.tags(&repository(), None, None).await;
    assert!(matches!(error, Err(Error::Protocol(_))), "{error:?}");
}

/// All that came, and what it ended with.
async fn read(mut blob: Blob) -> (String, Option<Error>) {
    let mut text = String::new();
    while let Some(piece) = blob.body.next().await {
        match piece {
            Ok(piece) => text.push_str(std::str::from_utf8(&piece).unwrap()),
            Err(error) => {
                assert!(blob.body.next().await.is_none(), "a body goes on after its error");
                return (text, Some(error));
            }
        }
    }
    (text, None)
}
