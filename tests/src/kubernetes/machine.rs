//! A small machine of its own: what a computer in a rack is, made of this one's namespaces.
//!
//! Its network, processes, mounts and name are its own, and so are `/etc`, `/var` and `/run`:
//! programs in it find their usual paths and nobody else's. What it writes is in a folder of the
//! test. `/sys`, with the control groups, is this computer's.
//!
//! The first process in it does nothing but wait: for the end of the test, however that comes about.
//! When it ends, the kernel ends the rest, and nothing is left but the folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, Signal, kill_process};

use super::wire::Wire;
use crate::process::{Ended, Process, Stream, peer, run};

/// Settings of the whole computer that a kubelet would make. It finds them made, so that it leaves
/// the computer alone.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// What the first process does: `bash -c BOOT NAME FOLDER TUNABLE…`.
const BOOT: &str = r#"
set -eu
folder=$1
mount -t proc proc /proc
for name in etc var; do
  mkdir -p "$folder/$name" "$folder/$name.work"
  mount -t overlay -o "lowerdir=/$name,upperdir=$folder/$name,workdir=$folder/$name.work" overlay "/$name"
done
mount -t tmpfs tmpfs /run
# An overlay cannot be the upper side of another one.
for name in containerd kubelet; do
  mkdir -p "$folder/$name" "/var/lib/$name"
  mount --bind "$folder/$name" "/var/lib/$name"
done
for path in "${@:2}"; do
  mount --bind "$folder/sys/$path" "/proc/sys/$path"
done
# As on a node, where a pod may ask to see what is mounted later.
mount --make-rshared /
hostname "$0"
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
echo "$0 is up"
read -r < "$folder/lifeline"
"#;

/// A running machine. Dropping it ends all that runs in it.
#[derive(Debug)]
pub struct Machine {
    name: String,
    /// The one that waits, as this computer numbers it.
    first: Pid,
    outer: Process,
    // Its other end is closed when the test has ended, even by `kill -9`.
    _lifeline: File,
}

impl Machine {
    /// Boots one. `folder` is an empty one of the test, which should be on a disk.
    ///
    /// # Panics
    ///
    /// If that cannot be done (it needs root).
    pub async fn boot(name: &str, folder: &Path) -> Self {
        for (path, value) in TUNABLES {
            let path = folder.join("sys").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        let lifeline = folder.join("lifeline");
        mknodat(CWD, &lifeline, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // For both, as for writing alone it could not be opened yet.
        let lifeline = File::options().read(true).write(true).open(lifeline).unwrap();

        let mut command = peer("unshare", "util-linux");
        command.args(["--mount", "--pid", "--net", "--uts", "--ipc", "--fork"]);
        command.args(["bash", "-c", BOOT, name]).arg(folder);
        command.args(TUNABLES.map(|(path, _)| path));
        let outer = Process::start(name, &mut command);
        outer.announcement(Stream::Stdout, &format!("{name} is up")).await;
        let first = child_of(outer.pid()).expect("it has said something");
        Self { name: name.to_owned(), first, outer, _lifeline: lifeline }
    }

    /// How it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The path at which this computer has what is at `path` in the machine.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.first))
    }

    /// Writes a file in it, and makes the folders above it.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// `command`, to be run in it.
    pub fn command(&self, command: &Command) -> Command {
        self.enter(&["--mount", "--pid", "--net", "--uts", "--ipc"], command)
    }

    /// Starts `command` in it, called `name` in messages.
    pub fn start(&self, name: &str, command: &Command) -> Process {
        Process::start(&format!("{}: {name}", self.name), &mut self.command(command))
    }

    /// Runs `command` in it to its end.
    pub async fn run(&self, command: &Command) -> Ended {
        run(&mut self.command(command)).await
    }

    /// Runs `ip` with these words in its network.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub async fn ip(&self, words: &str) {
        self.net(peer("ip", "iproute2"), words).await;
    }

    /// Runs `iptables` with these words in its network.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub async fn iptables(&self, words: &str) {
        self.net(peer("iptables", "iptables"), &format!("--wait {words}")).await;
    }

    /// Has what a container sends be as slow as a network of 100 Mbit/s. `pid` is its first process, as
    /// the runtime numbers it.
    ///
    /// # Panics
    ///
    /// If that cannot be done.
    pub async fn slow_down(&self, pid: &str) {
        let mut command = peer("nsenter", "util-linux");
        command.args(["--net", "--target", pid, "tc", "qdisc", "add", "dev", "eth0", "root"]);
        command.args(["tbf", "rate", "100mbit", "burst", "64kb", "latency", "100ms"]);
        self.run(&command).await.expect(&format!("{}: {command:?}", self.name));
    }

    async fn net(&self, mut command: Command, words: &str) {
        command.args(words.split(' '));
        // Not in the rest of it, so that processes have the numbers that this computer gives them.
        let mut command = self.enter(&["--net"], &command);
        run(&mut command).await.expect(&format!("{}: {command:?}", self.name));
    }

    /// The number of its first process, by which `ip` knows its network.
    pub fn pid(&self) -> Pid {
        self.first
    }

    /// What connects its network and this computer's.
    pub fn wire(&self) -> Wire {
        Wire::into(&format!("/proc/{}/ns/net", self.first))
    }

    fn enter(&self, namespaces: &[&str], inner: &Command) -> Command {
        let mut command = peer("nsenter", "util-linux");
        command.args(["--target", &self.first.to_string()]).args(namespaces).arg("--");
        command.arg(inner.get_program()).args(inner.get_args());
        // Programs in it start others, and ask nobody else's proxies.
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
        command.env("PATH", std::env::join_paths(folders).unwrap());
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_lowercase());
        }
        for (name, value) in inner.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        // The kernel has ended all the others before this one is gone, and with it the outer one.
        let _ = kill_process(self.first, Signal::KILL);
        self.outer.stop(Signal::CONT);
    }
}

/// The first child of a process, if it has one.
pub(crate) fn child_of(pid: Pid) -> Option<Pid> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
}
