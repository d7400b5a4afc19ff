//! Which upstream and repository a client means.
//!
//! There are three ways to say it, all at once: containerd's `?ns=HOST`; the host, or an alias for
//! it, as the first component of the name; and nothing, where a listener or `Host` name stands for
//! one upstream (dockerd's mirror of Docker Hub says nothing).

use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;

use crate::name::{Host, Named, ParseHostError, ParseRepositoryError, Repository};

/// A host, or several at once: in `*.dkr.ecr.*.amazonaws.com` each `*` is one label of the name; `*`
/// alone is any host at all.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern {
    text: String,
    exact: Option<Host>,
}

/// The pattern for every host.
const ANY: &str = "*";

impl HostPattern {
    /// Whether this stands for more than one host.
    pub fn is_wildcard(&self) -> bool {
        self.exact.is_none()
    }

    /// The one host that this stands for; `None` for a wildcard.
    pub fn exact(&self) -> Option<&Host> {
        self.exact.as_ref()
    }

    /// The pattern as it was written (Docker Hub's names all as `docker.io`).
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether this stands for any host at all.
    pub fn is_any(&self) -> bool {
        self.text == ANY
    }

    /// Whether `host` is one of those that this stands for. A port is matched to the letter.
    pub fn matches(&self, host: &Host) -> bool {
        if let Some(exact) = &self.exact {
            return exact == host;
        }
        if self.is_any() {
            return true;
        }
        let (mut labels, mut wanted) = (host.as_str().split('.'), self.text.split('.'));
        loop {
            match (labels.next(), wanted.next()) {
                (None, None) => return true,
                (Some(label), Some(wanted)) if wanted == "*" || wanted == label => {}
                _ => return false,
            }
        }
    }
}

impl FromStr for HostPattern {
    type Err = ParseHostError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if !text.split('.').any(|label| label == "*") {
            let host: Host = text.parse()?;
            return Ok(Self { text: host.as_str().to_owned(), exact: Some(host) });
        }
        if text == ANY {
            return Ok(Self { text: text.to_owned(), exact: None });
        }
        // Several stars would be nearly everything, which nobody means; with each `*` made a letter
        // the rest must be a host.
        let is_all = text.split('.').all(|label| label == "*");
        if is_all || text.replace('*', "a").parse::<Host>().is_err() || has_partial_star(text) {
            return Err(ParseHostError(text.to_owned()));
        }
        Ok(Self { text: text.to_ascii_lowercase(), exact: None })
    }
}

/// Whether a `*` is only part of a label, which would match nothing.
fn has_partial_star(text: &str) -> bool {
    text.split('.').any(|label| label.len() > 1 && label.contains('*'))
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// The upstreams that are known, by all the names they go by. Entries are known by their index.
#[derive(Clone, Debug, Default)]
pub struct Directory {
    hosts: HashMap<Host, usize>,
    aliases: HashMap<String, (usize, Host)>,
    wildcards: Vec<(HostPattern, usize)>,
}

/// One way that a request names an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Asked<'a> {
    /// The name in the path, host or alias included.
    pub name: &'a str,
    /// The value of `?ns=`.
    pub ns: Option<&'a str>,
    /// What the listener or the `Host` name stands for: a host or an alias.
    pub default_upstream: Option<&'a str>,
}

/// A repository of a known upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Index of the upstream's entry.
    pub entry: usize,
    /// The host itself, also where the entry is a wildcard, and the repository as the upstream
    /// knows it (with `library/` on Docker Hub).
    pub name: Named,
}

/// Why a request cannot be addressed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// The host is none of the known ones.
    #[error(
        "`{0}` is not a known upstream; add [upstreams.\"{0}\"] to the configuration, or start with --upstream {0}=https://{0}"
    )]
    UnknownUpstream(String),
    /// The request names no upstream and nothing stands for one.
    #[error(
        "`{0}` names no upstream; put its host first, as in docker.io/{0}, or set `default_upstream` in the configuration"
    )]
    NoUpstream(String),
    /// What is left after the upstream is no repository name.
    #[error(transparent)]
    Repository(#[from] ParseRepositoryError),
}

impl Directory {
    /// Adds the upstream with index `entry`. Of two wildcards that match a host, the one that was
    /// added first counts; an exact host always counts before a wildcard.
    pub fn add(&mut self, entry: usize, pattern: &HostPattern, aliases: &[String]) {
        match pattern.exact() {
            Some(host) => {
                self.hosts.insert(host.clone(), entry);
                let aliases = aliases.iter().cloned();
                self.aliases.extend(aliases.map(|alias| (alias, (entry, host.clone()))));
            }
            None => self.wildcards.push((pattern.clone(), entry)),
        }
    }

    /// The upstream and repository that a request means.
    ///
    /// # Errors
    ///
    /// [`AddressError`], whose text tells the person who runs the cache which key to set.
    pub fn resolve(&self, asked: Asked<'_>) -> Result<Address, AddressError> {
        let (upstream, repository) = self.split(asked)?;
        let (entry, host) = self
            .find(upstream)
            .ok_or_else(|| AddressError::UnknownUpstream(printable(upstream)))?;
        let repository = repository.parse::<Repository>()?.at(&host);
        Ok(Address { entry, name: Named { host, repository } })
    }

    /// Splits a request into the upstream's name and the repository's.
    fn split<'a>(&self, asked: Asked<'a>) -> Result<(&'a str, &'a str), AddressError> {
        let first = asked.name.split_once('/');
        if let Some(ns) = asked.ns {
            // A mirror entry whose path has the host says it twice.
            return Ok(match first {
                Some((component, rest)) if same_host(component, ns) => (ns, rest),
                _ => (ns, asked.name),
            });
        }
        if let Some((component, rest)) = first
            && (self.aliases.contains_key(component) || Host::looks_like(component))
        {
            return Ok((component, rest));
        }
        match asked.default_upstream {
            Some(upstream) => Ok((upstream, asked.name)),
            None => Err(AddressError::NoUpstream(printable(asked.name))),
        }
    }

    /// The entry that a host or an alias belongs to.
    pub fn find(&self, name: &str) -> Option<(usize, Host)> {
        if let Some((entry, host)) = self.aliases.get(name) {
            return Some((*entry, host.clone()));
        }
        let host: Host = name.parse().ok()?;
        if let Some(entry) = self.hosts.get(&host) {
            return Some((*entry, host));
        }
        let (_, entry) = self.wildcards.iter().find(|(pattern, _)| pattern.matches(&host))?;
        Some((*entry, host))
    }
}

fn same_host(one: &str, other: &str) -> bool {
    Host::looks_like(one)
        && match (one.parse::<Host>(), other.parse::<Host>()) {
            (Ok(one), Ok(other)) => one == other,
            _ => false,
        }
}

/// At most 255 characters of what a client sent, none of them a control character.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(255).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wildcard_stands_for_one_label_each() {
        let matches = |pattern: &str, host: &str| {
            pattern.parse::<HostPattern>().unwrap().matches(&host.parse().unwrap())
        };
        assert!(matches("*.gcr.io", "eu.gcr.io"));
        assert!(!matches("*.gcr.io", "gcr.io") && !matches("*.gcr.io", "a.b.gcr.io"));
        assert!(matches("*.dkr.ecr.*.amazonaws.com", "1.dkr.ecr.us-east-1.amazonaws.com"));
        assert!(!matches("*.gcr.io", "eu.gcr.io:5000"));
        assert!(matches("gcr.io", "gcr.io") && !matches("gcr.io", "eu.gcr.io"));
        assert!(
            matches("*", "eu.gcr.io") && matches("*", "a.b:5000") && matches("*", "[::1]:5000")
        );
        for text in ["*.*", "a*.io", "a*.*.io", "", "*.gcr.io/x"] {
            assert!(text.parse::<HostPattern>().is_err(), "{text}");
        }
    }

    #[test]
    fn ns_names_the_upstream_and_the_path_the_repository() {
        assert_eq!(ns("library/alpine", "docker.io"), "docker.io library/alpine");
        assert_eq!(ns("alpine", "registry-1.docker.io"), "docker.io library/alpine");
        assert_eq!(ns("a/b/c", "[::1]:5000"), "[::1]:5000 a/b/c");
        assert_eq!(ns("p/app", "eu.gcr.io"), "eu.gcr.io p/app");
    }

    #[test]
    fn a_host_said_twice_counts_once() {
        assert_eq!(ns("docker.io/library/alpine", "docker.io"), "docker.io library/alpine");
        assert_eq!(ns("docker.io/alpine", "index.docker.io"), "docker.io library/alpine");
    }

    #[test]
    fn the_first_component_may_be_a_host_or_an_alias() {
        assert_eq!(path("docker.io/alpine"), "docker.io library/alpine");
        assert_eq!(path("hub/alpine"), "docker.io library/alpine");
        assert_eq!(path("eu.gcr.io/p/app"), "eu.gcr.io p/app");
    }

    #[test]
    fn what_names_no_upstream_goes_to_the_default() {
        assert_eq!(path("library/alpine"), "docker.io library/alpine");
        assert_eq!(path("alpine"), "docker.io library/alpine");
        let directory = directory();
        let error = directory.resolve(Asked { name: "a/b", ..Asked::default() }).unwrap_err();
        assert_eq!(error, AddressError::NoUpstream("a/b".to_owned()));
    }

    #[test]
    fn an_unknown_host_is_never_taken_for_a_namespace_of_the_default() {
        let error = directory()
            .resolve(Asked { name: "quay.io/a/b", ns: None, default_upstream: Some("docker.io") })
            .unwrap_err();
        assert_eq!(error, AddressError::UnknownUpstream("quay.io".to_owned()));
        assert!(error.to_string().contains("[upstreams.\"quay.io\"]"));
    }

    proptest! {
        #[test]
        fn no_request_makes_resolving_panic(name in "\\PC{0,40}", ns in proptest::option::of("\\PC{0,20}")) {
            let asked = Asked { name: &name, ns: ns.as_deref(), default_upstream: Some("docker.io") };
            let _ = directory().resolve(asked);
        }
    }

    fn directory() -> Directory {
        let mut directory = Directory::default();
        let upstreams = [("docker.io", &["hub"][..]), ("[::1]:5000", &[]), ("*.gcr.io", &[])];
        for (entry, (host, aliases)) in upstreams.into_iter().enumerate() {
            let aliases: Vec<String> = aliases.iter().map(ToString::to_string).collect();
            directory.add(entry, &host.parse().unwrap(), &aliases);
        }
        directory
    }

    fn ns(name: &str, ns: &str) -> String {
        show(directory().resolve(Asked { name, ns: Some(ns), default_upstream: None }))
    }

    fn path(name: &str) -> String {
        show(directory().resolve(Asked { name, ns: None, default_upstream: Some("docker.io") }))
    }

    fn show(address: Result<Address, AddressError>) -> String {
        let Named { host, repository } = address.unwrap().name;
        format!("{host} {repository}")
    }
}
