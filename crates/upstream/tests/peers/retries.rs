//! What is tried again, where, and what is not.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use larder_upstream::{Error, Settings};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::fake::*;

#[tokio::test]
async fn a_registry_that_recovers_is_asked_until_it_does() {
    let fake = failing(503, 2).await;
    client(&fake).manifest(&repository(), &tag(), &all()).await.unwrap();
    assert_eq!(fake.log().len(), 3);
}

#[tokio::test]
async fn a_registry_that_stays_broken_is_given_up() {
    for (code, n_tries) in [(502, 3), (503, 3), (504, 3), (500, 1)] {
        let fake = failing(code, usize::MAX).await;
        let error = client(&fake).manifest(&repository(), &tag(), &all()).await.unwrap_err();
        let is_it = matches!(&error, Error::Unavailable { status: Some(it), .. } if *it == code);
        assert!(is_it, "{error:?}");
        assert_eq!(fake.log().len(), n_tries, "{code}");
    }
}

#[tokio::test]
async fn the_next_address_is_asked_when_one_is_dead_or_broken() {
    let (dead, broken, good) =
        (dead_url().await, failing(500, usize::MAX).await, Fake::start(|_| ok("{}")).await);
    let client = client_of(settings(&[&dead, &broken.url, &good.url]));
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
    assert_eq!((broken.log().len(), good.log().len()), (1, 1));
}

#[tokio::test]
async fn a_dead_registry_is_unavailable() {
    let client = client_of(settings(&[&dead_url().await]));
    let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { status: None, source: Some(_), .. }), "{error:?}");
}

#[tokio::test]
async fn who_asks_for_fewer_requests_gets_no_more() {
    let fake = Fake::start(|_| with(429, &[("retry-after", "30")], "")).await;
    let other = Fake::start(|_| ok("{}")).await;
    let client = client_of(settings(&[&fake.url, &other.url]));
    let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
    let Error::RateLimited { retry_after } = error else { panic!("{error:?}") };
    assert_eq!(retry_after, Some(Duration::from_secs(30)));
    assert_eq!((fake.log().len(), other.log().len()), (1, 0));
}

#[tokio::test]
async fn silence_is_not_tried_again() {
    let fake = Fake::start(|_| Reply::Silence).await;
    let read_timeout = Duration::from_millis(200);
    let client = client_of(Settings { read_timeout, ..settings(&[&fake.url]) });
    let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::TimedOut), "{error:?}");
    assert_eq!(fake.log().len(), 1);
}

#[tokio::test]
async fn a_pooled_connection_that_is_closed_under_a_request_is_replaced() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = url_of(&listener);
    let n_connections = Arc::new(AtomicUsize::new(0));
    let counter = n_connections.clone();
    let server = tokio::spawn(async move {
        // The first connection takes two requests and answers one.
        let (mut first, _) = listener.accept().await.unwrap();
        counter.fetch_add(1, Ordering::SeqCst);
        read_head(&mut first).await;
        answer(&mut first).await;
        read_head(&mut first).await;
        drop(first);
        let (mut second, _) = listener.accept().await.unwrap();
        counter.fetch_add(1, Ordering::SeqCst);
        read_head(&mut second).await;
        answer(&mut second).await;
    });
    let client = client_of(settings(&[&url]));
    for _ in 0..2 {
        client.manifest(&repository(), &tag(), &all()).await.unwrap();
    }
    server.await.unwrap();
    assert_eq!(n_connections.load(Ordering::SeqCst), 2);
}

/// A registry whose first `n` answers have this status.
async fn failing(code: u16, n: usize) -> Fake {
    let n_answers = AtomicUsize::new(0);
    Fake::start(move |_| match n_answers.fetch_add(1, Ordering::SeqCst) < n {
        true => status(code),
        false => ok("{}"),
    })
    .await
}

async fn answer(stream: &mut TcpStream) {
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
}
