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

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_core::name::Named;
use larder_core::{Digest, Tag};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqlitePool, SqlitePoolOptions,
    SqliteSynchronous,
};

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

/// What a tag named when upstream was last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its length in bytes.
    pub size: u64,
    /// When upstream last confirmed it.
    pub checked_at: SystemTime,
}

/// A manifest's place in the index, next to its being a blob.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ManifestRow<'a> {
    pub(crate) media_type: &'a str,
    pub(crate) children: &'a [Digest],
}

/// A kept beginning.
#[derive(Clone, Debug)]
pub(crate) struct Parked {
    pub(crate) size: u64,
    /// The digest of the beginning itself.
    pub(crate) prefix: Digest,
}

/// A blob that may be removed, oldest use first.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
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
        let pool = |n| SqlitePoolOptions::new().max_connections(n).min_connections(n);
        let writer = pool(1).connect_with(options.clone()).await?;
        sqlx::migrate!("./migrations").run(&writer).await.map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(_) => OpenIndexError::Newer,
            error => OpenIndexError::Migrate(error),
        })?;
        let readers = pool(READERS).connect_with(options.read_only(true)).await?;
        Ok(Self { writer, readers })
    }

    pub(crate) async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }

    // === blobs ===

    /// The length of a stored blob, and its media type if it is a manifest.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
    ) -> Result<Option<(u64, Option<String>)>, IndexError> {
        let row: Option<(i64, Option<String>)> = sqlx::query_as(
            "SELECT size, media_type FROM contents \
             JOIN blobs ON blobs.content = contents.id \
             LEFT JOIN manifests ON manifests.content = contents.id WHERE digest = ?",
        )
        .bind(digest.to_string())
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.map(|(size, media_type)| (size.cast_unsigned(), media_type)))
    }

    /// Records a blob whose file is at its place, as a member of `repository` and not yet synced.
    ///
    /// Returns the bytes that the index did not count before.
    pub(crate) async fn put_blob(
        &self,
        digest: &Digest,
        size: u64,
        repository: &Named,
        manifest: Option<ManifestRow<'_>>,
    ) -> Result<u64, IndexError> {
        let mut transaction = self.writer.begin().await?;
        let connection = &mut *transaction;
        let now = to_millis(SystemTime::now());
        let content = content_id(connection, digest).await?;
        let known: Option<(i64,)> = sqlx::query_as("SELECT size FROM blobs WHERE content = ?")
            .bind(content)
            .fetch_optional(&mut *connection)
            .await?;
        sqlx::query(
            "INSERT INTO blobs (content, size, stored_at, used_at, synced) VALUES (?, ?, ?, ?, 0) \
             ON CONFLICT (content) DO UPDATE \
             SET size = excluded.size, used_at = excluded.used_at, synced = 0",
        )
        .bind(content)
        .bind(size.cast_signed())
        .bind(now)
        .bind(now)
        .execute(&mut *connection)
        .await?;
        let repository = repository_id(connection, repository).await?;
        put_member(connection, repository, content).await?;
        if let Some(manifest) = manifest {
            sqlx::query("INSERT OR REPLACE INTO manifests (content, media_type) VALUES (?, ?)")
                .bind(content)
                .bind(manifest.media_type)
                .execute(&mut *connection)
                .await?;
            for child in manifest.children {
                let child = content_id(connection, child).await?;
                put_member(connection, repository, child).await?;
            }
        }
        transaction.commit().await?;
        Ok(match known {
            Some(_) => 0,
            None => size,
        })
    }

    /// Forgets that blobs are stored; their names and memberships stay.
    pub(crate) async fn remove_blobs(&self, digests: &[Digest]) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        for digest in digests {
            let digest = digest.to_string();
            for statement in [
                "DELETE FROM manifests WHERE content = (SELECT id FROM contents WHERE digest = ?)",
                "DELETE FROM blobs WHERE content = (SELECT id FROM contents WHERE digest = ?)",
            ] {
                sqlx::query(statement).bind(&digest).execute(&mut *transaction).await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(crate) async fn set_synced(&self, digests: &[Digest]) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        for digest in digests {
            sqlx::query(
                "UPDATE blobs SET synced = 1 \
                 WHERE content = (SELECT id FROM contents WHERE digest = ?)",
            )
            .bind(digest.to_string())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    pub(crate) async fn unsynced(&self) -> Result<Vec<Candidate>, IndexError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT digest, size FROM blobs JOIN contents ON contents.id = blobs.content \
             WHERE synced = 0",
        )
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().filter_map(candidate).collect())
    }

    /// The blobs that have gone unused longest.
    pub(crate) async fn least_recently_used(
        &self,
        limit: u32,
    ) -> Result<Vec<Candidate>, IndexError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT digest, size FROM blobs JOIN contents ON contents.id = blobs.content \
             ORDER BY used_at LIMIT ?",
        )
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().filter_map(candidate).collect())
    }

    pub(crate) async fn set_used(&self, uses: &[(Digest, SystemTime)]) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        for (digest, used_at) in uses {
            sqlx::query(
                "UPDATE blobs SET used_at = ? \
                 WHERE content = (SELECT id FROM contents WHERE digest = ?)",
            )
            .bind(to_millis(*used_at))
            .bind(digest.to_string())
            .execute(&mut *transaction)
            .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Bytes of all blobs and kept beginnings.
    pub(crate) async fn total(&self) -> Result<u64, IndexError> {
        let (total,): (i64,) = sqlx::query_as(
            "SELECT (SELECT coalesce(sum(size), 0) FROM blobs) \
                  + (SELECT coalesce(sum(size), 0) FROM partials)",
        )
        .fetch_one(&self.readers)
        .await?;
        Ok(total.cast_unsigned())
    }

    // === members ===

    pub(crate) async fn is_member(
        &self,
        repository: &Named,
        digest: &Digest,
    ) -> Result<bool, IndexError> {
        let row: Option<(i64,)> = sqlx::query_as(
            "SELECT 1 FROM members \
             WHERE repository = (SELECT id FROM repositories WHERE host = ? AND name = ?) \
               AND content = (SELECT id FROM contents WHERE digest = ?)",
        )
        .bind(repository.host.as_str())
        .bind(repository.repository.as_str())
        .bind(digest.to_string())
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.is_some())
    }

    pub(crate) async fn put_member(
        &self,
        repository: &Named,
        digest: &Digest,
    ) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        let repository = repository_id(&mut transaction, repository).await?;
        let content = content_id(&mut transaction, digest).await?;
        put_member(&mut transaction, repository, content).await?;
        transaction.commit().await?;
        Ok(())
    }

    // === tags ===

    pub(crate) async fn tag(
        &self,
        repository: &Named,
        tag: &Tag,
        variant: &str,
    ) -> Result<Option<TagRecord>, IndexError> {
        let row: Option<(String, String, i64, i64)> = sqlx::query_as(
            "SELECT digest, media_type, size, checked_at \
             FROM tags JOIN contents ON contents.id = tags.content \
             WHERE repository = (SELECT id FROM repositories WHERE host = ? AND name = ?) \
               AND tag = ? AND variant = ?",
        )
        .bind(repository.host.as_str())
        .bind(repository.repository.as_str())
        .bind(tag.as_str())
        .bind(variant)
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.and_then(|(digest, media_type, size, checked_at)| {
            Some(TagRecord {
                digest: digest.parse().ok()?,
                media_type,
                size: size.cast_unsigned(),
                checked_at: from_millis(checked_at),
            })
        }))
    }

    pub(crate) async fn put_tag(
        &self,
        repository: &Named,
        tag: &Tag,
        variant: &str,
        record: &TagRecord,
    ) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        let repository = repository_id(&mut transaction, repository).await?;
        let content = content_id(&mut transaction, &record.digest).await?;
        put_member(&mut transaction, repository, content).await?;
        sqlx::query(
            "INSERT OR REPLACE INTO tags \
             (repository, tag, variant, content, media_type, size, checked_at) \
             VALUES (?, ?, ?, ?, ?, ?, ?)",
        )
        .bind(repository)
        .bind(tag.as_str())
        .bind(variant)
        .bind(content)
        .bind(&record.media_type)
        .bind(record.size.cast_signed())
        .bind(to_millis(record.checked_at))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// Forgets every variant of a tag.
    pub(crate) async fn remove_tag(&self, repository: &Named, tag: &Tag) -> Result<(), IndexError> {
        sqlx::query(
            "DELETE FROM tags WHERE tag = ? \
             AND repository = (SELECT id FROM repositories WHERE host = ? AND name = ?)",
        )
        .bind(tag.as_str())
        .bind(repository.host.as_str())
        .bind(repository.repository.as_str())
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// At most `limit` tags of a repository after `last`, in byte order.
    pub(crate) async fn tags(
        &self,
        repository: &Named,
        last: &str,
        limit: u32,
    ) -> Result<Vec<String>, IndexError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT DISTINCT tag FROM tags \
             WHERE repository = (SELECT id FROM repositories WHERE host = ? AND name = ?) \
               AND tag > ? ORDER BY tag LIMIT ?",
        )
        .bind(repository.host.as_str())
        .bind(repository.repository.as_str())
        .bind(last)
        .bind(limit)
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(|(tag,)| tag).collect())
    }

    // === beginnings ===

    /// Records a beginning; returns the size of the one it replaces, or 0.
    pub(crate) async fn put_parked(
        &self,
        digest: &Digest,
        parked: &Parked,
        now: SystemTime,
    ) -> Result<u64, IndexError> {
        let mut transaction = self.writer.begin().await?;
        let replaced: Option<(i64,)> = sqlx::query_as("SELECT size FROM partials WHERE digest = ?")
            .bind(digest.to_string())
            .fetch_optional(&mut *transaction)
            .await?;
        sqlx::query(
            "INSERT OR REPLACE INTO partials (digest, size, prefix, parked_at) VALUES (?, ?, ?, ?)",
        )
        .bind(digest.to_string())
        .bind(parked.size.cast_signed())
        .bind(parked.prefix.to_string())
        .bind(to_millis(now))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(replaced.map_or(0, |(size,)| size.cast_unsigned()))
    }

    /// The beginning of a blob, which is forgotten: who takes it has its file.
    pub(crate) async fn take_parked(&self, digest: &Digest) -> Result<Option<Parked>, IndexError> {
        let row: Option<(i64, String)> =
            sqlx::query_as("DELETE FROM partials WHERE digest = ? RETURNING size, prefix")
                .bind(digest.to_string())
                .fetch_optional(&self.writer)
                .await?;
        Ok(row.and_then(|(size, prefix)| {
            Some(Parked { size: size.cast_unsigned(), prefix: prefix.parse().ok()? })
        }))
    }

    pub(crate) async fn forget_parked_before(
        &self,
        limit: SystemTime,
    ) -> Result<Vec<(Digest, u64)>, IndexError> {
        let rows: Vec<(String, i64)> =
            sqlx::query_as("DELETE FROM partials WHERE parked_at < ? RETURNING digest, size")
                .bind(to_millis(limit))
                .fetch_all(&self.writer)
                .await?;
        Ok(rows.into_iter().filter_map(candidate).map(|it| (it.digest, it.size)).collect())
    }

    /// The names of all kept beginnings.
    pub(crate) async fn parked(&self) -> Result<Vec<Digest>, IndexError> {
        let rows: Vec<(String,)> =
            sqlx::query_as("SELECT digest FROM partials").fetch_all(&self.readers).await?;
        Ok(rows.into_iter().filter_map(|(digest,)| digest.parse().ok()).collect())
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

async fn repository_id(connection: &mut SqliteConnection, name: &Named) -> sqlx::Result<i64> {
    let known: Option<(i64,)> =
        sqlx::query_as("SELECT id FROM repositories WHERE host = ? AND name = ?")
            .bind(name.host.as_str())
            .bind(name.repository.as_str())
            .fetch_optional(&mut *connection)
            .await?;
    if let Some((id,)) = known {
        return Ok(id);
    }
    let (id,): (i64,) =
        sqlx::query_as("INSERT INTO repositories (host, name) VALUES (?, ?) RETURNING id")
            .bind(name.host.as_str())
            .bind(name.repository.as_str())
            .fetch_one(connection)
            .await?;
    Ok(id)
}

async fn put_member(
    connection: &mut SqliteConnection,
    repository: i64,
    content: i64,
) -> sqlx::Result<()> {
    sqlx::query("INSERT OR IGNORE INTO members (repository, content) VALUES (?, ?)")
        .bind(repository)
        .bind(content)
        .execute(connection)
        .await?;
    Ok(())
}

/// A row whose digest cannot be read names nothing that anybody could ask for.
fn candidate((digest, size): (String, i64)) -> Option<Candidate> {
    Some(Candidate { digest: digest.parse().ok()?, size: size.cast_unsigned() })
}

fn to_millis(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

fn from_millis(millis: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(millis.max(0).cast_unsigned())
}
