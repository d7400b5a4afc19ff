//! What registries, repositories and tags are called.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;

/// A registry's host as people write it in image references: `docker.io`, `ghcr.io`,
/// `registry.local:5000`, `[::1]:5000`.
///
/// Lower case, without scheme or path; Docker Hub's several names are all `docker.io`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Host(String);

/// Docker Hub's name in image references.
pub const DOCKER_HUB: &str = "docker.io";

/// Hosts that are Docker Hub under another name.
const DOCKER_HUB_ALIASES: [&str; 3] =
    ["index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"];

/// Why a text is not a registry's host.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a registry host; write HOST or HOST:PORT, without scheme or path")]
pub struct ParseHostError(pub(crate) String);

impl Host {
    /// The host as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this is Docker Hub, where `alpine` means `library/alpine`.
    pub fn is_docker_hub(&self) -> bool {
        self.0 == DOCKER_HUB
    }

    /// Whether a path component can only be a host: it has a dot or a port, or is `localhost`.
    ///
    /// Repository names may contain dots, but Docker's reference grammar reads such a first
    /// component as a host, so nobody can mean anything else.
    pub fn looks_like(component: &str) -> bool {
        component.contains(['.', ':']) || component == "localhost"
    }
}

impl FromStr for Host {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        if !is_host(&lower) {
            return Err(ParseHostError(text.to_owned()));
        }
        if DOCKER_HUB_ALIASES.contains(&lower.as_str()) {
            return Ok(Self(DOCKER_HUB.to_owned()));
        }
        Ok(Self(lower))
    }
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (address, None),
            Some((address, port)) => match port.strip_prefix(':') {
                Some(port) => (address, Some(port)),
                None => return false,
            },
            None => return false,
        },
        None => match text.split_once(':') {
            Some((name, port)) => (name, Some(port)),
            None => (text, None),
        },
    };
    let bracketed = text.starts_with('[');
    let name_is_good = if bracketed {
        name.parse::<std::net::Ipv6Addr>().is_ok()
    } else {
        !name.is_empty()
            && name.len() <= 253
            && name.split('.').all(|label| {
                !label.is_empty()
                    && label.len() <= 63
                    && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                    && !label.starts_with('-')
                    && !label.ends_with('-')
            })
            && (!ends_in_number(name) || name.parse::<std::net::Ipv4Addr>().is_ok())
    };
    name_is_good && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// Whether a URL would take this for an IPv4 address, however it is written: `127.1` is 127.0.0.1
/// there, `010.0.0.1` is 8.0.0.1, and `a.0` is nothing at all.
///
/// Source: WHATWG URL, "ends in a number checker".
fn ends_in_number(name: &str) -> bool {
    let last = name.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x").or(last.strip_prefix("0X"));
    last.bytes().all(|byte| byte.is_ascii_digit())
        || hex.is_some_and(|hex| hex.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

/// A repository within one registry: `library/alpine`, `atlas/athena/base`.
///
/// One or more components joined by `/`, 255 bytes at most.
///
/// Source: OCI distribution-spec 1.1, "Pulling manifests", `<name>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository(String);

/// Why a text is not a repository's name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a repository name: lower-case letters, digits and single separators, 255 bytes at most"
)]
pub struct ParseRepositoryError(String);

/// The longest repository name, in bytes. Clients limit host and name together to 255.
const MAX_REPOSITORY: usize = 255;

impl Repository {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name as `host` knows it: Docker Hub's `alpine` is `library/alpine`. One that would then be
    /// too long for a name stays as it is, and nobody has it.
    #[must_use]
    pub fn at(self, host: &Host) -> Self {
        let has_room = self.0.len() + "library/".len() <= MAX_REPOSITORY;
        if host.is_docker_hub() && !self.0.contains('/') && has_room {
            return Self(format!("library/{}", self.0));
        }
        self
    }
}

impl FromStr for Repository {
    type Err = ParseRepositoryError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() <= MAX_REPOSITORY && text.split('/').all(is_path_component) {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseRepositoryError(text.chars().take(MAX_REPOSITORY).collect()))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_word(first)
        && is_word(last)
        && bytes.split(is_word).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|b| *b == b'-')
        })
}

/// A repository of a registry, as people write it: `docker.io/library/alpine`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Named {
    /// The registry.
    pub host: Host,
    /// The repository as the registry knows it.
    pub repository: Repository,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)
    }
}

impl fmt::Debug for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A tag: 1 to 128 of letters, digits, `.`, `_` and `-`, not beginning with `.` or `-`.
///
/// Source: OCI distribution-spec 1.1, "Pulling manifests", `<reference>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

/// Why a text is not a tag.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a tag is 1 to 128 letters, digits, dots, underscores and dashes")]
pub struct ParseTagError;

impl Tag {
    /// The tag as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Tag {
    type Err = ParseTagError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        let starts_well = text.bytes().next().is_some_and(is_word);
        let goes_on_well = text.bytes().all(|byte| is_word(byte) || byte == b'.' || byte == b'-');
        if starts_well && goes_on_well && text.len() <= 128 {
            return Ok(Self(text.to_owned()));
        }
        Err(ParseTagError)
    }
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// By a name that may come to mean something else.
    Tag(Tag),
    /// By what it is.
    Digest(Digest),
}

/// Why a text is neither a tag nor a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseReferenceError {
    /// It has a `:` and so can only be a digest, but is not one.
    #[error(transparent)]
    Digest(#[from] crate::digest::ParseDigestError),
    /// It has no `:` and so can only be a tag, but is not one.
    #[error(transparent)]
    Tag(#[from] ParseTagError),
}

impl FromStr for Reference {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains(':') {
            return Ok(Self::Digest(text.parse()?));
        }
        Ok(Self::Tag(text.parse()?))
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

macro_rules! text_like {
    ($($name:ident)*) => {$(
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    )*};
}

text_like!(Host Repository Tag);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn docker_hub_has_one_name() {
        for alias in ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"] {
            assert_eq!(alias.parse::<Host>().unwrap().as_str(), "docker.io");
        }
    }

    #[test]
    fn hosts_have_names_addresses_and_ports() {
        for host in [
            "ghcr.io",
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "[::1]:5000",
            "[::1]",
            "my_host:80",
        ] {
            assert_eq!(host.parse::<Host>().unwrap().as_str(), host);
        }
        for text in [
            "",
            "https://ghcr.io",
            "ghcr.io/x",
            "a..b",
            "-a",
            "x:0",
            "x:99999",
            "x:",
            "[::1",
            "[x]:1",
            "::1",
            "[::1]5",
            "127.1",
            "010.0.0.1",
            "1.2.3.256",
            "a.0:5000",
            "a.0x1f",
        ] {
            assert!(text.parse::<Host>().is_err(), "{text}");
        }
    }

    #[test]
    fn repositories_have_any_depth_but_a_strict_alphabet() {
        for name in ["alpine", "library/alpine", "a/b/c/d/e", "a-b", "a--b", "a__b", "a.b_c-d/0"] {
            assert_eq!(name.parse::<Repository>().unwrap().as_str(), name);
        }
        let long = "a".repeat(256);
        for text in [
            "", "/", "a/", "/a", "a//b", "A", "a_", "-a", "a..b", "a___b", "a._b", "a:b", "..",
            "a/../b", &long,
        ] {
            assert!(text.parse::<Repository>().is_err(), "{text}");
        }
    }

    #[test]
    fn official_images_are_in_library_on_docker_hub_only() {
        let at =
            |name: &str, host: &str| name.parse::<Repository>().unwrap().at(&host.parse().unwrap());
        assert_eq!(at("alpine", "docker.io").as_str(), "library/alpine");
        assert_eq!(at("grafana/grafana", "docker.io").as_str(), "grafana/grafana");
        assert_eq!(at("pause", "registry.k8s.io").as_str(), "pause");
        let longest = at(&"a".repeat(255), "docker.io");
        assert_eq!(longest.as_str().parse(), Ok(longest));
    }

    #[test]
    fn a_reference_with_a_colon_can_only_be_a_digest() {
        assert!(matches!("v1.2-rc_3".parse(), Ok(Reference::Tag(_))));
        assert!(matches!("sha256:12".parse::<Reference>(), Err(ParseReferenceError::Digest(_))));
        for text in ["", ".a", "-a", "a b", "ü", &"a".repeat(129)] {
            assert!(
                matches!(text.parse::<Reference>(), Err(ParseReferenceError::Tag(_))),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_a_parser_panic(text in "\\PC{0,300}") {
            let _ = (text.parse::<Host>(), text.parse::<Repository>(), text.parse::<Reference>());
        }
    }
}
