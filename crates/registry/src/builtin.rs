//! The image that is served whatever the upstreams: see [`larder_core::builtin`].

use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use larder_core::Reference;
use larder_core::builtin::{self, Content, HOST, REPOSITORY};
use larder_core::route::query_value;

use crate::metrics::Outcome;
use crate::refusal::Refusal;
use crate::respond::{self, Body};
use crate::service::{Answer, What};

/// Whether a request is for it: `name` as the client wrote it, host included or not.
pub(crate) fn is_meant(name: &str, query: Option<&str>) -> bool {
    match query_value(query, "ns") {
        Some(ns) => ns == HOST,
        None => name.split_once('/').is_some_and(|(host, _)| host == HOST),
    }
}

/// Its answer.
///
/// # Errors
///
/// The image does not have what is asked for.
pub(crate) fn answer(name: &str, what: &What) -> Result<Answer, Refusal> {
    let repository = name.strip_prefix(HOST).and_then(|it| it.strip_prefix('/')).unwrap_or(name);
    let content = match what {
        _ if repository != REPOSITORY => None,
        What::Manifest(Reference::Tag(_)) => Some(builtin::index()),
        What::Manifest(Reference::Digest(digest)) | What::Blob(digest) => builtin::content(digest),
        What::Tags | What::Referrers(_) => None,
    };
    content.map(of).ok_or_else(Refusal::no_such_path)
}

fn of(content: &'static Content) -> Answer {
    let mut response = respond::content_head(&content.digest, Outcome::Hit);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content.media_type));
    headers.insert(CONTENT_LENGTH, HeaderValue::from(content.bytes.len()));
    *response.body_mut() = Body::whole(&content.bytes[..]);
    Answer::new(response, Outcome::Hit)
}
