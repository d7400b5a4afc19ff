//! What tags named when upstream was last asked.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use larder_core::Tag;
use larder_core::name::Named;
use tracing::warn;

use crate::index::TagRecord;
use crate::shared::Note;
use crate::work::blocking;
use crate::{Store, StoreError};

/// Repository, tag and variant.
pub(crate) type TagKey = (Arc<Named>, Tag, Arc<str>);

impl Store {
    /// What `tag` named. `variant` is empty for the answer to a client that accepts everything,
    /// else the `Accept` that upstream answered differently.
    ///
    /// # Errors
    ///
    /// The index can't say; ask upstream.
    pub async fn tag(
        &self,
        repository: &Arc<Named>,
        tag: &Tag,
        variant: &Arc<str>,
    ) -> Result<Option<Arc<TagRecord>>, StoreError> {
        let key = (Arc::clone(repository), tag.clone(), Arc::clone(variant));
        if let Some(record) = self.0.tags.get(&key) {
            return Ok(Some(record));
        }
        let seen = self.0.tag_changes.load(Ordering::SeqCst);
        let Some(record) = self.index().tag(repository, tag, variant).await? else {
            return Ok(self.newer_tag(repository, tag, variant, UNIX_EPOCH).await);
        };
        let record = Arc::new(record);
        self.remember_tag(key, &record, seen);
        Ok(Some(record))
    }

    /// What another replica was told that `tag` names, if it asked after `checked_at`; that is what
    /// is remembered here, too, from now on.
    pub async fn newer_tag(
        &self,
        repository: &Arc<Named>,
        tag: &Tag,
        variant: &Arc<str>,
        checked_at: SystemTime,
    ) -> Option<Arc<TagRecord>> {
        let record = self.shared()?.tag(repository, tag, variant).await?;
        if record.checked_at <= checked_at {
            return None;
        }
        let record = Arc::new(record);
        if let Err(error) = self.remember_newer(repository, tag, variant, &record).await {
            warn!(error = &error as &dyn std::error::Error, "remembering a tag");
        }
        Some(record)
    }

    /// Keeps in memory what the index said. If any tag has changed since `tag_changes` was `seen`,
    /// it may be this one, and this not what it names now.
    fn remember_tag(&self, key: TagKey, record: &Arc<TagRecord>, seen: u64) {
        self.0.tags.insert(key.clone(), Arc::clone(record));
        if self.0.tag_changes.load(Ordering::SeqCst) != seen {
            self.0.tags.invalidate(&key);
        }
    }

    /// Remembers what upstream said that `tag` names, and that `repository` may serve it.
    ///
    /// # Errors
    ///
    /// The index can't remember it; it is known as long as it is in memory.
    pub async fn put_tag(
        &self,
        repository: &Arc<Named>,
        tag: &Tag,
        variant: &Arc<str>,
        record: TagRecord,
    ) -> Result<(), StoreError> {
        let record = Arc::new(record);
        if let Some(shared) = self.shared() {
            shared.note(Note::Tag {
                repository: Arc::clone(repository),
                tag: tag.clone(),
                variant: Arc::clone(variant),
                record: record.as_ref().clone(),
            });
        }
        self.remember_newer(repository, tag, variant, &record).await
    }

    async fn remember_newer(
        &self,
        repository: &Arc<Named>,
        tag: &Tag,
        variant: &Arc<str>,
        record: &Arc<TagRecord>,
    ) -> Result<(), StoreError> {
        let key = (Arc::clone(repository), tag.clone(), Arc::clone(variant));
        let put = self.index().put_tag(repository, tag, variant, record).await;
        self.0.tag_changes.fetch_add(1, Ordering::SeqCst);
        self.0.members.insert((Arc::clone(repository), record.digest.clone()), ());
        self.0.tags.insert(key, Arc::clone(record));
        Ok(put?)
    }

    /// Forgets every variant of a tag that upstream no longer has.
    ///
    /// # Errors
    ///
    /// The index can't forget it, and the tag may be found again with the age it had.
    pub async fn remove_tag(&self, repository: &Arc<Named>, tag: &Tag) -> Result<(), StoreError> {
        let now = SystemTime::now();
        if let Some(shared) = self.shared() {
            let (repository, tag) = (Arc::clone(repository), tag.clone());
            shared.note(Note::NoTag { repository, tag, now });
        }
        let removed = self.index().remove_tag(repository, tag, now).await;
        self.0.tag_changes.fetch_add(1, Ordering::SeqCst);
        let (store, repository, tag) = (self.clone(), Arc::clone(repository), tag.clone());
        // Looking through the cache takes milliseconds when it is full.
        blocking(move || store.forget_variants(&repository, &tag)).await;
        Ok(removed?)
    }

    fn forget_variants(&self, repository: &Arc<Named>, tag: &Tag) {
        let tags = &self.0.tags;
        let variants = tags.iter().filter(|(key, _)| key.0 == *repository && key.1 == *tag);
        for key in variants.map(|(key, _)| key).collect::<Vec<_>>() {
            tags.invalidate(key.as_ref());
        }
    }

    /// At most `limit` stored tags of a repository after `last`, in byte order.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn tags(
        &self,
        repository: &Named,
        last: &str,
        limit: u32,
    ) -> Result<Vec<String>, StoreError> {
        Ok(self.index().tags(repository, last, limit).await?)
    }
}

#[cfg(test)]
mod tests {
    use larder_core::Digest;

    use super::*;
    use crate::Settings;

    #[tokio::test]
    async fn what_a_tag_named_before_it_changed_is_not_remembered() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::new(directory.path().to_owned());
        let store = Store::open(settings).await.unwrap();
        let named = Named { host: "a.io".parse().unwrap(), repository: "b".parse().unwrap() };
        let (named, tag, variant) = (Arc::new(named), "v1".parse::<Tag>().unwrap(), Arc::from(""));

        let seen = store.0.tag_changes.load(Ordering::SeqCst);
        store.put_tag(&named, &tag, &variant, record(b"new")).await.unwrap();
        let key = (Arc::clone(&named), tag.clone(), Arc::clone(&variant));
        store.remember_tag(key, &Arc::new(record(b"old")), seen);
        let found = store.tag(&named, &tag, &variant).await.unwrap().unwrap();
        assert_eq!(found.digest, Digest::sha256_of(b"new"));
    }

    fn record(content: &[u8]) -> TagRecord {
        TagRecord {
            digest: Digest::sha256_of(content),
            media_type: "x/y".to_owned(),
            size: 3,
            checked_at: UNIX_EPOCH,
        }
    }
}
