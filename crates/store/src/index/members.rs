//! Which repository may serve what.

use larder_core::Digest;
use larder_core::name::Named;
use sqlx::AnyConnection;

use super::{Index, IndexError, content_id};

impl Index {
    pub(crate) async fn is_member(
        &self,
        repository: &Named,
        digest: &Digest,
    ) -> Result<bool, IndexError> {
        let row: Option<(i64,)> = sqlx::query_as(
            "SELECT 1 FROM members \
             WHERE repository = (SELECT id FROM repositories WHERE host = $1 AND name = $2) \
               AND content = (SELECT id FROM contents WHERE digest = $3)",
        )
        .bind(repository.host.as_str())
        .bind(repository.repository.as_str())
        .bind(digest.to_string())
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.is_some())
    }

    /// At most `limit` manifests of `repository` whose subject is `subject`, those stored first
    /// coming first.
    pub(crate) async fn referrers(
        &self,
        repository: &Named,
        subject: &Digest,
        limit: u32,
    ) -> Result<Vec<Digest>, IndexError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT contents.digest FROM manifests \
             JOIN contents ON contents.id = manifests.content \
             JOIN members ON members.content = manifests.content \
             WHERE subject = (SELECT id FROM contents WHERE digest = $1) \
               AND repository = (SELECT id FROM repositories WHERE host = $2 AND name = $3) \
             ORDER BY manifests.content LIMIT $4",
        )
        .bind(subject.to_string())
        .bind(repository.host.as_str())
        .bind(repository.repository.as_str())
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().filter_map(|(digest,)| digest.parse().ok()).collect())
    }

    /// At most `limit` repositories that have a stored manifest, after `last`, in the byte order of
    /// `host/name`.
    pub(crate) async fn repositories(
        &self,
        last: &str,
        limit: u32,
    ) -> Result<Vec<Named>, IndexError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT host, name FROM repositories \
             WHERE host || '/' || name > $1 AND EXISTS ( \
               SELECT 1 FROM members JOIN manifests ON manifests.content = members.content \
               WHERE members.repository = repositories.id) \
             ORDER BY host || '/' || name LIMIT $2",
        )
        .bind(last)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let named = |(host, name): (String, String)| {
            Some(Named { host: host.parse().ok()?, repository: name.parse().ok()? })
        };
        Ok(rows.into_iter().filter_map(named).collect())
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
    connection: &mut AnyConnection,
    name: &Named,
) -> sqlx::Result<i64> {
    let find = async |connection: &mut AnyConnection| {
        sqlx::query_scalar("SELECT id FROM repositories WHERE host = $1 AND name = $2")
            .bind(name.host.as_str())
            .bind(name.repository.as_str())
            .fetch_optional(connection)
            .await
    };
    if let Some(id) = find(connection).await? {
        return Ok(id);
    }
    let inserted = sqlx::query_scalar(
        "INSERT INTO repositories (host, name) VALUES ($1, $2) \
         ON CONFLICT DO NOTHING RETURNING id",
    )
    .bind(name.host.as_str())
    .bind(name.repository.as_str())
    .fetch_optional(&mut *connection)
    .await?;
    match inserted {
        Some(id) => Ok(id),
        // Another replica was first.
        None => find(connection).await?.ok_or(sqlx::Error::RowNotFound),
    }
}

pub(super) async fn put_member(
    connection: &mut AnyConnection,
    repository: i64,
    content: i64,
) -> sqlx::Result<()> {
    sqlx::query("INSERT INTO members (repository, content) VALUES ($1, $2) ON CONFLICT DO NOTHING")
        .bind(repository)
        .bind(content)
        .execute(connection)
        .await?;
    Ok(())
}
