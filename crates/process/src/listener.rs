//! The loop that accepts connections, bounds them and lets them end.
//!
//! ```text
//! accept ── permit ── (TLS) ── HTTP/1.1 or HTTP/2 ── service
//!    ▲ stopping: close the port ── ask each connection to end ── drain ── abort the rest
//! ```
//!
//! What a client can hold is bounded: connections, the time for a handshake, a request's head and
//! an idle HTTP/1.1 connection, the time without taking a byte, HTTP/2 streams, and the memory that
//! waits to be sent. An HTTP/2 connection may be idle for as long as its peer answers pings.

mod quiet;

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use http_body::Body;
use hyper::body::Incoming;
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::{self, JoinError, JoinSet};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use self::quiet::{HeadTimer, Heard, Listening};

/// What the clients of one listener may hold.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at one time, at least 1. More wait in the operating system's backlog.
    pub connections: usize,
    /// How long a TLS handshake may take.
    pub handshake: Duration,
    /// How long a request's head may take: from its first byte, or from the connection's begin for
    /// the first one.
    pub head: Duration,
    /// How long an HTTP/1.1 connection may wait for its next request. More than the 90 s after
    /// which Go's clients close it themselves, so that they rarely meet a connection that is just
    /// being closed.
    pub idle: Duration,
    /// How long a client may take none of the bytes that wait for it.
    pub stalled: Duration,
    /// How long connections may go on after `stopping`.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(15),
            idle: Duration::from_secs(120),
            stalled: Duration::from_secs(300),
            drain: Duration::from_secs(30),
        }
    }
}

/// The congestion control that every kernel has, and that paces nothing.
const UNPACED: &[u8] = b"reno";

/// How much may wait in the kernel for a client on this machine, besides what the client may have
/// already, in bytes. A slow reader would otherwise have megabytes wait for it, which left the
/// processor's cache when it comes to copying them: readers that hash what they read, as runtimes
/// do, are a sixth slower then.
const NEARBY_WAITING: u32 = 32 << 10;

/// The most that waits to be sent on one connection (HTTP/1.1) or stream (HTTP/2), besides one
/// frame of the body; and the longest head of a request. 1,024 ranges in one header are 25 KB.
const BUFFER: usize = 64 << 10;
/// The most that waits encrypted on one connection, besides what waits plain. A frame of the body then goes out in one call;
/// with rustls's own 64 KiB it takes four, and a tenth more CPU.
const TLS_BUFFER: usize = 256 << 10;
/// Requests at one time on one HTTP/2 connection.
const STREAMS: u32 = 128;
/// How often an HTTP/2 peer is asked whether it is there, and how long it may take to answer.
const PING: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));
/// How long to wait when the process has no file descriptor left for a connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections and answers their requests with `service`, until `stopping`.
///
/// With `tls` the connection is encrypted, otherwise HTTP/2 is by prior knowledge (`h2c`). An
/// `Err` of the service cuts its connection (HTTP/1.1) or stream (HTTP/2).
///
/// On `stopping` the port is closed, idle connections are closed, the others end after what they
/// are doing. Those that have not ended within [`Limits::drain`] are cut. Returns how many those
/// were.
pub async fn serve<S, B>(
    tcp: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    service: S,
    stopping: CancellationToken,
    limits: Limits,
) -> usize
where
    S: Service<Request<Incoming>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    serve_each(tcp, tls, move |_| service.clone(), stopping, limits).await
}

/// As [`serve`], with a service of its own for each connection, made from its peer's address.
pub async fn serve_each<S, B>(
    tcp: TcpListener,
    tls: Option<Arc<rustls::ServerConfig>>,
    service_for: impl Fn(SocketAddr) -> S,
    stopping: CancellationToken,
    limits: Limits,
) -> usize
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    let tls = tls.map(TlsAcceptor::from);
    let permits = Arc::new(Semaphore::new(limits.connections.max(1)));
    let mut connections = Connections::default();
    loop {
        let (socket, peer, permit) = tokio::select! {
            biased;
            () = stopping.cancelled() => break,
            accepted = accept(&tcp, &permits) => accepted,
        };
        let (stop, stopped) = oneshot::channel();
        let server = Server { tls: tls.clone(), service: service_for(peer), limits };
        let connection = server.connection(socket, peer, permit, stopped);
        connections.begin(connection, stop);
    }
    drop(tcp);
    connections.end(limits.drain).await
}

/// The next connection, once there is room for it.
async fn accept(
    tcp: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let permit = Arc::clone(permits).acquire_owned().await;
    let permit = permit.expect("the semaphore is never closed");
    loop {
        match tcp.accept().await {
            Ok((socket, peer)) => return (socket, peer, permit),
            Err(error) if is_of_one_connection(&error) => debug!("accepting: {error}"),
            Err(error) => {
                warn!("accepting a connection: {error}; trying again in {ACCEPT_PAUSE:?}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Whether accepting failed because of the connection that was accepted, not because of us.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}

/// The tasks of all connections, with what asks each to end.
///
/// Each has a channel of its own: a token that all share would be locked by each connection
/// whenever it is woken.
#[derive(Default)]
struct Connections {
    tasks: JoinSet<()>,
    stops: HashMap<task::Id, oneshot::Sender<()>>,
}

// === impl Connections ===

impl Connections {
    fn begin(
        &mut self,
        connection: impl Future<Output = ()> + Send + 'static,
        stop: oneshot::Sender<()>,
    ) {
        let id = self.tasks.spawn(connection).id();
        self.stops.insert(id, stop);
        while let Some(ended) = self.tasks.try_join_next_with_id() {
            self.forget(ended);
        }
    }

    /// Asks all to end, and cuts those that take longer than `limit`. Returns how many.
    async fn end(mut self, limit: Duration) -> usize {
        for (_, stop) in self.stops.drain() {
            // One that has ended by itself does not listen.
            let _ = stop.send(());
        }
        let all_ended = async {
            while let Some(ended) = self.tasks.join_next_with_id().await {
                self.forget(ended);
            }
        };
        if timeout(limit, all_ended).await.is_ok() {
            return 0;
        }
        let n_cut = self.tasks.len();
        warn!("cutting {n_cut} connections that did not end within {limit:?}");
        self.tasks.shutdown().await;
        n_cut
    }

    fn forget(&mut self, ended: Result<(task::Id, ()), JoinError>) {
        let id = match &ended {
            Ok((id, ())) => *id,
            Err(error) => error.id(),
        };
        self.stops.remove(&id);
        if ended.is_err_and(|error| error.is_panic()) {
            error!("the task of a connection panicked");
        }
    }
}

/// What serves one connection.
struct Server<S> {
    tls: Option<TlsAcceptor>,
    service: S,
    limits: Limits,
}

// === impl Server ===

impl<S, B> Server<S>
where
    S: Service<Request<Incoming>, Response = Response<B>> + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn Error + Send + Sync>>,
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn Error + Send + Sync>>,
{
    /// Lives as long as the connection, and holds its permit.
    async fn connection(
        self,
        socket: TcpStream,
        peer: SocketAddr,
        _permit: OwnedSemaphorePermit,
        mut stopped: oneshot::Receiver<()>,
    ) {
        if let Err(error) = prepare(&socket, self.limits.stalled) {
            debug!(client.address = %peer, "the connection ended early: {error}");
            return;
        }
        let Some(tls) = self.tls.clone() else {
            return self.http(socket, peer, stopped).await;
        };
        let handshake = timeout(self.limits.handshake, tls.accept(socket));
        let shaken = tokio::select! {
            shaken = handshake => shaken,
            _ = &mut stopped => return,
        };
        match shaken {
            Ok(Ok(mut socket)) => {
                socket.get_mut().1.set_buffer_limit(Some(TLS_BUFFER));
                self.http(socket, peer, stopped).await;
            }
            Ok(Err(error)) => info!(client.address = %peer, "TLS handshake with {peer}: {error}"),
            Err(_) => info!(client.address = %peer, "TLS handshake with {peer}: too slow"),
        }
    }

    async fn http<I>(self, socket: I, peer: SocketAddr, mut stopped: oneshot::Receiver<()>)
    where
        I: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let heard = Arc::new(Heard::default());
        let builder = builder(&self.limits, &heard);
        let socket = TokioIo::new(Listening::new(socket, Arc::clone(&heard)));
        let mut connection = pin!(builder.serve_connection(socket, self.service));
        let mut silent = pin!(heard.is_silent_after(self.limits.head));
        let (mut may_be_silent, mut may_go_on) = (true, true);
        let ended = loop {
            tokio::select! {
                biased;
                ended = connection.as_mut() => break ended,
                is_silent = silent.as_mut(), if may_be_silent => {
                    if is_silent {
                        debug!(client.address = %peer, "the client said nothing");
                        return;
                    }
                    may_be_silent = false;
                }
                _ = &mut stopped, if may_go_on => {
                    connection.as_mut().graceful_shutdown();
                    may_go_on = false;
                }
            }
        };
        if let Err(error) = ended {
            debug!(client.address = %peer, "the connection ended early: {error}");
        }
    }
}

/// Sends what is written without waiting for more, and bounds how long a client may take nothing.
fn prepare(socket: &TcpStream, stalled: Duration) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let options = SockRef::from(socket);
    options.set_tcp_user_timeout(Some(stalled))?;
    if socket.peer_addr()?.ip().is_loopback() {
        // There is no network to spare. BBR, where it is the default, would pace all the same, with
        // a timer for every few packets.
        let _ = options.set_tcp_congestion(UNPACED);
        let _ = options.set_tcp_notsent_lowat(NEARBY_WAITING);
    }
    Ok(())
}

fn builder(limits: &Limits, heard: &Arc<Heard>) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(HeadTimer::new(Arc::clone(heard), limits.head))
        .keep_alive(true)
        .header_read_timeout(limits.idle)
        .max_buf_size(BUFFER)
        .pipeline_flush(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_send_buf_size(BUFFER)
        .adaptive_window(false)
        .keep_alive_interval(PING.0)
        .keep_alive_timeout(PING.1);
    builder
}

#[cfg(test)]
mod tests;
