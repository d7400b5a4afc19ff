//! A server that answers as a test tells it to, and a client that speaks to it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Method, Response, StatusCode, Uri};
use larder_core::media::Accept;
use larder_core::{Digest, Reference, Repository};
use larder_upstream::{Client, Credentials, Observer, Reach, Settings, Url};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

/// A request that arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    pub(crate) fn path(&self) -> &str {
        self.uri.path()
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
    }

    /// The server's own address, as this request named it.
    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.header("host"))
    }

    fn line(&self) -> String {
        let line = format!("{} {} {}", self.method, self.uri, self.header("authorization"));
        line.trim_end().to_owned()
    }
}

/// What becomes of a request.
pub(crate) enum Reply {
    Answer(Response<Body>),
    /// The answer comes when this is notified.
    After(Arc<Notify>, Response<Body>),
    /// The connection stays open and nothing comes.
    Silence,
}

impl From<Response<Body>> for Reply {
    fn from(response: Response<Body>) -> Self {
        Self::Answer(response)
    }
}

/// A server on a port of its own, until it is dropped.
pub(crate) struct Fake {
    pub(crate) url: Url,
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Fake {
    pub(crate) async fn start<R: Into<Reply>>(
        answer: impl Fn(&Seen) -> R + Send + Sync + 'static,
    ) -> Self {
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (log, answer) = (seen.clone(), Arc::new(answer));
        let handler = move |method: Method, uri: Uri, headers: HeaderMap, body: Bytes| {
            let request = Seen { method, uri, headers, body };
            log.lock().unwrap().push(request.clone());
            let reply = answer(&request).into();
            async move {
                match reply {
                    Reply::Answer(response) => response,
                    Reply::After(cue, response) => {
                        cue.notified().await;
                        response
                    }
                    Reply::Silence => std::future::pending().await,
                }
            }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = url_of(&listener);
        let router = Router::new().fallback(handler);
        let task = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, seen, task }
    }

    /// Every request so far, as `METHOD PATH?QUERY AUTHORIZATION`.
    pub(crate) fn log(&self) -> Vec<String> {
        self.seen().iter().map(Seen::line).collect()
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// How many requests had `text` in their line of the log.
    pub(crate) fn count(&self, text: &str) -> usize {
        self.log().iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A server that answers every connection's first request with the same bytes and closes it.
pub(crate) struct Raw {
    pub(crate) url: Url,
    n_requests: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Raw {
    pub(crate) async fn start(answer: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = url_of(&listener);
        let n_requests = Arc::new(AtomicUsize::new(0));
        let counter = n_requests.clone();
        let task = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                read_head(&mut stream).await;
                counter.fetch_add(1, Ordering::SeqCst);
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        Self { url, n_requests, task }
    }

    pub(crate) fn n_requests(&self) -> usize {
        self.n_requests.load(Ordering::SeqCst)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Takes one request without a body off a connection.
pub(crate) async fn read_head(stream: &mut TcpStream) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
}

pub(crate) fn url_of(listener: &TcpListener) -> Url {
    Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap()
}

/// An address where nobody listens.
pub(crate) async fn dead_url() -> Url {
    url_of(&TcpListener::bind("127.0.0.1:0").await.unwrap())
}

// Answers.

pub(crate) fn ok(body: impl Into<Body>) -> Response<Body> {
    Response::new(body.into())
}

pub(crate) fn status(code: u16) -> Response<Body> {
    with(code, &[], "")
}

pub(crate) fn with(code: u16, headers: &[(&str, &str)], body: &str) -> Response<Body> {
    let mut response = Response::new(Body::from(body.to_owned()));
    *response.status_mut() = StatusCode::from_u16(code).unwrap();
    for (name, value) in headers {
        let name = name.parse::<axum::http::HeaderName>().unwrap();
        response.headers_mut().append(name, value.parse().unwrap());
    }
    response
}

pub(crate) fn redirect(to: &str) -> Response<Body> {
    with(307, &[("location", to)], "<a>moved</a>")
}

// A client and its questions.

pub(crate) fn settings(urls: &[&Url]) -> Settings {
    Settings {
        host: "registry.example".parse().unwrap(),
        urls: urls.iter().map(|url| (*url).clone()).collect(),
        credentials: Credentials::Anonymous,
        proxy: None,
        ca: None,
        client_certificate: None,
        insecure_skip_verify: false,
        connect_timeout: Duration::from_secs(10),
        reach: Reach::Anywhere,
        max_requests: 64,
        max_rate: None,
        read_timeout: Duration::from_secs(10),
    }
}

pub(crate) fn client(fake: &Fake) -> Client {
    client_of(settings(&[&fake.url]))
}

pub(crate) fn client_of(settings: Settings) -> Client {
    Client::new(settings, Arc::new(Recorder::default())).unwrap()
}

pub(crate) fn client_with(fake: &Fake, username: &str, password: &str) -> Client {
    let credentials =
        Credentials::Basic { username: username.to_owned(), password: password.into() };
    client_of(Settings { credentials, ..settings(&[&fake.url]) })
}

pub(crate) fn repository() -> Repository {
    "team/app".parse().unwrap()
}

pub(crate) fn tag() -> Reference {
    "v1".parse().unwrap()
}

pub(crate) fn all() -> Accept {
    Accept::all_manifests()
}

pub(crate) fn digest() -> Digest {
    Digest::sha256_of(b"hello\n")
}

/// What an observer was told.
#[derive(Default)]
pub(crate) struct Recorder(Mutex<Recorded>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Recorded {
    pub(crate) requests: Vec<(&'static str, Option<u16>)>,
    pub(crate) bytes: u64,
    pub(crate) quota: Option<u64>,
}

impl Recorder {
    pub(crate) fn get(&self) -> Recorded {
        self.0.lock().unwrap().clone()
    }
}

impl Observer for Recorder {
    fn request(&self, method: &'static str, code: Option<u16>) {
        self.0.lock().unwrap().requests.push((method, code));
    }

    fn bytes(&self, n: u64) {
        self.0.lock().unwrap().bytes += n;
    }

    fn quota(&self, remaining: u64) {
        self.0.lock().unwrap().quota = Some(remaining);
    }
}
