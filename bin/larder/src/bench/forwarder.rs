//! A forwarder in front of an upstream: it counts, delays, limits and goes silent.
//!
//! ```text
//! larder or client ── requests ──▶ forwarder ── requests ──▶ docker-registry
//!                  ◀── delay ◀── pace ◀──────────── bytes ──
//! ```
//!
//! Two threads carry one connection, one per direction, and a third one per direction holds bytes
//! back where a delay is asked for. This machine's kernel may not have netem, and it works without
//! root.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use larder_core::Digest;

use super::dialogue::{Dialogue, Event, Request};
use super::pace::{Pace, sleep_until};

/// What is carried at a time without a delay, in bytes.
const CHUNK: usize = 256 << 10;

/// What is carried at a time over a delayed link, in bytes.
const SMALL_CHUNK: usize = 64 << 10;

/// How many chunks may be under way in one direction: 64 MiB, enough for 1.6 GB/s over 40 ms.
const UNDER_WAY: usize = 1024;

/// How often a silent forwarder looks whether it may speak again.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The most requests that are remembered. No section makes more through a forwarder.
const MAX_EXCHANGES: usize = 100_000;

/// What the way to the upstream is like. The default is the bare loopback.
#[derive(Clone, Debug, Default)]
pub(crate) struct Link {
    /// How long bytes take, in each direction. Setting up a connection takes one round trip.
    pub(crate) delay: Duration,
    /// What one connection may bring from the upstream, in bytes per second.
    pub(crate) per_connection: Option<u64>,
    /// What all connections together may bring from the upstream, in bytes per second.
    pub(crate) total: Option<u64>,
    /// How long the upstream thinks before it answers a GET of a blob.
    pub(crate) first_byte: Duration,
}

/// A request that came through.
#[derive(Clone, Debug)]
struct Exchange {
    request: Request,
    /// When the first byte of the response's body was about to be sent on.
    body_at: Option<Instant>,
}

/// A running forwarder. Dropping it cuts every connection.
#[derive(Debug)]
pub(crate) struct Forwarder {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    upstream: SocketAddr,
    link: Link,
    pace: Option<Pace>,
    received: AtomicU64,
    silent: AtomicBool,
    closed: AtomicBool,
    exchanges: Mutex<Vec<Exchange>>,
    /// The sockets of the connections that are being carried, so that they can be cut.
    connections: Mutex<HashMap<SocketAddr, [TcpStream; 2]>>,
}

impl Forwarder {
    /// Begins to forward to `upstream`.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub(crate) fn start(upstream: SocketAddr, link: Link) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("binding the forwarder")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            pace: link.total.map(Pace::new),
            link,
            received: AtomicU64::new(0),
            silent: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            exchanges: Mutex::default(),
            connections: Mutex::default(),
        });
        let acceptor = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || accept(&listener, &shared))
        };
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// All bytes that came from the upstream, heads included.
    pub(crate) fn bytes_received(&self) -> u64 {
        self.shared.received.load(Ordering::Relaxed)
    }

    /// How many GETs of blob `digest` came through.
    pub(crate) fn gets_of(&self, digest: &Digest) -> usize {
        let wanted = digest.to_string();
        let exchanges = self.shared.exchanges();
        exchanges.iter().filter(|it| it.request.is_get_of(&wanted)).count()
    }

    /// When the first byte of blob `digest` was sent on; `None` if none was yet.
    pub(crate) fn first_byte_of(&self, digest: &Digest) -> Option<Instant> {
        let wanted = digest.to_string();
        let exchanges = self.shared.exchanges();
        exchanges.iter().filter(|it| it.request.is_get_of(&wanted)).find_map(|it| it.body_at)
    }

    /// Makes the upstream vanish: connections are taken, and nothing ever comes back.
    pub(crate) fn fall_silent(&self) {
        self.shared.silent.store(true, Ordering::Relaxed);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        for stream in self.shared.connections().values().flatten() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // The acceptor looks at `closed` only when a connection comes.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Request {
    fn is_get_of(&self, digest: &str) -> bool {
        self.method == "GET" && self.path.split('?').next().is_some_and(|it| it.ends_with(digest))
    }

    fn is_get_of_a_blob(&self) -> bool {
        self.method == "GET" && self.path.contains("/blobs/")
    }
}

impl Shared {
    fn exchanges(&self) -> MutexGuard<'_, Vec<Exchange>> {
        self.exchanges.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn connections(&self) -> MutexGuard<'_, HashMap<SocketAddr, [TcpStream; 2]>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
    }

    fn remember(&self, requests: Vec<Request>) {
        let mut exchanges = self.exchanges();
        let room = MAX_EXCHANGES.saturating_sub(exchanges.len());
        let requests = requests.into_iter().take(room);
        exchanges.extend(requests.map(|request| Exchange { request, body_at: None }));
    }

    fn stamp(&self, request: &Request) {
        let mut exchanges = self.exchanges();
        let is_open = |it: &&mut Exchange| it.request == *request && it.body_at.is_none();
        if let Some(exchange) = exchanges.iter_mut().find(is_open) {
            exchange.body_at = Some(Instant::now());
        }
    }

    /// Waits while the upstream is to be silent. `false`: the forwarder was closed meanwhile.
    fn may_speak(&self) -> bool {
        while self.silent.load(Ordering::Relaxed) && !self.is_closed() {
            std::thread::sleep(LOOK_EVERY);
        }
        !self.is_closed()
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    while let Ok((client, peer)) = listener.accept() {
        if shared.is_closed() {
            return;
        }
        let shared = Arc::clone(shared);
        std::thread::spawn(move || {
            if let Err(error) = carry(&client, peer, &shared) {
                super::progress(&format!("forwarder: {error:#}"));
            }
            shared.connections().remove(&peer);
        });
    }
}

/// Carries the connection of `peer` until either side ends it.
fn carry(client: &TcpStream, peer: SocketAddr, shared: &Arc<Shared>) -> anyhow::Result<()> {
    if !shared.may_speak() {
        return Ok(());
    }
    let upstream = TcpStream::connect(shared.upstream).context("connecting to the upstream")?;
    client.set_nodelay(true)?;
    upstream.set_nodelay(true)?;
    shared.connections().insert(peer, [client.try_clone()?, upstream.try_clone()?]);
    let dialogue = Arc::new(Mutex::new(Dialogue::default()));
    let up = Direction::new(client, &upstream, shared, &dialogue)?;
    let down = Direction::new(&upstream, client, shared, &dialogue)?;
    let upward = std::thread::spawn(move || up.carry_requests());
    down.carry_responses();
    // Nothing reads from it any more; an upstream that is still sending is to notice.
    let _ = upstream.shutdown(Shutdown::Both);
    let _ = upward.join();
    Ok(())
}

/// One direction of a connection.
struct Direction {
    from: TcpStream,
    to: Outlet,
    shared: Arc<Shared>,
    dialogue: Arc<Mutex<Dialogue>>,
}

impl Direction {
    fn new(
        from: &TcpStream,
        to: &TcpStream,
        shared: &Arc<Shared>,
        dialogue: &Arc<Mutex<Dialogue>>,
    ) -> anyhow::Result<Self> {
        Ok(Self {
            from: from.try_clone()?,
            to: Outlet::new(to.try_clone()?, shared.link.delay),
            shared: Arc::clone(shared),
            dialogue: Arc::clone(dialogue),
        })
    }

    fn carry_requests(mut self) {
        // The handshake's round trip, which loopback does not have.
        let mut handshake = 2 * self.shared.link.delay;
        let mut buffer = vec![0; SMALL_CHUNK];
        while let Some(n) = self.read(&mut buffer) {
            let requests = self.dialogue().sent(&buffer[..n]);
            self.shared.remember(requests);
            let due = Instant::now() + self.shared.link.delay + std::mem::take(&mut handshake);
            if !self.shared.may_speak() || self.to.send(due, &buffer[..n]).is_none() {
                break;
            }
        }
        self.to.end();
    }

    fn carry_responses(mut self) {
        let pace = self.shared.link.per_connection.map(Pace::new);
        let is_bare = self.shared.link.delay.is_zero();
        let mut buffer = vec![0; if is_bare { CHUNK } else { SMALL_CHUNK }];
        while let Some(n) = self.read(&mut buffer) {
            self.shared.received.fetch_add(n as u64, Ordering::Relaxed);
            let events = self.dialogue().received(&buffer[..n]);
            self.think(&events);
            for pace in pace.iter().chain(&self.shared.pace) {
                pace.wait(n);
            }
            self.stamp(&events);
            let due = Instant::now() + self.shared.link.delay;
            if !self.shared.may_speak() || self.to.send(due, &buffer[..n]).is_none() {
                break;
            }
        }
        self.to.end();
    }

    /// The next bytes; `None` when there are no more.
    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        self.from.read(buffer).ok().filter(|n| *n > 0)
    }

    fn dialogue(&self) -> MutexGuard<'_, Dialogue> {
        self.dialogue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn think(&self, events: &[Event]) {
        let begins =
            |it: &Event| matches!(it, Event::Begins(request) if request.is_get_of_a_blob());
        if events.iter().any(begins) {
            std::thread::sleep(self.shared.link.first_byte);
        }
    }

    fn stamp(&self, events: &[Event]) {
        for event in events {
            if let Event::Body(request) = event {
                self.shared.stamp(request);
            }
        }
    }
}

/// Where a direction ends: the socket itself, or a queue of bytes that are under way to it.
enum Outlet {
    Direct(TcpStream),
    Delayed(SyncSender<(Instant, Vec<u8>)>),
}

impl Outlet {
    fn new(to: TcpStream, delay: Duration) -> Self {
        if delay.is_zero() {
            return Self::Direct(to);
        }
        let (sender, receiver) = sync_channel(UNDER_WAY);
        std::thread::spawn(move || deliver(&receiver, to));
        Self::Delayed(sender)
    }

    /// Sends `bytes` so that they arrive at `due`. `None`: nobody receives any more.
    fn send(&mut self, due: Instant, bytes: &[u8]) -> Option<()> {
        match self {
            Self::Direct(to) => to.write_all(bytes).ok(),
            Self::Delayed(queue) => queue.send((due, bytes.to_vec())).ok(),
        }
    }

    /// Ends the direction, behind what is under way.
    fn end(self) {
        if let Self::Direct(to) = self {
            let _ = to.shutdown(Shutdown::Write);
        }
    }
}

fn deliver(queue: &Receiver<(Instant, Vec<u8>)>, mut to: TcpStream) {
    for (due, bytes) in queue {
        sleep_until(due);
        if to.write_all(&bytes).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::client::Target;

    const DIGEST: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn gets_and_bytes_are_counted_and_stamped() {
        let forwarder = Forwarder::start(hello(), Link::default()).unwrap();
        let digest: Digest = DIGEST.parse().unwrap();
        assert!(forwarder.first_byte_of(&digest).is_none());
        let download = blob(&forwarder).verify(&digest).unwrap();
        assert_eq!(forwarder.gets_of(&digest), 1);
        assert_eq!(forwarder.bytes_received(), 44);
        let stamped = forwarder.first_byte_of(&digest).unwrap();
        assert!(download.started < stamped && stamped < download.first_byte);
    }

    #[test]
    fn a_delay_counts_for_the_handshake_and_both_directions() {
        let link = Link { delay: Duration::from_millis(10), ..Link::default() };
        let forwarder = Forwarder::start(hello(), link).unwrap();
        let seconds = blob(&forwarder).drain().unwrap().seconds();
        assert!((0.040..0.5).contains(&seconds), "{seconds}");
    }

    #[test]
    fn an_upstream_can_think_before_it_answers() {
        let link = Link { first_byte: Duration::from_millis(50), ..Link::default() };
        let forwarder = Forwarder::start(hello(), link).unwrap();
        let seconds = blob(&forwarder).drain().unwrap().seconds();
        assert!((0.050..0.5).contains(&seconds), "{seconds}");
    }

    #[test]
    fn a_limit_holds_for_all_connections_together() {
        let link = Link { total: Some(1000), ..Link::default() };
        let forwarder = Forwarder::start(hello(), link).unwrap();
        let started = Instant::now();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| blob(&forwarder).drain().unwrap());
            }
        });
        // 4 × 44 bytes at 1,000 bytes per second.
        assert!(started.elapsed() >= Duration::from_millis(170), "{:?}", started.elapsed());
    }

    #[test]
    fn a_silent_upstream_takes_connections_and_says_nothing() {
        let forwarder = Forwarder::start(hello(), Link::default()).unwrap();
        forwarder.fall_silent();
        let mut stream = TcpStream::connect(forwarder.address()).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        let error = stream.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    }

    fn blob(forwarder: &Forwarder) -> Target {
        Target::plain(forwarder.address(), format!("/v2/a/blobs/{DIGEST}?ns=x"))
    }

    /// A server that answers one request per connection with `hello`, until the test ends.
    fn hello() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 1024]);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
            }
        });
        address
    }
}
