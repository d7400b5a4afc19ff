//! Many at once.

use std::collections::HashSet;

use larder_core::Digest;
use larder_store::{References, Store};
use tokio::task::JoinSet;

use crate::home::{Home, close, commit, content, read, read_all, repository, staged, try_commit};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_tasks_store_and_read_equal_and_distinct_blobs() {
    let home = Home::new();
    let store = home.open().await;
    let mut tasks = JoinSet::new();
    for task in 0..32 {
        let store = store.clone();
        tasks.spawn(async move {
            for seed in [task % 4, 100 + task, task % 8] {
                let bytes = content(seed, 100_000);
                let blob = try_commit(&store, &bytes).await.unwrap();
                assert_eq!(read_all(&blob).await, bytes);
                assert_eq!(read(&store, &blob.digest).await.unwrap(), bytes);
            }
        });
    }
    tasks.join_all().await;
    store.close().await;
    assert_eq!(store.usage().bytes, (8 + 32) * home.room(100_000));
    home.assert_agrees_with(&store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn blobs_that_come_while_they_are_evicted_are_whole_or_gone() {
    let home = Home::new();
    let store = home.open_with_budget(5000).await;
    let mut tasks = JoinSet::new();
    for task in 0..8 {
        let store = store.clone();
        tasks.spawn(async move {
            for step in 0..100 {
                let bytes = content((task + step) % 12, 1000);
                commit(&store, &bytes).await;
                let other = content((task + step * 7) % 12, 1000);
                if let Some(found) = read(&store, &Digest::sha256_of(&other)).await {
                    assert_eq!(found, other);
                }
            }
        });
    }
    tasks.join_all().await;
    store.close().await;
    home.assert_agrees_with(&store).await;
    assert_found_only_what_is_there(&home, &store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_blob_that_is_stored_during_the_sweep_is_not_swept() {
    let home = Home::new();
    // Recording takes long enough for the sweep to come by.
    close(home.open().await).await;
    home.sql(
        "CREATE TRIGGER slow BEFORE INSERT ON blobs BEGIN \
         SELECT sum(i) FROM (WITH RECURSIVE n (i) AS \
         (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT i FROM n); END",
    )
    .await;
    for round in 0..5 {
        let store = home.open().await;
        let mut whole = Vec::new();
        for seed in 0..8 {
            let bytes = content(round * 100 + seed, 1000);
            staged(&store, &bytes, &bytes).await.park().await.unwrap();
            whole.push(bytes);
        }
        close(store).await;
        let store = home.open().await;
        for bytes in &whole {
            let staging = store.stage(&Digest::sha256_of(bytes)).await.unwrap();
            assert_eq!(staging.len(), 1000);
            staging.commit(None, &repository("ghcr.io/a/b")).await.unwrap();
        }
        store.close().await;
        home.assert_agrees_with(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn blobs_that_wait_for_the_disk_hold_no_files_open() {
    let home = Home::new();
    let store = home.open().await;
    let mut most = 0;
    for round in 0..20 {
        let mut tasks = JoinSet::new();
        for seed in 0..50 {
            let store = store.clone();
            tasks.spawn(async move { commit(&store, &content(round * 50 + seed, 100)).await });
        }
        tasks.join_all().await;
        most = most.max(open_files(&home));
    }
    // 256 that are kept open, and those that are just being written, read or synced.
    assert!(most < 400, "{most} files were open");
    close(store).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn after_anything_the_store_counts_what_is_on_disk() {
    for seed in 1..=4 {
        let home = Home::new();
        let mut chance = Chance(seed);
        let budget = chance.of(3).checked_sub(1).map(|n| 60_000 + n * 100_000);
        for _ in 0..4 {
            let store = home.try_open(budget).await.unwrap();
            let mut tasks = JoinSet::new();
            for _ in 0..4 {
                tasks.spawn(act_at_random(store.clone(), Chance(chance.next())));
            }
            tasks.join_all().await;
            store.close().await;
            home.assert_agrees_with(&store).await;
            let usage = store.usage();
            assert!(budget.is_none_or(|budget| usage.bytes <= budget), "{usage:?}");
            drop(store);
            damage_one(&home, &mut chance).await;
        }
    }
}

async fn act_at_random(store: Store, mut chance: Chance) {
    let named = repository("ghcr.io/a/b");
    for _ in 0..60 {
        let bytes = content(chance.of(30), 500 + 400 * chance.of(30) as usize % 12_000);
        let digest = Digest::sha256_of(&bytes);
        let half = &bytes[..bytes.len() / 2];
        match chance.of(8) {
            0 | 1 => drop(commit(&store, &bytes).await),
            2 => drop(staged(&store, &bytes, half).await),
            3 => staged(&store, &bytes, half).await.park().await.unwrap(),
            4 => drop(staged(&store, &bytes, half).await.commit(None, &named).await.unwrap_err()),
            5 => {
                let put = store.put_manifest(
                    &named,
                    &digest,
                    "x/y",
                    bytes.clone(),
                    References::default(),
                );
                drop(put.await.unwrap());
            }
            6 => {
                let found = store.manifest(&digest).await.unwrap();
                assert!(found.is_none_or(|found| found.bytes == bytes));
            }
            _ => {
                let found = read(&store, &digest).await;
                assert!(found.is_none_or(|found| found == bytes));
            }
        }
    }
}

/// Removes one file behind the store's back, and has the next lookup notice.
async fn damage_one(home: &Home, chance: &mut Chance) {
    let files = home.files("blobs");
    let Some((path, _)) = files.get(chance.of(files.len().max(1) as u64) as usize) else {
        return;
    };
    std::fs::remove_file(path).unwrap();
    let name = path.file_name().unwrap().to_str().unwrap();
    let digest = format!("sha256:{name}").parse().unwrap();
    let store = home.open().await;
    assert!(store.blob(&digest).await.unwrap().is_none());
    close(store).await;
}

/// A lookup that is answered from memory must not find what the index does not have.
async fn assert_found_only_what_is_there(home: &Home, store: &Store) {
    let rows: HashSet<Digest> = home.rows().await.into_iter().collect();
    for seed in 0..12 {
        let digest = Digest::sha256_of(&content(seed, 1000));
        if let Ok(Some(_)) = store.blob(&digest).await {
            assert!(rows.contains(&digest), "{digest} is found, but not stored");
        }
    }
}

fn open_files(home: &Home) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").unwrap();
    let targets = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    targets.filter(|target| target.starts_with(home.path())).count()
}

/// Numbers that look random and are the same in each run.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn of(&mut self, n: u64) -> u64 {
        (self.next() >> 20) % n
    }
}
