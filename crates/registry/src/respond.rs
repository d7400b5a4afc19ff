//! What clients are sent: bodies, and the headers that go with them.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use futures_util::Stream;
use http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, ETAG, HeaderMap, HeaderName,
    HeaderValue, IF_NONE_MATCH, LOCATION,
};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use larder_core::Digest;
use percent_encoding::{NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};
use tracing::warn;

use crate::content::ReadError;
use crate::metrics::{Outcome, UpstreamMetrics};

/// How the answer came about: `hit`, `miss`, `stale` or `pass`.
pub(crate) const X_LARDER_CACHE: HeaderName = HeaderName::from_static("x-larder-cache");
/// The digest of the content, as the distribution specification has it.
pub(crate) const DOCKER_CONTENT_DIGEST: HeaderName =
    HeaderName::from_static("docker-content-digest");
/// What tells old clients that this is a registry.
const DOCKER_API_VERSION: HeaderName = HeaderName::from_static("docker-distribution-api-version");

/// The bytes of a body as they come.
pub(crate) type Pieces = Pin<Box<dyn Stream<Item = Result<Bytes, ReadError>> + Send>>;

/// The body of an answer.
///
/// A stream that fails ends the connection, so that no client takes what it has for all there is.
pub(crate) struct Body {
    kind: BodyKind,
    meter: Option<Meter>,
}

enum BodyKind {
    Empty,
    Whole(Bytes),
    Pieces(Pieces),
}

/// Counts what is sent.
pub(crate) struct Meter {
    metrics: Arc<UpstreamMetrics>,
    /// When the request came; taken at the first byte.
    since: Option<Instant>,
}

impl Meter {
    pub(crate) fn new(metrics: Arc<UpstreamMetrics>, since: Instant) -> Self {
        Self { metrics, since: Some(since) }
    }

    fn sent(&mut self, n: usize) {
        if let Some(since) = self.since.take() {
            self.metrics.first_byte(since.elapsed());
        }
        self.metrics.client_bytes.inc_by(n as u64);
    }
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self { kind: BodyKind::Empty, meter: None }
    }

    pub(crate) fn whole(bytes: impl Into<Bytes>) -> Self {
        Self { kind: BodyKind::Whole(bytes.into()), meter: None }
    }

    pub(crate) fn pieces(pieces: Pieces) -> Self {
        Self { kind: BodyKind::Pieces(pieces), meter: None }
    }

    /// Has what is sent counted.
    pub(crate) fn metered(self, meter: Meter) -> Self {
        Self { meter: Some(meter), ..self }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let this = &mut *self;
        let piece = match &mut this.kind {
            BodyKind::Empty => None,
            BodyKind::Whole(bytes) => {
                let bytes = std::mem::take(bytes);
                this.kind = BodyKind::Empty;
                Some(Ok(bytes))
            }
            BodyKind::Pieces(pieces) => std::task::ready!(pieces.as_mut().poll_next(context)),
        };
        match &piece {
            Some(Ok(bytes)) => {
                if let Some(meter) = &mut this.meter {
                    meter.sent(bytes.len());
                }
            }
            Some(Err(error)) => {
                warn!(error = error as &dyn std::error::Error, "cutting off a body");
            }
            None => {}
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            BodyKind::Empty => true,
            BodyKind::Whole(bytes) => bytes.is_empty(),
            BodyKind::Pieces(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            BodyKind::Empty => SizeHint::with_exact(0),
            BodyKind::Whole(bytes) => SizeHint::with_exact(bytes.len() as u64),
            BodyKind::Pieces(_) => SizeHint::default(),
        }
    }
}

/// Headers that an answer with content has, the date included.
const N_HEADERS: usize = 9;

/// An answer without content.
pub(crate) fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    *response.headers_mut() = HeaderMap::with_capacity(N_HEADERS);
    let version = HeaderValue::from_static("registry/2.0");
    response.headers_mut().insert(DOCKER_API_VERSION, version);
    response
}

/// An answer whose body is JSON.
pub(crate) fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let text = value.to_string();
    let mut response = empty(status);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(text.len()));
    *response.body_mut() = Body::whole(text);
    response
}

/// The head of an answer with content of that name; its length and type are still to be set.
///
/// Without `Content-Encoding`, whatever the client accepts: digests and ranges are over the bytes
/// as they are stored.
pub(crate) fn content_head(digest: &Digest, outcome: Outcome) -> Response<Body> {
    let mut response = empty(StatusCode::OK);
    let headers = response.headers_mut();
    let etag = Bytes::from(format!("\"{digest}\""));
    let name = etag.slice(1..etag.len() - 1);
    headers.insert(ETAG, header_value(etag));
    headers.insert(DOCKER_CONTENT_DIGEST, header_value(name));
    headers.insert(X_LARDER_CACHE, HeaderValue::from_static(outcome.as_str()));
    response
}

/// The head of an answer with a blob.
pub(crate) fn blob_head(digest: &Digest, length: Option<u64>, outcome: Outcome) -> Response<Body> {
    let mut response = content_head(digest, outcome);
    let headers = response.headers_mut();
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    response
}

/// Sends a client to where it finds a blob for some time.
pub(crate) fn redirect(digest: &Digest, url: &url::Url) -> Response<Body> {
    let mut response = content_head(digest, Outcome::Hit);
    *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
    let headers = response.headers_mut();
    headers.insert(LOCATION, header_value(url.to_string()));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
    response
}

/// Whether the client says that it has this content already.
pub(crate) fn has_already(request: &HeaderMap, digest: &Digest) -> bool {
    request.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok()).any(|value| {
        value.split(',').map(str::trim).any(|tag| tag == "*" || is_etag_of(tag, digest))
    })
}

/// Whether an entity tag names this content.
pub(crate) fn is_etag_of(tag: &str, digest: &Digest) -> bool {
    let tag = tag.trim().trim_start_matches("W/").trim_matches('"');
    tag.parse::<Digest>().is_ok_and(|named| named == *digest)
}

/// `text` as a part of a query.
pub(crate) fn encoded(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, NON_ALPHANUMERIC)
}

/// A header value of text that was made here or parsed before.
pub(crate) fn header_value(text: impl Into<Bytes>) -> HeaderValue {
    HeaderValue::from_maybe_shared(text.into()).unwrap_or(HeaderValue::from_static("invalid"))
}
