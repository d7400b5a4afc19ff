//! The index is made again from the blobs.

use std::fs;

use bytes::Bytes;
use larder_core::{Digest, media};
use larder_store::{OpenError, References, Store, TagRecord, rebuild_index};

use crate::home::{Home, close, commit, content, read, repository};

#[tokio::test]
async fn a_lost_index_is_made_again_and_knows_blobs_and_manifests() {
    let home = Home::new();
    let (layer, manifest) = filled(&home).await;
    fs::remove_file(home.path().join("index.sqlite")).unwrap();
    let found = rebuild_index(home.path(), 2, |_| {}).await.unwrap();
    assert_eq!((found.blobs, found.manifests, found.bad), (2, 1, 0));
    assert_eq!(found.bytes, home.files("blobs").iter().map(|(_, len)| len).sum::<u64>());

    let store = home.open().await;
    let digest = Digest::sha256_of(&layer);
    assert_eq!(read(&store, &digest).await.unwrap(), layer);
    let stored = store.manifest(&Digest::sha256_of(&manifest)).await.unwrap().unwrap();
    assert_eq!((&stored.bytes, stored.media_type.as_str()), (&manifest, media::OCI_MANIFEST));
    // Which repository may serve it is not in the files.
    let name = repository("ghcr.io/a/b");
    assert!(!store.is_member(&name, &digest).await.unwrap());
    assert!(store.tag(&name, &"1".parse().unwrap(), &"".into()).await.unwrap().is_none());

    // Once upstream has confirmed the manifest, it is what it was: also about its subject.
    store.add_manifest_member(&name, &stored.digest, vec![digest.clone()]).await.unwrap();
    assert!(store.is_member(&name, &digest).await.unwrap());
    let referrers = store.referrers(&name, &Digest::sha256_of(b"subject"), 9).await.unwrap();
    assert_eq!(referrers[0].digest, stored.digest);
    close(store.clone()).await;
    home.assert_agrees_with(&store).await;
    assert_eq!(home.unsynced().await, 0);
}

#[tokio::test]
async fn what_is_not_what_its_name_says_goes_to_quarantine() {
    let home = Home::new();
    let (layer, manifest) = filled(&home).await;
    fs::write(home.blob_path(&Digest::sha256_of(&layer)), "other").unwrap();
    fs::write(home.blob_path(&Digest::sha256_of(&manifest)).with_file_name("noise"), "x").unwrap();
    let found = rebuild_index(home.path(), 1, |_| {}).await.unwrap();
    assert_eq!((found.blobs, found.bad), (1, 2));
    assert_eq!(home.files("quarantine").len(), 1);
    let store = home.open().await;
    close(store.clone()).await;
    home.assert_agrees_with(&store).await;
    // What was known before is still there, for who needs it.
    assert!(home.path().join("index.sqlite.old").exists());
}

#[tokio::test]
async fn an_index_that_cannot_be_read_does_not_matter() {
    let home = Home::new();
    filled(&home).await;
    fs::write(home.path().join("index.sqlite"), "no database at all, and long enough").unwrap();
    assert!(home.try_open(None).await.is_err());
    assert_eq!(rebuild_index(home.path(), 1, |_| {}).await.unwrap().blobs, 2);
    let store = home.open().await;
    close(store.clone()).await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn the_log_of_the_old_index_is_not_taken_for_the_new_ones() {
    let home = Home::new();
    let store = home.open().await;
    let digest = commit(&store, &content(1, 10)).await;
    let crashed = home.crashed();
    assert!(crashed.path().join("index.sqlite-wal").metadata().unwrap().len() > 0);
    close(store).await;
    // By the log, this is still stored.
    fs::remove_file(crashed.blob_path(&digest)).unwrap();
    assert_eq!(rebuild_index(crashed.path(), 1, |_| {}).await.unwrap().blobs, 0);
    assert!(!crashed.path().join("index.sqlite-wal").exists());
    assert_eq!(crashed.rows().await, []);
    let store = crashed.open().await;
    close(store.clone()).await;
    crashed.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_store_in_use_is_left_alone_and_none_is_made() {
    let home = Home::new();
    let store = home.open().await;
    let error = rebuild_index(home.path(), 1, |_| {}).await.unwrap_err();
    assert!(matches!(error, OpenError::InUse(_)), "{error}");
    close(store).await;
    let nowhere = home.path().join("nowhere");
    let error = rebuild_index(&nowhere, 1, |_| {}).await.unwrap_err();
    assert!(matches!(error, OpenError::Absent(_)), "{error}");
    let settings = larder_store::Settings::new(nowhere.clone());
    let error = Store::open_existing(settings).await.unwrap_err();
    assert!(matches!(error, OpenError::Absent(_)), "{error}");
    assert!(!nowhere.exists());
}

/// A closed store with a layer, and a manifest that refers to it, is about something, and has a tag.
async fn filled(home: &Home) -> (Bytes, Bytes) {
    let store = home.open().await;
    let layer = content(1, 2 << 20);
    let digest = commit(&store, &layer).await;
    let subject = Digest::sha256_of(b"subject");
    let descriptor = |digest: &Digest, size: usize| {
        format!(r#"{{"mediaType":"x/y","digest":"{digest}","size":{size}}}"#)
    };
    let manifest = Bytes::from(format!(
        r#"{{"schemaVersion":2,"layers":[{}],"subject":{}}}"#,
        descriptor(&digest, layer.len()),
        descriptor(&subject, 7),
    ));
    let name = repository("ghcr.io/a/b");
    let references = References { children: vec![digest], subject: Some(subject) };
    let named = Digest::sha256_of(&manifest);
    let media_type = media::OCI_MANIFEST;
    store.put_manifest(&name, &named, media_type, manifest.clone(), references).await.unwrap();
    let record = TagRecord {
        digest: named,
        media_type: media_type.to_owned(),
        size: manifest.len() as u64,
        checked_at: std::time::SystemTime::now(),
    };
    store.put_tag(&name, &"1".parse().unwrap(), &"".into(), record).await.unwrap();
    close(store).await;
    (layer, manifest)
}
