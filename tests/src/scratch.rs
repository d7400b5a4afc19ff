//! Folders for one test.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_core::Digest;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// A folder that is gone after the test, with what is mounted below it.
///
/// Its path is short, as the paths of unix sockets must be (108 bytes).
#[derive(Debug)]
pub struct Scratch(TempDir);

impl Scratch {
    /// Makes an empty folder.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("larder-").tempdir().unwrap())
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// A path in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// Makes a folder in it, with all above it.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub fn folder(&self, name: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// Makes a folder in it that is a file system of its own, of so many bytes, in memory.
    ///
    /// # Panics
    ///
    /// If that cannot be done (it needs root).
    pub fn small_disk(&self, name: &str, size: u64) -> PathBuf {
        let path = self.folder(name);
        let options = CString::new(format!("size={size}")).unwrap();
        mount("larder-tests", &path, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        path
    }

    /// Makes a folder in it that is a file system of its own, of so many bytes, and that can be
    /// broken.
    ///
    /// # Panics
    ///
    /// If that cannot be done (it needs root, and loop devices).
    pub fn breakable_disk(&self, name: &str, size: u64) -> BreakableDisk {
        let below = self.small_disk(&format!("{name}.device"), size);
        let (path, device) = (self.folder(name), below.join("image"));
        // All of it, so that there is no hole that could be filled later.
        let file = fs::File::create(&device).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, size - (1 << 20)).unwrap();
        let run = |command: &mut Command| {
            let ended = command.output().unwrap();
            assert!(ended.status.success(), "{command:?}: {ended:?}");
        };
        run(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0"]).arg(&device));
        // The device goes with the mount.
        run(Command::new("mount").args(["-o", "loop"]).arg(&device).arg(&path));
        BreakableDisk { path, below }
    }

    /// Writes a file in it, and makes the folders above it.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }
}

/// A disk that works until it is broken.
#[derive(Debug)]
pub struct BreakableDisk {
    /// Where it is mounted.
    pub path: PathBuf,
    /// Where the file is that it is in.
    below: PathBuf,
}

impl BreakableDisk {
    /// From now on only its first `len` bytes can be read or written; the rest is an error.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub fn break_after(&self, len: u64) {
        let device = fs::File::options().write(true).open(self.below.join("image")).unwrap();
        device.set_len(len).unwrap();
        // What is written must not make the file longer again, with zeros where the rest was.
        let mut filler = fs::File::create(self.below.join("filler")).unwrap();
        while filler.write_all(&[1; 1 << 16]).is_ok() {}
    }
}

impl Default for Scratch {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        let ours: Vec<&Path> = targets.filter(|target| target.starts_with(self.path())).collect();
        // The last mounted first, as it may lie on another.
        for target in ours.into_iter().rev() {
            let _ = unmount(target, UnmountFlags::DETACH);
        }
    }
}

/// The path, relative to `folder`, and the digest of every file below it.
///
/// # Panics
///
/// If something cannot be read.
pub fn digests_below(folder: &Path) -> BTreeMap<String, Digest> {
    files_below(folder)
        .into_iter()
        .map(|path| {
            let digest = Digest::sha256_of(&fs::read(&path).unwrap());
            let relative = path.strip_prefix(folder).unwrap();
            (relative.to_str().unwrap().to_owned(), digest)
        })
        .collect()
}

/// The path of every file below `folder`; none if there is no such folder.
///
/// # Panics
///
/// If something cannot be read.
pub fn files_below(folder: &Path) -> Vec<PathBuf> {
    if !folder.exists() {
        return Vec::new();
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => files.extend(files_below(&entry.path())),
            false => files.push(entry.path()),
        }
    }
    files
}
