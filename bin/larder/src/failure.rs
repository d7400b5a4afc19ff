//! How a command fails: what is said, and the exit code.

use std::fmt;
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
        // There is nobody left to tell that stderr is closed.
        let _ = io::stderr().write_all(self.to_string().as_bytes());
        ExitCode::from(match self {
            Self::Configuration(_) | Self::Usage(_) => 2,
            Self::Said(code) => code,
            Self::Failed(_) => 1,
        })
    }
}

/// Whole lines, or nothing.
impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration(mistakes) => {
                mistakes.iter().try_for_each(|mistake| writeln!(f, "{mistake}"))
            }
            Self::Usage(error) | Self::Failed(error) => writeln!(f, "error: {error:#}"),
            Self::Said(_) => Ok(()),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}
