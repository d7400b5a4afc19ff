//! From the file, flags and variables to a [`Config`], or to all that is wrong with them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use larder_core::address::Directory;
use larder_core::name::DOCKER_HUB;
use larder_core::retention::{ImagePattern, Retention, Ttl};
use larder_upstream::MAX_URLS;
use toml::de::DeTable;
use url::Url;

use super::certificate;
use super::document::{Section, Source, quoted};
use super::files::Files;
use super::keys::{boolean, budget, hosts, later, listeners, pins, text, upstreams};
use super::mistake::{At, Located, Mistake, Mistakes, Place, Wrong, wrong};
use super::overrides::{Given, Overrides};
use super::peers::Peers;
use super::upstream::{self, Configured};
use super::value::{self, shown};
use super::{Budget, Config, Listener, TlsFiles, Upstream, builtin, shared, token};

/// Down to which share of the budget eviction goes, in percent: often enough that it stays short, and
/// not so often that each blob waits for another to go.
const LOW_WATERMARK: u8 = 90;

/// What a configuration depends on besides its file.
pub struct Environment<'e> {
    /// Flags and variables.
    pub overrides: Overrides,
    /// Where the store is unless someone says: [`super::default_data`].
    pub default_data: PathBuf,
    /// The files that the configuration names.
    pub files: &'e dyn Files,
}

/// Reads a configuration. `text` is the content of the file `name`; without a file, it is empty.
///
/// # Errors
///
/// All mistakes: those in the file first, by line. If the file is no TOML, only those of syntax.
pub fn parse(
    text: &str,
    name: &str,
    environment: &Environment<'_>,
) -> Result<Config, Vec<Mistake>> {
    let source = Source { name, text };
    let mut mistakes = Mistakes::default();
    let (document, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = source.at(error.span().unwrap_or_default(), None);
        mistakes.note(&at, wrong(error.message()));
    }
    if !errors.is_empty() {
        // What else seems wrong may only be how the rest was understood.
        return Err(mistakes.sorted());
    }
    let section = Section::root(source, document.get_ref());
    let mut draft = Draft::read(section, environment.files, &mut mistakes);
    draft.override_with(&environment.overrides, &mut mistakes);
    draft.check(environment.files, &mut mistakes);
    match mistakes.len() {
        0 => Ok(draft.finish(environment)),
        _ => Err(mistakes.sorted()),
    }
}

/// The longest upstream that can be made through the REST API, in bytes of TOML: far more than any
/// has keys, and short enough that a thousand of them are read in no time.
pub(crate) const MAX_UPSTREAM: usize = 32 << 10;

/// Reads one upstream that stands by itself: what a configuration would have as
/// `[upstreams."HOST"]`. It is as if it stood in a file alone, so the lines of mistakes say nothing.
///
/// # Errors
///
/// All mistakes.
pub(crate) fn parse_upstream(
    host: &str,
    table: &toml::Table,
    files: &dyn Files,
) -> Result<Upstream, Vec<Mistake>> {
    let upstreams = toml::Table::from_iter([(host.to_owned(), table.clone().into())]);
    let document = toml::Table::from_iter([
        ("builtin_upstreams".to_owned(), false.into()),
        ("upstreams".to_owned(), upstreams.into()),
    ]);
    let environment =
        Environment { overrides: Overrides::default(), default_data: PathBuf::new(), files };
    let config = parse(&document.to_string(), "upstream", &environment)?;
    Ok(config.upstreams.into_iter().next().expect("what stands there was read"))
}

/// A configuration whose values are right each for itself, or missing.
struct Draft {
    /// `None`: nobody said.
    listen: Option<Vec<Located<Listener>>>,
    admin: Option<Located<SocketAddr>>,
    admin_token_file: Option<Located<PathBuf>>,
    data: Option<Located<PathBuf>>,
    offline: Option<Located<bool>>,
    budget: Option<Located<Budget>>,
    low_watermark: Option<Located<u8>>,
    ttl: Option<Located<Ttl>>,
    untagged_ttl: Option<Located<Ttl>>,
    pins: Vec<ImagePattern>,
    /// Zero: never.
    scrub: Option<Located<Duration>>,
    tls_cert: Option<Located<PathBuf>>,
    tls_key: Option<Located<PathBuf>>,
    default_upstream: Option<Located<String>>,
    /// By the `Host` header.
    hosts: BTreeMap<String, Located<String>>,
    peers: Peers,
    shared: shared::Keys,
    /// Those of the file.
    configured: Vec<Configured>,
    /// The others.
    builtin: Vec<Upstream>,
}

// === impl Draft ===

impl Draft {
    fn read(mut root: Section<'_>, files: &dyn Files, mistakes: &mut Mistakes) -> Self {
        later(&mut root, mistakes, "public_url", "remove it; links in answers are relative");
        let has_builtin = boolean(&mut root, mistakes, "builtin_upstreams");
        let draft = Self {
            listen: root.take("listen").map(|node| listeners(&node, mistakes)),
            admin: text(&mut root, mistakes, "admin", value::address),
            admin_token_file: text(&mut root, mistakes, "admin_token_file", |text| {
                token::file(text, files)
            }),
            data: text(&mut root, mistakes, "data", value::path),
            offline: boolean(&mut root, mistakes, "offline"),
            budget: root.take("budget").and_then(|node| {
                let budget = budget(&node);
                mistakes.keep(node.at, budget)
            }),
            low_watermark: text(&mut root, mistakes, "low_watermark", value::percent),
            ttl: text(&mut root, mistakes, "ttl", value::ttl),
            untagged_ttl: text(&mut root, mistakes, "untagged_ttl", value::ttl),
            pins: pins(&mut root, mistakes),
            scrub: text(&mut root, mistakes, "scrub", value::scrub),
            tls_cert: text(&mut root, mistakes, "tls_cert", value::path),
            tls_key: text(&mut root, mistakes, "tls_key", value::path),
            default_upstream: text(&mut root, mistakes, "default_upstream", |text| {
                Ok(text.to_owned())
            }),
            hosts: hosts(&mut root, mistakes),
            peers: Peers::read(&mut root, files, mistakes),
            shared: shared::Keys::read(&mut root, files, mistakes),
            configured: upstreams(&mut root, files, mistakes),
            builtin: match has_builtin {
                Some(Located { value: false, .. }) => Vec::new(),
                _ => builtin::upstreams().collect(),
            },
        };
        root.finish(mistakes);
        draft
    }

    fn override_with(&mut self, overrides: &Overrides, mistakes: &mut Mistakes) {
        if !overrides.listen.is_empty() {
            let listen = overrides.listen.iter();
            let listen = listen.filter_map(|it| given(it, mistakes, value::listener)).collect();
            self.listen = Some(listen);
        }
        replace(&mut self.admin, &overrides.admin, mistakes, value::address);
        replace(&mut self.data, &overrides.data, mistakes, value::path);
        replace(&mut self.offline, &overrides.offline, mistakes, value::boolean);
        replace(&mut self.budget, &overrides.budget, mistakes, value::budget);
        replace(&mut self.tls_cert, &overrides.tls_cert, mistakes, value::path);
        replace(&mut self.tls_key, &overrides.tls_key, mistakes, value::path);
        replace(&mut self.shared.advertise, &overrides.advertise, mistakes, shared::advertise);
        replace(&mut self.default_upstream, &overrides.default_upstream, mistakes, |text| {
            Ok(text.to_owned())
        });
        self.override_upstreams(&overrides.upstreams, mistakes);
    }

    /// Each `HOST=URL` exchanges where an upstream is asked; a host's second one is asked after
    /// its first.
    fn override_upstreams(&mut self, overrides: &[Given], mistakes: &mut Mistakes) {
        let mut seen = Vec::new();
        for given_text in overrides {
            let Some(Located { at, value: (host, url) }) =
                given(given_text, mistakes, host_and_url)
            else {
                continue;
            };
            let is_first = !seen.contains(&host);
            seen.push(host.clone());
            let configured = self.configured.iter_mut().find(|it| it.upstream.host == host);
            let configured = match configured {
                Some(configured) => configured,
                None => {
                    let upstream = Upstream::new(host);
                    let aliases = Vec::new();
                    let (credentials, callers) = (None, None);
                    let added = Configured { at, upstream, aliases, credentials, callers };
                    self.configured.push(added);
                    self.configured.last_mut().expect("one was just added")
                }
            };
            if is_first {
                configured.upstream.urls.clear();
            }
            configured.upstream.urls.push(url);
        }
    }

    /// What is wrong with values beside each other.
    fn check(&mut self, files: &dyn Files, mistakes: &mut Mistakes) {
        self.check_hosts_of_upstreams(mistakes);
        self.check_number_of_urls(mistakes);
        self.builtin
            .retain(|builtin| !self.configured.iter().any(|it| it.upstream.host == builtin.host));
        self.check_aliases(mistakes);
        self.check_named_upstreams(mistakes);
        self.check_passwords_in_the_open(mistakes);
        self.check_addresses(mistakes);
        self.check_peers(mistakes);
        self.check_tls(files, mistakes);
    }

    fn check_hosts_of_upstreams(&self, mistakes: &mut Mistakes) {
        for (index, second) in self.configured.iter().enumerate() {
            let host = &second.upstream.host;
            let first = self.configured[..index].iter().find(|it| it.upstream.host == *host);
            if let Some(first) = first {
                let first = &first.at.place;
                let twice = wrong(format!("{host} is configured at {first} already"));
                mistakes.note(&second.at, twice.advise("put both into one"));
            }
        }
    }

    fn check_number_of_urls(&self, mistakes: &mut Mistakes) {
        for configured in &self.configured {
            let n_urls = configured.upstream.urls.len();
            if n_urls > MAX_URLS {
                let many =
                    wrong(format!("has {n_urls} URLs, and each is tried while a client waits"));
                mistakes.note(&configured.at, many.write(format!("at most {MAX_URLS}")));
            }
        }
    }

    fn check_aliases(&self, mistakes: &mut Mistakes) {
        let mut seen: BTreeMap<&str, &At> = BTreeMap::new();
        for configured in &self.configured {
            for (alias, at) in configured.upstream.alias.iter().zip(&configured.aliases) {
                if let Some(first) = seen.insert(alias, at) {
                    let twice = wrong(format!("`{alias}` is an alias at {} already", first.place));
                    mistakes.note(at, twice.write("another name"));
                }
            }
        }
    }

    fn check_named_upstreams(&self, mistakes: &mut Mistakes) {
        let directory = directory(self.upstreams());
        let mut check = |at: &At, name: &str| {
            if directory.find(name).is_none() {
                let none = wrong(format!("`{}` is no upstream and no alias of one", shown(name)));
                let table = format!("[upstreams.{}]", quoted(&shown(name)));
                mistakes.note(at, none.advise(format!("write one that is, or add {table}")));
            }
        };
        if let Some(Located { at, value }) = &self.default_upstream
            && !value.is_empty()
        {
            check(at, value);
        }
        for Located { at, value } in self.listen.iter().flatten() {
            if let Some(name) = &value.default_upstream {
                check(at, name);
            }
        }
        for Located { at, value } in self.hosts.values() {
            check(at, value);
        }
    }

    /// Refuses to send a password where anyone on the way can read it. Within this machine nobody
    /// is on the way, and who does not check certificates has said that they know.
    fn check_passwords_in_the_open(&self, mistakes: &mut Mistakes) {
        for configured in &self.configured {
            let Upstream { urls, insecure_skip_verify, .. } = &configured.upstream;
            let open = urls.iter().find(|url| value::is_readable_on_the_way(url));
            let secrets = configured.credentials.as_ref().or(configured.callers.as_ref());
            if let (Some(at), Some(url), false) = (secrets, open, insecure_skip_verify) {
                mistakes.note(
                    at,
                    wrong(match configured.credentials {
                        Some(_) => format!("would be sent to {url} for anyone to read"),
                        None => {
                            format!("has callers' credentials sent to {url} for anyone to read")
                        }
                    })
                    .advise(
                        "write an https URL, or insecure_skip_verify = true if that is acceptable",
                    ),
                );
            }
        }
    }

    fn check_addresses(&self, mistakes: &mut Mistakes) {
        let listen = match &self.listen {
            Some(listen) => listen.iter().map(|it| (Some(&it.at), it.value.address)).collect(),
            None => vec![(None, default_listen())],
        };
        let admin = match &self.admin {
            Some(admin) => (Some(&admin.at), admin.value),
            None => (None, default_admin()),
        };
        let all: Vec<(Option<&At>, SocketAddr)> = listen.into_iter().chain([admin]).collect();
        for (index, (at, address)) in all.iter().enumerate() {
            let first = all[..index].iter().find(|(_, it)| it == address && it.port() != 0);
            // What meets a default is wrong itself.
            if let Some((first_at, _)) = first
                && let Some(at) = at.or(*first_at)
            {
                let twice = wrong(format!("{address} is listened on already"));
                mistakes.note(at, twice.write("another port"));
            }
        }
    }

    fn check_peers(&self, mistakes: &mut Mistakes) {
        let is_reachable = match &self.listen {
            Some(listen) => listen.iter().any(|it| !it.value.address.ip().is_loopback()),
            None => !default_listen().ip().is_loopback(),
        };
        self.peers.check(is_reachable, self.shared.is_shared(), mistakes);
        let first = self.listen.as_ref().and_then(|listen| listen.first());
        let first = first.map_or_else(default_listen, |it| it.value.address);
        self.shared.check(&self.peers, first.ip().is_unspecified(), mistakes);
    }

    fn check_tls(&self, files: &dyn Files, mistakes: &mut Mistakes) {
        let names = ["tls_cert", "tls_key"];
        certificate::check(self.tls_cert.as_ref(), self.tls_key.as_ref(), names, files, mistakes);
    }

    fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        self.configured.iter().map(|it| &it.upstream).chain(&self.builtin)
    }

    /// The configuration, of a draft that was found right.
    fn finish(self, environment: &Environment<'_>) -> Config {
        let configured = self.configured.into_iter().map(|it| it.upstream);
        let upstreams = in_order(configured.chain(self.builtin));
        let listen = match self.listen {
            Some(listen) => listen.into_iter().map(|it| it.value).collect(),
            None => vec![Listener { address: default_listen(), default_upstream: None }],
        };
        let default_upstream = match self.default_upstream {
            Some(Located { value, .. }) => Some(value).filter(|name| !name.is_empty()),
            None => {
                let has_docker_hub = directory(upstreams.iter()).find(DOCKER_HUB).is_some();
                has_docker_hub.then(|| DOCKER_HUB.to_owned())
            }
        };
        let tls = self.tls_cert.zip(self.tls_key);
        let usual = Retention::default();
        Config {
            listen,
            admin: self.admin.map_or_else(default_admin, |it| it.value),
            admin_token_file: self.admin_token_file.map(|it| it.value),
            data: self.data.map_or_else(|| environment.default_data.clone(), |it| it.value),
            offline: self.offline.is_some_and(|it| it.value),
            budget: self.budget.map(|it| it.value),
            low_watermark: self.low_watermark.map_or(LOW_WATERMARK, |it| it.value),
            ttl: self.ttl.map_or(usual.ttl, |it| it.value),
            untagged_ttl: self.untagged_ttl.map_or(usual.superseded, |it| it.value),
            pins: self.pins,
            peers: self.peers.entries.into_iter().map(|it| it.value).collect(),
            peers_ca: self.peers.ca.map(|it| it.value),
            shared: self.shared.finish(),
            scrub: Some(self.scrub.map_or(DEFAULT_SCRUB, |it| it.value)).filter(|it| !it.is_zero()),
            tls: tls.map(|(cert, key)| TlsFiles { cert: cert.value, key: key.value }),
            default_upstream,
            hosts: self.hosts.into_iter().map(|(name, it)| (name, it.value)).collect(),
            upstreams,
        }
    }
}

/// Often enough that what a disk loses is found before the last other copy is gone, and rare enough
/// that a full disk of 4 TB is read at 1.5 MB/s.
const DEFAULT_SCRUB: Duration = Duration::from_secs(30 * 24 * 3600);

/// Upstreams as [`Config::upstreams`] has them: what is more special counts first.
pub(crate) fn in_order(upstreams: impl Iterator<Item = Upstream>) -> Vec<Upstream> {
    let mut upstreams: Vec<Upstream> = upstreams.collect();
    upstreams.sort_by_cached_key(|upstream| {
        let text = upstream.host.as_str();
        (upstream.host.is_any(), text.matches('*').count(), text.to_owned())
    });
    upstreams
}

fn default_listen() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 5000))
}

fn default_admin() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 5001))
}

/// By which names upstreams are known.
fn directory<'u>(upstreams: impl Iterator<Item = &'u Upstream>) -> Directory {
    let mut directory = Directory::default();
    for (index, upstream) in upstreams.enumerate() {
        directory.add(index, &upstream.host, &upstream.alias);
    }
    directory
}

// === flags and variables ===

fn given<T>(
    given: &Given,
    mistakes: &mut Mistakes,
    parse: impl FnOnce(&str) -> Result<T, Wrong>,
) -> Option<Located<T>> {
    let at = At { place: Place::Given(given.origin.clone()), key: None };
    mistakes.keep(at, parse(&given.text))
}

fn replace<T>(
    value: &mut Option<Located<T>>,
    by: &Option<Given>,
    mistakes: &mut Mistakes,
    parse: impl FnOnce(&str) -> Result<T, Wrong>,
) {
    if let Some(by) = by {
        *value = given(by, mistakes, parse);
    }
}

/// `HOST=URL`
fn host_and_url(text: &str) -> Result<(larder_core::address::HostPattern, Url), Wrong> {
    let Some((host, url)) = text.split_once('=') else {
        let what = wrong(format!("`{}` is not HOST=URL", shown(text)));
        return Err(what.write("it as in docker.io=https://mirror.example.org"));
    };
    let url = value::base_url(url, &upstream::HTTP)?;
    let host = upstream::host(host)?;
    match host.is_wildcard() {
        true => Err(wrong(format!("{host} cannot be asked at one URL")).write("one host's name")),
        false => Ok((host, url)),
    }
}

#[cfg(test)]
mod tests;
