//! Beginnings of blobs that are kept for the next fill.

use larder_core::Digest;

use crate::home::{Home, close, content, read, repository, staged};

#[tokio::test]
async fn a_parked_beginning_goes_on_after_reopening() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 3_000_000);
    staged(&store, &bytes, &bytes[..2_000_000]).await.park().await.unwrap();
    assert_eq!(store.usage().bytes, home.room(2_000_000));
    close(store).await;
    let store = home.open().await;
    assert_eq!(store.usage().bytes, home.room(2_000_000));
    let staging = store.stage(&Digest::sha256_of(&bytes)).await.unwrap();
    assert_eq!((staging.len(), store.usage().bytes), (2_000_000, 0));
    let staging = staging.write(vec![bytes.slice(2_000_000..)]).await.unwrap();
    let digest = staging.commit(Some(3_000_000), &repository("ghcr.io/a/b")).await.unwrap().digest;
    assert_eq!(read(&store, &digest).await.unwrap(), bytes);
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_beginning_that_was_taken_is_not_there_for_a_second_fill() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    staged(&store, &bytes, &bytes[..600]).await.park().await.unwrap();
    let first = store.stage(&Digest::sha256_of(&bytes)).await.unwrap();
    let second = store.stage(&Digest::sha256_of(&bytes)).await.unwrap();
    assert_eq!((first.len(), second.len()), (600, 0));
    let crashed = home.crashed();
    let after = crashed.open().await;
    assert_eq!(after.stage(&Digest::sha256_of(&bytes)).await.unwrap().len(), 0);
    assert_eq!(after.usage().bytes, 0);
    after.close().await;
    crashed.assert_agrees_with(&after).await;
}

#[tokio::test]
async fn nothing_is_kept_of_a_fill_that_brought_nothing() {
    let home = Home::new();
    let store = home.open().await;
    staged(&store, &content(1, 1000), b"").await.park().await.unwrap();
    store.close().await;
    assert_eq!(home.files("partial"), []);
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_beginning_that_replaces_another_counts_alone() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let first = staged(&store, &bytes, &bytes[..600]).await;
    let second = staged(&store, &bytes, &bytes[..400]).await;
    first.park().await.unwrap();
    second.park().await.unwrap();
    assert_eq!(store.usage().bytes, home.room(400));
    assert_eq!(store.stage(&Digest::sha256_of(&bytes)).await.unwrap().len(), 400);
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_beginning_whose_bytes_were_changed_on_disk_is_discarded() {
    discarded_after(|beginning| beginning[300] ^= 1).await;
}

#[tokio::test]
async fn a_beginning_that_was_shortened_on_disk_is_discarded() {
    discarded_after(|beginning| beginning.truncate(599)).await;
}

#[tokio::test]
async fn a_beginning_that_was_lengthened_on_disk_is_discarded() {
    discarded_after(|beginning| beginning.push(0)).await;
}

#[tokio::test]
async fn a_beginning_whose_file_is_gone_is_not_counted() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    staged(&store, &bytes, &bytes[..600]).await.park().await.unwrap();
    std::fs::remove_file(home.partial_path(&Digest::sha256_of(&bytes))).unwrap();
    assert_eq!(store.stage(&Digest::sha256_of(&bytes)).await.unwrap().len(), 0);
    store.close().await;
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_beginning_is_dropped_after_a_day_and_not_before() {
    let home = Home::new();
    let store = home.open().await;
    let (old, young) = (content(1, 1000), content(2, 1000));
    staged(&store, &old, &old[..600]).await.park().await.unwrap();
    staged(&store, &young, &young[..500]).await.park().await.unwrap();
    close(store).await;
    // A day is 86,400,000 ms; the older one is past it, the younger one a minute short of it.
    home.sql("UPDATE partials SET parked_at = parked_at - iif(size = 600, 86400001, 86340000)")
        .await;
    let store = home.open().await;
    store.close().await;
    assert_eq!(store.usage().bytes, home.room(500));
    assert!(!home.partial_path(&Digest::sha256_of(&old)).exists());
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_beginning_that_the_index_refuses_leaves_nothing() {
    let home = Home::new();
    close(home.open().await).await;
    home.sql(
        "CREATE TRIGGER refuse BEFORE INSERT ON partials BEGIN SELECT RAISE(ABORT, 'no'); END",
    )
    .await;
    let store = home.open().await;
    let bytes = content(1, 1000);
    staged(&store, &bytes, &bytes[..600]).await.park().await.unwrap_err();
    store.close().await;
    assert_eq!(home.files("partial"), []);
    home.assert_agrees_with(&store).await;
}

/// Parks a beginning, changes it on disk, and expects the next fill to begin from nothing.
async fn discarded_after(change: impl Fn(&mut Vec<u8>)) {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let digest = Digest::sha256_of(&bytes);
    staged(&store, &bytes, &bytes[..600]).await.park().await.unwrap();
    let mut beginning = std::fs::read(home.partial_path(&digest)).unwrap();
    change(&mut beginning);
    std::fs::write(home.partial_path(&digest), beginning).unwrap();
    assert_eq!(store.stage(&digest).await.unwrap().len(), 0);
    assert_eq!(store.usage().bytes, 0);
    store.close().await;
    home.assert_agrees_with(&store).await;
}
