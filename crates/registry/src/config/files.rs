//! The files that a configuration names.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::Path;

/// The longest file that a configuration may name: certificates and passwords are far shorter,
/// and a device or a log named by mistake must not fill the memory.
const MAX_LEN: u64 = 1 << 20;

/// Where the files that a configuration names are read from.
pub trait Files {
    /// The content of the file at `path`.
    ///
    /// # Errors
    ///
    /// What the operating system says, or that the file is longer than 1 MiB.
    fn read(&self, path: &Path) -> io::Result<Vec<u8>>;
}

/// The disk. Relative paths are relative to the working directory.
#[derive(Clone, Copy, Debug)]
pub struct Disk;

impl Files for Disk {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_LEN + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_LEN {
            return Err(io::Error::other("the file is longer than 1 MiB"));
        }
        Ok(bytes)
    }
}

/// Files as a table, for tests.
#[cfg(test)]
impl Files for std::collections::BTreeMap<std::path::PathBuf, String> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        self.get(path).map(|text| text.clone().into_bytes()).ok_or(io::ErrorKind::NotFound.into())
    }
}
