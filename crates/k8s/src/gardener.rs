//! What Gardener's registry-cache and registry-mirror extensions are configured with, and the caches
//! that it becomes.
//!
//! - [`Objects`]: `RegistryConfig` (v1alpha1 to v1alpha3), `MirrorConfig`, and the `Shoot` that they
//!   stand in;
//! - `rules`: what Gardener would refuse, with what a person is told;
//! - [`import`]: our resources.
//!
//! Rules of Gardener that only guard a limit which is not ours are left out: a volume may grow, and a
//! time to live may come back from 0.

mod rules;

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use serde_json::Value;

use crate::cache::{
    GarbageCollection, HighAvailability, Http, Proxy, RegistryCache, RegistryCacheSpec, SecretRef,
    Upstream, Volume,
};
use crate::quantity;

/// How large a volume is that nobody has said a size for.
const DEFAULT_SIZE: &str = "10Gi";

/// How long content may go unused where nobody has said.
const DEFAULT_TTL: &str = "168h";

/// What is wrong with an object, or why it cannot be taken over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct Mistake {
    /// Where, as in `caches[0].upstream`.
    pub path: String,
    /// What is wrong, and what to write instead.
    pub message: String,
}

/// What was found in a file.
#[derive(Debug, Default)]
pub struct Objects {
    caches: Vec<Cache>,
    mirrors: Vec<Mirror>,
    /// Which secret a reference of a `Shoot` means; `None`: there was no `Shoot`.
    secrets: Option<BTreeMap<String, String>>,
}

/// What became of it.
#[derive(Debug, Default)]
pub struct Imported {
    /// Our resources.
    pub caches: Vec<RegistryCache>,
    /// What a person has to know or to do.
    pub notes: Vec<String>,
}

/// An entry of a `RegistryConfig`, of any version.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Cache {
    #[serde(default)]
    upstream: String,
    #[serde(rename = "remoteURL")]
    remote_url: Option<String>,
    /// Of v1alpha1.
    size: Option<Quantity>,
    volume: Option<CacheVolume>,
    garbage_collection: Option<Collection>,
    secret_reference_name: Option<String>,
    proxy: Option<CacheProxy>,
    http: Option<CacheHttp>,
    high_availability: Option<Switch>,
    service_name_suffix: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CacheVolume {
    size: Option<Quantity>,
    storage_class_name: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Collection {
    ttl: Option<String>,
    /// Of v1alpha1 and v1alpha2.
    enabled: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct CacheProxy {
    http_proxy: Option<String>,
    https_proxy: Option<String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CacheHttp {
    tls: Option<bool>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Switch {
    #[serde(default)]
    enabled: bool,
}

/// An entry of a `MirrorConfig`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Mirror {
    #[serde(default)]
    upstream: String,
    #[serde(default)]
    hosts: Vec<MirrorHost>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MirrorHost {
    #[serde(default)]
    host: String,
    #[serde(default)]
    capabilities: Vec<String>,
    ca_bundle_secret_reference_name: Option<String>,
    override_path: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct RegistryConfig {
    #[expect(dead_code, reason = "read where the kind is told")]
    api_version: String,
    #[expect(dead_code, reason = "read where the kind is told")]
    kind: String,
    #[serde(default)]
    caches: Vec<Cache>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MirrorConfig {
    #[expect(dead_code, reason = "read where the kind is told")]
    api_version: String,
    #[expect(dead_code, reason = "read where the kind is told")]
    kind: String,
    #[serde(default)]
    mirrors: Vec<Mirror>,
}

// === reading ===

impl Objects {
    /// Reads the documents of a file. Other objects than Gardener's are mistakes.
    ///
    /// # Errors
    ///
    /// All mistakes, those of Gardener's own rules included.
    pub fn read(documents: &[Value]) -> Result<Self, Vec<Mistake>> {
        let (mut objects, mut mistakes) = (Self::default(), Vec::new());
        for (n, document) in documents.iter().enumerate() {
            let path =
                if documents.len() > 1 { format!("document {}", n + 1) } else { String::new() };
            objects.add(document, &path, &mut mistakes);
        }
        objects.check(&mut mistakes);
        if mistakes.is_empty() { Ok(objects) } else { Err(mistakes) }
    }

    fn add(&mut self, document: &Value, path: &str, mistakes: &mut Vec<Mistake>) {
        let text = |key| document.get(key).and_then(Value::as_str).unwrap_or_default();
        let (version, kind) = (text("apiVersion"), text("kind"));
        match (version.split_once('/').unwrap_or(("", version)), kind) {
            (("registry.extensions.gardener.cloud", version), "RegistryConfig") => {
                self.add_caches(document, version, path, mistakes);
            }
            (("mirror.extensions.gardener.cloud", "v1alpha1"), "MirrorConfig") => {
                match serde_json::from_value::<MirrorConfig>(document.clone()) {
                    Ok(config) if config.mirrors.is_empty() => {
                        mistakes.push(mistake(path, "mirrors", "must have at least one mirror"));
                    }
                    Ok(config) => self.mirrors.extend(config.mirrors),
                    Err(error) => mistakes.push(mistake(path, "", error)),
                }
            }
            (("core.gardener.cloud", _), "Shoot") => self.add_shoot(document, path, mistakes),
            _ => mistakes.push(mistake(
                path,
                "kind",
                format!(
                    "`{version}` `{kind}` is none of Gardener's RegistryConfig, MirrorConfig and Shoot"
                ),
            )),
        }
    }

    fn add_caches(
        &mut self,
        document: &Value,
        version: &str,
        path: &str,
        mistakes: &mut Vec<Mistake>,
    ) {
        if !["v1alpha1", "v1alpha2", "v1alpha3"].contains(&version) {
            let what = format!("version `{version}` is not known; v1alpha1 to v1alpha3 are");
            return mistakes.push(mistake(path, "apiVersion", what));
        }
        match serde_json::from_value::<RegistryConfig>(document.clone()) {
            Ok(config) => {
                if config.caches.is_empty() {
                    mistakes.push(mistake(path, "caches", "must have at least one cache"));
                }
                for (n, cache) in config.caches.iter().enumerate() {
                    let path = join(path, &format!("caches[{n}]"));
                    rules::check_version(cache, version, &path, mistakes);
                }
                self.caches.extend(config.caches);
            }
            Err(error) => mistakes.push(mistake(path, "", error)),
        }
    }

    /// Takes what is in a `Shoot`: the extensions' configurations, and what its references mean.
    fn add_shoot(&mut self, shoot: &Value, path: &str, mistakes: &mut Vec<Mistake>) {
        let list = |key| shoot.pointer(key).and_then(Value::as_array).into_iter().flatten();
        let extensions = list("/spec/extensions").filter(|extension| {
            let name = extension.get("type").and_then(Value::as_str).unwrap_or_default();
            matches!(name, "registry-cache" | "registry-mirror")
        });
        for extension in extensions {
            match extension.get("providerConfig") {
                Some(config) => self.add(config, &join(path, "providerConfig"), mistakes),
                None => mistakes.push(mistake(path, "providerConfig", "is missing")),
            }
        }
        let secrets = list("/spec/resources").filter_map(|resource| {
            let text = |key| Some(resource.pointer(key)?.as_str()?.to_owned());
            (text("/resourceRef/kind")? == "Secret")
                .then_some((text("/name")?, text("/resourceRef/name")?))
        });
        self.secrets.get_or_insert_default().extend(secrets);
    }

    fn check(&self, mistakes: &mut Vec<Mistake>) {
        rules::check_caches(&self.caches, self.secrets.as_ref(), mistakes);
        rules::check_mirrors(&self.mirrors, &self.caches, mistakes);
    }
}

fn mistake(path: &str, key: &str, message: impl ToString) -> Mistake {
    Mistake { path: join(path, key), message: message.to_string() }
}

fn join(path: &str, key: &str) -> String {
    [path, key].into_iter().filter(|it| !it.is_empty()).collect::<Vec<_>>().join(".")
}

// === becoming ours ===

/// Our resources for Gardener's. Upstreams whose caches differ in nothing but size and time share one
/// cache, with a quota each; mirrors become addresses that are asked before their upstream.
///
/// `namespace` is where the caches are to be.
pub fn import(objects: &Objects, namespace: &str) -> Imported {
    let mut imported = Imported::default();
    let mut groups: Vec<(Alike, Vec<&Cache>)> = Vec::new();
    for cache in &objects.caches {
        let alike = Alike::of(cache);
        match groups.iter_mut().find(|(other, _)| *other == alike) {
            Some((_, caches)) => caches.push(cache),
            None => groups.push((alike, vec![cache])),
        }
    }
    let mirrored = objects.mirrors.iter().filter(|mirror| !mirror.hosts.is_empty());
    let mut upstreams: Vec<Upstream> = mirrored.map(|it| mirror(it, &mut imported.notes)).collect();
    if groups.is_empty() && !upstreams.is_empty() {
        groups.push((Alike::of(&Cache::default()), Vec::new()));
    }
    for (n, (alike, caches)) in groups.iter().enumerate() {
        let name = if n == 0 { "registry-cache".to_owned() } else { format!("registry-cache-{n}") };
        let mut spec = alike.spec();
        let is_shared = caches.len() > 1;
        for cache in caches {
            spec.upstreams.push(upstream(cache, objects, is_shared, &mut imported.notes));
        }
        spec.upstreams.append(&mut upstreams);
        let sizes: Vec<Quantity> = caches.iter().map(|cache| size(cache)).collect();
        let volume = spec.volume.get_or_insert_default();
        volume.size = Some(sum(&sizes).unwrap_or(Quantity(DEFAULT_SIZE.to_owned())));
        let mut cache = RegistryCache::new(&name, spec);
        cache.metadata.namespace = Some(namespace.to_owned());
        imported.caches.push(cache);
    }
    imported
}

/// What caches have in common that can be one.
#[derive(PartialEq)]
struct Alike {
    storage_class_name: Option<String>,
    tls: bool,
    highly_available: bool,
}

impl Alike {
    fn of(cache: &Cache) -> Self {
        Self {
            storage_class_name: cache.volume.as_ref().and_then(|it| it.storage_class_name.clone()),
            tls: cache.http.as_ref().and_then(|http| http.tls).unwrap_or(true),
            highly_available: cache.high_availability.as_ref().is_some_and(|it| it.enabled),
        }
    }

    fn spec(&self) -> RegistryCacheSpec {
        let storage_class_name = self.storage_class_name.clone();
        let ttl = Some(DEFAULT_TTL.to_owned());
        RegistryCacheSpec {
            volume: Some(Volume { size: None, storage_class_name }),
            garbage_collection: Some(GarbageCollection { ttl, budget: None }),
            http: Some(Http { tls: Some(self.tls), issuer_ref: None }),
            high_availability: self.highly_available.then_some(HighAvailability { enabled: true }),
            ..RegistryCacheSpec::default()
        }
    }
}

fn upstream(
    cache: &Cache,
    objects: &Objects,
    is_shared: bool,
    notes: &mut Vec<String>,
) -> Upstream {
    let name = &cache.upstream;
    let secret = cache.secret_reference_name.as_ref().map(|reference| {
        match objects.secrets.as_ref().and_then(|secrets| secrets.get(reference)) {
            Some(secret) => secret.clone(),
            None => {
                notes.push(format!(
                    "{name}: `{reference}` is taken for the name of a secret; in a Shoot it is that of an entry of spec.resources"
                ));
                reference.clone()
            }
        }
    });
    if let Some(secret) = &secret {
        notes.push(format!("{name}: copy the secret `{secret}` into the namespace of the cache"));
    }
    if let Some(suffix) = &cache.service_name_suffix {
        notes.push(format!(
            "{name}: serviceNameSuffix `{suffix}` has no meaning here: nodes ask an address of their own"
        ));
    }
    let proxy = cache.proxy.clone().map(|it| Proxy {
        http_proxy: it.http_proxy.filter(|it| !it.is_empty()),
        https_proxy: it.https_proxy.filter(|it| !it.is_empty()),
    });
    Upstream {
        upstream: name.clone(),
        remote_url: cache.remote_url.clone(),
        secret_ref: secret.map(|name| SecretRef { name }),
        proxy: proxy.filter(|it| it.http_proxy.is_some() || it.https_proxy.is_some()),
        ttl: Some(ttl(cache)),
        quota: is_shared.then(|| size(cache)),
        ..Upstream::default()
    }
}

fn mirror(mirror: &Mirror, notes: &mut Vec<String>) -> Upstream {
    let name = &mirror.upstream;
    for host in &mirror.hosts {
        if !host.capabilities.iter().any(|it| it == "resolve") {
            notes.push(format!(
                "{name}: {} may only be pulled from in Gardener; here it is asked what tags name, too",
                host.host
            ));
        }
        if host.ca_bundle_secret_reference_name.is_some() {
            notes.push(format!("{name}: give the cache the CA of {} yourself", host.host));
        }
        if host.override_path == Some(true) {
            notes.push(format!(
                "{name}: {} has a path of its own (overridePath), which is not asked",
                host.host
            ));
        }
    }
    let hosts = mirror.hosts.iter().filter(|host| host.override_path != Some(true));
    Upstream {
        upstream: name.clone(),
        mirrors: hosts.map(|host| host.host.clone()).collect(),
        ..Upstream::default()
    }
}

fn size(cache: &Cache) -> Quantity {
    let volume = cache.volume.as_ref().and_then(|volume| volume.size.clone());
    volume.or(cache.size.clone()).unwrap_or(Quantity(DEFAULT_SIZE.to_owned()))
}

/// How long content may go unused. What was switched off is never collected, as Gardener's own
/// conversion has it.
fn ttl(cache: &Cache) -> String {
    match &cache.garbage_collection {
        Some(Collection { enabled: Some(false), .. }) => "0s".to_owned(),
        Some(Collection { ttl: Some(ttl), .. }) if ttl == "0" => "0s".to_owned(),
        Some(Collection { ttl: Some(ttl), .. }) => ttl.clone(),
        _ => DEFAULT_TTL.to_owned(),
    }
}

/// The sum, in mebibytes, rounded up; `None` if there is nothing, or one cannot be read.
fn sum(sizes: &[Quantity]) -> Option<Quantity> {
    match sizes {
        [] => None,
        [one] => Some(one.clone()),
        several => {
            let bytes = several.iter().map(|size| quantity::bytes(&size.0)).sum::<Option<f64>>()?;
            let mebibytes = (bytes / f64::from(1 << 20)).ceil();
            let whole_gibibytes = mebibytes % 1024.0 == 0.0;
            Some(Quantity(match whole_gibibytes {
                true => format!("{}Gi", mebibytes / 1024.0),
                false => format!("{mebibytes}Mi"),
            }))
        }
    }
}

#[cfg(test)]
mod tests;
