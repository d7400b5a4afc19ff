//! What is known about the content: in an SQLite file for a store of its own, in PostgreSQL for
//! replicas that share one. The statements are the same.
//!
//! SQLite is in write-ahead mode: a transaction survives a crash of the process as soon as it is
//! committed, and a loss of power once the log has been synced (at the next checkpoint at the
//! latest). That is enough: a row that is lost means that content is fetched again, and a row that
//! claims too much is marked `synced = 0` and verified at the next start. One connection writes, a
//! few read. Each has a thread of its own, so nothing here blocks the runtime; a call costs some 50
//! µs, which is why the hot paths ask the caches of [`crate::Store`] first.
//!
//! In PostgreSQL others write at the same time. So every transaction takes rows in one order, and
//! none waits for one that waits for it: repositories, contents by digest, memberships by digest,
//! blobs by digest, the rest. Rows of contents and repositories are never removed.

mod blobs;
mod listing;
mod members;
mod partials;
mod pins;
mod rebuild;
pub(crate) mod removal;
mod rows;
mod sharing;
mod tags;
#[cfg(test)]
mod tests;
pub(crate) mod turns;
mod verification;

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_core::Digest;
use percent_encoding::{NON_ALPHANUMERIC, percent_encode};
use sqlx::any::{AnyPoolOptions, install_default_drivers};
use sqlx::migrate::{MigrateError, Migrator};
use sqlx::{AnyConnection, AnyPool, Connection as _};

pub use self::blobs::References;
pub(crate) use self::blobs::{Manifest, Stored, Unsynced};
pub use self::listing::{BlobRecord, Listed, OfRepository, ParsePlaceError, Place};
pub(crate) use self::partials::Parked;
pub(crate) use self::rebuild::Recovered;
pub(crate) use self::sharing::Claim;
pub use self::tags::TagRecord;
pub use self::verification::Unverified;
use crate::work::with_causes;

/// The database refused.
#[derive(Debug, thiserror::Error)]
#[error("using the index")]
pub struct IndexError(#[from] pub(crate) sqlx::Error);

impl IndexError {
    /// What it says about the database not being there; `None`: it is an answer of it.
    pub(crate) fn away(&self) -> Option<String> {
        self.is_away().then(|| with_causes(&self.0))
    }

    fn is_away(&self) -> bool {
        use sqlx::Error;
        match &self.0 {
            Error::Io(_) | Error::Tls(_) | Error::Protocol(_) => true,
            Error::PoolTimedOut | Error::PoolClosed | Error::WorkerCrashed => true,
            // Starting, stopping, out of connections or of other things, or a standby.
            Error::Database(error) => error.code().is_some_and(|code| {
                ["08", "53", "57", "58", "25006"].iter().any(|class| code.starts_with(class))
            }),
            _ => false,
        }
    }
}

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
    Migrate(#[source] MigrateError),
}

/// How many may read a file at once; more would only queue for the two or so cores.
const READERS: u32 = 4;

/// How many connections a replica has to a server, which takes a hundred by default: enough for a
/// dozen replicas.
const CONNECTIONS: u32 = 8;

/// How long a request waits for a connection to a server before the index counts as away.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);

/// What each connection to a file is told. It waits for the lock in ms: others hold it for a
/// checkpoint at most. The cache is in KiB if negative, the log in bytes.
const PRAGMAS: &str = "PRAGMA busy_timeout = 5000; PRAGMA journal_mode = WAL; \
                       PRAGMA synchronous = NORMAL; PRAGMA cache_size = -4096; \
                       PRAGMA journal_size_limit = 67108864";

/// What each connection to a server is told: a replica that falls silent in a transaction does not
/// keep the others from its rows for long.
const SETTINGS: &str = "SET idle_in_transaction_session_timeout = '10s'";

/// The index of one store. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    writer: AnyPool,
    readers: AnyPool,
}

impl Index {
    /// Opens the SQLite file at `path`, and makes it if there is none.
    pub(crate) async fn open(path: &Path) -> Result<Self, OpenIndexError> {
        install_default_drivers();
        // A connection is a thread of this process: none goes stale, so none is tested or replaced; but
        // for one that a full disk has left within a transaction, whatever sqlx did to end it. SQLite
        // may have ended it first, and then what comes after would be written into a savepoint that
        // nobody releases: seen by the writer alone, and lost with it.
        //
        // A new one that cannot be told anything, as the disk takes nothing, is used all the same, once:
        // what it is asked fails at once, where sqlx would try for half a minute to make a better one.
        let pool = |n| {
            let is_usable = Arc::new(AtomicBool::new(true));
            let was_told = Arc::clone(&is_usable);
            let options = AnyPoolOptions::new().max_connections(n).min_connections(n);
            let options = options.after_connect(move |connection, _| {
                let was_told = Arc::clone(&was_told);
                Box::pin(async move {
                    let told = sqlx::raw_sql(PRAGMAS).execute(connection).await;
                    was_told.store(told.is_ok(), Ordering::Relaxed);
                    Ok(())
                })
            });
            let options = options.after_release(move |connection, _| {
                let is_good = !connection.is_in_transaction() && is_usable.load(Ordering::Relaxed);
                Box::pin(async move { Ok(is_good) })
            });
            options.test_before_acquire(false).idle_timeout(None).max_lifetime(None)
        };
        let writer = pool(1).connect(&sqlite_url(path, "rwc")).await?;
        migrate(&writer, sqlx::migrate!("./migrations/sqlite")).await?;
        let readers = pool(READERS).connect(&sqlite_url(path, "ro")).await?;
        Ok(Self { writer, readers })
    }

    /// Will ask the database at `url`, `postgres://…`, which may be away now and empty. Nothing is
    /// found in it before [`Index::prepare`].
    pub(crate) fn attach(url: &str) -> Result<Self, OpenIndexError> {
        install_default_drivers();
        let options = AnyPoolOptions::new().max_connections(CONNECTIONS);
        let options = options.after_connect(|connection, _| {
            Box::pin(async { sqlx::raw_sql(SETTINGS).execute(connection).await.map(drop) })
        });
        let pool = options.acquire_timeout(CONNECT_WITHIN).connect_lazy(url)?;
        Ok(Self { writer: pool.clone(), readers: pool })
    }

    /// Brings the schema of a database up to date. Replicas may do so at once.
    pub(crate) async fn prepare(&self) -> Result<(), OpenIndexError> {
        migrate(&self.writer, sqlx::migrate!("./migrations/postgres")).await
    }

    /// Closes all connections; the last one to a file moves the log into the database.
    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// The URL of a file. All of the path is escaped: none of it is to be taken for a host or a query.
///
/// `unix-excl` keeps what connections share about the log in memory of this process, the only one that
/// has the file open, and not in a mapped file: to write to that where the disk takes no more, or has
/// become read-only, would be a SIGBUS, which ends the process.
fn sqlite_url(path: &Path, mode: &str) -> String {
    let path = percent_encode(path.as_os_str().as_bytes(), NON_ALPHANUMERIC);
    format!("sqlite:{path}?mode={mode}&vfs=unix-excl")
}

async fn migrate(pool: &AnyPool, migrator: Migrator) -> Result<(), OpenIndexError> {
    migrator.run(pool).await.map_err(|error| match error {
        MigrateError::VersionMissing(_) => OpenIndexError::Newer,
        error => OpenIndexError::Migrate(error),
    })
}

async fn content_id(connection: &mut AnyConnection, digest: &Digest) -> sqlx::Result<i64> {
    let digest = digest.to_string();
    let find = async |connection: &mut AnyConnection| {
        let found = sqlx::query_scalar("SELECT id FROM contents WHERE digest = $1");
        found.bind(&digest).fetch_optional(connection).await
    };
    if let Some(id) = find(connection).await? {
        return Ok(id);
    }
    let inserted = sqlx::query_scalar(
        "INSERT INTO contents (digest) VALUES ($1) ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(&digest)
    .fetch_optional(&mut *connection)
    .await?;
    match inserted {
        Some(id) => Ok(id),
        // Another replica was first.
        None => find(connection).await?.ok_or(sqlx::Error::RowNotFound),
    }
}

fn to_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_millis(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis.max(0).cast_unsigned())
}
