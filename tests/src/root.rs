//! A root folder of a newer release, for programs that this machine's libraries are too old for.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
use rustix::mount::{MountFlags, mount, mount_bind};

use crate::scratch::Scratch;
use crate::suite::Suite;

/// A root folder that nothing is left of after the test, with one folder of this machine's at the
/// same path.
#[derive(Debug)]
pub struct Root(Scratch);

impl Root {
    /// What `scripts/newer-peers --root` has made of trixie, with `shared` in it.
    ///
    /// # Panics
    ///
    /// If it is not there, or cannot be mounted (that needs root).
    pub fn with(shared: &Path) -> Self {
        let lower = Suite::Trixie.root();
        assert!(
            lower.is_dir(),
            "{} is missing: LARDER_ALL_PEERS=1 make test-deps",
            lower.display()
        );
        let root = Self(Scratch::new());
        let (upper, work) = (root.0.folder("upper"), root.0.folder("work"));
        // The machine's own devices stay out of what is removed at the end.
        let devices = root.0.folder("upper/dev");
        let mode = Mode::from_raw_mode(0o666);
        mknodat(CWD, devices.join("null"), FileType::CharacterDevice, mode, makedev(1, 3)).unwrap();
        root.0.folder("upper/proc");
        root.0.folder("upper/var/tmp");
        let inside = shared.strip_prefix("/").unwrap();
        std::fs::create_dir_all(upper.join(inside)).unwrap();
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        let merged = root.0.folder("merged");
        let flags = MountFlags::empty();
        mount("overlay", &merged, "overlay", flags, options.as_c_str()).unwrap();
        mount("proc", merged.join("proc"), "proc", flags, None).unwrap();
        mount_bind(shared, merged.join(inside)).unwrap();
        root
    }

    /// A command for one of its programs.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.0.join("merged")).arg(program);
        command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        command
    }

    /// Where this machine sees what its programs see at `path`.
    pub fn outside(&self, path: &Path) -> PathBuf {
        self.0.join("merged").join(path.strip_prefix("/").unwrap_or(path))
    }
}
