//! The ways in which the registry can fail.

use std::time::Duration;

use larder_core::Digest;

use super::record::{Listener, Request};
use crate::Gate;

/// Which requests a fault is for.
#[derive(Clone, Debug)]
pub struct On {
    listener: Option<Listener>,
    method: Option<&'static str>,
    part: String,
    n_to_spare: u32,
    n_left: u32,
}

impl On {
    /// Requests whose path contains `part`; an empty part means every request.
    pub fn path(part: impl Into<String>) -> Self {
        Self { listener: None, method: None, part: part.into(), n_to_spare: 0, n_left: u32::MAX }
    }

    /// Requests for the blob or manifest called `digest`.
    pub fn digest(digest: &Digest) -> Self {
        Self::path(digest.to_string())
    }

    /// Requests for blobs, on the registry or where it redirects to.
    pub fn blobs() -> Self {
        Self::path("/blobs/")
    }

    /// Requests for manifests.
    pub fn manifests() -> Self {
        Self::path("/manifests/")
    }

    /// Of these, only GETs.
    #[must_use]
    pub fn get(self) -> Self {
        Self { method: Some("GET"), ..self }
    }

    /// Of these, only HEADs.
    #[must_use]
    pub fn head(self) -> Self {
        Self { method: Some("HEAD"), ..self }
    }

    /// Of these, only those to `listener`.
    #[must_use]
    pub fn at(self, listener: Listener) -> Self {
        Self { listener: Some(listener), ..self }
    }

    /// Of these, only the first `n` from now on.
    #[must_use]
    pub fn times(self, n: u32) -> Self {
        Self { n_left: n, ..self }
    }

    /// Of these, all but the first `n` from now on. With [`Self::times`], those come after the spared
    /// ones.
    #[must_use]
    pub fn sparing(self, n: u32) -> Self {
        Self { n_to_spare: n, ..self }
    }

    fn is_for(&self, request: &Request) -> bool {
        self.n_left > 0
            && self.listener.is_none_or(|listener| listener == request.listener)
            && self.method.is_none_or(|method| method == request.method)
            && request.path.contains(&self.part)
    }
}

/// One way to fail. Offsets count the bytes of the answer's body, unless they say "of the content".
#[derive(Clone, Debug)]
pub enum Fault {
    /// Answers this status with an error body, and no content.
    Status(u16),
    /// Answers 429 and the seconds to wait.
    TooManyRequests {
        /// The value of `Retry-After`.
        retry_after: u32,
    },
    /// Takes so long before answering anything.
    Think(Duration),
    /// Waits at the gate before answering anything.
    Wait(Gate),
    /// Waits at the gate after so many bytes; those before it have been sent.
    WaitAfter(u64, Gate),
    /// Sends so many bytes at a time, and waits so long after each: a slow line.
    Dribble(usize, Duration),
    /// Closes the connection after so many bytes, all of which arrive.
    CutAfter(u64),
    /// Resets the connection after so many bytes, of which the last may be lost on the way.
    ResetAfter(u64),
    /// Flips the bits of the byte at this offset of the content, in every answer that has it.
    Corrupt(u64),
    /// Adds this many bytes to the content, and announces them.
    Append(u64),
    /// Announces the length wrongly by this much: what is sent stays the same. Announcing more, the
    /// connection is closed at the end.
    Misannounce(i64),
    /// Announces no length and goes on with random bytes after the content, without end.
    Endless,
    /// Announces no length.
    Chunked,
    /// Answers a range with 200 and everything.
    IgnoreRange,
    /// Answers a range with other bytes than were asked for: those at the beginning, labelled so.
    WrongRange,
    /// Leaves out this header of the answer. Its name is compared without case.
    Without(&'static str),
    /// Sends to a signed address on the second listener, which refuses requests with a credential.
    Redirect,
}

/// The faults that are in force.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<(On, Fault)>);

impl Rules {
    pub(super) fn add(&mut self, on: On, fault: Fault) {
        self.0.push((on, fault));
    }

    /// The faults for `request`, which counts as one of their times.
    pub(super) fn take(&mut self, request: &Request) -> Vec<Fault> {
        let mut faults = Vec::new();
        for (on, fault) in self.0.iter_mut().filter(|(on, _)| on.is_for(request)) {
            if on.n_to_spare > 0 {
                on.n_to_spare -= 1;
                continue;
            }
            on.n_left -= 1;
            faults.push(fault.clone());
        }
        faults
    }
}
