//! Which blobs are stored, how long, and when they were last used.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::SystemTime;

use larder_core::Digest;
use larder_core::eviction::{Order, Queue};
use larder_core::name::Named;
use sqlx::AnyConnection;

use super::members::{put_member, repository_id};
use super::turns::queue_number;
use super::{Index, IndexError, content_id, to_millis};

/// A manifest's place in the index, next to its being a blob.
#[derive(Clone, Debug)]
pub(crate) struct Manifest {
    pub(crate) media_type: String,
    pub(crate) references: References,
}

/// What a manifest refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct References {
    /// What may be served wherever the manifest is: its blobs and manifests.
    pub children: Vec<Digest>,
    /// What it is about; a signature's image, say.
    pub subject: Option<Digest>,
}

/// A blob that may not survive a loss of power.
#[derive(Clone, Debug)]
pub(crate) struct Unsynced {
    pub(crate) digest: Digest,
    /// Its place in the order of [`Index::unsynced`].
    pub(crate) content: i64,
    /// Tells this file from one that took its place later. In milliseconds since 1970.
    stored_at: i64,
}

/// A blob whose file is at its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stored {
    /// In bytes.
    pub(crate) len: u64,
    /// What it takes of the disk, in bytes.
    pub(crate) room: u64,
    pub(crate) now: SystemTime,
    /// Says where it stands.
    pub(crate) order: Order,
    /// Whether it can stay at all. If not, it is the first to go.
    pub(crate) fits: bool,
}

impl Index {
    /// The length of a stored blob, and its media type if it is a manifest.
    pub(crate) async fn blob(
        &self,
        digest: &Digest,
    ) -> Result<Option<(u64, Option<String>)>, IndexError> {
        let row: Option<(i64, Option<String>)> = sqlx::query_as(
            "SELECT size, media_type FROM contents \
             JOIN blobs ON blobs.content = contents.id \
             LEFT JOIN manifests ON manifests.content = contents.id WHERE digest = $1",
        )
        .bind(digest.to_string())
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.map(|(size, media_type)| (size.cast_unsigned(), media_type)))
    }

    /// Records a blob whose file is at its place, as a member of `repository` and not yet synced.
    ///
    /// Returns the bytes of the disk that the index did not count before.
    pub(crate) async fn put_blob(
        &self,
        digest: &Digest,
        stored: Stored,
        repository: &Named,
        manifest: Option<&Manifest>,
    ) -> Result<u64, IndexError> {
        let mut transaction = self.writer.begin().await?;
        let connection = &mut *transaction;
        let repository = repository_id(connection, repository).await?;
        let references = manifest.map(|manifest| &manifest.references);
        let children = references.into_iter().flat_map(|it| &it.children);
        let members: BTreeSet<&Digest> = children.chain([digest]).collect();
        let subject = references.and_then(|it| it.subject.as_ref());
        let mut contents = BTreeMap::new();
        for name in members.iter().copied().chain(subject).collect::<BTreeSet<_>>() {
            contents.insert(name, content_id(connection, name).await?);
        }
        for member in members {
            put_member(connection, repository, contents[member]).await?;
        }
        let content = contents[digest];
        let added = put_row(connection, content, repository, stored).await?;
        if let Some(manifest) = manifest {
            let subject = subject.map(|subject| contents[subject]);
            put_manifest(connection, content, &manifest.media_type, subject).await?;
            let parts = manifest.references.children.iter().collect::<BTreeSet<_>>();
            put_parts(connection, content, parts.into_iter().map(|part| contents[part])).await?;
        }
        transaction.commit().await?;
        Ok(added)
    }

    /// Forgets that a blob is stored; its name and memberships stay. Returns what it took of
    /// the disk, or `None` if it was not stored.
    pub(crate) async fn remove_blob(&self, digest: &Digest) -> Result<Option<u64>, IndexError> {
        let mut transaction = self.writer.begin().await?;
        let connection = &mut *transaction;
        let digest = digest.to_string();
        let row: Option<(i64, i64)> = sqlx::query_as(
            "DELETE FROM blobs WHERE content = (SELECT id FROM contents WHERE digest = $1) \
             RETURNING content, room",
        )
        .bind(&digest)
        .fetch_optional(&mut *connection)
        .await?;
        let Some((content, room)) = row else {
            return Ok(None);
        };
        remove_manifest(connection, content).await?;
        transaction.commit().await?;
        Ok(Some(room.cast_unsigned()))
    }

    /// At most `limit` blobs that may not survive a loss of power, in the order of their `content`
    /// and after that of `after`.
    pub(crate) async fn unsynced(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Unsynced>, IndexError> {
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT digest, content, stored_at FROM blobs \
             JOIN contents ON contents.id = blobs.content \
             WHERE synced = 0 AND content > $1 ORDER BY content LIMIT $2",
        )
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let unsynced = |(digest, content, stored_at): (String, _, _)| {
            Some(Unsynced { digest: digest.parse().ok()?, content, stored_at })
        };
        Ok(rows.into_iter().filter_map(unsynced).collect())
    }

    /// Believes from now on that blobs survive a loss of power, unless other files have taken their
    /// places meanwhile.
    pub(crate) async fn set_synced(&self, synced: &[Unsynced]) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        for Unsynced { content, stored_at, .. } in synced {
            sqlx::query("UPDATE blobs SET synced = 1 WHERE content = $1 AND stored_at = $2")
                .bind(content)
                .bind(stored_at)
                .execute(&mut *transaction)
                .await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// At most `limit` manifests of which it is not known what they are made of.
    pub(crate) async fn unread_manifests(&self, limit: u32) -> Result<Vec<Digest>, IndexError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT digest FROM manifests JOIN contents ON contents.id = manifests.content \
             WHERE parts_known = 0 ORDER BY manifests.content LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().filter_map(|(digest,)| digest.parse().ok()).collect())
    }

    /// Records what a stored manifest is made of.
    pub(crate) async fn put_parts(
        &self,
        manifest: &Digest,
        parts: &[Digest],
    ) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        let mut contents = BTreeMap::new();
        for name in parts.iter().chain([manifest]).collect::<BTreeSet<_>>() {
            contents.insert(name, content_id(&mut transaction, name).await?);
        }
        let parts = parts.iter().collect::<BTreeSet<_>>();
        let parts = parts.into_iter().map(|part| contents[part]);
        put_parts(&mut transaction, contents[manifest], parts).await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The stored blobs whose written digests begin with `beginning`.
    pub(crate) async fn stored(&self, beginning: &str) -> Result<HashSet<Digest>, IndexError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT digest FROM contents JOIN blobs ON blobs.content = contents.id \
             WHERE digest >= $1 AND digest < $1 || 'g'",
        )
        // `g` comes after all hex digits.
        .bind(beginning)
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().filter_map(|(digest,)| digest.parse().ok()).collect())
    }

    /// What all blobs and kept beginnings take of the disk, in bytes.
    pub(crate) async fn total(&self) -> Result<u64, IndexError> {
        let (total,): (i64,) = sqlx::query_as(
            "SELECT CAST((SELECT coalesce(sum(room), 0) FROM blobs) \
                  + (SELECT coalesce(sum(room), 0) FROM partials) AS BIGINT)",
        )
        .fetch_one(&self.readers)
        .await?;
        Ok(total.cast_unsigned())
    }
}

pub(super) async fn put_manifest(
    connection: &mut AnyConnection,
    content: i64,
    media_type: &str,
    subject: Option<i64>,
) -> sqlx::Result<()> {
    sqlx::query(
        "INSERT INTO manifests (content, media_type, subject) VALUES ($1, $2, $3) \
         ON CONFLICT (content) DO UPDATE \
         SET media_type = excluded.media_type, subject = excluded.subject",
    )
    .bind(content)
    .bind(media_type)
    .bind(subject)
    .execute(connection)
    .await?;
    Ok(())
}

/// Records what a manifest is made of.
pub(super) async fn put_parts(
    connection: &mut AnyConnection,
    manifest: i64,
    parts: impl Iterator<Item = i64>,
) -> sqlx::Result<()> {
    for part in parts {
        sqlx::query("INSERT INTO parts (manifest, child) VALUES ($1, $2) ON CONFLICT DO NOTHING")
            .bind(manifest)
            .bind(part)
            .execute(&mut *connection)
            .await?;
    }
    sqlx::query("UPDATE manifests SET parts_known = 1 WHERE content = $1")
        .bind(manifest)
        .execute(connection)
        .await?;
    Ok(())
}

/// Forgets that a content was a manifest, if it was one.
async fn remove_manifest(connection: &mut AnyConnection, content: i64) -> sqlx::Result<()> {
    for statement in
        ["DELETE FROM manifests WHERE content = $1", "DELETE FROM parts WHERE manifest = $1"]
    {
        sqlx::query(statement).bind(content).execute(&mut *connection).await?;
    }
    Ok(())
}

/// Puts one row into `blobs`; returns the bytes of the disk that were not counted before. What was
/// stored already stands where it stood; what went lately, where that puts it.
async fn put_row(
    connection: &mut AnyConnection,
    content: i64,
    repository: i64,
    stored: Stored,
) -> sqlx::Result<u64> {
    let Stored { len, room, now, order, fits } = stored;
    let now = to_millis(now);
    let updated = sqlx::query(
        "UPDATE blobs SET size = $2, stored_at = $3, used_at = $3, synced = 0, shared = 0 \
         WHERE content = $1",
    )
    .bind(content)
    .bind(len.cast_signed())
    .bind(now)
    .execute(&mut *connection)
    .await?;
    if updated.rows_affected() > 0 {
        return Ok(0);
    }
    let gone: Option<(i64,)> = sqlx::query_as("DELETE FROM gone WHERE content = $1 RETURNING uses")
        .bind(content)
        .fetch_optional(&mut *connection)
        .await?;
    let gone = gone.filter(|_| fits);
    let remembered = gone.map(|(uses,)| u32::try_from(uses).unwrap_or(0));
    let standing = order.admit(remembered);
    let rank = match standing.queue {
        Queue::Probation if !fits => 0.0,
        Queue::Probation => now as f64,
        Queue::Main => standing.rank,
    };
    let inserted = sqlx::query(
        "INSERT INTO blobs (content, size, stored_at, used_at, queue, uses, rank, room, source) \
         VALUES ($1, $2, $3, $3, $4, $5, $6, $7, $8) ON CONFLICT DO NOTHING",
    )
    .bind(content)
    .bind(len.cast_signed())
    .bind(now)
    .bind(queue_number(standing.queue))
    .bind(i64::from(standing.uses))
    .bind(rank)
    .bind(room.cast_signed())
    .bind(repository)
    .execute(connection)
    .await?;
    // Another replica may have stored it at the same time, and counts it.
    Ok(if inserted.rows_affected() > 0 { room } else { 0 })
}
