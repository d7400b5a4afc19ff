//! Blobs: whole, or some ranges of them; stored, on their way, or not even begun.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use http::StatusCode;
use http::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue, IF_RANGE, RANGE};
use larder_core::Digest;
use larder_core::range::{ByteRange, RangeHeader, RangeSpec};
use larder_store::SharedBlob;
use larder_upstream::Error;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::content::{Again, Ahead, Content, Reader};
use crate::fill::{Phase, Progress};
use crate::manifests::{PATIENCE, not_modified};
use crate::metrics::Outcome;
use crate::refusal::{Asking, Refusal};
use crate::respond::{self, Body, Pieces};
use crate::service::{Answer, Ask, Registry};
use crate::source::{Source, StandIns, Wanted};

/// Blobs up to this many bytes are verified before their first byte is sent, so that what is wrong
/// with them can still be told. Configurations of images are a few KiB.
const SMALL: u64 = 1 << 20;

/// A range that begins this far beyond what has come is fetched by itself meanwhile: at 10 MB/s,
/// waiting for the fill to come there would take a tenth of a second.
const FAR: u64 = 1 << 20;

/// The same for a range without an end, which waits longer. Clients that fetch a blob in pieces ask
/// so, several at a time, and hang up when they have their piece; fetching each by itself would cost
/// upstream the blob twice. containerd 2 has 3 pieces under way, of 8 to 16 MiB by most advice.
const FAR_OPEN_ENDED: u64 = 64 << 20;

/// How long a client that is sent to the bucket has until it asks there. Runtimes do so at once, and
/// may ask for the rest of a blob that broke off at the same address.
const REDIRECT: Duration = Duration::from_secs(15 * 60);

/// How long a replica waits here for a fill that reads from another replica itself, which is dying
/// or believes something else about who is there; then it asks upstream.
const HANDOVER: Duration = Duration::from_secs(1);

/// How long a replica waits for upstream's first byte: longer than clients, or it would ask upstream
/// itself for what is only slow; and less than it would wait for us.
const PATIENCE_OF_PEERS: Duration = Duration::from_secs(60);

impl Registry {
    /// Answers a request for a blob.
    pub(crate) async fn blob(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        digest: &Digest,
    ) -> Result<Answer, Refusal> {
        let is_member = self.is_member(ask, digest).await;
        if let Some(blob) = self.found(self.store.blob(digest).await)
            && (is_member || self.confirm_blob(ask, digest).await?.is_some())
        {
            if respond::has_already(ask.headers, digest) {
                return Ok(not_modified(digest, Outcome::Hit));
            }
            let again = (!self.offline).then(|| Again {
                registry: Arc::clone(self),
                upstream: Arc::clone(&ask.upstream),
                name: Arc::clone(&ask.name),
            });
            return serve(ask, digest, &Content::Stored { blob, again }, Outcome::Hit);
        }
        let shared = self.shared_blob(ask, digest, is_member).await?;
        let is_member = is_member || shared.is_some();
        if self.offline && shared.is_none() {
            return Err(Refusal::offline(Asking::Blob(&ask.name, digest)));
        }
        if self.absent.has(&ask.name, digest) && shared.is_none() {
            return Err(Refusal::unknown(Asking::Blob(&ask.name, digest)));
        }
        match &shared {
            Some(shared) if ask.is_head => {
                let response = respond::blob_head(digest, Some(shared.len), Outcome::Hit);
                return Ok(Answer::new(response, Outcome::Hit));
            }
            Some(shared) if self.redirects && !ask.is_from_peer => {
                // Where there is nothing to sign it with, it is served as without.
                if let Ok(url) = shared.url(REDIRECT).await {
                    return Ok(Answer::new(respond::redirect(digest, &url), Outcome::Hit));
                }
            }
            _ if ask.is_head => return self.blob_head(ask, digest).await,
            _ => {}
        }
        let joined = self.fills.join(self.wanted(ask, digest, shared.as_ref()));
        if ask.is_from_peer && timeout(HANDOVER, joined.alone.cancelled()).await.is_err() {
            return Err(Refusal::not_the_owner());
        }
        // What somebody else's repository is being filled for may still not be ours.
        if joined.name != ask.name && !is_member {
            self.confirm_blob(ask, digest).await?;
        }
        // Boxed, so that those who find what is stored do not carry along what it takes.
        let wanted = self.wanted(ask, digest, shared.as_ref());
        Box::pin(self.read_along(ask, &wanted, joined.progress)).await
    }

    /// The blob that all replicas share, if this repository may serve it.
    pub(crate) async fn shared_blob(
        &self,
        ask: &Ask<'_>,
        digest: &Digest,
        is_member: bool,
    ) -> Result<Option<SharedBlob>, Refusal> {
        let Some(shared) = self.store.shared() else { return Ok(None) };
        let Some(blob) = shared.blob(digest).await else { return Ok(None) };
        if !is_member && self.confirm_blob(ask, digest).await?.is_none() {
            return Ok(None);
        }
        Ok(Some(blob))
    }

    pub(crate) fn wanted(
        &self,
        ask: &Ask<'_>,
        digest: &Digest,
        shared: Option<&SharedBlob>,
    ) -> Wanted {
        Wanted {
            shared: shared.cloned(),
            upstream: Arc::clone(&ask.upstream),
            name: Arc::clone(&ask.name),
            digest: digest.clone(),
            is_offline: self.offline,
            stand_ins: StandIns::default(),
            peers: match ask.is_from_peer || self.offline {
                true => Arc::new([]),
                false => self.peers.before_upstream(digest),
            },
        }
    }

    /// Makes sure that upstream has a blob in this repository, and says its length if upstream
    /// does. `Ok(None)`: nobody may be asked.
    async fn confirm_blob(
        &self,
        ask: &Ask<'_>,
        digest: &Digest,
    ) -> Result<Option<Option<u64>>, Refusal> {
        if self.offline {
            return Ok(None);
        }
        let head = ask.upstream.client.head_blob(&ask.name.repository, digest);
        let length = match timeout(PATIENCE, head).await {
            Ok(length) => length,
            Err(_) => Err(Error::TimedOut),
        };
        self.note(&ask.upstream, &ask.name, length.as_ref().err());
        let length = length.map_err(|error| {
            self.absent.note(&ask.name, digest, &error);
            Refusal::of_upstream(&error, Asking::Blob(&ask.name, digest))
        })?;
        self.recorded(self.store.add_member(&ask.name, digest).await);
        Ok(Some(length))
    }

    /// Answers a HEAD for a blob that is not stored.
    async fn blob_head(&self, ask: &Ask<'_>, digest: &Digest) -> Result<Answer, Refusal> {
        let length = self.confirm_blob(ask, digest).await?.flatten();
        let response = respond::blob_head(digest, length, Outcome::Pass);
        Ok(Answer::new(response, Outcome::Pass))
    }

    /// Answers from a fill.
    async fn read_along(
        &self,
        ask: &Ask<'_>,
        wanted: &Wanted,
        mut progress: watch::Receiver<Progress>,
    ) -> Result<Answer, Refusal> {
        let digest = &wanted.digest;
        // The replicas have it, whichever does.
        let outcome = if wanted.shared.is_some() { Outcome::Hit } else { Outcome::Miss };
        let visible = progress.borrow().visible;
        if let Some((start, last)) = far_range(ask.headers, digest, visible) {
            let part = Source::open_part(wanted.clone(), start, last);
            let (opened, part) = tokio::join!(self.opened(ask, digest, &mut progress), part);
            let content = filling(wanted, progress, opened?);
            if let Ok(source) = part
                && let Some(answer) = serve_ahead(digest, &content, source, (start, last), outcome)
            {
                return Ok(answer);
            }
            return serve(ask, digest, &content, outcome);
        }
        let length = self.opened(ask, digest, &mut progress).await?;
        let content = filling(wanted, progress, length);
        serve(ask, digest, &content, outcome)
    }

    /// Waits until there is a byte to send; for a small blob, until it is verified. What fails before
    /// can still be told by a status, and a runtime that is told goes on to the upstream itself.
    /// Returns the blob's length, if that is known.
    async fn opened(
        &self,
        ask: &Ask<'_>,
        digest: &Digest,
        progress: &mut watch::Receiver<Progress>,
    ) -> Result<Option<u64>, Refusal> {
        let is_telling = |progress: &Progress| match &progress.phase {
            Phase::Opening => false,
            Phase::Streaming(opened) => {
                progress.visible > 0 && opened.length.is_none_or(|length| length > SMALL)
            }
            _ => true,
        };
        let patience = if ask.is_from_peer { PATIENCE_OF_PEERS } else { PATIENCE };
        let phase = match timeout(patience, progress.wait_for(is_telling)).await {
            Ok(Ok(progress)) => progress.phase.clone(),
            Ok(Err(_)) => return Err(Refusal::internal()),
            Err(_) => {
                ask.upstream.standing.failed();
                return Err(Refusal::too_slow(&ask.name));
            }
        };
        match phase {
            Phase::Streaming(opened) | Phase::Done(opened) => Ok(opened.length),
            Phase::Unstored { length: Some(length), .. } => Ok(Some(length)),
            Phase::Unstored { length: None, .. } => {
                Ok(self.confirm_blob(ask, digest).await?.flatten())
            }
            Phase::Failed(error) => {
                self.note(&ask.upstream, &ask.name, Some(&error));
                self.absent.note(&ask.name, digest, &error);
                Err(Refusal::of_upstream(&error, Asking::Blob(&ask.name, digest)))
            }
            Phase::Opening | Phase::Stopped => Err(Refusal::internal()),
        }
    }
}

fn filling(wanted: &Wanted, progress: watch::Receiver<Progress>, length: Option<u64>) -> Content {
    Content::Filling { progress, wanted: wanted.clone(), length }
}

/// The one range that a request asks for, if it begins far beyond what has come.
///
/// One without an end is most likely abandoned: containerd asks for all that is left and takes a few
/// megabytes of it. What a fill brings soon is waited for instead.
fn far_range(headers: &HeaderMap, digest: &Digest, visible: u64) -> Option<(u64, Option<u64>)> {
    let RangeHeader::Ranges(specs) = asked_ranges(headers, digest) else {
        return None;
    };
    let (start, last, far) = match specs[..] {
        [RangeSpec::Closed(start, last)] => (start, Some(last), FAR),
        [RangeSpec::From(start)] => (start, None, FAR_OPEN_ENDED),
        _ => return None,
    };
    (start >= visible.saturating_add(far)).then_some((start, last))
}

/// What a request asks for of content with that digest.
fn asked_ranges(headers: &HeaderMap, digest: &Digest) -> RangeHeader {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let Some(range) = text(RANGE) else {
        return RangeHeader::Ignored;
    };
    // Content of another name, or by date: the client has nothing that this is a part of.
    match text(IF_RANGE) {
        Some(tag) if !respond::is_etag_of(tag, digest) => RangeHeader::Ignored,
        _ => RangeHeader::parse(range),
    }
}

/// Answers with what was asked for of content whose bytes can be read.
fn serve(
    ask: &Ask<'_>,
    digest: &Digest,
    content: &Content,
    outcome: Outcome,
) -> Result<Answer, Refusal> {
    let ranges = match (asked_ranges(ask.headers, digest), content.length()) {
        _ if ask.is_head => return Ok(serve_whole(digest, content, outcome)),
        (RangeHeader::TooMany, _) => return Err(Refusal::too_many_ranges()),
        // Without a length there is nothing to say in `Content-Range`.
        (RangeHeader::Ignored, _) | (_, None) => {
            return Ok(serve_whole(digest, content, outcome));
        }
        (RangeHeader::Ranges(specs), Some(length)) => {
            let ranges = specs.into_iter().filter_map(|spec| spec.within(length));
            (ranges.collect::<Vec<_>>(), length)
        }
    };
    match ranges {
        (ranges, length) if ranges.is_empty() => Err(Refusal::range(length)),
        (ranges, length) if ranges.len() == 1 => {
            let range = ranges[0];
            let reader = content.reader(range.start, Some(range.last + 1));
            Ok(serve_part(digest, reader, range, length, outcome))
        }
        (ranges, length) => Ok(serve_parts(digest, content, &ranges, length, outcome)),
    }
}

fn serve_whole(digest: &Digest, content: &Content, outcome: Outcome) -> Answer {
    let mut response = respond::blob_head(digest, content.length(), outcome);
    *response.body_mut() = Body::pieces(pieces(content.reader(0, None)));
    Answer::new(response, outcome)
}

fn serve_part(
    digest: &Digest,
    reader: Reader,
    range: ByteRange,
    length: u64,
    outcome: Outcome,
) -> Answer {
    let mut response = respond::blob_head(digest, Some(range.len()), outcome);
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let value = respond::header_value(content_range(range, length));
    response.headers_mut().insert(CONTENT_RANGE, value);
    *response.body_mut() = Body::pieces(pieces(reader));
    Answer::new(response, outcome)
}

/// Answers with a part that upstream sends while the fill is behind.
fn serve_ahead(
    digest: &Digest,
    content: &Content,
    source: Source,
    (start, last): (u64, Option<u64>),
    outcome: Outcome,
) -> Option<Answer> {
    let length = content.length()?;
    let last = last.unwrap_or(u64::MAX).min(length.checked_sub(1)?);
    let range = (start <= last).then_some(ByteRange { start, last })?;
    let reader = Ahead::begin(source, content, start, last + 1)?;
    Some(serve_part(digest, reader, range, length, outcome))
}

/// Answers with several parts: one for each range, in the order asked, as clients that sent them
/// count on.
///
/// Source: RFC 9110, section 14.6, "Media Type multipart/byteranges".
fn serve_parts(
    digest: &Digest,
    content: &Content,
    ranges: &[ByteRange],
    length: u64,
    outcome: Outcome,
) -> Answer {
    // Content that contains its own digest cannot be made.
    let boundary = digest.hex();
    let part_head = |range: &ByteRange| {
        format!(
            "\r\n--{boundary}\r\nContent-Type: application/octet-stream\r\nContent-Range: {}\r\n\r\n",
            content_range(*range, length)
        )
    };
    let end = format!("\r\n--{boundary}--\r\n");
    let parts: Vec<(Bytes, ByteRange)> =
        ranges.iter().map(|range| (Bytes::from(part_head(range)), *range)).collect();
    let total = parts.iter().map(|(head, range)| head.len() as u64 + range.len()).sum::<u64>()
        + end.len() as u64;
    let content = content.clone();
    let parts = stream::iter(parts).flat_map(move |(head, range)| {
        let reader = content.reader(range.start, Some(range.last + 1));
        stream::once(async { Ok(head) }).chain(pieces(reader))
    });
    let all = parts.chain(stream::once(async { Ok(Bytes::from(end)) }));

    let mut response = respond::blob_head(digest, Some(total), outcome);
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let media_type = format!("multipart/byteranges; boundary={boundary}");
    response.headers_mut().insert(CONTENT_TYPE, respond::header_value(media_type));
    *response.body_mut() = Body::pieces(Box::pin(all));
    Answer::new(response, outcome)
}

fn content_range(range: ByteRange, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start, range.last)
}

fn pieces(reader: Reader) -> Pieces {
    let reader = Box::new(reader);
    Box::pin(stream::unfold(reader, |mut reader| async {
        let piece = reader.next().await?;
        Some((piece, reader))
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_single_range_far_ahead_is_fetched_by_itself() {
        let far = |range: &str, visible| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, range.parse().unwrap());
            far_range(&headers, &Digest::sha256_of(b""), visible)
        };
        assert_eq!(far("bytes=2000000-2000009", 0), Some((2_000_000, Some(2_000_009))));
        assert_eq!(far("bytes=2000000-2000009", 1_500_000), None);
        assert_eq!(far("bytes=70000000-", 0), Some((70_000_000, None)));
        assert_eq!(far("bytes=70000000-", 10_000_000), None);
        assert_eq!(far("bytes=0-", 0), None);
        assert_eq!(far("bytes=-5", 0), None);
        assert_eq!(far("bytes=2000000-2000009,3000000-3000001", 0), None);
    }

    #[test]
    fn a_part_of_other_content_is_not_asked_for() {
        let digest = Digest::sha256_of(b"");
        let asked = |if_range: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(RANGE, HeaderValue::from_static("bytes=0-1"));
            headers.insert(IF_RANGE, if_range.parse().unwrap());
            asked_ranges(&headers, &digest)
        };
        assert!(matches!(asked(&format!("\"{digest}\"")), RangeHeader::Ranges(_)));
        assert_eq!(asked("\"something else\""), RangeHeader::Ignored);
        assert_eq!(asked("Sat, 21 Nov 2026 00:00:00 GMT"), RangeHeader::Ignored);
    }
}
