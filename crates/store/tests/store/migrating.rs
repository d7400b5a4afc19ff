//! A store that an earlier version has written is opened with everything in it.

use std::borrow::Cow;
use std::fs;

use larder_core::{Digest, media};
use sqlx::ConnectOptions as _;
use sqlx::migrate::Migrator;
use sqlx::sqlite::SqliteConnectOptions;

use crate::home::{Home, close, commit, content, read, repository};

static MIGRATIONS: Migrator = sqlx::migrate!("./migrations/sqlite");

#[tokio::test]
async fn every_earlier_schema_is_brought_up_to_date_with_what_is_in_it() {
    for n in 1..=MIGRATIONS.iter().count() {
        let home = Home::new();
        let (layer, manifest) = (content(1, 100), br#"{"schemaVersion":2}"#);
        let (layer_digest, digest) = (Digest::sha256_of(&layer), Digest::sha256_of(manifest));
        for (digest, bytes) in [(&layer_digest, &layer[..]), (&digest, &manifest[..])] {
            let path = home.blob_path(digest);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        let options = SqliteConnectOptions::new().create_if_missing(true);
        let mut index = options.filename(home.path().join("index.sqlite")).connect().await.unwrap();
        let earlier = MIGRATIONS.iter().take(n).cloned().collect();
        let earlier = Migrator { migrations: Cow::Owned(earlier), ..Migrator::DEFAULT };
        earlier.run(&mut index).await.unwrap();
        // What the first version wrote; later ones write more, and read this.
        let fill = format!(
            "INSERT INTO contents (id, digest) VALUES (1, '{layer_digest}'), (2, '{digest}'); \
             INSERT INTO blobs (content, size, stored_at, used_at, synced) \
               VALUES (1, 100, 1000, 2000, 1), (2, {}, 1000, 3000, 1); \
             INSERT INTO manifests (content, media_type) VALUES (2, '{}'); \
             INSERT INTO repositories (id, host, name) VALUES (1, 'ghcr.io', 'a/b'); \
             INSERT INTO members (repository, content) VALUES (1, 1), (1, 2); \
             INSERT INTO tags (repository, tag, variant, content, media_type, size, checked_at) \
               VALUES (1, 'v1', '', 2, '{1}', {0}, 4000);",
            manifest.len(),
            media::OCI_MANIFEST,
        );
        sqlx::raw_sql(sqlx::AssertSqlSafe(fill)).execute(&mut index).await.unwrap();
        if n >= 3 {
            let rooms = "UPDATE blobs SET room = (size + 4095) / 4096 * 4096";
            sqlx::raw_sql(rooms).execute(&mut index).await.unwrap();
        }
        drop(index);

        let store = home.open().await;
        assert_eq!(read(&store, &layer_digest).await.unwrap(), layer, "schema {n}");
        assert_eq!(&store.manifest(&digest).await.unwrap().unwrap().bytes[..], manifest);
        let name = repository("ghcr.io/a/b");
        assert!(store.is_member(&name, &layer_digest).await.unwrap());
        let tag = store.tag(&name, &"v1".parse().unwrap(), &"".into()).await.unwrap().unwrap();
        assert_eq!(tag.digest, digest);
        assert_eq!(store.usage().bytes, 2 * 4096);
        let listed = store.manifests(larder_store::Place::default(), 9).await.unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(store.tags_of(listed[0].place, 9).await.unwrap(), ["v1"]);
        // All of it is due to be verified since it was stored.
        let due = std::time::UNIX_EPOCH + std::time::Duration::from_secs(2);
        assert_eq!(store.unverified_since(due, 9).await.unwrap().len(), 2);
        commit(&store, &content(2, 10)).await;
        close(store.clone()).await;
        home.assert_agrees_with(&store).await;
    }
}
