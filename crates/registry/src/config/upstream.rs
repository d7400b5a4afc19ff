//! Reading `[upstreams."HOST"]`.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use humantime::format_duration;
use ipnet::IpNet;
use larder_core::access::Bounds;
use larder_core::address::HostPattern;
use larder_core::name::{DOCKER_HUB, Host};
use larder_core::retention::{RepositoryPattern, Ttl};
use larder_upstream::{ClientCertificate, Credentials, Secret};
use url::Url;

use super::certificate;
use super::document::{Node, Section};
use super::files::Files;
use super::mistake::{At, Located, Mistakes, Wrong, wrong};
use super::value::{self, shown};
use super::{Access, Origin, TagFreshness, Upstream};

/// Schemes of an upstream.
pub(super) const HTTP: [&str; 2] = ["https", "http"];
/// Schemes of a proxy.
const PROXY: [&str; 4] = ["http", "https", "socks5", "socks5h"];
/// The most connections for one blob. More would look like an attack to some registries.
const MAX_PARALLEL: i64 = 16;

/// Requests that are under way to one upstream at a time. More than any node pulls, and with each a
/// connection and a file far below the files that a process may open.
const MAX_REQUESTS: usize = 256;
/// How long an upstream may be silent: less, and every hiccup is an outage; more, and containerd has
/// given the pull up.
const MIN_READ_TIMEOUT: Duration = Duration::from_secs(1);
const MAX_READ_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a caller's right counts before upstream is asked again: as long as a pull of a usual image
/// takes, so that not each of its layers is asked about. Longer than five minutes, and who has lost
/// the right would notice it late: tokens of registries live as long.
const DEFAULT_MEMORY: Duration = Duration::from_secs(60);
const MAX_MEMORY: Duration = Duration::from_secs(5 * 60);

/// How long it counts while upstream cannot be asked.
const DEFAULT_GRACE: Duration = Duration::from_secs(10 * 60);
const MAX_GRACE: Duration = Duration::from_secs(24 * 3600);

/// An upstream as it was configured, with the places that matter beside other upstreams.
#[derive(Debug)]
pub(super) struct Configured {
    /// Where the upstream stands.
    pub(super) at: At,
    pub(super) upstream: Upstream,
    /// Where each of the upstream's aliases stands.
    pub(super) aliases: Vec<At>,
    /// Where the credentials stand, if there are any.
    pub(super) credentials: Option<At>,
    /// Where it is said that callers' own count, if they do.
    pub(super) callers: Option<At>,
}

impl Upstream {
    /// An upstream with the defaults.
    pub(super) fn new(host: HostPattern) -> Self {
        Self {
            origin: Origin::Configuration,
            urls: host.exact().and_then(default_url).into_iter().collect(),
            host,
            alias: Vec::new(),
            freshness: Duration::from_secs(60),
            deadline: Duration::from_secs(2),
            access: Access::Shared,
            serve_deleted: false,
            credentials: Credentials::Anonymous,
            proxy: None,
            ca: None,
            client_certificate: None,
            insecure_skip_verify: false,
            quota: None,
            ttl: None,
            repositories: Vec::new(),
            parallel: 1,
            tags: Vec::new(),
            addresses: Vec::new(),
            read_timeout: Duration::from_secs(30),
            max_requests: MAX_REQUESTS,
            max_rate: None,
            allow: Vec::new(),
            deny: Vec::new(),
            description: None,
        }
    }
}

/// Where a host is asked unless someone says. `None`: it can be in no URL, as it pretends to be
/// internationalised (`xn--…`) and is not.
pub(crate) fn default_url(host: &Host) -> Option<Url> {
    let name = match host.as_str() {
        DOCKER_HUB => "registry-1.docker.io",
        name => name,
    };
    Url::parse(&format!("https://{name}")).ok()
}

/// The host, or hosts, that an upstream is configured for.
pub(super) fn host(text: &str) -> Result<HostPattern, Wrong> {
    let no_host = || {
        wrong(format!("`{}` is not a registry's host", shown(text)))
            .write("HOST, HOST:PORT, * for a whole label as in *.gcr.io, or * alone for any host")
    };
    let pattern: HostPattern = text.parse().map_err(|_| no_host())?;
    match pattern.exact() {
        Some(host) if default_url(host).is_none() => Err(no_host()),
        Some(host) if !Host::looks_like(host.as_str()) => {
            Err(wrong(format!("`{host}` has no dot and no port, so no image can name it"))
                .write("HOST.DOMAIN or HOST:PORT, and the short name as its alias"))
        }
        _ => Ok(pattern),
    }
}

/// Reads one upstream. What is wrong is noted and has its default.
pub(super) fn read(
    name: &str,
    node: Node<'_>,
    files: &dyn Files,
    mistakes: &mut Mistakes,
) -> Option<Configured> {
    let at = node.at.clone();
    let pattern = mistakes.keep(at.clone(), host(name));
    let section = mistakes.keep(at.clone(), node.section());
    let (pattern, section) = (pattern?.value, section?.value);
    let upstream = Upstream::new(pattern);
    let mut reader = Reader { section, files, mistakes };
    let configured = reader.upstream(upstream, at);
    reader.section.finish(mistakes);
    Some(configured)
}

struct Reader<'d, 'r> {
    section: Section<'d>,
    files: &'r dyn Files,
    mistakes: &'r mut Mistakes,
}

// === impl Reader ===

impl<'d> Reader<'d, '_> {
    fn upstream(&mut self, default: Upstream, at: At) -> Configured {
        let is_wildcard = default.host.is_wildcard();
        let urls = self.texts("urls", |text| value::base_url(text, &HTTP));
        let aliases = self.texts("alias", value::alias);
        self.refuse_for_wildcard(is_wildcard, "urls", urls.first().map(|it| &it.at));
        self.refuse_for_wildcard(is_wildcard, "alias", aliases.first().map(|it| &it.at));
        let credentials = self.credentials(&default.host);
        let (access, callers) = self.access();
        let upstream = Upstream {
            origin: default.origin,
            urls: match urls.is_empty() {
                true => default.urls,
                false => values(urls),
            },
            alias: aliases.iter().map(|alias| alias.value.clone()).collect(),
            freshness: self.text("freshness", value::freshness).unwrap_or(default.freshness),
            tags: self.tags(),
            addresses: self.addresses(default.host.is_any()),
            read_timeout: self.text("read_timeout", read_timeout).unwrap_or(default.read_timeout),
            max_requests: self.count("max_requests", 100_000).unwrap_or(default.max_requests),
            max_rate: self.count("max_rate", 100_000).and_then(NonZeroU32::new),
            deadline: self.text("deadline", deadline).unwrap_or(default.deadline),
            access,
            serve_deleted: self.boolean("serve_deleted"),
            credentials: credentials.as_ref().map_or(default.credentials, |it| it.value.clone()),
            proxy: self.text("proxy", |text| value::base_url(text, &PROXY)),
            ca: self.ca(),
            client_certificate: self.client_certificate(),
            insecure_skip_verify: self.boolean("insecure_skip_verify"),
            quota: self.quota(),
            ttl: self.text("ttl", value::ttl),
            repositories: self.repositories(),
            parallel: self.count("parallel", MAX_PARALLEL).unwrap_or(default.parallel),
            allow: values(self.texts("allow", value::glob)),
            deny: values(self.texts("deny", value::glob)),
            description: self.text("description", |text| Ok(text.to_owned())),
            host: default.host,
        };
        let aliases = aliases.into_iter().map(|alias| alias.at).collect();
        let credentials = credentials.map(|it| it.at);
        if let Some(at) = &callers {
            self.refuse_beside_callers(&upstream, at, credentials.as_ref());
        }
        Configured { at, upstream, aliases, credentials, callers }
    }

    /// Who may read what is stored, and where it stands if callers' own credentials decide.
    fn access(&mut self) -> (Access, Option<At>) {
        let node = self.section.take("access");
        let is_said = node.is_some();
        let is_callers = node.and_then(|node| {
            let value = node.text().and_then(|text| match text {
                "shared" => Ok(false),
                "caller" => Ok(true),
                other => Err(wrong(format!("`{}` is no kind of access", shown(other)))
                    .write("\"shared\" or \"caller\"")),
            });
            self.mistakes.keep(node.at, value)
        });
        let memory = self.access_time("access_memory", MAX_MEMORY);
        let grace = self.access_time("access_grace", MAX_GRACE);
        match is_callers {
            Some(Located { at, value: true }) => {
                let memory = memory.map_or(DEFAULT_MEMORY, |it| it.value);
                let grace = grace.map_or(DEFAULT_GRACE, |it| it.value);
                (Access::Caller(Bounds { memory, grace }), Some(at))
            }
            // What is wrong itself is not said twice.
            None if is_said => (Access::Shared, None),
            _ => {
                for Located { at, .. } in memory.into_iter().chain(grace) {
                    let wrong = wrong("has no effect where everyone may read");
                    self.mistakes.note(&at, wrong.advise("remove it, or add access = \"caller\""));
                }
                (Access::Shared, None)
            }
        }
    }

    /// The value of `key`: a time up to `max`.
    fn access_time(&mut self, key: &'static str, max: Duration) -> Option<Located<Duration>> {
        let node = self.section.take(key)?;
        let value = node.text().and_then(value::duration).and_then(|time| match time <= max {
            true => Ok(time),
            false => {
                let long = format!("{} is longer than a right may count", format_duration(time));
                Err(wrong(long).write(format!("0s to {}", format_duration(max))))
            }
        });
        self.mistakes.keep(node.at, value)
    }

    /// Refuses what makes no sense where each caller's own credential decides.
    fn refuse_beside_callers(&mut self, upstream: &Upstream, at: &At, credentials: Option<&At>) {
        if let Some(at) = credentials {
            let unused = wrong("are never used with access = \"caller\": each caller's own are");
            self.mistakes.note(at, unused.advise("remove them, or write access = \"shared\""));
        }
        if upstream.client_certificate.is_some() {
            let ours = wrong("would let every caller in where our client certificate is let in");
            self.mistakes.note(at, ours.advise("remove client_cert and client_key"));
        }
        if upstream.serve_deleted {
            let nobody = wrong("leaves nobody a right to what upstream has no more");
            self.mistakes.note(at, nobody.advise("remove serve_deleted"));
        }
    }

    fn refuse_for_wildcard(&mut self, is_wildcard: bool, key: &str, at: Option<&At>) {
        if let (true, Some(at)) = (is_wildcard, at) {
            let wrong = wrong(format!("`{key}` cannot stand for several hosts at once"));
            self.mistakes.note(at, wrong.advise("remove it, or configure one host by its name"));
        }
    }

    /// The value of `key`, read as text by `parse`.
    fn text<T>(
        &mut self,
        key: &'static str,
        parse: impl FnOnce(&str) -> Result<T, Wrong>,
    ) -> Option<T> {
        let node = self.section.take(key)?;
        let value = node.text().and_then(parse);
        self.mistakes.keep(node.at, value).map(|it| it.value)
    }

    /// The values of `key`: one text or a list of several.
    fn texts<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&str) -> Result<T, Wrong>,
    ) -> Vec<Located<T>> {
        let Some(node) = self.section.take(key) else { return Vec::new() };
        let items = node.items();
        if items.is_empty() {
            self.mistakes.note(&node.at, wrong("is empty").advise("remove it, or write one"));
        }
        let keep = |item: Node<'d>| {
            let value = item.text().and_then(&parse);
            self.mistakes.keep(item.at, value)
        };
        items.into_iter().filter_map(keep).collect()
    }

    fn boolean(&mut self, key: &'static str) -> bool {
        let Some(node) = self.section.take(key) else { return false };
        let value = node.boolean();
        self.mistakes.keep(node.at, value).is_some_and(|it| it.value)
    }

    /// The value of `key`: a whole number from 1 to `max`.
    fn count<N: TryFrom<i64>>(&mut self, key: &'static str, max: i64) -> Option<N> {
        let node = self.section.take(key)?;
        let number = node.integer().filter(|number| (1..=max).contains(number));
        let value = number.and_then(|number| N::try_from(number).ok());
        let value =
            value.ok_or_else(|| wrong("must be a whole number").write(format!("1 to {max}")));
        self.mistakes.keep(node.at, value).map(|it| it.value)
    }

    /// How long the answers for some tags count.
    fn tags(&mut self) -> Vec<TagFreshness> {
        let missing = || {
            wrong("must say which tags, and how long their answers count")
                .write("{ match = \"v*\", freshness = \"forever\" }")
        };
        self.rules("tags", missing, |reader| {
            let matching = reader.text("match", value::tag_glob);
            let freshness = reader.text("freshness", value::freshness);
            let (matching, freshness) = matching.zip(freshness)?;
            Some(TagFreshness { matching, freshness })
        })
    }

    /// The tables of `key`, each read by `read`, which finds all it needs or leaves a mistake;
    /// `missing` is said of one that lacks a part.
    fn rules<T>(
        &mut self,
        key: &'static str,
        missing: impl Fn() -> Wrong,
        read: impl Fn(&mut Reader<'d, '_>) -> Option<T>,
    ) -> Vec<T> {
        let Some(node) = self.section.take(key) else { return Vec::new() };
        let mut rules = Vec::new();
        for item in node.items() {
            let Some(section) = self.mistakes.keep(item.at.clone(), item.section()) else {
                continue;
            };
            let n_before = self.mistakes.len();
            let mut reader =
                Reader { section: section.value, files: self.files, mistakes: &mut *self.mistakes };
            let rule = read(&mut reader);
            let Reader { section, .. } = reader;
            section.finish(self.mistakes);
            match rule {
                Some(rule) => rules.push(rule),
                None if self.mistakes.len() > n_before => {}
                None => self.mistakes.note(&item.at, missing()),
            }
        }
        rules
    }

    /// How many bytes what was fetched may take.
    fn quota(&mut self) -> Option<u64> {
        let node = self.section.take("quota")?;
        let quota = match node.integer() {
            Some(bytes) => value::quota(&bytes.to_string()),
            None => node.text().and_then(value::quota),
        };
        self.mistakes.keep(node.at, quota).map(|it| it.value)
    }

    /// How long the content of some repositories may go unused.
    fn repositories(&mut self) -> Vec<(RepositoryPattern, Ttl)> {
        let missing = || {
            wrong("must say which repositories, and how long their content may go unused")
                .write("{ match = \"library/*\", ttl = \"30d\" }")
        };
        self.rules("repositories", missing, |reader| {
            let matching = reader.text("match", value::repository_pattern);
            let ttl = reader.text("ttl", value::ttl);
            matching.zip(ttl)
        })
    }

    fn addresses(&mut self, is_any: bool) -> Vec<IpNet> {
        let addresses = self.texts("addresses", value::network);
        if let (false, Some(first)) = (is_any, addresses.first()) {
            let wrong = wrong("only the upstream \"*\" is kept from private addresses");
            self.mistakes.note(&first.at, wrong.advise("remove it: this one may be anywhere"));
        }
        values(addresses)
    }

    fn ca(&mut self) -> Option<PathBuf> {
        let files = self.files;
        self.text("ca", |text| Ok(certificate::authorities(text, files)?.0))
    }

    fn client_certificate(&mut self) -> Option<ClientCertificate> {
        let mut path = |key| {
            let node = self.section.take(key)?;
            let path = node.text().and_then(value::path);
            self.mistakes.keep(node.at, path)
        };
        let (cert, key) = (path("client_cert"), path("client_key"));
        let names = ["client_cert", "client_key"];
        certificate::check(cert.as_ref(), key.as_ref(), names, self.files, self.mistakes);
        let (cert, key) = cert.zip(key)?;
        Some(ClientCertificate { cert: cert.value, key: key.value })
    }

    fn credentials(&mut self, host: &HostPattern) -> Option<Located<Credentials>> {
        let node = self.section.take("credentials")?;
        let section = self.mistakes.keep(node.at.clone(), node.section())?.value;
        let n_before = self.mistakes.len();
        let mut reader = Reader { section, files: self.files, mistakes: &mut *self.mistakes };
        let username = reader.text("username", not_empty);
        let password = reader.text("password", not_empty).map(Secret::from);
        let password_file = reader.text("password_file", value::path);
        let docker_config = reader.text("docker_config", value::path);
        let Reader { section, .. } = reader;
        section.finish(self.mistakes);
        if self.mistakes.len() > n_before {
            return None;
        }
        let credentials = match (username, password, password_file, docker_config) {
            (Some(_), _, _, None) if host.is_any() => {
                Err(wrong("would be shown to every registry that anybody asks for")
                    .write("{ docker_config }, which has a login for each registry"))
            }
            (Some(username), Some(password), None, None) => {
                Ok(Credentials::Basic { username, password })
            }
            (Some(username), None, Some(path), None) => {
                Ok(Credentials::PasswordFile { username, path })
            }
            (None, None, None, Some(path)) => Ok(Credentials::DockerConfig(path)),
            _ => Err(wrong("must be one way to log in")
                .write("{ username, password }, { username, password_file } or { docker_config }")),
        };
        let checked = credentials.and_then(|it| check_credentials(it, host, self.files));
        self.mistakes.keep(node.at, checked)
    }
}

/// Credentials that can be read, and are for `host`.
fn check_credentials(
    credentials: Credentials,
    host: &HostPattern,
    files: &dyn Files,
) -> Result<Credentials, Wrong> {
    let exact = host.exact();
    // With a wildcard, each host is looked up when it is asked; until then any will do.
    let any = "localhost".parse().expect("localhost is a host");
    let has_login =
        credentials.has_login(exact.unwrap_or(&any), |path| files.read(path)).map_err(|error| {
            let advice = "write a file that can be read and holds them";
            wrong(with_causes(&error)).advise(advice)
        })?;
    match exact {
        Some(host) if !has_login => Err(wrong(format!(
            "the file has no login for {host} (credential helpers are not asked)"
        ))
        .advise(format!("log in with `docker login {host}`"))),
        _ => Ok(credentials),
    }
}

fn read_timeout(text: &str) -> Result<Duration, Wrong> {
    match value::duration(text)? {
        duration if (MIN_READ_TIMEOUT..=MAX_READ_TIMEOUT).contains(&duration) => Ok(duration),
        _ => Err(wrong(format!("`{}` is too short or too long", shown(text))).write("1s to 5m")),
    }
}

fn deadline(text: &str) -> Result<Duration, Wrong> {
    match value::duration(text)? {
        Duration::ZERO => Err(wrong("with no time at all, upstream is never heard").write("2s")),
        duration => Ok(duration),
    }
}

fn not_empty(text: &str) -> Result<String, Wrong> {
    match text {
        "" => Err(wrong("is empty").advise("remove `credentials` to ask as nobody")),
        text => Ok(text.to_owned()),
    }
}

/// A file that cannot be read.
pub(super) fn cannot_read(path: &str, error: &std::io::Error) -> Wrong {
    wrong(format!("reading `{}`: {error}", shown(path))).write("a path that can be read")
}

/// `error: cause: cause`
pub(super) fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

fn values<T>(located: Vec<Located<T>>) -> Vec<T> {
    located.into_iter().map(|it| it.value).collect()
}
