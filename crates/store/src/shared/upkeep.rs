//! What one replica does for all of them: keeping what is shared within its budget, reading it again,
//! and removing what crashes have left.
//!
//! Who does it has a lease, which runs out by the database's clock when it is not kept. Each step is
//! right also when two do it, so a lease need not be exact.

use std::time::{Duration, Instant, SystemTime};

use futures_util::TryStreamExt as _;
use larder_core::Digest;
use tokio::time::sleep;
use tracing::{debug, info, warn};

use super::upload::CLAIM;
use super::{Shared, SharedError};
use crate::Store;
use crate::index::IndexError;

/// How often the budget and abandoned claims are looked at.
const PERIOD: Duration = Duration::from_secs(5);

/// How long a lease lasts unless it is kept: three periods. It is kept before every batch.
const LEASE: Duration = Duration::from_secs(15);

/// The lease of whoever keeps the budget and collects, and that of whoever reads again.
pub(super) const KEEPING: &str = "keeping";
const SCRUBBING: &str = "scrubbing";

/// How many candidates, objects or claims are looked at in one go.
const BATCH: u32 = 64;

/// How many bytes of the bucket are read again in a second.
const SCRUB_RATE: u64 = 16 << 20;

/// How often the bucket is searched for objects that nobody knows, and how old those are: whoever is
/// storing one now has long recorded it by then.
const SEARCH: Duration = Duration::from_secs(6 * 60 * 60);
const UNKNOWN_AFTER: Duration = Duration::from_secs(60 * 60);

impl Shared {
    /// Keeps the budget and collects what was left, while this replica has the lease. Ends when it is
    /// dropped.
    pub(crate) async fn keep(self, store: Store) {
        let mut next_search = SystemTime::now() + SEARCH;
        let mut next_expiry = Instant::now();
        loop {
            sleep(PERIOD).await;
            if !self.has_lease(KEEPING).await {
                continue;
            }
            report("collecting what uploads have left", self.collect().await);
            if next_expiry <= Instant::now() {
                report(
                    "removing what has gone unused of what is shared",
                    self.expire(&store).await,
                );
                next_expiry = Instant::now() + store.expiry_interval();
            }
            report("keeping the budget of what is shared", self.keep_budget(&store).await);
            if next_search <= SystemTime::now() {
                next_search = SystemTime::now() + SEARCH;
                let before = SystemTime::now() - UNKNOWN_AFTER;
                report("searching the bucket", self.remove_unknown(before).await);
            }
        }
    }

    /// Reads again what is shared, while this replica has the lease. Ends when it is dropped.
    pub(crate) async fn scrub(self) {
        let Some(period) = self.0.scrub else { return };
        loop {
            let before = SystemTime::now().checked_sub(period).unwrap_or(SystemTime::UNIX_EPOCH);
            if self.has_lease(SCRUBBING).await {
                report("reading again what is shared", self.verify(before).await);
            }
            sleep(PERIOD).await;
        }
    }

    pub(super) async fn has_lease(&self, name: &str) -> bool {
        self.ask(self.0.index.lease(name, &self.0.me, LEASE)).await.unwrap_or(false)
    }

    /// Gives up uploads whose replica has died.
    pub(super) async fn collect(&self) -> Result<(), SharedError> {
        for digest in self.ask(self.0.index.abandoned(BATCH)).await? {
            let Some(claim) = self.claim(&digest).await? else { continue };
            if let Some(upload) = claim {
                info!(blob.digest = %digest, "giving up an upload of {digest} that nobody goes on with");
                self.0.bucket.abort(&digest, &upload).await?;
            }
            self.ask(self.0.index.release_claim(&digest, &self.0.me)).await?;
        }
        Ok(())
    }

    async fn claim(&self, digest: &Digest) -> Result<Option<Option<String>>, SharedError> {
        let claimed = self.ask(self.0.index.claim(digest, &self.0.me, CLAIM)).await?;
        Ok(claimed.map(|claim| claim.upload))
    }

    /// Removes an object and what is known of it, unless somebody is at it now.
    pub(super) async fn let_go(&self, digest: &Digest) -> Result<(), SharedError> {
        self.remove(digest, self.0.index.remove_blob(digest)).await.map(drop)
    }

    /// Removes an object after the index has done with it what `forget` says, unless somebody is at it
    /// now; whether it was removed.
    pub(super) async fn remove<T>(
        &self,
        digest: &Digest,
        forget: impl Future<Output = Result<T, IndexError>>,
    ) -> Result<bool, SharedError> {
        let Some(upload) = self.claim(digest).await? else { return Ok(false) };
        self.ask(forget).await?;
        if let Some(upload) = upload {
            self.0.bucket.abort(digest, &upload).await?;
        }
        // After an error the claim runs out, and the object is found by the next search.
        self.0.bucket.remove(digest).await?;
        self.ask(self.0.index.release_claim(digest, &self.0.me)).await?;
        Ok(true)
    }

    /// Reads again what was not read since `before`, and lets go of what is not what it is called.
    pub(super) async fn verify(&self, before: SystemTime) -> Result<(), SharedError> {
        for blob in self.ask(self.0.index.unverified_since(before, BATCH)).await? {
            if !self.has_lease(SCRUBBING).await {
                return Ok(());
            }
            match self.is_right(&blob.digest).await {
                Ok(true) => {
                    self.ask(self.0.index.set_verified(&blob, SystemTime::now())).await?;
                }
                Ok(false) | Err(SharedError::Missing) => self.forget(&blob.digest).await,
                Err(error) => return Err(error),
            }
            sleep(Duration::from_secs_f64(blob.size as f64 / SCRUB_RATE as f64)).await;
        }
        Ok(())
    }

    async fn is_right(&self, digest: &Digest) -> Result<bool, SharedError> {
        let mut object = self.0.bucket.get(digest, None).await?;
        let mut hasher = digest.hasher();
        while let Some(piece) = object.body.try_next().await? {
            hasher.update(&piece);
        }
        Ok(hasher.finish() == *digest)
    }

    /// Removes objects that nobody knows and that were stored before a time: whoever stored them died
    /// before they were recorded, or while they were removed.
    pub(super) async fn remove_unknown(&self, before: SystemTime) -> Result<(), SharedError> {
        let mut objects = self.0.bucket.list();
        while let Some(object) = objects.try_next().await? {
            let is_known = self.ask(self.0.index.blob(&object.digest)).await?.is_some();
            if !is_known && object.changed_at < before {
                debug!(blob.digest = %object.digest, "removing an object that nobody knows");
                self.let_go(&object.digest).await?;
            }
        }
        Ok(())
    }
}

fn report(what: &'static str, done: Result<(), SharedError>) {
    match done {
        Ok(()) => {}
        // That a service is away is said once, by whoever finds out.
        Err(error @ SharedError::Away(_)) => debug!(%error, "{what}"),
        Err(error) => warn!(%error, "{what}"),
    }
}
