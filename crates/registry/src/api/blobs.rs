//! One blob.

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use http::StatusCode;
use larder_api_types::blobs::{Blob, Stored};
use larder_core::Digest;
use larder_store::BlobRecord;

use super::Api;
use super::answer::{Refused, Told};
use super::fills::told;

/// The most repositories that are told: a layer of a base image may be in thousands.
const MAX_REPOSITORIES: u32 = 100;

/// `GET /blobs/{digest}`
pub(super) async fn show(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Told<Blob>, Refused> {
    let Path(digest) = path?;
    let digest: Digest =
        digest.parse().map_err(|error| Refused::bad_request(format!("no digest: {error}")))?;
    let store = &api.registry.store;
    let stored = store.blob_record(&digest).await?;
    let fill = api.registry.fills.list().into_iter().find(|fill| fill.digest == digest);
    if stored.is_none() && fill.is_none() {
        let text = format!("{digest} is neither stored nor being fetched");
        return Err(Refused::new(StatusCode::NOT_FOUND, text));
    }
    let repositories = store.repositories_of(&digest, MAX_REPOSITORIES).await?;
    Ok(Told(Blob {
        digest,
        stored: stored.map(record),
        fill: fill.map(told),
        repositories: repositories.iter().map(ToString::to_string).collect(),
    }))
}

fn record(record: BlobRecord) -> Stored {
    let BlobRecord { size, media_type, stored_at, used_at, verified_at } = record;
    Stored { size, media_type, stored_at, last_used: used_at, verified_at }
}
