//! In which order content goes, and what is known beside each that may have to.

use std::time::SystemTime;

use larder_core::Digest;
use larder_core::eviction::{Order, Queue, Standing};
use larder_core::name::Named;
use sqlx::AssertSqlSafe;

use super::rows::{MAX_ROWS, rows};
use super::{Index, IndexError, from_millis, to_millis};

/// Something that may go.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) content: i64,
    pub(crate) digest: Digest,
    /// The bytes that it takes on the disk.
    pub(crate) room: u64,
    pub(crate) standing: Standing,
    pub(crate) used_at: SystemTime,
    pub(crate) is_manifest: bool,
    place: Place,
}

/// Where a candidate stands among those of its queue.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) rank: f64,
    pub(crate) used_at: i64,
    pub(crate) content: i64,
}

/// Before everything.
pub(crate) const FIRST: Place = Place { rank: f64::MIN, used_at: i64::MIN, content: i64::MIN };

/// A kept beginning of a blob.
#[derive(Clone, Debug)]
pub(crate) struct Beginning {
    pub(crate) digest: Digest,
    pub(crate) room: u64,
    pub(crate) parked_at: SystemTime,
}

/// A statement that selects candidates, from `blobs`, `contents` and `manifests`, with these conditions.
macro_rules! candidates_where {
    ($conditions:literal) => {
        concat!(
            "SELECT blobs.content, digest, room, queue, uses, rank, used_at, \
               CASE WHEN manifests.content IS NULL THEN 0 ELSE 1 END AS is_manifest \
             FROM blobs JOIN contents ON contents.id = blobs.content \
             LEFT JOIN manifests ON manifests.content = blobs.content WHERE ",
            $conditions
        )
    };
}

type Row = (i64, String, i64, i64, i64, f64, i64, i64);

/// The number of a queue in the index.
pub(super) fn queue_number(queue: Queue) -> i64 {
    match queue {
        Queue::Probation => 0,
        Queue::Main => 1,
    }
}

pub(super) fn standing(queue: i64, uses: i64, rank: f64) -> Standing {
    let queue = if queue == 0 { Queue::Probation } else { Queue::Main };
    Standing { queue, uses: u32::try_from(uses).unwrap_or(1), rank }
}

fn candidate(row: Row) -> Option<Candidate> {
    let (content, digest, room, queue, uses, rank, used_at, is_manifest) = row;
    Some(Candidate {
        content,
        digest: digest.parse().ok()?,
        room: room.cast_unsigned(),
        standing: standing(queue, uses, rank),
        used_at: from_millis(used_at),
        is_manifest: is_manifest != 0,
        place: Place { rank, used_at, content },
    })
}

fn candidates(rows: Vec<Row>) -> Vec<Candidate> {
    rows.into_iter().filter_map(candidate).collect()
}

impl Candidate {
    pub(crate) fn place(&self) -> Place {
        self.place
    }
}

impl Index {
    /// At most `limit` blobs of a queue behind `after`, the first to go first.
    pub(crate) async fn turns(
        &self,
        queue: Queue,
        after: Place,
        limit: u32,
    ) -> Result<Vec<Candidate>, IndexError> {
        let rows: Vec<Row> = sqlx::query_as(candidates_where!(
            "queue = $1 AND (rank, used_at, blobs.content) > ($2, $3, $4) \
             ORDER BY rank, used_at, blobs.content LIMIT $5"
        ))
        .bind(queue_number(queue))
        .bind(after.rank)
        .bind(after.used_at)
        .bind(after.content)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(candidates(rows))
    }

    /// At most `limit` blobs behind `after` that were fetched from `host`: those first that were
    /// used once, then those that have gone unused longest.
    pub(crate) async fn turns_of_host(
        &self,
        host: &str,
        limit: u32,
        offset: u32,
    ) -> Result<Vec<Candidate>, IndexError> {
        let rows: Vec<Row> = sqlx::query_as(candidates_where!(
            "source IN (SELECT id FROM repositories WHERE host = $1) \
             ORDER BY CASE WHEN queue = 0 AND uses < 2 THEN 0 ELSE 1 END, used_at, blobs.content \
             LIMIT $2 OFFSET $3"
        ))
        .bind(host)
        .bind(i64::from(limit))
        .bind(i64::from(offset))
        .fetch_all(&self.readers)
        .await?;
        Ok(candidates(rows))
    }

    /// At most `limit` blobs that were used before `time`, behind `after`, those first that have
    /// gone unused longest.
    pub(crate) async fn unused_since(
        &self,
        time: SystemTime,
        after: Place,
        limit: u32,
    ) -> Result<Vec<Candidate>, IndexError> {
        let rows: Vec<Row> = sqlx::query_as(candidates_where!(
            "used_at < $1 AND (used_at, blobs.content) > ($2, $3) \
             ORDER BY used_at, blobs.content LIMIT $4"
        ))
        .bind(to_millis(time))
        .bind(after.used_at)
        .bind(after.content)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(candidates(rows))
    }

    /// At most `limit` manifests behind `after` that no tag names any more and that were used
    /// before `time`.
    pub(crate) async fn superseded(
        &self,
        time: SystemTime,
        after: i64,
        limit: u32,
    ) -> Result<Vec<Candidate>, IndexError> {
        let rows: Vec<Row> = sqlx::query_as(candidates_where!(
            "manifests.superseded_at < $1 AND used_at < $1 \
             AND blobs.content > $2 ORDER BY blobs.content LIMIT $3"
        ))
        .bind(to_millis(time))
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(candidates(rows))
    }

    /// What `manifest` is made of, as far as it is stored and part of no other stored manifest.
    pub(crate) async fn own_parts(&self, manifest: i64) -> Result<Vec<Candidate>, IndexError> {
        let rows: Vec<Row> = sqlx::query_as(candidates_where!(
            "blobs.content IN (SELECT child FROM parts WHERE manifest = $1) \
             AND NOT EXISTS (SELECT 1 FROM parts AS other \
               JOIN blobs AS parent ON parent.content = other.manifest \
               WHERE other.child = blobs.content AND other.manifest <> $1)"
        ))
        .bind(manifest)
        .fetch_all(&self.readers)
        .await?;
        Ok(candidates(rows))
    }

    /// All kept beginnings, at most `limit`, the oldest first.
    pub(crate) async fn beginnings(&self, limit: u32) -> Result<Vec<Beginning>, IndexError> {
        let rows: Vec<(String, i64, i64)> = sqlx::query_as(
            "SELECT digest, room, parked_at FROM partials ORDER BY parked_at LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let beginning = |(digest, room, parked_at): (String, i64, _)| {
            let (digest, room) = (digest.parse().ok()?, room.cast_unsigned());
            Some(Beginning { digest, room, parked_at: from_millis(parked_at) })
        };
        Ok(rows.into_iter().filter_map(beginning).collect())
    }

    /// The bytes on the disk of the blobs of both queues: probation, main.
    pub(crate) async fn room_by_queue(&self) -> Result<(u64, u64), IndexError> {
        let rows: Vec<(i64, i64)> = sqlx::query_as(
            "SELECT queue, CAST(coalesce(sum(room), 0) AS BIGINT) FROM blobs GROUP BY queue",
        )
        .fetch_all(&self.readers)
        .await?;
        let of = |queue| rows.iter().find(|row| row.0 == queue).map_or(0, |row| row.1);
        Ok((of(0).cast_unsigned(), of(1).cast_unsigned()))
    }

    /// The bytes on the disk of what was fetched, by host.
    pub(crate) async fn room_by_host(&self) -> Result<Vec<(String, u64)>, IndexError> {
        let rows: Vec<(String, i64)> = sqlx::query_as(
            "SELECT host, CAST(sum(room) AS BIGINT) FROM blobs \
             JOIN repositories ON repositories.id = blobs.source GROUP BY host ORDER BY host",
        )
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(|(host, room)| (host, room.cast_unsigned())).collect())
    }

    /// The repositories that may serve a content.
    pub(crate) async fn names_of(&self, content: i64) -> Result<Vec<Named>, IndexError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT host, name FROM members JOIN repositories ON repositories.id = repository \
             WHERE content = $1",
        )
        .bind(content)
        .fetch_all(&self.readers)
        .await?;
        let named = |(host, name): (String, String)| {
            Some(Named { host: host.parse().ok()?, repository: name.parse().ok()? })
        };
        Ok(rows.into_iter().filter_map(named).collect())
    }

    /// Moves blobs to where they stand from now on, and keeps the order's age, which never falls.
    pub(crate) async fn set_standings(
        &self,
        standings: &[(i64, Standing)],
        order: Order,
    ) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        for standings in standings.chunks(MAX_ROWS) {
            let rows = rows(standings.len(), &["BIGINT", "BIGINT", "BIGINT", "DOUBLE PRECISION"]);
            let statement = format!(
                "WITH now (content, queue, uses, rank) AS (VALUES {rows}) \
                 UPDATE blobs SET queue = now.queue, uses = now.uses, rank = now.rank \
                 FROM now WHERE blobs.content = now.content"
            );
            let mut query = sqlx::query(AssertSqlSafe(statement));
            for (content, standing) in standings {
                query = query
                    .bind(content)
                    .bind(queue_number(standing.queue))
                    .bind(i64::from(standing.uses))
                    .bind(standing.rank);
            }
            query.execute(&mut *transaction).await?;
        }
        sqlx::query(
            "INSERT INTO numbers (name, value) VALUES ('age', $1) \
             ON CONFLICT (name) DO UPDATE SET value = excluded.value \
             WHERE numbers.value < excluded.value",
        )
        .bind(order.age)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(())
    }

    /// The order, with the age it had.
    pub(crate) async fn order(&self) -> Result<Order, IndexError> {
        let row: Option<(f64,)> = sqlx::query_as("SELECT value FROM numbers WHERE name = 'age'")
            .fetch_optional(&self.readers)
            .await?;
        Ok(Order { age: row.map_or(0.0, |(age,)| age) })
    }

    /// Notes uses: a blob stands where `order` puts it after one more, and what a manifest is made of
    /// counts as used with it.
    pub(crate) async fn set_used(
        &self,
        uses: &[(Digest, SystemTime)],
        order: Order,
    ) -> Result<(), IndexError> {
        let mut uses: Vec<_> = uses.iter().collect();
        uses.sort();
        let mut transaction = self.writer.begin().await?;
        for (digest, used_at) in uses {
            let used_at = to_millis(*used_at);
            let row: Option<(i64, i64, i64, f64, i64)> = sqlx::query_as(
                "SELECT blobs.content, queue, uses, rank, \
                   CASE WHEN manifests.content IS NULL THEN 0 ELSE 1 END \
                 FROM contents JOIN blobs ON blobs.content = contents.id \
                 LEFT JOIN manifests ON manifests.content = contents.id WHERE digest = $1",
            )
            .bind(digest.to_string())
            .fetch_optional(&mut *transaction)
            .await?;
            let Some((content, queue, uses, rank, is_manifest)) = row else { continue };
            let after = order.touch(standing(queue, uses, rank));
            sqlx::query("UPDATE blobs SET used_at = $1, uses = $2, rank = $3 WHERE content = $4")
                .bind(used_at)
                .bind(i64::from(after.uses))
                .bind(after.rank)
                .bind(content)
                .execute(&mut *transaction)
                .await?;
            if is_manifest != 0 {
                sqlx::query(
                    "WITH RECURSIVE below (content) AS ( \
                       SELECT child FROM parts WHERE manifest = $1 \
                       UNION SELECT child FROM parts JOIN below ON manifest = below.content) \
                     UPDATE blobs SET used_at = $2 \
                     WHERE content IN (SELECT content FROM below) AND used_at < $2",
                )
                .bind(content)
                .bind(used_at)
                .execute(&mut *transaction)
                .await?;
            }
        }
        transaction.commit().await?;
        Ok(())
    }
}
