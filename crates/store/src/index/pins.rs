//! Which images somebody wants to stay, and what they are made of.

use std::collections::HashSet;
use std::time::SystemTime;

use larder_core::name::Named;
use larder_core::retention::ImagePattern;

use super::{Index, IndexError, to_millis};

/// How many rows are looked at at once.
const BATCH: i64 = 1000;

impl Index {
    /// Adds a pin, if it is not there yet.
    pub(crate) async fn put_pin(
        &self,
        pattern: &ImagePattern,
        now: SystemTime,
    ) -> Result<(), IndexError> {
        sqlx::query(
            "INSERT INTO pins (pattern, pinned_at) VALUES ($1, $2) ON CONFLICT (pattern) DO NOTHING",
        )
        .bind(pattern.as_str())
        .bind(to_millis(now))
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Removes a pin; whether it was there.
    pub(crate) async fn remove_pin(&self, pattern: &ImagePattern) -> Result<bool, IndexError> {
        let done = sqlx::query("DELETE FROM pins WHERE pattern = $1")
            .bind(pattern.as_str())
            .execute(&self.writer)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// All pins, in the order of their text. One that can't be read is left out.
    pub(crate) async fn pins(&self) -> Result<Vec<ImagePattern>, IndexError> {
        let rows: Vec<(String,)> = sqlx::query_as("SELECT pattern FROM pins ORDER BY pattern")
            .fetch_all(&self.readers)
            .await?;
        Ok(rows.into_iter().filter_map(|(pattern,)| pattern.parse().ok()).collect())
    }

    /// The contents that `pins` mean, with all that they are made of.
    pub(crate) async fn pinned(&self, pins: &[ImagePattern]) -> Result<HashSet<i64>, IndexError> {
        let mut pinned = HashSet::new();
        if pins.is_empty() {
            return Ok(pinned);
        }
        let mut after = 0;
        loop {
            let repositories: Vec<(i64, String, String)> = sqlx::query_as(
                "SELECT id, host, name FROM repositories WHERE id > $1 ORDER BY id LIMIT $2",
            )
            .bind(after)
            .bind(BATCH)
            .fetch_all(&self.readers)
            .await?;
            let Some(last) = repositories.last() else { break };
            after = last.0;
            for (id, host, name) in repositories {
                let (Ok(host), Ok(repository)) = (host.parse(), name.parse()) else { continue };
                let named = Named { host, repository };
                let meant: Vec<_> = pins.iter().filter(|pin| pin.matches_name(&named)).collect();
                if !meant.is_empty() {
                    self.pin_in(id, &named, &meant, &mut pinned).await?;
                }
            }
        }
        let mut below: Vec<i64> = pinned.iter().copied().collect();
        while let Some(manifest) = below.pop() {
            let children: Vec<(i64,)> =
                sqlx::query_as("SELECT child FROM parts WHERE manifest = $1")
                    .bind(manifest)
                    .fetch_all(&self.readers)
                    .await?;
            below.extend(children.into_iter().filter(|it| pinned.insert(it.0)).map(|it| it.0));
        }
        Ok(pinned)
    }

    /// Adds what these pins mean in one repository.
    async fn pin_in(
        &self,
        repository: i64,
        named: &Named,
        pins: &[&ImagePattern],
        pinned: &mut HashSet<i64>,
    ) -> Result<(), IndexError> {
        if pins.iter().any(|pin| pin.is_whole(named)) {
            let rows: Vec<(i64,)> = sqlx::query_as(
                "SELECT content FROM members WHERE repository = $1 \
                 UNION SELECT content FROM tags WHERE repository = $1",
            )
            .bind(repository)
            .fetch_all(&self.readers)
            .await?;
            pinned.extend(rows.into_iter().map(|it| it.0));
            return Ok(());
        }
        let tags: Vec<(String, i64)> =
            sqlx::query_as("SELECT tag, content FROM tags WHERE repository = $1")
                .bind(repository)
                .fetch_all(&self.readers)
                .await?;
        for (tag, content) in tags {
            let Ok(tag) = tag.parse() else { continue };
            if pins.iter().any(|pin| pin.matches_tag(named, &tag)) {
                pinned.insert(content);
            }
        }
        for digest in pins.iter().filter_map(|pin| pin.digest()) {
            let row: Option<(i64,)> = sqlx::query_as(
                "SELECT id FROM contents JOIN members ON members.content = contents.id \
                 WHERE digest = $1 AND repository = $2",
            )
            .bind(digest.to_string())
            .bind(repository)
            .fetch_optional(&self.readers)
            .await?;
            pinned.extend(row.map(|it| it.0));
        }
        Ok(())
    }
}
