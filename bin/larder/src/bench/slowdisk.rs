//! Manifests while a blob that does not fit into memory is read from a slow disk.
//!
//! The store is on an ext4 in a loop device. Larder runs in two control groups: one throttles what
//! it may read from that device, the other bounds its memory, page cache included, to a quarter of
//! the blob. This needs root and control groups of version 1.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use super::client::Download;
use super::http;
use super::larder::{Larder, Setup, manifest_path};
use super::load::{Load, Same};
use super::peers::Registry;
use super::proc::anonymous_bytes;
use super::report::{Findings, Target, Unit};
use super::{Bench, MIB, progress};

/// What the disk may be read with, in bytes per second.
const READ_RATE: u64 = 50_000_000;

/// Manifests per second that are asked for meanwhile.
const MANIFEST_RATE: f64 = 1000.0;

/// Over so many connections.
const N_CONNECTIONS: usize = 16;

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "A stored {} MiB blob is read from a disk that gives {} MB/s, by a larder whose memory, \
         page cache included, is bounded to a quarter of the blob; meanwhile a stored manifest is \
         asked for {MANIFEST_RATE} times a second, evenly, over {N_CONNECTIONS} connections.",
        size(bench) / MIB,
        READ_RATE / 1_000_000
    )
}

fn size(bench: &Bench) -> u64 {
    bench.scaled(512, 192) * MIB
}

/// Times the manifests.
///
/// # Errors
///
/// The disk cannot be made slow here (the error says which step failed), a program does not start,
/// or a request fails.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    progress("slowdisk");
    let blob = bench.images().add_random(6, size(bench))?;
    let manifest = bench.images().add_manifest("beside", 2048)?;
    let registry = Registry::start(bench, None)?;
    let disk = Disk::create(bench, blob.size + 256 * MIB)?;
    let setup = Setup::new(registry.address(), disk.mounted.join("data"));
    {
        let larder = Larder::start(bench, &setup)?;
        larder.blob(&blob.digest).verify(&blob.digest)?;
        larder.manifest(manifest.tag).body()?;
        larder.stop();
    }
    disk.forget_cache()?;
    let cage = Cage::create(blob.size / 4, &disk)?;
    let larder = Larder::start(bench, &Setup { wrapper: cage.wrapper(), ..setup })?;
    larder.manifest(manifest.tag).body()?;
    let left = blob.size / 4 - anonymous_bytes(larder.pid())?.min(blob.size / 4);

    let request = http::get(&larder.address().to_string(), &manifest_path(manifest.tag));
    let mut load = Load::connect(larder.address(), N_CONNECTIONS)?;
    let get = larder.blob(&blob.digest);
    // Shorter than the download, so that every manifest is asked for while it goes on.
    let time = Duration::from_secs_f64(0.8 * blob.size as f64 / READ_RATE as f64);
    let (download, answers) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| get.verify(&blob.digest));
        let answers = load.at_rate(&mut Same(&request), MANIFEST_RATE, time);
        let download = reader.join().expect("the reader does not panic");
        anyhow::Ok((download?, answers?))
    })?;
    let mut answers = answers;
    let [median, p99, p999] = answers.latencies.percentiles([50.0, 99.0, 99.9]);

    let mut findings = Findings::default();
    let rate = Download::megabytes_per_second(&download);
    findings.row("the blob", Unit::MegabytesPerSecond, &[rate]);
    findings.row("manifests: 50 % within", Unit::Milliseconds, &[median]);
    findings.row("manifests: 99 % within", Unit::Milliseconds, &[p99]);
    findings.row("manifests: 99.9 % within", Unit::Milliseconds, &[p999]);
    let times = blob.size as f64 / left as f64;
    findings.target("blob ÷ memory left", Unit::Times, times, Target::AtLeast(4.0));
    let read_rate = READ_RATE as f64 / 1e6 * 1.1;
    findings.target("the disk is slow", Unit::MegabytesPerSecond, rate, Target::AtMost(read_rate));
    findings.target("manifests: 99 % within", Unit::Milliseconds, p99, Target::AtMost(10.0));
    findings.note(format!(
        "How it was made slow: ext4 on a loop device with direct I/O, mounted anew before the \
         measurement; `blkio.throttle.read_bps_device` = {READ_RATE} for that device and \
         `memory.limit_in_bytes` = {} MiB, both for larder's control groups (version 1).",
        blob.size / 4 / MIB
    ));
    Ok(findings)
}

/// An ext4 in a file, mounted through a loop device. Dropping it unmounts and detaches.
struct Disk {
    /// `/dev/loop7`
    device: String,
    mounted: PathBuf,
}

impl Disk {
    fn create(bench: &Bench, bytes: u64) -> anyhow::Result<Self> {
        let image = bench.path("slowdisk.img");
        File::create(&image).and_then(|file| file.set_len(bytes)).context("making a disk image")?;
        let image = image.to_string_lossy();
        let no_later_writes = "nodiscard,lazy_itable_init=0,lazy_journal_init=0";
        run("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", no_later_writes, &image])?;
        let device = run("losetup", &["--find", "--show", "--direct-io=on", &image])?;
        // From here on, dropping it detaches the device.
        let disk = Self { device, mounted: bench.path("slowdisk") };
        fs::create_dir_all(&disk.mounted)?;
        disk.mount()?;
        Ok(disk)
    }

    fn mount(&self) -> anyhow::Result<()> {
        run("mount", &[&self.device, &self.mounted.to_string_lossy()]).map(drop)
    }

    fn unmount(&self) -> anyhow::Result<()> {
        run("umount", &[&*self.mounted.to_string_lossy()]).map(drop)
    }

    /// Drops what memory holds of the disk.
    fn forget_cache(&self) -> anyhow::Result<()> {
        self.unmount()?;
        self.mount()
    }

    /// `MAJOR:MINOR`
    fn number(&self) -> anyhow::Result<String> {
        let name = self.device.trim_start_matches("/dev/");
        let path = format!("/sys/block/{name}/dev");
        let number = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        Ok(number.trim().to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for result in [self.unmount(), run("losetup", &["--detach", &self.device]).map(drop)] {
            if let Err(error) = result {
                progress(&format!("slowdisk: {error:#}"));
            }
        }
    }
}

/// Control groups for one process. Dropping them removes them; nothing may run in them then.
struct Cage {
    memory: PathBuf,
    blkio: PathBuf,
}

impl Cage {
    fn create(memory: u64, disk: &Disk) -> anyhow::Result<Self> {
        let cage = Self { memory: new_group("memory")?, blkio: new_group("blkio")? };
        let set = |path: PathBuf, value: String| {
            fs::write(&path, &value).with_context(|| format!("writing {value:?} to {path:?}"))
        };
        set(cage.memory.join("memory.limit_in_bytes"), memory.to_string())?;
        let limit = format!("{} {READ_RATE}", disk.number()?);
        set(cage.blkio.join("blkio.throttle.read_bps_device"), limit)?;
        Ok(cage)
    }

    /// What to run a program with so that it enters.
    fn wrapper(&self) -> Vec<String> {
        let enter = "echo $$ > \"$1/cgroup.procs\" && echo $$ > \"$2/cgroup.procs\" && shift 2 && \
                     exec \"$@\"";
        let group = |path: &Path| path.to_string_lossy().into_owned();
        let words = ["sh", "-c", enter, "sh"].map(str::to_owned);
        words.into_iter().chain([group(&self.memory), group(&self.blkio)]).collect()
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        for group in [&self.memory, &self.blkio] {
            if let Err(error) = fs::remove_dir(group) {
                progress(&format!("slowdisk: removing {}: {error}", group.display()));
            }
        }
    }
}

/// A new control group of `controller`, below the one that the bench is in.
fn new_group(controller: &str) -> anyhow::Result<PathBuf> {
    let own = fs::read_to_string("/proc/self/cgroup").context("reading /proc/self/cgroup")?;
    let own = group_of(&own, controller)
        .with_context(|| format!("there is no control group (version 1) of {controller}"))?;
    let root = Path::new("/sys/fs/cgroup").join(controller);
    let group = root.join(own.trim_start_matches('/'));
    // In a container the path may be one of the host's.
    let parent = if group.is_dir() { group } else { root };
    let group = parent.join(format!("larder-bench-{}", std::process::id()));
    fs::create_dir(&group).with_context(|| format!("creating {}", group.display()))?;
    Ok(group)
}

/// The path of `controller`'s group in `/proc/self/cgroup`, whose lines are `N:CONTROLLERS:PATH`.
fn group_of<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let mut controllers = fields.next()?.split(',');
        controllers.any(|it| it == controller).then(|| fields.next())?
    })
}

/// Runs a program to its end. What it printed.
fn run(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let Some(file) = super::program::find(program) else {
        bail!("{program} is not installed");
    };
    let output = Command::new(file).args(arguments).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", arguments.join(" "), errors.trim());
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_controller_is_found_also_beside_others() {
        let text = "4:memory:/a/b\n1:cpu,cpuacct:/c\n0::/d\n";
        assert_eq!(group_of(text, "memory"), Some("/a/b"));
        assert_eq!(group_of(text, "cpuacct"), Some("/c"));
        assert_eq!(group_of(text, "blkio"), None);
    }

    #[test]
    fn a_program_that_fails_is_reported_with_its_words() {
        let error = run("sh", &["-c", "echo no >&2; exit 1"]).unwrap_err().to_string();
        assert_eq!(error, "sh -c echo no >&2; exit 1: no");
    }
}
