//! What is left of a transaction that SQLite has ended by itself, as it does when there is no room to
//! commit it.

use std::process::Command;

use rustix::process::{Resource, getrlimit, setrlimit};

use super::*;

/// Set for the process whose files may not grow beyond [`LIMIT`].
const LIMITED: &str = "LARDER_TEST_LIMITED";

/// What no file may outgrow, in bytes: more than a new index takes.
const LIMIT: usize = 1 << 20;

/// More blobs than the log of a file has room for below the limit.
const MANY: usize = 2000;

#[test]
fn what_is_written_after_a_commit_without_room_is_seen_by_everybody_and_kept() {
    // `ulimit -f` counts blocks of 512 bytes; beyond it a write fails, as the signal is ignored.
    let script = format!("trap '' XFSZ; ulimit -S -f {}; exec \"$0\" \"$@\"", LIMIT / 512);
    let status = Command::new("sh")
        .args(["-c".as_ref(), script.as_ref(), std::env::current_exe().unwrap().as_os_str()])
        .args(["--exact", "index::tests::full_disk::within_the_limit_a_commit_is_refused"])
        .env(LIMITED, "yes")
        .status()
        .unwrap();
    assert!(status.success());
}

/// Runs within the limit as a process of its own; nothing by itself.
#[tokio::test]
async fn within_the_limit_a_commit_is_refused() {
    if std::env::var_os(LIMITED).is_none() {
        return;
    }
    let home = Home::sqlite();
    let index = home.open().await;
    let mut refused = None;
    for n in 0..MANY {
        let (digest, name) = (digest(&format!("first {n}")), named("a.io/b"));
        refused = index.put_blob(&digest, stored(5, 1), &name, None).await.err();
        if refused.is_some() {
            break;
        }
    }
    assert!(refused.is_some(), "there was room for all");

    // There is room again. What is rolled back now is no more than what it was begun for.
    let unlimited = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, rustix::process::Rlimit { current: unlimited, maximum: unlimited })
        .unwrap();
    assert_eq!(index.remove_blob(&digest("other")).await.unwrap(), None);
    put(&index, "blob", 5, "a.io/b").await;
    // By a connection other than the one that wrote it.
    assert_eq!(index.blob(&digest("blob")).await.unwrap(), Some((5, None)));
    index.close().await;
    let index = home.open().await;
    assert_eq!(index.blob(&digest("blob")).await.unwrap(), Some((5, None)));
}
