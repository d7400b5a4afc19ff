//! A directory with a store in it, and eyes to look into it with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use larder_core::Digest;
use larder_core::name::Named;
use larder_store::{Blob, CommitError, OpenError, Settings, Staging, Store};
use tempfile::TempDir;

/// A directory that outlives the stores that are opened in it.
pub(crate) struct Home(TempDir);

impl Home {
    pub(crate) fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        self.0.path()
    }

    pub(crate) async fn open(&self) -> Store {
        self.try_open(None).await.unwrap()
    }

    pub(crate) async fn open_with_budget(&self, budget: u64) -> Store {
        self.try_open(Some(budget)).await.unwrap()
    }

    pub(crate) async fn try_open(&self, budget: Option<u64>) -> Result<Store, OpenError> {
        Store::open(Settings { budget, ..Settings::new(self.path().to_owned()) }).await
    }

    /// What a process that is killed now leaves behind.
    pub(crate) fn crashed(&self) -> Self {
        let copy = Self::new();
        copy_all(self.path(), copy.path());
        copy
    }

    /// The files in one of the store's directories, with their lengths.
    pub(crate) fn files(&self, directory: &str) -> Vec<(PathBuf, u64)> {
        files_below(&self.path().join(directory))
    }

    /// What all files that count take of the disk.
    pub(crate) fn bytes_on_disk(&self) -> u64 {
        let files = [self.files("blobs"), self.files("partial")].concat();
        files.iter().map(|(_, len)| self.room(*len)).sum()
    }

    /// What a file of `len` bytes takes of the disk.
    pub(crate) fn room(&self, len: u64) -> u64 {
        let block = rustix::fs::statvfs(self.path()).unwrap().f_frsize;
        len.div_ceil(block) * block
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.path().join("blobs").join(digest.algorithm()).join(&hex[..2]).join(hex)
    }

    pub(crate) fn partial_path(&self, digest: &Digest) -> PathBuf {
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        self.path().join("partial").join(name)
    }

    /// Changes the index of a store that is closed.
    pub(crate) async fn sql(&self, statement: &'static str) {
        let mut index = self.index().await;
        sqlx::query(statement).execute(&mut index).await.unwrap();
    }

    /// Has a blob of a closed store look as if it had been used longer ago.
    pub(crate) async fn make_older(&self, digest: &Digest, by: std::time::Duration) {
        let mut index = self.index().await;
        sqlx::query(
            "UPDATE blobs SET used_at = used_at - $1 \
             WHERE content = (SELECT id FROM contents WHERE digest = $2)",
        )
        .bind(i64::try_from(by.as_millis()).unwrap())
        .bind(digest.to_string())
        .execute(&mut index)
        .await
        .unwrap();
    }

    /// The names of the blobs that the index believes in.
    pub(crate) async fn rows(&self) -> Vec<Digest> {
        let mut index = self.index().await;
        let rows: Vec<(String,)> =
            sqlx::query_as("SELECT digest FROM blobs JOIN contents ON contents.id = blobs.content")
                .fetch_all(&mut index)
                .await
                .unwrap();
        rows.into_iter().map(|(digest,)| digest.parse().unwrap()).collect()
    }

    /// How many blobs the index does not believe to be safe from a loss of power.
    pub(crate) async fn unsynced(&self) -> i64 {
        let mut index = self.index().await;
        let count = sqlx::query_as("SELECT count(*) FROM blobs WHERE synced = 0");
        let (count,): (i64,) = count.fetch_one(&mut index).await.unwrap();
        count
    }

    /// Fails unless index, files and `store`, which is closed, agree on what there is.
    pub(crate) async fn assert_agrees_with(&self, store: &Store) {
        let mut rows: Vec<PathBuf> =
            self.rows().await.iter().map(|digest| self.blob_path(digest)).collect();
        let mut files: Vec<PathBuf> =
            self.files("blobs").into_iter().map(|(path, _)| path).collect();
        rows.sort();
        files.sort();
        assert_eq!(rows, files, "the index and the files are not the same blobs");
        assert_eq!(store.usage().bytes, self.bytes_on_disk());
        assert_eq!(self.files("staging"), []);
    }

    async fn index(&self) -> sqlx::SqliteConnection {
        use sqlx::ConnectOptions as _;
        let options = sqlx::sqlite::SqliteConnectOptions::new();
        options.filename(self.path().join("index.sqlite")).connect().await.unwrap()
    }
}

/// Closes `store` and lets go of the directory.
pub(crate) async fn close(store: Store) {
    store.close().await;
}

/// `n` bytes that are different for each `seed`.
pub(crate) fn content(seed: u64, n: usize) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    (0..n).map(|_| next()).collect()
}

pub(crate) fn repository(text: &str) -> Arc<Named> {
    let (host, repository) = text.split_once('/').unwrap();
    Arc::new(Named { host: host.parse().unwrap(), repository: repository.parse().unwrap() })
}

/// Stages `bytes` under the name of `whole`, going on from what was kept of it.
pub(crate) async fn staged(store: &Store, whole: &Bytes, bytes: &[u8]) -> Staging {
    let staging = store.stage(&Digest::sha256_of(whole)).await.unwrap();
    let rest = bytes.get(staging.len() as usize..).unwrap_or_default();
    staging.write(vec![Bytes::copy_from_slice(rest)]).await.unwrap()
}

pub(crate) async fn try_commit(store: &Store, bytes: &Bytes) -> Result<Blob, CommitError> {
    try_commit_to(store, bytes, "ghcr.io/a/b").await
}

pub(crate) async fn try_commit_to(
    store: &Store,
    bytes: &Bytes,
    name: &str,
) -> Result<Blob, CommitError> {
    let staging = staged(store, bytes, bytes).await;
    staging.commit(Some(bytes.len() as u64), &repository(name)).await
}

pub(crate) async fn commit(store: &Store, bytes: &Bytes) -> Digest {
    try_commit(store, bytes).await.unwrap().digest
}

/// The bytes of a blob; `None` if it is not found.
pub(crate) async fn read(store: &Store, digest: &Digest) -> Option<Vec<u8>> {
    Some(read_all(&store.blob(digest).await.unwrap()?).await)
}

pub(crate) async fn read_all(blob: &Blob) -> Vec<u8> {
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < blob.len {
        let at = bytes.len() as u64;
        bytes.extend_from_slice(&blob.file.read(at, blob.len - at).await.unwrap());
    }
    bytes
}

fn files_below(directory: &Path) -> Vec<(PathBuf, u64)> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => files_below(&path),
            false => {
                let len = path.metadata().unwrap().len();
                vec![(path, len)]
            }
        })
        .collect()
}

fn copy_all(from: &Path, to: &Path) {
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            std::fs::create_dir(&copy).unwrap();
            copy_all(&path, &copy);
        } else {
            std::fs::copy(&path, &copy).unwrap();
        }
    }
}
