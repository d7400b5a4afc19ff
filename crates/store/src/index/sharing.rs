//! What replicas that share an index agree on in it: who is there, who does what, who changes which
//! object. In PostgreSQL only; all times are the server's.

use std::time::Duration;

use larder_core::Digest;
use larder_core::name::Named;

use super::{Index, IndexError};

/// How long a replica that has not been heard of is remembered.
const FORGOTTEN_AFTER: f64 = 60.0;

/// A claim on one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) digest: Digest,
    /// An upload in parts that whoever had the claim before has begun and not ended.
    pub(crate) upload: Option<String>,
}

impl Index {
    // === replicas ===

    /// Says that the replica at `url` is there.
    pub(crate) async fn put_replica(&self, url: &str) -> Result<(), IndexError> {
        sqlx::query(
            "INSERT INTO replicas (url, seen_at) VALUES ($1, clock_timestamp()) \
             ON CONFLICT (url) DO UPDATE SET seen_at = excluded.seen_at",
        )
        .bind(url)
        .execute(&self.writer)
        .await?;
        sqlx::query(
            "DELETE FROM replicas WHERE seen_at < clock_timestamp() - make_interval(secs => $1)",
        )
        .bind(FORGOTTEN_AFTER)
        .execute(&self.writer)
        .await?;
        Ok(())
    }

    /// Says that it is not there any more.
    pub(crate) async fn remove_replica(&self, url: &str) -> Result<(), IndexError> {
        let remove = sqlx::query("DELETE FROM replicas WHERE url = $1");
        remove.bind(url).execute(&self.writer).await?;
        Ok(())
    }

    /// The replicas that were heard of within a time, in the order of their URLs.
    pub(crate) async fn replicas(&self, within: Duration) -> Result<Vec<String>, IndexError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT url FROM replicas \
             WHERE seen_at > clock_timestamp() - make_interval(secs => $1) ORDER BY url",
        )
        .bind(within.as_secs_f64())
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(|(url,)| url).collect())
    }

    // === leases ===

    /// Takes or keeps a lease for a time; whether `holder` has it.
    pub(crate) async fn lease(
        &self,
        name: &str,
        holder: &str,
        time: Duration,
    ) -> Result<bool, IndexError> {
        let taken = sqlx::query(
            "INSERT INTO leases (name, holder, expires_at) \
             VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3)) \
             ON CONFLICT (name) DO UPDATE \
             SET holder = excluded.holder, expires_at = excluded.expires_at \
             WHERE leases.holder = excluded.holder OR leases.expires_at < clock_timestamp()",
        )
        .bind(name)
        .bind(holder)
        .bind(time.as_secs_f64())
        .execute(&self.writer)
        .await?;
        Ok(taken.rows_affected() > 0)
    }

    /// Gives back the leases that `holder` has.
    pub(crate) async fn release_leases(&self, holder: &str) -> Result<(), IndexError> {
        let release = sqlx::query("DELETE FROM leases WHERE holder = $1");
        release.bind(holder).execute(&self.writer).await?;
        Ok(())
    }

    // === claims ===

    /// Claims an object for a time; `None` if somebody else has it.
    pub(crate) async fn claim(
        &self,
        digest: &Digest,
        holder: &str,
        time: Duration,
    ) -> Result<Option<Claim>, IndexError> {
        let claimed: Option<(Option<String>,)> = sqlx::query_as(
            "INSERT INTO claims (digest, holder, expires_at) \
             VALUES ($1, $2, clock_timestamp() + make_interval(secs => $3)) \
             ON CONFLICT (digest) DO UPDATE \
             SET holder = excluded.holder, expires_at = excluded.expires_at \
             WHERE claims.expires_at < clock_timestamp() RETURNING upload",
        )
        .bind(digest.to_string())
        .bind(holder)
        .bind(time.as_secs_f64())
        .fetch_optional(&self.writer)
        .await?;
        Ok(claimed.map(|(upload,)| Claim { digest: digest.clone(), upload }))
    }

    /// Keeps a claim for a time, and notes the upload in parts that goes on under it; whether
    /// `holder` still has it.
    pub(crate) async fn keep_claim(
        &self,
        digest: &Digest,
        holder: &str,
        upload: Option<&str>,
        time: Duration,
    ) -> Result<bool, IndexError> {
        let kept = sqlx::query(
            "UPDATE claims SET upload = $3, \
               expires_at = clock_timestamp() + make_interval(secs => $4) \
             WHERE digest = $1 AND holder = $2",
        )
        .bind(digest.to_string())
        .bind(holder)
        .bind(upload)
        .bind(time.as_secs_f64())
        .execute(&self.writer)
        .await?;
        Ok(kept.rows_affected() > 0)
    }

    /// Gives a claim back.
    pub(crate) async fn release_claim(
        &self,
        digest: &Digest,
        holder: &str,
    ) -> Result<(), IndexError> {
        sqlx::query("DELETE FROM claims WHERE digest = $1 AND holder = $2")
            .bind(digest.to_string())
            .bind(holder)
            .execute(&self.writer)
            .await?;
        Ok(())
    }

    /// At most `limit` objects whose claims have run out.
    pub(crate) async fn abandoned(&self, limit: u32) -> Result<Vec<Digest>, IndexError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT digest FROM claims WHERE expires_at < clock_timestamp() \
             ORDER BY expires_at LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().filter_map(|(digest,)| digest.parse().ok()).collect())
    }

    // === what is shared ===

    /// Notes that `repository` may serve some contents.
    pub(crate) async fn put_memberships(
        &self,
        repositories: &[Named],
        digest: &Digest,
    ) -> Result<(), IndexError> {
        for repository in repositories {
            self.put_member(repository, digest).await?;
        }
        Ok(())
    }

    /// At most `limit` stored blobs that are not known to be shared, behind `after` in the order in
    /// which their names became known; each with its place there.
    pub(crate) async fn unshared(
        &self,
        after: i64,
        limit: u32,
    ) -> Result<Vec<(i64, Digest)>, IndexError> {
        let rows: Vec<(i64, String)> = sqlx::query_as(
            "SELECT content, digest FROM blobs JOIN contents ON contents.id = blobs.content \
             WHERE shared = 0 AND content > $1 ORDER BY content LIMIT $2",
        )
        .bind(after)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let parsed = |(content, digest): (i64, String)| Some((content, digest.parse().ok()?));
        Ok(rows.into_iter().filter_map(parsed).collect())
    }

    /// Notes whether a blob is shared.
    pub(crate) async fn set_shared(
        &self,
        digest: &Digest,
        is_shared: bool,
    ) -> Result<(), IndexError> {
        sqlx::query(
            "UPDATE blobs SET shared = $1 \
             WHERE content = (SELECT id FROM contents WHERE digest = $2)",
        )
        .bind(i64::from(is_shared))
        .bind(digest.to_string())
        .execute(&self.writer)
        .await?;
        Ok(())
    }
}
