//! Whether what the replicas share is there, for who watches this one.

use std::time::Duration;

use larder_process::health::Component;
use larder_store::{Shared, SharedStatus};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How often it is looked at; nobody is asked for it.
const PERIOD: Duration = Duration::from_secs(1);

/// Says how it is doing, until `stopping`. A replica is ready without it: it serves what it has, and
/// passes the rest through; and what is away is away for the others, too.
pub(crate) async fn watch(shared: Shared, component: Component, stopping: CancellationToken) {
    let watching = async {
        loop {
            match missing(shared.status()) {
                None => component.ready(),
                Some(reason) => component.ready_without(reason),
            }
            sleep(PERIOD).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = stopping.cancelled() => {}
    }
}

/// What is away.
fn missing(status: SharedStatus) -> Option<&'static str> {
    match (status.bucket, status.index) {
        (true, true) => None,
        (false, true) => Some("S3 is away"),
        (true, false) => Some("PostgreSQL is away"),
        (false, false) => Some("S3 and PostgreSQL are away"),
    }
}
