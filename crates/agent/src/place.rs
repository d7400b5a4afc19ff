//! Where a replica is, and what it is asked for.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use larder_core::Host;
use larder_core::address::HostPattern;
use larder_core::builtin;
use serde::{Deserialize, Serialize};
use url::Url;

/// Where a replica is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// `http` or `https`, before `/v2/`.
    pub url: Url,
    /// The address to connect to, if the host of `url` is a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<SocketAddr>,
    /// What the other replicas call it, if that is not [`Self::name`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The zone that it is in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// Authorities that it may be signed by, besides the system's: the text of a PEM file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<String>,
    /// The registries that it is a cache of, as in image names; wildcards are allowed. Without any it
    /// is one of all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Where those of [`Self::hosts`] are that are elsewhere than their name says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub urls: BTreeMap<String, Url>,
}

impl Place {
    /// What it is called here: `http://10.0.0.1:5000`.
    pub fn name(&self) -> String {
        match self.address {
            Some(address) => format!("{}://{address}", self.url.scheme()),
            None => self.url.origin().ascii_serialization(),
        }
    }

    /// What all who know the replica call it: this decides what it owns.
    pub(crate) fn known_as(&self) -> String {
        self.peer.clone().unwrap_or_else(|| self.name())
    }

    /// What it is asked for.
    pub(crate) fn scope(&self) -> Scope {
        match self.hosts.is_empty() {
            true => Scope::All,
            false => Scope::Some(self.hosts.iter().filter_map(|host| host.parse().ok()).collect()),
        }
    }
}

/// The registries that a replica is a cache of.
#[derive(Clone, Debug)]
pub(crate) enum Scope {
    All,
    Some(Vec<HostPattern>),
}

impl Scope {
    pub(crate) fn has(&self, host: &Host) -> bool {
        match self {
            Self::All => true,
            // The image that every cache has built in is for testing each of them.
            Self::Some(_) if host.as_str() == builtin::HOST => true,
            Self::Some(patterns) => patterns.iter().any(|pattern| pattern.matches(host)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replica_is_asked_for_its_registries_and_its_own_image() {
        let has = |hosts: &[&str], host: &str| {
            let hosts = hosts.iter().map(|&it| it.to_owned()).collect();
            let url = "http://10.0.0.1:1".parse().unwrap();
            let (address, peer, zone, ca, urls) = (None, None, None, None, BTreeMap::new());
            let place = Place { url, address, peer, zone, ca, hosts, urls };
            place.scope().has(&host.parse().unwrap())
        };
        assert!(has(&[], "any.io"));
        assert!(has(&["docker.io", "*.gcr.io"], "eu.gcr.io"));
        assert!(has(&["index.docker.io"], "docker.io"));
        assert!(has(&["docker.io"], builtin::HOST));
        assert!(!has(&["docker.io"], "quay.io"));
    }
}
