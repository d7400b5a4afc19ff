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

    /// Whether a test with this program can run. Where all peers are asked for it has to; where not,
    /// and a program of [`Suite::Sid`] is not there, this says that the test is skipped.
    pub fn has(self, program: &str) -> bool {
        let is_there = self != Self::Sid || path("sid", program).is_file();
        is_there || are_all_wanted(&format!("{program} of Debian sid is missing"))
    }

    /// Where `scripts/newer-peers --root` puts its root folder.
    ///
    /// # Panics
    ///
    /// For [`Self::Installed`], which is the machine itself.
    pub fn root(self) -> PathBuf {
        let name = self.name().expect("what is installed has no folder");
        folder().join(format!("{name}-root"))
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Self::Installed => None,
            Self::Trixie => Some("trixie"),
            Self::Sid => Some("sid"),
        }
    }
}

/// Whether all peers are asked for (`LARDER_ALL_PEERS`), the large and the uncertain ones, too. If
/// not, this says that the test is skipped, and why, past the test runner.
pub fn are_all_wanted(why: &str) -> bool {
    let are_wanted = std::env::var_os("LARDER_ALL_PEERS").is_some();
    if !are_wanted {
        let thread = std::thread::current();
        let test = thread.name().unwrap_or_default();
        let line = format!("SKIPPED: {test}: {why}; only with all peers (make test-full)");
        let _ = writeln!(std::io::stderr(), "{line}");
    }
    are_wanted
}

/// Where `scripts/newer-peers` puts a program.
fn path(suite: &str, program: &str) -> PathBuf {
    folder().join(suite).join("usr/bin").join(program)
}

fn folder() -> PathBuf {
    std::env::var_os("LARDER_SUITES").map(PathBuf::from).unwrap_or_else(|| cache().join("suites"))
}

/// Where scripts put what is made once.
pub(crate) fn cache() -> PathBuf {
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache");
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    cache.unwrap_or_else(home).join("larder")
}
