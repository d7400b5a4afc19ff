//! What goes from the index, and what is remembered of it.

use std::collections::HashMap;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use larder_core::Digest;
use sqlx::any::AnyArguments;
use sqlx::query::Query;
use sqlx::{Any, AnyConnection, AssertSqlSafe};
use tokio_util::sync::CancellationToken;

use super::rows::{MAX_ROWS, row, rows};
use super::{Index, IndexError, to_millis};

/// How long a tag is remembered that upstream was not asked about, once what it names has gone.
const TAG_MEMORY: Duration = Duration::from_secs(30 * 24 * 60 * 60);

/// What went from the index.
#[derive(Clone, Debug)]
pub(crate) struct Removed {
    pub(crate) digest: Digest,
    pub(crate) room: u64,
}

impl Index {
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
