//! Content by its digest: what is known of it, and content that is brought.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::rejection::{BytesRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use http::header::CONTENT_TYPE;
use http::{HeaderMap, StatusCode};
use larder_api_types::blobs::{self, Blob, Blobs, Listed, Membership, Stored, Taken};
use larder_core::address::Asked;
use larder_core::name::Named;
use larder_core::{Digest, Tag};
use larder_store::BlobRecord;
use tracing::warn;

use super::Api;
use super::answer::{Refused, Told};
use super::fills::told;
use crate::intake::{IntakeError, take_blob, take_manifest};

/// The most repositories that are told: a layer of a base image may be in thousands.
const MAX_REPOSITORIES: u32 = 100;

/// Blobs of one page.
const PAGE: u32 = 1000;

/// The most missing blobs that are told.
const MAX_MISSING: usize = 100;

/// `GET /blobs/{digest}`
pub(super) async fn show(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Told<Blob>, Refused> {
    let digest = digest(path)?;
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

/// `GET /blobs`
pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<blobs::Query>, QueryRejection>,
) -> Result<Told<Blobs>, Refused> {
    let Query(query) = query?;
    let page = api.registry.store.stored_after(query.after.unwrap_or(0), PAGE).await?;
    let next = page.last().filter(|_| page.len() == PAGE as usize).map(|it| it.place);
    let listed = page.into_iter().map(|it| Listed { digest: it.digest, size: it.size });
    Ok(Told(Blobs { blobs: listed.collect(), next }))
}

/// `PUT /blobs/{digest}`
pub(super) async fn put(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<Membership>, QueryRejection>,
    body: Body,
) -> Result<(StatusCode, Told<Taken>), Refused> {
    let (digest, Query(membership)) = (digest(path)?, query?);
    let repository = repository(&api, &membership)?;
    let store = &api.registry.store;
    let taken = take_blob(store, &repository, &digest, body.into_data_stream()).await;
    taken.map_err(|error| refused(&digest, error))?;
    Ok((StatusCode::CREATED, Told(Taken { missing: Vec::new() })))
}

/// `PUT /manifests/{digest}`
pub(super) async fn put_manifest(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<Membership>, QueryRejection>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Told<Taken>), Refused> {
    let (digest, Query(membership)) = (digest(path)?, query?);
    let bytes = body.map_err(|error| Refused::bad_request(error.body_text()))?;
    let repository = repository(&api, &membership)?;
    let tag = membership.tag.as_deref().map(str::parse::<Tag>).transpose();
    let tag = tag.map_err(|error| Refused::bad_request(error.to_string()))?;
    let media_type = headers.get(CONTENT_TYPE).and_then(|it| it.to_str().ok());
    let store = &api.registry.store;
    let taken = take_manifest(store, &repository, &digest, media_type, tag.as_ref(), bytes).await;
    let mut missing = taken.map_err(|error| refused(&digest, error))?;
    missing.truncate(MAX_MISSING);
    Ok((StatusCode::CREATED, Told(Taken { missing })))
}

fn digest(path: Result<Path<String>, PathRejection>) -> Result<Digest, Refused> {
    let Path(digest) = path?;
    digest.parse().map_err(|error| Refused::bad_request(format!("no digest: {error}")))
}

/// The repository that is meant, if it is served here.
fn repository(api: &Api, membership: &Membership) -> Result<Arc<Named>, Refused> {
    let asked = Asked { name: &membership.repository, ns: None, default_upstream: None };
    let found = api.registry.upstreams.resolve(asked);
    let found = found.map_err(|error| Refused::bad_request(error.to_string()))?;
    match api.registry.upstreams.serves(&found.name) {
        true => Ok(Arc::new(found.name)),
        false => Err(Refused::bad_request(format!("{} is not served here", found.name))),
    }
}

fn refused(digest: &Digest, error: IntakeError) -> Refused {
    let status = match &error {
        IntakeError::BrokeOff(_) | IntakeError::Unreadable(_) | IntakeError::Wrong(_) => {
            StatusCode::BAD_REQUEST
        }
        IntakeError::Silent => StatusCode::REQUEST_TIMEOUT,
        IntakeError::Store(_) | IntakeError::Write(_) | IntakeError::Commit(_) => {
            StatusCode::INSUFFICIENT_STORAGE
        }
    };
    warn!(blob.digest = %digest, error = &error as &dyn std::error::Error, "taking {digest}");
    let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}"));
    Refused::new(status, format!("{digest}: {error}{}", cause.unwrap_or_default()))
}
