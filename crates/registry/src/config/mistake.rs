//! What is wrong with a configuration, and what to write instead.

use std::fmt;

/// One mistake. As text, one line:
/// `larder.toml:12: upstreams."ghcr.io".freshness: …; write …`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where it was made.
    pub place: Place,
    /// The key's path within the file, as TOML writes it.
    pub key: Option<String>,
    /// What is wrong. Never shows a secret.
    pub what: String,
    /// What to write instead.
    pub write: Option<String>,
}

/// Where something was configured.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// In the file, on a line counted from 1.
    File {
        /// The file's name as it was given.
        name: String,
        /// The line.
        line: usize,
    },
    /// By a flag (`--listen`) or a variable (`LARDER_LISTEN`).
    Given(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Given(origin) => f.write_str(origin),
        }
    }
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.what)?;
        match &self.write {
            Some(write) => write!(f, "; write {write}"),
            None => Ok(()),
        }
    }
}
