//! Flags and variables, which override the file.

use std::path::{Path, PathBuf};

/// A value from the command line or the environment, not yet parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    /// The flag (`--listen`) or variable (`LARDER_LISTEN`) it came from.
    pub origin: String,
    /// The text.
    pub text: String,
}

/// What flags and variables say. Each one replaces the file's key of the same name; an upstream
/// replaces the `urls` of an upstream that is known, or adds one.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Like `listen`, one address each. Empty: the file's.
    pub listen: Vec<Given>,
    /// Like `data`.
    pub data: Option<Given>,
    /// `HOST=URL`, each for one upstream.
    pub upstreams: Vec<Given>,
    /// Like `admin`.
    pub admin: Option<Given>,
    /// Like `tls_cert`.
    pub tls_cert: Option<Given>,
    /// Like `tls_key`.
    pub tls_key: Option<Given>,
    /// Like `budget`.
    pub budget: Option<Given>,
    /// Like `offline`: `true` or `false`.
    pub offline: Option<Given>,
    /// Like `default_upstream`.
    pub default_upstream: Option<Given>,
    /// Like `advertise`.
    pub advertise: Option<Given>,
}

/// Where the store is unless someone says: `$XDG_DATA_HOME/larder`, `~/.local/share/larder`, or
/// `/var/lib/larder` for who has no home. A relative `XDG_DATA_HOME` does not count.
///
/// Source: XDG Base Directory Specification, "Environment variables".
pub fn default_data(variable: impl Fn(&str) -> Option<String>) -> PathBuf {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    match (absolute("XDG_DATA_HOME"), absolute("HOME")) {
        (Some(data), _) => data.join("larder"),
        (None, Some(home)) if home != Path::new("/") => home.join(".local/share/larder"),
        _ => PathBuf::from("/var/lib/larder"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_store_is_in_the_users_data_unless_there_is_no_user() {
        let data = |xdg: Option<&str>, home: Option<&str>| {
            let variable = |name: &str| match name {
                "XDG_DATA_HOME" => xdg.map(str::to_owned),
                _ => home.map(str::to_owned),
            };
            default_data(variable).display().to_string()
        };
        assert_eq!(data(Some("/x"), Some("/home/u")), "/x/larder");
        assert_eq!(data(Some("relative"), Some("/home/u")), "/home/u/.local/share/larder");
        assert_eq!(data(None, Some("/")), "/var/lib/larder");
        assert_eq!(data(None, None), "/var/lib/larder");
        assert_eq!(data(Some(""), Some("")), "/var/lib/larder");
    }
}
