//! Which repository may serve what.

use larder_core::Digest;
use larder_core::name::Named;
use sqlx::sqlite::SqliteConnection;

use super::{Index, IndexError, content_id};

impl Index {
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
}

pub(super) async fn repository_id(
    connection: &mut SqliteConnection,
    name: &Named,
) -> sqlx::Result<i64> {
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

pub(super) async fn put_member(
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
