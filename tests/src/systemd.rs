//! A real systemd, as the first process of a root folder of its own.
//!
//! It cleans up as it boots: whatever it finds in `/tmp` is removed, settings of the kernel are made.
//! So it must find nothing of this computer's. Before it is started, its root folder has become the
//! only one there is (`pivot_root`), and what the kernel shares between namespaces is read-only.

use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::kubernetes::cgroups::Cgroups;
use crate::kubernetes::machine::{Machine, child_of};
use crate::larder;
use crate::process::{Ended, Process, Stream, peer, run};
use crate::scratch::Scratch;
use crate::suite::Suite;

/// A running systemd, with a network of its own. Dropping it ends all that it has started.
#[derive(Debug)]
pub struct Systemd {
    /// As this computer numbers it.
    init: Pid,
    _process: Process,
    machine: Machine,
    // After the machine, as nothing may be in them.
    _cgroups: Cgroups,
    _scratch: Scratch,
}

/// What it may not do in whatever namespace: set the clock, load modules, restart, open devices.
const WITHOUT: &str = "-sys_time,-sys_module,-sys_boot,-sys_rawio,-syslog,-wake_alarm,-mac_admin";

/// `bash -c ENTER CGROUP FOLDER LOWER BOOT`: has what follows be in a group of its own, as the whole
/// tree of groups that it sees.
const ENTER: &str = r#"
set -eu
echo $$ > "$0/cgroup.procs"
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin container=larder \
  setpriv "--bounding-set=$4" \
  unshare --pid --mount --cgroup --fork --kill-child bash -c "$3" "$1" "$2"
"#;

/// `bash -c BOOT FOLDER LOWER`. Once it has pivoted it has no programs but its own.
const BOOT: &str = r#"
set -eu
mount --make-rprivate /
root=$0/root
mkdir -p "$root" "$0/upper" "$0/work"
mount -t overlay -o "lowerdir=$1,upperdir=$0/upper,workdir=$0/work" overlay "$root"
mkdir -p "$root"/{proc,sys,dev,run,tmp,root,etc/containerd,etc/larder,usr/local/bin}
mount -t proc proc "$root/proc"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
for name in dev run tmp; do mount -t tmpfs -o mode=755 tmpfs "$root/$name"; done
device() { mknod -m 666 "$root/dev/$1" c "$2" "$3"; }
device null 1 3; device zero 1 5; device full 1 7; device random 1 8; device urandom 1 9; device tty 5 0
ln -s pts/ptmx "$root/dev/ptmx"
mkdir -p "$root/etc/systemd/system"
# Of all namespaces together, or of no use here.
for unit in sys-kernel-{debug,tracing,config}.mount sys-fs-fuse-connections.mount dev-{hugepages,mqueue}.mount \
  systemd-{modules-load,sysctl,udevd,remount-fs,firstboot,binfmt}.service ldconfig.service getty.target; do
  ln -sf /dev/null "$root/etc/systemd/system/$unit"
done
printf 'root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n' > "$root/etc/passwd"
printf 'root:x:0:\nnogroup:x:65534:\n' > "$root/etc/group"
cd "$root"
pivot_root . .
umount -l .
# Nothing of the computer's is left, or nothing is started.
if [ -e "$0" ] || [ -e "$root" ] || [ ! -e /etc/larder ]; then exit 1; fi
echo "the root folder is its own"
exec /usr/lib/systemd/systemd --unit=multi-user.target --log-target=journal --show-status=0
"#;

impl Systemd {
    /// Boots one, with the program in `/usr/local/bin`. Returns once all of it has started.
    ///
    /// # Panics
    ///
    /// If what `scripts/newer-peers --root` makes is not there, or it does not boot (it needs root).
    pub async fn boot() -> Self {
        let lower = Suite::Trixie.root();
        let there = lower.join("usr/lib/systemd/systemd");
        assert!(
            there.exists(),
            "{} is missing: LARDER_ALL_PEERS=1 make test-deps",
            there.display()
        );
        let scratch = Scratch::new();
        let id = scratch.path().file_name().unwrap().to_str().unwrap();
        let cgroups = Cgroups::make(&format!("{id}-systemd"));
        let machine = Machine::boot("systemd", &scratch.folder("machine")).await;
        let mut command = peer("bash", "bash");
        command.args(["-c", ENTER]).arg(cgroups.unified()).arg(scratch.folder("systemd"));
        command.arg(lower).args([BOOT, WITHOUT]);
        let process = machine.start("systemd", &command);
        process.announcement(Stream::Stdout, "the root folder is its own").await;
        // What entered the machine, what made the namespaces, and who was born in them.
        let unshare = child_of(process.pid()).expect("it is there");
        let init = child_of(unshare).expect("it has said something");
        let systemd =
            Self { init, _process: process, machine, _cgroups: cgroups, _scratch: scratch };
        fs::copy(larder::program(), systemd.path("/usr/local/bin/larder")).unwrap();
        let is_up = async {
            while systemd.systemctl(&["is-active", "multi-user.target"]).await.code != Some(0) {}
        };
        larder_testkit::patiently("systemd boots", is_up).await;
        systemd
    }

    /// The path at which this computer has what is at `path` in its root folder.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.init))
    }

    /// Copies a file of this computer's there.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub fn install(&self, from: &Path, to: &str) {
        fs::copy(from, self.path(to)).unwrap();
    }

    /// The network that it has, with what is in it but not in its root folder.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Runs `systemctl` with these words.
    pub async fn systemctl(&self, words: &[&str]) -> Ended {
        self.run("/usr/bin/systemctl", &[&["--no-pager"], words].concat()).await
    }

    /// Runs a program of the root folder.
    pub async fn run(&self, program: &str, words: &[&str]) -> Ended {
        let mut command = peer("nsenter", "util-linux");
        command.args(["--target", &self.init.to_string()]);
        command.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--cgroup", "--"]);
        run(command.arg(program).args(words)).await
    }

    /// What a unit has said, and what systemd has said about it.
    pub async fn log(&self, unit: &str) -> String {
        // What has been said just now may be on its way.
        self.run("/usr/bin/journalctl", &["--sync"]).await;
        let lines = self.run("/usr/bin/journalctl", &["--no-pager", "--unit", unit]).await;
        let status = self.systemctl(&["status", "--full", unit]).await;
        format!("{}{}{}{}", lines.stdout, lines.stderr, status.stdout, status.stderr)
    }

    /// A property of a unit.
    ///
    /// # Panics
    ///
    /// If it has none such.
    pub async fn property(&self, unit: &str, name: &str) -> String {
        let shown = self.systemctl(&["show", unit, "--property", name, "--value"]).await;
        shown.expect(name).trim().to_owned()
    }
}
