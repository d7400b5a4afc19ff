//! `POST /gc`: removing what has to go, or saying what would. `GET /usage`: who takes how much.

use larder_core::Digest;
use serde::{Deserialize, Serialize};

/// The body of a `POST`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Collect {
    /// Only say what would go.
    #[serde(default)]
    pub dry_run: bool,
}

/// What went, or would.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collected {
    /// Whether nothing was removed.
    pub dry_run: bool,
    /// How many blobs, manifests and kept beginnings.
    pub n_blobs: u64,
    /// What they take of the disk, in bytes.
    pub bytes: u64,
    /// In a dry run the first 10,000 of them, in the order in which they would go.
    pub gone: Vec<Gone>,
}

/// One that would go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// What it is called.
    pub digest: Digest,
    /// What it takes of the disk, in bytes.
    pub bytes: u64,
    /// A repository that it is in, `HOST/REPOSITORY`.
    pub repository: Option<String>,
    /// Why.
    #[serde(flatten)]
    pub reason: Reason,
}

/// Why something goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Reason {
    /// It has gone unused for longer than it may.
    Unused {
        /// How long it may, in seconds.
        ttl_seconds: u64,
    },
    /// No tag names it any more, and nobody has used it since.
    Superseded,
    /// Its upstream has more than its quota.
    Quota,
    /// It is first in the order, and more is stored than may be.
    Budget,
    /// It belongs to an image that goes, and to no other.
    Part {
        /// The image's manifest.
        of: Digest,
    },
    /// It is the beginning of a blob, which nobody has gone on with.
    Beginning,
}

/// What takes how much of the disk, in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// All of it, kept beginnings too.
    pub bytes: u64,
    /// How much that may be; null: as much as the disk has.
    pub budget: Option<u64>,
    /// By upstream, those first that have most.
    pub upstreams: Vec<OfUpstream>,
    /// By repository, those first that have most, 10,000 at most.
    pub repositories: Vec<OfRepository>,
}

/// What was fetched from one host. A blob that several have counts for the one that it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfUpstream {
    /// The host.
    pub host: String,
    /// In bytes of the disk.
    pub bytes: u64,
    /// The most that it may be, together with all hosts of the same entry.
    pub quota: Option<u64>,
}

/// What one repository has stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OfRepository {
    /// `HOST/REPOSITORY`.
    pub repository: String,
    /// In bytes of the disk.
    pub bytes: u64,
    /// How much of that others have, too: it is in the sums of each.
    pub shared_bytes: u64,
}
