//! A client that only downloads, as cheaply as it can, so that it is the server that is measured.
//!
//! It is the same for every server: one blocking socket, one request, one buffer that every read
//! goes to. The bytes do reach the buffer, as they would any real client's.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use larder_core::Digest;

use super::buffer::Buffer;
use super::content::empty_hasher;
use super::http::{self, MAX_HEAD, ResponseHead};
use super::tls::TlsStream;

/// How long a server may stay silent. Longer than any delay that is measured.
const SILENCE: Duration = Duration::from_secs(60);

/// Something to GET.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// Where the server listens.
    pub(crate) address: SocketAddr,
    /// Path and query.
    pub(crate) path: String,
    /// How to speak TLS, if the server does.
    pub(crate) tls: Option<Arc<rustls::ClientConfig>>,
}

/// A finished download.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Download {
    /// When the client began to connect.
    pub(crate) started: Instant,
    /// When the first byte of the body was there.
    pub(crate) first_byte: Instant,
    /// When the last one was there.
    pub(crate) finished: Instant,
    /// Bytes of the body.
    pub(crate) bytes: u64,
}

impl Download {
    /// From the start of connecting to the last byte, in seconds.
    pub(crate) fn seconds(&self) -> f64 {
        (self.finished - self.started).as_secs_f64()
    }

    /// Megabytes (10⁶) per second.
    pub(crate) fn megabytes_per_second(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds()
    }
}

impl Target {
    /// Something to GET without TLS.
    pub(crate) fn plain(address: SocketAddr, path: String) -> Self {
        Self { address, path, tls: None }
    }

    /// Downloads everything and looks at no byte of it.
    ///
    /// # Errors
    ///
    /// Any answer but 200, or fewer bytes than were announced.
    pub(crate) fn drain(&self) -> anyhow::Result<Download> {
        self.download(|_| Ok(()))
    }

    /// Downloads everything and hashes it.
    ///
    /// # Errors
    ///
    /// As [`Target::drain`], and other bytes than `digest` names.
    pub(crate) fn verify(&self, digest: &Digest) -> anyhow::Result<Download> {
        let mut hasher = empty_hasher();
        let download = self.download(|bytes| {
            hasher.update(bytes);
            Ok(())
        })?;
        let got = hasher.finish();
        ensure!(got == *digest, "{} brought {got} instead of {digest}", self.path);
        Ok(download)
    }

    /// Downloads a short body and returns it.
    ///
    /// # Errors
    ///
    /// As [`Target::drain`].
    pub(crate) fn body(&self) -> anyhow::Result<Vec<u8>> {
        let mut body = Vec::new();
        self.download(|bytes| {
            body.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(body)
    }

    /// Downloads everything and hands each piece to `sink`, which may slow it down or end it.
    ///
    /// # Errors
    ///
    /// As [`Target::drain`], and what `sink` says.
    pub(crate) fn download(
        &self,
        sink: impl FnMut(&[u8]) -> anyhow::Result<()>,
    ) -> anyhow::Result<Download> {
        let started = Instant::now();
        let stream = TcpStream::connect(self.address).context("connecting")?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_nodelay(true)?;
        let request = http::get(&self.address.to_string(), &self.path);
        let mut body = Body { sink, head: Vec::new(), expected: None, first_byte: None, bytes: 0 };
        match &self.tls {
            None => read_plain(stream, &request, &mut body),
            Some(config) => {
                TlsStream::new(stream, config)?.exchange(&request, |bytes| body.push(bytes))
            }
        }
        .with_context(|| format!("getting {}", self.path))?;
        let finished = Instant::now();
        body.check().with_context(|| format!("getting {}", self.path))?;
        let first_byte = body.first_byte.unwrap_or(finished);
        Ok(Download { started, first_byte, finished, bytes: body.bytes })
    }
}

fn read_plain(
    mut stream: TcpStream,
    request: &[u8],
    body: &mut Body<impl FnMut(&[u8]) -> anyhow::Result<()>>,
) -> anyhow::Result<()> {
    stream.write_all(request).context("sending the request")?;
    let mut buffer = Buffer::new();
    loop {
        let n = stream.read(&mut buffer).context("reading the answer")?;
        if n == 0 || body.push(&buffer[..n])? {
            return Ok(());
        }
    }
}

/// A response as far as it has come.
struct Body<S> {
    sink: S,
    /// The response until its head is whole.
    head: Vec<u8>,
    /// The length that the head announced.
    expected: Option<u64>,
    first_byte: Option<Instant>,
    bytes: u64,
}

impl<S: FnMut(&[u8]) -> anyhow::Result<()>> Body<S> {
    /// Takes the next bytes of the connection. Whether the response is whole.
    fn push(&mut self, bytes: &[u8]) -> anyhow::Result<bool> {
        match self.expected {
            Some(expected) => self.push_body(bytes, expected),
            None => self.push_head(bytes),
        }
    }

    fn push_head(&mut self, bytes: &[u8]) -> anyhow::Result<bool> {
        self.head.extend_from_slice(bytes);
        let Some(head) = ResponseHead::parse(&self.head) else {
            ensure!(self.head.len() < MAX_HEAD, "the head of the answer does not end");
            return Ok(false);
        };
        let received = std::mem::take(&mut self.head);
        let rest = &received[head.length..];
        if head.status != 200 {
            bail!("the answer is {}: {}", head.status, String::from_utf8_lossy(rest));
        }
        let expected = head.content_length.context("the answer does not say its length")?;
        self.expected = Some(expected);
        self.push_body(rest, expected)
    }

    fn push_body(&mut self, bytes: &[u8], expected: u64) -> anyhow::Result<bool> {
        if !bytes.is_empty() {
            self.first_byte.get_or_insert_with(Instant::now);
            self.bytes += bytes.len() as u64;
            (self.sink)(bytes)?;
        }
        Ok(self.bytes >= expected)
    }

    fn check(&self) -> anyhow::Result<()> {
        let expected = self.expected.context("the connection ended before the head")?;
        ensure!(self.bytes == expected, "{} of {expected} bytes came", self.bytes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const HELLO: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn a_body_is_whole_when_its_length_came() {
        let target = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
        let download = target.verify(&HELLO.parse().unwrap()).unwrap();
        assert_eq!(download.bytes, 6);
        assert!(download.started <= download.first_byte);
        assert!(download.first_byte <= download.finished);
    }

    #[test]
    fn a_short_body_is_an_error() {
        let target = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nhello\n");
        let error = format!("{:#}", target.drain().unwrap_err());
        assert!(error.contains("6 of 7 bytes"), "{error}");
    }

    #[test]
    fn other_bytes_are_an_error() {
        let target = answering(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nhellO\n");
        let error = target.verify(&HELLO.parse().unwrap()).unwrap_err().to_string();
        assert!(error.contains("instead of"), "{error}");
    }

    #[test]
    fn a_refusal_is_an_error_with_its_status() {
        let target = answering(b"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\ngone");
        let error = format!("{:#}", target.drain().unwrap_err());
        assert!(error.contains("404: gone"), "{error}");
    }

    /// A server that gives one client this answer, and closes.
    fn answering(answer: &'static [u8]) -> Target {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).unwrap();
            stream.write_all(answer).unwrap();
        });
        Target::plain(address, "/".to_owned())
    }
}
