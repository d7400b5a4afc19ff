//! Which blobs are to be read again, and when that was last done.

use std::time::SystemTime;

use larder_core::Digest;

use super::{Index, IndexError, to_millis};

/// A stored blob that can be verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unverified {
    /// What it is called.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Whether it is a manifest.
    pub is_manifest: bool,
    /// Its place in the order of [`crate::Store::stored_after`]: the next ones come after it.
    pub place: i64,
    /// Tells this file from one that took its place later. In milliseconds since 1970.
    stored_at: i64,
}

type Row = (i64, String, i64, i64, i64);

fn unverified((place, digest, size, is_manifest, stored_at): Row) -> Option<Unverified> {
    let (digest, size) = (digest.parse().ok()?, size.cast_unsigned());
    let is_manifest = is_manifest != 0;
    Some(Unverified { digest, size, is_manifest, place, stored_at })
}

impl Index {
    /// At most `limit` blobs after `place`, in the order of their places; all are greater than 0.
    pub(crate) async fn stored_after(
        &self,
        place: i64,
        limit: u32,
    ) -> Result<Vec<Unverified>, IndexError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT blobs.content, digest, size, \
               CASE WHEN manifests.content IS NULL THEN 0 ELSE 1 END, stored_at \
             FROM blobs JOIN contents ON contents.id = blobs.content \
             LEFT JOIN manifests ON manifests.content = blobs.content \
             WHERE blobs.content > $1 ORDER BY blobs.content LIMIT $2",
        )
        .bind(place)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().filter_map(unverified).collect())
    }

    /// At most `limit` blobs that were last verified or stored before `time`, those first that have
    /// waited longest.
    pub(crate) async fn unverified_since(
        &self,
        time: SystemTime,
        limit: u32,
    ) -> Result<Vec<Unverified>, IndexError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT blobs.content, digest, size, \
               CASE WHEN manifests.content IS NULL THEN 0 ELSE 1 END, stored_at \
             FROM blobs JOIN contents ON contents.id = blobs.content \
             LEFT JOIN manifests ON manifests.content = blobs.content \
             WHERE coalesce(verified_at, stored_at) < $1 \
             ORDER BY coalesce(verified_at, stored_at) LIMIT $2",
        )
        .bind(to_millis(time))
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().filter_map(unverified).collect())
    }

    /// Notes that a blob was found to be right, unless another file has taken its place meanwhile.
    pub(crate) async fn set_verified(
        &self,
        blob: &Unverified,
        now: SystemTime,
    ) -> Result<(), IndexError> {
        sqlx::query("UPDATE blobs SET verified_at = $1 WHERE content = $2 AND stored_at = $3")
            .bind(to_millis(now))
            .bind(blob.place)
            .bind(blob.stored_at)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// How many blobs are stored, and their bytes.
    pub(crate) async fn count(&self) -> Result<(u64, u64), IndexError> {
        let (n, bytes): (i64, i64) =
            sqlx::query_as("SELECT count(*), CAST(coalesce(sum(size), 0) AS BIGINT) FROM blobs")
                .fetch_one(&self.readers)
                .await?;
        Ok((n.cast_unsigned(), bytes.cast_unsigned()))
    }
}
