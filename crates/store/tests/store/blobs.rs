//! Blobs that come in, whole or not, and are read again.

use bytes::Bytes;
use larder_core::Digest;
use larder_store::CommitError;

use crate::home::{Home, close, commit, content, read, read_all, repository, staged, try_commit};

#[tokio::test]
async fn a_committed_blob_has_its_bytes() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 700_000);
    let blob = try_commit(&store, &bytes).await.unwrap();
    assert_eq!((blob.len, read_all(&blob).await), (700_000, bytes.to_vec()));
    assert_eq!(read(&store, &blob.digest).await.unwrap(), bytes);
    assert_eq!(home.files("staging"), []);
}

#[tokio::test]
async fn a_committed_blob_is_found_after_reopening() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 700_000);
    let digest = commit(&store, &bytes).await;
    close(store).await;
    let store = home.open().await;
    assert_eq!(read(&store, &digest).await.unwrap(), bytes);
    assert_eq!(store.usage().bytes, home.room(700_000));
}

#[tokio::test]
async fn a_blob_named_by_sha512_is_kept_under_its_own_name() {
    let home = Home::new();
    let store = home.open().await;
    // `printf hello | sha512sum`
    let hex = "9b71d224bd62f3785d96d46ad3ea3d73319bfbc2890caadae2dff72519673ca7\
               2323c3d99ba5c11d7c7acc6e14b8c5da0c4663475c2e5c3adef46f73bcdec043";
    let digest: Digest = format!("sha512:{hex}").parse().unwrap();
    let staging = store.stage(&digest).await.unwrap();
    let staging = staging.write(vec![Bytes::from_static(b"hello")]).await.unwrap();
    staging.commit(None, &repository("ghcr.io/a/b")).await.unwrap();
    assert_eq!(std::fs::read(home.blob_path(&digest)).unwrap(), b"hello");
}

#[tokio::test]
async fn an_empty_blob_is_a_blob() {
    let home = Home::new();
    let store = home.open().await;
    let digest = commit(&store, &Bytes::new()).await;
    assert_eq!(read(&store, &digest).await.unwrap(), b"");
}

#[tokio::test]
async fn bytes_of_another_digest_are_never_visible() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let staging = staged(&store, &bytes, &content(2, 1000)).await;
    let error = staging.commit(Some(1000), &repository("ghcr.io/a/b")).await.unwrap_err();
    assert!(matches!(error, CommitError::Digest { .. }), "{error}");
    assert_eq!(read(&store, &Digest::sha256_of(&bytes)).await, None);
    store.close().await;
    home.assert_agrees_with(&store).await;
    assert_eq!(home.files("blobs"), []);
}

#[tokio::test]
async fn a_short_transfer_is_reported_as_short_and_never_visible() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let staging = staged(&store, &bytes, &bytes[..999]).await;
    let error = staging.commit(Some(1000), &repository("ghcr.io/a/b")).await.unwrap_err();
    assert!(matches!(error, CommitError::Length { expected: 1000, actual: 999 }), "{error}");
    store.close().await;
    home.assert_agrees_with(&store).await;
    assert_eq!(home.files("blobs"), []);
}

#[tokio::test]
async fn an_abandoned_staging_leaves_nothing() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let staging = staged(&store, &bytes, &bytes).await;
    assert_eq!(home.files("staging").len(), 1);
    drop(staging);
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn who_reads_along_can_read_before_and_after_the_commit() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let staging = staged(&store, &bytes, &bytes).await;
    let reader = staging.reader();
    assert_eq!(reader.read(0, 1000).await.unwrap(), bytes);
    staging.commit(Some(1000), &repository("ghcr.io/a/b")).await.unwrap();
    assert_eq!(reader.read(500, 1000).await.unwrap(), bytes[500..]);
}

#[tokio::test]
async fn two_writers_of_one_digest_do_not_meet() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let good = staged(&store, &bytes, &bytes).await;
    let bad = staged(&store, &bytes, &content(2, 1000)).await;
    let dropped = staged(&store, &bytes, &bytes[..10]).await;
    drop(dropped);
    let named = repository("ghcr.io/a/b");
    let (good, bad) = tokio::join!(good.commit(None, &named), bad.commit(None, &named));
    assert!(bad.is_err());
    assert_eq!(read_all(&good.unwrap()).await, bytes);
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_blob_that_is_stored_again_counts_once_and_its_readers_go_on() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let first = try_commit(&store, &bytes).await.unwrap();
    let second = try_commit(&store, &bytes).await.unwrap();
    assert_eq!(read_all(&first).await, read_all(&second).await);
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_blob_is_a_member_of_the_repository_it_was_stored_for_and_of_no_other() {
    let home = Home::new();
    let store = home.open().await;
    let digest = commit(&store, &content(1, 10)).await;
    let other = repository("ghcr.io/a/c");
    assert!(store.is_member(&repository("ghcr.io/a/b"), &digest).await.unwrap());
    assert!(!store.is_member(&other, &digest).await.unwrap());
    assert!(!store.is_member(&repository("quay.io/a/b"), &digest).await.unwrap());
    store.add_member(&other, &digest).await.unwrap();
    assert!(store.is_member(&other, &digest).await.unwrap());
    close(store).await;
    assert!(home.open().await.is_member(&other, &digest).await.unwrap());
}
