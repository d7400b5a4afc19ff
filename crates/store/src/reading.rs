//! Which blobs are open for somebody.

use std::collections::HashMap;
use std::fs::File;
use std::sync::{Arc, Weak};

use larder_core::Digest;
use parking_lot::Mutex;

use crate::Store;
use crate::work::Slow;

/// The files that were opened, of which some may be closed by now.
#[derive(Debug, Default)]
pub(crate) struct Reading(Mutex<Open>);

#[derive(Debug, Default)]
struct Open {
    files: HashMap<Digest, Weak<Slow<File>>>,
    /// Beyond this many, those that are closed are looked for.
    limit: usize,
}

/// The fewest that are looked through.
const MIN_LIMIT: usize = 1024;

impl Reading {
    pub(crate) fn note(&self, digest: &Digest, file: &Arc<Slow<File>>) {
        let mut open = self.0.lock();
        if open.files.len() >= open.limit {
            open.files.retain(|_, file| file.strong_count() > 0);
            // Twice what is left, so that looking through costs little per file.
            open.limit = (2 * open.files.len()).max(MIN_LIMIT);
        }
        open.files.insert(digest.clone(), Arc::downgrade(file));
    }

    fn holders(&self, digest: &Digest) -> usize {
        self.0.lock().files.get(digest).map_or(0, Weak::strong_count)
    }
}

impl Store {
    /// Whether somebody holds the blob open, besides this store's own cache.
    pub(crate) fn is_read(&self, digest: &Digest) -> bool {
        let by_cache = usize::from(self.0.blobs.contains_key(digest));
        self.0.reading.holders(digest) > by_cache
    }
}
