//! In which order a blob becomes visible, is sent, and survives a loss of power; as the kernel sees
//! it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_tests::Scene;
use larder_tests::strace::{Call, Strace};

/// How long after its last byte was sent a blob may not yet survive a loss of power. It is under a
/// second on an idle machine; this one may be busy, and strace slows it down.
const MAX_UNSYNCED_SECONDS: f64 = 10.0;

#[tokio::test]
async fn a_blob_is_named_and_recorded_before_its_last_byte_is_sent_and_synced_soon_after() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[8 << 20]);
    let layer = &image.layers[0];
    let strace = Strace::attach(scene.larder.pid()).await;
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;

    let data = scene.larder.data().to_str().unwrap().to_owned();
    let hex = layer.digest.hex();
    let folder = format!("{data}/blobs/sha256/{}", &hex[..2]);
    let (staging, index, name) = (
        format!("<{data}/staging/"),
        format!("<{data}/index.sqlite-wal>"),
        format!("{folder}/{hex}"),
    );
    let socket = format!("TCP:[{}->", scene.larder.host);

    // Recorded as synced: the index is written after the file and its folder were synced.
    let is_to_index = |call: &Call| call.is_write() && call.arguments.contains(&index);
    let mark = |calls: &[Call]| {
        let is_of = |call: &&Call, path: &str| {
            call.is_sync() && call.arguments.contains(&format!("<{path}>"))
        };
        let file = calls.iter().find(|call| is_of(call, &name))?;
        let entry = calls.iter().find(|call| is_of(call, &folder))?;
        let is_mark =
            |call: &&Call| is_to_index(call) && file.is_before(call) && entry.is_before(call);
        calls.iter().find(is_mark).map(|mark| (calls.to_vec(), mark.clone()))
    };
    let (calls, mark) = strace.find("the blob is synced, and recorded as synced", mark).await;

    let is_naming = |call: &&Call| call.is_rename() && call.arguments.contains(&name);
    let naming = calls.iter().find(is_naming).expect("the blob gets its name");
    let writes: Vec<&Call> =
        calls.iter().filter(|call| call.is_write() && call.arguments.contains(&staging)).collect();
    let n_written: i64 = writes.iter().map(|call| call.result).sum();
    assert_eq!(n_written, layer.bytes.len() as i64, "written while staged");
    assert!(writes.iter().all(|write| write.is_before(naming)), "written before it is named");

    let is_send = |call: &&Call| call.is_write() && call.arguments.contains(&socket);
    let sends: Vec<&Call> = calls.iter().filter(is_send).collect();
    let n_sent: i64 = sends.iter().map(|call| call.result).sum();
    assert!(n_sent > layer.bytes.len() as i64, "the head and the body: {n_sent}");
    let last = sends.last().unwrap();
    assert!(naming.is_before(last), "named before the last byte is sent: {naming:?} {last:?}");
    let is_record =
        |call: &&Call| is_to_index(call) && naming.is_before(call) && call.is_before(last);
    assert!(calls.iter().any(|call| is_record(&call)), "recorded before the last byte is sent");

    let unsynced = mark.time - last.time;
    assert!(unsynced < MAX_UNSYNCED_SECONDS, "synced {unsynced} s after it was sent");
}
