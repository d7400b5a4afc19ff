//! What Gardener would refuse.

use std::collections::{BTreeMap, BTreeSet};

use url::Url;

use super::{Cache, Mirror, Mistake, join, mistake};
use crate::quantity;

/// The longest `serviceNameSuffix`: the service is called `registry-` and it, in 63 letters.
const MAX_SUFFIX: usize = 54;

/// Fields that a version of `RegistryConfig` does not have.
pub(super) fn check_version(cache: &Cache, version: &str, path: &str, mistakes: &mut Vec<Mistake>) {
    let collection = cache.garbage_collection.as_ref();
    let fields = [
        ("size", cache.size.is_some(), &["v1alpha1"][..]),
        ("volume", cache.volume.is_some(), &["v1alpha2", "v1alpha3"]),
        (
            "garbageCollection.enabled",
            collection.is_some_and(|it| it.enabled.is_some()),
            &["v1alpha1", "v1alpha2"],
        ),
        ("garbageCollection.ttl", collection.is_some_and(|it| it.ttl.is_some()), &["v1alpha3"]),
        ("remoteURL", cache.remote_url.is_some(), &["v1alpha3"]),
        ("proxy", cache.proxy.is_some(), &["v1alpha3"]),
        ("http", cache.http.is_some(), &["v1alpha3"]),
        ("highAvailability", cache.high_availability.is_some(), &["v1alpha3"]),
        ("serviceNameSuffix", cache.service_name_suffix.is_some(), &["v1alpha3"]),
    ];
    for (field, is_there, versions) in fields {
        if is_there && !versions.contains(&version) {
            let what = format!("{version} has no such field; {} has", versions.join(" or "));
            mistakes.push(mistake(path, field, what));
        }
    }
}

pub(super) fn check_caches(
    caches: &[Cache],
    secrets: Option<&BTreeMap<String, String>>,
    mistakes: &mut Vec<Mistake>,
) {
    let (mut upstreams, mut suffixes) = (BTreeSet::new(), BTreeSet::new());
    for (n, cache) in caches.iter().enumerate() {
        let path = format!("caches[{n}]");
        let mut note = |key: &str, what: Result<(), String>| {
            if let Err(what) = what {
                mistakes.push(mistake(&path, key, what));
            }
        };
        note("upstream", host(&cache.upstream));
        if !upstreams.insert(&cache.upstream) {
            note(
                "upstream",
                Err(format!("`{}` is there already; each upstream has one cache", cache.upstream)),
            );
        }
        if let Some(url) = &cache.remote_url {
            note("remoteURL", base_url(url));
        }
        let volume = cache.volume.as_ref();
        for (key, size) in
            [("size", cache.size.as_ref()), ("volume.size", volume.and_then(|it| it.size.as_ref()))]
        {
            if let Some(size) = size {
                note(key, positive(&size.0));
            }
        }
        if let Some(class) = volume.and_then(|volume| volume.storage_class_name.as_ref()) {
            note("volume.storageClassName", subdomain(class));
        }
        if let Some(ttl) = cache.garbage_collection.as_ref().and_then(|it| it.ttl.as_ref()) {
            note("garbageCollection.ttl", duration(ttl));
        }
        if let Some(proxy) = &cache.proxy {
            for (key, url) in
                [("proxy.httpProxy", &proxy.http_proxy), ("proxy.httpsProxy", &proxy.https_proxy)]
            {
                if let Some(url) = url.as_ref().filter(|url| !url.is_empty()) {
                    note(key, base_url(url));
                }
            }
        }
        if let Some(suffix) = &cache.service_name_suffix {
            note("serviceNameSuffix", label(suffix, MAX_SUFFIX));
            if !suffixes.insert(suffix) {
                note("serviceNameSuffix", Err(format!("`{suffix}` is there already")));
            }
        }
        if let (Some(reference), Some(secrets)) = (&cache.secret_reference_name, secrets)
            && !secrets.contains_key(reference)
        {
            let what = format!("spec.resources of the Shoot has no Secret called `{reference}`");
            note("secretReferenceName", Err(what));
        }
    }
}

pub(super) fn check_mirrors(mirrors: &[Mirror], caches: &[Cache], mistakes: &mut Vec<Mistake>) {
    let mut upstreams = BTreeSet::new();
    for (n, mirror) in mirrors.iter().enumerate() {
        let path = format!("mirrors[{n}]");
        let mut note = |key: &str, what: Result<(), String>| {
            if let Err(what) = what {
                mistakes.push(mistake(&path, key, what));
            }
        };
        note("upstream", host(&mirror.upstream));
        if !upstreams.insert(&mirror.upstream) {
            note("upstream", Err(format!("`{}` is there already", mirror.upstream)));
        }
        if caches.iter().any(|cache| cache.upstream == mirror.upstream) {
            let what = format!("`{}` has a cache; it cannot have mirrors, too", mirror.upstream);
            note("upstream", Err(what));
        }
        if mirror.hosts.is_empty() {
            note("hosts", Err("must have at least one host".to_owned()));
        }
        let mut hosts = BTreeSet::new();
        for (m, host) in mirror.hosts.iter().enumerate() {
            let key = |key: &str| join(&format!("hosts[{m}]"), key);
            note(&key("host"), mirror_url(&host.host));
            if !hosts.insert(&host.host) {
                note(&key("host"), Err(format!("`{}` is there already", host.host)));
            }
            let mut capabilities = BTreeSet::new();
            for capability in &host.capabilities {
                if !["pull", "resolve"].contains(&capability.as_str()) {
                    let what = format!("`{capability}` is none; write pull or resolve");
                    note(&key("capabilities"), Err(what));
                }
                if !capabilities.insert(capability) {
                    note(&key("capabilities"), Err(format!("`{capability}` is there already")));
                }
            }
        }
    }
}

/// `host[:port]`, an RFC 1123 subdomain with a port at most.
fn host(text: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("`{text}` {what}; write HOST or HOST:PORT"));
    if text.is_empty() {
        return wrong("is empty");
    }
    if text.contains("://") {
        return wrong("has a scheme, which does not belong to a registry's host");
    }
    let (name, port) = match text.split_once(':') {
        Some((name, port)) => (name, Some(port)),
        None => (text, None),
    };
    if port.is_some_and(|port| !port.parse::<u16>().is_ok_and(|port| port != 0)) {
        return wrong("has no port of 1 to 65535 behind the colon");
    }
    subdomain(name).or_else(|_| wrong("is no DNS name of lower-case letters, digits, `-` and `.`"))
}

/// `http://` or `https://` with a host, a port and nothing else.
fn base_url(text: &str) -> Result<(), String> {
    let wrong =
        |what: &str| Err(format!("`{text}` {what}; write https://HOST or https://HOST:PORT"));
    let Ok(url) = Url::parse(text) else { return wrong("is no URL") };
    if !matches!(url.scheme(), "http" | "https") {
        return wrong("must begin with http:// or https://");
    }
    if !url.username().is_empty() || url.password().is_some() {
        // Without the text: it has a password in it.
        return Err("has a user in it; name a secret instead".to_owned());
    }
    if url.query().is_some() || url.fragment().is_some() {
        return wrong("has a query or a fragment");
    }
    match url.path() {
        "" | "/" => Ok(()),
        _ => wrong("has a path"),
    }
}

/// `http://` or `https://` with a host; a path may follow, without `.` and `..` in it.
fn mirror_url(text: &str) -> Result<(), String> {
    let wrong = |what: &str| Err(format!("`{text}` {what}; write https://HOST"));
    // The parser would take such parts out.
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    if rest.split('/').any(|part| matches!(part, "." | "..")) {
        return wrong("has `.` or `..` in its path");
    }
    match Url::parse(text) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => Ok(()),
        _ => wrong("must be a URL that begins with http:// or https://"),
    }
}

fn positive(text: &str) -> Result<(), String> {
    match quantity::bytes(text) {
        Some(bytes) if bytes > 0.0 => Ok(()),
        Some(_) => Err(format!("`{text}` must be more than 0")),
        None => Err(format!("`{text}` is no amount; write it as in 10Gi")),
    }
}

/// A duration as Go writes it, which is not negative.
///
/// Source: Go, `time.ParseDuration`.
fn duration(text: &str) -> Result<(), String> {
    if text == "0" {
        return Ok(());
    }
    let wrong = || Err(format!("`{text}` is no duration; write it as in 168h, or 0s for never"));
    let mut rest = match text.strip_prefix('-') {
        Some(rest) if !rest.chars().all(|c| c == '0' || c.is_ascii_alphabetic()) => {
            return Err(format!("`{text}` is negative; write 0s for never"));
        }
        Some(rest) => rest,
        None => text.strip_prefix('+').unwrap_or(text),
    };
    if rest.is_empty() {
        return wrong();
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let (number, unit) = rest.split_at(digits);
        let end = unit.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(unit.len());
        let (unit, after) = unit.split_at(end);
        let is_unit = matches!(unit, "ns" | "us" | "\u{b5}s" | "\u{3bc}s" | "ms" | "s" | "m" | "h");
        if !is_unit || number.parse::<f64>().is_err() {
            return wrong();
        }
        rest = after;
    }
    Ok(())
}

/// A DNS-1123 subdomain.
fn subdomain(text: &str) -> Result<(), String> {
    let is_good = text.len() <= 253 && text.split('.').all(|part| is_label(part, 63));
    is_good.then_some(()).ok_or_else(|| {
        format!("`{text}` is no DNS name; write lower-case letters, digits, `-` and `.`")
    })
}

/// A DNS-1123 label.
fn label(text: &str, max: usize) -> Result<(), String> {
    is_label(text, max).then_some(()).ok_or_else(|| {
        format!("`{text}` is no DNS label; write lower-case letters, digits and `-`, {max} at most")
    })
}

fn is_label(text: &str, max: usize) -> bool {
    let is_good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=max).contains(&text.len())
        && text.chars().all(is_good)
        && !text.starts_with('-')
        && !text.ends_with('-')
}
