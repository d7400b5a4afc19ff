//! What runtimes are sent.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Response, StatusCode};
use http_body::{Frame, SizeHint};
use serde_json::json;

use crate::counts::Reason;
use crate::pour::BrokenOff;

/// The body of an answer.
pub(crate) enum Body {
    Whole(Option<Bytes>),
    Pieces(Pin<Box<dyn Stream<Item = Result<Bytes, BrokenOff>> + Send>>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self::Whole(None)
    }

    pub(crate) fn whole(bytes: Bytes) -> Self {
        Self::Whole(Some(bytes).filter(|bytes| !bytes.is_empty()))
    }

    pub(crate) fn pieces(
        pieces: impl Stream<Item = Result<Bytes, BrokenOff>> + Send + 'static,
    ) -> Self {
        Self::Pieces(Box::pin(pieces))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BrokenOff;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenOff>>> {
        match &mut *self {
            Self::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Pieces(pieces) => {
                pieces.as_mut().poll_next(cx).map(|it| it.map(|it| it.map(Frame::data)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None))
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Pieces(_) => SizeHint::default(),
        }
    }
}

/// `/v2/`: this is a registry.
pub(crate) fn base() -> Response<Body> {
    json(StatusCode::OK, &json!({}))
}

/// Sends the runtime to the next place it knows. 503, because containerd repeats other failures.
pub(crate) fn fallback(reason: Reason) -> Response<Body> {
    error(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", reason.message())
}

/// The path is none of a registry.
pub(crate) fn not_found() -> Response<Body> {
    error(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "this is no path of a registry")
}

/// Nothing can be written here.
pub(crate) fn unsupported() -> Response<Body> {
    let message = "this leads to a read-only cache; push to the upstream registry itself";
    let mut response = error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
    response
}

fn error(status: StatusCode, code: &str, message: &str) -> Response<Body> {
    json(status, &json!({"errors": [{"code": code, "message": message}]}))
}

fn json(status: StatusCode, value: &serde_json::Value) -> Response<Body> {
    let mut response = Response::new(Body::whole(value.to_string().into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
