//! What replicas would say to their configuration: `larder serve` reads it before there is a replica.
//!
//! Whatever a person does not write (addresses, certificates) is a stand-in here, as it is not known
//! before the cache is there. So what comes of it depends on the spec and its secrets alone.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use k8s_openapi::jiff::Timestamp;

use super::config::{
    CERTIFICATE_DIRECTORY, CONFIG_DIRECTORY, CREDENTIALS_DIRECTORY, Config, Known,
    STORAGE_DIRECTORY,
};
use super::services::{Place, peers};
use super::{Problem, Scope};
use crate::certificates::{Certificates, Policy, Sans};
use crate::credentials::Login;
use crate::storage::{DATABASE_FIELD, KEYS_FIELD, Storage};

/// What `larder serve` says to a configuration: all that is wrong with it. The second are the files
/// that it may name, by their paths; there are no others.
pub type ConfigCheck = fn(&str, &BTreeMap<String, String>) -> Vec<Mistake>;

/// Something that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The key's path, as TOML writes it.
    pub key: Option<String>,
    /// What is wrong and what to do about it, without secrets.
    pub what: String,
}

/// What of the spec cannot be done: what is left out of the configuration, and what `check` says to
/// the rest.
pub(crate) fn problems(
    scope: Scope<'_>,
    logins: &BTreeMap<String, Login>,
    storage: Option<&Storage>,
    check: ConfigCheck,
) -> Vec<Problem> {
    let places = (0..scope.replicas()).map(place).collect();
    let config = Config::render(scope, &Known { places: &places, logins, storage });
    let peers = peers(scope, &places);
    let text = config.text(peers.values().next().filter(|_| scope.is_shared()).map(String::as_str));
    let mistakes = check(&text, &files(&config, storage));
    let of_serve = mistakes.into_iter().map(|mistake| problem(scope, mistake));
    config.problems.into_iter().chain(of_serve).collect()
}

/// Where a replica might be: one of the addresses that nobody has.
///
/// Source: RFC 5737.
fn place(ordinal: u32) -> (u32, Place) {
    (ordinal, Place { cluster_ip: format!("192.0.2.{}", ordinal + 1), node_port: 30000 })
}

fn files(config: &Config, storage: Option<&Storage>) -> BTreeMap<String, String> {
    let of_storage = storage.map(Storage::files).unwrap_or_default();
    let folders = [
        (CONFIG_DIRECTORY, &config.certificates),
        (CREDENTIALS_DIRECTORY, &config.credentials),
        (STORAGE_DIRECTORY, &of_storage),
        (CERTIFICATE_DIRECTORY, &*CERTIFICATE),
    ];
    let path = |folder: &str, name: &String| format!("{folder}/{name}");
    let all = folders.into_iter().flat_map(|(folder, files)| {
        files.iter().map(move |(name, text)| (path(folder, name), text.clone()))
    });
    all.collect()
}

/// A certificate that nobody shows, for a configuration that names one.
static CERTIFICATE: LazyLock<BTreeMap<String, String>> = LazyLock::new(|| {
    let (now, policy) = (Timestamp::now().as_second(), Policy::default());
    let made = Certificates::default().renew("nobody", &Sans::default(), false, now, &policy);
    let made = made.expect("a key and its certificate need nothing but chance").certificates;
    let mut files = BTreeMap::from([("ca.crt".to_owned(), made.bundle())]);
    if let Some(leaf) = made.leaf {
        files.extend([("tls.crt".to_owned(), leaf.cert), ("tls.key".to_owned(), leaf.key)]);
    }
    files
});

fn problem(scope: Scope<'_>, mistake: Mistake) -> Problem {
    let key = mistake.key.unwrap_or_default();
    let upstreams = scope.cache.spec.upstreams.iter().enumerate();
    let mut of_upstream = upstreams.filter_map(|(index, upstream)| {
        let host = &upstream.upstream;
        // As TOML writes it: with or without quotes.
        let rest = key.strip_prefix("upstreams.")?;
        let rest = rest.strip_prefix(&format!("{host:?}")).or(rest.strip_prefix(host.as_str()))?;
        if !rest.is_empty() && !rest.starts_with('.') {
            return None;
        }
        let (name, number) = parts(rest.trim_start_matches('.'));
        let field = match (name, number) {
            ("urls", Some(n)) if n < upstream.mirrors.len() => format!("mirrors[{n}]"),
            ("urls", _) => "remoteURL".to_owned(),
            ("ca", _) => "caBundle".to_owned(),
            ("insecure_skip_verify", _) => "insecureSkipVerify".to_owned(),
            ("credentials", _) => "secretRef".to_owned(),
            ("", _) => "upstream".to_owned(),
            (same, _) => same.to_owned(),
        };
        Some((format!("upstreams[{index}].{field}"), format!("{host}: {}", mistake.what)))
    });
    if let Some((field, what)) = of_upstream.next() {
        return Problem::new("SpecInvalid", what).at(field);
    }
    let (name, _) = parts(&key);
    let rest = key.strip_prefix(name).unwrap_or_default().trim_start_matches('.');
    let field = match (name, rest) {
        ("budget" | "ttl", _) => format!("garbageCollection.{name}"),
        ("s3", "credentials_file") => KEYS_FIELD.to_owned(),
        ("s3", "path_style") => "storage.s3.pathStyle".to_owned(),
        ("s3", rest) => format!("storage.s3.{rest}").trim_end_matches('.').to_owned(),
        ("index" | "index_password_file", _) => DATABASE_FIELD.to_owned(),
        ("peers", _) => "replicas".to_owned(),
        _ => String::new(),
    };
    let called = if field.is_empty() { &key } else { &field };
    Problem::new("SpecInvalid", format!("{called}: {}", mistake.what)).at(field)
}

/// Of `urls[2]`, or `urls[2].more`, both.
fn parts(key: &str) -> (&str, Option<usize>) {
    let name = key.split(['.', '[']).next().unwrap_or_default();
    let number = key.strip_prefix(name).and_then(|it| it.strip_prefix('['));
    (name, number.and_then(|it| it.split(']').next()?.parse().ok()))
}

#[cfg(test)]
mod tests {
    use larder_k8s::RegistryCache;
    use larder_k8s::cache::{RegistryCacheSpec, Upstream};

    use super::*;
    use crate::names::Names;

    #[test]
    fn what_serve_says_is_said_of_the_field_that_it_comes_from() {
        let upstream = |host: &str, mirrors: &[&str]| Upstream {
            upstream: host.to_owned(),
            mirrors: mirrors.iter().map(|it| (*it).to_owned()).collect(),
            ..Upstream::default()
        };
        let upstreams = vec![upstream("docker.io", &[]), upstream("a.b:5000", &["https://m"])];
        let cache = RegistryCache::new("c", RegistryCacheSpec { upstreams, ..Default::default() });
        let names = Names::of("c");
        let scope = Scope { cache: &cache, names: &names };
        for (key, field, what) in [
            (r#"upstreams."docker.io".proxy"#, "upstreams[0].proxy", "docker.io: wrong"),
            (r#"upstreams."docker.io""#, "upstreams[0].upstream", "docker.io: wrong"),
            (r#"upstreams."a.b:5000".ca"#, "upstreams[1].caBundle", "a.b:5000: wrong"),
            (r#"upstreams."a.b:5000".urls[0]"#, "upstreams[1].mirrors[0]", "a.b:5000: wrong"),
            (r#"upstreams."a.b:5000".urls[1]"#, "upstreams[1].remoteURL", "a.b:5000: wrong"),
            (
                r#"upstreams."docker.io".credentials.docker_config"#,
                "upstreams[0].secretRef",
                "docker.io: wrong",
            ),
            ("budget", "garbageCollection.budget", "garbageCollection.budget: wrong"),
            ("s3.endpoint", "storage.s3.endpoint", "storage.s3.endpoint: wrong"),
            ("s3", "storage.s3", "storage.s3: wrong"),
            ("index", DATABASE_FIELD, "storage.postgresql.secretRef: wrong"),
            ("peers[3]", "replicas", "replicas: wrong"),
            ("listen", "", "listen: wrong"),
        ] {
            let mistake = Mistake { key: Some(key.to_owned()), what: "wrong".to_owned() };
            assert_eq!(problem(scope, mistake), Problem::new("SpecInvalid", what).at(field));
        }
    }

    #[test]
    fn a_configuration_has_all_files_that_it_names() {
        let spec = RegistryCacheSpec {
            upstreams: vec![Upstream {
                upstream: "docker.io".to_owned(),
                ca_bundle: Some("PEM".to_owned()),
                ..Upstream::default()
            }],
            replicas: Some(2),
            ..Default::default()
        };
        let cache = RegistryCache::new("c", spec);
        let names = Names::of("c");
        let logins = [("docker.io".to_owned(), Login::DockerConfig("{}".to_owned()))].into();
        let check: ConfigCheck = |text, files| {
            let named = text.split('"').filter(|it| it.starts_with("/etc/larder"));
            let missing = named.filter(|it| !files.contains_key(*it));
            let peers = usize::from(!text.contains("https://192.0.2.2:5000"));
            assert_eq!((missing.collect::<Vec<_>>(), peers), (vec![], 0), "{text}{files:?}");
            assert_eq!(files.len(), 5);
            Vec::new()
        };
        let scope = Scope { cache: &cache, names: &names };
        assert_eq!(problems(scope, &logins, None, check), []);
    }
}
