//! What the kernel says about a process: CPU time and anonymous memory.
//!
//! Source: proc(5), `/proc/PID/stat` and `/proc/PID/status`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;

/// How often memory is read: short enough to see a body's buffers come and go.
const SAMPLE_EVERY: Duration = Duration::from_millis(5);

/// The CPU time, user and system, that process `pid` and its finished threads have used, in
/// seconds. The kernel counts in ticks of 10 ms.
///
/// # Errors
///
/// The process is gone.
pub(crate) fn cpu_seconds(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let ticks = parse_ticks(&stat).with_context(|| format!("{path} has an unknown form"))?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// The anonymous memory that process `pid` holds now, in bytes.
///
/// # Errors
///
/// The process is gone.
pub(crate) fn anonymous_bytes(pid: u32) -> anyhow::Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let kib = parse_kib(&status, "RssAnon").with_context(|| format!("{path} has no RssAnon"))?;
    Ok(kib * 1024)
}

/// The one process that the first thread of process `pid` has started and not waited for.
///
/// # Errors
///
/// The process is gone, or has none or several.
pub(crate) fn child_of(pid: u32) -> anyhow::Result<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let children = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    parse_child(&children).with_context(|| format!("{path} has not one child"))
}

/// What the machine's processors had done at one moment, to tell how much of it was not ours.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Work {
    at: Instant,
    /// CPU time of all processes, in ticks.
    all: u64,
    /// CPU time of this process and of those it has waited for, in ticks.
    ours: u64,
}

impl Work {
    /// What was done until now.
    pub(crate) fn now() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let all = parse_busy(&read("/proc/stat")).unwrap_or(0);
        let ours = parse_own(&read("/proc/self/stat")).unwrap_or(0);
        Self { at: Instant::now(), all, ours }
    }

    /// How many cores other programs kept busy since then. Programs of the bench that still run
    /// count as others.
    pub(crate) fn other_cores_since(self) -> f64 {
        let now = Self::now();
        let others = (now.all - self.all).saturating_sub(now.ours - self.ours);
        let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
        others as f64 / ticks_per_second / (now.at - self.at).as_secs_f64()
    }
}

/// Reads the anonymous memory of a process again and again, and remembers the most.
#[derive(Debug)]
pub(crate) struct PeakMemory {
    shared: Arc<Shared>,
    sampler: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    peak: AtomicU64,
    done: AtomicBool,
}

impl PeakMemory {
    /// Begins to watch process `pid`.
    pub(crate) fn watch(pid: u32) -> Self {
        let shared = Arc::new(Shared::default());
        let sampler = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || sample(pid, &shared))
        };
        Self { shared, sampler: Some(sampler) }
    }

    /// Stops watching. The most anonymous memory seen, in MiB.
    pub(crate) fn mebibytes(mut self) -> f64 {
        self.end();
        self.shared.peak.load(Ordering::Relaxed) as f64 / f64::from(1 << 20)
    }

    fn end(&mut self) {
        self.shared.done.store(true, Ordering::Relaxed);
        if let Some(sampler) = self.sampler.take() {
            let _ = sampler.join();
        }
    }
}

impl Drop for PeakMemory {
    fn drop(&mut self) {
        self.end();
    }
}

fn sample(pid: u32, shared: &Shared) {
    while let Ok(bytes) = anonymous_bytes(pid) {
        shared.peak.fetch_max(bytes, Ordering::Relaxed);
        if shared.done.load(Ordering::Relaxed) {
            return;
        }
        std::thread::sleep(SAMPLE_EVERY);
    }
}

fn parse_child(children: &str) -> Result<u32, std::num::ParseIntError> {
    children.trim_end().parse()
}

/// `utime + stime` of a `stat` line: fields 14 and 15. The second field is the program's name in
/// parentheses and may hold anything, so counting starts behind the last parenthesis.
fn parse_ticks(stat: &str) -> Option<u64> {
    sum_of_times(stat, 2)
}

/// `utime + stime + cutime + cstime` of a `stat` line: the process and its children that ended.
fn parse_own(stat: &str) -> Option<u64> {
    sum_of_times(stat, 4)
}

fn sum_of_times(stat: &str, n_fields: usize) -> Option<u64> {
    let (_, behind_name) = stat.rsplit_once(')')?;
    let times = behind_name.split_ascii_whitespace().skip(11).take(n_fields);
    let times: Vec<u64> = times.map(|field| field.parse().ok()).collect::<Option<_>>()?;
    (times.len() == n_fields).then(|| times.iter().sum())
}

/// `user + nice + system` of `/proc/stat`'s first line. What is done in interrupts belongs to no
/// process and is left out.
fn parse_busy(stat: &str) -> Option<u64> {
    let times = stat.lines().next()?.strip_prefix("cpu ")?.split_ascii_whitespace().take(3);
    times.map(|field| field.parse::<u64>().ok()).sum()
}

/// The value of the line `key: N kB`.
fn parse_kib(status: &str, key: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_program_does_not_shift_the_fields() {
        let stat = "4711 (a) b (c) S 1 4711 4711 0 -1 4194560 100 0 0 0 12 30 7 8 20 0 3 0 99";
        assert_eq!(parse_ticks(stat), Some(42));
        assert_eq!(parse_own(stat), Some(57));
        assert_eq!(parse_ticks("4711 (x) S 1"), None);
    }

    #[test]
    fn idle_waiting_and_interrupt_time_is_not_work() {
        assert_eq!(parse_busy("cpu  10 20 30 4000 500 60 70\ncpu0 1 2 3\n"), Some(60));
        assert_eq!(parse_busy("intr 1 2 3\n"), None);
    }

    #[test]
    fn memory_is_read_from_its_own_line() {
        let status = "VmRSS:\t  900 kB\nRssAnon:\t     512 kB\nRssFile:\t 388 kB\n";
        assert_eq!(parse_kib(status, "RssAnon"), Some(512));
        assert_eq!(parse_kib(status, "RssShmem"), None);
    }

    #[test]
    fn a_child_is_one_number() {
        assert_eq!(parse_child("4711 ").unwrap(), 4711);
        assert!(parse_child("").is_err() && parse_child("1 2 ").is_err());
    }

    #[test]
    fn this_process_uses_memory() {
        let held = vec![1u8; 32 << 20];
        let peak = PeakMemory::watch(std::process::id()).mebibytes();
        assert!(peak >= 32.0, "{peak}");
        assert!(cpu_seconds(std::process::id()).unwrap() >= 0.0);
        drop(std::hint::black_box(held));
    }
}
