//! What is known about the files: an SQLite database in write-ahead mode.
//!
//! A transaction survives a crash of the process as soon as it is committed, and a loss of power
//! once the log has been synced (at the next checkpoint at the latest). That is enough: a row that
//! is lost means that content is fetched again, and a row that claims too much is marked `synced =
//! 0` and verified at the next start.
//!
//! One connection writes, a few read. Each has a thread of its own, so nothing here blocks the
//! runtime; a call costs some 50 µs, which is why the hot paths ask the caches of [`crate::Store`]
//! first.

mod blobs;
mod listing;
mod members;
mod partials;
mod rebuild;
mod tags;
mod verification;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_core::Digest;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};

pub use self::blobs::References;
pub(crate) use self::blobs::{Candidate, Manifest, Unsynced};
pub use self::listing::{BlobRecord, Listed, ParsePlaceError, Place};
pub(crate) use self::partials::Parked;
pub(crate) use self::rebuild::Recovered;
pub use self::tags::TagRecord;
pub use self::verification::Unverified;

/// The database refused.
#[derive(Debug, thiserror::Error)]
#[error("using the index")]
pub struct IndexError(#[from] sqlx::Error);

/// Why the index could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenIndexError {
    /// A newer version of the program has written it.
    #[error("the index was written by a newer version of larder")]
    Newer,
    /// The database refused.
    #[error("opening the index")]
    Database(#[from] sqlx::Error),
    /// Its schema could not be brought up to date.
    #[error("migrating the index")]
    Migrate(#[source] sqlx::migrate::MigrateError),
}

/// How many may read at once; more would only queue for the two or so cores.
const READERS: u32 = 4;

/// How long a statement waits for the lock. Writers of other connections hold it for a checkpoint
/// at most.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// The index of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    writer: SqlitePool,
    readers: SqlitePool,
}

impl Index {
    pub(crate) async fn open(path: &Path) -> Result<Self, OpenIndexError> {
        let options = SqliteConnectOptions::new()
            .filename(path)
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Normal)
            .busy_timeout(BUSY_TIMEOUT)
            .pragma("cache_size", "-4096")
            .pragma("journal_size_limit", "67108864");
        // A connection is a thread of this process: none goes stale, so none is tested or replaced.
        let pool = |n| {
            let options = SqlitePoolOptions::new().max_connections(n).min_connections(n);
            options.test_before_acquire(false).idle_timeout(None).max_lifetime(None)
        };
        let writer = pool(1).connect_with(options.clone()).await?;
        sqlx::migrate!("./migrations").run(&writer).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(_) => OpenIndexError::Newer,
            error => OpenIndexError::Migrate(error),
        })?;
        let readers = pool(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, readers })
    }

    /// Closes all connections; the last one moves the log into the database.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

async fn content_id(connection: &mut SqliteConnection, digest: &Digest) -> sqlx::Result<i64> {
    let digest = digest.to_string();
    let known: Option<(i64,)> = sqlx::query_as("SELECT id FROM contents WHERE digest = ?")
        .bind(&digest)
        .fetch_optional(&mut *connection)
        .await?;
    if let Some((id,)) = known {
        return Ok(id);
    }
    let (id,): (i64,) = sqlx::query_as("INSERT INTO contents (digest) VALUES (?) RETURNING id")
        .bind(&digest)
        .fetch_one(connection)
        .await?;
    Ok(id)
}

fn to_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_millis(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis.max(0).cast_unsigned())
}
