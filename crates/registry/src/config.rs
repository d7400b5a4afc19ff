//! The configuration of `serve`: one TOML file, and the flags and variables that override it.
//!
//! It is read once, whole, and refused whole when anything in it is wrong; [`parse`] finds every
//! mistake, not only the first. Nothing is accepted that has no effect.
//!
//! ```text
//! file ──────────────▶ document ──▶ reading ──▶ Config
//! flags, variables ──▶ overrides ──────┘ └────▶ all mistakes
//! ```

mod builtin;
mod certificate;
mod document;
mod files;
mod keys;
mod mistake;
mod overrides;
mod peers;
mod reading;
mod shared;
mod token;
mod upstream;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use larder_core::access::Bounds;
use larder_core::address::HostPattern;
use larder_core::retention::{ImagePattern, OfUpstream, RepositoryPattern, Retention, Ttl};
use larder_upstream::{ClientCertificate, Credentials};
use url::Url;

pub use files::{Disk, Files};
pub use mistake::{Mistake, Place};
pub use overrides::{Given, Overrides, default_data};
pub(crate) use peers::MAX_PEERS;
pub(crate) use reading::{MAX_UPSTREAM, in_order, parse_upstream};
pub use shared::Shared;
pub(crate) use token::token_in;
pub(crate) use upstream::default_url;

pub use reading::{Environment, parse};

/// Everything that `serve` needs to know.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where `/v2/` is served: at least one. Default `127.0.0.1:5000`.
    pub listen: Vec<Listener>,
    /// Where metrics, health and the REST API are served. Default `127.0.0.1:5001`.
    pub admin: SocketAddr,
    /// The file with the token that allows changes through the REST API from elsewhere than this
    /// machine. Could be read, and is good. Default: none, nobody elsewhere may.
    pub admin_token_file: Option<PathBuf>,
    /// The directory that holds the store. See [`default_data`].
    pub data: PathBuf,
    /// Whether no upstream may be asked at all: what is stored is served, the rest is 404.
    pub offline: bool,
    /// How much the store may hold. Default: what the disk has.
    pub budget: Option<Budget>,
    /// Down to which share of the budget eviction goes once it has begun, in percent: 1 to 100.
    /// Default 90.
    pub low_watermark: u8,
    /// How long content may go unused for which no upstream says otherwise. Default: for ever.
    pub ttl: Ttl,
    /// How long a manifest may go unused that no tag names any more. Default 30 days.
    pub untagged_ttl: Ttl,
    /// Images that are kept whatever happens.
    pub pins: Vec<ImagePattern>,
    /// The replicas that share what they store, this one among them: at most 64 entries, each once.
    /// Default: none.
    pub peers: Vec<Peer>,
    /// A PEM file of certificate authorities that peers may be signed by, besides the system's. Could
    /// be read, and has a certificate in it.
    pub peers_ca: Option<PathBuf>,
    /// What is shared with other replicas. Default: nothing, what is stored is this process's own.
    pub shared: Option<Shared>,
    /// In which time every stored blob is read once, to see whether it is what it was. `None`:
    /// never. Default: 30 days.
    pub scrub: Option<Duration>,
    /// The certificate of `listen`. Default: none, plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The upstream (host or alias) of a request that names none. Default `docker.io`, where that
    /// is an upstream; `None` when it was set to `""`.
    pub default_upstream: Option<String>,
    /// The upstream (host or alias) that a `Host` header (lower case, without port) stands for.
    pub hosts: BTreeMap<String, String>,
    /// All upstreams: exact hosts by name, then wildcards, the one with fewest `*` first. Each
    /// host pattern and each alias is there once.
    pub upstreams: Vec<Upstream>,
}

impl Config {
    /// What of the store is shared with other replicas.
    pub fn shared_store(&self) -> Option<larder_store::SharedSettings> {
        let Shared { database, s3, budget, .. } = self.shared.clone()?;
        Some(larder_store::SharedSettings { database, s3, budget, scrub: self.scrub })
    }

    /// What is kept in the store, and for how long.
    pub fn retention(&self) -> Retention {
        let of_upstream = |upstream: &Upstream| OfUpstream {
            hosts: upstream.host.clone(),
            ttl: upstream.ttl,
            repositories: upstream.repositories.clone(),
            quota: upstream.quota,
        };
        Retention {
            ttl: self.ttl,
            superseded: self.untagged_ttl,
            upstreams: self.upstreams.iter().map(of_upstream).collect(),
            pins: self.pins.clone(),
        }
    }
}

/// One address that is listened on: `127.0.0.1:5000`, or `127.0.0.1:5000=docker.io`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where. Port 0 is any free port.
    pub address: SocketAddr,
    /// The upstream (host or alias) of a request that names none, on this address. Where it is
    /// `None`, [`Config::default_upstream`] counts.
    pub default_upstream: Option<String>,
}

/// Where replicas are: scheme and authority, path `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// One of them is there.
    At(Url),
    /// Each address that DNS gives for the host, a name, is one of them.
    Named(Url),
}

impl Peer {
    /// Its address, or that of all who have the name.
    pub fn url(&self) -> &Url {
        let (Self::At(url) | Self::Named(url)) = self;
        url
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(url) => url.fmt(f),
            Self::Named(url) => write!(f, "dns+{url}"),
        }
    }
}

/// How much a store may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Budget {
    /// Bytes, at least 1.
    Bytes(u64),
    /// Percent of the file system that the store is on, 1 to 100.
    Percent(u8),
}

/// A certificate chain and its key, both PEM files that exist and could be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// A registry that is read from.
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// Who says that there is this upstream.
    pub origin: Origin,
    /// The host, or the hosts, as written in image references.
    pub host: HostPattern,
    /// Where to ask, in this order: scheme and authority, path `/`. Empty for a wildcard, whose
    /// hosts are each asked at `https://HOST`. Default `https://HOST` (Docker Hub:
    /// `https://registry-1.docker.io`).
    pub urls: Vec<Url>,
    /// Other names for it in paths: one path component each, never one that reads as a host.
    /// Empty for a wildcard.
    pub alias: Vec<String>,
    /// How long a tag's answer is given without asking again. Zero: always ask. Default 1 min.
    pub freshness: Duration,
    /// Which tags' answers count for how long instead; the first that matches counts.
    pub tags: Vec<TagFreshness>,
    /// How long to wait for upstream where a stale answer is at hand. Never zero. Default 2 s.
    pub deadline: Duration,
    /// Who may read what is stored. Default: everyone.
    pub access: Access,
    /// Whether content that upstream says is gone is still served. Default no.
    pub serve_deleted: bool,
    /// Who we are to upstream. Could be read when the configuration was.
    pub credentials: Credentials,
    /// The proxy that leads to upstream: `http`, `https` or `socks5`. Default: what the
    /// environment says (`HTTPS_PROXY`).
    pub proxy: Option<Url>,
    /// A PEM file of certificate authorities that upstream may be signed by, besides the
    /// system's. Could be read, and has a certificate in it.
    pub ca: Option<PathBuf>,
    /// What is shown to an upstream that asks for our certificate: files that could be read and
    /// belong together.
    pub client_certificate: Option<ClientCertificate>,
    /// Whether upstream's certificate is not checked at all.
    pub insecure_skip_verify: bool,
    /// The most bytes that what was fetched from this upstream may take on the disk.
    pub quota: Option<u64>,
    /// How long its content may go unused. Default: as [`Config::ttl`] says.
    pub ttl: Option<Ttl>,
    /// The repositories for which another time counts; the first that matches.
    pub repositories: Vec<(RepositoryPattern, Ttl)>,
    /// Connections for one large blob, 1 to 16. Default 1.
    pub parallel: u8,
    /// Networks that are not public and may be reached all the same. Only for the upstream `*`;
    /// every other one may be anywhere.
    pub addresses: Vec<IpNet>,
    /// How long upstream may be silent, before the head of an answer and between two pieces of a
    /// body: 1 s to 5 min. Default 30 s.
    pub read_timeout: Duration,
    /// The most requests that are under way at a time, at least 1. Default 256.
    pub max_requests: usize,
    /// The most requests in a second. Default: any number.
    pub max_rate: Option<NonZeroU32>,
    /// Globs over repository names: if there are any, one must match. Each is one that `globset`
    /// reads.
    pub allow: Vec<String>,
    /// Globs over repository names: none may match. Each is one that `globset` reads.
    pub deny: Vec<String>,
    /// For people.
    pub description: Option<String>,
}

/// Who says that there is an upstream. Of two that say it, the later one of these counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    /// It is known without anybody saying so.
    BuiltIn,
    /// It was made through the REST API.
    Api,
    /// It stands in the configuration: the file, a flag or a variable.
    Configuration,
}

/// How long the answers for some tags count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagFreshness {
    /// A glob over tags, one that `globset` reads.
    pub matching: String,
    /// [`Duration::MAX`]: forever, such a tag never changes.
    pub freshness: Duration,
}

/// Who may read what is stored of an upstream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Access {
    /// Anyone who reaches the cache; our own credentials are used.
    #[default]
    Shared,
    /// Whoever upstream lets read it, asked with the credential that comes with the request and with
    /// none of ours. `memory` is 5 min at most, `grace` a day.
    Caller(Bounds),
}
