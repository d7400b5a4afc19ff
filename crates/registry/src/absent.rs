//! What upstream has just said that it does not have.
//!
//! A deployment with a mistyped tag makes every node ask for it, again and again; upstream counts
//! each of these requests.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use larder_core::name::Named;
use larder_upstream::Error;

/// How long it is remembered: short enough that who pushes an image and pulls it then need not know.
const MEMORY: Duration = Duration::from_secs(5);

/// How much is remembered: some 2 MiB.
const MAX: u64 = 10_000;

/// A memory of what is not there.
pub(crate) struct Absent(moka::sync::Cache<Key, ()>);

/// A repository, and a tag or digest in it.
type Key = (Arc<Named>, Box<str>);

impl Absent {
    pub(crate) fn new() -> Self {
        Self(moka::sync::Cache::builder().time_to_live(MEMORY).max_capacity(MAX).build())
    }

    /// Whether upstream has just said that `what` is not there.
    pub(crate) fn has(&self, name: &Arc<Named>, what: &dyn Display) -> bool {
        // Hardly ever is there anything, and most requests get here.
        self.0.entry_count() > 0 && self.0.contains_key(&key(name, what))
    }

    /// Remembers what asking for `what` has come to, if upstream said that it is not there.
    pub(crate) fn note(&self, name: &Arc<Named>, what: &dyn Display, error: &Error) {
        if let Error::NotFound | Error::Denied = error {
            self.0.insert(key(name, what), ());
            // `entry_count` knows of it only then.
            self.0.run_pending_tasks();
        }
    }
}

fn key(name: &Arc<Named>, what: &dyn Display) -> Key {
    (Arc::clone(name), what.to_string().into_boxed_str())
}
