//! Where things are in the store's directory.
//!
//! ```text
//! DATA/
//!   lock                        held by the process that has the store open
//!   index.sqlite                what is known about the files
//!   blobs/sha256/ab/abcdef…     one blob: first 2 hex digits, then all 64 (sha512: all 128)
//!   staging/<uuid>              bytes on their way in; emptied at start
//!   partial/sha256-abcdef…      the beginning of a blob whose fill was given up
//!   quarantine/sha256-abcdef…   what was in the place of a blob and is not it; never read again
//! ```

use std::io;
use std::path::{Path, PathBuf};

use larder_core::Digest;

/// The first part of a digest, and a directory under `blobs/`.
pub(crate) const ALGORITHMS: [&str; 2] = ["sha256", "sha512"];

/// The paths of one store.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    root: PathBuf,
}

impl Layout {
    /// The layout below `root`, whose directories are made where they are missing.
    pub(crate) fn create(root: &Path) -> io::Result<Self> {
        let layout = Self { root: root.to_owned() };
        let algorithms = ALGORITHMS.map(|algorithm| layout.blobs().join(algorithm));
        for directory in algorithms.iter().chain(&[layout.staging(), layout.partial()]) {
            std::fs::create_dir_all(directory)?;
        }
        sync_directory(&layout.blobs())?;
        sync_directory(root)?;
        Ok(layout)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn index(&self) -> PathBuf {
        self.root.join("index.sqlite")
    }

    pub(crate) fn blobs(&self) -> PathBuf {
        self.root.join("blobs")
    }

    pub(crate) fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    pub(crate) fn partial(&self) -> PathBuf {
        self.root.join("partial")
    }

    pub(crate) fn blob(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        self.blobs().join(digest.algorithm()).join(&hex[..2]).join(hex)
    }

    pub(crate) fn parked(&self, digest: &Digest) -> PathBuf {
        self.partial().join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }

    pub(crate) fn new_staging(&self) -> PathBuf {
        self.staging().join(uuid::Uuid::now_v7().to_string())
    }
}

/// Removes every file in `directory`, which holds no directories.
pub(crate) fn empty(directory: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        std::fs::remove_file(entry?.path())?;
    }
    Ok(())
}

/// Makes the entries of `directory` survive a loss of power.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}

/// Removes a file when it goes out of scope, unless it was kept. That may block, see
/// [`crate::work::Slow`].
#[derive(Debug)]
pub(crate) struct RemoveOnDrop(Option<PathBuf>);

impl RemoveOnDrop {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self(Some(path))
    }

    /// Where the file is.
    pub(crate) fn path(&self) -> &Path {
        self.0.as_deref().expect("only `keep` takes the path, and consumes the guard")
    }

    /// Leaves the file where it is (or was, if it has been renamed).
    pub(crate) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // Gone already, or the disk refuses: the next start empties the directory.
            let _ = std::fs::remove_file(path);
        }
    }
}
