//! Answers without the content that was asked for.
//!
//! Source: OCI distribution-spec 1.1, "Error Codes".

use std::fmt::Display;
use std::time::Duration;

use http::header::{ALLOW, CONTENT_RANGE, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{Response, StatusCode};
use larder_core::address::AddressError;
use larder_core::digest::ParseDigestError;
use larder_core::name::{Named, ParseReferenceError};
use larder_upstream::{Error, UnreadableCaller};
use serde_json::json;

use crate::metrics::Outcome;
use crate::respond::{self, Body};

/// The longest that a client is told to wait. Some upstreams say hours, and some clients sleep for as
/// long as they are told; upstream is left alone meanwhile whoever asks here.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Why a client does not get what it asked for.
#[derive(Clone, Debug)]
pub(crate) struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    extra: Extra,
    outcome: Outcome,
}

#[derive(Clone, Debug)]
enum Extra {
    None,
    RetryAfter(Duration),
    Length(u64),
    Methods,
    Challenge(String),
}

/// What a client was asking for, for the words of a refusal.
#[derive(Clone, Copy)]
pub(crate) enum Asking<'a> {
    /// A manifest, by tag or digest.
    Manifest(&'a Named, &'a (dyn Display + Sync)),
    /// A blob.
    Blob(&'a Named, &'a (dyn Display + Sync)),
    /// The tags of a repository.
    Tags(&'a Named),
    /// What refers to a manifest.
    Referrers(&'a Named, &'a (dyn Display + Sync)),
}

impl Refusal {
    fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        let outcome = match status {
            status if status.is_server_error() => Outcome::Failed,
            StatusCode::TOO_MANY_REQUESTS => Outcome::Failed,
            _ => Outcome::Refused,
        };
        Self { status, code, message: message.into(), extra: Extra::None, outcome }
    }

    /// The path is no operation of the protocol.
    pub(crate) fn no_such_path() -> Self {
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", "this is no path of a registry")
    }

    /// The operation is one that a cache does not have.
    pub(crate) fn unsupported() -> Self {
        let message = "this is a read-only cache; push to the upstream registry itself";
        let refusal = Self::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", message);
        Self { extra: Extra::Methods, ..refusal }
    }

    /// The upstream's settings keep this repository out.
    pub(crate) fn not_allowed(name: &Named) -> Self {
        let message = format!(
            "{name} is not served here: `allow` and `deny` of upstreams.\"{}\" say so",
            name.host
        );
        Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message)
    }

    /// Upstream lets in nobody who shows what the caller shows.
    pub(crate) fn login(challenge: String) -> Self {
        let message = "log in as the upstream registry wants it";
        let refusal = Self::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", message);
        Self { extra: Extra::Challenge(challenge), outcome: Outcome::Denied, ..refusal }
    }

    /// Upstream does not let the caller read it, whatever they bring.
    fn denied(name: &Named) -> Self {
        let message = format!("{} does not let this caller read {}", name.host, name.repository);
        let refusal = Self::new(StatusCode::FORBIDDEN, "DENIED", message);
        Self { outcome: Outcome::Denied, ..refusal }
    }

    /// The same for a caller who has not shown anything yet: asking for it is how a login begins.
    #[must_use]
    pub(crate) fn for_nobody(mut self) -> Self {
        if let Extra::Challenge(_) = self.extra {
            self.outcome = Outcome::Challenged;
        }
        self
    }

    /// Whether upstream refused the caller.
    pub(crate) fn is_denial(&self) -> bool {
        matches!(self.outcome, Outcome::Denied | Outcome::Challenged)
    }

    /// Upstream cannot say whether the caller may read it. 503, so that a runtime goes to upstream
    /// itself.
    pub(crate) fn unproved(name: &Named, error: Option<&Error>) -> Self {
        let why = error.map(|error| format!(": {error}")).unwrap_or_default();
        let message = format!("{} cannot say whether this caller may read it{why}", name.host);
        let refusal = Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message);
        let wait = match error {
            Some(Error::RateLimited { retry_after }) => *retry_after,
            Some(Error::Resting { wait }) => Some(*wait),
            _ => None,
        };
        Self { extra: wait.map_or(Extra::None, Extra::RetryAfter), ..refusal }
    }

    /// Upstream may not be asked whether the caller may read it.
    pub(crate) fn unprovable(name: &Named) -> Self {
        let message = format!(
            "this cache is set to `offline`, and only {} could say whether this caller may read it",
            name.host
        );
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
    }

    /// There is no such thing.
    pub(crate) fn unknown(asking: Asking<'_>) -> Self {
        let (code, message) = match asking {
            Asking::Manifest(name, what) => {
                ("MANIFEST_UNKNOWN", format!("{name} has no manifest {what}"))
            }
            Asking::Blob(name, what) => ("BLOB_UNKNOWN", format!("{name} has no blob {what}")),
            Asking::Tags(name) => ("NAME_UNKNOWN", format!("there is no repository {name}")),
            Asking::Referrers(name, what) => {
                ("MANIFEST_UNKNOWN", format!("nothing is known to refer to {what} of {name}"))
            }
        };
        let outcome = Outcome::NotFound;
        Self { outcome, ..Self::new(StatusCode::NOT_FOUND, code, message) }
    }

    /// It is not stored, and no upstream may be asked.
    pub(crate) fn offline(asking: Asking<'_>) -> Self {
        let mut refusal = Self::unknown(asking);
        refusal.message.push_str(" in this cache, which is set to `offline`");
        refusal
    }

    /// No byte of the content is in the range.
    pub(crate) fn range(length: u64) -> Self {
        let message = format!("the content has {length} bytes");
        let refusal = Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", message);
        Self { extra: Extra::Length(length), ..refusal }
    }

    /// The header names more ranges than are served at once.
    pub(crate) fn too_many_ranges() -> Self {
        let message = "too many ranges in one request; ask for at most 1024";
        Self::new(StatusCode::BAD_REQUEST, "RANGE_INVALID", message)
    }

    /// Upstream, or the disk, took longer than a client should wait.
    pub(crate) fn too_slow(name: &Named) -> Self {
        let message = format!("{} did not answer in time", name.host);
        Self::new(StatusCode::GATEWAY_TIMEOUT, "UNAVAILABLE", message)
    }

    /// A replica asks for what this one is reading from another replica itself.
    pub(crate) fn not_the_owner() -> Self {
        let message = "this replica is itself reading the blob from another one";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", message)
    }

    /// The request was sent by this very process, which would wait for itself.
    pub(crate) fn to_itself() -> Self {
        let message = "this replica is asked by itself; `peers` must lead to one replica each";
        Self::new(StatusCode::LOOP_DETECTED, "UNAVAILABLE", message)
    }

    /// The cache itself is at fault; the log says how.
    pub(crate) fn internal() -> Self {
        let message = "the cache failed; its log says how";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "UNKNOWN", message)
    }

    /// What an upstream's error means for the client who waits for it.
    pub(crate) fn of_upstream(error: &Error, asking: Asking<'_>) -> Self {
        let name = match asking {
            Asking::Manifest(name, _)
            | Asking::Blob(name, _)
            | Asking::Tags(name)
            | Asking::Referrers(name, _) => name,
        };
        let host = &name.host;
        match error {
            Error::NotFound | Error::Denied => Self::unknown(asking),
            Error::CallerRefused { challenge: Some(challenge) } => {
                let denied = Self::denied(name);
                Self { message: denied.message, ..Self::login(challenge.clone()) }
            }
            Error::CallerRefused { challenge: None } => Self::denied(name),
            Error::RateLimited { retry_after } => Self {
                extra: retry_after.map_or(Extra::None, Extra::RetryAfter),
                ..Self::new(
                    StatusCode::TOO_MANY_REQUESTS,
                    "TOOMANYREQUESTS",
                    format!("{host} asks for fewer requests"),
                )
            },
            Error::TimedOut => Self::too_slow(name),
            Error::Resting { wait } => Self {
                extra: Extra::RetryAfter(*wait),
                ..Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "UNAVAILABLE",
                    format!("{host} keeps failing and is left alone for a moment"),
                )
            },
            Error::Busy => Self::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "UNAVAILABLE",
                format!(
                    "too much is asked of {host} at the moment; `max_requests` and `max_rate` bound it"
                ),
            ),
            Error::Unreachable(reason) => Self::new(
                StatusCode::FORBIDDEN,
                "DENIED",
                format!("{reason}; to reach it, list it in `addresses` of upstreams.\"*\""),
            ),
            Error::Range => Self::new(
                StatusCode::RANGE_NOT_SATISFIABLE,
                "RANGE_INVALID",
                "the blob has no bytes in this range",
            ),
            error => Self::new(
                StatusCode::BAD_GATEWAY,
                "UNAVAILABLE",
                format!("{name} could not be had from {host}: {error}"),
            ),
        }
    }

    /// The same for a client that has another place to go: a mirror answers 503 where a registry
    /// would answer 429, since containerd asks again at once after a 429 and goes on after a 503.
    #[must_use]
    pub(crate) fn for_mirror(mut self) -> Self {
        if self.status == StatusCode::TOO_MANY_REQUESTS {
            self.status = StatusCode::SERVICE_UNAVAILABLE;
        }
        self
    }

    /// How it counts.
    pub(crate) fn outcome(&self) -> Outcome {
        self.outcome
    }

    /// The reason in words.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        let error = json!({"code": self.code, "message": self.message});
        let mut response = respond::json(self.status, &json!({"errors": [error]}));
        let headers = response.headers_mut();
        match self.extra {
            Extra::None => {}
            Extra::RetryAfter(wait) => {
                // A fraction of a second is a second.
                let wait = wait.min(MAX_RETRY_AFTER);
                let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            Extra::Length(length) => {
                headers.insert(CONTENT_RANGE, respond::header_value(format!("bytes */{length}")));
            }
            Extra::Challenge(challenge) => {
                headers.insert(WWW_AUTHENTICATE, respond::header_value(challenge));
            }
            Extra::Methods => {
                headers.insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            }
        }
        response
    }
}

impl From<AddressError> for Refusal {
    fn from(error: AddressError) -> Self {
        let message = error.to_string();
        match error {
            AddressError::UnknownUpstream(_) | AddressError::NoUpstream(_) => {
                Self::new(StatusCode::NOT_FOUND, "NAME_UNKNOWN", message)
            }
            AddressError::Repository(_) => {
                Self::new(StatusCode::BAD_REQUEST, "NAME_INVALID", message)
            }
        }
    }
}

impl From<UnreadableCaller> for Refusal {
    fn from(error: UnreadableCaller) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "UNAUTHORIZED", error.to_string())
    }
}

impl From<ParseDigestError> for Refusal {
    fn from(error: ParseDigestError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "DIGEST_INVALID", error.to_string())
    }
}

impl From<ParseReferenceError> for Refusal {
    fn from(error: ParseReferenceError) -> Self {
        match error {
            ParseReferenceError::Digest(error) => error.into(),
            ParseReferenceError::Tag(error) => {
                Self::new(StatusCode::BAD_REQUEST, "TAG_INVALID", error.to_string())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_told_to_wait_for_longer_than_a_minute() {
        let name = Named { host: "a.io".parse().unwrap(), repository: "b".parse().unwrap() };
        let told = |seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            let error = Error::RateLimited { retry_after };
            let response = Refusal::of_upstream(&error, Asking::Tags(&name)).into_response();
            response.headers()[RETRY_AFTER].to_str().unwrap().to_owned()
        };
        assert_eq!((told(33), told(3600)), ("33".to_owned(), "60".to_owned()));
    }
}
