//! What tags named.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use larder_core::Digest;
use larder_core::Tag;
use larder_store::{Store, TagRecord};

use crate::home::{Home, close, repository};

#[tokio::test]
async fn a_tag_names_what_upstream_said_last_also_after_reopening() {
    let home = Home::new();
    let store = home.open().await;
    put(&store, "v1", "", 1).await;
    put(&store, "v1", "", 2).await;
    assert_eq!(get(&store, "v1", "").await, Some(record(2)));
    close(store).await;
    assert_eq!(get(&home.open().await, "v1", "").await, Some(record(2)));
}

#[tokio::test]
async fn a_tag_may_name_another_manifest_for_clients_that_accept_less() {
    let home = Home::new();
    let store = home.open().await;
    put(&store, "v1", "", 1).await;
    put(&store, "v1", "application/x", 2).await;
    close(store).await;
    let store = home.open().await;
    assert_eq!(get(&store, "v1", "").await, Some(record(1)));
    assert_eq!(get(&store, "v1", "application/x").await, Some(record(2)));
    assert_eq!(get(&store, "v1", "application/y").await, None);
}

#[tokio::test]
async fn a_removed_tag_is_gone_in_every_variant_and_no_other_is() {
    let home = Home::new();
    let store = home.open().await;
    for (tag, variant) in [("v1", ""), ("v1", "application/x"), ("v2", "")] {
        put(&store, tag, variant, 1).await;
    }
    let (named, tag) = (repository("ghcr.io/a/b"), "v1".parse::<Tag>().unwrap());
    store.remove_tag(&named, &tag).await.unwrap();
    assert_eq!(get(&store, "v1", "").await, None);
    close(store).await;
    let store = home.open().await;
    assert_eq!(get(&store, "v1", "").await, None);
    assert_eq!(get(&store, "v1", "application/x").await, None);
    assert_eq!(get(&store, "v2", "").await, Some(record(1)));
}

#[tokio::test]
async fn what_a_tag_names_is_a_member_of_its_repository() {
    let home = Home::new();
    let store = home.open().await;
    put(&store, "v1", "", 1).await;
    close(store).await;
    let store = home.open().await;
    let digest = record(1).digest;
    assert!(store.is_member(&repository("ghcr.io/a/b"), &digest).await.unwrap());
    assert!(!store.is_member(&repository("ghcr.io/a/c"), &digest).await.unwrap());
}

#[tokio::test]
async fn tags_are_listed_in_byte_order_page_by_page_and_each_once() {
    let home = Home::new();
    let store = home.open().await;
    for tag in ["b", "B", "a", "c", "_", "10", "9"] {
        put(&store, tag, "", 1).await;
        put(&store, tag, "application/x", 2).await;
    }
    let named = repository("ghcr.io/a/b");
    let mut pages = Vec::new();
    let mut last = String::new();
    loop {
        let page = store.tags(&named, &last, 3).await.unwrap();
        let Some(end) = page.last() else { break };
        last = end.clone();
        pages.push(page.join(" "));
    }
    assert_eq!(pages, ["10 9 B", "_ a b", "c"]);
    assert!(store.tags(&repository("ghcr.io/a/c"), "", 3).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_tag_that_changes_while_it_is_looked_up_is_not_remembered_as_it_was() {
    let home = Home::new();
    for round in 0..30 {
        let store = home.open().await;
        tokio::join!(get(&store, "v1", ""), put(&store, "v1", "", round), get(&store, "v1", ""));
        assert_eq!(get(&store, "v1", "").await, Some(record(round)));
        close(store).await;
    }
}

#[tokio::test]
async fn a_tag_that_is_removed_while_it_is_looked_up_is_not_remembered() {
    let home = Home::new();
    let (named, tag) = (repository("ghcr.io/a/b"), "v1".parse::<Tag>().unwrap());
    for _ in 0..30 {
        let store = home.open().await;
        put(&store, "v1", "", 1).await;
        close(store).await;
        let store = home.open().await;
        let remove = async { store.remove_tag(&named, &tag).await.unwrap() };
        tokio::join!(get(&store, "v1", ""), remove, get(&store, "v1", ""));
        assert_eq!(get(&store, "v1", "").await, None);
        close(store).await;
    }
}

async fn put(store: &Store, tag: &str, variant: &str, seed: u64) {
    let (tag, variant) = (tag.parse().unwrap(), Arc::from(variant));
    store.put_tag(&repository("ghcr.io/a/b"), &tag, &variant, record(seed)).await.unwrap();
}

async fn get(store: &Store, tag: &str, variant: &str) -> Option<TagRecord> {
    let (tag, variant) = (tag.parse().unwrap(), Arc::from(variant));
    let record = store.tag(&repository("ghcr.io/a/b"), &tag, &variant).await.unwrap();
    record.map(|record| (*record).clone())
}

fn record(seed: u64) -> TagRecord {
    TagRecord {
        digest: Digest::sha256_of(&seed.to_le_bytes()),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        size: 1000 + seed,
        checked_at: UNIX_EPOCH + Duration::from_millis(1_700_000_000_123 + seed),
    }
}
