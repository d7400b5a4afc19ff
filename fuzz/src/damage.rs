//! The store over files that are not what they were.
//!
//! The bytes are edits, five bytes each: which file, what to do, where (two bytes), and with what.
//! They are made to the files that a process left behind which was killed while it had the store
//! open. The store must open, or say why not; what it gives must be right.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use larder_core::manifest::Manifest;
use larder_core::name::Named;
use larder_core::{Digest, Tag};
use larder_store::{References, Settings, Store, TagRecord};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

/// The most edits that are made; more would only leave nothing of a file.
const MAX_EDITS: usize = 64;

/// Opens a store that has been damaged as `bytes` say, and looks at everything in it.
pub fn store(bytes: &[u8]) {
    let (runtime, template) = scene();
    let directory = scratch();
    copy(template.directory.path(), directory.path());
    let mut is_blob_damaged = false;
    for edit in bytes.chunks_exact(5).take(MAX_EDITS) {
        let path = &template.files[usize::from(edit[0]) % template.files.len()];
        is_blob_damaged |= *path == template.blob_path;
        damage(&directory.path().join(path), edit);
    }
    runtime.block_on(look(directory.path(), template, is_blob_damaged));
}

/// A directory in memory, where there is one: syncing to a disk is most of what a small store does.
fn scratch() -> TempDir {
    let in_memory = tempfile::tempdir_in("/dev/shm");
    in_memory.or_else(|_| tempfile::tempdir()).expect("there is room for a small store")
}

/// What can be in a store, once.
struct Template {
    directory: TempDir,
    /// Its files, in byte order.
    files: Vec<PathBuf>,
    repository: Arc<Named>,
    manifest: Bytes,
    blob: Bytes,
    blob_path: PathBuf,
    /// All of a blob whose beginning is kept.
    whole: Bytes,
}

fn scene() -> &'static (Runtime, Template) {
    static SCENE: OnceLock<(Runtime, Template)> = OnceLock::new();
    SCENE.get_or_init(|| {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("threads can be started");
        let template = runtime.block_on(template());
        (runtime, template)
    })
}

async fn template() -> Template {
    let name = "registry.example.com/team/app";
    let (host, repository) = name.split_once('/').expect("it has a slash");
    let host = host.parse().expect("it is a host");
    let repository = repository.parse().expect("it is a repository");
    let repository = Arc::new(Named { host, repository });
    let blob = Bytes::from_static(b"the bytes of a blob, which are stored");
    let whole = Bytes::from_static(b"the beginning of a blob, and its end that never came");
    let digest = Digest::sha256_of(&blob);
    let descriptor = format!(r#"{{"digest":"{digest}","size":{},"mediaType":"x/y"}}"#, blob.len());
    let manifest =
        Bytes::from(format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[]}}"#));

    let home = scratch();
    let store = open(home.path()).await.expect("an empty directory can be opened");
    let staging = store.stage(&digest).await.expect("the disk is well");
    let staging = staging.write(vec![blob.clone()]).await.expect("the disk is well");
    staging.commit(Some(blob.len() as u64), &repository).await.expect("the bytes are right");
    let parsed = Manifest::parse(&manifest).expect("it is a manifest");
    let name = Digest::sha256_of(&manifest);
    let children = parsed.children().map(|child| child.digest.clone()).collect();
    let references = References { children, subject: None };
    let put = store.put_manifest(&repository, &name, "x/y", manifest.clone(), references);
    put.await.expect("the bytes are right");
    let size = manifest.len() as u64;
    let checked_at = std::time::SystemTime::UNIX_EPOCH;
    let record = TagRecord { digest: name, media_type: "x/y".to_owned(), size, checked_at };
    store.put_tag(&repository, &tag(), &"".into(), record).await.expect("the index is well");
    let staging = store.stage(&Digest::sha256_of(&whole)).await.expect("the disk is well");
    let staging = staging.write(vec![whole.slice(..20)]).await.expect("the disk is well");
    staging.park().await.expect("the disk is well");

    // As a killed process leaves it: with a log that has not been taken into the index.
    let directory = scratch();
    copy(home.path(), directory.path());
    store.close().await;
    let mut files = Vec::new();
    list(directory.path(), directory.path(), &mut files);
    files.sort();
    let hex = digest.hex();
    let blob_path = Path::new("blobs/sha256").join(&hex[..2]).join(&hex);
    Template { directory, files, repository, manifest, blob, blob_path, whole }
}

async fn open(directory: &Path) -> Result<Store, larder_store::OpenError> {
    Store::open(Settings::new(directory.to_owned())).await
}

async fn look(directory: &Path, template: &Template, is_blob_damaged: bool) {
    let Template { repository, manifest, blob, whole, .. } = template;
    let Ok(store) = open(directory).await else { return };
    let name = Digest::sha256_of(manifest);
    if let Ok(Some(found)) = store.manifest(&name).await {
        assert_eq!(found.bytes, *manifest);
    }
    let digest = Digest::sha256_of(blob);
    if let Ok(Some(found)) = store.blob(&digest).await
        && let Ok(read) = found.file.read(0, found.len).await
        // Blobs are not hashed again when they are read: whoever pulls them does.
        && !is_blob_damaged
        && read.len() as u64 == found.len
    {
        assert_eq!(read, *blob);
    }
    let _ = store.is_member(repository, &digest).await;
    let _ = store.tag(repository, &tag(), &"".into()).await;
    let _ = store.tags(repository, "", 100).await;
    let _ = store.referrers(repository, &digest, 100).await;
    let digest = Digest::sha256_of(whole);
    if let Ok(staging) = store.stage(&digest).await {
        let at = usize::try_from(staging.len()).expect("it is short");
        assert!(at <= whole.len(), "more is kept than there is");
        if let Ok(staging) = staging.write(vec![whole.slice(at..)]).await
            && let Err(error) = staging.commit(Some(whole.len() as u64), repository).await
        {
            let is_right = !matches!(error, larder_store::CommitError::Digest { .. });
            assert!(is_right, "a beginning that is wrong was gone on with: {error}");
        }
    }
    let _ = store.usage();
    store.close().await;
}

fn tag() -> Tag {
    "latest".parse().expect("it is a tag")
}

fn damage(path: &Path, edit: &[u8]) {
    let Ok(mut bytes) = std::fs::read(path) else { return };
    let at = usize::from(u16::from_le_bytes([edit[2], edit[3]]));
    match edit[1] % 6 {
        0 if at < bytes.len() => bytes[at] ^= edit[4] | 1,
        1 => bytes.truncate(at),
        2 => bytes.extend(std::iter::repeat_n(edit[4], at % 8192)),
        3 => {
            let end = (at + usize::from(edit[4])).min(bytes.len());
            bytes[at.min(end)..end].fill(0);
        }
        4 => {
            let _ = std::fs::remove_file(path);
            return;
        }
        // The later pages of the index are beyond 64 KiB.
        _ => {
            if let Some(byte) = bytes.get_mut(at * 4) {
                *byte = edit[4];
            }
        }
    }
    std::fs::write(path, bytes).expect("there is room for a small store");
}

fn copy(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).expect("it is a directory") {
        let path = entry.expect("it can be read").path();
        let target = to.join(path.file_name().expect("it has a name"));
        if path.is_dir() {
            std::fs::create_dir_all(&target).expect("there is room");
            copy(&path, &target);
        } else {
            std::fs::copy(&path, &target).expect("there is room");
        }
    }
}

fn list(root: &Path, directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).expect("it is a directory") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            list(root, &path, files);
        } else if let Ok(relative) = path.strip_prefix(root) {
            files.push(relative.to_owned());
        }
    }
}
