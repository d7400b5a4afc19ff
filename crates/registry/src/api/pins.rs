//! What stays.

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use http::StatusCode;
use larder_api_types::pins::{Change, Pin, Pins};
use larder_core::retention::{ImagePattern, ParseImagePatternError};

use super::Api;
use super::answer::{self, Refused, Told};

const EXAMPLE: &str = r#"{"pattern": "docker.io/library/alpine:3.*"}"#;

/// `GET /pins`
pub(super) async fn list(State(api): State<Api>) -> Result<Told<Pins>, Refused> {
    let configured = api.registry.store.retention();
    let is_configured =
        |pin: &ImagePattern| configured.pins.iter().any(|it| it.as_str() == pin.as_str());
    let pin = |pin: ImagePattern| Pin {
        is_configured: is_configured(&pin),
        pattern: pin.as_str().to_owned(),
    };
    Ok(Told(Pins { pins: api.registry.store.pins().await?.into_iter().map(pin).collect() }))
}

/// `POST /pins`
pub(super) async fn add(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Told<Change>), Refused> {
    let change: Change = answer::read(body, None, EXAMPLE)?;
    api.registry.store.pin(&pattern(&change)?).await?;
    Ok((StatusCode::CREATED, Told(change)))
}

/// `DELETE /pins`
pub(super) async fn remove(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Told<Change>, Refused> {
    let change: Change = answer::read(body, None, EXAMPLE)?;
    let pattern = pattern(&change)?;
    if api.registry.store.unpin(&pattern).await? {
        return Ok(Told(change));
    }
    let configured = api.registry.store.retention();
    let text = pattern.as_str();
    Err(match configured.pins.iter().any(|pin| pin.as_str() == text) {
        true => Refused::new(
            StatusCode::CONFLICT,
            format!("{text} is pinned by the configuration; take it out of `pins` there"),
        ),
        false => Refused::new(StatusCode::NOT_FOUND, format!("{text} is not pinned")),
    })
}

fn pattern(change: &Change) -> Result<ImagePattern, Refused> {
    let wrong = |error: ParseImagePatternError| Refused::bad_request(error.to_string());
    change.pattern.parse().map_err(wrong)
}
