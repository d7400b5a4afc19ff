//! How much memory and how many files a process uses.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::process::Pid;

/// How often is looked: a buffer that is filled from the network lives longer.
const PERIOD: Duration = Duration::from_millis(5);

/// Looks at a process's anonymous memory until told to stop.
#[derive(Debug)]
pub struct PeakMemory {
    is_enough: Arc<AtomicBool>,
    looking: JoinHandle<u64>,
}

impl PeakMemory {
    /// Begins to look.
    pub fn watch(pid: Pid) -> Self {
        let is_enough = Arc::new(AtomicBool::new(false));
        let looking = thread::spawn({
            let is_enough = is_enough.clone();
            move || {
                let mut peak = 0;
                while !is_enough.load(Ordering::Relaxed) {
                    peak = peak.max(anonymous_bytes(pid).unwrap_or(0));
                    thread::park_timeout(PERIOD);
                }
                peak
            }
        });
        Self { is_enough, looking }
    }

    /// The most that was seen, in bytes.
    ///
    /// # Panics
    ///
    /// If the process was never seen.
    pub fn finish(self) -> u64 {
        self.is_enough.store(true, Ordering::Relaxed);
        self.looking.thread().unpark();
        let peak = self.looking.join().unwrap();
        assert!(peak > 0, "the process was gone all the time");
        peak
    }
}

/// Memory of a process that no file backs, in bytes; `None` if there is no such process.
pub fn anonymous_bytes(pid: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// Memory that a process takes of the machine, in bytes: what it shares with others counts for each in
/// equal parts. `None` if there is no such process.
pub fn proportional_bytes(pid: Pid) -> Option<u64> {
    let path = format!("/proc/{}/smaps_rollup", pid.as_raw_nonzero());
    let rollup = fs::read_to_string(path).ok()?;
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kilobytes << 10)
}

/// How many files and sockets a process has open; `None` if there is no such process.
pub fn open_files(pid: Pid) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).ok()?.count())
}
