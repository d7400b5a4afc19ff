//! Fetching images ahead.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, State};
use http::StatusCode;
use larder_api_types::warm::{MAX_IMAGES, Start, Warming};
use larder_core::ImageName;
use larder_core::platform::Platforms;

use super::Api;
use super::answer::{self, Refused, Told};
use crate::warm::{Order, TooMany};

const EXAMPLE: &str = r#"{"images": ["docker.io/library/alpine:3.20"]}"#;

/// `POST /warm`
pub(super) async fn start(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Told<Warming>), Refused> {
    let Start { images, platforms, referrers } = answer::read(body, None, EXAMPLE)?;
    if !(1..=MAX_IMAGES).contains(&images.len()) {
        return Err(Refused::bad_request(format!("`images` must name 1 to {MAX_IMAGES} images")));
    }
    let images = images.into_iter().map(|text| Ok((text.clone(), image(&text)?)));
    let images = images.collect::<Result<_, Refused>>()?;
    let order = Order { images, platforms: self::platforms(&platforms)?, referrers };
    match api.registry.start_warming(order) {
        Ok(begun) => Ok((StatusCode::ACCEPTED, Told(begun))),
        Err(TooMany) => Err(Refused::new(
            StatusCode::CONFLICT,
            "many are under way already; wait until one has ended",
        )),
    }
}

/// `GET /warm/{id}`
pub(super) async fn tell(
    State(api): State<Api>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<Told<Warming>, Refused> {
    let Path(id) = id?;
    api.registry.warmer.tell(id).map(Told).ok_or_else(unknown)
}

/// `DELETE /warm/{id}`
pub(super) async fn cancel(
    State(api): State<Api>,
    id: Result<Path<u64>, PathRejection>,
) -> Result<StatusCode, Refused> {
    let Path(id) = id?;
    match api.registry.warmer.cancel(id) {
        true => Ok(StatusCode::NO_CONTENT),
        false => Err(unknown()),
    }
}

fn unknown() -> Refused {
    Refused::new(StatusCode::NOT_FOUND, "no such warming is remembered")
}

pub(super) fn image(text: &str) -> Result<ImageName, Refused> {
    text.parse().map_err(|error| Refused::bad_request(format!("`{text}` is no image: {error}")))
}

pub(super) fn platforms(texts: &[String]) -> Result<Platforms, Refused> {
    Platforms::parse(texts).map_err(|error| Refused::bad_request(error.to_string()))
}
