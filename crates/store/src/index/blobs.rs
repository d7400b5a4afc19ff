//! Which blobs are stored, how long, and when they were last used.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::SystemTime;

use larder_core::Digest;
use larder_core::name::Named;
use sqlx::AnyConnection;

use super::members::{put_member, repository_id};
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

/// Something that may go, so that the budget is kept.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// Whether it is a kept beginning, and no blob.
    pub(crate) is_beginning: bool,
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
    /// Returns the bytes that the index did not count before.
    pub(crate) async fn put_blob(
        &self,
        digest: &Digest,
        size: u64,
        repository: &Named,
        manifest: Option<&Manifest>,
        now: SystemTime,
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
        let added = put_row(connection, content, size, now).await?;
        if let Some(manifest) = manifest {
            let subject = subject.map(|subject| contents[subject]);
            put_manifest(connection, content, &manifest.media_type, subject).await?;
        }
        transaction.commit().await?;
        Ok(added)
    }

    /// Forgets that a blob is stored; its name and memberships stay. Returns its size, or `None` if
    /// it was not stored.
    pub(crate) async fn remove_blob(&self, digest: &Digest) -> Result<Option<u64>, IndexError> {
        let mut transaction = self.writer.begin().await?;
        let connection = &mut *transaction;
        let digest = digest.to_string();
        let row: Option<(i64, i64)> = sqlx::query_as(
            "DELETE FROM blobs WHERE content = (SELECT id FROM contents WHERE digest = $1) \
             RETURNING content, size",
        )
        .bind(&digest)
        .fetch_optional(&mut *connection)
        .await?;
        let Some((content, size)) = row else {
            return Ok(None);
        };
        sqlx::query("DELETE FROM manifests WHERE content = $1")
            .bind(content)
            .execute(&mut *connection)
            .await?;
        transaction.commit().await?;
        Ok(Some(size.cast_unsigned()))
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

    /// At most `limit` blobs and kept beginnings, those first that have gone unused longest.
    pub(crate) async fn least_recently_used(
        &self,
        limit: u32,
    ) -> Result<Vec<Candidate>, IndexError> {
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT digest, size, is_beginning FROM ( \
               SELECT * FROM (SELECT digest, size, used_at, 0 AS is_beginning \
                 FROM blobs JOIN contents ON contents.id = blobs.content \
                 ORDER BY used_at LIMIT $1) AS unused \
               UNION ALL \
               SELECT * FROM (SELECT digest, size, parked_at, 1 \
                 FROM partials ORDER BY parked_at LIMIT $1) AS parked) AS candidates \
             ORDER BY used_at LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let candidate = |(digest, size, is_beginning): (String, i64, i64)| {
            let (size, is_beginning) = (size.cast_unsigned(), is_beginning != 0);
            Some(Candidate { digest: digest.parse().ok()?, size, is_beginning })
        };
        Ok(rows.into_iter().filter_map(candidate).collect())
    }

    pub(crate) async fn set_used(&self, uses: &[(Digest, SystemTime)]) -> Result<(), IndexError> {
        let mut uses: Vec<_> = uses.iter().collect();
        uses.sort();
        let mut transaction = self.writer.begin().await?;
        for (digest, used_at) in uses {
            sqlx::query(
                "UPDATE blobs SET used_at = $1 \
                 WHERE content = (SELECT id FROM contents WHERE digest = $2)",
            )
            .bind(to_millis(*used_at))
            .bind(digest.to_string())
            .execute(&mut *transaction)
            .await?;
        }
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

    /// Bytes of all blobs and kept beginnings.
    pub(crate) async fn total(&self) -> Result<u64, IndexError> {
        let (total,): (i64,) = sqlx::query_as(
            "SELECT CAST((SELECT coalesce(sum(size), 0) FROM blobs) \
                  + (SELECT coalesce(sum(size), 0) FROM partials) AS BIGINT)",
        )
        .fetch_one(&self.readers)
        .await?;
        Ok(total.cast_unsigned())
    }
}

async fn put_manifest(
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

/// Puts one row into `blobs`; returns the bytes that were not counted before.
async fn put_row(
    connection: &mut AnyConnection,
    content: i64,
    size: u64,
    now: SystemTime,
) -> sqlx::Result<u64> {
    let now = to_millis(now);
    let updated = sqlx::query(
        "UPDATE blobs SET size = $2, stored_at = $3, used_at = $3, synced = 0 WHERE content = $1",
    )
    .bind(content)
    .bind(size.cast_signed())
    .bind(now)
    .execute(&mut *connection)
    .await?;
    if updated.rows_affected() > 0 {
        return Ok(0);
    }
    let inserted = sqlx::query(
        "INSERT INTO blobs (content, size, stored_at, used_at) VALUES ($1, $2, $3, $3) \
         ON CONFLICT DO NOTHING",
    )
    .bind(content)
    .bind(size.cast_signed())
    .bind(now)
    .execute(connection)
    .await?;
    // Another replica may have stored it at the same time, and counts it.
    Ok(if inserted.rows_affected() > 0 { size } else { 0 })
}
