//! Many clients that download the same thing at once.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use larder_core::{Digest, digest::Hasher};

use super::buffer::Buffer;
use super::client::Target;
use super::content::empty_hasher;
use super::http::{self, MAX_HEAD, ResponseHead};
use super::poller::Poller;

/// How long all servers together may stay silent.
const SILENCE: Duration = Duration::from_secs(60);

/// What came of a crowd.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Crowd {
    /// Clients that got a 200 and a whole body, and the right one where that was checked.
    pub(crate) right: usize,
    /// From the first request to the last byte of the last body, in seconds.
    pub(crate) seconds: f64,
    /// Bytes of all bodies.
    pub(crate) bytes: u64,
}

impl Crowd {
    /// Megabytes (10⁶) per second, of all clients together.
    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }
}

/// Downloads `target`, without TLS, over `n` connections at once, all in this thread and into one
/// buffer. With a `digest`, every body is hashed and compared.
///
/// # Errors
///
/// The server does not accept, or nothing came for 60 s. A body that ends early or is wrong is no
/// error; it is not counted as right.
pub(crate) fn download(
    target: &Target,
    n: usize,
    digest: Option<&Digest>,
) -> anyhow::Result<Crowd> {
    let mut poller = Poller::new()?;
    let mut members: Vec<Member> = Vec::with_capacity(n);
    for number in 0..n {
        let stream = TcpStream::connect(target.address).context("connecting")?;
        poller.add(&stream, number)?;
        members.push(Member::new(stream, digest));
    }
    let request = http::get(&target.address.to_string(), &target.path);
    let started = Instant::now();
    for member in &mut members {
        member.stream.write_all(&request).context("sending a request")?;
    }
    let mut buffer = Buffer::new();
    let mut under_way = n;
    while under_way > 0 {
        let ready: Vec<usize> = poller.wait(SILENCE)?.collect();
        ensure!(!ready.is_empty(), "{under_way} of {n} downloads are stuck");
        for number in ready {
            let member = &mut members[number];
            if member.read(&mut buffer) {
                poller.remove(&member.stream)?;
                under_way -= 1;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let bytes = members.iter().map(|member| member.bytes).sum();
    let right = members.into_iter().filter_map(|member| member.received(digest));
    Ok(Crowd { right: right.count(), seconds, bytes })
}

/// One client of a crowd.
struct Member {
    stream: TcpStream,
    /// The response until its head is whole.
    head: Vec<u8>,
    /// The length that a 200 announced.
    expected: Option<u64>,
    bytes: u64,
    hasher: Option<Hasher>,
}

impl Member {
    fn new(stream: TcpStream, digest: Option<&Digest>) -> Self {
        let hasher = digest.map(|_| empty_hasher());
        Self { stream, head: Vec::new(), expected: None, bytes: 0, hasher }
    }

    /// Reads what is there. Whether this client is done, well or not.
    fn read(&mut self, buffer: &mut [u8]) -> bool {
        match self.stream.read(buffer) {
            Ok(0) => true,
            Ok(n) => self.push(&buffer[..n]),
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        }
    }

    fn push(&mut self, bytes: &[u8]) -> bool {
        if self.expected.is_some() {
            return self.push_body(bytes);
        }
        self.head.extend_from_slice(bytes);
        let Some(head) = ResponseHead::parse(&self.head) else {
            return self.head.len() > MAX_HEAD;
        };
        let received = std::mem::take(&mut self.head);
        self.expected = head.content_length.filter(|_| head.status == 200);
        self.expected.is_none() || self.push_body(&received[head.length..])
    }

    fn push_body(&mut self, bytes: &[u8]) -> bool {
        self.bytes += bytes.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.expected.is_some_and(|expected| self.bytes >= expected)
    }

    /// Bytes of the body, if it is whole and has this digest; `None` otherwise.
    fn received(self, digest: Option<&Digest>) -> Option<u64> {
        let has_digest = self.hasher.map(Hasher::finish).as_ref() == digest;
        self.expected.filter(|expected| has_digest && *expected == self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const HELLO: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn only_whole_and_right_bodies_count() {
        let target = answering(&[
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhellO\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhello\n",
            "HTTP/1.1 503 Busy\r\nContent-Length: 6\r\n\r\nhello\n",
        ]);
        let crowd = download(&target, 4, Some(&HELLO.parse().unwrap())).unwrap();
        assert_eq!((crowd.right, crowd.bytes), (1, 18));
    }

    /// A server that gives each client the next answer, and closes.
    fn answering(answers: &'static [&'static str]) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let _ = stream.read(&mut [0; 1024]).unwrap();
                stream.write_all(answer.as_bytes()).unwrap();
            }
        });
        Target::plain(address, "/".to_owned())
    }
}
