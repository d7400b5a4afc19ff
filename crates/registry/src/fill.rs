//! One fetch of one blob into the store, from upstream or the replica that owns it, and those who
//! read along.
//!
//! ```text
//!                     ┌─ Opening ─┐ upstream's head, the beginning that was kept
//! fill (a task) ──────┤           ▼
//!                     │  Streaming: visible grows ──▶ followers read the staging file up to it
//!                     │           │
//!                     └───────────┼──▶ Done      renamed, recorded: now the last byte is visible
//!                                 ├──▶ Unstored  the disk refused: followers go on upstream
//!                                 └──▶ Failed    upstream's fault: followers' bodies are aborted
//! ```
//!
//! The last byte that has come is kept back until the blob is verified and recorded, so nobody can
//! have all of a blob that is wrong, or that the next request would fetch again.

use std::sync::Arc;

use bytes::Bytes;
use larder_store::{CommitError, Prefix, SharedFile, Staging, Store, WriteError};
use larder_upstream::Error;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::metrics::{Metrics, StoreOp};
use crate::source::{Source, Wanted};

/// The most that is written at once, and the most that waits while it is written. One fill holds
/// twice this at most.
const BATCH: usize = 1 << 20;

/// The same for what is written first, which whoever waits for a first byte waits for: what came with
/// the head, and no more.
const FIRST_BATCH: usize = 1;

/// A fill that nobody waits for goes on if no more than this is left to fetch.
const MAX_UNWANTED: u64 = 1 << 30;

/// How far a fill has come.
#[derive(Clone, Debug)]
pub(crate) struct Progress {
    pub(crate) phase: Phase,
    /// How many bytes may be read.
    pub(crate) visible: u64,
}

/// What a fill is at.
#[derive(Clone, Debug)]
pub(crate) enum Phase {
    /// Upstream has not answered yet.
    Opening,
    /// Bytes are coming.
    Streaming(Opened),
    /// All bytes are there and are what they should be.
    Done(Opened),
    /// The bytes cannot be stored. Who still wants them has to ask upstream.
    Unstored {
        /// What was stored before; `None` if nothing was.
        prefix: Option<Arc<Prefix>>,
        /// The length of the blob, if upstream has said it.
        length: Option<u64>,
    },
    /// Upstream did not give what it should.
    Failed(Error),
    /// The process is ending.
    Stopped,
}

/// What is known once upstream has answered.
#[derive(Clone, Debug)]
pub(crate) struct Opened {
    pub(crate) file: SharedFile,
    /// The length of the blob, if upstream has said it.
    pub(crate) length: Option<u64>,
}

/// What a fill needs.
pub(crate) struct Job {
    pub(crate) wanted: Wanted,
    /// The length that a manifest gives the blob.
    pub(crate) expected: Option<u64>,
    pub(crate) store: Store,
    pub(crate) metrics: Metrics,
    pub(crate) stopping: CancellationToken,
    /// Cancelled once no other replica is asked any more, or the fill has ended.
    pub(crate) alone: CancellationToken,
    pub(crate) progress: Arc<watch::Sender<Progress>>,
}

/// Why a fill ended before its blob was stored.
enum Interrupted {
    /// Upstream gave up or was given up; what came before is good.
    Upstream(Error, Box<Staging>),
    /// The disk refused bytes.
    Write(WriteError),
    /// The whole blob was refused. It had so many bytes.
    Commit(CommitError, u64),
    /// Nobody waits, and much is left; or the process is ending.
    Abandoned(Box<Staging>),
}

impl Job {
    /// Fetches the blob. `leave` is asked when nobody waits any more: it takes the fill off the map
    /// unless somebody has joined, and says whether it did.
    pub(crate) async fn run(self, leave: impl Fn() -> bool) {
        let _ended = self.alone.clone().drop_guard();
        let phase = match self.stage().await {
            Ok(staging) => self.fetch(staging, leave).await,
            Err(phase) => phase,
        };
        self.progress.send_modify(|progress| {
            if let Phase::Done(Opened { length: Some(length), .. }) = &phase {
                progress.visible = *length;
            }
            progress.phase = phase;
        });
    }

    async fn fetch(&self, staging: Staging, leave: impl Fn() -> bool) -> Phase {
        let (staging, mut source) = match self.open(staging).await {
            Ok(opened) => opened,
            Err(phase) => return phase,
        };
        if let Err(error) = source.expect(self.expected) {
            return self.corrupt(error);
        }
        let length = source.length();
        let opened = Opened { file: staging.reader(), length };
        self.progress.send_modify(|progress| {
            progress.phase = Phase::Streaming(opened.clone());
            progress.visible = staging.len().saturating_sub(1);
        });
        match self.stream(staging, source, leave).await {
            Ok(length) => Phase::Done(Opened { length: Some(length), ..opened }),
            Err(interrupted) => self.interrupted(interrupted, opened).await,
        }
    }

    /// Asks upstream for what is not staged yet.
    async fn open(&self, mut staging: Staging) -> Result<(Staging, Source), Phase> {
        loop {
            let opening = Source::open(self.wanted.clone(), staging.len(), self.alone.clone());
            let opened = tokio::select! {
                opened = opening => opened,
                () = self.stopping.cancelled() => {
                    self.park(staging).await;
                    return Err(Phase::Stopped);
                }
            };
            match opened {
                Ok(source) => return Ok((staging, source)),
                // Upstream has nothing after the beginning that was kept, so that is no beginning
                // of what upstream has.
                Err(Error::Range) if staging.len() > 0 => {
                    drop(staging);
                    staging = self.stage().await?;
                }
                Err(error) => {
                    self.park(staging).await;
                    return Err(Phase::Failed(error));
                }
            }
        }
    }

    async fn stage(&self) -> Result<Staging, Phase> {
        self.store.stage(&self.wanted.digest).await.map_err(|error| {
            self.metrics.store_error(StoreOp::Write);
            self.warn("not storing", &error);
            Phase::Unstored { prefix: None, length: None }
        })
    }

    /// Writes what comes until it ends, and commits it. Returns the length.
    ///
    /// One batch is written and hashed while the next one arrives.
    async fn stream(
        &self,
        mut staging: Staging,
        mut source: Source,
        leave: impl Fn() -> bool,
    ) -> Result<u64, Interrupted> {
        let length = source.length();
        let (mut batch, mut most) = (Vec::new(), FIRST_BATCH);
        loop {
            let gathering = async {
                tokio::select! {
                    gathered = gather(&mut source, most) => Some(gathered),
                    () = self.stopping.cancelled() => None,
                }
            };
            let (written, gathered) = tokio::join!(self.write(staging, batch), gathering);
            staging = written.map_err(Interrupted::Write)?;
            batch = match gathered {
                Some(Some(Ok(batch))) => batch,
                Some(Some(Err(error))) => {
                    return Err(Interrupted::Upstream(error, Box::new(staging)));
                }
                Some(None) => break,
                None => return Err(Interrupted::Abandoned(Box::new(staging))),
            };
            most = BATCH;
            let left = length.map_or(u64::MAX, |length| length.saturating_sub(staging.len()));
            if left > MAX_UNWANTED && self.progress.receiver_count() == 0 && leave() {
                return Err(Interrupted::Abandoned(Box::new(staging)));
            }
        }
        let came = staging.len();
        let committed = staging.commit(length, &self.wanted.name).await;
        if committed.is_ok() {
            self.metrics.storing.went_well();
        }
        committed.map(|blob| blob.len).map_err(|error| Interrupted::Commit(error, came))
    }

    /// Writes a batch and lets followers read it.
    async fn write(&self, staging: Staging, batch: Vec<Bytes>) -> Result<Staging, WriteError> {
        if batch.is_empty() {
            return Ok(staging);
        }
        let staging = staging.write(batch).await?;
        let visible = staging.len().saturating_sub(1);
        self.progress.send_modify(|progress| progress.visible = visible);
        Ok(staging)
    }

    async fn interrupted(&self, interrupted: Interrupted, opened: Opened) -> Phase {
        match interrupted {
            Interrupted::Upstream(error, staging) => {
                self.warn("giving up the fill of", &error);
                // After another error what has come is in doubt, too.
                let is_good = matches!(
                    error,
                    Error::Unavailable { .. } | Error::TimedOut | Error::CallerRefused { .. }
                );
                if is_good {
                    self.park(*staging).await;
                }
                Phase::Failed(error)
            }
            Interrupted::Write(error) => {
                self.metrics.store_error(StoreOp::Write);
                self.warn("not storing", &error);
                Phase::Unstored { prefix: Some(error.prefix.into()), length: opened.length }
            }
            Interrupted::Commit(CommitError::Digest { expected, actual }, _) => {
                // Some of it came from the bucket, and would come again.
                if let Some(shared) = &self.wanted.shared {
                    shared.forget().await;
                }
                self.corrupt(Error::Digest { expected, actual })
            }
            Interrupted::Commit(CommitError::Length { expected, actual }, _) => {
                let text = format!("{actual} bytes came where {expected} were announced");
                self.corrupt(Error::Protocol(text))
            }
            Interrupted::Commit(error, came) => {
                self.metrics.store_error(StoreOp::Record);
                self.warn("not storing", &error);
                Phase::Done(Opened { length: Some(came), ..opened })
            }
            Interrupted::Abandoned(staging) => {
                let digest = &self.wanted.digest;
                info!(blob.digest = %digest, "nobody waits for {digest}, keeping its beginning");
                self.park(*staging).await;
                Phase::Stopped
            }
        }
    }

    /// Keeps what has come for the next fill.
    async fn park(&self, staging: Staging) {
        if let Err(error) = staging.park().await {
            self.metrics.store_error(StoreOp::Write);
            self.warn("not keeping the beginning of", &error);
        }
    }

    fn corrupt(&self, error: Error) -> Phase {
        self.metrics.corrupt.inc();
        self.warn("discarding", &error);
        Phase::Failed(error)
    }

    fn warn(&self, what: &str, error: &(dyn std::error::Error + 'static)) {
        let Wanted { digest, name, .. } = &self.wanted;
        warn!(blob.digest = %digest, image.repository = %name, error, "{what} {digest} of {name}");
    }
}

/// The next bytes, at least one piece and about `most` at most; what has come already is taken
/// along. `None` after the last byte.
async fn gather(source: &mut Source, most: usize) -> Option<Result<Vec<Bytes>, Error>> {
    let first = match source.next().await? {
        Ok(first) => first,
        Err(error) => return Some(Err(error)),
    };
    let mut len = first.len();
    let mut batch = vec![first];
    while len < most
        && let Some(next) = source.next_ready()
    {
        len += next.len();
        batch.push(next);
    }
    Some(Ok(batch))
}
