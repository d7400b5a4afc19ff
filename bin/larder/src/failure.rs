//! How a command fails: what is said, and the exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;

use larder_registry::config::Mistake;

/// Why a command failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The configuration is wrong. Exit code 2.
    Configuration(Vec<Mistake>),
    /// The command cannot be meant like this. Exit code 2.
    Usage(anyhow::Error),
    /// It has been said already. The exit code.
    Said(u8),
    /// Something did not work. Exit code 1.
    Failed(anyhow::Error),
}

impl Failure {
    /// stdout could not be written to.
    pub(crate) fn writing(error: io::Error) -> Self {
        Self::Failed(anyhow::Error::new(error).context("writing to stdout"))
    }

    /// Says on stderr what happened.
    pub(crate) fn report(self) -> ExitCode {
        let (text, code) = match self {
            Self::Configuration(mistakes) => {
                (mistakes.iter().map(|mistake| format!("{mistake}\n")).collect(), 2)
            }
            Self::Usage(error) => (format!("error: {error:#}\n"), 2),
            Self::Said(code) => (String::new(), code),
            Self::Failed(error) => (format!("error: {error:#}\n"), 1),
        };
        // There is nobody left to tell that stderr is closed.
        let _ = io::stderr().write_all(text.as_bytes());
        ExitCode::from(code)
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}
