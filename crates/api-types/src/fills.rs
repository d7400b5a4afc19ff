//! `GET /fills`: what is being fetched.

use larder_core::Digest;
use serde::{Deserialize, Serialize};

/// All fetches that are under way or wait for a place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fills {
    /// In no particular order.
    pub fills: Vec<Fill>,
}

/// One fetch of one blob.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// The blob.
    pub digest: Digest,
    /// The repository that it is fetched from, `HOST/REPOSITORY`.
    pub repository: String,
    /// What it is at.
    pub phase: Phase,
    /// Bytes that have come and can be read.
    pub bytes: u64,
    /// Bytes of the whole, once upstream has said it.
    pub size: Option<u64>,
    /// How many read along.
    pub readers: usize,
}

/// What a fetch is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Upstream has not answered yet.
    Opening,
    /// Bytes are coming.
    Streaming,
    /// It has ended, and is about to leave this list.
    Ended,
}
