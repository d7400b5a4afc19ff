//! What is wrong with a configuration, and what to do about it.

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
    /// What to do instead: `write …`, or `remove it`.
    pub advice: Option<String>,
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
        match &self.advice {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

/// What is wrong with one value, wherever it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wrong {
    what: String,
    advice: Option<String>,
}

/// What is wrong.
pub(super) fn wrong(what: impl Into<String>) -> Wrong {
    Wrong { what: what.into(), advice: None }
}

impl Wrong {
    /// What to write instead.
    pub(super) fn write(self, instead: impl fmt::Display) -> Self {
        self.advise(format!("write {instead}"))
    }

    /// It is a part of the value that is wrong, and which.
    pub(super) fn within(self, part: &str) -> Self {
        Self { what: format!("{part}: {}", self.what), ..self }
    }

    /// What to do instead.
    pub(super) fn advise(self, advice: impl Into<String>) -> Self {
        Self { advice: Some(advice.into()), ..self }
    }
}

/// Where a value stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct At {
    /// The line, flag or variable.
    pub(super) place: Place,
    /// The key's path; none for flags and variables.
    pub(super) key: Option<String>,
}

/// A value and where it stands, for what can be wrong with it beside other values.
#[derive(Clone, Debug)]
pub(super) struct Located<T> {
    pub(super) at: At,
    pub(super) value: T,
}

/// The mistakes found so far.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<Mistake>);

impl Mistakes {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Notes what is wrong with the value at `at`.
    pub(super) fn note(&mut self, at: &At, wrong: Wrong) {
        let At { place, key } = at.clone();
        let Wrong { what, advice } = wrong;
        self.0.push(Mistake { place, key, what, advice });
    }

    /// The value, if it is one; otherwise a note of what is wrong with it.
    pub(super) fn keep<T>(&mut self, at: At, value: Result<T, Wrong>) -> Option<Located<T>> {
        match value {
            Ok(value) => Some(Located { at, value }),
            Err(wrong) => {
                self.note(&at, wrong);
                None
            }
        }
    }

    /// All mistakes, those in the file first and by line.
    pub(super) fn sorted(mut self) -> Vec<Mistake> {
        self.0.sort_by(|one, other| one.place.cmp(&other.place));
        self.0
    }
}
