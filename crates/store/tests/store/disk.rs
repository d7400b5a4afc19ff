//! A disk that takes no more.

use std::process::Command;

use larder_core::Digest;
use larder_store::References;

use crate::home::{Home, commit, content, read, repository, staged};

/// Set for the process whose files may not grow beyond [`LIMIT`].
const LIMITED: &str = "LARDER_TEST_LIMITED";

/// What no file may outgrow, in bytes.
const LIMIT: usize = 512 << 10;

#[test]
fn a_write_that_the_disk_refuses_leaves_the_good_beginning() {
    // `ulimit -f` counts blocks of 512 bytes; beyond it a write fails, as the signal is ignored.
    let script = format!("trap '' XFSZ; ulimit -f {}; exec \"$0\" \"$@\"", LIMIT / 512);
    let status = Command::new("sh")
        .args(["-c".as_ref(), script.as_ref(), std::env::current_exe().unwrap().as_os_str()])
        .args(["--exact", "disk::within_the_limit_a_prefix_is_given_back"])
        .env(LIMITED, "yes")
        .status()
        .unwrap();
    assert!(status.success());
}

/// Runs within the limit as a process of its own; nothing by itself.
#[tokio::test]
async fn within_the_limit_a_prefix_is_given_back() {
    if std::env::var_os(LIMITED).is_none() {
        return;
    }
    let home = Home::new();
    let store = home.open().await;
    let bytes = content(1, 2 * LIMIT);
    let good = LIMIT - 100_000;
    let staging = staged(&store, &bytes, &bytes[..good]).await;
    let error = staging.write(vec![bytes.slice(good..)]).await.unwrap_err();

    let digest = Digest::sha256_of(&bytes);
    assert_eq!(error.to_string(), format!("writing byte {good} of {digest}"));
    assert_eq!(error.source.kind(), std::io::ErrorKind::FileTooLarge);
    assert_eq!((error.prefix.len, &error.prefix.digest), (good as u64, &digest));
    let begun = error.prefix.hasher.clone().finish();
    assert_eq!(begun, Digest::sha256_of(&bytes[..good]));
    assert_eq!(error.prefix.file.read(good as u64 - 10, 10).await.unwrap(), bytes[good - 10..good]);
    let mut whole = error.prefix.hasher.clone();
    whole.update(&bytes[good..]);
    assert_eq!(whole.finish(), digest, "whoever reads along can still verify the whole");

    let small = commit(&store, &content(2, 1000)).await;
    assert_eq!(read(&store, &small).await.unwrap().len(), 1000);
    let (named, none) = (repository("ghcr.io/a/b"), References::default());
    let manifest = store.put_manifest(&named, &digest, "x/y", bytes, none).await;
    assert!(manifest.is_err());
    drop(error);
    store.close().await;
    home.assert_agrees_with(&store).await;
}
