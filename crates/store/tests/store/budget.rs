//! What goes when there is more than the budget allows, and what stays.

use larder_core::Digest;
use larder_store::{References, Store};

use crate::home::{Home, close, commit, content, read, repository, staged, try_commit};

/// As long as all blobs here are, unless a test says otherwise: whole blocks of the usual file systems.
const LEN: usize = 4096;

/// The same, as sizes are counted.
const ROOM: u64 = LEN as u64;

#[tokio::test]
async fn a_store_that_is_closed_holds_no_more_than_its_budget() {
    let home = Home::new();
    let store = home.open_with_budget(10 * ROOM).await;
    for seed in 0..50 {
        commit(&store, &content(seed, LEN)).await;
    }
    store.close().await;
    let usage = store.usage();
    assert!(usage.bytes <= 10 * ROOM, "{usage:?}");
    assert_eq!(usage.bytes + usage.evicted, 50 * ROOM);
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn nothing_goes_while_the_budget_is_kept() {
    let home = Home::new();
    let store = home.open_with_budget(10 * ROOM).await;
    for seed in 0..10 {
        commit(&store, &content(seed, LEN)).await;
    }
    store.close().await;
    assert_eq!((store.usage().bytes, store.usage().evicted), (10 * ROOM, 0));
}

#[tokio::test]
async fn of_blobs_that_were_used_once_those_go_first_that_came_first() {
    let home = Home::new();
    let digests = blobs_of_known_age(&home).await;
    // 100 blobs against a budget of 80: down to 72, so the 28 that came first go.
    let found = found_after_evicting(&home, &digests).await;
    assert_eq!(found, (28..100).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_use_protects_a_blob_also_after_reopening() {
    let home = Home::new();
    let digests = blobs_of_known_age(&home).await;
    let store = home.open().await;
    read(&store, &digests[0]).await.unwrap();
    close(store).await;
    let found = found_after_evicting(&home, &digests).await;
    assert_eq!((found[0], found[1], found.len()), (0, 29, 72));
}

#[tokio::test]
async fn a_blob_that_is_read_stays_and_the_next_one_goes() {
    let home = Home::new();
    let store = home.open_with_budget(2 * ROOM).await;
    // It would be the first to go.
    let read = try_commit(&store, &content(1, LEN)).await.unwrap();
    let next = commit(&store, &content(2, LEN)).await;
    commit(&store, &content(3, LEN)).await;
    store.collect(false).await.unwrap();
    let first = read.digest.clone();
    drop(read);
    close(store).await;
    let rows = home.rows().await;
    assert!(rows.contains(&first) && !rows.contains(&next), "{rows:?}");
}

#[tokio::test]
async fn the_bytes_of_an_evicted_blob_that_nobody_reads_are_free_at_once() {
    let home = Home::new();
    let store = home.open_with_budget(10 * ROOM).await;
    for seed in 0..50 {
        commit(&store, &content(seed, LEN)).await;
    }
    store.close().await;
    assert_eq!(open_but_deleted(&home), [""; 0]);
}

#[tokio::test]
async fn an_evicted_manifest_is_not_found_and_can_be_stored_again() {
    let home = Home::new();
    let store = home.open_with_budget(10 * ROOM).await;
    let (bytes, named) = (content(1, LEN), repository("ghcr.io/a/b"));
    let digest = Digest::sha256_of(&bytes);
    let child = Digest::sha256_of(b"child");
    let put = async |store: &Store| {
        let references = References { children: vec![child.clone()], subject: None };
        store.put_manifest(&named, &digest, "x/y", bytes.clone(), references).await.unwrap()
    };
    put(&store).await;
    close(store).await;
    home.sql("UPDATE blobs SET used_at = 0, rank = 0").await;
    let store = home.open_with_budget(10 * ROOM).await;
    for seed in 2..13 {
        commit(&store, &content(seed, LEN)).await;
    }
    close(store).await;
    let store = home.open_with_budget(10 * ROOM).await;
    assert!(store.manifest(&digest).await.unwrap().is_none());
    assert!(store.blob(&digest).await.unwrap().is_none());
    assert!(store.is_member(&named, &child).await.unwrap(), "what may be served is still known");
    put(&store).await;
    assert_eq!(store.manifest(&digest).await.unwrap().unwrap().bytes, bytes);
}

#[tokio::test]
async fn kept_beginnings_do_not_push_every_blob_out() {
    let home = Home::new();
    let store = home.open().await;
    for seed in 0..20 {
        let bytes = content(seed, LEN);
        staged(&store, &bytes, &bytes[..LEN - 1]).await.park().await.unwrap();
    }
    close(store).await;
    home.sql("UPDATE partials SET parked_at = parked_at - 1000").await;
    let store = home.open_with_budget(10 * ROOM).await;
    let digest = commit(&store, &content(100, LEN)).await;
    store.close().await;
    assert!(store.usage().bytes <= 10 * ROOM, "{:?}", store.usage());
    assert_eq!(home.rows().await, [digest]);
    home.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_blob_larger_than_the_budget_is_stored_and_goes_alone() {
    let home = Home::new();
    let store = home.open_with_budget(4 * ROOM).await;
    let others = [commit(&store, &content(1, LEN)).await, commit(&store, &content(2, LEN)).await];
    commit(&store, &content(3, 5 * LEN)).await;
    store.close().await;
    assert_eq!((store.usage().bytes, store.usage().evicted), (2 * ROOM, 5 * ROOM));
    assert_eq!(home.rows().await, others);
}

/// A hundred blobs, in the order in which they came.
async fn blobs_of_known_age(home: &Home) -> Vec<Digest> {
    let store = home.open().await;
    let mut digests = Vec::new();
    for seed in 0..100 {
        digests.push(commit(&store, &content(seed, LEN)).await);
    }
    close(store).await;
    home.sql("UPDATE blobs SET used_at = content * 1000, rank = content * 1000").await;
    digests
}

/// Which of `digests` are still found after a store with a budget of 80 blobs was open.
async fn found_after_evicting(home: &Home, digests: &[Digest]) -> Vec<usize> {
    close(home.open_with_budget(80 * ROOM).await).await;
    let rows = home.rows().await;
    (0..digests.len()).filter(|n| rows.contains(&digests[*n])).collect()
}

/// Files of this store that take up space although they have no name any more.
fn open_but_deleted(home: &Home) -> Vec<String> {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    targets
        .map(|target| target.display().to_string())
        .filter(|target| target.contains(home.path().to_str().unwrap()))
        .filter(|target| target.ends_with("(deleted)"))
        .collect()
}
