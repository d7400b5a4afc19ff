//! `/verify`: hashing everything that is stored again.
//!
//! - `POST` with [`Start`] begins; 202 with [`Verification`], or 409 while one is under way;
//! - `GET` tells how far it is, or what the last one found;
//! - `DELETE` ends it early.

use std::time::SystemTime;

use larder_core::Digest;
use serde::{Deserialize, Serialize};

/// The most bad blobs that are listed, so that an answer has some 2 MiB at most; all are counted.
pub const MAX_LISTED: usize = 10_000;

/// How to verify.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Start {
    /// Whether what is bad is fetched again at once; otherwise when it is next asked for.
    #[serde(default)]
    pub repair: bool,
}

/// The query of `GET`: `?after=7` leaves the first 7 bad blobs out, which the asker knows already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Query {
    /// How many to leave out.
    #[serde(default)]
    pub after: usize,
}

/// How far a verification is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// Which one it is, since the server started: 1, 2, …
    pub id: u64,
    /// What it is at.
    pub state: State,
    /// Whether what is bad is fetched again.
    pub repair: bool,
    /// When it began.
    #[serde(with = "crate::time")]
    pub started_at: SystemTime,
    /// When it ended.
    #[serde(with = "crate::time::maybe")]
    pub ended_at: Option<SystemTime>,
    /// Blobs looked at so far.
    pub blobs: u64,
    /// Blobs that were stored when it began.
    pub total_blobs: u64,
    /// Bytes read so far.
    pub bytes: u64,
    /// Bytes that were stored when it began.
    pub total_bytes: u64,
    /// Blobs that are not what they should be.
    pub n_bad: u64,
    /// Of those, how many have been fetched again.
    pub n_repaired: u64,
    /// Blobs that could not be read; nothing has been done about them, and the next verification tries again.
    pub n_unread: u64,
    /// The bad ones, in the order they were found: the first [`MAX_LISTED`].
    pub bad: Vec<Bad>,
    /// What ended it early, if something did.
    pub failure: Option<String>,
}

/// What a verification is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It reads.
    Running,
    /// It has read everything.
    Done,
    /// It was ended before.
    Cancelled,
    /// It could not go on.
    Failed,
}

/// A stored blob that is not what it should be. No client gets its bytes any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bad {
    /// What it is called.
    pub digest: Digest,
    /// What is wrong with it.
    pub fault: Fault,
    /// Whether it has been fetched again.
    pub repair: Repair,
    /// Why it could not be fetched again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What is wrong with a stored blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// Its bytes hash to something else.
    Corrupt,
    /// Its file is gone.
    Missing,
}

/// Whether a bad blob has been fetched again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Repair {
    /// Nobody asked for that: it will be when a client asks for it.
    Later,
    /// It is about to be.
    Pending,
    /// It has been, and is stored again.
    Done,
    /// It could not be, see `reason`.
    Failed,
}
