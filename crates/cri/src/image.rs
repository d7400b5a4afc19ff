//! An image as the runtime knows it.

use crate::v1;

/// An image that a runtime holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The runtime's own name for it. containerd: the digest of the image's configuration,
    /// `sha256:<64 hex digits>`.
    pub id: String,
    /// References by tag, whole (`docker.io/library/alpine:3`). May be empty.
    pub tags: Vec<String>,
    /// References by digest, whole (`docker.io/library/alpine@sha256:…`). May be empty.
    pub digests: Vec<String>,
    /// Bytes. containerd: as compressed in the registry, without what unpacking needs.
    pub size: u64,
    /// Whether the runtime says that it must not be removed (the pause image).
    pub pinned: bool,
}

impl Image {
    pub(crate) fn from_message(image: v1::Image) -> Self {
        Self {
            id: image.id,
            tags: image.repo_tags,
            digests: image.repo_digests,
            size: image.size,
            pinned: image.pinned,
        }
    }
}
