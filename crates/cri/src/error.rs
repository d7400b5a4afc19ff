//! Why a call to the runtime failed.

use std::time::Duration;

use tonic::Code;

/// Why a call to the runtime failed, by what the caller can do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers on the socket, or the connection broke during the call. The runtime may be
    /// restarting: try again later. A pull may or may not have been done.
    #[error("{act}: the runtime does not answer on its socket")]
    Unavailable {
        /// What was being done.
        act: &'static str,
        /// What the transport said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },

    /// The runtime did not finish in time. A pull was cancelled; what it had downloaded may be
    /// used by the next.
    #[error("{act}: not finished after {after:?}")]
    TimedOut {
        /// What was being done.
        act: &'static str,
        /// How long was waited.
        after: Duration,
    },

    /// The registry, a mirror or the runtime knows no such image. Trying again helps only when
    /// the image has appeared.
    #[error("{act}: not found: {message}")]
    NotFound {
        /// What was being done.
        act: &'static str,
        /// What the runtime said.
        message: String,
    },

    /// The runtime refused or failed; most failures of a pull end here (containerd reports them as
    /// `Unknown`).
    #[error("{act}: {message}")]
    Failed {
        /// What was being done.
        act: &'static str,
        /// What the runtime said.
        message: String,
    },
}

impl Error {
    pub(crate) fn from_status(act: &'static str, status: tonic::Status) -> Self {
        let message = status.message().to_owned();
        match status.code() {
            Code::NotFound => Self::NotFound { act, message },
            Code::Unavailable => Self::Unavailable { act, source: status.into() },
            _ => Self::Failed { act, message },
        }
    }
}
