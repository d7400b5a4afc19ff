//! What tags named.

use std::time::SystemTime;

use larder_core::name::Named;
use larder_core::{Digest, Tag};
use sqlx::AnyConnection;

use super::members::{put_member, repository_id};
use super::{Index, IndexError, content_id, from_millis, to_millis};

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

impl Index {
    pub(crate) async fn tag(
        &self,
        repository: &Named,
        tag: &Tag,
        variant: &str,
    ) -> Result<Option<TagRecord>, IndexError> {
        let row: Option<(String, String, i64, i64)> = sqlx::query_as(
            "SELECT digest, media_type, size, checked_at \
             FROM tags JOIN contents ON contents.id = tags.content \
             WHERE repository = (SELECT id FROM repositories WHERE host = $1 AND name = $2) \
               AND tag = $3 AND variant = $4",
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
        let before: Option<(i64,)> = sqlx::query_as(
            "SELECT content FROM tags WHERE repository = $1 AND tag = $2 AND variant = $3",
        )
        .bind(repository)
        .bind(tag.as_str())
        .bind(variant)
        .fetch_optional(&mut *transaction)
        .await?;
        sqlx::query(
            "INSERT INTO tags \
             (repository, tag, variant, content, media_type, size, checked_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7) \
             ON CONFLICT (repository, tag, variant) DO UPDATE \
             SET content = excluded.content, media_type = excluded.media_type, \
               size = excluded.size, checked_at = excluded.checked_at",
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
        if before != Some((content,)) {
            sqlx::query("UPDATE manifests SET superseded_at = NULL WHERE content = $1")
                .bind(content)
                .execute(&mut *transaction)
                .await?;
            if let Some((content,)) = before {
                supersede(&mut transaction, content, record.checked_at).await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Forgets every variant of a tag.
    pub(crate) async fn remove_tag(
        &self,
        repository: &Named,
        tag: &Tag,
        now: SystemTime,
    ) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        let removed: Vec<(i64,)> = sqlx::query_as(
            "DELETE FROM tags WHERE tag = $1 \
             AND repository = (SELECT id FROM repositories WHERE host = $2 AND name = $3) \
             RETURNING content",
        )
        .bind(tag.as_str())
        .bind(repository.host.as_str())
        .bind(repository.repository.as_str())
        .fetch_all(&mut *transaction)
        .await?;
        for (content,) in removed {
            supersede(&mut transaction, content, now).await?;
        }
        transaction.commit().await?;
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
             WHERE repository = (SELECT id FROM repositories WHERE host = $1 AND name = $2) \
               AND tag > $3 ORDER BY tag LIMIT $4",
        )
        .bind(repository.host.as_str())
        .bind(repository.repository.as_str())
        .bind(last)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(|(tag,)| tag).collect())
    }
}

/// Notes that a tag names a manifest no more, if no other tag does.
async fn supersede(
    connection: &mut AnyConnection,
    content: i64,
    now: SystemTime,
) -> sqlx::Result<()> {
    sqlx::query(
        "UPDATE manifests SET superseded_at = $1 WHERE content = $2 \
         AND NOT EXISTS (SELECT 1 FROM tags WHERE tags.content = $2)",
    )
    .bind(to_millis(now))
    .bind(content)
    .execute(connection)
    .await?;
    Ok(())
}
