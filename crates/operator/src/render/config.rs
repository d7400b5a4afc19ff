//! What replicas are told: the configuration of `larder serve` that a spec means.
//!
//! Keys that count at once and those that count from the next start are kept apart, since only the
//! latter are a reason to start replicas again.

use std::collections::BTreeMap;
use std::time::Duration;

use larder_core::address::HostPattern;
use larder_k8s::cache::{Access, Upstream};
use larder_k8s::quantity;
use toml::{Table, Value};

use super::services::{Place, peers};
use super::{ADMIN_PORT, PORT, Problem, Scope};
use crate::credentials::Login;
use crate::names::{hash, short_hash};
use crate::storage::Storage;

/// Where the files are in a replica's pod.
pub(crate) const CONFIG_DIRECTORY: &str = "/etc/larder/config";
pub(crate) const CREDENTIALS_DIRECTORY: &str = "/etc/larder/credentials";
pub(crate) const CERTIFICATE_DIRECTORY: &str = "/etc/larder/tls";
pub(crate) const STORAGE_DIRECTORY: &str = "/etc/larder/storage";
pub(crate) const DATA_DIRECTORY: &str = "/var/lib/larder";

/// How long content may go unused where nobody has said.
const DEFAULT_TTL: &str = "168h";

/// The most of a volume that may be used where nobody has said.
const DEFAULT_BUDGET: &str = "90%";

/// The longest duration that a configuration can have.
const MAX_DURATION: Duration = Duration::from_secs(365 * 24 * 3600);

/// What replicas are told.
#[derive(Debug, Default)]
pub(crate) struct Config {
    /// Counts at once.
    live: Table,
    /// Counts from the next start on.
    fixed: Table,
    /// Certificates that it names: names and PEM.
    pub(crate) certificates: BTreeMap<String, String>,
    /// Credentials that it names: names and contents.
    pub(crate) credentials: BTreeMap<String, String>,
    /// What of the spec could not be done.
    pub(crate) problems: Vec<Problem>,
}

/// What is known besides the spec.
#[derive(Debug)]
pub(crate) struct Known<'a> {
    /// The replicas' services.
    pub(crate) places: &'a BTreeMap<u32, Place>,
    /// The logins that there are, by upstream.
    pub(crate) logins: &'a BTreeMap<String, Login>,
    /// Bucket and database, if they are shared.
    pub(crate) storage: Option<&'a Storage>,
}

// === impl Config ===

impl Config {
    /// What `scope`'s spec means. What cannot be done is left out, and said in `problems`.
    pub(crate) fn render(scope: Scope<'_>, known: &Known<'_>) -> Self {
        let mut config = Self::default();
        config.fix(scope, known);
        let spec = &scope.cache.spec;
        let ttl = spec.garbage_collection.as_ref().and_then(|it| it.ttl.as_deref());
        let field = "garbageCollection.ttl";
        if let Some(ttl) = config.duration(field, field, ttl.unwrap_or(DEFAULT_TTL)) {
            config.live.insert("ttl".to_owned(), ttl);
        }
        let mut upstreams = Table::new();
        let mut seen = BTreeMap::new();
        for (index, upstream) in spec.upstreams.iter().enumerate() {
            let host = &upstream.upstream;
            let field = format!("upstreams[{index}]");
            if let Some((first, name)) = seen.insert(called(host), (index, host)) {
                let what = format!(
                    "{host}: is another name of {name}, which is upstreams[{first}] already; put both into one"
                );
                config.problems.push(Problem::new("SpecInvalid", what).at(field));
                continue;
            }
            let login = known.logins.get(host);
            if let Some(table) = config.upstream(&field, upstream, login) {
                upstreams.insert(upstream.upstream.clone(), table.into());
            }
        }
        config.live.insert("upstreams".to_owned(), upstreams.into());
        config
    }

    /// The file. `advertise` is where the others reach the replica whose file it is, if that has to be
    /// said.
    pub(crate) fn text(&self, advertise: Option<&str>) -> String {
        let mut whole = self.fixed.clone();
        whole.extend(self.live.clone());
        if let Some(url) = advertise {
            whole.insert("advertise".to_owned(), url.into());
        }
        toml::to_string(&whole).expect("tables with text for keys can be written")
    }

    /// Differs where replicas have to start again.
    pub(crate) fn restart(&self) -> String {
        hash(&toml::to_string(&self.fixed).expect("tables with text for keys can be written"))
    }

    fn fix(&mut self, scope: Scope<'_>, known: &Known<'_>) {
        let spec = &scope.cache.spec;
        // The family that the cluster gives services is the one that pods are reached by.
        let is_six = known.places.values().next().is_some_and(|it| it.cluster_ip.contains(':'));
        let any = if is_six { "[::]" } else { "0.0.0.0" };
        let budget = spec.garbage_collection.as_ref().and_then(|it| it.budget.clone());
        let mut fixed: Vec<(&str, Value)> = vec![
            ("listen", format!("{any}:{PORT}").into()),
            ("admin", format!("{any}:{ADMIN_PORT}").into()),
            ("data", DATA_DIRECTORY.into()),
            ("budget", budget.unwrap_or_else(|| DEFAULT_BUDGET.to_owned()).into()),
            ("builtin_upstreams", false.into()),
        ];
        if scope.is_encrypted() {
            fixed.push(("tls_cert", format!("{CERTIFICATE_DIRECTORY}/tls.crt").into()));
            fixed.push(("tls_key", format!("{CERTIFICATE_DIRECTORY}/tls.key").into()));
        }
        let are_several = scope.replicas() > 1;
        if scope.is_encrypted() && (are_several || known.storage.is_some()) {
            fixed.push(("peers_ca", format!("{CERTIFICATE_DIRECTORY}/ca.crt").into()));
        }
        match known.storage {
            Some(storage) => fixed.extend(storage.keys(STORAGE_DIRECTORY)),
            None if are_several => {
                let peers: Vec<String> = peers(scope, known.places).into_values().collect();
                self.live.insert("peers".to_owned(), peers.into());
            }
            None => {}
        }
        self.fixed.extend(fixed.into_iter().map(|(key, value)| (key.to_owned(), value)));
    }

    /// `field` is where `upstream` stands in the spec.
    fn upstream(
        &mut self,
        field: &str,
        upstream: &Upstream,
        login: Option<&Login>,
    ) -> Option<Table> {
        let host = &upstream.upstream;
        let mut table = Table::new();
        let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
        let urls = urls(upstream);
        let asks_plainly = urls.iter().any(|url| url.starts_with("http://"));
        let is_callers = upstream.access == Some(Access::Caller);
        if is_callers && asks_plainly && !upstream.insecure_skip_verify {
            let what = format!(
                "{host}: callers' credentials would be sent without encryption, so it is not served; write https:// in remoteURL and mirrors, or set insecureSkipVerify"
            );
            let problem = Problem::new("CredentialsUnencrypted", what);
            self.problems.push(problem.at(format!("{field}.access")));
            return None;
        }
        if is_callers {
            set("access", "caller".into());
        }
        if is_callers && upstream.secret_ref.is_some() {
            let what = format!(
                "{host}: with access `caller` each caller's own credential counts, and this one is never used; remove it, or write `shared`"
            );
            self.problems.push(Problem::new("SpecInvalid", what).at(format!("{field}.secretRef")));
        }
        match (host.contains('*'), urls.is_empty()) {
            (_, true) => {}
            (true, false) => {
                let what = format!(
                    "{host}: each of its hosts is asked at https://HOST; remove remoteURL and mirrors"
                );
                let key = if upstream.remote_url.is_some() { "remoteURL" } else { "mirrors" };
                self.problems.push(Problem::new("SpecInvalid", what).at(format!("{field}.{key}")));
            }
            (false, false) => drop(set("urls", urls.clone().into())),
        }
        if let Some(freshness) = &upstream.freshness
            && let Some(duration) = self.duration(
                &format!("{field}.freshness"),
                &format!("{host}: freshness"),
                freshness,
            )
        {
            set("freshness", duration);
        }
        if let Some(ttl) = &upstream.ttl
            && let Some(duration) =
                self.duration(&format!("{field}.ttl"), &format!("{host}: ttl"), ttl)
        {
            set("ttl", duration);
        }
        if let Some(quota) = &upstream.quota {
            match quantity::bytes(&quota.0).filter(|it| *it >= 1.0) {
                Some(bytes) => drop(set("quota", Value::Integer(bytes as i64))),
                None => {
                    let what = format!(
                        "{host}: quota `{}` is no amount of bytes; write it as in 100Gi",
                        quota.0
                    );
                    let problem = Problem::new("SpecInvalid", what);
                    self.problems.push(problem.at(format!("{field}.quota")));
                }
            }
        }
        if upstream.insecure_skip_verify {
            set("insecure_skip_verify", true.into());
        }
        if let Some(pem) = &upstream.ca_bundle {
            // Named by what is in it, so that another one counts at once.
            let name = format!("ca-{}.pem", short_hash(pem));
            set("ca", format!("{CONFIG_DIRECTORY}/{name}").into());
            self.certificates.insert(name, pem.clone());
        }
        if let Some(proxy) = proxy(upstream, &urls) {
            set("proxy", proxy.into());
        }
        match login.filter(|_| !is_callers) {
            None => {}
            Some(_) if asks_plainly && !upstream.insecure_skip_verify => {
                let what = format!(
                    "{host}: its password would be sent without encryption, so it is asked without; write https:// in remoteURL and mirrors, or set insecureSkipVerify"
                );
                let problem = Problem::new("CredentialsUnencrypted", what);
                self.problems.push(problem.at(format!("{field}.secretRef")));
            }
            Some(login) => drop(set("credentials", self.credentials_of(host, login).into())),
        }
        Some(table)
    }

    fn credentials_of(&mut self, host: &str, login: &Login) -> Table {
        // Neither letter is part of a host; each stands where the other cannot.
        let name = host.replace([':', '*'], "_");
        let (key, name, content) = match login {
            Login::DockerConfig(json) => ("docker_config", format!("{name}.json"), json.clone()),
            Login::Password { password, .. } => ("password_file", name, password.clone()),
        };
        let mut table = Table::new();
        table.insert(key.to_owned(), format!("{CREDENTIALS_DIRECTORY}/{name}").into());
        if let Login::Password { username, .. } = login {
            table.insert("username".to_owned(), username.clone().into());
        }
        self.credentials.insert(name, content);
        table
    }

    /// `field` is where it stands in the spec, and `what` what it is called.
    fn duration(&mut self, field: &str, what: &str, text: &str) -> Option<Value> {
        match duration(text) {
            Some(duration) => Some(format!("{}ms", duration.as_millis()).into()),
            None => {
                let what = format!(
                    "{what}: `{text}` is no duration of at most a year; write it as in 90s or 168h"
                );
                self.problems.push(Problem::new("SpecInvalid", what).at(field));
                None
            }
        }
    }
}

/// By what name an upstream is known to a cache, which has several for Docker Hub.
fn called(host: &str) -> String {
    host.parse().map_or_else(|_| host.to_owned(), |it: HostPattern| it.as_str().to_owned())
}

/// A duration as Go writes it.
fn duration(text: &str) -> Option<Duration> {
    // More digits than this are longer than a year in any unit, and more than arithmetic bears.
    let is_bearable = text.split(|c: char| !c.is_ascii_digit()).all(|digits| digits.len() <= 18);
    let parsed = is_bearable.then(|| text.parse::<kube::core::Duration>().ok()).flatten()?;
    let is_possible = !parsed.is_negative();
    Some(Duration::from(parsed)).filter(|it| is_possible && *it <= MAX_DURATION)
}

/// Where an upstream is asked, mirrors first; empty if that is where it is by itself.
fn urls(upstream: &Upstream) -> Vec<String> {
    let trimmed = |url: &String| url.trim_end_matches('/').to_owned();
    let own = upstream.remote_url.as_ref().map(trimmed);
    if own.is_none() && upstream.mirrors.is_empty() {
        return Vec::new();
    }
    let host = match upstream.upstream.as_str() {
        "docker.io" => "registry-1.docker.io",
        host => host,
    };
    let own = own.unwrap_or_else(|| format!("https://{host}"));
    let mut urls: Vec<String> = upstream.mirrors.iter().map(trimmed).collect();
    if !urls.contains(&own) {
        urls.push(own);
    }
    urls
}

/// The proxy for what the upstream itself is asked by.
fn proxy(upstream: &Upstream, urls: &[String]) -> Option<String> {
    let proxy = upstream.proxy.as_ref()?;
    match urls.last().is_some_and(|url| url.starts_with("http://")) {
        true => proxy.http_proxy.clone(),
        false => proxy.https_proxy.clone(),
    }
}
