//! What the registry holds.

use std::collections::{BTreeMap, HashMap, HashSet};

use larder_core::Digest;

use crate::{Content, Image};

/// Repositories and their content.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    repositories: HashMap<String, Repository>,
    blobs: HashMap<Digest, Content>,
}

#[derive(Debug, Default)]
struct Repository {
    blobs: HashSet<Digest>,
    manifests: HashMap<Digest, Content>,
    tags: BTreeMap<String, Digest>,
}

impl Shelf {
    pub(super) fn add_image(&mut self, repository: &str, image: &Image) {
        for blob in image.blobs() {
            self.add_blob(repository, blob);
        }
        for child in &image.images {
            self.add_image(repository, child);
        }
        let manifest = image.manifest.clone();
        self.repository(repository).manifests.insert(manifest.digest.clone(), manifest);
    }

    pub(super) fn add_blob(&mut self, repository: &str, blob: &Content) {
        self.repository(repository).blobs.insert(blob.digest.clone());
        self.blobs.insert(blob.digest.clone(), blob.clone());
    }

    pub(super) fn tag(&mut self, repository: &str, tag: &str, digest: &Digest) {
        self.repository(repository).tags.insert(tag.to_owned(), digest.clone());
    }

    pub(super) fn untag(&mut self, repository: &str, tag: &str) {
        self.repository(repository).tags.remove(tag);
    }

    pub(super) fn remove(&mut self, repository: &str) {
        self.repositories.remove(repository);
    }

    fn repository(&mut self, name: &str) -> &mut Repository {
        self.repositories.entry(name.to_owned()).or_default()
    }

    /// The manifest that `reference`, a tag or digest, names.
    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<Content> {
        let repository = self.repositories.get(repository)?;
        let digest = match repository.tags.get(reference) {
            Some(digest) => digest.clone(),
            None => reference.parse().ok()?,
        };
        repository.manifests.get(&digest).cloned()
    }

    pub(super) fn blob(&self, repository: &str, digest: &str) -> Option<Content> {
        let digest = digest.parse().ok()?;
        let is_here = self.repositories.get(repository)?.blobs.contains(&digest);
        is_here.then(|| self.blobs.get(&digest).cloned()).flatten()
    }

    /// A blob of any repository: what a signed address leads to.
    pub(super) fn stored(&self, digest: &str) -> Option<Content> {
        self.blobs.get(&digest.parse().ok()?).cloned()
    }

    /// The tags of a repository in order; `None` if there is no such repository.
    pub(super) fn tags(&self, repository: &str) -> Option<Vec<String>> {
        Some(self.repositories.get(repository)?.tags.keys().cloned().collect())
    }

    /// All manifests of a repository.
    pub(super) fn manifests(&self, repository: &str) -> Option<Vec<Content>> {
        Some(self.repositories.get(repository)?.manifests.values().cloned().collect())
    }
}
