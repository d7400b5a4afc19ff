//! `/warm`: fetching images before anybody asks for them.
//!
//! - `POST` with [`Start`] begins; 202 with [`Warming`], or 409 while too many are under way;
//! - `GET /warm/ID` tells how far one is, as long as it is remembered;
//! - `DELETE /warm/ID` ends it early. What has come by then stays.

use std::time::SystemTime;

use larder_core::Digest;
use serde::{Deserialize, Serialize};

/// The most images of one warming.
pub const MAX_IMAGES: usize = 1000;

/// What to fetch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// The images, as in `docker.io/library/alpine:3.20`: 1 to [`MAX_IMAGES`].
    pub images: Vec<String>,
    /// The platforms, as in `linux/amd64`, or `all` alone. None: that of the server.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Whether what refers to the images is fetched, too: signatures, say.
    #[serde(default)]
    pub referrers: bool,
}

/// How far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Warming {
    /// Which one it is, since the server started: 1, 2, …
    pub id: u64,
    /// When it began.
    #[serde(with = "crate::time")]
    pub started_at: SystemTime,
    /// When it ended.
    #[serde(with = "crate::time::maybe")]
    pub ended_at: Option<SystemTime>,
    /// The images, in the order they were named.
    pub images: Vec<Image>,
}

impl Warming {
    /// Whether nothing more will happen.
    pub fn is_over(&self) -> bool {
        self.ended_at.is_some()
    }
}

/// How far one image is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// As it was named.
    pub image: String,
    /// What it is at.
    pub state: State,
    /// What its name named.
    pub digest: Option<Digest>,
    /// Blobs that are stored, of those that are known to belong to it.
    pub blobs: u64,
    /// Blobs that are known to belong to it.
    pub total_blobs: u64,
    /// Bytes of it that are here.
    pub bytes: u64,
    /// Bytes that are known to belong to it.
    pub total_bytes: u64,
    /// Why it failed.
    pub error: Option<String>,
}

/// What an image is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Others are first.
    Waiting,
    /// It is being fetched.
    Running,
    /// All of it is stored.
    Done,
    /// Part of it could not be had, or was not waited for.
    Failed,
}
