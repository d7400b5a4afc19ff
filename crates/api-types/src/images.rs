//! `GET /images`: what is stored, as people name it.

use std::time::SystemTime;

use larder_core::Digest;
use serde::{Deserialize, Serialize};

/// How many images a page has at most unless the query says it.
pub const PAGE: u32 = 100;

/// The most images that a page can have: some 500 KiB.
pub const MAX_PAGE: u32 = 1000;

/// The query: `?limit=100&after=CURSOR&matching=GLOB`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// How many images at most, 1 to [`MAX_PAGE`]; [`PAGE`] without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// Where the page begins: the `next` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Only images one of whose names (`HOST/REPOSITORY:TAG`, `HOST/REPOSITORY@DIGEST` and
    /// `HOST/REPOSITORY`) matches: `*` is any part of a name, slashes included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matching: Option<String>,
}

/// One page. The order is that in which repositories became known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Images {
    /// The images; fewer than asked for, or none, also where there are more.
    pub images: Vec<Image>,
    /// Where the next page begins; none on the last one.
    pub next: Option<String>,
}

/// A manifest of a repository: an image, an index of images, or an artifact.
///
/// The images of an index are listed by themselves, too, once they are stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// The upstream's host.
    pub host: String,
    /// The repository, as the upstream knows it.
    pub repository: String,
    /// The tags that named it when upstream was last asked, in byte order.
    pub tags: Vec<String>,
    /// The manifest's digest.
    pub digest: Digest,
    /// The manifest's media type.
    pub media_type: String,
    /// Bytes that are stored of it: the manifest and what it refers to. Other images may share them.
    pub stored_bytes: u64,
    /// Bytes that it refers to and that are not stored. Images of an index that nobody has pulled
    /// do not count.
    pub missing_bytes: u64,
    /// When it was last used, or stored.
    #[serde(with = "crate::time")]
    pub last_used: SystemTime,
    /// The stored images of an index; empty for everything else.
    pub images: Vec<Digest>,
}

impl Image {
    /// `HOST/REPOSITORY`
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}
