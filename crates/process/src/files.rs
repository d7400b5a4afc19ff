//! How many files and sockets the process may have open.

use std::io;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit of open files to what the system allows this process, and returns it.
///
/// Most systems start programs with 1,024, for the sake of those that use `select`; a connection
/// and a file for each of a few hundred clients is more than that.
///
/// # Errors
///
/// What the operating system says; the limit is then what it was, and connections beyond it wait.
pub fn raise_limit() -> io::Result<u64> {
    let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum })?;
    Ok(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_becomes_what_the_system_allows() {
        let Rlimit { maximum, .. } = getrlimit(Resource::Nofile);
        let lower = Rlimit { current: Some(64), maximum };
        setrlimit(Resource::Nofile, lower).unwrap();
        assert_eq!(raise_limit().unwrap(), maximum.unwrap_or(u64::MAX));
        assert_eq!(getrlimit(Resource::Nofile).current, maximum);
    }
}
