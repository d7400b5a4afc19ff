//! The process's own figures, read from `/proc` when somebody asks.
//!
//! Source: proc(5): `/proc/pid/stat`, `/proc/pid/status`, `/proc/stat`.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let mut show = |name, help, value: Option<&dyn EncodeMetric>| match value {
            Some(value) => {
                value.encode(encoder.encode_descriptor(name, help, None, value.metric_type())?)
            }
            None => Ok(()),
        };
        let times = Times::read();
        let memory = resident_bytes().map(ConstGauge::new);
        let files = open_files().map(ConstGauge::new);
        let start = times.map(|times| ConstGauge::new(times.start_seconds));
        let cpu = times.map(|times| ConstCounter::new(times.cpu_seconds));
        show(
            "process_resident_memory_bytes",
            "Resident memory",
            memory.as_ref().map(|it| it as _),
        )?;
        show("process_open_fds", "Open file descriptors", files.as_ref().map(|it| it as _))?;
        show("process_start_time_seconds", "Start, Unix time", start.as_ref().map(|it| it as _))?;
        show("process_cpu_seconds", "User and system time", cpu.as_ref().map(|it| it as _))
    }
}

fn resident_bytes() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// Not counting the one that this takes itself.
fn open_files() -> Option<i64> {
    let count = fs::read_dir("/proc/self/fd").ok()?.count();
    i64::try_from(count.saturating_sub(1)).ok()
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Times {
    /// Unix time of the start.
    start_seconds: f64,
    /// User and system time so far.
    cpu_seconds: f64,
}

impl Times {
    fn read() -> Option<Self> {
        let process = fs::read_to_string("/proc/self/stat").ok()?;
        let system = fs::read_to_string("/proc/stat").ok()?;
        Self::parse(&process, &system, rustix::param::clock_ticks_per_second())
    }

    fn parse(process: &str, system: &str, ticks_per_second: u64) -> Option<Self> {
        // The second field, the command, may have spaces and brackets in it.
        let (_, rest) = process.rsplit_once(')')?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        // Fields are counted from 1 in proc(5), and `rest` begins with the third.
        let seconds = |field: usize| -> Option<f64> {
            let ticks: u64 = fields.get(field - 3)?.parse().ok()?;
            Some(ticks as f64 / ticks_per_second as f64)
        };
        let boot: u64 =
            system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(Self {
            start_seconds: boot as f64 + seconds(22)?,
            cpu_seconds: seconds(14)? + seconds(15)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_with_brackets_does_not_shift_the_fields() {
        let process = "7 (a) b) S 1 7 7 0 -1 4194560 0 0 0 0 150 50 0 0 20 0 1 0 1000 0 0";
        let times = Times::parse(process, "cpu 1 2\nbtime 500\n", 100);
        assert_eq!(times, Some(Times { start_seconds: 510.0, cpu_seconds: 2.0 }));
    }

    #[test]
    fn a_file_of_another_shape_gives_no_figures() {
        assert_eq!(Times::parse("7 (a) S 1", "btime 500", 100), None);
        assert_eq!(Times::parse("", "", 100), None);
    }
}
