//! The address that people, Prometheus and Kubernetes ask how it goes.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::response::IntoResponse;
use axum::routing::get;
use axum::{Extension, Router};
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::listener::{self, Limits};
use crate::metrics::{self, Metrics};

/// `/metrics`, `/healthz` and `/readyz`. A service merges its own routes.
///
/// - `GET /metrics`: OpenMetrics text;
/// - `GET /healthz`: 200 while the process can answer at all;
/// - `GET /readyz`: 200 or 503, with [`crate::health::Report::to_json`].
pub fn router(health: Health, metrics: Metrics) -> Router {
    let metrics = Arc::new(metrics);
    Router::new()
        .route("/healthz", get(async || ([(CACHE_CONTROL, "no-store")], "ok\n")))
        .route("/readyz", get(async move || readiness(&health)))
        .route(
            "/metrics",
            get(async move || ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], metrics.render())),
        )
}

fn readiness(health: &Health) -> impl IntoResponse + use<> {
    let report = health.report();
    let status = match report.is_ready() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let headers = [(CONTENT_TYPE, "application/json"), (CACHE_CONTROL, "no-store")];
    (status, headers, format!("{}\n", report.to_json()))
}

/// Who asks: an extension of every request that comes by [`serve`].
#[derive(Clone, Copy, Debug)]
pub struct Peer(pub SocketAddr);

/// Serves `router` until `stopping`, as [`listener::serve`] does. Each request has its [`Peer`].
///
/// Let `stopping` be cancelled after the work has ended, not when it begins to end: until then
/// Kubernetes wants to hear that the process is not ready, and Prometheus how it ends.
pub async fn serve(
    tcp: TcpListener,
    router: Router,
    stopping: CancellationToken,
    limits: Limits,
) -> usize {
    let service_for = |peer| {
        let router: Router = router.clone().layer(Extension(Peer(peer)));
        TowerToHyperService::new(router)
    };
    listener::serve_each(tcp, None, service_for, stopping, limits).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn the_three_questions_are_answered_over_a_socket() {
        let stopping = CancellationToken::new();
        let health = Health::new(stopping.clone());
        let store = health.component("store");
        let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = tcp.local_addr().unwrap();
        let ended = CancellationToken::new();
        let ours = async |Extension(Peer(peer)): Extension<Peer>| format!("ours for {}", peer.ip());
        let ours = Router::new().route("/ours", get(ours));
        let router = router(health, Metrics::new("thing", "1")).merge(ours);
        let limits = Limits { drain: Duration::from_secs(5), ..Limits::default() };
        let served = tokio::spawn(serve(tcp, router, ended.clone(), limits));
        let ask = async |path: &str| {
            let mut socket = TcpStream::connect(address).await.unwrap();
            let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
            socket.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            socket.read_to_string(&mut answer).await.unwrap();
            answer
        };

        assert!(ask("/healthz").await.starts_with("HTTP/1.1 200"));
        let answer = ask("/readyz").await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("\"starting\""), "{answer}");
        store.ready();
        assert!(ask("/readyz").await.starts_with("HTTP/1.1 200"));
        let answer = ask("/metrics").await;
        assert!(answer.contains(metrics::CONTENT_TYPE) && answer.contains("thing_build_info"));
        assert!(ask("/ours").await.ends_with("ours for 127.0.0.1"));
        stopping.cancel();
        assert!(ask("/readyz").await.starts_with("HTTP/1.1 503"));
        assert!(ask("/healthz").await.starts_with("HTTP/1.1 200"));
        ended.cancel();
        assert_eq!(served.await.unwrap(), 0);
    }
}
