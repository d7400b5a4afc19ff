//! What the agent can be told: one TOML file, and the flags that override it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use url::Url;

use crate::file;
use crate::mirrors::Mirrors;

/// The longest file that is read.
const MAX_BYTES: u64 = 1 << 20;

/// What the agent is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where runtimes ask, on loopback. Default `127.0.0.1:5050`.
    pub listen: SocketAddr,
    /// Where metrics and health are served. Default `127.0.0.1:5051`.
    pub admin: SocketAddr,
    /// Where the cache is.
    pub caches: Vec<Cache>,
    /// The file that `caches` come from, and that is read again when it changes.
    pub caches_file: Option<PathBuf>,
    /// Whether a cluster says where the cache is, and for which registries runtimes are pointed here;
    /// then [`Self::caches`] has none, and the hosts of [`Self::mirrors`] say nothing.
    pub kubernetes: bool,
    /// What the cluster calls this node.
    pub node: Option<String>,
    /// The zone of this node.
    pub zone: Option<String>,
    /// Where it is kept what was known last, and what other programs' files were before. Default
    /// `/var/lib/larder-agent`.
    pub state: PathBuf,
    /// The socket of containerd, for the self-test. Default `/run/containerd/containerd.sock`.
    pub containerd_address: PathBuf,
    /// Where upstreams are that are not at `https://HOST`.
    pub upstreams: BTreeMap<String, Url>,
    /// Which runtimes are pointed here, for which registries.
    pub mirrors: Mirrors,
}

/// One cache, or all that a name stands for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// `http` or `https`, before `/v2/`.
    pub url: Url,
    /// The zone that it is in.
    #[serde(default)]
    pub zone: Option<String>,
    /// A PEM file of authorities that it may be signed by, besides the system's.
    #[serde(default)]
    pub ca: Option<PathBuf>,
}

/// What flags and variables say. Each replaces the whole key.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// As [`Settings::listen`].
    pub listen: Option<SocketAddr>,
    /// As [`Settings::admin`].
    pub admin: Option<SocketAddr>,
    /// As [`Settings::caches`].
    pub caches: Vec<Url>,
    /// As [`Settings::kubernetes`].
    pub kubernetes: bool,
    /// As [`Settings::node`].
    pub node: Option<String>,
    /// As [`Settings::zone`].
    pub zone: Option<String>,
    /// As [`Settings::state`].
    pub state: Option<PathBuf>,
    /// As [`Settings::containerd_address`].
    pub containerd_address: Option<PathBuf>,
    /// Where containerd looks for mirrors.
    pub certs_dir: Option<PathBuf>,
    /// As [`Settings::upstreams`], each replacing or adding one.
    pub upstreams: Vec<(String, Url)>,
}

/// What is wrong with the settings, in one line: `agent.toml:3: …`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Mistake(String);

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Document {
    listen: Option<SocketAddr>,
    admin: Option<SocketAddr>,
    caches: Vec<Cache>,
    kubernetes: bool,
    zone: Option<String>,
    state: Option<PathBuf>,
    containerd_address: Option<PathBuf>,
    upstreams: BTreeMap<String, Url>,
    mirrors: Option<Mirrors>,
}

impl Settings {
    /// Reads `file`, if there is one, and what overrides it.
    ///
    /// # Errors
    ///
    /// The first [`Mistake`] that is found.
    pub fn read(file: Option<&Path>, overrides: Overrides) -> Result<Self, Mistake> {
        let document = file.map(document_in).transpose()?.unwrap_or_default();
        Self::of(document, file, overrides)
    }

    fn of(document: Document, file: Option<&Path>, overrides: Overrides) -> Result<Self, Mistake> {
        let Document { listen, admin, caches, zone, state, containerd_address, .. } = document;
        let mut upstreams = document.upstreams;
        upstreams.extend(overrides.upstreams);
        let mut mirrors = document.mirrors.unwrap_or_default();
        if mirrors.is_of_no_runtime() || overrides.certs_dir.is_some() {
            let containerd = mirrors.containerd.get_or_insert_default();
            if let Some(certs_dir) = overrides.certs_dir {
                containerd.certs_dir = certs_dir;
            }
        }
        let is_by_flag = !overrides.caches.is_empty();
        let of_flag = |url| Cache { url, zone: None, ca: None };
        let settings = Self {
            listen: overrides.listen.or(listen).unwrap_or(([127, 0, 0, 1], 5050).into()),
            admin: overrides.admin.or(admin).unwrap_or(([127, 0, 0, 1], 5051).into()),
            caches: if is_by_flag {
                overrides.caches.into_iter().map(of_flag).collect()
            } else {
                caches
            },
            caches_file: file.filter(|_| !is_by_flag).map(Path::to_owned),
            kubernetes: overrides.kubernetes || document.kubernetes,
            node: overrides.node,
            zone: overrides.zone.or(zone),
            state: overrides.state.or(state).unwrap_or("/var/lib/larder-agent".into()),
            containerd_address: overrides
                .containerd_address
                .or(containerd_address)
                .unwrap_or("/run/containerd/containerd.sock".into()),
            upstreams,
            mirrors,
        };
        settings.check()?;
        Ok(settings)
    }

    fn check(&self) -> Result<(), Mistake> {
        if !self.listen.ip().is_loopback() {
            let advice = "must be on loopback, as what runtimes say there is not encrypted";
            return Err(Mistake(format!("listen: {} {advice}; write 127.0.0.1:5050", self.listen)));
        }
        if self.kubernetes && !self.caches.is_empty() {
            let advice =
                "caches are named, and a cluster is to name them; leave one of the two out";
            return Err(Mistake(advice.to_owned()));
        }
        for cache in &self.caches {
            check_cache(cache).map_err(|what| Mistake(format!("caches: {what}")))?;
        }
        for host in self.mirrors.hosts.iter().filter(|host| *host != "*") {
            if host.parse::<larder_core::Host>().is_err() {
                let advice = "is no registry's host; write one as in image names, or \"*\" for all";
                return Err(Mistake(format!("mirrors.hosts: `{host}` {advice}")));
            }
        }
        Ok(())
    }
}

fn check_cache(cache: &Cache) -> Result<(), String> {
    let url = &cache.url;
    let is_base = matches!(url.scheme(), "http" | "https") && matches!(url.path(), "" | "/");
    let is_bare = url.username().is_empty() && url.password().is_none();
    if !is_base || !is_bare || url.query().is_some() || !url.has_host() {
        return Err("each `url` must be like http://10.0.0.1:5000".to_owned());
    }
    Ok(())
}

/// The caches that a file names.
///
/// # Errors
///
/// The first [`Mistake`] in it.
pub(crate) fn caches_in(file: &Path) -> Result<Vec<Cache>, Mistake> {
    let caches = document_in(file)?.caches;
    for cache in &caches {
        check_cache(cache)
            .map_err(|what| Mistake(format!("{}: caches: {what}", file.display())))?;
    }
    Ok(caches)
}

fn document_in(file: &Path) -> Result<Document, Mistake> {
    let name = file.display();
    let cannot = |why: &dyn fmt::Display| Mistake(format!("{name}: cannot be read: {why}"));
    let bytes = file::read(file, MAX_BYTES).map_err(|error| cannot(&error))?;
    let text = String::from_utf8(bytes).map_err(|_| cannot(&"it is not UTF-8 text"))?;
    document(&text).map_err(|(line, what)| Mistake(format!("{name}:{line}: {what}")))
}

/// Reads a document; otherwise the line of the first mistake, and what it is.
fn document(text: &str) -> Result<Document, (usize, String)> {
    toml::from_str(text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start);
        let before = text.get(..start).unwrap_or(text);
        (1 + before.matches('\n').count(), error.message().trim().replace('\n', " "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_file_everything_has_its_default() {
        let settings = Settings::read(None, Overrides::default()).unwrap();
        assert_eq!(settings.listen.to_string(), "127.0.0.1:5050");
        assert_eq!(
            (settings.mirrors.hosts.as_slice(), settings.caches),
            (&["*".to_owned()][..], Vec::new())
        );
        assert!(settings.mirrors.containerd.is_some() && settings.mirrors.podman.is_none());
    }

    #[test]
    fn a_file_is_read_and_flags_override_it() {
        let text = r#"
            listen = "127.0.0.1:6000"
            zone = "a"
            [[caches]]
            url = "http://10.0.0.1:5000"
            zone = "a"
            [upstreams]
            "r.io" = "http://127.0.0.1:1"
            [mirrors]
            hosts = ["docker.io"]
            [mirrors.containerd]
            certs_dir = "/c"
        "#;
        let of = |overrides| Settings::of(document(text).unwrap(), Some(Path::new("f")), overrides);
        let settings = of(Overrides::default()).unwrap();
        assert_eq!(settings.caches[0].url.as_str(), "http://10.0.0.1:5000/");
        assert_eq!(settings.caches_file.as_deref(), Some(Path::new("f")));
        assert_eq!((settings.listen.port(), settings.mirrors.hosts.len()), (6000, 1));
        let caches = vec!["http://10.0.0.9:5000".parse().unwrap()];
        let overrides = Overrides { caches, zone: Some("b".to_owned()), ..Overrides::default() };
        let settings = of(overrides).unwrap();
        assert_eq!((settings.caches.len(), settings.caches_file), (1, None));
        assert_eq!((settings.zone.as_deref(), settings.listen.port()), (Some("b"), 6000));
    }

    #[test]
    fn mistakes_are_said_with_their_line() {
        let line = |text: &str| document(text).map(drop).unwrap_err();
        assert_eq!(line("zone = \"a\"\ncolour = 1\n").0, 2);
        assert_eq!(line("[[caches]]\nurl = \"no url\"\n").0, 2);
        assert_eq!(line("[mirrors]\nhosts = [\"*\"]\nkontainerd = 1\n").0, 3);
        let wrong = |text: &str| {
            let settings = Settings::of(document(text).unwrap(), None, Overrides::default());
            settings.unwrap_err().to_string()
        };
        assert!(wrong("listen = \"0.0.0.0:5050\"").contains("loopback"));
        assert!(wrong("[[caches]]\nurl = \"ftp://x\"").contains("http://10.0.0.1:5000"));
        assert!(wrong("[mirrors]\nhosts = [\"https://x\"]").contains("no registry"));
    }
}
