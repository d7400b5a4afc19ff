//! Stored images as one file.

use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use http::StatusCode;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use larder_api_types::export::Request;
use larder_core::address::Asked;
use larder_core::image::DEFAULT_UPSTREAM;
use tokio::sync::mpsc;
use tracing::error;

use super::Api;
use super::answer::{self, Refused};
use super::warm::{image, platforms};
use crate::export::{Export, ExportError, Order};

const EXAMPLE: &str = r#"{"images": ["docker.io/library/alpine:3.20"]}"#;

/// Parts of the archive that wait to be sent, at most 256 KiB each.
const MAX_WAITING: usize = 4;

/// `POST /export`
pub(super) async fn send(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Refused> {
    let request: Request = answer::read(body, None, EXAMPLE)?;
    let mut images = Vec::new();
    for text in &request.images {
        let image = image(text)?;
        let asked = Asked { name: &image.name, ns: None, default_upstream: Some(DEFAULT_UPSTREAM) };
        let found = api.registry.upstreams.resolve(asked);
        let found = found.map_err(|error| Refused::bad_request(error.to_string()))?;
        images.push((Arc::new(found.name), image.reference));
    }
    if images.is_empty() {
        return Err(Refused::bad_request("`images` must name at least one image"));
    }
    let order = Order {
        images,
        platforms: platforms(&request.platforms)?,
        referrers: request.referrers,
        without: request.without.into_iter().collect(),
    };
    let store = &api.registry.store;
    let export = Export::plan(store, &order).await.map_err(refused)?;
    let headers = [
        (CONTENT_TYPE, "application/x-tar".to_owned()),
        (CACHE_CONTROL, "no-store".to_owned()),
        (CONTENT_LENGTH, export.len().to_string()),
    ];
    let (to, mut from) = mpsc::channel(MAX_WAITING);
    tokio::spawn(export.send(store.clone(), to));
    let body = Body::from_stream(stream::poll_fn(move |context| from.poll_recv(context)));
    Ok((StatusCode::OK, headers, body).into_response())
}

fn refused(error: ExportError) -> Refused {
    let status = match &error {
        ExportError::Unknown(_)
        | ExportError::Incomplete { .. }
        | ExportError::OtherPlatforms { .. } => StatusCode::NOT_FOUND,
        ExportError::TooMany => StatusCode::BAD_REQUEST,
        ExportError::Unreadable(_) | ExportError::Store(_) => {
            error!(error = &error as &dyn std::error::Error, "exporting");
            StatusCode::INTERNAL_SERVER_ERROR
        }
    };
    Refused::new(status, error.to_string())
}
