//! Files that are not what they were: nobody is given wrong bytes, and the content can come again.

use std::fs::OpenOptions;
use std::path::Path;

use larder_core::Digest;
use larder_store::{CommitError, Store};

use crate::home::{Home, close, commit, content, read, try_commit};

#[tokio::test]
async fn a_blob_of_a_wrong_length_is_forgotten_and_can_be_stored_again() {
    for length in [0, 999, 1001] {
        can_be_stored_again_after(|path| set_len(path, length)).await;
    }
}

#[tokio::test]
async fn a_blob_whose_file_is_gone_is_forgotten_and_can_be_stored_again() {
    can_be_stored_again_after(|path| std::fs::remove_file(path).unwrap()).await;
}

async fn can_be_stored_again_after(damage: impl Fn(&Path)) {
    let home = Home::new();
    let bytes = content(1, 1000);
    let (store, digest) = home.reopened_with(&bytes, |path| damage(path)).await;
    assert_eq!(read(&store, &digest).await, None);
    assert_eq!(store.usage().bytes, home.room(10));
    let crashed = home.crashed();
    commit(&store, &bytes).await;
    assert_eq!(read(&store, &digest).await.unwrap(), bytes);
    store.close().await;
    home.assert_agrees_with(&store).await;

    let store = crashed.open().await;
    assert_eq!(read(&store, &digest).await, None);
    store.close().await;
    crashed.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_lost_blob_that_many_ask_for_is_subtracted_once() {
    let home = Home::new();
    let remove = |path: &Path| std::fs::remove_file(path).unwrap();
    let (store, digest) = home.reopened_with(&content(1, 1000), remove).await;
    let ask = async || assert_eq!(read(&store, &digest).await, None);
    tokio::join!(ask(), ask(), ask(), ask());
    assert_eq!(store.usage().bytes, home.room(10));
}

#[tokio::test]
async fn a_blob_that_is_cut_short_while_it_is_open_is_forgotten() {
    let home = Home::new();
    let store = home.open().await;
    let digest = commit(&store, &content(1, 1000)).await;
    assert!(store.blob(&digest).await.unwrap().is_some());
    set_len(&home.blob_path(&digest), 999);
    assert!(store.blob(&digest).await.unwrap().is_none());
}

#[tokio::test]
async fn an_unsynced_blob_that_did_not_survive_is_forgotten_at_the_start() {
    let changes: [fn(&Path); 3] = [
        |path| set_len(path, 999),
        |path| std::fs::write(path, content(2, 1000)).unwrap(),
        |path| std::fs::remove_file(path).unwrap(),
    ];
    for change in changes {
        let home = Home::new();
        let (store, digest) = home.unsynced_with(&content(1, 1000), change).await;
        assert_eq!(store.usage().bytes, home.room(10));
        assert_eq!(read(&store, &digest).await, None);
        store.close().await;
        home.assert_agrees_with(&store).await;
    }
}

#[tokio::test]
async fn an_unsynced_blob_that_is_whole_stays_and_is_synced_soon() {
    let home = Home::new();
    let bytes = content(1, 1000);
    let (store, digest) = home.unsynced_with(&bytes, |_| {}).await;
    assert_eq!(read(&store, &digest).await.unwrap(), bytes);
    close(store).await;
    assert_eq!(home.unsynced().await, 0);
}

#[tokio::test]
async fn a_store_that_was_closed_has_synced_everything() {
    let home = Home::new();
    let store = home.open().await;
    for seed in 0..200 {
        commit(&store, &content(seed, 100)).await;
    }
    close(store).await;
    assert_eq!(home.unsynced().await, 0);
}

#[tokio::test]
async fn files_without_an_owner_are_swept() {
    let home = Home::new();
    let store = home.open().await;
    let digest = commit(&store, &content(1, 1000)).await;
    close(store).await;
    let orphan = Digest::sha256_of(b"orphan");
    let path = home.blob_path(&orphan);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, "orphan").unwrap();
    std::fs::write(home.partial_path(&orphan), "orph").unwrap();
    std::fs::write(home.path().join("staging/1"), "or").unwrap();
    let store = home.open().await;
    assert_eq!(home.files("staging"), []);
    while path.exists() {
        tokio::task::yield_now().await;
    }
    assert_eq!(read(&store, &digest).await.unwrap().len(), 1000);
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_blob_that_the_index_refuses_leaves_no_file() {
    let home = Home::new();
    close(home.open().await).await;
    home.sql("CREATE TRIGGER refuse BEFORE INSERT ON blobs BEGIN SELECT RAISE(ABORT, 'no'); END")
        .await;
    let store = home.open().await;
    let error = try_commit(&store, &content(1, 1000)).await.unwrap_err();
    assert!(matches!(error, CommitError::Index { .. }), "{error}");
    store.close().await;
    assert_eq!(home.files("blobs"), []);
    home.assert_agrees_with(&store).await;
}

fn set_len(path: &Path, len: u64) {
    OpenOptions::new().write(true).open(path).unwrap().set_len(len).unwrap();
}

impl Home {
    /// A store opened anew over a blob that was damaged meanwhile, and one of 10 bytes that was not.
    async fn reopened_with(&self, bytes: &bytes::Bytes, damage: impl Fn(&Path)) -> (Store, Digest) {
        let store = self.open().await;
        commit(&store, &content(77, 10)).await;
        let digest = commit(&store, bytes).await;
        close(store).await;
        damage(&self.blob_path(&digest));
        (self.open().await, digest)
    }

    /// As [`Home::reopened_with`], where power was lost before the blobs were synced.
    async fn unsynced_with(&self, bytes: &bytes::Bytes, damage: impl Fn(&Path)) -> (Store, Digest) {
        let (store, digest) = self.reopened_with(bytes, |_| {}).await;
        close(store).await;
        self.sql("UPDATE blobs SET synced = 0").await;
        damage(&self.blob_path(&digest));
        (self.open().await, digest)
    }
}
