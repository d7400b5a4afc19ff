//! Verifying what is stored.

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, QueryRejection};
use axum::extract::{Query, State};
use http::StatusCode;
use larder_api_types::verify::{self, Start, Verification};

use super::Api;
use super::answer::{self, Refused, Told};
use crate::verify::UnderWay;

/// `POST /verify`
pub(super) async fn start(
    State(api): State<Api>,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Told<Verification>), Refused> {
    let start = answer::read(body, Some(Start::default()), r#"{"repair": false}"#)?;
    match api.registry.start_verifying(start.repair).await? {
        Ok(begun) => Ok((StatusCode::ACCEPTED, Told(begun))),
        Err(UnderWay) => {
            Err(Refused::new(StatusCode::CONFLICT, "a verification is under way already"))
        }
    }
}

/// `GET /verify`
pub(super) async fn tell(
    State(api): State<Api>,
    query: Result<Query<verify::Query>, QueryRejection>,
) -> Result<Told<Verification>, Refused> {
    let Query(query) = query?;
    let none = || Refused::new(StatusCode::NOT_FOUND, "nothing has been verified since the start");
    api.registry.verifier.tell(query.after).map(Told).ok_or_else(none)
}

/// `DELETE /verify`
pub(super) async fn cancel(State(api): State<Api>) -> StatusCode {
    api.registry.verifier.cancel();
    StatusCode::NO_CONTENT
}
