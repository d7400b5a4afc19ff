//! `POST /export`: stored images as one file, an OCI image layout in a tar archive.

use larder_core::Digest;
use serde::{Deserialize, Serialize};

/// What to export.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// The images, as in `docker.io/library/alpine:3.20`: at least one. They must be stored whole.
    pub images: Vec<String>,
    /// The platforms, as in `linux/amd64`, or `all` alone: all that are stored. None: that of the
    /// server.
    #[serde(default)]
    pub platforms: Vec<String>,
    /// Whether what refers to the images goes along, as far as it is stored.
    #[serde(default)]
    pub referrers: bool,
    /// What the other side has, and is left out.
    #[serde(default)]
    pub without: Vec<Digest>,
}
