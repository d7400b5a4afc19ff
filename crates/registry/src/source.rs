//! The bytes of one blob, in order, whatever happens on the way. Whom they come from is for
//! [`crate::course`] to say.
//!
//! A body that breaks off is gone on with from where it stopped, so that whoever reads along notices
//! nothing. With more than one connection the blob is fetched in segments, several at a time; they
//! are still handed out in order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::FutureExt as _;
use larder_core::Digest;
use larder_core::name::Named;
use larder_core::range::ByteRange;
use larder_store::SharedBlob;
use larder_upstream::Error;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, debug};

use crate::course::{Course, Flow};
use crate::peer::Peer;
use crate::upstream::Upstream;

/// How often one body is gone on with after it broke off. Each break costs a request; an upstream
/// that breaks more often will not get to the end of a large layer, and clients should hear so.
const MAX_RESUMES: u32 = 8;

/// The wait before the second attempt to go on; each further one waits twice as long: 25 s in all.
const FIRST_WAIT: Duration = Duration::from_millis(200);

/// How long a reader waits for the next byte before the blob is given up, however it was tried to go
/// on: clients give a silent body up after some minutes, and miss the download slot that it holds.
const MAX_SILENCE: Duration = Duration::from_secs(60);

/// The bytes that one of several connections fetches at a time. Long enough that a round trip of
/// 80 ms between segments costs little, short enough that the first reader is not kept waiting and
/// that segments that came early fit in memory.
const SEGMENT: u64 = 8 << 20;

/// The largest blob that is taken from an upstream that does not say how long it is. The largest
/// layers known are some 50 GB; without a bound a body without end would fill the disk.
const MAX_UNANNOUNCED: u64 = 64 << 30;

/// What is being fetched.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) name: Arc<Named>,
    pub(crate) digest: Digest,
    /// Where all replicas have it, if they do: what is asked first.
    pub(crate) shared: Option<SharedBlob>,
    /// Who is asked before upstream, in this order.
    pub(crate) peers: Arc<[Arc<Peer>]>,
    /// Whether upstream may not be asked.
    pub(crate) is_offline: bool,
    /// Who else waits for it.
    pub(crate) stand_ins: StandIns,
}

/// How many callers are remembered that one fill could be gone on for. Each is as good as another.
const MAX_STAND_INS: usize = 8;

/// The upstream as others ask it who wait for the same blob of the same repository, where each
/// caller's own right counts. Cheap to clone; a fill and its sources have one.
#[derive(Clone, Debug, Default)]
pub(crate) struct StandIns(Arc<Mutex<VecDeque<Arc<Upstream>>>>);

impl StandIns {
    /// Adds the last who came.
    pub(crate) fn add(&self, upstream: &Arc<Upstream>) {
        let mut waiting = self.0.lock();
        if waiting.len() >= MAX_STAND_INS {
            waiting.pop_front();
        }
        waiting.push_back(Arc::clone(upstream));
    }

    /// Who goes on instead of one whom upstream has refused: who came last, as credentials end by age.
    pub(crate) fn instead_of(&self, refused: &Arc<Upstream>) -> Option<Arc<Upstream>> {
        let mut waiting = self.0.lock();
        waiting.retain(|it| !Arc::ptr_eq(it, refused));
        waiting.back().cloned()
    }
}

/// The bytes of a blob, or of a part of it, as they come.
pub(crate) struct Source {
    wanted: Wanted,
    course: Course,
    /// The next byte that will be handed out.
    at: u64,
    /// The first byte that is not wanted; `None` while nobody knows where the blob ends.
    end: Option<u64>,
    /// The length of the whole blob.
    length: Option<u64>,
    /// Bytes of the current body that come before `at`: upstream ignored the range.
    skip: u64,
    body: Option<Flow>,
    /// How many bytes the current body has, if upstream has said it.
    announced: Option<u64>,
    /// An error that was met ahead of time.
    broken: Option<Error>,
    resumes: u32,
    /// Segments that other connections fetch, in order. Empty with one connection.
    ahead: Ahead,
}

#[derive(Default)]
struct Ahead {
    n_connections: usize,
    next: u64,
    end: u64,
    under_way: VecDeque<AbortOnDropHandle<Result<Vec<Bytes>, Error>>>,
    ready: VecDeque<Bytes>,
}

impl Source {
    /// Asks for the blob from byte `start` on, to its end. `alone` is cancelled once nobody but
    /// upstream is asked for it.
    ///
    /// # Errors
    ///
    /// As [`larder_upstream::Client::blob`].
    pub(crate) async fn open(
        wanted: Wanted,
        start: u64,
        alone: CancellationToken,
    ) -> Result<Self, Error> {
        let n_connections = usize::from(wanted.upstream.settings.parallel());
        let course = Course::new(wanted.clone(), alone);
        // Replicas and what they share are near: one connection is as fast as their disks.
        if n_connections < 2 || !course.is_upstreams_turn() {
            return Self::open_one(wanted, course, start, None).await;
        }
        let first = ByteRange { start, last: start.saturating_add(SEGMENT - 1) };
        let mut source = Self::open_one(wanted, course, start, Some(first.last)).await?;
        match source.announced.is_some_and(|announced| announced <= SEGMENT) {
            true => source.fetch_ahead(n_connections - 1),
            // Upstream ignores ranges and is sending all of it.
            false => source.end = source.length,
        }
        Ok(source)
    }

    /// Asks for a part of the blob.
    ///
    /// # Errors
    ///
    /// As [`larder_upstream::Client::blob`].
    pub(crate) async fn open_part(
        wanted: Wanted,
        start: u64,
        last: Option<u64>,
    ) -> Result<Self, Error> {
        let course = Course::new(wanted.clone(), CancellationToken::new());
        Self::open_one(wanted, course, start, last).await
    }

    async fn open_one(
        wanted: Wanted,
        course: Course,
        start: u64,
        last: Option<u64>,
    ) -> Result<Self, Error> {
        let mut source = Self {
            wanted,
            course,
            at: start,
            end: last.map(|last| last.saturating_add(1)),
            length: None,
            skip: 0,
            body: None,
            announced: None,
            broken: None,
            resumes: 0,
            ahead: Ahead::default(),
        };
        source.ask().await?;
        Ok(source)
    }

    /// The length of the whole blob in bytes, if upstream has said it.
    pub(crate) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Takes the length from a manifest, where upstream has not said it.
    ///
    /// # Errors
    ///
    /// Upstream has said another length: it does not have what the manifest means.
    pub(crate) fn expect(&mut self, expected: Option<u64>) -> Result<(), Error> {
        match (self.length, expected) {
            (Some(said), Some(expected)) if said != expected => {
                let text = format!("the blob has {said} bytes where its manifest says {expected}");
                Err(Error::Protocol(text))
            }
            (None, Some(_)) => {
                self.length = expected;
                self.end = expected;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The next bytes; `None` after the last one. Not to be dropped while it waits: what it has
    /// asked of upstream would be asked again.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        if let Some(result) = self.next_ahead().await {
            return Some(result);
        }
        let silent_since = Instant::now();
        loop {
            match self.next_of_body().await {
                Some(Ok(bytes)) => return Some(Ok(bytes)),
                None if self.is_complete() => return self.next_ahead().await,
                None => self.broken = Some(ended_early()),
                Some(Err(error)) => self.broken = Some(error),
            }
            if let Err(error) = self.resume(silent_since).await {
                return Some(Err(error));
            }
        }
    }

    /// The next bytes, if they have come already.
    pub(crate) fn next_ready(&mut self) -> Option<Bytes> {
        if self.broken.is_some() {
            return None;
        }
        match self.next_of_body().now_or_never()? {
            Some(Ok(bytes)) => Some(bytes),
            Some(Err(error)) => {
                self.broken = Some(error);
                None
            }
            None => None,
        }
    }

    /// The next bytes of the current body. Can be dropped while it waits.
    async fn next_of_body(&mut self) -> Option<Result<Bytes, Error>> {
        if let Some(error) = self.broken.take() {
            return Some(Err(error));
        }
        loop {
            if self.end.is_some_and(|end| self.at >= end) {
                self.body = None;
                return None;
            }
            let mut bytes = match self.body.as_mut()?.next().await? {
                Ok(bytes) => bytes,
                Err(error) => return Some(Err(error)),
            };
            let n_skipped = self.skip.min(bytes.len() as u64);
            self.skip -= n_skipped;
            // Neither cut is beyond the length of what it cuts, which fits in memory.
            let _ = bytes.split_to(usize::try_from(n_skipped).unwrap_or(usize::MAX));
            let left = self.end.map_or(u64::MAX, |end| end - self.at);
            bytes.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            if bytes.is_empty() {
                continue;
            }
            self.at += bytes.len() as u64;
            if self.end.is_none() && self.at > MAX_UNANNOUNCED {
                return Some(Err(Error::TooLarge { limit: MAX_UNANNOUNCED }));
            }
            return Some(Ok(bytes));
        }
    }

    fn is_complete(&self) -> bool {
        self.end.is_none_or(|end| self.at >= end)
    }

    /// Asks for the rest, after a wait that grows, until upstream gives it or there is no point.
    async fn resume(&mut self, silent_since: Instant) -> Result<(), Error> {
        if self.body.take().is_some() {
            self.course.broke_off().await;
        }
        loop {
            let error = self.broken.take().unwrap_or_else(ended_early);
            if self.resumes == MAX_RESUMES || !is_worth_resuming(&error) {
                return Err(error);
            }
            let wait = match (&error, self.resumes) {
                (Error::Resting { wait }, _) => *wait,
                (_, 0) => Duration::ZERO,
                (_, resumes) => FIRST_WAIT * 2_u32.pow(resumes - 1),
            };
            if silent_since.elapsed() + wait > MAX_SILENCE {
                return Err(error);
            }
            tokio::time::sleep(wait).await;
            self.resumes += 1;
            let (digest, at) = (&self.wanted.digest, self.at);
            debug!(blob.digest = %digest, %error, "going on with {digest} at byte {at}");
            match self.ask().await {
                Ok(()) => return Ok(()),
                Err(Error::Range) => {
                    let text = format!("the blob ends at byte {at}, before the announced length");
                    return Err(Error::Protocol(text));
                }
                Err(error) => self.broken = Some(error),
            }
        }
    }

    async fn ask(&mut self) -> Result<(), Error> {
        let last = self.end.map(|end| end - 1);
        let is_whole = self.at == 0 && last.is_none();
        let range = (!is_whole).then_some((self.at, last));
        let part = self.course.ask(range).await?;
        if let (Some(known), Some(said)) = (self.length, part.length)
            && known != said
        {
            let text = format!("the blob had {known} bytes and now has {said}");
            return Err(Error::Protocol(text));
        }
        if part.start > self.at {
            return Err(Error::Protocol("the range begins after the byte asked for".to_owned()));
        }
        self.skip = self.at - part.start;
        self.length = self.length.or(part.length);
        self.end = match (self.end, self.length) {
            (Some(end), Some(length)) => Some(end.min(length)),
            (end, length) => end.or(length),
        };
        self.announced = part.remaining;
        self.body = Some(part.flow);
        Ok(())
    }

    // === several connections ===

    /// Has the segments after the current body fetched by `n_connections` more, if the blob is
    /// long enough for that.
    fn fetch_ahead(&mut self, n_connections: usize) {
        if let (Some(end), Some(length)) = (self.end, self.length) {
            self.ahead = Ahead { n_connections, next: end, end: length, ..Ahead::default() };
            self.start_segments();
        }
    }

    fn start_segments(&mut self) {
        let ahead = &mut self.ahead;
        while ahead.under_way.len() < ahead.n_connections && ahead.next < ahead.end {
            let last = (ahead.next + SEGMENT).min(ahead.end) - 1;
            let fetching = fetch_segment(self.wanted.clone(), ahead.next, last);
            ahead.next = last + 1;
            let task: JoinHandle<_> = tokio::spawn(fetching.in_current_span());
            ahead.under_way.push_back(AbortOnDropHandle::new(task));
        }
    }

    /// The next bytes of the segments that were fetched ahead, once the current body is done.
    async fn next_ahead(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            if let Some(bytes) = self.ahead.ready.pop_front() {
                return Some(Ok(bytes));
            }
            let is_done = self.body.is_none() && self.broken.is_none();
            if !is_done {
                return None;
            }
            let segment = self.ahead.under_way.pop_front()?;
            self.start_segments();
            match segment.await {
                Ok(Ok(pieces)) => self.ahead.ready.extend(pieces),
                Ok(Err(error)) => return Some(Err(error)),
                Err(_) => return Some(Err(ended_early())),
            }
        }
    }
}

/// A segment in pieces.
async fn fetch_segment(wanted: Wanted, start: u64, last: u64) -> Result<Vec<Bytes>, Error> {
    let mut source = Source::open_part(wanted, start, Some(last)).await?;
    let mut pieces = Vec::new();
    loop {
        match Box::pin(source.next()).await {
            Some(Ok(bytes)) => pieces.push(bytes),
            Some(Err(error)) => return Err(error),
            None => return Ok(pieces),
        }
    }
}

fn is_worth_resuming(error: &Error) -> bool {
    matches!(error, Error::Unavailable { .. } | Error::TimedOut | Error::Resting { .. })
}

fn ended_early() -> Error {
    Error::Unavailable { doing: "the body ended early".to_owned(), status: None, source: None }
}
