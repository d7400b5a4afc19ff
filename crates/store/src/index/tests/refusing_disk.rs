//! A connection that has to be made anew while the disk refuses everything.

use std::time::Instant;

use sqlx::Acquire as _;

use super::*;

/// A small part of the half minute for which sqlx tries to make another connection.
const AT_ONCE: Duration = Duration::from_secs(5);

#[tokio::test]
async fn who_writes_while_no_connection_can_be_made_hears_so_at_once_and_later_succeeds() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("index.sqlite");
    let (log, aside) = (directory.path().join("index.sqlite-wal"), directory.path().join("aside"));
    let index = Index::open(&path).await.unwrap();
    put(&index, "before", 5, "a.io/b").await;

    // One that was left within a transaction is not used again, and no other can open the log.
    let mut connection = index.writer.acquire().await.unwrap();
    std::mem::forget(connection.begin().await.unwrap());
    drop(connection);
    std::fs::rename(&log, &aside).unwrap();
    std::fs::create_dir(&log).unwrap();
    let since = Instant::now();
    for _ in 0..3 {
        index.remove_blob(&digest("before")).await.unwrap_err();
    }
    assert!(since.elapsed() < AT_ONCE, "{:?}", since.elapsed());

    std::fs::remove_dir(&log).unwrap();
    std::fs::rename(&aside, &log).unwrap();
    put(&index, "after", 6, "a.io/b").await;
    assert_eq!(index.blob(&digest("before")).await.unwrap(), Some((5, None)));
    assert_eq!(index.blob(&digest("after")).await.unwrap(), Some((6, None)));
}
