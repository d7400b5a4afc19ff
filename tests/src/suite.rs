//! Programs of newer Debian suites, beside those that are installed.
//!
//! `scripts/newer-peers` puts them into a folder; what they need of the machine is what bookworm
//! has.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;

use crate::process::peer;

/// Where a program is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Suite {
    /// It is installed.
    Installed,
    /// Debian 13.
    Trixie,
    /// What Debian is working on. It moves, so tests can do without it (see [`Suite::has`]).
    Sid,
}

impl Suite {
    /// A command for a program of `package`.
    ///
    /// # Panics
    ///
    /// If it is not there, with what to do.
    pub fn command(self, program: &str, package: &str) -> Command {
        let Some(name) = self.name() else {
            return peer(program, package);
        };
        let path = path(name, program);
        assert!(
            path.is_file(),
            "{program} of Debian's {package} ({name}) is missing: there is no {} (make test-deps)",
            path.display()
        );
        let mut command = Command::new(&path);
        // Its own helpers go before the installed ones.
        let folders = std::env::var_os("PATH").unwrap_or_default();
        let folders = path
            .parent()
            .map(PathBuf::from)
            .into_iter()
            .chain(std::env::split_paths(&folders).chain([PathBuf::from("/usr/sbin")]));
        command.env("PATH", std::env::join_paths(folders).unwrap());
        command
    }

    /// Whether a test with this program can run. Where `LARDER_ALL_PEERS` is set it has to; where
    /// not, and a program of [`Suite::Sid`] is not there, this says so, past the test runner.
    pub fn has(self, program: &str) -> bool {
        let is_required = self != Self::Sid || std::env::var_os("LARDER_ALL_PEERS").is_some();
        if is_required || path("sid", program).is_file() {
            return true;
        }
        let test = std::thread::current().name().unwrap_or_default().to_owned();
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED: {test}: {program} of Debian sid is missing; make test-deps says why"
        );
        false
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Self::Installed => None,
            Self::Trixie => Some("trixie"),
            Self::Sid => Some("sid"),
        }
    }
}

/// Where `scripts/newer-peers` puts a program.
fn path(suite: &str, program: &str) -> PathBuf {
    let folder = std::env::var_os("LARDER_SUITES").map(PathBuf::from).unwrap_or_else(|| {
        let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        cache.unwrap_or_else(home).join("larder/suites")
    });
    folder.join(suite).join("usr/bin").join(program)
}
