//! How long content may go unused, how much of it there may be of one upstream, and what must stay.
//!
//! Rules count from the last *use*, and are looked up when something may have to go, never written
//! down beside content: changing them changes what happens to all that is stored already.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use globset::{Glob, GlobMatcher};

use crate::address::HostPattern;
use crate::name::Named;
use crate::{Digest, Host, Tag};

/// How long content may go unused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Ttl {
    /// This long since it was used last. Never zero.
    After(Duration),
    /// It never goes for its age. The longest of all.
    Never,
}

/// What is kept, and for how long.
#[derive(Clone, Debug)]
pub struct Retention {
    /// For what no entry says otherwise. Default: never.
    pub ttl: Ttl,
    /// How long a manifest may go unused that no tag names any more. Default 30 days.
    pub superseded: Ttl,
    /// The upstreams with rules of their own; the first that matches counts.
    pub upstreams: Vec<OfUpstream>,
    /// Images that never go.
    pub pins: Vec<ImagePattern>,
}

/// What is kept of one upstream.
#[derive(Clone, Debug)]
pub struct OfUpstream {
    /// Its hosts.
    pub hosts: HostPattern,
    /// `None`: as [`Retention::ttl`] says.
    pub ttl: Option<Ttl>,
    /// Repositories for which another time counts; the first that matches.
    pub repositories: Vec<(RepositoryPattern, Ttl)>,
    /// The most bytes of disk for what was fetched from these hosts, together.
    pub quota: Option<u64>,
}

/// Repositories of one upstream: a name with `*` for any part of it.
#[derive(Clone, Debug)]
pub struct RepositoryPattern(GlobMatcher);

impl PartialEq for RepositoryPattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.glob() == other.0.glob()
    }
}

/// Images: `HOST/NAME`, `HOST/NAME:TAG` or `HOST/NAME@DIGEST`, with `*` for any part of a name and of
/// a tag. Without tag and digest: all of the repository.
#[derive(Clone)]
pub struct ImagePattern {
    text: String,
    repository: GlobMatcher,
    version: Version,
}

/// By what was written.
impl PartialEq for ImagePattern {
    fn eq(&self, other: &Self) -> bool {
        self.text == other.text
    }
}

#[derive(Clone)]
enum Version {
    Any,
    Tag(GlobMatcher),
    Digest(Digest),
}

/// Why a text is not a pattern of images.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseImagePatternError {
    /// There is no registry's host in front.
    #[error("`{0}` does not begin with a registry's host, as docker.io/library/alpine:3.* does")]
    NoHost(String),
    /// The digest is none.
    #[error("`{0}` does not end with a digest, as in @sha256:…")]
    Digest(String),
    /// The pattern cannot be read.
    #[error("`{text}` is not a pattern of images: {reason}")]
    Pattern {
        /// What was written.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            ttl: Ttl::Never,
            superseded: Ttl::After(Duration::from_secs(30 * 24 * 60 * 60)),
            upstreams: Vec::new(),
            pins: Vec::new(),
        }
    }
}

impl Retention {
    /// How long content may go unused that is in these repositories: as long as the one that keeps
    /// it longest says. Content of no repository has the general time.
    pub fn ttl<'n>(&self, repositories: impl IntoIterator<Item = &'n Named>) -> Ttl {
        let ttls = repositories.into_iter().map(|named| self.ttl_in(named));
        ttls.max().unwrap_or(self.ttl)
    }

    fn ttl_in(&self, named: &Named) -> Ttl {
        let Some(upstream) = self.of(&named.host) else { return self.ttl };
        let mut rules = upstream.repositories.iter();
        let rule = rules.find(|(pattern, _)| pattern.0.is_match(named.repository.as_str()));
        rule.map(|(_, ttl)| *ttl).or(upstream.ttl).unwrap_or(self.ttl)
    }

    /// The shortest time that any rule says: nothing goes for its age that was used since then.
    pub fn shortest(&self) -> Ttl {
        let of_upstream = |it: &OfUpstream| {
            it.repositories.iter().map(|(_, ttl)| *ttl).chain(it.ttl).collect::<Vec<_>>()
        };
        let rules = self.upstreams.iter().flat_map(of_upstream);
        rules.chain([self.ttl]).min().unwrap_or(Ttl::Never)
    }

    /// The rules of the upstream that `host` belongs to.
    pub fn of(&self, host: &Host) -> Option<&OfUpstream> {
        self.upstreams.iter().find(|upstream| upstream.hosts.matches(host))
    }
}

impl Ttl {
    /// A time as people write it, where zero means never.
    pub fn from_duration(duration: Duration) -> Self {
        if duration.is_zero() { Self::Never } else { Self::After(duration) }
    }

    /// Whether content that has gone unused for `unused` is to go.
    pub fn is_over(self, unused: Duration) -> bool {
        match self {
            Self::After(ttl) => unused > ttl,
            Self::Never => false,
        }
    }
}

impl RepositoryPattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// What `globset` says of it.
    pub fn parse(text: &str) -> Result<Self, globset::Error> {
        Ok(Self(Glob::new(text)?.compile_matcher()))
    }
}

impl ImagePattern {
    /// Whether every content of the repository is meant.
    pub fn is_whole(&self, named: &Named) -> bool {
        matches!(self.version, Version::Any) && self.repository.is_match(named.to_string())
    }

    /// Whether the image that `tag` names is meant.
    pub fn matches_tag(&self, named: &Named, tag: &Tag) -> bool {
        let version = match &self.version {
            Version::Any => true,
            Version::Tag(tags) => tags.is_match(tag.as_str()),
            Version::Digest(_) => false,
        };
        version && self.repository.is_match(named.to_string())
    }

    /// The one digest that is meant, in repositories that [`ImagePattern::matches_name`] knows.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.version {
            Version::Digest(digest) => Some(digest),
            _ => None,
        }
    }

    /// Whether anything in the repository may be meant.
    pub fn matches_name(&self, named: &Named) -> bool {
        self.repository.is_match(named.to_string())
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl FromStr for ImagePattern {
    type Err = ParseImagePatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let no_host = || ParseImagePatternError::NoHost(text.to_owned());
        let (name, version) = match text.split_once('@') {
            Some((name, digest)) => {
                let error = |_| ParseImagePatternError::Digest(text.to_owned());
                (name, Version::Digest(digest.parse().map_err(error)?))
            }
            None => {
                let slash = text.rfind('/').ok_or_else(no_host)?;
                match text[slash..].split_once(':') {
                    Some((last, tag)) => {
                        (&text[..slash + last.len()], Version::Tag(glob(text, tag)?))
                    }
                    None => (text, Version::Any),
                }
            }
        };
        let (host, repository) = name.split_once('/').ok_or_else(no_host)?;
        if !(Host::looks_like(host) || host.contains('*')) || repository.is_empty() {
            return Err(no_host());
        }
        Ok(Self { text: text.to_owned(), repository: glob(text, name)?, version })
    }
}

fn glob(text: &str, part: &str) -> Result<GlobMatcher, ParseImagePatternError> {
    let wrong = |reason: String| ParseImagePatternError::Pattern { text: text.to_owned(), reason };
    if part.is_empty() {
        return Err(wrong("a part of it is empty".to_owned()));
    }
    if part.contains(char::is_whitespace) {
        return Err(wrong("there is a space in it".to_owned()));
    }
    let glob = Glob::new(part).map_err(|error| wrong(error.kind().to_string()))?;
    Ok(glob.compile_matcher())
}

impl fmt::Display for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for ImagePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Patterns without those that are there twice, in their order.
pub fn distinct(patterns: impl IntoIterator<Item = ImagePattern>) -> Vec<ImagePattern> {
    let mut seen = HashSet::new();
    patterns.into_iter().filter(|pattern| seen.insert(pattern.text.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_that_keeps_content_longest_counts() {
        let day = |n: u64| Ttl::After(Duration::from_secs(n * 86_400));
        let retention = Retention {
            ttl: day(7),
            upstreams: vec![
                OfUpstream {
                    hosts: "docker.io".parse().unwrap(),
                    ttl: Some(day(2)),
                    repositories: vec![
                        (RepositoryPattern::parse("library/*").unwrap(), day(30)),
                        (RepositoryPattern::parse("*").unwrap(), day(1)),
                    ],
                    quota: None,
                },
                OfUpstream {
                    hosts: "*.example.com".parse().unwrap(),
                    ttl: Some(Ttl::Never),
                    repositories: Vec::new(),
                    quota: None,
                },
            ],
            ..Retention::default()
        };
        let ttl = |names: &[&str]| {
            let names: Vec<_> = names.iter().map(|name| named(name)).collect();
            retention.ttl(&names)
        };
        assert_eq!(ttl(&[]), day(7));
        assert_eq!(ttl(&["quay.io/a"]), day(7));
        assert_eq!(ttl(&["docker.io/library/a"]), day(30));
        assert_eq!(ttl(&["docker.io/b/a"]), day(1));
        assert_eq!(ttl(&["docker.io/b/a", "quay.io/a"]), day(7));
        assert_eq!(ttl(&["docker.io/b/a", "r.example.com/a"]), Ttl::Never);
        assert_eq!(retention.shortest(), day(1));
        assert_eq!(Retention::default().shortest(), Ttl::Never);
    }

    #[test]
    fn zero_means_never() {
        assert_eq!(Ttl::from_duration(Duration::ZERO), Ttl::Never);
        assert!(!Ttl::Never.is_over(Duration::MAX));
        let ttl = Ttl::from_duration(Duration::from_secs(1));
        assert!(ttl.is_over(Duration::from_secs(2)) && !ttl.is_over(Duration::from_secs(1)));
    }

    #[test]
    fn images_are_meant_by_name_tag_and_digest() {
        let meant = |pattern: &str, name: &str, tag: &str| {
            let pattern: ImagePattern = pattern.parse().unwrap();
            pattern.matches_tag(&named(name), &tag.parse().unwrap())
        };
        assert!(meant("docker.io/library/alpine:3.*", "docker.io/library/alpine", "3.20"));
        assert!(!meant("docker.io/library/alpine:3.*", "docker.io/library/alpine", "latest"));
        assert!(meant("ghcr.io/org/*", "ghcr.io/org/deep/one", "v1"));
        assert!(!meant("ghcr.io/org/*", "ghcr.io/other/one", "v1"));
        assert!(meant("r.local:5000/a", "r.local:5000/a", "v1"));
        assert!(meant("*/a:v*", "r.local:5000/a", "v1"));
        let digest = Digest::sha256_of(b"");
        let pattern: ImagePattern = format!("ghcr.io/a@{digest}").parse().unwrap();
        assert_eq!(pattern.digest(), Some(&digest));
        assert!(
            pattern.matches_name(&named("ghcr.io/a")) && !pattern.is_whole(&named("ghcr.io/a"))
        );
    }

    #[test]
    fn what_is_no_pattern_of_images_says_why() {
        let error = |text: &str| text.parse::<ImagePattern>().unwrap_err().to_string();
        assert!(error("alpine").contains("host"));
        assert!(error("library/alpine:3").contains("host"));
        assert!(error("docker.io/a@sha256:12").contains("digest"));
        assert!(error("docker.io/a:").contains("empty"));
        assert!(error("docker.io/a[").contains("docker.io/a["));
        assert!(error("docker.io/").contains("host"));
    }

    fn named(text: &str) -> Named {
        let (host, repository) = text.split_once('/').unwrap();
        Named { host: host.parse().unwrap(), repository: repository.parse().unwrap() }
    }
}
