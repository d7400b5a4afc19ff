//! What every route answers: JSON with its version.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use larder_api_types::upstreams::Step;
use larder_api_types::{Answer, Problem};
use larder_store::StoreError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

/// An answer to what was asked for.
#[derive(Debug)]
pub(super) struct Told<T>(pub(super) T);

/// An answer that is an error. The text is a sentence for people, without secrets.
#[derive(Debug)]
pub(super) struct Refused {
    status: StatusCode,
    problem: Problem,
}

impl Refused {
    pub(super) fn new(status: StatusCode, error: impl Into<String>) -> Self {
        Self { status, problem: Problem::new(error) }
    }

    /// With what was tested.
    pub(super) fn tested(self, steps: Vec<Step>) -> Self {
        Self { problem: Problem { steps, ..self.problem }, ..self }
    }

    pub(super) fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }
}

/// The body of a request as JSON. `example` is one that is right; an empty body stands for `T` itself
/// where there is such a default.
pub(super) fn read<T: DeserializeOwned>(
    body: Result<Bytes, BytesRejection>,
    default: Option<T>,
    example: &str,
) -> Result<T, Refused> {
    let body = body.map_err(|error| Refused::bad_request(error.body_text()))?;
    match default {
        Some(default) if body.is_empty() => Ok(default),
        _ => serde_json::from_slice(&body).map_err(|error| {
            Refused::bad_request(format!("the body must be as {example}: {error}"))
        }),
    }
}

impl<T: Serialize> IntoResponse for Told<T> {
    fn into_response(self) -> Response {
        json(StatusCode::OK, self.0)
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        json(self.status, self.problem)
    }
}

fn json<T: Serialize>(status: StatusCode, body: T) -> Response {
    let mut text = serde_json::to_string(&Answer::new(body)).expect("our types have text for keys");
    text.push('\n');
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (status, headers, text).into_response()
}

impl From<QueryRejection> for Refused {
    fn from(rejection: QueryRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<PathRejection> for Refused {
    fn from(rejection: PathRejection) -> Self {
        Self::bad_request(rejection.body_text())
    }
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        warn!(error = &error as &dyn std::error::Error, "the store cannot be asked");
        if let StoreError::Shared(_) = error {
            return Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "PostgreSQL, where replicas share this, does not answer; try again when it does",
            );
        }
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the store cannot be asked; see larder's log")
    }
}
