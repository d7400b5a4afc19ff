//! Blobs as objects of an S3 bucket.
//!
//! A blob's key is `PREFIX/sha256/ab/abcdef…`. Since it is named by its digest, whoever writes it
//! writes the same bytes, and no condition is needed. A large one comes in parts, and is there only
//! when they are put together, which is done when length and digest are right.
//!
//! Every question has a deadline, and one that gets no answer keeps the next ones from being asked
//! for a while ([`super::breaker`]).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{BoxStream, FuturesOrdered};
use futures_util::{StreamExt as _, TryStreamExt as _};
use larder_core::Digest;
use larder_core::digest::Hasher;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::multipart::{MultipartStore as _, PartId};
use object_store::path::Path;
use object_store::signer::Signer as _;
use object_store::{
    Certificate, ClientOptions, GetOptions, GetRange, ObjectStore as _, ObjectStoreExt as _,
    PutPayload, RetryConfig,
};
use tokio::time::timeout;
use url::Url;

use super::breaker::{Breaker, Unanswered};
use crate::file::SharedFile;
use crate::work::with_causes;

/// How long a connection may take.
const CONNECT: Duration = Duration::from_millis(700);

/// How long the head of an answer may take, and a small question: some hundred times the usual. A
/// server that is there and silent for longer is not faster than an upstream.
const ANSWER: Duration = Duration::from_secs(2);

/// How long a body may be silent before the rest is asked of somebody else.
const SILENCE: Duration = Duration::from_secs(3);

/// How long sending one part, or having the parts put together, may take.
const SEND: Duration = Duration::from_secs(60);

/// The bytes of a part, unless the blob is so long that this would be too many parts: S3 takes
/// 10,000. One upload holds two of them in memory.
const PART: u64 = 8 << 20;
const MAX_PARTS: u64 = 9_000;

/// How many parts of one blob are on their way at a time.
const PARTS_AT_ONCE: usize = 2;

/// Which bucket, and where.
#[derive(Clone, Debug, PartialEq)]
pub struct S3Settings {
    /// Where the server is; `None`: Amazon's, in the region.
    pub endpoint: Option<Url>,
    /// The text of a PEM file of authorities that the server may be signed by, besides the system's.
    pub ca: Option<String>,
    /// The bucket, which exists.
    pub bucket: String,
    /// What all keys begin with; may be empty.
    pub prefix: String,
    /// The region that requests are signed for.
    pub region: String,
    /// Whether the bucket is in the path, not in the host.
    pub path_style: bool,
    /// Who we are. `None`: what the environment says, which is keys, a web identity, a container's
    /// identity or an instance's.
    pub keys: Option<S3Keys>,
}

/// Who we are to S3. The secret is not shown.
#[derive(Clone, PartialEq)]
pub struct S3Keys {
    /// What the key is called.
    pub id: String,
    /// The key.
    pub secret: String,
    /// What goes with a key that counts for some time only.
    pub token: Option<String>,
}

impl fmt::Debug for S3Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("S3Keys").field(&self.id).finish()
    }
}

/// Why the bucket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("setting up the S3 client")]
pub struct SetupBucketError(#[from] object_store::Error);

/// What came of asking the bucket.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BucketError {
    /// It has no such object.
    #[error("the bucket does not have it")]
    Missing,
    /// It cannot be asked now.
    #[error("asking the bucket: {0}")]
    Away(String),
    /// What is stored here is not what it is called, or cannot be read.
    #[error("reading what is to be uploaded: {0}")]
    Local(String),
}

/// A part of an object, or all of it, as it comes.
pub(crate) struct Object {
    /// The first byte that comes.
    pub(crate) start: u64,
    /// The bytes of the whole.
    pub(crate) length: u64,
    /// The bytes that come.
    pub(crate) remaining: u64,
    /// They, in order.
    pub(crate) body: BoxStream<'static, Result<Bytes, BucketError>>,
}

/// An object in the list of all.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) digest: Digest,
    pub(crate) changed_at: SystemTime,
}

/// A bucket. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Bucket(Arc<Inner>);

struct Inner {
    s3: AmazonS3,
    prefix: Path,
    breaker: Breaker,
}

impl Bucket {
    /// Asks nobody yet.
    ///
    /// # Errors
    ///
    /// The settings cannot work.
    pub(crate) fn new(settings: &S3Settings) -> Result<Self, SetupBucketError> {
        // Whoever was first is as good: there is one provider in the program.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let mut options = ClientOptions::new()
            .with_allow_http(true)
            .with_connect_timeout(CONNECT)
            // Bodies have deadlines of their own.
            .with_timeout_disabled();
        if let Some(pem) = &settings.ca {
            for authority in Certificate::from_pem_bundle(pem.as_bytes())? {
                options = options.with_root_certificate(authority);
            }
        }
        let builder = match &settings.keys {
            None => AmazonS3Builder::from_env(),
            Some(S3Keys { id, secret, token }) => {
                let keys = AmazonS3Builder::new();
                let keys = keys.with_access_key_id(id).with_secret_access_key(secret);
                match token {
                    Some(token) => keys.with_token(token),
                    None => keys,
                }
            }
        };
        let mut builder = builder
            .with_bucket_name(&settings.bucket)
            .with_region(&settings.region)
            .with_virtual_hosted_style_request(!settings.path_style)
            .with_disable_bulk_delete(true)
            .with_client_options(options)
            // Whoever asks knows better what to do instead.
            .with_retry(RetryConfig { max_retries: 0, ..RetryConfig::default() });
        if let Some(endpoint) = &settings.endpoint {
            builder = builder.with_endpoint(endpoint.as_str().trim_end_matches('/'));
        }
        let (s3, prefix) = (builder.build()?, Path::from(settings.prefix.as_str()));
        Ok(Self(Arc::new(Inner { s3, prefix, breaker: Breaker::new("S3") })))
    }

    /// Whether it answered when it was last asked.
    pub(crate) fn is_up(&self) -> bool {
        self.0.breaker.is_up()
    }

    /// Whether a question would be asked now.
    pub(crate) fn may_be_asked(&self) -> bool {
        self.0.breaker.may_be_asked()
    }

    /// Finds out whether the server is there, by asking for something that is not.
    pub(crate) async fn probe(&self) {
        let path = self.0.prefix.clone().join("probe");
        let options = GetOptions { head: true, ..GetOptions::default() };
        // Whatever it answers.
        let _ = self.ask(ANSWER, self.0.s3.get_opts(&path, options)).await;
    }

    /// Begins to read an object: all of it, or from a byte to another one (included), or to its end.
    pub(crate) async fn get(
        &self,
        digest: &Digest,
        range: Option<(u64, Option<u64>)>,
    ) -> Result<Object, BucketError> {
        let range = range.map(|(start, last)| match last {
            Some(last) => GetRange::Bounded(Range { start, end: last.saturating_add(1) }),
            None => GetRange::Offset(start),
        });
        let (path, options) = (self.path(digest), GetOptions { range, ..GetOptions::default() });
        let answer = self.ask(ANSWER, self.0.s3.get_opts(&path, options)).await?;
        let (length, Range { start, end }) = (answer.meta.size, answer.range.clone());
        let bucket = self.clone();
        let pieces = futures_util::stream::unfold(Some(answer.into_stream()), move |stream| {
            let bucket = bucket.clone();
            async move {
                let mut stream = stream?;
                let broken = match timeout(SILENCE, stream.next()).await {
                    Ok(None) => return None,
                    Ok(Some(Ok(bytes))) => return Some((Ok(bytes), Some(stream))),
                    Ok(Some(Err(error))) => BucketError::Away(error.to_string()),
                    Err(_) => BucketError::Away("the body is silent".to_owned()),
                };
                bucket.0.breaker.broke_off();
                Some((Err(broken), None))
            }
        });
        Ok(Object { start, length, remaining: end.saturating_sub(start), body: pieces.boxed() })
    }

    /// All bytes of an object that is small: of at most `limit` bytes.
    pub(crate) async fn get_small(
        &self,
        digest: &Digest,
        limit: u64,
    ) -> Result<Bytes, BucketError> {
        let mut object = self.get(digest, None).await?;
        if object.length > limit {
            return Err(BucketError::Missing);
        }
        let mut bytes = Vec::new();
        while let Some(piece) = object.body.try_next().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes.into())
    }

    /// An address at which anybody may GET the object for some time.
    pub(crate) async fn url(
        &self,
        digest: &Digest,
        expires_in: Duration,
    ) -> Result<Url, BucketError> {
        let path = self.path(digest);
        self.ask(ANSWER, self.0.s3.signed_url(http::Method::GET, &path, expires_in)).await
    }

    /// Removes an object, if it is there.
    pub(crate) async fn remove(&self, digest: &Digest) -> Result<(), BucketError> {
        let path = self.path(digest);
        match self.ask(ANSWER, self.0.s3.delete(&path)).await {
            Ok(()) | Err(BucketError::Missing) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// All objects, in no order; those whose key is no digest are left out. Ends after an error.
    pub(crate) fn list(&self) -> BoxStream<'static, Result<Entry, BucketError>> {
        let entries = self.0.s3.list(Some(&self.0.prefix));
        let entry = |found: Result<object_store::ObjectMeta, object_store::Error>| match found {
            Ok(meta) => digest_of(&meta.location)
                .map(|digest| Ok(Entry { digest, changed_at: meta.last_modified.into() })),
            Err(error) => Some(Err(BucketError::Away(error.to_string()))),
        };
        entries.filter_map(move |found| std::future::ready(entry(found))).boxed()
    }

    /// Whether an object of `len` bytes comes in parts.
    pub(crate) fn comes_in_parts(len: u64) -> bool {
        len > PART
    }

    /// Stores a small blob: one that does not come in parts.
    pub(crate) async fn put_small(
        &self,
        digest: &Digest,
        file: &SharedFile,
        len: u64,
    ) -> Result<(), BucketError> {
        let pieces = read(file, 0..len).await?;
        let mut hasher = digest.hasher();
        pieces.iter().for_each(|piece| hasher.update(piece));
        if hasher.finish() != *digest {
            return Err(BucketError::Local("its bytes have changed".to_owned()));
        }
        let (path, payload) = (self.path(digest), PutPayload::from_iter(pieces));
        self.ask(SEND, self.0.s3.put(&path, payload)).await.map(drop)
    }

    /// Stores what may not be what it is called.
    #[cfg(test)]
    pub(super) async fn put_unchecked(&self, digest: &Digest, bytes: Bytes) {
        let put = self.0.s3.put(&self.path(digest), bytes.into()).await;
        put.expect("the bucket takes it");
    }

    /// Begins to store a blob in parts; returns what the upload is called.
    pub(crate) async fn begin(&self, digest: &Digest) -> Result<String, BucketError> {
        let path = self.path(digest);
        self.ask(ANSWER, self.0.s3.create_multipart(&path)).await
    }

    /// The parts of a blob of `len` bytes, none of which has been sent, for an upload that was begun.
    pub(crate) fn parts<'f>(
        &self,
        digest: &Digest,
        upload: &str,
        file: &'f SharedFile,
        len: u64,
    ) -> Parts<'f> {
        Parts {
            bucket: self.clone(),
            path: self.path(digest),
            upload: upload.to_owned(),
            expected: digest.clone(),
            hasher: digest.hasher(),
            file,
            len,
            at: 0,
            sending: FuturesOrdered::new(),
            sent: Vec::new(),
        }
    }

    /// Gives an upload up, and what has come of it. One that is not there is no error.
    pub(crate) async fn abort(&self, digest: &Digest, upload: &String) -> Result<(), BucketError> {
        let path = self.path(digest);
        match self.ask(ANSWER, self.0.s3.abort_multipart(&path, upload)).await {
            Ok(()) | Err(BucketError::Missing) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn path(&self, digest: &Digest) -> Path {
        let (algorithm, hex) = (digest.algorithm(), digest.hex());
        self.0.prefix.clone().join(algorithm).join(&hex[..2]).join(hex)
    }

    async fn ask<T>(
        &self,
        within: Duration,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BucketError> {
        use object_store::Error;
        let away = |error: &Error| {
            let is_answer = matches!(
                error,
                Error::NotFound { .. }
                    | Error::PermissionDenied { .. }
                    | Error::Unauthenticated { .. }
                    | Error::Precondition { .. }
            );
            (!is_answer).then(|| with_causes(error))
        };
        self.0.breaker.ask(within, work, away).await.map_err(|error| match error {
            Unanswered::Failed(Error::NotFound { .. }) => BucketError::Missing,
            error => BucketError::Away(error.to_string()),
        })
    }
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Bucket").field(&self.0.s3.to_string()).finish()
    }
}

/// A blob on its way into the bucket, part by part.
///
/// After an error nothing is stored; the upload is to be given up by [`Bucket::abort`].
pub(crate) struct Parts<'f> {
    bucket: Bucket,
    path: Path,
    upload: String,
    expected: Digest,
    hasher: Hasher,
    file: &'f SharedFile,
    len: u64,
    at: u64,
    sending: FuturesOrdered<BoxFuture<'static, Result<PartId, BucketError>>>,
    sent: Vec<PartId>,
}

impl Parts<'_> {
    /// Whether all have been sent, or are being sent.
    pub(crate) fn is_over(&self) -> bool {
        self.at >= self.len
    }

    /// Sends the next part: waits until one of those before it has come, and not for this one.
    pub(crate) async fn send_next(&mut self) -> Result<(), BucketError> {
        if self.sending.len() == PARTS_AT_ONCE
            && let Some(sent) = self.sending.try_next().await?
        {
            self.sent.push(sent);
        }
        let end = (self.at + part_size(self.len)).min(self.len);
        let pieces = read(self.file, self.at..end).await?;
        pieces.iter().for_each(|piece| self.hasher.update(piece));
        self.at = end;
        let index = self.sent.len() + self.sending.len();
        let (bucket, path, upload) = (self.bucket.clone(), self.path.clone(), self.upload.clone());
        let send = async move {
            let send = bucket.0.s3.put_part(&path, &upload, index, PutPayload::from_iter(pieces));
            bucket.ask(SEND, send).await
        };
        self.sending.push_back(Box::pin(send));
        Ok(())
    }

    /// Has the parts put together, if they are what they should be.
    pub(crate) async fn complete(mut self) -> Result<(), BucketError> {
        while let Some(sent) = self.sending.try_next().await? {
            self.sent.push(sent);
        }
        if self.hasher.finish() != self.expected {
            return Err(BucketError::Local("its bytes have changed".to_owned()));
        }
        let Self { bucket, path, upload, sent, .. } = self;
        let complete = bucket.0.s3.complete_multipart(&path, &upload, sent);
        bucket.ask(SEND, complete).await.map(drop)
    }
}

/// The bytes of each part but the last.
fn part_size(len: u64) -> u64 {
    len.div_ceil(MAX_PARTS).next_multiple_of(1 << 20).max(PART)
}

/// The digest that a key ends with.
fn digest_of(path: &Path) -> Option<Digest> {
    let mut parts: Vec<_> = path.parts().collect();
    let (hex, _, algorithm) = (parts.pop()?, parts.pop()?, parts.pop()?);
    format!("{}:{}", algorithm.as_ref(), hex.as_ref()).parse().ok()
}

/// Some bytes of a file, in pieces.
async fn read(file: &SharedFile, range: Range<u64>) -> Result<Vec<Bytes>, BucketError> {
    let (mut at, mut pieces) = (range.start, Vec::new());
    while at < range.end {
        let piece = file.read(at, range.end - at).await;
        let piece = piece.map_err(|error| BucketError::Local(error.to_string()))?;
        at += piece.len() as u64;
        pieces.push(piece);
    }
    Ok(pieces)
}
