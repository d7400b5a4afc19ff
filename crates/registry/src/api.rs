//! The REST API under `/api/v1`, on the admin address: what is stored, what is being fetched, and
//! what can be done about it.
//!
//! Everybody who reaches the address may ask; who may change something is decided in `access`, for
//! every method but GET and HEAD, so that a new route cannot forget it. Every answer is JSON, also an
//! error: a sentence that says what to do. What is said is in `larder-api-types`.

mod access;
mod answer;
mod blobs;
mod export;
mod fills;
mod gc;
mod images;
mod pins;
mod upstreams;
mod verify;
mod warm;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware;
use axum::routing::{get, post, put};
use http::StatusCode;
use larder_api_types::PREFIX;
use larder_core::manifest::MAX_MANIFEST;

pub(crate) use self::access::Access;
use self::answer::Refused;
use crate::service::Registry;

/// The longest body of most requests, in bytes: the names of 1,000 images are some 100 KiB.
const MAX_BODY: usize = 512 << 10;

/// The same with the digests of everything that the other side has: 200,000 of them.
const MAX_EXPORT: usize = 16 << 20;

/// What the handlers of all routes have.
#[derive(Clone)]
struct Api {
    registry: Arc<Registry>,
}

/// The routes, each with [`PREFIX`].
pub(crate) fn router(registry: Arc<Registry>, access: Access) -> Router {
    let routes = Router::new()
        .route("/blobs", get(blobs::list))
        // Larger than anything else that is sent, and written as it comes.
        .route(
            "/blobs/{digest}",
            get(blobs::show).put(blobs::put).layer(DefaultBodyLimit::disable()),
        )
        .route("/export", post(export::send).layer(DefaultBodyLimit::max(MAX_EXPORT)))
        .route("/fills", get(fills::list))
        .route("/gc", post(gc::collect))
        .route("/images", get(images::list))
        .route(
            "/manifests/{digest}",
            put(blobs::put_manifest).layer(DefaultBodyLimit::max(MAX_MANIFEST)),
        )
        .route("/pins", get(pins::list).post(pins::add).delete(pins::remove))
        .route("/upstreams", get(upstreams::list))
        .route("/upstreams/{host}", put(upstreams::make).delete(upstreams::remove))
        .route("/usage", get(gc::usage))
        .route("/verify", get(verify::tell).post(verify::start).delete(verify::cancel))
        .route("/warm", post(warm::start))
        .route("/warm/{id}", get(warm::tell).delete(warm::cancel))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .fallback(async || Refused::new(StatusCode::NOT_FOUND, "the API has no such path"))
        .method_not_allowed_fallback(async || {
            Refused::new(StatusCode::METHOD_NOT_ALLOWED, "this path has no such method")
        })
        .layer(middleware::from_fn_with_state(Arc::new(access), access::guard))
        .with_state(Api { registry });
    Router::new().nest(PREFIX, routes)
}
