//! `GET /blobs/{digest}`: one blob.

use std::time::SystemTime;

use larder_core::Digest;
use serde::{Deserialize, Serialize};

/// What is known of a blob that is stored or being fetched; of any other there is a 404.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blob {
    /// Its name.
    pub digest: Digest,
    /// How it is stored; none while it is only being fetched.
    pub stored: Option<Stored>,
    /// The fetch that is under way, if there is one.
    pub fill: Option<crate::fills::Fill>,
    /// Repositories that may serve it, `HOST/REPOSITORY`: the first 100.
    pub repositories: Vec<String>,
}

/// A blob on disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Its length in bytes.
    pub size: u64,
    /// Its media type, where it is a manifest.
    pub media_type: Option<String>,
    /// When it was stored.
    #[serde(with = "crate::time")]
    pub stored_at: SystemTime,
    /// When it was last used; up to half a minute may be missing.
    #[serde(with = "crate::time")]
    pub last_used: SystemTime,
    /// When its bytes were last found to be right; at the latest when they were stored.
    #[serde(with = "crate::time")]
    pub verified_at: SystemTime,
}
