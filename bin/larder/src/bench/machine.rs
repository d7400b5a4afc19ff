//! What the bench runs on.

use std::fmt;
use std::fs;
use std::process::Command;
use std::time::SystemTime;

use serde::Serialize;

use super::program;

/// The machine and the programs, as far as figures depend on them.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Machine {
    /// When, in seconds since 1970.
    pub(crate) unix_time: u64,
    /// The processor's name.
    pub(crate) processor: String,
    /// How many of its cores there are.
    pub(crate) cores: usize,
    /// Memory in GiB.
    pub(crate) memory_gib: u64,
    /// The kernel's release.
    pub(crate) kernel: String,
    /// The TCP congestion control, which also decides how fast loopback is.
    pub(crate) congestion_control: String,
    /// Running and waiting processes, averaged over the minute before the bench began.
    pub(crate) load: String,
    /// Version of larder.
    pub(crate) larder: &'static str,
    /// Version of docker-registry; empty if it is not there.
    pub(crate) docker_registry: String,
    /// Version of nginx; empty if it is not there.
    pub(crate) nginx: String,
}

impl Machine {
    /// Looks around.
    pub(crate) fn this() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let kib = value_of(&read("/proc/meminfo"), "MemTotal").unwrap_or_default();
        let kib: u64 = kib.trim_end_matches(" kB").parse().unwrap_or(0);
        Self {
            unix_time: seconds_since_1970(),
            processor: value_of(&read("/proc/cpuinfo"), "model name").unwrap_or_default(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory_gib: (kib + (1 << 19)) >> 20,
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            congestion_control: congestion_control(),
            load: read("/proc/loadavg").split(' ').next().unwrap_or_default().to_owned(),
            larder: env!("CARGO_PKG_VERSION"),
            docker_registry: version("docker-registry", "--version"),
            nginx: version("nginx", "-v"),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { processor, cores, memory_gib, kernel, load, congestion_control, .. } = self;
        let (year, month, day) = date(self.unix_time);
        write!(f, "{year}-{month:02}-{day:02}, {cores} cores of {processor}, {memory_gib} GiB, ")?;
        write!(f, "Linux {kernel}, TCP {congestion_control}, load {load} before; ")?;
        write!(f, "larder {}, ", self.larder)?;
        write!(f, "docker-registry {}, nginx {}", self.docker_registry, self.nginx)
    }
}

/// The kernel's TCP congestion control for new connections: `cubic`, `bbr`.
pub(crate) fn congestion_control() -> String {
    let setting = fs::read_to_string("/proc/sys/net/ipv4/tcp_congestion_control");
    setting.unwrap_or_default().trim().to_owned()
}

fn seconds_since_1970() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The value of the first line `key : value`.
fn value_of(text: &str, key: &str) -> Option<String> {
    let mut values = text.lines().filter_map(|line| line.split_once(':'));
    values.find(|(name, _)| name.trim() == key).map(|(_, value)| value.trim().to_owned())
}

/// What `program` says its version is: the last word that begins with a digit, or follows a slash.
fn version(program: &str, flag: &str) -> String {
    let Some(file) = program::find(program) else { return String::new() };
    let Ok(output) = Command::new(file).arg(flag).output() else { return String::new() };
    let said = [output.stdout, output.stderr].concat();
    version_in(&String::from_utf8_lossy(&said))
}

fn version_in(text: &str) -> String {
    let words = text.split(|c: char| c.is_whitespace() || c == '/');
    let mut numbers = words.filter(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    numbers.next_back().unwrap_or_default().to_owned()
}

/// Year, month and day of a time, in UTC.
///
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn date(unix_time: u64) -> (u64, u64, u64) {
    let days = unix_time / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let registry = "docker-registry github.com/docker/distribution 2.8.2+ds1\n";
        assert_eq!(version_in(registry), "2.8.2+ds1");
        assert_eq!(version_in("nginx version: nginx/1.22.1\n"), "1.22.1");
        assert_eq!(version_in("none"), "");
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        assert_eq!(date(0), (1970, 1, 1));
        assert_eq!(date(951_782_400), (2000, 2, 29));
        assert_eq!(date(1_735_689_599), (2024, 12, 31));
        assert_eq!(date(1_772_323_200), (2026, 3, 1));
    }

    #[test]
    fn a_value_is_found_by_its_whole_key() {
        let text = "model\t\t: 167\nmodel name\t: Xeon: fast\n";
        assert_eq!(value_of(text, "model name").as_deref(), Some("Xeon: fast"));
        assert_eq!(value_of(text, "name"), None);
    }
}
