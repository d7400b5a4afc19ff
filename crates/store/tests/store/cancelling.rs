//! Callers that stop waiting: what they began is done whole or not at all.

use std::future::Future;
use std::pin::pin;
use std::task::Poll;

use larder_core::Digest;
use larder_store::References;

use crate::home::{Home, close, commit, content, repository, staged};

/// More than any act below has points to stop at.
const MAX_POLLS: usize = 12;

#[tokio::test]
async fn a_commit_that_nobody_waits_for_is_whole_or_nothing() {
    for n_polls in 0..MAX_POLLS {
        let home = Home::new();
        let store = home.open().await;
        let bytes = content(1, 1000);
        let staging = staged(&store, &bytes, &bytes).await;
        let named = repository("ghcr.io/a/b");
        abandon_after(n_polls, staging.commit(None, &named)).await;
        store.close().await;
        home.assert_agrees_with(&store).await;
    }
}

#[tokio::test]
async fn a_manifest_that_nobody_waits_for_is_whole_or_nothing() {
    for n_polls in 0..MAX_POLLS {
        let home = Home::new();
        let store = home.open().await;
        let (bytes, named) = (content(1, 1000), repository("ghcr.io/a/b"));
        let digest = Digest::sha256_of(&bytes);
        let none = References::default();
        abandon_after(n_polls, store.put_manifest(&named, &digest, "x/y", bytes, none)).await;
        store.close().await;
        home.assert_agrees_with(&store).await;
    }
}

#[tokio::test]
async fn a_beginning_that_nobody_waits_for_is_kept_or_dropped_whole() {
    for n_polls in 0..MAX_POLLS {
        let home = Home::new();
        let store = home.open().await;
        let bytes = content(1, 1000);
        let staging = staged(&store, &bytes, &bytes[..600]).await;
        abandon_after(n_polls, staging.park()).await;
        store.close().await;
        home.assert_agrees_with(&store).await;
    }
}

#[tokio::test]
async fn a_beginning_that_is_taken_by_nobody_is_not_counted() {
    for n_polls in 0..MAX_POLLS {
        let home = Home::new();
        let store = home.open().await;
        let bytes = content(1, 1000);
        staged(&store, &bytes, &bytes[..600]).await.park().await.unwrap();
        abandon_after(n_polls, store.stage(&Digest::sha256_of(&bytes))).await;
        store.close().await;
        home.assert_agrees_with(&store).await;
    }
}

#[tokio::test]
async fn a_lost_blob_is_forgotten_even_if_nobody_waits_for_the_answer() {
    for n_polls in 0..MAX_POLLS {
        let home = Home::new();
        let store = home.open().await;
        let digest = commit(&store, &content(1, 1000)).await;
        close(store).await;
        std::fs::remove_file(home.blob_path(&digest)).unwrap();
        let store = home.open().await;
        abandon_after(n_polls, store.blob(&digest)).await;
        assert!(store.blob(&digest).await.unwrap().is_none());
        store.close().await;
        home.assert_agrees_with(&store).await;
    }
}

#[test]
fn a_runtime_that_ends_in_the_midst_of_work_ends_quietly() {
    use std::sync::atomic::{AtomicUsize, Ordering};
    static PANICS: AtomicUsize = AtomicUsize::new(0);
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let here = info.location().is_some_and(|it| it.file().contains("store/src"));
        PANICS.fetch_add(usize::from(here), Ordering::Relaxed);
        hook(info);
    }));
    for round in 0..20 {
        let home = Home::new();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let store = runtime.block_on(home.open());
        for seed in 0..8 {
            let store = store.clone();
            runtime.spawn(async move {
                for step in 0.. {
                    commit(&store, &content(seed * 1_000_000 + step, 1000)).await;
                }
            });
        }
        runtime.block_on(async {
            for seed in 0..10 {
                commit(&store, &content(9_000_000 + round * 100 + seed, 1000)).await;
            }
        });
        drop(runtime);
    }
    assert_eq!(PANICS.load(Ordering::Relaxed), 0);
}

/// Polls `future` at most `n` times, then drops it.
async fn abandon_after<F: Future>(n: usize, future: F) {
    let mut future = pin!(future);
    let mut n_polls = 0;
    std::future::poll_fn(|context| {
        if n_polls == n {
            return Poll::Ready(());
        }
        n_polls += 1;
        future.as_mut().poll(context).map(drop)
    })
    .await;
}
