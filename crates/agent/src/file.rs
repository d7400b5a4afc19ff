//! Whole files, read and replaced.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown};
use std::path::{Path, PathBuf};

/// Whose the new file is to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner {
    /// This process's.
    Ours {
        /// The permissions.
        mode: u32,
    },
    /// As a file was before.
    Theirs {
        /// The permissions.
        mode: u32,
        /// Its user.
        uid: u32,
        /// Its group.
        gid: u32,
    },
}

impl Owner {
    /// As the file is that `metadata` are of.
    pub(crate) fn of(metadata: &fs::Metadata) -> Self {
        Self::Theirs {
            mode: metadata.permissions().mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
        }
    }
}

/// All of a file of at most `limit` bytes.
///
/// # Errors
///
/// What the operating system says; `FileTooLarge`.
pub(crate) fn read(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let text = format!("the file has more than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// Has `path` hold `bytes`, from one moment to the next: whoever reads it sees all of the old file or
/// all of the new one, also after the machine has lost power.
///
/// # Errors
///
/// What the operating system says; the file is then what it was.
pub(crate) fn replace(path: &Path, bytes: &[u8], owner: Owner) -> io::Result<()> {
    let temporary = beside(path)?;
    let written = write(&temporary, bytes, owner).and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // It may not have come to be.
        let _ = fs::remove_file(&temporary);
        return written;
    }
    sync_directory_of(path)
}

/// Removes a file, for good.
///
/// # Errors
///
/// What the operating system says.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    sync_directory_of(path)
}

fn write(path: &Path, bytes: &[u8], owner: Owner) -> io::Result<()> {
    let (Owner::Ours { mode } | Owner::Theirs { mode, .. }) = owner;
    let mut options = File::options();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)?;
    if let Owner::Theirs { uid, gid, .. } = owner {
        let is_so = file.metadata().map(|it| (it.uid(), it.gid()) == (uid, gid))?;
        if !is_so {
            fchown(&file, Some(uid), Some(gid))?;
        }
    }
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.sync_all()
}

/// A name in the same directory that no runtime reads: none looks at hidden files.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(".larder-new");
    Ok(path.with_file_name(hidden))
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    match path.parent() {
        Some(directory) => File::open(directory)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_keeps_its_permissions_and_nothing_is_left_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.toml");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        replace(&path, b"new", Owner::of(&path.metadata().unwrap())).unwrap();
        assert_eq!(read(&path, 3).unwrap(), b"new");
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(read(&path, 2).is_err());
        assert!(replace(&folder.path().join("none/a"), b"", Owner::Ours { mode: 0o644 }).is_err());
    }
}
