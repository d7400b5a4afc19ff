//! The bytes of a blob for one client, wherever they are: stored, on their way, or upstream.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use larder_core::Digest;
use larder_core::digest::Hasher;
use larder_core::name::Named;
use larder_store::{Blob, Prefix, SharedFile};
use larder_upstream::Error;
use tokio::sync::watch;
use tracing::warn;

use crate::fill::{Phase, Progress};
use crate::metrics::StoreOp;
use crate::service::Registry;
use crate::source::{Source, StandIns, Wanted};
use crate::upstream::Upstream;

/// Why a body was cut off.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// The disk refused.
    #[error("reading a stored blob")]
    Disk(#[from] io::Error),
    /// Upstream did not give what it should.
    #[error("fetching a blob")]
    Upstream(#[from] Error),
    /// The fill ended without a result; the process is ending, most likely.
    #[error("the fill was given up")]
    GivenUp,
}

/// A blob that can be read.
#[derive(Clone)]
pub(crate) enum Content {
    /// It is stored.
    Stored {
        blob: Blob,
        /// How the rest is had if the disk does not give it; `None`: not at all.
        again: Option<Again>,
    },
    /// It is being fetched.
    Filling {
        progress: watch::Receiver<Progress>,
        wanted: Wanted,
        /// Its length, if upstream has said it.
        length: Option<u64>,
    },
}

impl Content {
    /// The length in bytes, if it is known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self {
            Self::Stored { blob, .. } => Some(blob.len),
            Self::Filling { length, .. } => *length,
        }
    }

    /// Reads from byte `start` up to `end`, which is not included; to the end of the blob without.
    pub(crate) fn reader(&self, start: u64, end: Option<u64>) -> Reader {
        match self {
            Self::Stored { blob, again } => {
                let end = end.unwrap_or(blob.len);
                let stored = Stored { file: blob.file.clone(), at: start, end };
                Reader::Stored { stored, again: again.clone().map(|it| (it, blob.digest.clone())) }
            }
            Self::Filling { progress, wanted, length } => Reader::Following(Follower {
                progress: progress.clone(),
                wanted: wanted.clone(),
                at: start,
                end: end.or(*length),
            }),
        }
    }
}

/// Some bytes of a blob, in order.
pub(crate) enum Reader {
    /// From a stored file.
    Stored { stored: Stored, again: Option<(Again, Digest)> },
    /// Along with a fill.
    Following(Follower),
    /// From upstream, ahead of a fill.
    Ahead(Ahead),
    /// From upstream, because the blob cannot be stored.
    Passing(Passing),
}

impl Reader {
    /// The next bytes; `None` after the last one.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        loop {
            let step = match self {
                Self::Stored { stored, again } => match (stored.next().await, again.take()) {
                    (Some(Err(error)), Some((again, digest))) => again.join(stored, digest, &error),
                    (piece, unused) => {
                        *again = unused;
                        return piece;
                    }
                },
                Self::Following(follower) => follower.next().await,
                Self::Ahead(ahead) => ahead.next().await,
                Self::Passing(passing) => return passing.next().await,
            };
            match step {
                Step::Bytes(bytes) => return Some(Ok(bytes)),
                Step::End => return None,
                Step::Fail(error) => return Some(Err(error)),
                Step::Become(reader) => *self = *reader,
            }
        }
    }
}

enum Step {
    Bytes(Bytes),
    End,
    Fail(ReadError),
    /// Go on with another reader.
    Become(Box<Reader>),
}

/// Part of a stored file.
pub(crate) struct Stored {
    file: SharedFile,
    at: u64,
    /// Not included.
    end: u64,
}

impl Stored {
    async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        if self.at >= self.end {
            return None;
        }
        match self.file.read(self.at, self.end - self.at).await {
            Ok(bytes) => {
                self.at += bytes.len() as u64;
                Some(Ok(bytes))
            }
            Err(error) => Some(Err(error.into())),
        }
    }
}

/// Who can have a stored blob fetched again. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Again {
    pub(crate) registry: Arc<Registry>,
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) name: Arc<Named>,
}

impl Again {
    /// Goes on with what the disk did not give: the whole is fetched again, and checked, and takes
    /// the place of what is stored.
    fn join(self, stored: &Stored, digest: Digest, error: &ReadError) -> Step {
        let Self { registry, upstream, name } = self;
        let cause = error as &dyn std::error::Error;
        warn!(blob.digest = %digest, error = cause, "fetching {digest} again");
        registry.metrics.store_error(StoreOp::Read);
        let (shared, peers, is_offline) = (None, Arc::from([]), false);
        let stand_ins = StandIns::default();
        let wanted = Wanted { shared, is_offline, upstream, name, digest, peers, stand_ins };
        let progress = registry.fills.join(wanted.clone()).progress;
        let (at, end) = (stored.at, Some(stored.end));
        Step::Become(Box::new(Reader::Following(Follower { progress, wanted, at, end })))
    }
}

/// Reads along with a fill.
pub(crate) struct Follower {
    progress: watch::Receiver<Progress>,
    wanted: Wanted,
    at: u64,
    /// The first byte that is not wanted; `None` while nobody knows where the blob ends.
    end: Option<u64>,
}

impl Follower {
    async fn next(&mut self) -> Step {
        loop {
            if self.end.is_some_and(|end| self.at >= end) {
                return Step::End;
            }
            let Progress { phase, visible } = self.progress.borrow_and_update().clone();
            match phase {
                Phase::Streaming(opened) if self.at < visible => {
                    return self.read(&opened.file, visible).await;
                }
                Phase::Done(opened) if self.at < visible => {
                    let end = self.end.unwrap_or(visible).min(visible);
                    let stored = Stored { file: opened.file, at: self.at, end };
                    return Step::Become(Box::new(Reader::Stored { stored, again: None }));
                }
                Phase::Opening | Phase::Streaming(_) => {}
                Phase::Done(_) => return Step::End,
                Phase::Unstored { prefix, length } => return self.pass(prefix, length),
                Phase::Failed(error) => return Step::Fail(error.into()),
                Phase::Stopped => return Step::Fail(ReadError::GivenUp),
            }
            if self.progress.changed().await.is_err() {
                return Step::Fail(ReadError::GivenUp);
            }
        }
    }

    async fn read(&mut self, file: &SharedFile, visible: u64) -> Step {
        let end = self.end.unwrap_or(visible).min(visible);
        match file.read(self.at, end - self.at).await {
            Ok(bytes) => {
                self.at += bytes.len() as u64;
                Step::Bytes(bytes)
            }
            Err(error) => Step::Fail(error.into()),
        }
    }

    fn pass(&self, prefix: Option<Arc<Prefix>>, length: Option<u64>) -> Step {
        let end = self.end.or(length);
        let passing = Passing::new(self.wanted.clone(), prefix, self.at, end, length);
        Step::Become(Box::new(Reader::Passing(passing)))
    }
}

/// Reads a part from upstream that the fill has not come to, and joins the fill once it has.
pub(crate) struct Ahead {
    source: Source,
    follower: Follower,
}

impl Ahead {
    /// `source` begins at `start`; `end` is not included.
    pub(crate) fn begin(source: Source, content: &Content, start: u64, end: u64) -> Option<Reader> {
        let Reader::Following(follower) = content.reader(start, Some(end)) else {
            return None;
        };
        Some(Reader::Ahead(Self { source, follower }))
    }

    async fn next(&mut self) -> Step {
        let at = self.follower.at;
        let is_caught_up = {
            let progress = self.follower.progress.borrow();
            let is_readable = matches!(progress.phase, Phase::Streaming(_) | Phase::Done(_));
            is_readable && progress.visible > at
        };
        if is_caught_up {
            let Follower { progress, wanted, at, end } = &self.follower;
            let (progress, wanted) = (progress.clone(), wanted.clone());
            let follower = Follower { progress, wanted, at: *at, end: *end };
            return Step::Become(Box::new(Reader::Following(follower)));
        }
        match self.source.next().await {
            Some(Ok(bytes)) => {
                self.follower.at += bytes.len() as u64;
                Step::Bytes(bytes)
            }
            Some(Err(error)) => Step::Fail(error.into()),
            None => Step::End,
        }
    }
}

/// Reads a blob that cannot be stored: first what was stored of it, then from upstream.
///
/// Where it reads to the end of the blob and knows the hash of all that comes before, it keeps the
/// last piece back until the whole is verified.
pub(crate) struct Passing {
    wanted: Wanted,
    prefix: Option<Arc<Prefix>>,
    at: u64,
    end: Option<u64>,
    source: Option<Source>,
    check: Check,
    kept_back: Option<Bytes>,
}

enum Check {
    /// Hashes what comes from upstream.
    Whole(Hasher),
    /// A part has no digest to be checked against.
    None,
}

impl Passing {
    fn new(
        wanted: Wanted,
        prefix: Option<Arc<Prefix>>,
        at: u64,
        end: Option<u64>,
        length: Option<u64>,
    ) -> Self {
        let stored = prefix.as_ref().map_or(0, |prefix| prefix.len);
        let check = match at <= stored && end == length {
            true => Check::Whole(match &prefix {
                Some(prefix) => prefix.hasher.clone(),
                None => wanted.digest.hasher(),
            }),
            false => Check::None,
        };
        Self { wanted, prefix, at, end, source: None, check, kept_back: None }
    }

    async fn next(&mut self) -> Option<Result<Bytes, ReadError>> {
        if let Some(prefix) = &self.prefix
            && self.at < prefix.len
        {
            let end = self.end.unwrap_or(prefix.len).min(prefix.len);
            let mut stored = Stored { file: prefix.file.clone(), at: self.at, end };
            let piece = stored.next().await;
            self.at = stored.at;
            return piece;
        }
        loop {
            match self.next_of_upstream().await {
                Ok(Some(bytes)) => {
                    if let Some(before) = self.keep_back(bytes) {
                        return Some(Ok(before));
                    }
                }
                Ok(None) => return self.last_piece().map(|piece| piece.map_err(Into::into)),
                Err(error) => return Some(Err(error.into())),
            }
        }
    }

    async fn next_of_upstream(&mut self) -> Result<Option<Bytes>, Error> {
        if self.end.is_some_and(|end| self.at >= end) {
            return Ok(None);
        }
        let source = match &mut self.source {
            Some(source) => source,
            none => {
                let last = self.end.map(|end| end - 1);
                none.insert(Source::open_part(self.wanted.clone(), self.at, last).await?)
            }
        };
        let bytes = source.next().await.transpose()?;
        self.at += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Ok(bytes)
    }

    /// Takes the next piece in; gives the one before it out.
    fn keep_back(&mut self, bytes: Bytes) -> Option<Bytes> {
        match &mut self.check {
            Check::None => Some(bytes),
            Check::Whole(hasher) => {
                hasher.update(&bytes);
                self.kept_back.replace(bytes)
            }
        }
    }

    /// The piece that was kept back, if the whole is what it should be.
    fn last_piece(&mut self) -> Option<Result<Bytes, Error>> {
        let piece = self.kept_back.take()?;
        if let Check::Whole(hasher) = &self.check {
            let (actual, expected) = (hasher.clone().finish(), self.wanted.digest.clone());
            if actual != expected {
                return Some(Err(Error::Digest { expected, actual }));
            }
        }
        Some(Ok(piece))
    }
}
