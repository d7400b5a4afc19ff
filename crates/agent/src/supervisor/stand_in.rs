//! What answers while there is no worker: no, at once, so that runtimes go on to the upstream.

use std::convert::Infallible;
use std::time::Duration;

use http::Request;
use hyper::body::Incoming;
use hyper::service::service_fn;
use larder_process::listener::{self, Limits};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::answer;
use crate::counts::Reason;
use crate::metrics::Metrics;

/// Connections are short, and nobody is to come back on one.
const LIMITS: Limits = Limits {
    connections: 512,
    handshake: Duration::from_secs(1),
    head: Duration::from_secs(5),
    idle: Duration::from_secs(5),
    stalled: Duration::from_secs(5),
    drain: Duration::from_secs(1),
};

/// Answers 503 while it is on.
pub(super) struct StandIn {
    tcp: std::net::TcpListener,
    metrics: Metrics,
    on: Option<CancellationToken>,
}

impl StandIn {
    /// `tcp`: not blocking.
    pub(super) fn new(tcp: std::net::TcpListener, metrics: Metrics) -> Self {
        Self { tcp, metrics, on: None }
    }

    /// Begins to answer, if it does not already.
    pub(super) fn begin(&mut self) {
        if self.on.is_some() {
            return;
        }
        let tcp = match self.tcp.try_clone().and_then(TcpListener::from_std) {
            Ok(tcp) => tcp,
            Err(error) => return warn!("answering without a worker: {error}"),
        };
        let on = CancellationToken::new();
        let metrics = self.metrics.clone();
        let service = service_fn(move |_: Request<Incoming>| {
            metrics.without_worker();
            async { Ok::<_, Infallible>(answer::fallback(Reason::Worker)) }
        });
        tokio::spawn(listener::serve(tcp, None, service, on.clone(), LIMITS));
        self.on = Some(on);
    }

    /// Ends: the worker is there.
    pub(super) fn end(&mut self) {
        if let Some(on) = self.on.take() {
            on.cancel();
        }
    }
}
