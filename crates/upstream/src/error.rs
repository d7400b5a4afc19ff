//! What can go wrong with an upstream, sorted by what the caller can do about it.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use larder_core::Digest;

use crate::credentials::CredentialsError;

/// What lies under an error. Shared, because everybody who waits for one fill is told its error.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why an upstream did not give what it was asked for.
///
/// No text in here contains a credential, a token, or the query of an address (which is where
/// storage services put their signatures).
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The upstream says that the image, or this part of it, does not exist (404).
    #[error("upstream has no such image")]
    NotFound,

    /// The upstream keeps this image from us: 401 or 403 to a request that carried everything we
    /// have, either nothing (anonymous) or a credential that was itself accepted.
    #[error("upstream refuses access to the image")]
    Denied,

    /// The upstream keeps this image from the [`Caller`](crate::Caller) on whose behalf it was asked:
    /// 401 or 403. It says nothing about other callers, nor about the image.
    #[error("upstream does not let this caller read the image")]
    CallerRefused {
        /// What the caller may answer to, as a `WWW-Authenticate` of ours; `None`: nothing.
        challenge: Option<String>,
    },

    /// The credential that was configured is not accepted at all. Nobody's image is at fault: this
    /// is for an operator to mend.
    #[error("upstream does not accept the configured credential: {0}")]
    CredentialRefused(String),

    /// The upstream wants fewer requests (429). Not to be asked again before `retry_after`.
    #[error("upstream asks for fewer requests")]
    RateLimited {
        /// How long upstream wants to be left alone; a day at most. `None` if it does not say.
        retry_after: Option<Duration>,
    },

    /// The upstream cannot be reached, broke off, or says that it is broken (5xx). Retries that
    /// are worth while were made already, unless a body was under way.
    #[error("{doing}")]
    Unavailable {
        /// What was being done, or what was answered.
        doing: String,
        /// The status, if there was an answer.
        status: Option<u16>,
        /// What the network said, if there was none.
        #[source]
        source: Option<Cause>,
    },

    /// No connection, no head of an answer, or no further byte of a body within the time allowed.
    #[error("upstream did not answer in time")]
    TimedOut,

    /// The upstream has failed several times in a row and is left to recover: it is not asked before
    /// `wait` is over.
    #[error("upstream has failed several times in a row and is asked again in {wait:?}")]
    Resting {
        /// How long it is left alone; at most half a minute.
        wait: Duration,
    },

    /// As many requests are under way to this upstream as may be, and none ended in time.
    #[error("too many requests to this upstream are under way")]
    Busy,

    /// The upstream leads to an address that is not one of the public internet, and this upstream
    /// may only be there ([`Reach::Public`](crate::Reach)).
    #[error("{0}")]
    Unreachable(String),

    /// The bytes are not the ones that were asked for or announced. Nothing of them may be used.
    #[error("upstream sent {actual} where {expected} was expected")]
    Digest {
        /// The digest that was asked for, or that the answer's own header announced.
        expected: Digest,
        /// The digest of the bytes that came.
        actual: Digest,
    },

    /// A manifest, list of tags or token answer is larger than we read.
    #[error("upstream sent more than the {limit} bytes that are read of such an answer")]
    TooLarge {
        /// The bound, in bytes.
        limit: u64,
    },

    /// An answer that the protocol does not allow: a redirect loop, a web page, a range that was
    /// not asked for, an encoded body.
    #[error("upstream does not keep to the protocol: {0}")]
    Protocol(String),

    /// The blob has no byte in the range that was asked for (416).
    #[error("the blob has no bytes in the range that was asked for")]
    Range,
}

/// Why a client cannot be made from its settings.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// There is no address, or more than [`MAX_URLS`](crate::MAX_URLS).
    #[error("an upstream has 1 to 8 urls, not {0}")]
    UrlCount(usize),

    /// An address that no registry can have.
    #[error("`{url}` is no registry's url: {problem}")]
    Url {
        /// The address, without a password.
        url: String,
        /// What is wrong with it.
        problem: &'static str,
    },

    /// What this process is to call itself cannot be in a header.
    #[error("the name of this process has characters that a header cannot have")]
    Name,

    /// The file of certificate authorities cannot be read or holds no certificate.
    #[error("reading the certificate authorities in {}", .path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The text of certificate authorities holds no certificate, or one that is damaged.
    #[error("reading the certificate authorities")]
    Authorities(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A file of the client certificate cannot be read or understood, or its key is another one's.
    #[error("reading the client certificate in {}", .path.display())]
    ClientCertificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it. It does not show a key.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The TLS library refuses the settings.
    #[error("setting up TLS")]
    Tls(#[from] rustls::Error),

    /// The proxy's address is not usable.
    #[error("setting up the proxy")]
    Proxy(#[source] reqwest::Error),

    /// The HTTP client refuses the settings.
    #[error("setting up the HTTP client")]
    Http(#[source] reqwest::Error),

    /// The file with the credentials cannot be read or understood.
    #[error("reading the credentials")]
    Credentials(#[from] CredentialsError),
}

/// An error, and whether it is worth another try.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) error: Error,
    pub(crate) again: Again,
}

/// When a request that failed before the first byte may be made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Again {
    /// Another try would fail alike, or do harm.
    Never,
    /// Now: the connection was closed under the request, as happens to pooled connections.
    AtOnce,
    /// After a pause.
    Later,
    /// Only at an address that was not tried yet.
    Elsewhere,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { error, again: Again::Never }
    }
}

impl Error {
    /// What the status of an answer means that is not the one hoped for. `what` names whoever
    /// answered.
    pub(crate) fn of_status(status: u16, what: &str) -> Self {
        match status {
            404 => Self::NotFound,
            401 | 403 => Self::Denied,
            416 => Self::Range,
            408 | 500..=599 => Self::Unavailable {
                doing: format!("{what} answered {status}"),
                status: Some(status),
                source: None,
            },
            _ => Self::Protocol(format!("{what} answered {status}")),
        }
    }
}
