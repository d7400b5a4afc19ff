//! What disks forget is found, and nobody reads it.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::time::{Duration, SystemTime};

use larder_core::Digest;
use larder_store::{Fault, Pace, Store, Unverified, Verdict};

use crate::home::{Home, close, commit, content, read, read_all, repository};

#[tokio::test]
async fn a_blob_that_is_what_it_was_stays_and_is_not_due_any_more() {
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 3 << 20);
    let digest = commit(&store, &bytes).await;
    let stored_at = store.blob_record(&digest).await.unwrap().unwrap().verified_at;
    wait_past(stored_at);
    assert_eq!(verify(&store, &digest).await, Verdict::Right);
    assert!(store.blob_record(&digest).await.unwrap().unwrap().verified_at > stored_at);
    assert_eq!(read(&store, &digest).await.unwrap(), bytes);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_file_is_found_and_its_blob_is_gone() {
    type Damage = (fn(&Path), Fault);
    let damages: [Damage; 5] = [
        (|path| flip(path, 0, 1), Fault::Corrupt),
        (|path| flip(path, (2 << 20) + 76, 0x80), Fault::Corrupt),
        (|path| fs::OpenOptions::new().write(true).open(path).unwrap().set_len(5).unwrap(), {
            Fault::Corrupt
        }),
        (
            |path| fs::OpenOptions::new().append(true).open(path).unwrap().write_all(b"x").unwrap(),
            { Fault::Corrupt },
        ),
        (|path| fs::remove_file(path).unwrap(), Fault::Missing),
    ];
    for (damage, fault) in damages {
        let home = Home::new();
        let store = home.open().await;
        let (bytes, other) = (content(1, (2 << 20) + 77), content(2, 100));
        let (digest, other_digest) = (commit(&store, &bytes).await, commit(&store, &other).await);
        damage(&home.blob_path(&digest));
        assert_eq!(verify(&store, &digest).await, Verdict::Bad(fault));
        assert_eq!(read(&store, &digest).await, None);
        // What may be served stays known, so that it is fetched again without asking.
        assert!(store.is_member(&repository("ghcr.io/a/b"), &digest).await.unwrap());
        assert_eq!(verify(&store, &other_digest).await, Verdict::Right);
        commit(&store, &bytes).await;
        assert_eq!(read(&store, &digest).await.unwrap(), bytes);
        close(store.clone()).await;
        home.assert_agrees_with(&store).await;
    }
}

#[tokio::test]
async fn who_reads_a_bad_blob_meets_its_end_and_not_its_bytes() {
    let home = Home::new();
    let store = home.open().await;
    let digest = commit(&store, &content(1, 3 << 20)).await;
    let reading = store.blob(&digest).await.unwrap().unwrap();
    assert_eq!(read_all(&reading).await.len(), 3 << 20);
    flip(&home.blob_path(&digest), 1 << 20, 1);
    assert_eq!(verify(&store, &digest).await, Verdict::Bad(Fault::Corrupt));
    for at in [0, 1 << 20, (3 << 20) - 1] {
        let error = reading.file.read(at, 1).await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::UnexpectedEof);
    }
}

#[tokio::test]
async fn a_copy_of_what_is_bad_is_kept_and_not_too_many() {
    let home = Home::new();
    let store = home.open().await;
    let mut last = None;
    for seed in 0..20 {
        let digest = commit(&store, &content(seed, 100)).await;
        flip(&home.blob_path(&digest), 50, 1);
        assert_eq!(verify(&store, &digest).await, Verdict::Bad(Fault::Corrupt));
        last = Some((digest, content(seed, 100)));
    }
    let kept = home.files("quarantine");
    assert_eq!(kept.len(), 16);
    let (digest, bytes) = last.unwrap();
    let name = format!("{}-{}", digest.algorithm(), digest.hex());
    let copy = fs::read(home.path().join("quarantine").join(name)).unwrap();
    assert_eq!((copy.len(), copy[50]), (100, bytes[50] ^ 1));
    assert_eq!(store.usage().bytes, 0);
}

#[tokio::test]
async fn blobs_are_due_in_the_order_in_which_they_were_last_looked_at() {
    let home = Home::new();
    let store = home.open().await;
    let mut digests = Vec::new();
    for seed in 0..4 {
        digests.push(commit(&store, &content(seed, 10)).await);
    }
    close(store.clone()).await;
    drop(store);
    // The first of them was stored last, the second was verified since.
    home.sql("UPDATE blobs SET stored_at = 4000 - content * 1000").await;
    home.sql("UPDATE blobs SET verified_at = 3500 WHERE content = 2").await;
    let store = home.open().await;
    let due = async |millis| {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(millis);
        let due = store.unverified_since(time, 9).await.unwrap();
        due.into_iter()
            .map(|it| digests.iter().position(|digest| *digest == it.digest).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(due(10_000).await, [3, 2, 0, 1]);
    assert_eq!(due(3_200).await, [3, 2, 0]);
    assert!(due(0).await.is_empty());
    assert_eq!(verify(&store, &digests[2]).await, Verdict::Right);
    assert_eq!(due(10_000).await, [3, 0, 1]);
    close(store.clone()).await;
    drop(store);
    // What was done is known after a restart.
    let store = home.open().await;
    let due = store.unverified_since(SystemTime::UNIX_EPOCH + Duration::from_secs(10), 9).await;
    assert_eq!(due.unwrap().len(), 3);
}

#[tokio::test]
async fn all_blobs_are_found_batch_by_batch() {
    let home = Home::new();
    let store = home.open().await;
    let mut total = 0;
    for seed in 0..7 {
        commit(&store, &content(seed, 10 + seed as usize)).await;
        total += 10 + seed;
    }
    assert_eq!(store.count().await.unwrap(), (7, total));
    let (mut place, mut seen) = (0, 0);
    while let [.., last] = &store.stored_after(place, 3).await.unwrap()[..] {
        seen += store.stored_after(place, 3).await.unwrap().len();
        place = last.place;
    }
    assert_eq!(seen, 7);
}

async fn verify(store: &Store, digest: &Digest) -> Verdict {
    let all: Vec<Unverified> = store.stored_after(0, 1000).await.unwrap();
    let blob = all.into_iter().find(|it| it.digest == *digest).unwrap();
    store.verify(&blob, Pace::UNBOUNDED).await.unwrap()
}

/// Flips bits of the byte at `at`.
fn flip(path: &Path, at: u64, bits: u8) {
    let mut file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut byte).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte[0] ^ bits]).unwrap();
}

/// Returns once the clock, as the index notes it, is past `time`.
fn wait_past(time: SystemTime) {
    while SystemTime::now().duration_since(time).unwrap_or_default() < Duration::from_millis(2) {
        std::thread::yield_now();
    }
}
