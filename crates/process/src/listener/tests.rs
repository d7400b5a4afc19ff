use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper::service::service_fn;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::tls::test_files::Authority;

/// Longer than anything here takes, so that a test which hangs fails.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn http1_and_http2_by_prior_knowledge_are_answered_on_one_port() {
    let served = Served::begin(Limits::default(), None).await;
    assert_eq!(get_http1(served.socket().await, "/").await, "HTTP/1.1 /");
    assert_eq!(get_http2(served.socket().await, "/").await, "HTTP/2.0 /");
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn over_tls_the_client_chooses_the_protocol() {
    let authority = Authority::new();
    let certificate = Arc::new(authority.server_certificate());
    let served =
        Served::begin(Limits::default(), Some(crate::tls::server_config(certificate))).await;
    for (protocol, answer) in [(&b"http/1.1"[..], "HTTP/1.1 /"), (b"h2", "HTTP/2.0 /")] {
        let socket = with_tls(served.socket().await, &authority, protocol).await;
        assert_eq!(socket.get_ref().1.alpn_protocol(), Some(protocol));
        let said = match protocol {
            b"h2" => get_http2(socket, "/").await,
            _ => get_http1(socket, "/").await,
        };
        assert_eq!(said, answer);
    }
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn little_waits_in_the_kernel_for_a_client_on_this_machine() {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let _client = TcpStream::connect(tcp.local_addr().unwrap()).await.unwrap();
    let (socket, _) = tcp.accept().await.unwrap();
    prepare(&socket, Duration::from_secs(7)).unwrap();
    let options = SockRef::from(&socket);
    assert_eq!(options.tcp_notsent_lowat().unwrap(), NEARBY_WAITING);
    assert!(options.tcp_congestion().unwrap().starts_with(UNPACED));
    assert_eq!(options.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7)));
}

#[tokio::test]
async fn a_connection_beyond_the_limit_waits_for_another_to_end() {
    let served = Served::begin(Limits { connections: 1, ..Limits::default() }, None).await;
    let mut first = served.socket().await;
    assert!(ask(&mut first, "/").await.starts_with("HTTP/1.1 200"));
    let mut second = served.socket().await;
    second.write_all(&request("/")).await.unwrap();
    // Nothing comes to the second while the first is there, however often the first asks.
    for _ in 0..20 {
        assert!(ask(&mut first, "/").await.starts_with("HTTP/1.1 200"));
    }
    assert!(is_silent(&mut second).await);
    drop(first);
    assert!(answer(&mut second).await.starts_with("HTTP/1.1 200"));
    drop(second);
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn stopping_closes_the_port_and_idle_connections_at_once() {
    let served = Served::begin(Limits::default(), None).await;
    let mut used = served.socket().await;
    assert!(ask(&mut used, "/").await.starts_with("HTTP/1.1 200"));
    let mut unused = served.socket().await;
    // Accepted connections come in order: once a later one was answered, this one is known.
    assert_eq!(get_http1(served.socket().await, "/").await, "HTTP/1.1 /");
    let begin = Instant::now();
    served.stopping.cancel();
    assert!(is_closed(&mut used).await && is_closed(&mut unused).await);
    let address = served.address;
    assert_eq!(served.end().await, 0);
    assert!(begin.elapsed() < Duration::from_secs(5), "{:?}", begin.elapsed());
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn a_request_in_progress_is_finished_while_stopping() {
    let served = Served::begin(Limits::default(), None).await;
    let mut socket = served.socket().await;
    socket.write_all(&request("/wait")).await.unwrap();
    served.service.waiting().await;
    served.is_stopping().await;
    served.service.go_on.notify_one();
    let said = answer(&mut socket).await;
    assert!(said.starts_with("HTTP/1.1 200") && said.ends_with("HTTP/1.1 /wait"), "{said}");
    assert!(said.contains("\r\nconnection: close\r\n"), "{said}");
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn an_http2_stream_in_progress_is_finished_while_stopping() {
    let served = Served::begin(Limits::default(), None).await;
    let getting = tokio::spawn(get_http2(served.socket().await, "/wait"));
    served.service.waiting().await;
    served.is_stopping().await;
    served.service.go_on.notify_one();
    assert_eq!(getting.await.unwrap(), "HTTP/2.0 /wait");
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn what_does_not_end_in_time_is_cut_and_counted() {
    let limits = Limits { drain: Duration::from_millis(50), ..Limits::default() };
    let served = Served::begin(limits, None).await;
    let mut socket = served.socket().await;
    socket.write_all(&request("/wait")).await.unwrap();
    served.service.waiting().await;
    assert_eq!(served.end().await, 1);
    assert!(is_closed(&mut socket).await);
}

#[tokio::test]
async fn a_client_that_says_nothing_is_not_waited_for() {
    let limits = Limits { head: Duration::from_millis(50), ..Limits::default() };
    let served = Served::begin(limits, None).await;
    for said in [&b""[..], b"P", b"PRI * HT", b"GET / HTTP/1.1\r\nhost: "] {
        let mut socket = served.socket().await;
        socket.write_all(said).await.unwrap();
        assert!(is_closed(&mut socket).await, "{said:?}");
    }
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn a_second_head_must_be_whole_in_time_but_may_be_waited_for() {
    let (head, idle) = (Duration::from_millis(100), Duration::from_secs(3600));
    let served = Served::begin(Limits { head, idle, ..Limits::default() }, None).await;
    let mut waiting = served.socket().await;
    assert!(ask(&mut waiting, "/").await.starts_with("HTTP/1.1 200"));
    let mut dribbling = served.socket().await;
    assert!(ask(&mut dribbling, "/").await.starts_with("HTTP/1.1 200"));
    dribbling.write_all(b"GET / HT").await.unwrap();
    assert!(is_closed(&mut dribbling).await);
    // By now the other one has been idle for longer than a head may take.
    assert!(ask(&mut waiting, "/").await.starts_with("HTTP/1.1 200"));
    drop(waiting);
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_time() {
    let limits = Limits { idle: Duration::from_millis(50), ..Limits::default() };
    let served = Served::begin(limits, None).await;
    let mut socket = served.socket().await;
    assert!(ask(&mut socket, "/").await.starts_with("HTTP/1.1 200"));
    assert!(is_closed(&mut socket).await);
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn a_handshake_in_progress_is_not_waited_for_while_stopping() {
    let authority = Authority::new();
    let certificate = Arc::new(authority.server_certificate());
    let limits = Limits { handshake: PATIENCE * 2, drain: PATIENCE * 2, ..Limits::default() };
    let served = Served::begin(limits, Some(crate::tls::server_config(certificate))).await;
    let mut socket = served.socket().await;
    // Connections are accepted in order: once a later one was answered, this one is known.
    let later = with_tls(served.socket().await, &authority, b"http/1.1").await;
    assert_eq!(get_http1(later, "/").await, "HTTP/1.1 /");
    served.is_stopping().await;
    assert!(is_closed(&mut socket).await);
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn a_handshake_must_end_in_time() {
    let certificate = Arc::new(Authority::new().server_certificate());
    let limits = Limits { handshake: Duration::from_millis(50), ..Limits::default() };
    let served = Served::begin(limits, Some(crate::tls::server_config(certificate))).await;
    let mut socket = served.socket().await;
    assert!(is_closed(&mut socket).await);
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn a_client_that_takes_nothing_is_cut() {
    let limits = Limits { stalled: Duration::from_secs(1), ..Limits::default() };
    let served = Served::begin(limits, None).await;
    let mut socket = served.socket().await;
    socket.write_all(&request("/endless")).await.unwrap();
    timeout(PATIENCE, served.service.is_cut.notified()).await.unwrap();
    drop(socket);
    assert_eq!(served.end().await, 0);
}

#[tokio::test]
async fn a_head_of_1024_ranges_is_read_and_a_much_longer_one_is_refused() {
    let served = Served::begin(Limits::default(), None).await;
    let with = |n_ranges: usize| {
        let ranges: Vec<String> = (0..n_ranges)
            .map(|it| format!("{}-{}", 10_000_000_000 + it * 2, 10_000_000_001 + it * 2))
            .collect();
        format!("GET / HTTP/1.1\r\nhost: x\r\nrange: bytes={}\r\n\r\n", ranges.join(","))
    };
    let mut socket = served.socket().await;
    socket.write_all(with(1024).as_bytes()).await.unwrap();
    assert!(answer(&mut socket).await.starts_with("HTTP/1.1 200"));
    let mut socket = served.socket().await;
    // The answer may come before all of it was taken.
    let _ = socket.write_all(with(4096).as_bytes()).await;
    assert!(answer(&mut socket).await.starts_with("HTTP/1.1 431"));
    assert_eq!(served.end().await, 0);
}

#[test]
fn only_an_error_of_the_process_itself_makes_accepting_pause() {
    use io::ErrorKind::{ConnectionAborted, ConnectionReset};
    for kind in [ConnectionAborted, ConnectionReset] {
        assert!(is_of_one_connection(&kind.into()));
    }
    let too_many_files = io::Error::from_raw_os_error(24);
    assert!(!is_of_one_connection(&too_many_files));
}

/// A listener that serves [`TestService`].
struct Served {
    address: SocketAddr,
    stopping: CancellationToken,
    service: Arc<TestService>,
    task: JoinHandle<usize>,
}

/// Answers with the protocol and the path. `/wait` waits until it may go on; `/endless` never ends.
#[derive(Default)]
struct TestService {
    n_waiting: watch::Sender<usize>,
    go_on: Notify,
    is_cut: Arc<Notify>,
}

impl TestService {
    /// Waits until a request for `/wait` is here.
    async fn waiting(&self) {
        let mut n_waiting = self.n_waiting.subscribe();
        timeout(PATIENCE, n_waiting.wait_for(|n| *n > 0)).await.unwrap().unwrap();
    }

    async fn answer(
        self: Arc<Self>,
        request: Request<Incoming>,
    ) -> Result<Response<http_body_util::combinators::UnsyncBoxBody<Bytes, Infallible>>, Infallible>
    {
        let path = request.uri().path().to_owned();
        if path == "/wait" {
            self.n_waiting.send_modify(|n| *n += 1);
            self.go_on.notified().await;
        }
        if path == "/endless" {
            return Ok(Response::new(Endless(Arc::clone(&self.is_cut)).boxed_unsync()));
        }
        let text = format!("{:?} {path}", request.version());
        Ok(Response::new(Full::from(text).boxed_unsync()))
    }
}

/// A body without an end, which says when it is dropped.
struct Endless(Arc<Notify>);

impl Body for Endless {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: std::pin::Pin<&mut Self>,
        _cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<http_body::Frame<Bytes>, Infallible>>> {
        std::task::Poll::Ready(Some(Ok(http_body::Frame::data(Bytes::from_static(&[0; 65536])))))
    }
}

impl Drop for Endless {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Served {
    async fn begin(limits: Limits, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let stopping = CancellationToken::new();
        let service = Arc::new(TestService::default());
        let answering = Arc::clone(&service);
        let answer = service_fn(move |request| Arc::clone(&answering).answer(request));
        let task = tokio::spawn(serve(tcp, tls, answer, stopping.clone(), limits));
        Self { address, stopping, service, task }
    }

    async fn socket(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Stops; returns once the port is closed and connections have been asked to end.
    async fn is_stopping(&self) {
        self.stopping.cancel();
        let refused = async { while TcpStream::connect(self.address).await.is_ok() {} };
        timeout(PATIENCE, refused).await.unwrap();
    }

    /// Stops; returns how many connections were cut.
    async fn end(self) -> usize {
        self.stopping.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap()
    }
}

async fn with_tls(
    socket: TcpStream,
    authority: &Authority,
    protocol: &[u8],
) -> TlsStream<TcpStream> {
    let mut config = authority.client_config();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap()
}

fn request(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").into_bytes()
}

async fn ask(socket: &mut TcpStream, path: &str) -> String {
    socket.write_all(&request(path)).await.unwrap();
    answer(socket).await
}

/// One answer of HTTP/1.1, which are short here and come whole.
async fn answer(socket: &mut TcpStream) -> String {
    let mut bytes = vec![0; 4096];
    let n_bytes = timeout(PATIENCE, socket.read(&mut bytes)).await.unwrap().unwrap();
    String::from_utf8(bytes[..n_bytes].to_vec()).unwrap()
}

/// Whether the other side closes the connection, with or without saying something first.
async fn is_closed(socket: &mut TcpStream) -> bool {
    let mut said = Vec::new();
    timeout(PATIENCE, socket.read_to_end(&mut said)).await.is_ok()
}

/// Whether nothing is there to be read.
async fn is_silent(socket: &mut TcpStream) -> bool {
    matches!(socket.try_read(&mut [0]), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

async fn get_http1<I>(socket: I, path: &str) -> String
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(socket)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get(path).header("host", "x").body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

async fn get_http2<I>(socket: I, path: &str) -> String
where
    I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let socket = TokioIo::new(socket);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), socket).await.unwrap();
    tokio::spawn(connection);
    let uri = format!("http://localhost{path}");
    let request = Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let answer = sender.send_request(request).await.unwrap();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}
