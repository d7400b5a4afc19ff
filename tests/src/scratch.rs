//! Folders for one test.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_core::Digest;
use larder_testkit::process::peer;
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
        let (below, path, device) = self.device(name, size);
        run(Command::new("mkfs.ext4").args(["-q", "-E", "lazy_itable_init=0"]).arg(&device));
        let disk = BreakableDisk { path, below };
        disk.mount();
        disk
    }

    /// Makes a folder in it that is a file system of its own, of so many bytes, and that can be made
    /// read-only while files in it are open.
    ///
    /// # Panics
    ///
    /// If that cannot be done (it needs root, loop devices, and Debian's btrfs-progs).
    pub fn lockable_disk(&self, name: &str, size: u64) -> LockableDisk {
        let (_, mounted, device) = self.device(&format!("{name}.whole"), size);
        run(peer("mkfs.btrfs", "btrfs-progs").args(["--quiet", "--mixed"]).arg(&device));
        run(Command::new("mount").args(["-o", "loop"]).arg(&device).arg(&mounted));
        let path = mounted.join("volume");
        run(peer("btrfs", "btrfs-progs").args(["subvolume", "create"]).arg(&path));
        std::os::unix::fs::symlink(&path, self.join(name)).unwrap();
        LockableDisk { path }
    }

    /// A folder in memory, one to mount something at, and a file in the first of them of nearly so
    /// many bytes.
    fn device(&self, name: &str, size: u64) -> (PathBuf, PathBuf, PathBuf) {
        let below = self.small_disk(&format!("{name}.device"), size);
        let (path, device) = (self.folder(name), below.join("image"));
        // All of it, so that there is no hole that could be filled later.
        let file = fs::File::create(&device).unwrap();
        fallocate(&file, FallocateFlags::empty(), 0, size - (1 << 20)).unwrap();
        (below, path, device)
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
    /// What it finds wrong from now on, the kernel makes it read-only for, as most installations have
    /// it. The device goes with the mount.
    fn mount(&self) {
        let mut mount = Command::new("mount");
        mount.args(["-o", "loop,errors=remount-ro"]).arg(self.below.join("image"));
        run(mount.arg(&self.path));
    }

    /// Has the kernel find something wrong with it: from now on it is read-only, for files that are
    /// open, too, and nothing but [`Self::repair`] makes it writable again.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub fn turn_read_only(&self) {
        let path = self.path.to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mut devices = fields.filter(|fields| fields[1] == path).map(|fields| fields[0]);
        let device = devices.next_back().unwrap().strip_prefix("/dev/").unwrap();
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "1").unwrap();
    }

    /// Mounts it again, which nobody may be using.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub fn repair(&self) {
        unmount(&self.path, UnmountFlags::empty()).unwrap();
        self.mount();
    }

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

/// A disk that can be made read-only while it is in use: Linux refuses to remount what somebody has
/// open for writing, but not to have a subvolume of btrfs take no more. Files that are open go on
/// being written.
#[derive(Debug)]
pub struct LockableDisk {
    path: PathBuf,
}

impl LockableDisk {
    /// Makes it read-only, or writable again.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub fn set_read_only(&self, is_read_only: bool) {
        let mut set = peer("btrfs", "btrfs-progs");
        set.args(["property", "set", "-t", "subvol"]).arg(&self.path).arg("ro");
        run(set.arg(if is_read_only { "true" } else { "false" }));
    }
}

fn run(command: &mut Command) {
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{command:?}: {ended:?}");
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
