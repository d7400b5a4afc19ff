//! `/blobs`: content by its digest.
//!
//! - `GET /blobs` with [`Query`] lists what is stored;
//! - `GET /blobs/DIGEST` tells of one;
//! - `PUT /blobs/DIGEST` and `PUT /manifests/DIGEST` with [`Membership`] bring content, where no
//!   upstream can be asked.

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

/// A page of all that is stored, manifests included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Blobs {
    /// In the order in which their names became known.
    pub blobs: Vec<Listed>,
    /// What to ask for next; none: this is the last page.
    pub next: Option<i64>,
}

/// A stored blob in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Its name.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// The query of `GET /blobs`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// The [`Blobs::next`] of the page before.
    pub after: Option<i64>,
}

/// The query of a `PUT`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Membership {
    /// Who may serve it, `HOST/NAME`; an upstream of the server must be known by that host.
    pub repository: String,
    /// Of a manifest: the tag that names it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
}

/// What was taken.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Taken {
    /// Of a manifest: the blobs it is made of that are not stored, the first 100.
    #[serde(default)]
    pub missing: Vec<Digest>,
}
