//! What is stored, for people who look.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use larder_core::Digest;
use larder_core::name::Named;

use super::{Index, IndexError, from_millis};

/// A place in the list of stored manifests, between two of them. Written `REPOSITORY-CONTENT`, both
/// the index's own numbers: it stays right while others come and go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    repository: i64,
    content: i64,
}

/// The text is no place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a place in the list")]
pub struct ParsePlaceError;

/// A stored manifest of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Where it is in the list: the next ones come after it.
    pub place: Place,
    /// The repository.
    pub repository: Named,
    /// The manifest.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its length in bytes.
    pub size: u64,
    /// When it was last used, as far as that has been written down.
    pub used_at: SystemTime,
}

/// What the index has of a stored blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobRecord {
    /// Its length in bytes.
    pub size: u64,
    /// Its media type, if it is a manifest.
    pub media_type: Option<String>,
    /// When it was stored.
    pub stored_at: SystemTime,
    /// When it was last used, as far as that has been written down.
    pub used_at: SystemTime,
    /// When its bytes were last found to be right.
    pub verified_at: SystemTime,
}

/// What one repository has stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OfRepository {
    /// Which.
    pub repository: Named,
    /// In bytes of the disk.
    pub room: u64,
    /// How much of that other repositories have, too.
    pub shared: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.repository, self.content)
    }
}

impl FromStr for Place {
    type Err = ParsePlaceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (repository, content) = text.split_once('-').ok_or(ParsePlaceError)?;
        let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().map_err(|_| ParsePlaceError),
            false => Err(ParsePlaceError),
        };
        Ok(Self { repository: number(repository)?, content: number(content)? })
    }
}

impl Index {
    /// At most `limit` stored manifests after `place`.
    pub(crate) async fn manifests(
        &self,
        place: Place,
        limit: u32,
    ) -> Result<Vec<Listed>, IndexError> {
        type Row = (i64, i64, String, String, String, String, i64, i64);
        // CROSS JOIN: in the order of the memberships' own key, so that a page costs a page.
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT members.repository, members.content, host, name, digest, media_type, size, \
               used_at \
             FROM members CROSS JOIN manifests CROSS JOIN blobs CROSS JOIN contents \
               CROSS JOIN repositories \
             WHERE manifests.content = members.content AND blobs.content = members.content \
               AND contents.id = members.content AND repositories.id = members.repository \
               AND (members.repository, members.content) > ($1, $2) \
             ORDER BY members.repository, members.content LIMIT $3",
        )
        .bind(place.repository)
        .bind(place.content)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let listed = |(repository, content, host, name, digest, media_type, size, used_at): Row| {
            Some(Listed {
                place: Place { repository, content },
                repository: Named { host: host.parse().ok()?, repository: name.parse().ok()? },
                digest: digest.parse().ok()?,
                media_type,
                size: size.cast_unsigned(),
                used_at: from_millis(used_at),
            })
        };
        Ok(rows.into_iter().filter_map(listed).collect())
    }

    /// At most `limit` tags that name the manifest at `place`, in byte order.
    pub(crate) async fn tags_of(
        &self,
        place: Place,
        limit: u32,
    ) -> Result<Vec<String>, IndexError> {
        let rows: Vec<(String,)> = sqlx::query_as(
            "SELECT DISTINCT tag FROM tags WHERE repository = $1 AND content = $2 \
             ORDER BY tag LIMIT $3",
        )
        .bind(place.repository)
        .bind(place.content)
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        Ok(rows.into_iter().map(|(tag,)| tag).collect())
    }

    pub(crate) async fn blob_record(
        &self,
        digest: &Digest,
    ) -> Result<Option<BlobRecord>, IndexError> {
        let row: Option<(i64, Option<String>, i64, i64, i64)> = sqlx::query_as(
            "SELECT size, media_type, stored_at, used_at, coalesce(verified_at, stored_at) \
             FROM contents JOIN blobs ON blobs.content = contents.id \
             LEFT JOIN manifests ON manifests.content = contents.id WHERE digest = $1",
        )
        .bind(digest.to_string())
        .fetch_optional(&self.readers)
        .await?;
        Ok(row.map(|(size, media_type, stored_at, used_at, verified_at)| BlobRecord {
            size: size.cast_unsigned(),
            media_type,
            stored_at: from_millis(stored_at),
            used_at: from_millis(used_at),
            verified_at: from_millis(verified_at),
        }))
    }

    /// What repositories have stored, those first that have most.
    pub(crate) async fn room_by_repository(
        &self,
        limit: u32,
    ) -> Result<Vec<OfRepository>, IndexError> {
        let rows: Vec<(String, String, i64, i64)> = sqlx::query_as(
            "SELECT host, name, CAST(sum(room) AS BIGINT) AS total, \
               CAST(sum(CASE WHEN EXISTS (SELECT 1 FROM members AS other \
                 WHERE other.content = members.content \
                   AND other.repository <> members.repository) \
                 THEN room ELSE 0 END) AS BIGINT) AS shared \
             FROM members JOIN blobs ON blobs.content = members.content \
             JOIN repositories ON repositories.id = members.repository \
             GROUP BY host, name ORDER BY total DESC, host, name LIMIT $1",
        )
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let of_repository = |(host, name, room, shared): (String, String, i64, i64)| {
            let repository = Named { host: host.parse().ok()?, repository: name.parse().ok()? };
            let (room, shared) = (room.cast_unsigned(), shared.cast_unsigned());
            Some(OfRepository { repository, room, shared })
        };
        Ok(rows.into_iter().filter_map(of_repository).collect())
    }

    /// At most `limit` repositories that may serve `digest`, those known longest coming first.
    pub(crate) async fn repositories_of(
        &self,
        digest: &Digest,
        limit: u32,
    ) -> Result<Vec<Named>, IndexError> {
        let rows: Vec<(String, String)> = sqlx::query_as(
            "SELECT host, name FROM members \
             JOIN repositories ON repositories.id = members.repository \
             WHERE content = (SELECT id FROM contents WHERE digest = $1) \
             ORDER BY repositories.id LIMIT $2",
        )
        .bind(digest.to_string())
        .bind(i64::from(limit))
        .fetch_all(&self.readers)
        .await?;
        let named = |(host, name): (String, String)| {
            Some(Named { host: host.parse().ok()?, repository: name.parse().ok()? })
        };
        Ok(rows.into_iter().filter_map(named).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_reads_back_and_nothing_else_is_one() {
        let place = Place { repository: 7, content: 1234 };
        assert_eq!(place.to_string().parse(), Ok(place));
        for text in ["", "-", "7", "7-", "-7", "7--1", "+7-1", "7-1-2", "99999999999999999999-1"] {
            assert_eq!(text.parse::<Place>(), Err(ParsePlaceError), "{text}");
        }
    }
}
