//! What is being fetched.

use axum::extract::State;
use larder_api_types::fills::{Fill, Fills, Phase};

use super::Api;
use super::answer::Told;
use crate::fill;
use crate::fills::Listed;

/// `GET /fills`
pub(super) async fn list(State(api): State<Api>) -> Told<Fills> {
    Told(Fills { fills: api.registry.fills.list().into_iter().map(told).collect() })
}

pub(super) fn told(listed: Listed) -> Fill {
    use fill::Phase as Now;
    let (phase, size) = match &listed.progress.phase {
        Now::Opening => (Phase::Opening, None),
        Now::Streaming(opened) => (Phase::Streaming, opened.length),
        Now::Done(opened) => (Phase::Ended, opened.length),
        Now::Unstored { length, .. } => (Phase::Ended, *length),
        Now::Failed(_) | Now::Stopped => (Phase::Ended, None),
    };
    Fill {
        digest: listed.digest,
        repository: listed.name.to_string(),
        phase,
        bytes: listed.progress.visible,
        size,
        readers: listed.readers,
    }
}
