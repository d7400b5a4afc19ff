//! What other programs' files were before they were edited, and how they become that again.
//!
//! The record is one JSON file in the state directory. It is written before a file is touched, and
//! forgets the file after it has been put back; so whatever moment the machine loses power in, what
//! was there before is known. Contents are UTF-8, byte for byte; a file that is something else is
//! never touched.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use larder_core::Digest;
use serde::{Deserialize, Serialize};

use super::Runtime;
use crate::file::{self, Owner};

/// The file in the state directory.
const NAME: &str = "mirrors.json";

/// The version of its form.
const VERSION: u32 = 1;

/// The longest file that is edited. Theirs have some KiB.
pub(super) const MAX_BYTES: u64 = 1 << 20;

/// The longest record that is read: some hundreds of files.
const MAX_RECORD: u64 = 64 << 20;

/// The record cannot be used. Nothing is edited without it.
#[derive(Debug, thiserror::Error)]
#[error("{doing} {}", .path.display())]
pub struct RecordError {
    doing: &'static str,
    path: PathBuf,
    source: io::Error,
}

/// All files that are edited now.
#[derive(Debug)]
pub(super) struct Record {
    path: PathBuf,
    files: Vec<Kept>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Document {
    version: u32,
    files: Vec<Kept>,
}

/// One file as it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Kept {
    pub(super) path: PathBuf,
    pub(super) runtime: Runtime,
    /// `None`: there was no such file.
    pub(super) before: Option<Before>,
    /// What it was made to hold.
    pub(super) wrote: Digest,
    /// Directories that were made for it, the outermost first.
    pub(super) made: Vec<PathBuf>,
}

/// A file's content, permissions and owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Before {
    pub(super) text: String,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// What came of putting a file back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Restored {
    /// It is what it was.
    AsBefore(PathBuf),
    /// Somebody else has changed it since; it is left alone.
    ChangedSince(PathBuf),
    /// It could not be written, and why.
    Failed(PathBuf, String),
}

/// What a file holds now.
pub(super) fn read(path: &Path) -> io::Result<Option<Before>> {
    let bytes = match file::read(path, MAX_BYTES) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let text = String::from_utf8(bytes).map_err(|_| io::Error::other("it is not UTF-8 text"))?;
    // Following a link would put a file in its place.
    if path.symlink_metadata()?.is_symlink() {
        return Err(io::Error::other("it is a symbolic link"));
    }
    match Owner::of(&path.metadata()?) {
        Owner::Theirs { mode, uid, gid } => Ok(Some(Before { text, mode, uid, gid })),
        Owner::Ours { .. } => unreachable!("a file that is there is somebody's"),
    }
}

impl Record {
    /// Reads the record in the directory `state`; an empty one, if there is none.
    ///
    /// # Errors
    ///
    /// It cannot be read, or is another version's.
    pub(super) fn open(state: &Path) -> Result<Self, RecordError> {
        let path = state.join(NAME);
        let error =
            |source| RecordError { doing: "reading the record", path: path.clone(), source };
        let files = match file::read(&path, MAX_RECORD) {
            Ok(bytes) => {
                let document: Document =
                    serde_json::from_slice(&bytes).map_err(|source| error(source.into()))?;
                if document.version != VERSION {
                    let text = format!("it has version {}, and not {VERSION}", document.version);
                    return Err(error(io::Error::other(text)));
                }
                document.files
            }
            Err(source) if source.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(source) => return Err(error(source)),
        };
        Ok(Self { path, files })
    }

    pub(super) fn of(&self, path: &Path) -> Option<&Kept> {
        self.files.iter().find(|kept| kept.path == path)
    }

    pub(super) fn all(&self) -> &[Kept] {
        &self.files
    }

    /// Writes `text` to the file of `kept`, after that has been recorded.
    ///
    /// # Errors
    ///
    /// The record, or the file, could not be written. The file is then what it was.
    pub(super) fn edit(&mut self, mut kept: Kept, text: &str) -> Result<(), RecordError> {
        let path = kept.path.clone();
        let error = |source| RecordError { doing: "writing", path: path.clone(), source };
        kept.made = match self.of(&path) {
            Some(earlier) => earlier.made.clone(),
            None => missing_directories(&path),
        };
        kept.wrote = Digest::sha256_of(text.as_bytes());
        let owner = match &kept.before {
            None => Owner::Ours { mode: 0o644 },
            Some(Before { mode, uid, gid, .. }) => {
                Owner::Theirs { mode: *mode, uid: *uid, gid: *gid }
            }
        };
        self.files.retain(|it| it.path != path);
        self.files.push(kept);
        self.save()?;
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory).map_err(error)?;
        }
        file::replace(&path, text.as_bytes(), owner).map_err(error)
    }

    /// Puts the file at `path` back, and forgets it if it is what it was.
    ///
    /// # Errors
    ///
    /// The record could not be written.
    pub(super) fn restore(&mut self, path: &Path) -> Result<Restored, RecordError> {
        let Some(kept) = self.of(path).cloned() else {
            return Ok(Restored::AsBefore(path.to_owned()));
        };
        let restored = match put_back(&kept) {
            Ok(true) => Restored::AsBefore(path.to_owned()),
            Ok(false) => Restored::ChangedSince(path.to_owned()),
            Err(error) => return Ok(Restored::Failed(path.to_owned(), error.to_string())),
        };
        self.files.retain(|it| it.path != path);
        if kept.before.is_none() {
            self.hand_on(remove_directories(&kept.made));
        }
        self.save()?;
        Ok(restored)
    }

    /// Has directories that are still needed be removed with the file that needs them.
    fn hand_on(&mut self, directories: Vec<PathBuf>) {
        for directory in directories {
            let needs_it = |kept: &&mut Kept| kept.path.starts_with(&directory);
            if let Some(kept) = self.files.iter_mut().find(needs_it) {
                kept.made.push(directory);
                kept.made.sort();
            }
        }
    }

    fn save(&self) -> Result<(), RecordError> {
        let error =
            |source| RecordError { doing: "writing the record", path: self.path.clone(), source };
        if self.files.is_empty() {
            return match file::remove(&self.path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => Err(error(source)),
                _ => Ok(()),
            };
        }
        let document = Document { version: VERSION, files: self.files.clone() };
        let text = serde_json::to_vec_pretty(&document).map_err(|it| error(it.into()))?;
        if let Some(directory) = self.path.parent() {
            fs::create_dir_all(directory).map_err(error)?;
        }
        // Other programs' files may hold what is not for everybody.
        file::replace(&self.path, &text, Owner::Ours { mode: 0o600 }).map_err(error)
    }
}

/// Whether the file is now what it was; otherwise somebody else has changed it.
fn put_back(kept: &Kept) -> io::Result<bool> {
    let now = match read(&kept.path) {
        Ok(now) => now,
        // It became something that is never touched.
        Err(error) if error.kind() == io::ErrorKind::Other => return Ok(false),
        Err(error) => return Err(error),
    };
    let is_ours = |now: &Before| Digest::sha256_of(now.text.as_bytes()) == kept.wrote;
    match (&now, &kept.before) {
        (Some(now), Some(before)) if is_ours(now) => {
            let Before { text, mode, uid, gid } = before;
            let owner = Owner::Theirs { mode: *mode, uid: *uid, gid: *gid };
            file::replace(&kept.path, text.as_bytes(), owner)?;
        }
        (Some(now), None) if is_ours(now) => file::remove(&kept.path)?,
        (now, before) if now == before => {}
        _ => return Ok(false),
    }
    Ok(true)
}

/// Removes directories that are empty, the innermost first. Returns those that stay.
fn remove_directories(made: &[PathBuf]) -> Vec<PathBuf> {
    let mut made = made.to_vec();
    // Somebody may have put something there, and then those above it stay, too.
    while made.last().is_some_and(|directory| fs::remove_dir(directory).is_ok()) {
        made.pop();
    }
    made
}

/// The directories above `path` that are not there, the outermost first.
fn missing_directories(path: &Path) -> Vec<PathBuf> {
    let above = path.ancestors().skip(1);
    let mut missing: Vec<PathBuf> = above
        .take_while(|it| !it.as_os_str().is_empty() && !it.exists())
        .map(Path::to_owned)
        .collect();
    missing.reverse();
    missing
}
