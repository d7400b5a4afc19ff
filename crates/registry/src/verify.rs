//! Reading everything that is stored again: when somebody asks for it, and all the time, slowly.
//!
//! What is bad is out of the store at once ([`Store::verify`]). It is fetched again when it is next
//! asked for, or here, from a repository that it is a member of.

use std::collections::HashSet;
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use larder_api_types::verify::{Bad, Fault, MAX_LISTED, Repair, State, Verification};
use larder_core::Digest;
use larder_core::name::Named;
use larder_store::{OpenError, Pace, Rebuilt, Settings, Store, StoreError, Unverified, Verdict};
use parking_lot::Mutex;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::fill::Phase;
use crate::metrics::{Metrics, StoreOp};
use crate::service::Registry;
use crate::source::{StandIns, Wanted};

/// How fast a verification reads that somebody waits for: a terabyte in three hours, and a third of
/// what a disk with plates gives.
const VERIFY_PACE: Pace = Pace::per_second(NonZeroU64::new(100 << 20).expect("not 0"));

/// How fast the scrub reads: enough for 40 TB in 30 days, and too little for anybody to notice.
const SCRUB_PACE: Pace = Pace::per_second(NonZeroU64::new(16 << 20).expect("not 0"));

/// How many blobs are looked up at once.
const BATCH: u32 = 256;

/// How long the scrub waits when nothing is due.
const SCRUB_PAUSE: Duration = Duration::from_secs(300);

/// How many repositories a bad blob is asked of, one after the other. Where none of them has it any
/// more, further ones are hardly different.
const MAX_REPOSITORIES: u32 = 8;

/// The one verification of a running server, and its scrub.
pub(crate) struct Verifier {
    now: Mutex<Option<Verification>>,
    /// Ends the one that is under way.
    cancel: Mutex<CancellationToken>,
    /// Held while a blob is read: one at a time, whoever asks.
    reading: tokio::sync::Mutex<()>,
    stopping: CancellationToken,
    tasks: TaskTracker,
}

/// One is under way already.
#[derive(Debug)]
pub(crate) struct UnderWay;

impl Verifier {
    pub(crate) fn new() -> Self {
        let stopping = CancellationToken::new();
        Self {
            now: Mutex::default(),
            cancel: Mutex::new(stopping.child_token()),
            reading: tokio::sync::Mutex::default(),
            stopping,
            tasks: TaskTracker::new(),
        }
    }

    /// How far the verification is, or what the last one found, without the first `after` bad blobs.
    pub(crate) fn tell(&self, after: usize) -> Option<Verification> {
        let now = self.now.lock();
        let it = now.as_ref()?;
        let bad = it.bad.get(after..).unwrap_or_default().to_vec();
        Some(Verification { bad, failure: it.failure.clone(), ..*it })
    }

    /// Ends the verification that is under way, if there is one.
    pub(crate) fn cancel(&self) {
        self.cancel.lock().cancel();
    }

    /// Ends everything. Nothing is lost: the scrub goes on where it was.
    pub(crate) async fn close(&self) {
        self.stopping.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn update(&self, change: impl FnOnce(&mut Verification)) {
        if let Some(now) = self.now.lock().as_mut() {
            change(now);
        }
    }
}

impl Registry {
    /// Begins to verify everything.
    pub(crate) async fn start_verifying(
        self: &Arc<Self>,
        repair: bool,
    ) -> Result<Result<Verification, UnderWay>, StoreError> {
        let (total_blobs, total_bytes) = self.store.count().await?;
        let cancel = self.verifier.stopping.child_token();
        let begun = {
            let mut now = self.verifier.now.lock();
            if now.as_ref().is_some_and(|it| it.state == State::Running) {
                return Ok(Err(UnderWay));
            }
            let id = now.as_ref().map_or(1, |it| it.id + 1);
            let begun = begun(id, repair, total_blobs, total_bytes);
            *now = Some(begun.clone());
            *self.verifier.cancel.lock() = cancel.clone();
            begun
        };
        let registry = Arc::clone(self);
        self.verifier.tasks.spawn(async move {
            let ended = tokio::select! {
                ended = registry.verify_all(repair) => ended.map(|()| State::Done),
                () = cancel.cancelled() => Ok(State::Cancelled),
            };
            registry.verifier.update(|it| {
                it.ended_at = Some(SystemTime::now());
                it.state = ended.unwrap_or_else(|error| {
                    let error = &error as &dyn std::error::Error;
                    error!(error, "verifying what is stored");
                    it.failure = Some("the store cannot be asked; see larder's log".to_owned());
                    State::Failed
                });
                let (blobs, bad, repaired) = (it.blobs, it.n_bad, it.n_repaired);
                info!("verified {blobs} blobs: {bad} were bad, {repaired} were fetched again");
            });
        });
        Ok(Ok(begun))
    }

    async fn verify_all(self: &Arc<Self>, repair: bool) -> Result<(), StoreError> {
        let mut place = 0;
        loop {
            let batch = self.store.stored_after(place, BATCH).await?;
            let Some(last) = batch.last() else { return Ok(()) };
            place = last.place;
            for blob in batch {
                let verdict = self.verify_one(&blob, VERIFY_PACE).await;
                self.verifier.update(|it| note(it, &blob, verdict.as_ref().ok().copied()));
                if let (Ok(Verdict::Bad(_)), true) = (verdict, repair) {
                    let repaired = self.repair(&blob).await;
                    self.verifier.update(|it| note_repair(it, &blob.digest, repaired));
                }
            }
        }
    }

    /// Reads one blob again, and counts it if it is bad.
    async fn verify_one(&self, blob: &Unverified, pace: Pace) -> Result<Verdict, StoreError> {
        let _one = self.verifier.reading.lock().await;
        let verdict = self.store.verify(blob, pace).await;
        count(&self.metrics, &verdict);
        verdict
    }

    /// Fetches a blob again that is not stored any more, from one of the repositories that it is a
    /// member of. Says why it could not.
    async fn repair(self: &Arc<Self>, blob: &Unverified) -> Result<(), String> {
        if self.offline {
            return Err("`offline` is set: no upstream may be asked".to_owned());
        }
        // A client may have been faster.
        if let Ok(Some(_)) = self.store.blob_record(&blob.digest).await {
            return Ok(());
        }
        let names = self.store.repositories_of(&blob.digest, MAX_REPOSITORIES).await;
        let names = names.map_err(|error| error.to_string())?;
        let mut why = "no repository is known that has it".to_owned();
        for name in names {
            match self.fetch_again(&Arc::new(name), blob).await {
                Ok(()) => return Ok(()),
                Err(reason) => why = reason,
            }
        }
        warn!(blob.digest = %blob.digest, "{} could not be fetched again: {why}", blob.digest);
        Err(why)
    }

    async fn fetch_again(
        self: &Arc<Self>,
        name: &Arc<Named>,
        blob: &Unverified,
    ) -> Result<(), String> {
        let upstream = match self.upstreams.of(name) {
            Some(Ok(upstream)) => upstream,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err(format!("{name} is not served any more")),
        };
        let digest = blob.digest.clone();
        if blob.is_manifest {
            let fetched = self.fetch_by_digest(name, &upstream, &digest).result().await;
            let manifest = fetched.map_err(|_| "larder is stopping".to_owned())?;
            let manifest = manifest.map_err(|error| format!("{name}: {error}"))?;
            let unstored = || format!("{name}: it could not be stored; see larder's log");
            return manifest.is_stored().then_some(()).ok_or_else(unstored);
        }
        // From upstream, which is the one that surely has it right.
        let wanted = Wanted {
            upstream,
            name: Arc::clone(name),
            digest,
            shared: None,
            peers: Arc::new([]),
            is_offline: false,
            stand_ins: StandIns::default(),
        };
        let mut progress = self.fills.join(wanted).progress;
        // A fill has bounds of its own.
        let ended = progress
            .wait_for(|progress| !matches!(progress.phase, Phase::Opening | Phase::Streaming(_)));
        match ended.await.map(|progress| progress.phase.clone()) {
            Ok(Phase::Done(_)) => Ok(()),
            Ok(Phase::Failed(error)) => Err(format!("{name}: {error}")),
            Ok(Phase::Unstored { .. }) => {
                Err(format!("{name}: it could not be stored; see larder's log"))
            }
            _ => Err("larder is stopping".to_owned()),
        }
    }

    /// Begins to read every blob once in `period`, until [`Verifier::close`].
    pub(crate) fn start_scrubbing(self: &Arc<Self>, period: Duration) {
        let (registry, stopping) = (Arc::clone(self), self.verifier.stopping.clone());
        self.verifier.tasks.spawn(async move {
            tokio::select! {
                () = registry.scrub(period) => {}
                () = stopping.cancelled() => {}
            }
        });
    }

    async fn scrub(&self, period: Duration) {
        loop {
            let due = SystemTime::now().checked_sub(period).unwrap_or(SystemTime::UNIX_EPOCH);
            if let Err(error) = self.scrub_due(due).await {
                warn!(error = &error as &dyn std::error::Error, "looking for blobs to verify");
            }
            tokio::time::sleep(SCRUB_PAUSE).await;
        }
    }

    /// Reads what was last verified before `due`, each blob once.
    async fn scrub_due(&self, due: SystemTime) -> Result<(), StoreError> {
        let mut round = Round { due, unread: HashSet::new() };
        loop {
            let batch = round.next(&self.store).await?;
            if batch.is_empty() {
                return Ok(());
            }
            for blob in batch {
                if let Err(error) = self.verify_one(&blob, SCRUB_PACE).await {
                    let (digest, error) = (&blob.digest, &error as &dyn std::error::Error);
                    warn!(blob.digest = %digest, error, "verifying {digest}");
                    round.unread.insert(blob.place);
                }
            }
        }
    }
}

/// One round of the scrub.
struct Round {
    /// What was last verified before this is to be read.
    due: SystemTime,
    /// The places of those that could not be read. They stay due, and are left out until the next
    /// round, so that they keep nobody else waiting.
    unread: HashSet<i64>,
}

/// After so many failures it is the disk, and not some blobs: a round ends.
const MAX_UNREAD: usize = 1000;

impl Round {
    /// The blobs to read next; none at the end of the round.
    async fn next(&self, store: &Store) -> Result<Vec<Unverified>, StoreError> {
        if self.unread.len() >= MAX_UNREAD {
            return Ok(Vec::new());
        }
        let n_unread = u32::try_from(self.unread.len()).unwrap_or(u32::MAX);
        let batch = store.unverified_since(self.due, BATCH.saturating_add(n_unread)).await?;
        Ok(batch.into_iter().filter(|it| !self.unread.contains(&it.place)).collect())
    }
}

fn count(metrics: &Metrics, verdict: &Result<Verdict, StoreError>) {
    match verdict {
        Ok(Verdict::Right | Verdict::Gone) => {}
        Ok(Verdict::Bad(_)) => {
            metrics.corrupt.inc();
        }
        Err(_) => metrics.store_error(StoreOp::Read),
    }
}

fn begun(id: u64, repair: bool, total_blobs: u64, total_bytes: u64) -> Verification {
    Verification {
        id,
        state: State::Running,
        repair,
        started_at: SystemTime::now(),
        ended_at: None,
        blobs: 0,
        total_blobs,
        bytes: 0,
        total_bytes,
        n_bad: 0,
        n_repaired: 0,
        n_unread: 0,
        bad: Vec::new(),
        failure: None,
    }
}

/// Adds what came of one blob; `None`: it could not be read.
fn note(it: &mut Verification, blob: &Unverified, verdict: Option<Verdict>) {
    it.blobs += 1;
    it.bytes += blob.size;
    match verdict {
        Some(Verdict::Right | Verdict::Gone) => {}
        None => it.n_unread += 1,
        Some(Verdict::Bad(fault)) => {
            it.n_bad += 1;
            if it.bad.len() < MAX_LISTED {
                let fault = match fault {
                    larder_store::Fault::Corrupt => Fault::Corrupt,
                    larder_store::Fault::Missing => Fault::Missing,
                };
                let repair = if it.repair { Repair::Pending } else { Repair::Later };
                it.bad.push(Bad { digest: blob.digest.clone(), fault, repair, reason: None });
            }
        }
    }
}

fn note_repair(it: &mut Verification, digest: &Digest, repaired: Result<(), String>) {
    it.n_repaired += u64::from(repaired.is_ok());
    // It is the last one that was added, unless there was no room.
    if let Some(bad) = it.bad.last_mut().filter(|bad| bad.digest == *digest) {
        bad.repair = if repaired.is_ok() { Repair::Done } else { Repair::Failed };
        bad.reason = repaired.err();
    }
}

/// Verifies a store that no server has open, with all processors and as fast as its disk goes.
/// `progress` is told after each blob.
///
/// # Errors
///
/// [`OfflineError`]: nothing is known about the rest of the store.
pub async fn verify_offline(
    directory: PathBuf,
    mut progress: impl FnMut(&Verification),
) -> Result<Verification, OfflineError> {
    let store = Store::open_existing(Settings::new(directory)).await?;
    let verified = verify_store(&store, &mut progress).await;
    store.close().await;
    Ok(verified?)
}

async fn verify_store(
    store: &Store,
    progress: &mut impl FnMut(&Verification),
) -> Result<Verification, StoreError> {
    let (total_blobs, total_bytes) = store.count().await?;
    let mut it = begun(1, false, total_blobs, total_bytes);
    let (mut place, mut batch, mut reading) = (0, Vec::new().into_iter(), JoinSet::new());
    loop {
        if batch.len() == 0 {
            batch = store.stored_after(place, BATCH).await?.into_iter();
        }
        while reading.len() < threads()
            && let Some(blob) = batch.next()
        {
            place = blob.place;
            let store = store.clone();
            reading.spawn(async move {
                let verdict = store.verify(&blob, Pace::UNBOUNDED).await;
                (blob, verdict)
            });
        }
        let Some(read) = reading.join_next().await else { break };
        let (blob, verdict) =
            read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()));
        if let Err(error) = &verdict {
            let (digest, error) = (&blob.digest, error as &dyn std::error::Error);
            warn!(blob.digest = %digest, error, "verifying {digest}");
        }
        note(&mut it, &blob, verdict.ok());
        progress(&it);
    }
    it.state = State::Done;
    it.ended_at = Some(SystemTime::now());
    Ok(it)
}

/// Makes the index of a store that no server has open again, see [`larder_store::rebuild_index`].
///
/// # Errors
///
/// [`OfflineError`]: the index is what it was.
pub async fn rebuild_index(
    directory: PathBuf,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Rebuilt, OfflineError> {
    Ok(larder_store::rebuild_index(&directory, threads(), progress).await?)
}

/// How many blobs are read at a time where nobody else is served.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Why a store that no server has open could not be worked on.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// It cannot be opened; a server has it open, perhaps.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_round_reads_everything_that_is_due_and_no_blob_keeps_the_others_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::new(directory.path().to_owned());
        let store = Store::open(settings).await.unwrap();
        let name = Named { host: "a.io".parse().unwrap(), repository: "b".parse().unwrap() };
        // More than one batch, of which the first cannot be read at all.
        for n in 0..BATCH * 2 {
            let bytes = n.to_le_bytes().to_vec();
            let staging = store.stage(&Digest::sha256_of(&bytes)).await.unwrap();
            let staging = staging.write(vec![bytes.into()]).await.unwrap();
            staging.commit(None, &name).await.unwrap();
        }
        let due = SystemTime::now() + Duration::from_secs(1);
        let mut round = Round { due, unread: HashSet::new() };
        let unread = round.next(&store).await.unwrap();
        assert_eq!(unread.len(), BATCH as usize);
        round.unread.extend(unread.iter().map(|blob| blob.place));
        let rest = round.next(&store).await.unwrap();
        assert_eq!(rest.len(), BATCH as usize);
        assert!(rest.iter().all(|blob| !round.unread.contains(&blob.place)));
        round.unread.extend(rest.iter().map(|blob| blob.place));
        assert!(round.next(&store).await.unwrap().is_empty());
        // What was found right since is not due again.
        let since = Round { due: SystemTime::UNIX_EPOCH, unread: HashSet::new() };
        assert!(since.next(&store).await.unwrap().is_empty());
        store.close().await;
    }
}
