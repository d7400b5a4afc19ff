//! What the REST API under `/api/v1` takes and answers: the same types for who serves it and who
//! asks it.
//!
//! - [`images`]: what is stored, as people name it;
//! - [`blobs`]: content by its digest;
//! - [`export`]: images as one file;
//! - [`fills`]: what is being fetched;
//! - [`upstreams`]: where from, and how each is doing;
//! - [`gc`]: what has to go, and who takes how much;
//! - [`pins`]: what stays;
//! - [`verify`]: hashing everything that is stored again;
//! - [`warm`]: fetching images ahead.
//!
//! Every answer is an [`Answer`]: the fields of one of these types, and `version` beside them. Within
//! one version fields may be added, and none changes its meaning or goes; so whoever reads takes what
//! it knows and leaves the rest.
//!
//! Sizes are bytes; times are UTC as in RFC 3339, to the second.

pub mod blobs;
pub mod export;
pub mod fills;
pub mod gc;
pub mod images;
pub mod pins;
mod time;
pub mod upstreams;
pub mod verify;
pub mod warm;

use serde::{Deserialize, Serialize};

/// The version of every answer, and of what commands print with `--json`.
pub const VERSION: u32 = 1;

/// Where the API begins, on the admin address.
pub const PREFIX: &str = "/api/v1";

/// `{"version": 1, …}` with the fields of `T`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer<T> {
    /// [`VERSION`].
    pub version: u32,
    /// What was asked for.
    #[serde(flatten)]
    pub body: T,
}

impl<T> Answer<T> {
    /// `body` in this version.
    pub fn new(body: T) -> Self {
        Self { version: VERSION, body }
    }
}

/// The body of every answer that is not a success: `{"version": 1, "error": "…"}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is wrong and what to do about it, in a sentence for people.
    pub error: String,
    /// What was tested, where it is an upstream that does not work.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<upstreams::Step>,
}

impl Problem {
    /// One that was found without testing anything.
    pub fn new(error: impl Into<String>) -> Self {
        Self { error: error.into(), steps: Vec::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_has_its_version_beside_its_fields_and_reads_what_it_does_not_know() {
        let answer = Answer::new(Problem::new("no"));
        let text = serde_json::to_string(&answer).unwrap();
        assert_eq!(text, r#"{"version":1,"error":"no"}"#);
        let later = r#"{"version":1,"error":"no","code":7}"#;
        assert_eq!(serde_json::from_str::<Answer<Problem>>(later).unwrap(), answer);
    }
}
