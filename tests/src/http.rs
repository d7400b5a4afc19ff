//! A client that sees what real ones hide: where an answer came from, and how its body ended.
//!
//! One connection a request, HTTP/1.1, nothing followed, nothing repeated, nothing decoded.

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use larder_testkit::patiently;
use serde_json::Value;
use tokio::net::TcpStream;

/// A request that is yet to be sent.
#[derive(Debug)]
pub struct Request {
    builder: http::request::Builder,
    authority: String,
    body: Bytes,
}

/// An answer whose body is yet to be read.
#[derive(Debug)]
pub struct Response {
    /// The status.
    pub status: u16,
    headers: http::HeaderMap,
    body: Incoming,
}

/// How a body ended that was not as expected.
#[derive(Debug)]
pub enum BodyError {
    /// The connection ended before the body did, which a client takes for a failure.
    Aborted {
        /// How many bytes came before.
        after: u64,
    },
    /// The body ended cleanly, but is not what was expected.
    Wrong {
        /// How many bytes were right.
        after: u64,
    },
}

/// Begins a GET of `url` (`http://HOST:PORT/…`).
pub fn get(url: &str) -> Request {
    request("GET", url)
}

/// Begins a HEAD of `url`.
pub fn head(url: &str) -> Request {
    request("HEAD", url)
}

/// Begins a request.
///
/// # Panics
///
/// If `url` is none.
pub fn request(method: &str, url: &str) -> Request {
    let uri: http::Uri = url.parse().unwrap();
    let authority = uri.authority().unwrap().to_string();
    let target = uri.path_and_query().unwrap().as_str();
    let builder =
        http::Request::builder().method(method).uri(target).header("host", authority.as_str());
    Request { builder, authority, body: Bytes::new() }
}

impl Request {
    /// Adds a header line.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.builder = self.builder.header(name, value);
        self
    }

    /// Calls the server by another name than the one in the URL.
    ///
    /// # Panics
    ///
    /// If `name` cannot be in a header.
    #[must_use]
    pub fn host(mut self, name: &str) -> Self {
        let headers = self.builder.headers_mut().unwrap();
        headers.insert(http::header::HOST, name.parse().unwrap());
        self
    }

    /// Gives it a body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends it and waits for the head of the answer.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub async fn send(self) -> Response {
        let what = format!("{:?} {:?}", self.builder.method_ref(), self.builder.uri_ref());
        match patiently(&what, self.try_send()).await {
            Ok(response) => response,
            Err(error) => panic!("{what}: {error}"),
        }
    }

    /// Sends it and waits for the head of the answer, without bound.
    ///
    /// # Errors
    ///
    /// If the connection cannot be made, or ends before an answer.
    pub async fn try_send(self) -> Result<Response, Box<dyn std::error::Error + Send + Sync>> {
        let stream = TcpStream::connect(&self.authority).await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends with the response, or with an error that reading the body also meets.
        tokio::spawn(connection);
        let request = self.builder.body(Full::new(self.body))?;
        let (head, body) = sender.send_request(request).await?.into_parts();
        Ok(Response { status: head.status.as_u16(), headers: head.headers, body })
    }
}

impl Response {
    /// The value of a header; `""` if it is not there.
    ///
    /// # Panics
    ///
    /// If it is there and not ASCII.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// Whether the header is there.
    pub fn has_header(&self, name: &str) -> bool {
        self.headers.contains_key(name)
    }

    /// `X-Larder-Cache`: `hit`, `miss`, `stale` or `pass`.
    pub fn outcome(&self) -> &str {
        self.header("x-larder-cache")
    }

    /// The next piece of the body; `None` at its clean end.
    ///
    /// # Errors
    ///
    /// If the connection ends before the body does.
    ///
    /// # Panics
    ///
    /// After [`larder_testkit::PATIENCE`].
    pub async fn chunk(&mut self) -> Option<Result<Bytes, hyper::Error>> {
        loop {
            match patiently("the body goes on", self.body.frame()).await? {
                Ok(frame) => match frame.into_data() {
                    Ok(bytes) => return Some(Ok(bytes)),
                    Err(_) => continue,
                },
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// Reads at least `n` bytes of the body and leaves the rest.
    ///
    /// # Panics
    ///
    /// If the body ends before.
    pub async fn at_least(&mut self, n: usize) -> Bytes {
        let mut bytes = BytesMut::new();
        while bytes.len() < n {
            bytes.extend(self.chunk().await.expect("the body is longer").unwrap());
        }
        bytes.freeze()
    }

    /// The whole body.
    ///
    /// # Errors
    ///
    /// [`BodyError::Aborted`]: it did not end cleanly.
    pub async fn bytes(mut self) -> Result<Bytes, BodyError> {
        let mut bytes = BytesMut::new();
        while let Some(chunk) = self.chunk().await {
            let after = bytes.len() as u64;
            bytes.extend(chunk.map_err(|_| BodyError::Aborted { after })?);
        }
        Ok(bytes.freeze())
    }

    /// Reads the body, comparing it with `expected` as it comes, without keeping it.
    ///
    /// # Errors
    ///
    /// If it differs, or does not end cleanly.
    pub async fn expect_body(mut self, expected: &[u8]) -> Result<(), BodyError> {
        let mut position = 0;
        while let Some(chunk) = self.chunk().await {
            let after = position as u64;
            let chunk = chunk.map_err(|_| BodyError::Aborted { after })?;
            if expected.get(position..position + chunk.len()) != Some(&chunk[..]) {
                return Err(BodyError::Wrong { after });
            }
            position += chunk.len();
        }
        match position == expected.len() {
            true => Ok(()),
            false => Err(BodyError::Wrong { after: position as u64 }),
        }
    }

    /// The body as JSON.
    ///
    /// # Panics
    ///
    /// If it is none, with what it is.
    pub async fn json(self) -> Value {
        let bytes = self.bytes().await.unwrap();
        match serde_json::from_slice(&bytes) {
            Ok(value) => value,
            Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&bytes)),
        }
    }

    /// The code of the first error of the body, as the distribution protocol writes errors.
    ///
    /// # Panics
    ///
    /// If it is not written so.
    pub async fn error_code(self) -> String {
        let status = self.status;
        let body = self.json().await;
        match body["errors"][0]["code"].as_str() {
            Some(code) => code.to_owned(),
            None => panic!("the body of a {status} has no error code: {body}"),
        }
    }
}
