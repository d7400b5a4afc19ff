//! What an upstream can be asked.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_RANGE, HeaderMap, HeaderValue, LINK, RANGE};
use http::{Method, StatusCode};
use larder_core::manifest::MAX_MANIFEST;
use larder_core::media::{self, Accept};
use larder_core::range::parse_content_range;
use larder_core::referrer::{self, Referrer};
use larder_core::{Digest, Reference, Repository};
use serde::Deserialize;

use crate::Observer;
use crate::body::Body;
use crate::caller::Caller;
use crate::error::{Error, SetupError};
use crate::exchange::{Exchange, Question, Who};
use crate::header;
use crate::link;
use crate::settings::Settings;
use crate::transport::{Answer, is_web_page};

/// The largest page of tags that is read, in bytes: 100,000 tags of 128 bytes, and some.
const MAX_TAGS: usize = 16 << 20;

/// The most pages of referrers that are read, and the most referrers: an image has a few dozen, and
/// a page of 4 MiB has room for thousands.
const MAX_REFERRER_PAGES: usize = 64;
const MAX_REFERRERS: usize = 10_000;

/// One upstream. Clones share connections and tokens.
///
/// Dropping the future of a request ends the request. The time that one may take is bounded by the
/// settings: each of at most 11 hops of each try has the read timeout.
#[derive(Clone)]
pub struct Client {
    exchange: Arc<Exchange>,
    who: Who,
}

/// What a `HEAD` of a manifest tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestHead {
    /// `Docker-Content-Digest`; not every registry sends it, and it is only the upstream's word.
    pub digest: Option<Digest>,
    /// `Content-Type` without parameters, in lower case.
    pub media_type: Option<String>,
    /// `Content-Length`, in bytes.
    pub length: Option<u64>,
}

/// A manifest, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawManifest {
    /// At most [`MAX_MANIFEST`] bytes.
    pub bytes: Bytes,
    /// `Content-Type` without parameters, in lower case.
    pub media_type: Option<String>,
    /// `Docker-Content-Digest`, which the bytes were found to have.
    pub digest: Option<Digest>,
}

/// A blob, or a part of it, under way.
#[derive(Debug)]
pub struct Blob {
    /// Which byte of the blob the body begins with. 0, whatever range was asked for, if the
    /// upstream does not do ranges.
    pub start: u64,
    /// The length of the whole blob in bytes, as the upstream says.
    pub length: Option<u64>,
    /// How many bytes the body has, as the upstream says. It may be less than was asked for; the
    /// body fails if it is not what comes.
    pub remaining: Option<u64>,
    /// The bytes. They are not verified.
    pub body: Body,
}

/// One page of a repository's tags.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagPage {
    /// In the upstream's order, as it writes them.
    pub tags: Vec<String>,
    /// What to give as `last` for the next page; `None`: this was the last one. Mostly a tag, but
    /// not for every registry.
    pub next: Option<String>,
}

impl Client {
    /// A client with connections, tokens and credentials of its own. Nothing is asked yet, but the
    /// files that `settings` name are read, blocking.
    ///
    /// # Errors
    ///
    /// The settings cannot work; [`SetupError`] says which.
    pub fn new(settings: Settings, observer: Arc<dyn Observer>) -> Result<Self, SetupError> {
        Ok(Self { exchange: Arc::new(Exchange::new(settings, observer)?), who: Who::Ourselves })
    }

    /// The same upstream, asked with the caller's credential instead of ours. Nobody's requests are
    /// answered as everybody's are: with a token, where the token service gives one to everybody.
    #[must_use]
    pub fn on_behalf_of(&self, caller: &Caller) -> Self {
        let who = match caller.expose() {
            Some(header) => Who::Shown(Some(header.clone())),
            None => Who::Nobody,
        };
        Self { exchange: Arc::clone(&self.exchange), who }
    }

    /// Asks whether this is a registry that lets the caller in with just what is shown: nobody is
    /// given a token for it, so that they hear what to bring.
    ///
    /// # Errors
    ///
    /// As [`Self::ping`], and `CallerRefused`.
    pub async fn ping_for(&self, caller: &Caller) -> Result<(), Error> {
        let who = Who::Shown(caller.expose().cloned());
        Self { exchange: Arc::clone(&self.exchange), who }.ping().await
    }

    /// Asks what a manifest is called now, without its bytes.
    ///
    /// # Errors
    ///
    /// Each of [`Error`] but `Digest`, `TooLarge` and `Range`.
    pub async fn head_manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<ManifestHead, Error> {
        let question = manifest_question(Method::HEAD, repository, reference, accept);
        let answer = self.whole(&question).await?;
        refuse_web_page(&answer)?;
        Ok(ManifestHead {
            digest: header::digest(&answer.headers),
            media_type: header::media_type(&answer.headers),
            length: header::length(&answer.headers),
        })
    }

    /// Fetches a manifest.
    ///
    /// # Errors
    ///
    /// Each of [`Error`] but `Range`. `Digest` if the bytes have another digest than was asked for,
    /// or, asked for by tag, another than the answer announces.
    pub async fn manifest(
        &self,
        repository: &Repository,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<RawManifest, Error> {
        let question = manifest_question(Method::GET, repository, reference, accept);
        let answer = self.whole(&question).await?;
        refuse_web_page(&answer)?;
        let announced = header::digest(&answer.headers);
        let media_type = header::media_type(&answer.headers);
        let bytes = answer.read(MAX_MANIFEST).await?;
        if let Reference::Digest(digest) = reference {
            verify(digest, &bytes)?;
        }
        if let Some(digest) = &announced {
            verify(digest, &bytes)?;
        }
        Ok(RawManifest { bytes, media_type, digest: announced })
    }

    /// Asks whether a blob exists, and how many bytes it has. `None`: it exists, and the upstream
    /// does not say how long it is.
    ///
    /// # Errors
    ///
    /// Each of [`Error`] but `Digest`, `TooLarge` and `Range`; `NotFound` if there is no such blob.
    pub async fn head_blob(
        &self,
        repository: &Repository,
        digest: &Digest,
    ) -> Result<Option<u64>, Error> {
        let question = blob_question(Method::HEAD, repository, digest);
        let answer = self.whole(&question).await?;
        Ok(header::length(&answer.headers))
    }

    /// Begins to fetch a blob: all of it, or from byte `start` to byte `last` (included) or the
    /// end. Upstreams may send the whole of it nevertheless; [`Blob::start`] tells.
    ///
    /// # Errors
    ///
    /// Each of [`Error`] but `Digest` and `TooLarge`; `Range` if the blob has no byte in the range.
    pub async fn blob(
        &self,
        repository: &Repository,
        digest: &Digest,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<Blob, Error> {
        let mut question = blob_question(Method::GET, repository, digest);
        question.headers = range_headers(range)?;
        blob_of(self.exchange.ask(&question, &self.who).await?, range)
    }

    /// Lists tags: `n` of them at most (registries may send fewer), those after `last`, which is
    /// the [`TagPage::next`] of the page before or any tag.
    ///
    /// # Errors
    ///
    /// Each of [`Error`] but `Digest` and `Range`.
    pub async fn tags(
        &self,
        repository: &Repository,
        n: Option<u32>,
        last: Option<&str>,
    ) -> Result<TagPage, Error> {
        let path = format!("v2/{}/tags/list", repository.as_str());
        let mut question = question(Method::GET, Some(repository), path);
        question.query = link::query(n, last);
        let answer = self.whole(&question).await?;
        refuse_web_page(&answer)?;
        let next = link::next_page(header::lines(&answer.headers, &LINK), &answer.url);
        let who = answer.who();
        let text = answer.read(MAX_TAGS).await?;
        let list: TagList = serde_json::from_slice(&text)
            .map_err(|_| Error::Protocol(format!("{who} sent what is no list of tags")))?;
        Ok(TagPage { tags: list.tags.unwrap_or_default(), next })
    }

    /// Lists what refers to `subject`, all pages of it. `None`: this registry has no referrers API;
    /// what it knows may be listed under a tag, [`larder_core::referrer::fallback_tag`].
    ///
    /// # Errors
    ///
    /// Each of [`Error`] but `Digest`, `NotFound` and `Range`. `TooLarge` also for more than 10,000
    /// referrers.
    pub async fn referrers(
        &self,
        repository: &Repository,
        subject: &Digest,
    ) -> Result<Option<Vec<Referrer>>, Error> {
        let path = format!("v2/{}/referrers/{subject}", repository.as_str());
        let mut question = question(Method::GET, Some(repository), path);
        question.headers.insert(ACCEPT, HeaderValue::from_static(media::OCI_INDEX));
        let mut referrers = Vec::new();
        for n_page in 0..MAX_REFERRER_PAGES {
            let (page, next) = match self.referrer_page(&question).await {
                Ok(page) => page,
                Err(error) if n_page == 0 && says_no_such_api(&error) => return Ok(None),
                Err(error) => return Err(error),
            };
            referrers.extend(page);
            if referrers.len() > MAX_REFERRERS {
                return Err(Error::TooLarge { limit: MAX_REFERRERS as u64 });
            }
            let Some(next) = next else { break };
            let query = link::query(None, Some(&next));
            if query == question.query {
                break;
            }
            question.query = query;
        }
        Ok(Some(referrers))
    }

    async fn referrer_page(
        &self,
        question: &Question,
    ) -> Result<(Vec<Referrer>, Option<String>), Error> {
        let answer = self.whole(question).await?;
        refuse_web_page(&answer)?;
        let next = link::next_page(header::lines(&answer.headers, &LINK), &answer.url);
        let who = answer.who();
        let bytes = answer.read(MAX_MANIFEST).await?;
        let page = referrer::parse_list(&bytes)
            .map_err(|_| Error::Protocol(format!("{who} sent what is no list of referrers")))?;
        Ok((page, next))
    }

    /// Asks whether this is a registry that lets us in.
    ///
    /// # Errors
    ///
    /// Each of [`Error`] but those about an image; `Protocol` also if there is no registry.
    pub async fn ping(&self) -> Result<(), Error> {
        match self.whole(&question(Method::GET, None, "v2/".to_owned())).await {
            Ok(answer) => refuse_web_page(&answer),
            Err(Error::NotFound) => {
                Err(Error::Protocol("there is no registry at this address".to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    /// The answer to a question that names no range.
    async fn whole(&self, question: &Question) -> Result<Answer, Error> {
        let answer = self.exchange.ask(question, &self.who).await?;
        match answer.status {
            StatusCode::OK => Ok(answer),
            _ => Err(unasked_range(&answer)),
        }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Client").field(&self.exchange.host()).finish()
    }
}

#[derive(Deserialize)]
struct TagList {
    /// Some registries write `null` for none.
    #[serde(default)]
    tags: Option<Vec<String>>,
}

fn question(method: Method, repository: Option<&Repository>, path: String) -> Question {
    let repository = repository.cloned();
    Question { method, repository, path, query: None, headers: HeaderMap::new() }
}

fn manifest_question(
    method: Method,
    repository: &Repository,
    reference: &Reference,
    accept: &Accept,
) -> Question {
    let path = format!("v2/{}/manifests/{reference}", repository.as_str());
    let mut question = question(method, Some(repository), path);
    // Without the header anything is acceptable, which is the best that can be made of a list that
    // is empty or that no header can carry.
    let types = Some(accept.to_string()).filter(|types| !types.is_empty());
    if let Some(value) = types.and_then(|types| HeaderValue::from_str(&types).ok()) {
        question.headers.insert(ACCEPT, value);
    }
    question
}

fn blob_question(method: Method, repository: &Repository, digest: &Digest) -> Question {
    question(method, Some(repository), format!("v2/{}/blobs/{digest}", repository.as_str()))
}

/// What asks for the bytes from the first to the second of `range` (included), or to the end.
pub(crate) fn range_headers(range: Option<(u64, Option<u64>)>) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    if let Some((start, last)) = range {
        if last.is_some_and(|last| last < start) {
            return Err(Error::Range);
        }
        headers.insert(RANGE, range_header(start, last));
    }
    Ok(headers)
}

/// The blob that a 200 or 206 brings, of which `range` was asked for.
pub(crate) fn blob_of(answer: Answer, range: Option<(u64, Option<u64>)>) -> Result<Blob, Error> {
    if answer.status == StatusCode::PARTIAL_CONTENT {
        return partial(answer, range);
    }
    let length = header::length(&answer.headers);
    Ok(Blob { start: 0, length, remaining: length, body: answer.into_body(length) })
}

fn range_header(start: u64, last: Option<u64>) -> HeaderValue {
    let last = last.map(|last| last.to_string()).unwrap_or_default();
    HeaderValue::from_str(&format!("bytes={start}-{last}"))
        .expect("digits and a dash are what a header may have")
}

/// The blob of a 206, if it is what was asked for.
fn partial(answer: Answer, range: Option<(u64, Option<u64>)>) -> Result<Blob, Error> {
    let Some((start, last)) = range else {
        return Err(unasked_range(&answer));
    };
    let refused = |problem: &str| Error::Protocol(format!("{} {problem}", answer.who()));
    let sent = header::text(&answer.headers, &CONTENT_RANGE).and_then(parse_content_range);
    let (sent, length) = sent.ok_or_else(|| refused("sent a part without saying which"))?;
    if sent.start != start || last.is_some_and(|last| sent.last > last) {
        return Err(refused("sent another part than was asked for"));
    }
    let n_bytes = sent.len();
    if header::length(&answer.headers).is_some_and(|length| length != n_bytes) {
        return Err(refused("sent a part of another length than it says"));
    }
    let remaining = Some(n_bytes);
    Ok(Blob { start, length, remaining, body: answer.into_body(remaining) })
}

fn unasked_range(answer: &Answer) -> Error {
    Error::Protocol(format!("{} sent a part, and all was asked for", answer.who()))
}

/// Whether a registry has answered a question about referrers as those do that do not know it: by
/// 404, by 405 or 501, or by a page for people to sign in at.
fn says_no_such_api(error: &Error) -> bool {
    match error {
        Error::NotFound | Error::Protocol(_) => true,
        Error::Unavailable { status, .. } => *status == Some(501),
        _ => false,
    }
}

fn refuse_web_page(answer: &Answer) -> Result<(), Error> {
    if is_web_page(&answer.headers) {
        return Err(Error::Protocol(format!("{} sent a web page", answer.who())));
    }
    Ok(())
}

fn verify(expected: &Digest, bytes: &[u8]) -> Result<(), Error> {
    let mut hasher = expected.hasher();
    hasher.update(bytes);
    let actual = hasher.finish();
    if actual != *expected {
        return Err(Error::Digest { expected: expected.clone(), actual });
    }
    Ok(())
}
