//! In which order content goes, and what is known beside each that may have to.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_core::Digest;
use larder_core::eviction::{Order, Queue, Standing};
use larder_core::name::Named;
use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe};
use tokio_util::sync::CancellationToken;

use super::{Index, IndexError, from_millis, to_millis};

/// How long a tag is remembered that upstream was not asked about, once what it names has gone.
const TAG_MEMORY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

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

/// What went from the index.
#[derive(Clone, Debug)]
pub(crate) struct Removed {
    pub(crate) digest: Digest,
    pub(crate) room: u64,
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

    /// Moves blobs to where they stand from now on, and keeps the order's age.
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
             ON CONFLICT (name) DO UPDATE SET value = excluded.value",
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

    /// Forgets that blobs are stored. Remembers of each how often it was used, if that is given.
    ///
    /// Returns those that were stored.
    pub(crate) async fn remove_blobs(
        &self,
        victims: &[(i64, Option<u32>)],
        now: SystemTime,
    ) -> Result<Vec<Removed>, IndexError> {
        let mut removed = Vec::with_capacity(victims.len());
        let mut transaction = self.writer.begin().await?;
        for victims in victims.chunks(MAX_ROWS) {
            let contents: Vec<i64> = victims.iter().map(|(content, _)| *content).collect();
            let rooms = delete_blobs(&mut transaction, &contents).await?;
            for statement in
                ["DELETE FROM manifests WHERE content IN", "DELETE FROM parts WHERE manifest IN"]
            {
                let statement = format!("{statement} ({})", row(1, contents.len()));
                bound(&statement, &contents).execute(&mut *transaction).await?;
            }
            let uses = victims.iter().filter_map(|(content, uses)| {
                Some((*content, *rooms.get(content)?, i64::from((*uses)?)))
            });
            let uses: Vec<_> = uses.collect();
            remember_gone(&mut transaction, &uses, to_millis(now)).await?;
            let statement =
                format!("SELECT id, digest FROM contents WHERE id IN ({})", row(1, contents.len()));
            let digests: Vec<(i64, String)> = contents
                .iter()
                .fold(sqlx::query_as(AssertSqlSafe(statement)), |query, it| query.bind(it))
                .fetch_all(&mut *transaction)
                .await?;
            for (content, digest) in digests {
                if let (Some(room), Ok(digest)) = (rooms.get(&content), digest.parse()) {
                    removed.push(Removed { digest, room: room.cast_unsigned() });
                }
            }
        }
        transaction.commit().await?;
        Ok(removed)
    }

    /// Forgets the names of what went longest ago, so that those that are left stand for at most
    /// `memory` bytes.
    pub(crate) async fn trim_gone(&self, memory: u64) -> Result<(), IndexError> {
        let (total,): (i64,) =
            sqlx::query_as("SELECT CAST(coalesce(sum(room), 0) AS BIGINT) FROM gone")
                .fetch_one(&self.readers)
                .await?;
        let mut excess = total.cast_unsigned().saturating_sub(memory);
        while excess > 0 {
            let oldest: Vec<(i64, i64)> = sqlx::query_as(
                "SELECT content, room FROM gone ORDER BY gone_at, content LIMIT 500",
            )
            .fetch_all(&self.readers)
            .await?;
            if oldest.is_empty() {
                break;
            }
            let mut transaction = self.writer.begin().await?;
            for (content, room) in oldest {
                if excess == 0 {
                    break;
                }
                sqlx::query("DELETE FROM gone WHERE content = $1")
                    .bind(content)
                    .execute(&mut *transaction)
                    .await?;
                excess = excess.saturating_sub(room.cast_unsigned().max(1));
            }
            transaction.commit().await?;
        }
        Ok(())
    }

    /// Forgets what was known of contents that are not stored, are no part of a stored manifest, and
    /// were not so lately: their memberships, which upstream will confirm again, and tags of which
    /// nothing was heard for long. Stops early when `closing`.
    pub(crate) async fn forget_names(
        &self,
        now: SystemTime,
        closing: &CancellationToken,
    ) -> Result<(), IndexError> {
        let limit = to_millis(now.checked_sub(TAG_MEMORY).unwrap_or(UNIX_EPOCH));
        sqlx::query(
            "DELETE FROM tags WHERE checked_at < $1 \
             AND NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.content = tags.content)",
        )
        .bind(limit)
        .execute(&self.writer)
        .await?;
        let (mut after, step) = (0, 2000);
        let (last,): (i64,) = sqlx::query_as("SELECT coalesce(max(id), 0) FROM contents")
            .fetch_one(&self.readers)
            .await?;
        while after < last && !closing.is_cancelled() {
            sqlx::query(
                "DELETE FROM members WHERE content > $1 AND content <= $2 \
                 AND NOT EXISTS (SELECT 1 FROM blobs WHERE blobs.content = members.content) \
                 AND NOT EXISTS (SELECT 1 FROM parts WHERE child = members.content) \
                 AND NOT EXISTS (SELECT 1 FROM gone WHERE gone.content = members.content) \
                 AND NOT EXISTS (SELECT 1 FROM tags WHERE tags.content = members.content)",
            )
            .bind(after)
            .bind(after + step)
            .execute(&self.writer)
            .await?;
            after += step;
        }
        Ok(())
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

// === many rows at once ===

/// The most rows of one statement: each is a journey to another thread, or another machine.
const MAX_ROWS: usize = 64;

/// `$3, $4, $5`: parameters of one row, from `first`.
fn row(first: usize, n: usize) -> String {
    let names: Vec<String> = (first..first + n).map(|n| format!("${n}")).collect();
    names.join(", ")
}

/// `(CAST($1 AS BIGINT), …), (…)`: parameters of `n` rows of these types, which PostgreSQL does not
/// find out by itself.
fn rows(n: usize, types: &[&str]) -> String {
    let row = |row: usize| {
        let parameters = types
            .iter()
            .enumerate()
            .map(|(column, kind)| format!("CAST(${} AS {kind})", row * types.len() + column + 1));
        format!("({})", parameters.collect::<Vec<_>>().join(", "))
    };
    (0..n).map(row).collect::<Vec<_>>().join(", ")
}

fn bound<'q>(statement: &str, contents: &[i64]) -> Query<'q, Any, AnyArguments> {
    let query = sqlx::query(AssertSqlSafe(statement.to_owned()));
    contents.iter().fold(query, |query, content| query.bind(*content))
}

/// Deletes rows of `blobs`; returns the room of each that was there, by content.
async fn delete_blobs(
    connection: &mut AnyConnection,
    contents: &[i64],
) -> sqlx::Result<HashMap<i64, i64>> {
    let list = row(1, contents.len());
    let statement = format!("DELETE FROM blobs WHERE content IN ({list}) RETURNING content, room");
    let query = sqlx::query_as(AssertSqlSafe(statement));
    let query = contents.iter().fold(query, |query, content| query.bind(content));
    let rows: Vec<(i64, i64)> = query.fetch_all(connection).await?;
    Ok(rows.into_iter().collect())
}

/// Remembers of each content its room and how often it was used.
async fn remember_gone(
    connection: &mut AnyConnection,
    gone: &[(i64, i64, i64)],
    now: i64,
) -> sqlx::Result<()> {
    if gone.is_empty() {
        return Ok(());
    }
    let rows = rows(gone.len(), &["BIGINT"; 4]);
    let statement = format!(
        "INSERT INTO gone (content, room, uses, gone_at) VALUES {rows} \
         ON CONFLICT (content) DO UPDATE SET room = excluded.room, \
           uses = excluded.uses, gone_at = excluded.gone_at"
    );
    let mut query = sqlx::query(AssertSqlSafe(statement));
    for (content, room, uses) in gone {
        query = query.bind(content).bind(room).bind(uses).bind(now);
    }
    query.execute(connection).await.map(drop)
}
