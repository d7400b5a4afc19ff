//! Small requests, as many as there are time for (closed loop) or at a given rate (open loop).
//!
//! One thread, prepared requests, no pipelining: a request is one write and one read, so that one
//! core can ask for well over 100,000 answers per second.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::thread::set_current_timer_slack;

use super::http::ResponseHead;
use super::poller::Poller;
use super::stats::Latencies;

/// How long all connections together may be silent.
const SILENCE: Duration = Duration::from_secs(20);

/// Room for a head and a small body.
const BUFFER: usize = 32 << 10;

/// Where the requests of a load come from.
pub(crate) trait Requests {
    /// Writes the next request into `request`, which is empty. `false`: there are no more.
    fn next(&mut self, request: &mut Vec<u8>) -> bool;
}

/// The same request again and again.
pub(crate) struct Same<'a>(pub(crate) &'a [u8]);

impl Requests for Same<'_> {
    fn next(&mut self, request: &mut Vec<u8>) -> bool {
        request.extend_from_slice(self.0);
        true
    }
}

/// What came of a load.
#[derive(Debug)]
pub(crate) struct Answers {
    /// The time of each request: in a closed loop from its sending, in an open one from when it
    /// was to be sent, whether or not a connection was free then.
    pub(crate) latencies: Latencies,
    /// From the first request to the last answer, in seconds.
    pub(crate) seconds: f64,
}

impl Answers {
    /// Answers per second.
    pub(crate) fn per_second(&self) -> f64 {
        self.latencies.len() as f64 / self.seconds
    }
}

/// Connections over which a load is driven.
pub(crate) struct Load {
    poller: Poller,
    connections: Vec<Connection>,
    request: Vec<u8>,
    buffer: Vec<u8>,
}

#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    /// When the request under way was sent, or was to be sent. `None`: there is none.
    since: Option<Instant>,
    /// Bytes of the answer whose head is not whole yet.
    head: Vec<u8>,
    /// Bytes of the body that are still to come, once the head is whole.
    left: Option<u64>,
}

impl Load {
    /// Opens `n` connections.
    ///
    /// # Errors
    ///
    /// The server does not accept.
    pub(crate) fn connect(address: SocketAddr, n: usize) -> anyhow::Result<Self> {
        let poller = Poller::new()?;
        let mut connections = Vec::with_capacity(n);
        for number in 0..n {
            let stream = TcpStream::connect(address).context("connecting")?;
            stream.set_nodelay(true)?;
            poller.add(&stream, number)?;
            connections.push(Connection { stream, since: None, head: Vec::new(), left: None });
        }
        Ok(Self { poller, connections, request: Vec::new(), buffer: vec![0; BUFFER] })
    }

    /// Sends the next request on each connection as soon as the last one was answered, for `time`
    /// or until there are no more requests.
    ///
    /// # Errors
    ///
    /// Any answer but 200, a closed connection, or 20 s without an answer.
    pub(crate) fn as_fast_as_answered(
        &mut self,
        requests: &mut impl Requests,
        time: Duration,
    ) -> anyhow::Result<Answers> {
        let started = Instant::now();
        let mut latencies = Latencies::with_capacity(1 << 20);
        let mut under_way = 0;
        for number in 0..self.connections.len() {
            under_way += usize::from(self.send(number, requests, Instant::now())?);
        }
        let mut answered = Vec::with_capacity(self.connections.len());
        while under_way > 0 {
            let any = self.collect(SILENCE, &mut answered, &mut latencies)?;
            ensure!(any, "no answer for {SILENCE:?}");
            for number in answered.drain(..) {
                let now = Instant::now();
                let goes_on = now - started < time && self.send(number, requests, now)?;
                under_way -= usize::from(!goes_on);
            }
        }
        Ok(Answers { latencies, seconds: started.elapsed().as_secs_f64() })
    }

    /// Sends `per_second` requests evenly spread over `time`. One whose moment comes while every
    /// connection is busy waits for the next free one, and its time counts from that moment: a
    /// server that stalls does not make the load pause (no coordinated omission).
    ///
    /// # Errors
    ///
    /// As [`Load::as_fast_as_answered`].
    pub(crate) fn at_rate(
        &mut self,
        requests: &mut impl Requests,
        per_second: f64,
        time: Duration,
    ) -> anyhow::Result<Answers> {
        // Otherwise a sleep ends up to 50 µs late, and requests would be late with it.
        set_current_timer_slack(NonZeroU64::new(1)).context("asking for punctual sleeps")?;
        let answers = self.keep_rate(requests, per_second, time);
        set_current_timer_slack(None).context("going back to usual sleeps")?;
        answers
    }

    fn keep_rate(
        &mut self,
        requests: &mut impl Requests,
        per_second: f64,
        time: Duration,
    ) -> anyhow::Result<Answers> {
        let n_requests = (per_second * time.as_secs_f64()) as u32;
        let mut latencies = Latencies::with_capacity(n_requests as usize);
        let mut free: Vec<usize> = (0..self.connections.len()).collect();
        let started = Instant::now();
        let due = |number: u32| started + Duration::from_secs_f64(f64::from(number) / per_second);
        let mut sent = 0;
        while latencies.len() < n_requests as usize {
            while sent < n_requests
                && due(sent) <= Instant::now()
                && let Some(number) = free.pop()
            {
                self.send(number, requests, due(sent))?;
                sent += 1;
            }
            let may_send = sent < n_requests && !free.is_empty();
            let patience = if may_send { due(sent) - Instant::now() } else { SILENCE };
            let any = self.collect(patience, &mut free, &mut latencies)?;
            ensure!(any || may_send, "no answer for {SILENCE:?}");
        }
        Ok(Answers { latencies, seconds: started.elapsed().as_secs_f64() })
    }

    /// Sends the next request on connection `number`. `false`: there are no more.
    fn send(
        &mut self,
        number: usize,
        requests: &mut impl Requests,
        since: Instant,
    ) -> anyhow::Result<bool> {
        self.request.clear();
        if !requests.next(&mut self.request) {
            return Ok(false);
        }
        let connection = &mut self.connections[number];
        // A request is far smaller than a socket's buffer, and there is only one under way.
        connection.stream.write_all(&self.request).context("sending a request")?;
        connection.since = Some(since);
        Ok(true)
    }

    /// Waits for answers, and adds the connections that became free to `free`. Whether anything
    /// came, be it a part of an answer.
    fn collect(
        &mut self,
        patience: Duration,
        free: &mut Vec<usize>,
        latencies: &mut Latencies,
    ) -> anyhow::Result<bool> {
        let mut any = false;
        for number in self.poller.wait(patience)? {
            any = true;
            let connection = &mut self.connections[number];
            if let Some(since) = connection.read(&mut self.buffer)? {
                latencies.record(since.elapsed());
                free.push(number);
            }
        }
        Ok(any)
    }
}

impl Connection {
    /// Reads what is there. When the answer is whole: since when it was waited for.
    fn read(&mut self, buffer: &mut [u8]) -> anyhow::Result<Option<Instant>> {
        let n = match self.stream.read(buffer) {
            Ok(0) => anyhow::bail!("the server closed a connection"),
            Ok(n) => n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("reading an answer"),
        };
        let left = match self.left {
            Some(left) => left.checked_sub(n as u64),
            None if self.head.is_empty() => match ResponseHead::parse(&buffer[..n]) {
                Some(head) => left_behind(head, n)?,
                None => {
                    self.head.extend_from_slice(&buffer[..n]);
                    return Ok(None);
                }
            },
            None => {
                self.head.extend_from_slice(&buffer[..n]);
                let Some(head) = ResponseHead::parse(&self.head) else { return Ok(None) };
                let received = std::mem::take(&mut self.head).len();
                left_behind(head, received)?
            }
        };
        self.left =
            Some(left.context("an answer is longer than it says")?).filter(|left| *left > 0);
        Ok(if self.left.is_none() { self.since.take() } else { None })
    }
}

/// Bytes still to come of an answer whose `head` and more, `received` bytes, are there. `None`:
/// there are too many already.
fn left_behind(head: ResponseHead, received: usize) -> anyhow::Result<Option<u64>> {
    ensure!(head.status == 200, "an answer is {}", head.status);
    let length = head.content_length.context("an answer does not say its length")?;
    Ok((head.length as u64 + length).checked_sub(received as u64))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_closed_loop_ends_with_its_requests() {
        struct Three(usize);
        impl Requests for Three {
            fn next(&mut self, request: &mut Vec<u8>) -> bool {
                request.extend_from_slice(b"GET / HTTP/1.1\r\n\r\n");
                self.0 += 1;
                self.0 <= 3
            }
        }
        let mut load = Load::connect(server(Duration::ZERO), 2).unwrap();
        let answers = load.as_fast_as_answered(&mut Three(0), Duration::from_secs(60)).unwrap();
        assert_eq!(answers.latencies.len(), 3);
    }

    #[test]
    fn a_stall_counts_for_every_request_that_should_have_been_sent_meanwhile() {
        let stall = Duration::from_millis(20);
        let mut load = Load::connect(server(stall), 1).unwrap();
        let mut requests = Same(b"GET / HTTP/1.1\r\n\r\n");
        let answers = load.at_rate(&mut requests, 100.0, Duration::from_millis(100));
        let [median, most] = answers.unwrap().latencies.percentiles([50.0, 100.0]);
        // Ten requests, one each 10 ms, each answered in 20 ms: the last waits for about 110 ms.
        assert!((55.0..95.0).contains(&median), "{median}");
        assert!(most >= 100.0, "{most}");
    }

    #[test]
    fn an_answer_in_pieces_is_one_answer() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut load = Load::connect(listener.local_addr().unwrap(), 1).unwrap();
        let (mut peer, _) = listener.accept().unwrap();
        let mut latencies = Latencies::default();
        let mut free = Vec::new();
        load.send(0, &mut Same(b"GET / HTTP/1.1\r\n\r\n"), Instant::now()).unwrap();
        for piece in ["HTTP/1.1 200 OK\r\nContent-", "Length: 4\r\n\r\nb", "od"] {
            peer.write_all(piece.as_bytes()).unwrap();
            load.collect(SILENCE, &mut free, &mut latencies).unwrap();
        }
        assert_eq!(free, [0; 0]);
        peer.write_all(b"y").unwrap();
        load.collect(SILENCE, &mut free, &mut latencies).unwrap();
        assert_eq!((free.as_slice(), latencies.len()), ([0].as_slice(), 1));
    }

    /// A server that answers each request after `stall`, until the test ends.
    fn server(stall: Duration) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                std::thread::spawn(move || {
                    while stream.read(&mut [0; 1024]).is_ok_and(|n| n > 0) {
                        std::thread::sleep(stall);
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok");
                    }
                });
            }
        });
        address
    }
}
