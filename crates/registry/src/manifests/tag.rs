//! Manifests by tag: a tag is served from the store as long as it is fresh; then upstream is asked
//! with a HEAD, and whoever waits for that waits no longer than the upstream's deadline.

use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use http::header::{ACCEPT, AGE, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use larder_core::freshness::{Plan, Said, Situation, Verdict, plan, settle};
use larder_core::media::Accept;
use larder_core::name::Named;
use larder_core::{Digest, Reference, Tag};
use larder_store::TagRecord;
use larder_upstream::Error;
use tokio::time::timeout;

use super::{Manifest, answer, not_modified, wait};
use crate::flights::Waiting;
use crate::metrics::Outcome;
use crate::refusal::{Asking, Refusal};
use crate::respond;
use crate::service::{Answer, Ask, Registry};
use crate::upstream::Upstream;

/// The longest `Accept` that a variant of a tag is kept under. Clients send some 500 bytes.
const MAX_VARIANT: usize = 1024;

/// The variant of those who accept everything.
static USUAL: LazyLock<Arc<str>> = LazyLock::new(|| Arc::from(""));

/// A tag of a repository, and the `Accept` that matters for it.
pub(super) type TagKey = (Arc<Named>, Tag, Arc<str>);

/// What upstream has under a tag.
#[derive(Clone, Debug)]
pub(super) struct Found {
    record: Arc<TagRecord>,
    /// Its manifest, where that was asked for.
    manifest: Option<Manifest>,
}

/// What came of asking upstream about a stored tag.
#[derive(Clone, Debug)]
pub(super) enum Checked {
    /// It is as stored.
    Fresh,
    /// It names something else now.
    Replaced(Found),
    /// Nothing is known; the stored answer is the best there is.
    Stale,
    /// It is not to be served any more.
    Gone,
    /// Upstream refused the caller in whose name it was asked.
    Refused(Error),
}

impl Registry {
    pub(super) async fn manifest_by_tag(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        tag: &Tag,
    ) -> Result<Answer, Refusal> {
        let accept = ask.headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let accept = Accept::from_lines(accept);
        let (key, record) = self.known_tag(ask, tag, &accept).await;
        let Some(record) = record else {
            return self.new_tag(ask, key, &accept).await;
        };
        let age = SystemTime::now().duration_since(record.checked_at).unwrap_or(Duration::MAX);
        let situation = Situation {
            age,
            freshness: ask.upstream.settings.freshness_of(tag),
            offline: self.offline,
            upstream_suspect: ask.upstream.standing.is_suspect(),
        };
        let checked = match plan(situation) {
            Plan::Serve => Checked::Fresh,
            Plan::Revalidate => self.check_in_time(ask, &key, &record).await,
            Plan::ServeAndRevalidate => {
                if !ask.upstream.standing.is_left_alone() {
                    drop(self.check(ask, &key, &record));
                }
                Checked::Stale
            }
        };
        match checked {
            Checked::Fresh => self.serve_tag(ask, tag, &record, Outcome::Hit, None).await,
            Checked::Stale => self.serve_tag(ask, tag, &record, Outcome::Stale, Some(age)).await,
            Checked::Replaced(found) => self.serve_found(ask, tag, found).await,
            Checked::Gone => Err(Refusal::unknown(Asking::Manifest(&ask.name, tag))),
            Checked::Refused(error) => {
                Err(Refusal::of_upstream(&error, Asking::Manifest(&ask.name, tag)))
            }
        }
    }

    /// The stored answer that fits what the client accepts.
    ///
    /// Nearly every client accepts what upstream gives to one that accepts everything, so that
    /// answer is kept for all of them; what upstream gives to the others is kept under what they
    /// accept.
    async fn known_tag(
        &self,
        ask: &Ask<'_>,
        tag: &Tag,
        accept: &Accept,
    ) -> (TagKey, Option<Arc<TagRecord>>) {
        let usual = Arc::clone(&USUAL);
        let record = self.found(self.store.tag(&ask.name, tag, &usual).await);
        let key = (Arc::clone(&ask.name), tag.clone(), usual);
        match record {
            Some(record) if !accept.accepts(&record.media_type) => {
                let variant = variant_of(accept);
                let record = self.found(self.store.tag(&ask.name, tag, &variant).await);
                ((key.0, key.1, variant), record)
            }
            record => (key, record),
        }
    }

    /// Asks upstream about a stored tag, but waits no longer than its deadline. The check goes on.
    async fn check_in_time(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        key: &TagKey,
        record: &Arc<TagRecord>,
    ) -> Checked {
        let mut check = self.check(ask, key, record);
        match timeout(ask.upstream.settings.deadline(), check.result()).await {
            Ok(Ok(checked)) => checked,
            Ok(Err(_)) => Checked::Stale,
            Err(_) => {
                ask.upstream.standing.failed();
                Checked::Stale
            }
        }
    }

    fn check(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        key: &TagKey,
        record: &Arc<TagRecord>,
    ) -> Waiting<Checked> {
        self.manifests.checks.join(key.clone(), || {
            let (registry, upstream) = (Arc::clone(self), Arc::clone(&ask.upstream));
            let (key, record) = (key.clone(), Arc::clone(record));
            async move { registry.check_now(&upstream, key, &record).await }
        })
    }

    async fn check_now(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        key: TagKey,
        record: &Arc<TagRecord>,
    ) -> Checked {
        let (name, tag, variant) = &key;
        if let Some(newer) = self.store.newer_tag(name, tag, variant, record.checked_at).await
            && is_fresh(&newer, upstream.settings.freshness_of(tag))
        {
            return match newer.digest == record.digest {
                true => Checked::Fresh,
                false => Checked::Replaced(Found { record: newer, manifest: None }),
            };
        }
        let (said, digest) = match self.ask_about(upstream, &key, record).await {
            Ok(told) => told,
            Err(error) => return Checked::Refused(error),
        };
        match settle(said, upstream.settings.serve_deleted()) {
            Verdict::Fresh => {
                let record = TagRecord { checked_at: SystemTime::now(), ..record.as_ref().clone() };
                self.recorded(self.store.put_tag(name, tag, variant, record).await);
                Checked::Fresh
            }
            Verdict::Replace => match self.replace(upstream, key, digest).await {
                Ok(found) => Checked::Replaced(found),
                Err(Error::NotFound | Error::Denied) if !upstream.settings.serve_deleted() => {
                    Checked::Gone
                }
                Err(error @ Error::CallerRefused { .. }) => Checked::Refused(error),
                Err(_) => Checked::Stale,
            },
            Verdict::Stale => Checked::Stale,
            Verdict::NotFound => {
                self.recorded(self.store.remove_tag(name, tag).await);
                Checked::Gone
            }
        }
    }

    /// Asks upstream what a tag names now. Only that a caller was refused is an error: it says
    /// nothing about the tag.
    async fn ask_about(
        &self,
        upstream: &Upstream,
        (name, tag, variant): &TagKey,
        record: &TagRecord,
    ) -> Result<(Said, Option<Digest>), Error> {
        let reference = Reference::Tag(tag.clone());
        let accept = accept_of(variant);
        let head = upstream.client.head_manifest(&name.repository, &reference, &accept).await;
        self.note(upstream, name, head.as_ref().err());
        Ok(match head {
            Ok(head) if head.digest.as_ref() == Some(&record.digest) => (Said::Same, None),
            Ok(head) => (Said::Other, head.digest),
            // Some registries don't answer HEAD as they should; what they name is found by GET.
            Err(Error::Protocol(_)) => (Said::Other, None),
            Err(Error::NotFound | Error::Denied) => (Said::Gone, None),
            Err(Error::CredentialRefused(_)) => (Said::CredentialRefused, None),
            Err(error @ Error::CallerRefused { .. }) => return Err(error),
            Err(_) => (Said::Nothing, None),
        })
    }

    /// Gets what a tag names now.
    async fn replace(
        self: &Arc<Self>,
        upstream: &Arc<Upstream>,
        key: TagKey,
        digest: Option<Digest>,
    ) -> Result<Found, Error> {
        let reference = match digest {
            Some(digest) => Reference::Digest(digest),
            None => Reference::Tag(key.1.clone()),
        };
        let manifest = self.fetch(&key.0, upstream, &reference, &accept_of(&key.2)).await?;
        Ok(self.name_it(key, manifest).await)
    }

    /// Answers a request for a tag that is not stored.
    async fn new_tag(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        key: TagKey,
        accept: &Accept,
    ) -> Result<Answer, Refusal> {
        let tag = key.1.clone();
        let asking = Asking::Manifest(&ask.name, &tag);
        if self.offline {
            return Err(Refusal::offline(asking));
        }
        if self.absent.has(&ask.name, &tag) {
            return Err(Refusal::unknown(asking));
        }
        let is_usual = key.2.is_empty();
        let found = wait(self.look_up(ask, key.clone()), ask).await?.map_err(|error| {
            // One who accepts only some types may be told 404 where there are others.
            if is_usual {
                self.absent.note(&ask.name, &tag, &error);
            }
            Refusal::of_upstream(&error, asking)
        })?;
        if is_usual && !accept.accepts(&found.record.media_type) {
            let variant = variant_of(accept);
            if !variant.is_empty() {
                let found = wait(self.look_up(ask, (key.0, key.1, variant)), ask).await?;
                let found = found.map_err(|error| Refusal::of_upstream(&error, asking))?;
                return self.serve_found(ask, &tag, found).await;
            }
        }
        self.serve_found(ask, &tag, found).await
    }

    /// Finds out what upstream has under a tag: by HEAD if the client wants no more, since pulls
    /// are counted by GET.
    fn look_up(self: &Arc<Self>, ask: &Ask<'_>, key: TagKey) -> Waiting<Result<Found, Error>> {
        let is_head = ask.is_head;
        self.manifests.by_tag.join(key.clone(), || {
            let (registry, upstream) = (Arc::clone(self), Arc::clone(&ask.upstream));
            async move {
                if is_head && let Some(found) = registry.look_up_head(&upstream, &key).await? {
                    return Ok(found);
                }
                registry.replace(&upstream, key, None).await
            }
        })
    }

    /// What a HEAD says of a tag; `None` if it does not say everything.
    async fn look_up_head(
        &self,
        upstream: &Upstream,
        (name, tag, variant): &TagKey,
    ) -> Result<Option<Found>, Error> {
        let reference = Reference::Tag(tag.clone());
        let accept = accept_of(variant);
        let head = upstream.client.head_manifest(&name.repository, &reference, &accept).await;
        self.note(upstream, name, head.as_ref().err());
        let head = match head {
            Ok(head) => head,
            Err(Error::Protocol(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let (Some(digest), Some(media_type), Some(size)) =
            (head.digest, head.media_type, head.length)
        else {
            return Ok(None);
        };
        let record = TagRecord { digest, media_type, size, checked_at: SystemTime::now() };
        self.recorded(self.store.put_tag(name, tag, variant, record.clone()).await);
        Ok(Some(Found { record: Arc::new(record), manifest: None }))
    }

    /// Remembers what a tag names.
    async fn name_it(&self, (name, tag, variant): TagKey, manifest: Manifest) -> Found {
        let record = TagRecord {
            digest: manifest.digest.clone(),
            media_type: manifest.media_type.clone(),
            size: manifest.bytes.len() as u64,
            checked_at: SystemTime::now(),
        };
        if manifest.is_stored {
            self.recorded(self.store.put_tag(&name, &tag, &variant, record.clone()).await);
        }
        Found { record: Arc::new(record), manifest: Some(manifest) }
    }

    async fn serve_found(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        tag: &Tag,
        found: Found,
    ) -> Result<Answer, Refusal> {
        match found.manifest {
            Some(manifest) => Ok(answer(ask, &manifest, manifest.outcome(), None)),
            None => self.serve_tag(ask, tag, &found.record, Outcome::Miss, None).await,
        }
    }

    /// Answers with what a record of a tag names.
    async fn serve_tag(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        tag: &Tag,
        record: &TagRecord,
        outcome: Outcome,
        age: Option<Duration>,
    ) -> Result<Answer, Refusal> {
        if ask.is_head {
            return Ok(answer_head(ask, record, outcome, age));
        }
        if let Some(stored) = self.found(self.store.manifest(&record.digest).await) {
            return Ok(answer(ask, &stored.as_ref().into(), outcome, age));
        }
        if self.offline {
            return Err(Refusal::offline(Asking::Manifest(&ask.name, tag)));
        }
        let (manifest, outcome) = self.manifest_by_digest(ask, &record.digest).await?;
        Ok(answer(ask, &manifest, outcome, age))
    }
}

/// Whether what another replica was told of a tag still counts.
fn is_fresh(record: &TagRecord, freshness: Duration) -> bool {
    // One whose clock is ahead may say anything.
    SystemTime::now().duration_since(record.checked_at).is_ok_and(|age| age < freshness)
}

/// What the answer to a client that accepts this is kept under.
fn variant_of(accept: &Accept) -> Arc<str> {
    let text = accept.to_string();
    if text.len() > MAX_VARIANT { Arc::clone(&USUAL) } else { Arc::from(text) }
}

/// What is asked of upstream for a variant.
fn accept_of(variant: &str) -> Accept {
    if variant.is_empty() { Accept::all_manifests() } else { Accept::from_lines([variant]) }
}

fn answer_head(
    ask: &Ask<'_>,
    record: &TagRecord,
    outcome: Outcome,
    age: Option<Duration>,
) -> Answer {
    if respond::has_already(ask.headers, &record.digest) {
        return not_modified(&record.digest, outcome);
    }
    let mut response = respond::content_head(&record.digest, outcome);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, respond::header_value(record.media_type.clone()));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(record.size));
    if let Some(age) = age {
        headers.insert(AGE, HeaderValue::from(age.as_secs()));
    }
    Answer::new(response, outcome)
}
