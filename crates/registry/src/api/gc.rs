//! What goes, and what takes how much.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use larder_api_types::gc::{Collect, Collected, Gone, OfRepository, OfUpstream, Reason, Usage};
use larder_store as store;

use super::Api;
use super::answer::{self, Refused, Told};

/// How many repositories are listed.
const MAX_REPOSITORIES: u32 = 10_000;

/// `POST /gc`
pub(super) async fn collect(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Told<Collected>, Refused> {
    let Collect { dry_run } = answer::read(body, Some(Collect::default()), r#"{"dry_run": true}"#)?;
    let swept = api.registry.store.collect(dry_run).await?;
    Ok(Told(Collected {
        dry_run,
        n_blobs: swept.count(),
        bytes: swept.bytes(),
        gone: swept.named.into_iter().map(gone).collect(),
    }))
}

fn gone(gone: store::Gone) -> Gone {
    Gone {
        digest: gone.digest,
        bytes: gone.room,
        repository: gone.repository.map(|name| name.to_string()),
        reason: match gone.reason {
            store::Reason::Unused { ttl } => Reason::Unused { ttl_seconds: ttl.as_secs() },
            store::Reason::Superseded => Reason::Superseded,
            store::Reason::Quota => Reason::Quota,
            store::Reason::Budget => Reason::Budget,
            store::Reason::Part { of } => Reason::Part { of },
            store::Reason::Beginning => Reason::Beginning,
        },
    }
}

/// `GET /usage`
pub(super) async fn usage(State(api): State<Api>) -> Result<Told<Usage>, Refused> {
    let store = &api.registry.store;
    let retention = store.retention();
    let quota = |host: &str| retention.of(&host.parse().ok()?)?.quota;
    let mut upstreams: Vec<OfUpstream> = store
        .usage_by_host()
        .await?
        .into_iter()
        .map(|(host, bytes)| OfUpstream { quota: quota(&host), host, bytes })
        .collect();
    upstreams.sort_by_key(|it| std::cmp::Reverse(it.bytes));
    let repositories = store.usage_by_repository(MAX_REPOSITORIES).await?;
    let repositories = repositories.into_iter().map(|it| OfRepository {
        repository: it.repository.to_string(),
        bytes: it.room,
        shared_bytes: it.shared,
    });
    let now = store.usage();
    let repositories = repositories.collect();
    Ok(Told(Usage { bytes: now.bytes, budget: now.budget, upstreams, repositories }))
}
