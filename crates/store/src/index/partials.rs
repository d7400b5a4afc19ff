//! Kept beginnings of blobs.

use std::time::SystemTime;

use larder_core::Digest;

use super::{Index, IndexError, to_millis};

/// A kept beginning.
#[derive(Clone, Debug)]
pub(crate) struct Parked {
    pub(crate) size: u64,
    /// What it takes of the disk, in bytes.
    pub(crate) room: u64,
    /// The digest of the beginning itself.
    pub(crate) prefix: Digest,
}

impl Index {
    /// Records a beginning; returns what the one that it replaces took of the disk, or 0.
    pub(crate) async fn put_parked(
        &self,
        digest: &Digest,
        parked: &Parked,
        now: SystemTime,
    ) -> Result<u64, IndexError> {
        let mut transaction = self.writer.begin().await?;
        let replaced: Option<(i64,)> =
            sqlx::query_as("SELECT room FROM partials WHERE digest = $1")
                .bind(digest.to_string())
                .fetch_optional(&mut *transaction)
                .await?;
        sqlx::query(
            "INSERT INTO partials (digest, size, prefix, parked_at, room) \
             VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (digest) DO UPDATE SET size = excluded.size, room = excluded.room, \
               prefix = excluded.prefix, parked_at = excluded.parked_at",
        )
        .bind(digest.to_string())
        .bind(parked.size.cast_signed())
        .bind(parked.prefix.to_string())
        .bind(to_millis(now))
        .bind(parked.room.cast_signed())
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(replaced.map_or(0, |(room,)| room.cast_unsigned()))
    }

    /// The beginning of a blob, which is forgotten: who takes it has its file.
    pub(crate) async fn take_parked(&self, digest: &Digest) -> Result<Option<Parked>, IndexError> {
        let row: Option<(i64, i64, String)> =
            sqlx::query_as("DELETE FROM partials WHERE digest = $1 RETURNING size, room, prefix")
                .bind(digest.to_string())
                .fetch_optional(&self.writer)
                .await?;
        Ok(row.and_then(|(size, room, prefix)| {
            let (size, room) = (size.cast_unsigned(), room.cast_unsigned());
            Some(Parked { size, room, prefix: prefix.parse().ok()? })
        }))
    }

    /// At most `limit` beginnings that were parked before `time`, the oldest first.
    pub(crate) async fn parked_before(
        &self,
        time: SystemTime,
        limit: u32,
    ) -> Result<Vec<Digest>, IndexError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT digest FROM partials WHERE parked_at < $1 ORDER BY parked_at LIMIT $2",
        )
        .bind(to_millis(time))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().filter_map(|(digest,)| digest.parse().ok()).collect())
    }

    pub(crate) async fn is_parked(&self, digest: &Digest) -> Result<bool, IndexError> {
        let row: Option<(i64,)> = sqlx::query_as("SELECT 1 FROM partials WHERE digest = $1")
            .bind(digest.to_string())
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.is_some())
    }
}
