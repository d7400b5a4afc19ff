//! Lists of what refers to a manifest.
//!
//! A registry that has the referrers API knows what refers to what, so its list is given as it is.
//! In one that has not, clients keep the list under a tag, where two of them may undo each other's
//! change; what is stored here is added to that one, and to any list while upstream is away.
//!
//! Source: OCI distribution-spec 1.1, "Listing Referrers".

use std::sync::Arc;
use std::time::Instant;

use http::StatusCode;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LINK};
use larder_core::media::{Accept, OCI_INDEX};
use larder_core::name::Named;
use larder_core::referrer::{self, Referrer};
use larder_core::route::query_value;
use larder_core::{Digest, Reference};
use larder_upstream::Error;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use crate::flights::{Flights, Waiting};
use crate::manifests::PATIENCE;
use crate::metrics::Outcome;
use crate::refusal::{Asking, Refusal};
use crate::respond::{self, Body, X_LARDER_CACHE, encoded, header_value};
use crate::service::{Answer, Ask, Registry};
use crate::upstream::Upstream;

/// Says that a list was filtered by `artifactType`.
const OCI_FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

/// The most stored referrers of one manifest that are looked up.
const MAX_STORED: u32 = 1000;

/// A page of an answer: clients read 4 MiB at most, as of any manifest.
const MAX_PAGE: usize = 1000;
const MAX_PAGE_BYTES: usize = 2 << 20;

/// Lists kept in memory, in bytes: some 20,000 images with a signature or two.
const MAX_LISTS: u64 = 16 << 20;

/// What is known of who refers to what.
pub(crate) struct Referrers {
    lists: moka::sync::Cache<Key, Arc<List>>,
    flights: Flights<Key, Result<Arc<List>, Error>>,
    tasks: TaskTracker,
}

/// A repository and a manifest that others may refer to.
type Key = (Arc<Named>, Digest);

/// What upstream said.
#[derive(Debug)]
struct List {
    referrers: Vec<Referrer>,
    checked_at: Instant,
}

impl Referrers {
    pub(crate) fn new() -> Self {
        let tasks = TaskTracker::new();
        let lists = moka::sync::Cache::builder()
            .weigher(|_, list: &Arc<List>| list.weight())
            .max_capacity(MAX_LISTS)
            .build();
        Self { lists, flights: Flights::new(tasks.clone()), tasks }
    }

    /// Waits for what is being found out.
    pub(crate) async fn close(&self) {
        self.tasks.close();
        self.tasks.wait().await;
    }
}

impl List {
    fn weight(&self) -> u32 {
        let bytes: usize = self.referrers.iter().map(|it| it.encoded_len() + 256).sum();
        u32::try_from(bytes + 512).unwrap_or(u32::MAX)
    }
}

impl Registry {
    /// Answers a request for the referrers of `subject`.
    pub(crate) async fn referrers(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        subject: &Digest,
    ) -> Result<Answer, Refusal> {
        if self.offline {
            let stored = self.stored_referrers(&ask.name, subject).await;
            return Ok(answer(ask, subject, &stored, Outcome::Hit));
        }
        let key = (Arc::clone(&ask.name), subject.clone());
        let known = self.referrers.lists.get(&key);
        if let Some(list) = &known
            && list.checked_at.elapsed() < ask.upstream.settings.freshness()
        {
            return Ok(answer(ask, subject, &list.referrers, Outcome::Hit));
        }
        let error = match self.listed_in_time(ask, key, known.is_some()).await {
            Ok(list) => return Ok(answer(ask, subject, &list.referrers, Outcome::Pass)),
            Err(error @ (Error::Denied | Error::CallerRefused { .. })) => {
                return Err(Refusal::of_upstream(&error, Asking::Referrers(&ask.name, subject)));
            }
            Err(error) => error,
        };
        let known = known.map_or(Vec::new(), |list| list.referrers.clone());
        let stored = self.stored_referrers(&ask.name, subject).await;
        let known = referrer::merge(known, stored);
        // Nothing known is not the same as nothing there: who looks for a signature must not be
        // told that there is none.
        match known.is_empty() {
            true => Err(Refusal::of_upstream(&error, Asking::Referrers(&ask.name, subject))),
            false => Ok(answer(ask, subject, &known, Outcome::Stale)),
        }
    }

    /// Upstream's list. Whoever has another one waits no longer than upstream's deadline, and not
    /// at all while upstream is away.
    async fn listed_in_time(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        key: Key,
        has_another: bool,
    ) -> Result<Arc<List>, Error> {
        let standing = &ask.upstream.standing;
        if has_another && standing.is_left_alone() {
            return Err(Error::RateLimited { retry_after: None });
        }
        let is_suspect = standing.is_suspect();
        let mut flight = self.list(ask, key);
        let patience = match has_another {
            true if is_suspect => return Err(Error::TimedOut),
            true => ask.upstream.settings.deadline(),
            false => PATIENCE,
        };
        match timeout(patience, flight.result()).await {
            Ok(Ok(listed)) => listed,
            Ok(Err(_)) => Err(Error::TimedOut),
            Err(_) => {
                standing.failed();
                Err(Error::TimedOut)
            }
        }
    }

    fn list(self: &Arc<Self>, ask: &Ask<'_>, key: Key) -> Waiting<Result<Arc<List>, Error>> {
        self.referrers.flights.join(key.clone(), || {
            let (registry, upstream) = (Arc::clone(self), Arc::clone(&ask.upstream));
            async move {
                let (name, subject) = &key;
                let listed = registry.list_now(&upstream, name, subject).await;
                registry.note(&upstream, name, listed.as_ref().err());
                let list = Arc::new(List { referrers: listed?, checked_at: Instant::now() });
                registry.referrers.lists.insert(key, Arc::clone(&list));
                Ok(list)
            }
        })
    }

    async fn list_now(
        &self,
        upstream: &Upstream,
        name: &Named,
        subject: &Digest,
    ) -> Result<Vec<Referrer>, Error> {
        match upstream.client.referrers(&name.repository, subject).await? {
            Some(listed) if !upstream.settings.serve_deleted() => Ok(listed),
            Some(listed) => Ok(referrer::merge(listed, self.stored_referrers(name, subject).await)),
            None => {
                let listed = list_by_tag(upstream, name, subject).await?;
                Ok(referrer::merge(listed, self.stored_referrers(name, subject).await))
            }
        }
    }

    async fn stored_referrers(&self, name: &Named, subject: &Digest) -> Vec<Referrer> {
        let stored = self.store.referrers(name, subject, MAX_STORED).await;
        let stored = self.found(stored.map(Some)).unwrap_or_default();
        let describe = |it: &Arc<larder_store::StoredManifest>| {
            Referrer::describe(&it.digest, &it.media_type, &it.bytes).ok()
        };
        stored.iter().filter_map(describe).collect()
    }
}

/// The list that clients keep under a tag where there is no API.
async fn list_by_tag(
    upstream: &Upstream,
    name: &Named,
    subject: &Digest,
) -> Result<Vec<Referrer>, Error> {
    let Some(tag) = referrer::fallback_tag(subject) else {
        return Ok(Vec::new());
    };
    let accept = Accept::from_lines([OCI_INDEX]);
    match upstream.client.manifest(&name.repository, &Reference::Tag(tag), &accept).await {
        // Under such a tag there may be anything.
        Ok(raw) => Ok(referrer::parse_list(&raw.bytes).unwrap_or_default()),
        Err(Error::NotFound) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// One page of `all`, as the request asks for it.
fn answer(ask: &Ask<'_>, subject: &Digest, all: &[Referrer], outcome: Outcome) -> Answer {
    let wanted = query_value(ask.query, "artifactType").filter(|wanted| !wanted.is_empty());
    let number = |key| query_value(ask.query, key).and_then(|n| n.parse::<usize>().ok());
    let matching: Vec<&Referrer> = match &wanted {
        Some(wanted) => all.iter().filter(|it| it.is_of_type(wanted)).collect(),
        None => all.iter().collect(),
    };
    let begin = number("from").unwrap_or(0).min(matching.len());
    let page = page(&matching[begin..], number("n").unwrap_or(MAX_PAGE).clamp(1, MAX_PAGE));
    let end = begin + page.len();

    let body = referrer::write_list(page.iter().copied());
    let mut response = respond::empty(StatusCode::OK);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(OCI_INDEX));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(X_LARDER_CACHE, HeaderValue::from_static(outcome.as_str()));
    if wanted.is_some() {
        headers.insert(OCI_FILTERS_APPLIED, HeaderValue::from_static("artifactType"));
    }
    if end < matching.len() {
        headers.insert(LINK, header_value(link(ask, subject, end)));
    }
    *response.body_mut() = Body::whole(body);
    Answer::new(response, outcome)
}

/// The first of `referrers` that fit on one page: at least one, if there is one.
fn page<'a, 'b>(referrers: &'a [&'b Referrer], n: usize) -> &'a [&'b Referrer] {
    let mut bytes = 0;
    let fitting = referrers.iter().take(n).take_while(|it| {
        let is_first = bytes == 0;
        bytes += it.encoded_len();
        is_first || bytes <= MAX_PAGE_BYTES
    });
    &referrers[..fitting.count()]
}

/// The next page is known by how many come before it.
fn link(ask: &Ask<'_>, subject: &Digest, from: usize) -> String {
    let mut query = format!("from={from}");
    for key in ["n", "artifactType", "ns"] {
        if let Some(value) = query_value(ask.query, key) {
            query.push_str(&format!("&{key}={}", encoded(&value)));
        }
    }
    format!("</v2/{}/referrers/{subject}?{query}>; rel=\"next\"", ask.path_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_has_as_many_as_asked_for_and_no_more_bytes_than_clients_read() {
        let small = referrer(10);
        let all = [&small, &small, &small];
        assert_eq!(page(&all, 2).len(), 2);
        assert_eq!(page(&all, 9).len(), 3);
        let large = referrer(MAX_PAGE_BYTES - 1000);
        assert_eq!(page(&[&large, &large], 9).len(), 1);
        assert_eq!(page(&[&referrer(MAX_PAGE_BYTES + 1)], 9).len(), 1);
        assert_eq!(page(&[], 9).len(), 0);
    }

    fn referrer(size: usize) -> Referrer {
        let text = format!(r#"{{"annotations":{{"a":"{}"}}}}"#, "x".repeat(size));
        Referrer::describe(&Digest::sha256_of(b""), "x/y", text.as_bytes()).unwrap()
    }
}
