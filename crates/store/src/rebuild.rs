//! Making the index again from the files alone, for when it is lost.
//!
//! Each file is hashed: one that is what its name says is a blob again, and a manifest if it reads as
//! one; the others go to quarantine. What files cannot say is which repositories may serve them and
//! what tags named: nothing is a member of anything at first, and upstream is asked (by HEAD) when
//! something is first wanted. Kept beginnings are lost.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use larder_core::Digest;
use larder_core::manifest::{MAX_MANIFEST, Manifest as Parsed};
use larder_core::media;
use tokio::task::JoinSet;
use tracing::warn;

use crate::index::{Index, Manifest, Recovered, References};
use crate::layout::{ALGORITHMS, Layout, sync_directory};
use crate::recover::open_directory;
use crate::verify::quarantine;
use crate::work::blocking;
use crate::{OpenError, StoreError};

/// How many blobs are recorded at once.
const BATCH: usize = 500;

/// How much of a file is read at once.
const PIECE: usize = 1 << 20;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Blobs that are what their names say, manifests included.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of them are manifests.
    pub manifests: u64,
    /// Files that are something else than their names say; they are out of the store now.
    pub bad: u64,
}

/// Makes the index of the store in `directory` again. What was there is kept as `index.sqlite.old`.
///
/// `threads` files are read at a time. `progress` is told the bytes of each piece that has been read.
///
/// # Errors
///
/// [`OpenError`]: there is no store, it is in use, or its disk refuses; its index is what it was.
pub async fn rebuild_index(
    directory: &Path,
    threads: usize,
    progress: impl Fn(u64) + Send + Sync + 'static,
) -> Result<Found, OpenError> {
    let root = directory.to_owned();
    let opened = blocking(move || match root.join("blobs").is_dir() {
        true => open_directory(&root),
        false => Err(OpenError::Absent(root)),
    });
    // The lock is held to the end.
    let (layout, _lock) = opened.await?;
    let io = |source| OpenError::Io { directory: directory.to_owned(), source };
    let fresh = layout.staging().join("index.sqlite");
    let index = Index::open(&fresh)
        .await
        .map_err(|source| OpenError::Index { directory: directory.to_owned(), source })?;
    let found = fill(&layout, &index, threads, Arc::new(progress)).await;
    index.close().await;
    let found = found.map_err(OpenError::Recover)?;
    blocking(move || exchange(&layout, &fresh)).await.map_err(io)?;
    Ok(found)
}

async fn fill(
    layout: &Layout,
    index: &Index,
    threads: usize,
    progress: Arc<impl Fn(u64) + Send + Sync + 'static>,
) -> Result<Found, StoreError> {
    let blobs = layout.blobs();
    let directories = blocking(move || directories(&blobs)).await;
    let directories = directories.map_err(|source| StoreError::io("listing blobs", source))?;
    let (mut found, now) = (Found::default(), SystemTime::now());
    let mut reading = JoinSet::new();
    let mut directories = directories.into_iter();
    loop {
        while reading.len() < threads.max(1)
            && let Some(directory) = directories.next()
        {
            let (layout, progress) = (layout.clone(), Arc::clone(&progress));
            reading.spawn_blocking(move || read_directory(&layout, &directory, &*progress));
        }
        let Some(read) = reading.join_next().await else { return Ok(found) };
        let read = read.unwrap_or_else(|error| Err(io::Error::other(error)));
        let (recovered, bad) = read.map_err(|source| StoreError::io("reading blobs", source))?;
        for batch in recovered.chunks(BATCH) {
            index.put_recovered(batch, now).await?;
        }
        found.bad += bad;
        for blob in recovered {
            found.blobs += 1;
            found.bytes += blob.size;
            found.manifests += u64::from(blob.manifest.is_some());
        }
    }
}

/// The directories that blobs are in.
fn directories(blobs: &Path) -> io::Result<Vec<PathBuf>> {
    let mut directories = Vec::new();
    for algorithm in ALGORITHMS {
        for entry in std::fs::read_dir(blobs.join(algorithm))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
        }
    }
    Ok(directories)
}

/// The blobs in a directory, and how many files there are none.
fn read_directory(
    layout: &Layout,
    directory: &Path,
    progress: &dyn Fn(u64),
) -> io::Result<(Vec<Recovered>, u64)> {
    let (mut recovered, mut n_bad) = (Vec::new(), 0);
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        let Some(named) = name_of(layout, &path) else {
            warn!("{} is called as no blob is; removing it", path.display());
            std::fs::remove_file(&path)?;
            n_bad += 1;
            continue;
        };
        match read(&path, &named, progress)? {
            Some(blob) => recovered.push(blob),
            None => {
                warn!(blob.digest = %named, "{} is not what it is called", path.display());
                quarantine(layout, &named, &path);
                std::fs::remove_file(&path)?;
                n_bad += 1;
            }
        }
    }
    Ok((recovered, n_bad))
}

/// The digest that a file is called by, if it is in that digest's place.
fn name_of(layout: &Layout, path: &Path) -> Option<Digest> {
    let name = path.file_name()?.to_str()?;
    ALGORITHMS.iter().find_map(|algorithm| {
        let digest: Digest = format!("{algorithm}:{name}").parse().ok()?;
        (layout.blob(&digest) == path).then_some(digest)
    })
}

/// A file as a blob; `None` if it is not the one that it is called.
fn read(path: &Path, named: &Digest, progress: &dyn Fn(u64)) -> io::Result<Option<Recovered>> {
    let mut file = File::open(path)?;
    let metadata = file.metadata()?;
    let size = metadata.len();
    let may_be_manifest = size <= MAX_MANIFEST as u64;
    let (mut hasher, mut whole, mut buffer) = (named.hasher(), Vec::new(), vec![0; PIECE]);
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        // Most small blobs are manifests or configurations; a layer is none by its first byte.
        if may_be_manifest
            && (!whole.is_empty() || buffer[..n].trim_ascii_start().starts_with(b"{"))
        {
            whole.extend_from_slice(&buffer[..n]);
        }
        progress(n as u64);
    }
    if hasher.finish() != *named {
        return Ok(None);
    }
    let stored_at = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
    let (digest, room) = (named.clone(), metadata.blocks() * 512);
    Ok(Some(Recovered { digest, size, room, stored_at, manifest: manifest(&whole) }))
}

/// What bytes are as a manifest: they say so themselves, or they refer to content as one does.
fn manifest(bytes: &[u8]) -> Option<Manifest> {
    let parsed = Parsed::parse(bytes).ok()?;
    let says_so = |it: &str| media::ALL_MANIFESTS.contains(&it);
    if !parsed.media_type.as_deref().is_some_and(says_so) && parsed.children().next().is_none() {
        return None;
    }
    Some(Manifest {
        media_type: parsed.media_type_or_guess().to_owned(),
        references: References {
            children: parsed.children().map(|child| child.digest.clone()).collect(),
            subject: parsed.subject.map(|subject| subject.digest),
        },
    })
}

/// Puts the fresh index into the place of the old one.
fn exchange(layout: &Layout, fresh: &Path) -> io::Result<()> {
    // The index will say of all blobs that they survive a loss of power.
    rustix::fs::syncfs(File::open(layout.root())?)?;
    let current = layout.index();
    let beside = |ending: &str| {
        let mut path = current.clone().into_os_string();
        path.push(ending);
        PathBuf::from(path)
    };
    remove(&beside(".old"))?;
    match std::fs::hard_link(&current, beside(".old")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // They belong to the old one, and would be taken for the new one's.
    remove(&beside("-wal"))?;
    remove(&beside("-shm"))?;
    std::fs::rename(fresh, &current)?;
    sync_directory(layout.root())
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn a_manifest_is_known_by_its_media_type_or_its_shape() {
        let child = format!(r#"{{"digest":"{DIGEST}","size":6,"mediaType":"x/y"}}"#);
        let media_type = |text: &str| manifest(text.as_bytes()).map(|manifest| manifest.media_type);
        let typed = format!(r#"{{"schemaVersion":2,"mediaType":"{}"}}"#, media::DOCKER_LIST);
        assert_eq!(media_type(&typed).as_deref(), Some(media::DOCKER_LIST));
        let image = format!(r#"{{"schemaVersion":2,"config":{child},"layers":[]}}"#);
        assert_eq!(media_type(&image).as_deref(), Some(media::OCI_MANIFEST));
        let index = format!(r#"{{"schemaVersion":2,"manifests":[{child}]}}"#);
        assert_eq!(media_type(&index).as_deref(), Some(media::OCI_INDEX));
        for other in ["", "{}", r#"{"schemaVersion":2}"#, r#"{"architecture":"amd64"}"#, "[]"] {
            assert_eq!(media_type(other), None, "{other}");
        }
    }
}
