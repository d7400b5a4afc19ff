//! What a crash leaves, and what is made of it.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use larder_core::Digest;

use crate::home::{Home, commit, content, read, staged};

/// Set for the process that is going to be killed: the directory of its store.
const VICTIM: &str = "LARDER_TEST_VICTIM";

#[tokio::test]
async fn what_a_crash_left_in_staging_is_gone_after_reopening() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    let staging = staged(&store, &bytes, &bytes).await;
    let crashed = home.crashed();
    drop(staging);
    assert_eq!(crashed.files("staging").len(), 1);
    let store = crashed.open().await;
    assert_eq!(crashed.files("staging"), []);
    assert_eq!(read(&store, &Digest::sha256_of(&bytes)).await, None);
    store.close().await;
    crashed.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_staging_that_is_forgotten_ends_with_its_process() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    std::mem::forget(staged(&store, &bytes, &bytes).await);
    store.close().await;
    assert_eq!(home.files("staging").len(), 1);
    let crashed = home.crashed();
    let store = crashed.open().await;
    store.close().await;
    crashed.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn a_beginning_that_was_taken_before_a_crash_is_not_counted_after_it() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 1000);
    staged(&store, &bytes, &bytes[..600]).await.park().await.unwrap();
    let taken = store.stage(&Digest::sha256_of(&bytes)).await.unwrap();
    let crashed = home.crashed();
    drop(taken);
    let store = crashed.open().await;
    assert_eq!(store.usage().bytes, 0);
    store.close().await;
    crashed.assert_agrees_with(&store).await;
}

#[tokio::test]
async fn every_blob_that_was_committed_survives_a_kill() {
    for n_committed in [1, 20, 100] {
        let home = Home::new();
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "crash::a_victim_commits_until_it_is_killed", "--nocapture"])
            .env(VICTIM, home.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(victim.stdout.take().unwrap()).lines();
        let committed: Vec<Digest> = lines
            .filter_map(|line| line.unwrap().strip_prefix("committed ")?.parse().ok())
            .take(n_committed)
            .collect();
        victim.kill().unwrap();
        victim.wait().unwrap();
        assert_eq!(committed.len(), n_committed);

        let store = home.open().await;
        for digest in &committed {
            let bytes = read(&store, digest).await.unwrap();
            assert_eq!(Digest::sha256_of(&bytes), *digest);
        }
        sweep(&home).await;
        store.close().await;
        home.assert_agrees_with(&store).await;
    }
}

/// The process that is killed by the test above; nothing by itself.
#[tokio::test]
async fn a_victim_commits_until_it_is_killed() {
    let Some(directory) = std::env::var_os(VICTIM) else {
        return;
    };
    let settings = larder_store::Settings::new(directory.into());
    let store = larder_store::Store::open(settings).await.unwrap();
    let writers = (0..4).map(|writer| {
        let store = store.clone();
        tokio::spawn(async move {
            for step in 0.. {
                let bytes = content(writer * 1_000_000 + step, 5000);
                println!("committed {}", commit(&store, &bytes).await);
                let other = content(writer, 5000);
                staged(&store, &other, &other[..10]).await.park().await.unwrap();
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.unwrap();
    }
}

/// Waits until no file is there that the index does not know.
async fn sweep(home: &Home) {
    while home.files("blobs").len() > home.rows().await.len() {
        tokio::task::yield_now().await;
    }
}
