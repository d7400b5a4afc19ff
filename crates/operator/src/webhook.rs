//! The webhook: what the API server asks before it takes a `RegistryCache`.
//!
//! ```text
//! API server ── TLS ── review ── secrets ── verdict
//!      ▲         └── trust: the certificate, and who is told by whom it is signed
//!      └── ValidatingWebhookConfiguration: `Ignore`
//! ```
//!
//! - `verdict`: the decision;
//! - `review`: the question and the answer, as the API server writes them;
//! - `trust`: certificates.
//!
//! It writes nothing, so that a dry run is like any other. It refuses only what it has found wrong:
//! whatever else happens (no time, no API server, an object of a later version) is let through, as it is
//! when no controller runs. The schema still counts then, and the status says the rest.

mod review;
mod trust;
mod verdict;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{self, Body};
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use hyper_util::service::TowerToHyperService;
use kube::Client;
use larder_process::Component;
use larder_process::listener::{self, Limits};
use larder_process::tls::{self, GivenCertificate};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use self::review::Reviewer;
use self::trust::Trust;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// The longest question: the cache as it was and as it is to be, each at most as long as what etcd
/// takes (1.5 MiB), and what is around them.
const MAX_QUESTION: usize = 4 << 20;

/// How many questions are read and answered at a time. Anybody in the cluster may send some, and each
/// may be [`MAX_QUESTION`] long; people change caches one by one.
const AT_A_TIME: usize = 4;

/// How long an answer may take, the waiting for its turn and for the question included: less than
/// the API server waits (5 s, by the chart).
const PATIENCE: Duration = Duration::from_secs(4);

/// What clients may hold: there is one, the API server, or a few of it.
const LIMITS: Limits = Limits {
    connections: 64,
    handshake: PATIENCE,
    head: PATIENCE,
    idle: Duration::from_secs(120),
    stalled: Duration::from_secs(10),
    drain: Duration::from_secs(2),
};

/// Where the webhook answers, and who has it asked.
#[derive(Debug)]
pub struct Webhook {
    /// Where it answers.
    pub tcp: TcpListener,
    /// The name of the `ValidatingWebhookConfiguration` by which the API server asks it.
    pub configuration: String,
}

struct Asked {
    reviewer: Reviewer,
    turns: Semaphore,
}

/// Answers until `stopping`. `component` says whether the API server can trust it.
pub(crate) async fn serve(
    webhook: Webhook,
    client: Client,
    settings: Settings,
    metrics: Metrics,
    component: Component,
    stopping: CancellationToken,
) {
    let certificate = Arc::new(GivenCertificate::default());
    let trust =
        Trust::new(client.clone(), &settings, webhook.configuration, Arc::clone(&certificate));
    let reviewer = Reviewer::new(client, settings, metrics);
    let asked = Arc::new(Asked { reviewer, turns: Semaphore::new(AT_A_TIME) });
    let router = Router::new().route("/validate", post(answer)).with_state(asked);
    let tls = tls::server_config(certificate);
    let service = TowerToHyperService::new(router);
    let served = listener::serve(webhook.tcp, Some(tls), service, stopping.clone(), LIMITS);
    tokio::join!(served, trust.keep(component, stopping));
}

async fn answer(State(asked): State<Arc<Asked>>, request: Request) -> Response {
    match timeout(PATIENCE, asked.answer(request.into_body())).await {
        Ok(response) => response,
        // The API server lets through what it has no answer to.
        Err(_) => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}

// === impl Asked ===

impl Asked {
    async fn answer(&self, question: Body) -> Response {
        let _turn = self.turns.acquire().await;
        let Ok(question) = body::to_bytes(question, MAX_QUESTION).await else {
            return StatusCode::PAYLOAD_TOO_LARGE.into_response();
        };
        match self.reviewer.answer(&question).await {
            Some(answer) => ([(CONTENT_TYPE, "application/json")], answer).into_response(),
            None => (StatusCode::BAD_REQUEST, "this is no AdmissionReview\n").into_response(),
        }
    }
}
