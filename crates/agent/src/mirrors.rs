//! What tells the runtimes of this node to ask here first: their own files, edited.
//!
//! ```text
//! what is there + what we want ──▶ what to write      containerd, podman, dockerd, k3s: pure
//!           record: what was there, byte for byte     record: on disk, and back again
//! ```
//!
//! Files belong to others. So an edit only adds, is done only where it can be seen to lose nothing,
//! and is undone when the endpoint does not work. A file that somebody else has changed since is left
//! alone.

mod containerd;
mod dockerd;
mod entries;
mod k3s;
mod podman;
mod record;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use url::Url;

pub use containerd::{Finding, check as check_containerd};
pub use entries::{Entries, Report};
pub use record::{RecordError, Restored};

use crate::direct::default_url;

/// Public registries that anonymous people read from: those that are meant by `*` where a runtime has
/// no way to say "all".
const WELL_KNOWN: [&str; 11] = [
    "docker.io",
    "ghcr.io",
    "quay.io",
    "registry.k8s.io",
    "gcr.io",
    "public.ecr.aws",
    "mcr.microsoft.com",
    "registry.gitlab.com",
    "nvcr.io",
    "registry.access.redhat.com",
    "lscr.io",
];

/// Which runtimes are pointed here, for which registries.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mirrors {
    /// Hosts as in image names, or `*` for all. Default `["*"]`; empty: nothing is written.
    pub hosts: Vec<String>,
    /// containerd. Default if no runtime is named.
    pub containerd: Option<Containerd>,
    /// Podman, CRI-O, Buildah, Skopeo and Apptainer, which read the same files.
    pub podman: Option<Podman>,
    /// Docker, for Docker Hub.
    pub dockerd: Option<Dockerd>,
    /// K3s.
    pub k3s: Option<K3s>,
    /// RKE2.
    pub rke2: Option<Rke2>,
}

/// Where containerd's files are.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Containerd {
    /// As its `config_path` says. Default `/etc/containerd/certs.d`.
    pub certs_dir: PathBuf,
    /// Its configuration, which is read and never written. Default `/etc/containerd/config.toml`.
    pub config: PathBuf,
}

/// Where Podman's file is.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Podman {
    /// A file of our own. Default `/etc/containers/registries.conf.d/900-larder.conf`.
    pub file: PathBuf,
    /// What is read before. Default `/etc/containers/registries.conf`.
    pub config: PathBuf,
}

/// A file of one runtime, with its default.
macro_rules! one_file {
    ($name:ident, $default:literal, $what:literal) => {
        #[doc = $what]
        #[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct $name {
            #[doc = concat!("Default `", $default, "`.")]
            pub file: PathBuf,
        }

        impl Default for $name {
            fn default() -> Self {
                Self { file: $default.into() }
            }
        }
    };
}

one_file!(Dockerd, "/etc/docker/daemon.json", "Where Docker's configuration is.");
one_file!(K3s, "/etc/rancher/k3s/registries.yaml", "Where K3s's registries are.");
one_file!(Rke2, "/etc/rancher/rke2/registries.yaml", "Where RKE2's registries are.");

impl Default for Mirrors {
    fn default() -> Self {
        let hosts = vec!["*".to_owned()];
        Self { hosts, containerd: None, podman: None, dockerd: None, k3s: None, rke2: None }
    }
}

impl Default for Containerd {
    fn default() -> Self {
        let config = "/etc/containerd/config.toml".into();
        Self { certs_dir: "/etc/containerd/certs.d".into(), config }
    }
}

impl Default for Podman {
    fn default() -> Self {
        let config = "/etc/containers/registries.conf".into();
        Self { file: "/etc/containers/registries.conf.d/900-larder.conf".into(), config }
    }
}

impl Mirrors {
    /// Whether no runtime is named.
    pub fn is_of_no_runtime(&self) -> bool {
        let Self { hosts: _, containerd, podman, dockerd, k3s, rke2 } = self;
        containerd.is_none()
            && podman.is_none()
            && dockerd.is_none()
            && k3s.is_none()
            && rke2.is_none()
    }

    /// The runtimes that are named.
    pub(crate) fn runtimes(&self) -> Vec<Runtime> {
        let Self { hosts: _, containerd, podman, dockerd, k3s, rke2 } = self;
        let named = [
            containerd.as_ref().map(|_| Runtime::Containerd),
            podman.as_ref().map(|_| Runtime::Podman),
            dockerd.as_ref().map(|_| Runtime::Dockerd),
            k3s.as_ref().map(|_| Runtime::K3s),
            rke2.as_ref().map(|_| Runtime::Rke2),
        ];
        named.into_iter().flatten().collect()
    }
}

/// Who reads a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Runtime {
    /// containerd.
    Containerd,
    /// Podman, CRI-O, Buildah, Skopeo, Apptainer.
    Podman,
    /// dockerd.
    Dockerd,
    /// K3s.
    K3s,
    /// RKE2.
    Rke2,
}

impl Runtime {
    /// The word for metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Podman => "podman",
            Self::Dockerd => "dockerd",
            Self::K3s => "k3s",
            Self::Rke2 => "rke2",
        }
    }

    /// What makes it read its file again. `None`: it reads it for each pull.
    pub fn restart(self) -> Option<&'static str> {
        match self {
            Self::Containerd | Self::Podman => None,
            Self::Dockerd => Some("systemctl reload docker"),
            Self::K3s => Some("systemctl restart k3s (or k3s-agent)"),
            Self::Rke2 => Some("systemctl restart rke2-server (or rke2-agent)"),
        }
    }
}

/// What the entries are to say.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Where the endpoint is.
    pub endpoint: SocketAddr,
    /// For which registries.
    pub mirrors: Mirrors,
    /// Where upstreams are that are not at `https://HOST`.
    pub upstreams: BTreeMap<String, Url>,
}

impl Wanted {
    /// `http://127.0.0.1:5050`
    fn url(&self) -> String {
        format!("http://{}", self.endpoint)
    }

    /// Where a registry is itself.
    fn server(&self, host: &str) -> String {
        match self.upstreams.get(host) {
            Some(url) => url.as_str().trim_end_matches('/').to_owned(),
            None => default_url(host),
        }
    }

    /// The registries by name, for a runtime that cannot be told "all".
    fn named_hosts(&self) -> Vec<&str> {
        let mut hosts: Vec<&str> = Vec::new();
        for host in &self.mirrors.hosts {
            match host.as_str() {
                "*" => hosts.extend(WELL_KNOWN),
                host => hosts.push(host),
            }
        }
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }
}

/// What is said about files of ours, in those that can have a comment.
const COMMENT: &str = "# Written by `larder agent` while it runs, and removed by it.\n";

/// What is to become of a file, given what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Merge {
    /// It is to hold this.
    Write(String),
    /// It says what is wanted already.
    There,
    /// It is left alone, and why.
    Leave(String),
}

/// What becomes of a file with this text, if it is edited.
#[cfg(any(test, fuzzing))]
type Edit = fn(&str) -> Option<String>;

/// Whose files are edited, and how; all but Podman's, which is our own.
#[cfg(any(test, fuzzing))]
pub(crate) const EDITORS: [(Runtime, Edit); 3] = [
    (Runtime::Containerd, |text| edited(containerd::merged(&examples(), "docker.io", Some(text)))),
    (Runtime::Dockerd, |text| edited(dockerd::merged(&examples(), Some(text)))),
    (Runtime::K3s, |text| edited(k3s::merged(&examples(), Some(text)))),
];

#[cfg(any(test, fuzzing))]
fn edited(merge: Merge) -> Option<String> {
    match merge {
        Merge::Write(text) => Some(text),
        Merge::There | Merge::Leave(_) => None,
    }
}

#[cfg(any(test, fuzzing))]
fn examples() -> Wanted {
    let hosts = vec!["docker.io".to_owned(), "quay.io".to_owned()];
    let mirrors = Mirrors { hosts, ..Mirrors::default() };
    Wanted { endpoint: ([127, 0, 0, 1], 5050).into(), mirrors, upstreams: BTreeMap::new() }
}
