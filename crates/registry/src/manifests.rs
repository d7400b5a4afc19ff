//! Manifests: what is served of them, and what is being found out about them.
//!
//! - `digest`: one that is stored is served without asking anybody;
//! - `tag`: which one is meant, for how long.

mod digest;
mod tag;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{AGE, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use larder_core::name::Named;
use larder_core::{Digest, Reference};
use larder_store::StoredManifest;
use larder_upstream::Error;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::error;

use self::tag::{Checked, Found, TagKey};
use crate::flights::{Flights, Waiting};
use crate::metrics::Outcome;
use crate::refusal::Refusal;
use crate::respond::{self, Body};
use crate::service::{Answer, Ask, Registry};
use crate::upstream::Upstream;

/// The longest that a client waits for something that is not stored. Less than the 30 s after which
/// containerd (since 2.3) gives a silent mirror up, so that it hears why.
pub(crate) const PATIENCE: Duration = Duration::from_secs(25);

/// How long an upstream is left alone that asks for fewer requests without saying for how long.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(30);

/// What is being found out about manifests at the moment.
pub(crate) struct Manifests {
    by_digest: Flights<(Arc<Named>, Digest), Result<Manifest, Error>>,
    by_tag: Flights<TagKey, Result<Found, Error>>,
    checks: Flights<TagKey, Checked>,
    tasks: TaskTracker,
}

/// A manifest that can be served.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    digest: Digest,
    media_type: String,
    bytes: Bytes,
    is_stored: bool,
}

impl Manifests {
    pub(crate) fn new() -> Self {
        let tasks = TaskTracker::new();
        Self {
            by_digest: Flights::new(tasks.clone()),
            by_tag: Flights::new(tasks.clone()),
            checks: Flights::new(tasks.clone()),
            tasks,
        }
    }

    /// Waits for what is being found out, so that its results are stored.
    pub(crate) async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl Registry {
    /// Answers a request for a manifest.
    pub(crate) async fn manifest(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        reference: &Reference,
    ) -> Result<Answer, Refusal> {
        match reference {
            Reference::Digest(digest) => {
                let (manifest, outcome) = self.manifest_by_digest(ask, digest).await?;
                Ok(answer(ask, &manifest, outcome, None))
            }
            Reference::Tag(tag) => self.manifest_by_tag(ask, tag).await,
        }
    }

    /// Notes how upstream is doing, and whom it has refused `name`.
    pub(crate) fn note(&self, upstream: &Upstream, name: &Named, error: Option<&Error>) {
        let standing = &upstream.standing;
        match error {
            Some(Error::RateLimited { retry_after }) => {
                standing.leave_alone(retry_after.unwrap_or(DEFAULT_RETRY_AFTER));
            }
            Some(Error::Unavailable { .. } | Error::TimedOut) => standing.failed(),
            Some(error @ Error::CredentialRefused(_)) => error!("{error}"),
            Some(Error::CallerRefused { .. }) => {
                standing.answered();
                if let Some(asker) = &upstream.asker {
                    asker.refuse(&name.repository);
                }
            }
            // Upstream was not asked.
            Some(Error::Resting { .. } | Error::Busy | Error::Unreachable(_)) => {}
            _ => standing.answered(),
        }
    }
}

impl Manifest {
    /// Whether it is in the store now.
    pub(crate) fn is_stored(&self) -> bool {
        self.is_stored
    }

    fn outcome(&self) -> Outcome {
        match self.is_stored {
            true => Outcome::Miss,
            false => Outcome::Pass,
        }
    }
}

impl From<&StoredManifest> for Manifest {
    fn from(stored: &StoredManifest) -> Self {
        Self {
            digest: stored.digest.clone(),
            media_type: stored.media_type.clone(),
            bytes: stored.bytes.clone(),
            is_stored: true,
        }
    }
}

/// Waits for something that is not stored, but not longer than a client would.
async fn wait<V: Clone>(mut waiting: Waiting<V>, ask: &Ask<'_>) -> Result<V, Refusal> {
    match timeout(PATIENCE, waiting.result()).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(_)) => Err(Refusal::internal()),
        Err(_) => {
            ask.upstream.standing.failed();
            Err(Refusal::too_slow(&ask.name))
        }
    }
}

fn answer(ask: &Ask<'_>, manifest: &Manifest, outcome: Outcome, age: Option<Duration>) -> Answer {
    if respond::has_already(ask.headers, &manifest.digest) {
        return not_modified(&manifest.digest, outcome);
    }
    let mut response = respond::content_head(&manifest.digest, outcome);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, respond::header_value(manifest.media_type.clone()));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(manifest.bytes.len()));
    if let Some(age) = age {
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
    }
    *response.body_mut() = Body::whole(manifest.bytes.clone());
    Answer::new(response, outcome)
}

pub(crate) fn not_modified(digest: &Digest, outcome: Outcome) -> Answer {
    let mut response = respond::content_head(digest, outcome);
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    Answer::new(response, outcome)
}
