//! What is asked of another replica of this cache.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use larder_upstream::{Caller, Error, Replica, ReplicaSettings, Url};

use crate::fake::*;

#[tokio::test]
async fn a_replica_is_told_who_asks_and_which_upstream_is_meant() {
    let fake = Fake::start(|_| ok("hello\n")).await;
    let host = "[::1]:5000".parse().unwrap();
    let blob = replica(&fake)
        .blob(&host, &repository(), &digest(), Some((0, None)), &Caller::NOBODY)
        .await
        .unwrap();
    let pieces: Vec<_> = blob.body.map(Result::unwrap).collect().await;
    assert_eq!((blob.length, pieces.concat()), (Some(6), b"hello\n".to_vec()));
    let seen = fake.seen();
    assert_eq!(seen[0].path(), format!("/v2/team/app/blobs/{}", digest()));
    assert_eq!(seen[0].uri.query(), Some("ns=[::1]:5000"));
    assert_eq!((seen[0].header("x-larder-peer"), seen[0].header("range")), ("me", "bytes=0-"));
}

#[tokio::test]
async fn a_replica_is_asked_once_and_never_followed_elsewhere() {
    for status in [302, 401, 404, 429, 502, 503] {
        let fake = Fake::start(move |seen| {
            with(status, &[("location", &seen.origin()), ("www-authenticate", "Basic realm=x")], "")
        })
        .await;
        let host = "docker.io".parse().unwrap();
        let error = replica(&fake)
            .blob(&host, &repository(), &digest(), None, &Caller::NOBODY)
            .await
            .unwrap_err();
        assert!(!matches!(error, Error::TimedOut | Error::Unavailable { status: None, .. }));
        assert_eq!(fake.seen().len(), 1, "{status}");
    }
}

#[tokio::test]
async fn what_answers_without_a_name_is_no_replica() {
    let fake = Fake::start(|_| ok("{}")).await;
    let error = replica(&fake).greet().await.unwrap_err();
    assert!(matches!(error, Error::Protocol(_)), "{error:?}");
    let fake = Fake::start(|_| with(200, &[("x-larder-peer", "you")], "")).await;
    assert_eq!(replica(&fake).greet().await.unwrap(), "you");
}

#[tokio::test]
async fn a_replica_is_connected_to_where_its_name_was_found() {
    let fake = Fake::start(|_| with(200, &[("x-larder-peer", "you")], "")).await;
    let address = fake.url.socket_addrs(|| None).unwrap()[0];
    let url = Url::parse(&format!("http://nowhere.invalid:{}", address.port())).unwrap();
    let settings = ReplicaSettings { url, address: Some(address), ..settings_of(&fake.url) };
    let replica = Replica::new(&settings, Arc::new(Recorder::default())).unwrap();
    assert_eq!(replica.greet().await.unwrap(), "you");
}

#[tokio::test]
async fn what_a_client_asks_is_passed_on_and_any_answer_is_one() {
    for status in [200, 206, 302, 401, 404, 416, 500, 503] {
        let fake = Fake::start(move |_| with(status, &[("x-request-id", "7")], "hello\n")).await;
        let mut headers = http::HeaderMap::new();
        headers.insert("range", "bytes=0-5".parse().unwrap());
        let (path, query) = ("v2/team/app/manifests/1", Some("ns=docker.io"));
        let passed = replica(&fake).pass(http::Method::GET, path, query, headers).await.unwrap();
        assert_eq!((passed.status.as_u16(), passed.length), (status, Some(6)));
        assert_eq!(passed.headers["x-request-id"], "7");
        let pieces: Vec<_> = passed.body.map(Result::unwrap).collect().await;
        assert_eq!(pieces.concat(), b"hello\n");
        let seen = fake.seen();
        assert_eq!((seen.len(), seen[0].header("range")), (1, "bytes=0-5"));
        assert_eq!(seen[0].uri.to_string(), "/v2/team/app/manifests/1?ns=docker.io");
        assert_eq!(seen[0].header("x-larder-peer"), "", "a client is no replica");
    }
}

fn settings_of(url: &Url) -> ReplicaSettings {
    ReplicaSettings {
        url: url.clone(),
        address: None,
        ca: None,
        me: "me".to_owned(),
        connect_timeout: Duration::from_secs(10),
        read_timeout: Duration::from_secs(10),
    }
}

fn replica(fake: &Fake) -> Replica {
    Replica::new(&settings_of(&fake.url), Arc::new(Recorder::default())).unwrap()
}
