//! What stays and what goes by its age, its pins and its quota.

use std::time::Duration;

use larder_core::Digest;
use larder_core::retention::{OfUpstream, Retention, Ttl};
use larder_store::{Reason, References, Settings, Store};

use crate::home::{Home, close, commit, content, repository, try_commit_to};

const LEN: usize = 4096;
const DAY: Duration = Duration::from_secs(86_400);

#[tokio::test]
async fn what_has_gone_unused_for_longer_than_it_may_goes_also_if_it_was_stored_before() {
    let home = Home::new();
    let old = stored_days_ago(&home, 1, 10).await;
    let new = stored_days_ago(&home, 2, 3).await;
    assert_eq!(kept(&home, Retention::default()).await.len(), 2);
    let week = Retention { ttl: Ttl::After(7 * DAY), ..Retention::default() };
    assert_eq!(kept(&home, week.clone()).await, std::slice::from_ref(&new));
    assert!(!kept(&home, week).await.contains(&old));
    let day = Retention { ttl: Ttl::After(DAY), ..Retention::default() };
    assert_eq!(kept(&home, day).await, []);
}

#[tokio::test]
async fn a_layer_of_an_image_that_is_used_stays() {
    let home = Home::new();
    let store = home.open().await;
    let (layer, manifest) = (content(1, LEN), content(2, LEN));
    let (layer_name, image) = (Digest::sha256_of(&layer), Digest::sha256_of(&manifest));
    commit(&store, &layer).await;
    let references = References { children: vec![layer_name.clone()], subject: None };
    let named = repository("ghcr.io/a/b");
    store.put_manifest(&named, &image, "x/y", manifest, references).await.unwrap();
    close(store).await;
    home.sql("UPDATE blobs SET used_at = used_at - 864000000").await;

    let store = open(&home, Retention::default()).await;
    store.manifest(&image).await.unwrap().unwrap();
    close(store).await;
    let week = Retention { ttl: Ttl::After(7 * DAY), ..Retention::default() };
    let mut both = [layer_name, image];
    both.sort();
    assert_eq!(kept(&home, week).await, both);
}

#[tokio::test]
async fn a_pinned_image_stays_with_its_layers_whatever_the_budget() {
    let home = Home::new();
    let store = home.open_with_budget(4 * LEN as u64).await;
    let (layer, manifest) = (content(1, LEN), content(2, LEN));
    let (layer_name, image) = (Digest::sha256_of(&layer), Digest::sha256_of(&manifest));
    let references = References { children: vec![layer_name.clone()], subject: None };
    let named = repository("ghcr.io/a/b");
    store.put_manifest(&named, &image, "x/y", manifest, references).await.unwrap();
    commit(&store, &layer).await;
    let pin = format!("ghcr.io/a/b@{image}").parse().unwrap();
    store.pin(&pin).await.unwrap();
    for seed in 10..30 {
        commit(&store, &content(seed, LEN)).await;
    }
    close(store).await;
    let rows = home.rows().await;
    assert!(rows.contains(&layer_name) && rows.contains(&image), "{rows:?}");

    let store = home.open_with_budget(LEN as u64).await;
    assert_eq!(store.pins().await.unwrap().len(), 1);
    assert!(store.unpin(&pin).await.unwrap());
    store.collect(false).await.unwrap();
    assert!(store.usage().bytes <= LEN as u64, "{:?}", store.usage());
}

#[tokio::test]
async fn an_image_goes_whole() {
    let home = Home::new();
    let store = home.open().await;
    let mut images = Vec::new();
    for n in 0..10 {
        let (layer, manifest) = (content(2 * n, LEN), content(2 * n + 1, LEN));
        let (layer_name, image) = (Digest::sha256_of(&layer), Digest::sha256_of(&manifest));
        let references = References { children: vec![layer_name.clone()], subject: None };
        let named = repository("ghcr.io/a/b");
        store.put_manifest(&named, &image, "x/y", manifest, references).await.unwrap();
        images.push([layer_name, image]);
    }
    // The layers come in the opposite order, so that by the order alone no pair would go together.
    for n in (0..10).rev() {
        commit(&store, &content(2 * n, LEN)).await;
    }
    close(store).await;
    let store = home.open_with_budget(12 * LEN as u64).await;
    close(store).await;
    let rows = home.rows().await;
    assert!(rows.len() <= 12, "{rows:?}");
    for image in images {
        let n_left = image.iter().filter(|it| rows.contains(it)).count();
        assert_ne!(n_left, 1, "half an image");
    }
}

#[tokio::test]
async fn a_quota_bounds_one_upstream_and_no_other() {
    let home = Home::new();
    let store = home.open().await;
    for seed in 0..10 {
        let host = if seed % 2 == 0 { "ghcr.io/a/b" } else { "quay.io/a/b" };
        try_commit_to(&store, &content(seed, LEN), host).await.unwrap();
    }
    close(store).await;
    let of_upstream = OfUpstream {
        hosts: "ghcr.io".parse().unwrap(),
        ttl: None,
        repositories: Vec::new(),
        quota: Some(2 * LEN as u64),
    };
    let retention = Retention { upstreams: vec![of_upstream], ..Retention::default() };
    let kept = kept(&home, retention).await;
    let n_of = |of: u64| {
        (0..10)
            .filter(|seed| {
                seed % 2 == of && kept.contains(&Digest::sha256_of(&content(*seed, LEN)))
            })
            .count()
    };
    assert_eq!((n_of(0), n_of(1)), (1, 5), "down to nine tenths of two blobs");
}

#[tokio::test]
async fn a_dry_run_names_what_would_go_and_why_and_removes_nothing() {
    let home = Home::new();
    let old = stored_days_ago(&home, 1, 10).await;
    for seed in 2..12 {
        stored_days_ago(&home, seed, 1).await;
    }
    let store = home.open().await;
    store.set_retention(Retention { ttl: Ttl::After(7 * DAY), ..Retention::default() });
    let swept = store.collect(true).await.unwrap();
    assert_eq!((swept.count(), swept.bytes()), (1, LEN as u64));
    let gone = &swept.named[0];
    assert_eq!((&gone.digest, &gone.reason), (&old, &Reason::Unused { ttl: 7 * DAY }));
    assert_eq!(gone.repository.as_ref().unwrap().to_string(), "ghcr.io/a/b");
    close(store).await;
    assert!(home.rows().await.contains(&old));
}

/// A blob that was used last so many days ago.
async fn stored_days_ago(home: &Home, seed: u64, days: u32) -> Digest {
    let store = home.open().await;
    let digest = commit(&store, &content(seed, LEN)).await;
    close(store).await;
    home.make_older(&digest, DAY * days).await;
    digest
}

async fn open(home: &Home, retention: Retention) -> Store {
    let settings = Settings { retention, ..Settings::new(home.path().to_owned()) };
    Store::open(settings).await.unwrap()
}

/// What is left, in order, after what had to go has gone.
async fn kept(home: &Home, retention: Retention) -> Vec<Digest> {
    let store = open(home, retention).await;
    store.collect(false).await.unwrap();
    close(store).await;
    let mut rows = home.rows().await;
    rows.sort();
    assert_eq!(home.files("blobs").len(), rows.len());
    rows
}
