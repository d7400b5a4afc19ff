//! Filling an empty index from what the files say, and then from what upstream says.

use std::time::SystemTime;

use larder_core::Digest;
use larder_core::name::Named;

use super::blobs::{put_manifest, put_parts};
use super::members::{put_member, repository_id};
use super::{Index, IndexError, Manifest, content_id, to_millis};

/// A blob that was found and verified.
#[derive(Clone, Debug)]
pub(crate) struct Recovered {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    /// What it takes of the disk, in bytes.
    pub(crate) room: u64,
    /// When its file was written.
    pub(crate) stored_at: SystemTime,
    /// What it is as a manifest, if it is one.
    pub(crate) manifest: Option<Manifest>,
}

impl Index {
    /// Records blobs that no repository is known for yet, as verified `now`, and as safe from a loss
    /// of power.
    pub(crate) async fn put_recovered(
        &self,
        blobs: &[Recovered],
        now: SystemTime,
    ) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        let connection = &mut *transaction;
        for blob in blobs {
            let content = content_id(connection, &blob.digest).await?;
            sqlx::query(
                "INSERT INTO blobs \
                   (content, size, stored_at, used_at, synced, verified_at, rank, room) \
                 VALUES ($1, $2, $3, $3, 1, $4, $5, $6)",
            )
            .bind(content)
            .bind(blob.size.cast_signed())
            .bind(to_millis(blob.stored_at))
            .bind(to_millis(now))
            .bind(to_millis(blob.stored_at) as f64)
            .bind(blob.room.cast_signed())
            .execute(&mut *connection)
            .await?;
            let Some(manifest) = &blob.manifest else { continue };
            let subject = match &manifest.references.subject {
                Some(subject) => Some(content_id(connection, subject).await?),
                None => None,
            };
            put_manifest(connection, content, &manifest.media_type, subject).await?;
            let mut parts = Vec::new();
            for part in &manifest.references.children {
                parts.push(content_id(connection, part).await?);
            }
            put_parts(connection, content, parts.into_iter()).await?;
        }
        transaction.commit().await?;
        Ok(())
    }

    /// Lets `repository` serve all of `digests`.
    pub(crate) async fn put_members(
        &self,
        repository: &Named,
        digests: &[Digest],
    ) -> Result<(), IndexError> {
        let mut transaction = self.writer.begin().await?;
        let repository = repository_id(&mut transaction, repository).await?;
        for digest in digests {
            let content = content_id(&mut transaction, digest).await?;
            put_member(&mut transaction, repository, content).await?;
        }
        transaction.commit().await?;
        Ok(())
    }
}
