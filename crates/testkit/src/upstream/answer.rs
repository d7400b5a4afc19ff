//! What a well-behaved registry answers, but for the faults that change the content itself.
//!
//! Source: OCI distribution-spec 1.1.

use bytes::Bytes;
use larder_core::range::RangeHeader;
use larder_core::route::query_value;
use larder_core::{Digest, media};
use serde_json::{Value, json};

use super::Shared;
use super::fault::Fault;
use super::record::{Listener, Request};
use crate::{Content, random};

/// An answer that is yet to be sent.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
}

impl Answer {
    pub(super) fn json(status: u16, value: &Value) -> Self {
        let headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        Self { status, headers, body: Bytes::from(value.to_string()) }
    }

    pub(super) fn error(status: u16, code: &str) -> Self {
        let message = format!("testkit answers {status}");
        Self::json(status, &json!({ "errors": [{ "code": code, "message": message }] }))
    }

    pub(super) fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

/// The answer to `request`, before anything goes wrong on the wire.
pub(super) fn answer(shared: &Shared, request: &Request, faults: &[Fault]) -> Answer {
    for fault in faults {
        match fault {
            Fault::Status(status) => return Answer::error(*status, "TESTKIT"),
            Fault::TooManyRequests { retry_after } => {
                let refusal = Answer::error(429, "TOOMANYREQUESTS");
                return refusal.with("retry-after", retry_after.to_string());
            }
            _ => {}
        }
    }
    match request.listener {
        Listener::Registry => answer_as_registry(shared, request, faults),
        Listener::Storage => answer_as_storage(shared, request, faults),
    }
}

fn answer_as_storage(shared: &Shared, request: &Request, faults: &[Fault]) -> Answer {
    // As S3 does when a signed address is asked with a second credential.
    if request.header("authorization").is_some() {
        return Answer::error(400, "ONE_CREDENTIAL_TOO_MANY");
    }
    let digest = request.path.rsplit('/').next().unwrap_or_default();
    match shared.shelf.lock().stored(digest) {
        Some(content) if request.query.as_deref() == Some(SIGNATURE) => {
            answer_content(request, &content, faults)
        }
        _ => Answer::error(403, "DENIED"),
    }
}

const SIGNATURE: &str = "signature=testkit";

fn answer_as_registry(shared: &Shared, request: &Request, faults: &[Fault]) -> Answer {
    let login = shared.login.lock().clone();
    if let (Some(login), "/token") = (&login, request.path.as_str()) {
        return login.give_token(request, &mut shared.tokens.lock());
    }
    let place = Place::parse(&request.path);
    if let Some(login) = login {
        let url = format!("http://{}", shared.registry);
        let repository = place.as_ref().map(|place| place.repository);
        if let Err(refusal) = login.check(request, repository, &shared.tokens.lock(), &url) {
            return refusal;
        }
    }
    if !matches!(request.method.as_str(), "GET" | "HEAD") {
        return Answer::error(405, "UNSUPPORTED");
    }
    match place {
        Some(place) => place.answer(shared, request, faults),
        None if matches!(request.path.as_str(), "/v2" | "/v2/") => Answer::json(200, &json!({})),
        None => Answer::error(404, "NAME_UNKNOWN"),
    }
}

/// `/v2/<repository>/<kind>/<last>`
struct Place<'a> {
    repository: &'a str,
    kind: &'a str,
    last: &'a str,
}

impl<'a> Place<'a> {
    fn parse(path: &'a str) -> Option<Self> {
        let mut parts = path.strip_prefix("/v2/")?.rsplitn(3, '/');
        let (last, kind, repository) = (parts.next()?, parts.next()?, parts.next()?);
        Some(Self { repository, kind, last })
    }

    fn answer(&self, shared: &Shared, request: &Request, faults: &[Fault]) -> Answer {
        let shelf = shared.shelf.lock();
        match self.kind {
            "manifests" => match shelf.manifest(self.repository, self.last) {
                Some(content) => answer_content(request, &content, faults),
                None => Answer::error(404, "MANIFEST_UNKNOWN"),
            },
            "blobs" => match shelf.blob(self.repository, self.last) {
                Some(content) if faults.iter().any(|fault| matches!(fault, Fault::Redirect)) => {
                    redirect(shared, &content.digest)
                }
                Some(content) => answer_content(request, &content, faults),
                None => Answer::error(404, "BLOB_UNKNOWN"),
            },
            "tags" => match shelf.tags(self.repository) {
                Some(tags) => answer_tags(self.repository, request, &tags),
                None => Answer::error(404, "NAME_UNKNOWN"),
            },
            "referrers" => match shelf.manifests(self.repository) {
                Some(manifests) => answer_referrers(self, request, &manifests),
                None => Answer::error(404, "NAME_UNKNOWN"),
            },
            _ => Answer::error(404, "NAME_UNKNOWN"),
        }
    }
}

fn redirect(shared: &Shared, digest: &Digest) -> Answer {
    let location = format!("http://{}/storage/blobs/{digest}?{SIGNATURE}", shared.storage);
    Answer { status: 307, headers: Vec::new(), body: Bytes::new() }.with("location", location)
}

fn answer_content(request: &Request, content: &Content, faults: &[Fault]) -> Answer {
    let bytes = spoil(&content.bytes, faults);
    let etag = format!("\"{}\"", content.digest);
    let media_type = match request.path.contains("/blobs/") {
        true => "application/octet-stream",
        false => &content.media_type,
    };
    let answer = Answer { status: 200, headers: Vec::new(), body: bytes.clone() }
        .with("content-type", media_type)
        .with("docker-content-digest", content.digest.to_string())
        .with("etag", &etag)
        .with("accept-ranges", "bytes");
    if request.header("if-none-match") == Some(&etag) {
        return Answer { status: 304, body: Bytes::new(), ..answer };
    }
    let ignores = |fault: &Fault| matches!(fault, Fault::IgnoreRange);
    match request.header("range") {
        Some(range) if !faults.iter().any(ignores) => answer_range(range, &bytes, answer, faults),
        _ => answer,
    }
}

/// The content with what the faults do to it.
fn spoil(content: &Bytes, faults: &[Fault]) -> Bytes {
    let mut bytes = content.clone();
    for fault in faults {
        match fault {
            Fault::Corrupt(offset) => {
                let mut changed = bytes.to_vec();
                changed[*offset as usize] ^= 0xff;
                bytes = Bytes::from(changed);
            }
            Fault::Append(n) => {
                let more = random::bytes(*n, *n as usize);
                bytes = Bytes::from([&bytes[..], &more[..]].concat());
            }
            _ => {}
        }
    }
    bytes
}

/// Answers one range; several, or none that is understood, are answered with everything.
fn answer_range(range: &str, bytes: &Bytes, whole: Answer, faults: &[Fault]) -> Answer {
    let RangeHeader::Ranges(ranges) = RangeHeader::parse(range) else {
        return whole;
    };
    let [range] = ranges[..] else {
        return whole;
    };
    let length = bytes.len();
    let Some(range) = range.within(length as u64) else {
        let refusal = Answer::error(416, "RANGE_INVALID");
        return refusal.with("content-range", format!("bytes */{length}"));
    };
    let (mut start, n) = (range.start as usize, range.len() as usize);
    if faults.iter().any(|fault| matches!(fault, Fault::WrongRange)) {
        start = 0;
    }
    let label = format!("bytes {start}-{}/{length}", start + n - 1);
    let part = Answer { status: 206, body: bytes.slice(start..start + n), ..whole };
    part.with("content-range", label)
}

/// As Docker Hub and distribution page: `n` tags after `last`, with a `Link` when there are more.
fn answer_tags(repository: &str, request: &Request, tags: &[String]) -> Answer {
    let value = |key: &str| query_value(request.query.as_deref(), key);
    let last = value("last").unwrap_or_default();
    let n = value("n").and_then(|n| n.parse().ok()).unwrap_or(usize::MAX);
    let rest: Vec<&String> = tags.iter().filter(|tag| tag.as_str() > last.as_ref()).collect();
    let page = &rest[..n.min(rest.len())];
    let answer = Answer::json(200, &json!({ "name": repository, "tags": page }));
    match page.last() {
        Some(last) if page.len() < rest.len() => {
            let next = format!("</v2/{repository}/tags/list?n={n}&last={last}>; rel=\"next\"");
            answer.with("link", next)
        }
        _ => answer,
    }
}

/// How many referrers are on one page: few, so that clients have to ask for more.
const REFERRERS: usize = 4;

/// Those after `last` that are about `place`, with a `Link` when there are more.
fn answer_referrers(place: &Place<'_>, request: &Request, manifests: &[Content]) -> Answer {
    let subject = place.last;
    let referrers = manifests.iter().filter_map(|manifest| {
        let fields: Value = serde_json::from_slice(&manifest.bytes).ok()?;
        let is_about = fields["subject"]["digest"].as_str() == Some(subject);
        is_about.then(|| {
            json!({
                "mediaType": manifest.media_type,
                "digest": manifest.digest,
                "size": manifest.bytes.len(),
                "artifactType": fields["artifactType"],
            })
        })
    });
    let referrers: Vec<Value> = referrers.collect();
    let last = query_value(request.query.as_deref(), "last");
    let is_last = |it: &Value| it["digest"].as_str() == last.as_deref();
    let begin = referrers.iter().position(is_last).map_or(0, |position| position + 1);
    let page = &referrers[begin..];
    let (page, has_more) = (&page[..page.len().min(REFERRERS)], page.len() > REFERRERS);
    let index = json!({ "schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": page });
    let answer = Answer { headers: Vec::new(), ..Answer::json(200, &index) }
        .with("content-type", media::OCI_INDEX);
    match page.last().and_then(|last| last["digest"].as_str()) {
        Some(last) if has_more => {
            let path = format!("/v2/{}/referrers/{subject}", place.repository);
            answer.with("link", format!("<{path}?last={last}>; rel=\"next\""))
        }
        _ => answer,
    }
}
