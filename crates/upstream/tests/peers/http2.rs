//! What HTTP/2 servers may do to streams and connections while they are asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Bytes;
use axum::http::Response;
use futures_util::StreamExt as _;
use h2::server::{self, SendResponse};
use h2::{Reason, SendStream};
use larder_upstream::{Body, Client, Error, Settings, Url};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use crate::fake::*;
use crate::tls::acceptor;

#[tokio::test]
async fn a_stream_that_is_reset_before_its_answer_is_asked_for_again() {
    for reason in [Reason::REFUSED_STREAM, Reason::INTERNAL_ERROR, Reason::CANCEL] {
        let server = Server::start(move |n| match n {
            0 => Act::ResetHead(reason),
            _ => Act::Answer,
        })
        .await;
        server.client().manifest(&repository(), &tag(), &all()).await.unwrap();
        assert_eq!(server.n_requests(), 2, "{reason:?}");
    }
}

#[tokio::test]
async fn a_server_that_resets_every_stream_is_given_up() {
    let server = Server::start(|_| Act::ResetHead(Reason::INTERNAL_ERROR)).await;
    let error = server.client().manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { status: None, .. }), "{error:?}");
    assert!((3..10).contains(&server.n_requests()), "{}", server.n_requests());
}

#[tokio::test]
async fn a_connection_that_is_given_up_before_the_answer_is_replaced() {
    for reason in [Reason::NO_ERROR, Reason::ENHANCE_YOUR_CALM, Reason::INTERNAL_ERROR] {
        let server = Server::start(move |n| match n {
            0 => Act::LeaveHead(reason),
            _ => Act::Answer,
        })
        .await;
        server.client().manifest(&repository(), &tag(), &all()).await.unwrap();
        assert_eq!((server.n_requests(), server.n_connections()), (2, 2), "{reason:?}");
    }
}

/// `NO_ERROR` and `CANCEL` are what the HTTP library takes for an end without failure.
#[tokio::test]
async fn a_body_whose_stream_is_reset_is_not_taken_for_a_whole_one() {
    for reason in [Reason::INTERNAL_ERROR, Reason::NO_ERROR, Reason::CANCEL] {
        let server = Server::start(move |n| match n {
            0 => Act::ResetBody(reason),
            _ => Act::Answer,
        })
        .await;
        let client = server.client();
        let mut body = client.blob(&repository(), &digest(), None).await.unwrap().body;
        assert_eq!(body.next().await.unwrap().unwrap(), "hell");
        server.cue.notify_one();
        let end = body.next().await;
        assert!(matches!(end, Some(Err(Error::Unavailable { .. }))), "{reason:?}: {end:?}");
        // The connection is still good.
        assert_eq!(
            read(client.blob(&repository(), &digest(), None).await.unwrap().body).await,
            "hello\n"
        );
        assert_eq!((server.n_requests(), server.n_connections()), (2, 1), "{reason:?}");
    }
}

#[tokio::test]
async fn a_body_whose_connection_is_given_up_is_not_taken_for_a_whole_one() {
    for reason in [Reason::NO_ERROR, Reason::INTERNAL_ERROR] {
        let server = Server::start(move |n| match n {
            0 => Act::LeaveBody(reason),
            _ => Act::Answer,
        })
        .await;
        let client = server.client();
        let mut body = client.blob(&repository(), &digest(), None).await.unwrap().body;
        assert_eq!(body.next().await.unwrap().unwrap(), "hell");
        server.cue.notify_one();
        let end = body.next().await;
        assert!(matches!(end, Some(Err(Error::Unavailable { .. }))), "{reason:?}: {end:?}");
        assert_eq!(
            read(client.blob(&repository(), &digest(), None).await.unwrap().body).await,
            "hello\n"
        );
        assert_eq!(server.n_connections(), 2, "{reason:?}");
    }
}

#[tokio::test]
async fn a_server_that_says_goodbye_in_mid_body_is_heard_out() {
    let server = Server::start(|n| match n {
        0 => Act::Goodbye,
        _ => Act::Answer,
    })
    .await;
    let client = server.client();
    let mut body = client.blob(&repository(), &digest(), None).await.unwrap().body;
    assert_eq!(body.next().await.unwrap().unwrap(), "hell");
    server.cue.notify_one();
    assert_eq!(read(body).await, "o\n");
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
    assert_eq!((server.n_requests(), server.n_connections()), (2, 2));
}

async fn read(mut body: Body) -> String {
    let mut text = String::new();
    while let Some(piece) = body.next().await {
        text.push_str(std::str::from_utf8(&piece.unwrap()).unwrap());
    }
    text
}

/// What becomes of a request. What happens to a body happens after its first four bytes, when the
/// test gives the cue.
#[derive(Clone, Copy)]
enum Act {
    Answer,
    /// RST_STREAM instead of an answer.
    ResetHead(Reason),
    /// RST_STREAM in mid-body.
    ResetBody(Reason),
    /// GOAWAY and the end of the connection instead of an answer.
    LeaveHead(Reason),
    /// The same in mid-body.
    LeaveBody(Reason),
    /// GOAWAY in mid-body, and then the rest of it.
    Goodbye,
}

/// A server with a certificate of its own that speaks HTTP/2 frame by frame.
struct Server {
    url: Url,
    pem: String,
    cue: Arc<Notify>,
    counts: Arc<[AtomicUsize; 2]>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// `act` is told which request it is, counted from 0.
    async fn start(act: impl Fn(usize) -> Act + Send + Sync + 'static) -> Self {
        let (acceptor, pem) = acceptor(None);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("https://{}", listener.local_addr().unwrap())).unwrap();
        let cue = Arc::new(Notify::new());
        let counts: Arc<[AtomicUsize; 2]> = Arc::default();
        let shared = (cue.clone(), counts.clone(), Arc::new(act));
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (acceptor, (cue, counts, act)) = (acceptor.clone(), shared.clone());
                counts[1].fetch_add(1, Ordering::SeqCst);
                tokio::spawn(
                    async move { serve(stream, &acceptor, &cue, &counts[0], &*act).await },
                );
            }
        });
        Self { url, pem, cue, counts, task }
    }

    fn client(&self) -> Client {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        std::fs::write(&path, &self.pem).unwrap();
        client_of(Settings { ca: Some(path), ..settings(&[&self.url]) })
    }

    fn n_requests(&self) -> usize {
        self.counts[0].load(Ordering::SeqCst)
    }

    fn n_connections(&self) -> usize {
        self.counts[1].load(Ordering::SeqCst)
    }
}

async fn serve(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    cue: &Notify,
    n_requests: &AtomicUsize,
    act: &(impl Fn(usize) -> Act + Send + Sync),
) {
    let stream = acceptor.accept(stream).await.unwrap();
    let mut connection = server::handshake(stream).await.unwrap();
    let mut under_way: Option<(Act, SendStream<Bytes>)> = None;
    loop {
        tokio::select! {
            accepted = connection.accept() => {
                let Some(Ok((_, mut respond))) = accepted else { return };
                let act = act(n_requests.fetch_add(1, Ordering::SeqCst));
                match act {
                    Act::Answer => answer(respond, "hello\n", true),
                    Act::ResetHead(reason) => {
                        respond.send_reset(reason);
                        continue;
                    }
                    Act::LeaveHead(reason) => {
                        connection.abrupt_shutdown(reason);
                        continue;
                    }
                    Act::ResetBody(_) | Act::LeaveBody(_) | Act::Goodbye => {
                        let body = answer(respond, "hell", false);
                        under_way = Some((act, body));
                        continue;
                    }
                };
            }
            () = cue.notified(), if under_way.is_some() => {
                let (act, mut body) = under_way.take().unwrap();
                match act {
                    Act::ResetBody(reason) => body.send_reset(reason),
                    Act::LeaveBody(reason) => connection.abrupt_shutdown(reason),
                    _ => {
                        connection.graceful_shutdown();
                        body.send_data(Bytes::from_static(b"o\n"), true).unwrap();
                    }
                }
            }
        }
    }
}

/// Answers that `hello\n` comes, and sends `beginning` of it.
fn answer(
    mut respond: SendResponse<Bytes>,
    beginning: &'static str,
    is_all: bool,
) -> SendStream<Bytes> {
    let head = Response::builder().header("content-length", "6").body(()).unwrap();
    let mut body = respond.send_response(head, false).unwrap();
    body.send_data(Bytes::from_static(beginning.as_bytes()), is_all).unwrap();
    body
}
