use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use larder_k8s::manifest;
use serde_json::{Value, json};

use super::config::{Config, Known};
use super::replicas::Template;
use super::services::Place;
use super::*;
use crate::certificates::Sans;
use crate::credentials::Login;
use crate::storage::Storage;

/// All that a cache is made of, as it was when somebody last looked at it. `LARDER_GOLDEN=write`
/// writes it anew.
#[test]
fn a_small_cache_is_made_of_these_objects() {
    golden("small", &small());
}

#[test]
fn a_cache_with_everything_is_made_of_these_objects() {
    golden("full", &full());
}

#[test]
fn a_cache_in_a_bucket_is_made_of_these_objects() {
    golden("shared", &shared());
}

#[test]
fn equal_facts_make_equal_objects() {
    assert_eq!(objects(&full()), objects(&full()));
}

#[test]
fn nothing_that_is_applied_is_null() {
    fn has_null(value: &Value) -> bool {
        match value {
            Value::Null => true,
            Value::Array(items) => items.iter().any(has_null),
            Value::Object(fields) => fields.values().any(has_null),
            _ => false,
        }
    }
    for cache in [small(), full(), shared()] {
        let with_null: Vec<Value> = objects(&cache).into_iter().filter(has_null).collect();
        assert_eq!(with_null, [Value::Null; 0]);
    }
}

/// What the restricted Pod Security Standard asks of a pod.
#[test]
fn replicas_are_restricted() {
    let pod = stateful_set(&small())["spec"]["template"]["spec"].clone();
    assert_eq!(pod["securityContext"]["runAsNonRoot"], true);
    assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    for key in ["hostNetwork", "hostPID", "hostIPC"] {
        assert_eq!(pod[key], Value::Null);
    }
    for container in pod["containers"].as_array().unwrap() {
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
        assert_eq!(container["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
        assert!(container["ports"].as_array().unwrap().iter().all(|it| it["hostPort"].is_null()));
    }
    for volume in pod["volumes"].as_array().unwrap() {
        assert!(volume["configMap"].is_object() || volume["secret"].is_object(), "{volume}");
    }
}

#[test]
fn no_secret_is_where_everybody_reads() {
    for cache in [full(), shared()] {
        for object in objects(&cache).iter().filter(|it| it["kind"] != "Secret") {
            assert!(!object.to_string().contains("hush"), "{object}");
        }
    }
}

#[test]
fn only_what_cannot_change_while_they_run_starts_replicas_again() {
    let before = full();
    let restart = |cache: &RegistryCache| config(cache).restart();
    let changed = |change: fn(&mut RegistryCacheSpec)| {
        let mut cache = before.clone();
        change(&mut cache.spec);
        assert_ne!(objects(&cache), objects(&before));
        restart(&cache) != restart(&before)
    };
    assert!(!changed(|spec| drop(spec.upstreams.pop())));
    assert!(!changed(|spec| spec.upstreams[0].freshness = Some("1h".to_owned())));
    assert!(!changed(|spec| spec.upstreams[1].secret_ref = None));
    assert!(!changed(|spec| spec.garbage_collection.as_mut().unwrap().ttl = None));
    assert!(!changed(|spec| spec.replicas = Some(4)));
    assert!(changed(|spec| spec.garbage_collection.as_mut().unwrap().budget = None));
    assert!(changed(|spec| spec.http = Some(Http { tls: Some(false), issuer_ref: None })));
}

#[test]
fn the_template_of_volumes_stays_as_it_was_made() {
    let cache = full();
    let names = names(&cache);
    let template =
        Template { size: Quantity("7Gi".to_owned()), storage_class_name: Some("was".to_owned()) };
    let known = replicas::Known { template: Some(template.clone()), ..replicas::Known::default() };
    let rendered = replicas::stateful_set(Scope { cache: &cache, names: &names }, &known);
    assert_eq!(Template::of(&rendered), Some(template));
}

#[test]
fn what_cannot_be_done_is_left_out_and_said() {
    let mut cache = small();
    let with = |change: &dyn Fn(&mut Upstream)| {
        let mut upstream = Upstream { upstream: "a.example".to_owned(), ..Upstream::default() };
        change(&mut upstream);
        upstream
    };
    cache.spec.upstreams = vec![
        with(&|it| {
            it.access = Some(Access::Caller);
            it.remote_url = Some("http://10.0.0.8:5000".to_owned());
        }),
        with(&|it| {
            it.upstream = "*.b.example".to_owned();
            it.remote_url = Some("https://b.example".to_owned());
        }),
        with(&|it| {
            it.upstream = "c.example".to_owned();
            it.ttl = Some("9000h".to_owned());
            it.freshness = Some("99999999999999999999h".to_owned());
            it.quota = Some(Quantity("0".to_owned()));
        }),
        with(&|it| {
            it.upstream = "d.example".to_owned();
            it.remote_url = Some("http://10.0.0.9:5000/".to_owned());
        }),
    ];
    let logins = [("d.example".to_owned(), Login::DockerConfig("{}".to_owned()))].into();
    let names = names(&cache);
    let known = Known { places: &BTreeMap::new(), logins: &logins, storage: None };
    let config = Config::render(Scope { cache: &cache, names: &names }, &known);
    let reasons: Vec<&str> = config.problems.iter().map(|it| it.reason).collect();
    let (invalid, unencrypted) = ("SpecInvalid", "CredentialsUnencrypted");
    assert_eq!(reasons, [unencrypted, invalid, invalid, invalid, invalid, unencrypted]);
    let text = config.text(None);
    assert!(!text.contains("a.example") && !text.contains("credentials"), "{text}");
    assert!(text.contains("urls = [\"http://10.0.0.9:5000\"]"), "{text}");
}

#[test]
fn where_callers_rights_count_no_login_of_ours_does() {
    let mut cache = small();
    cache.spec.upstreams = vec![Upstream {
        upstream: "a.example".to_owned(),
        access: Some(Access::Caller),
        secret_ref: Some(SecretRef { name: "login".to_owned() }),
        ..Upstream::default()
    }];
    let logins = [("a.example".to_owned(), Login::DockerConfig("{}".to_owned()))].into();
    let names = names(&cache);
    let known = Known { places: &BTreeMap::new(), logins: &logins, storage: None };
    let config = Config::render(Scope { cache: &cache, names: &names }, &known);
    let reasons: Vec<&str> = config.problems.iter().map(|it| it.reason).collect();
    assert_eq!(reasons, ["SpecInvalid"]);
    let text = config.text(None);
    assert!(text.contains("access = \"caller\"") && !text.contains("credentials"), "{text}");
}

#[test]
fn a_six_cluster_is_listened_to_on_six() {
    let cache = small();
    let names = names(&cache);
    let place = Place { cluster_ip: "fd00::7".to_owned(), node_port: 30000 };
    let places = [(0, place)].into();
    let scope = Scope { cache: &cache, names: &names };
    let known = Known { places: &places, logins: &BTreeMap::new(), storage: None };
    assert!(Config::render(scope, &known).text(None).contains("listen = \"[::]:5000\""));
    assert_eq!(services::peers(scope, &places)[&0], "https://[fd00::7]:5000");
}

// === scenes ===

use larder_k8s::RegistryCacheSpec;
use larder_k8s::cache::{
    Access, GarbageCollection, HighAvailability, Http, IssuerRef, PostgreSql, Proxy, S3, SecretRef,
    Upstream, Volume,
};

fn cache(name: &str, spec: RegistryCacheSpec) -> RegistryCache {
    let mut cache = RegistryCache::new(name, spec);
    cache.metadata.namespace = Some("larder-system".to_owned());
    cache.metadata.uid = Some("0b0e4e2c-5a63-4ad5-9a8c-57d3a1d6c1f0".to_owned());
    cache
}

fn small() -> RegistryCache {
    let upstream = Upstream { upstream: "docker.io".to_owned(), ..Upstream::default() };
    cache("hub", RegistryCacheSpec { upstreams: vec![upstream], ..RegistryCacheSpec::default() })
}

fn full() -> RegistryCache {
    let secret_ref = Some(SecretRef { name: "login".to_owned() });
    let upstreams = vec![
        Upstream {
            upstream: "docker.io".to_owned(),
            mirrors: vec!["https://mirror.example.com/".to_owned()],
            freshness: Some("10m".to_owned()),
            ttl: Some("0s".to_owned()),
            quota: Some(Quantity("80Gi".to_owned())),
            secret_ref: secret_ref.clone(),
            ..Upstream::default()
        },
        Upstream {
            upstream: "registry.example.com:5000".to_owned(),
            remote_url: Some("https://10.0.0.9:8443".to_owned()),
            ca_bundle: Some("-----BEGIN CERTIFICATE-----\n".to_owned()),
            proxy: Some(Proxy {
                http_proxy: None,
                https_proxy: Some("http://proxy.example.com:3128".to_owned()),
            }),
            secret_ref,
            ..Upstream::default()
        },
        Upstream { upstream: "*.gcr.io".to_owned(), ..Upstream::default() },
    ];
    let collection =
        GarbageCollection { ttl: Some("336h".to_owned()), budget: Some("80%".to_owned()) };
    let issuer = IssuerRef { name: "ours".to_owned(), kind: None, group: None };
    let spec = RegistryCacheSpec {
        upstreams,
        volume: Some(Volume {
            size: Some(Quantity("200Gi".to_owned())),
            storage_class_name: Some("fast".to_owned()),
        }),
        garbage_collection: Some(collection),
        http: Some(Http { tls: None, issuer_ref: Some(issuer) }),
        high_availability: Some(HighAvailability { enabled: true }),
        replicas: Some(3),
        node_selector: [("disk".to_owned(), "nvme".to_owned())].into(),
        tolerations: vec![serde_json::from_value(json!({"operator": "Exists"})).unwrap()],
        resources: serde_json::from_value(json!({"limits": {"memory": "1Gi"}})).unwrap(),
        priority_class_name: Some("important".to_owned()),
        ..RegistryCacheSpec::default()
    };
    cache("everything", spec)
}

fn shared() -> RegistryCache {
    let mut cache = small();
    cache.spec.replicas = Some(2);
    cache.spec.storage = Some(larder_k8s::cache::Storage {
        s3: Some(S3 {
            endpoint: Some("https://s3.example.com".to_owned()),
            bucket: "larder".to_owned(),
            secret_ref: Some(SecretRef { name: "keys".to_owned() }),
            ..S3::default()
        }),
        postgresql: Some(PostgreSql { secret_ref: SecretRef { name: "database".to_owned() } }),
    });
    cache
}

fn names(cache: &RegistryCache) -> Names {
    Names::of(cache.metadata.name.as_deref().unwrap())
}

fn places(cache: &RegistryCache) -> BTreeMap<u32, Place> {
    let names = names(cache);
    let n = Scope { cache, names: &names }.replicas();
    let place = |n: u32| Place {
        cluster_ip: format!("10.96.0.{}", 10 + n),
        node_port: 30000 + u16::try_from(n).unwrap(),
    };
    (0..n).map(|n| (n, place(n))).collect()
}

fn storage(cache: &RegistryCache) -> Option<Storage> {
    let secret = |data: Value| serde_json::from_value(json!({"data": data})).unwrap();
    let keys = secret(json!({"AWS_ACCESS_KEY_ID": "aWQ=", "AWS_SECRET_ACCESS_KEY": "aHVzaA=="}));
    // postgres://larder:hush@db:5432/larder
    let database = secret(json!({"url": "cG9zdGdyZXM6Ly9sYXJkZXI6aHVzaEBkYjo1NDMyL2xhcmRlcg=="}));
    let s3 = cache.spec.storage.as_ref()?.s3.as_ref()?;
    Some(Storage::read(s3, Some(&keys), "database", Some(&database)).unwrap())
}

fn config(cache: &RegistryCache) -> Config {
    let login = |host: &str| {
        let json =
            format!("{{\"auths\":{{\"{host}\":{{\"username\":\"u\",\"password\":\"hush\"}}}}}}");
        (host.to_owned(), Login::DockerConfig(json))
    };
    let with_secret = cache.spec.upstreams.iter().filter(|it| it.secret_ref.is_some());
    let logins = with_secret.map(|it| login(&it.upstream)).collect();
    let (names, places, storage) = (names(cache), places(cache), storage(cache));
    let known = Known { places: &places, logins: &logins, storage: storage.as_ref() };
    Config::render(Scope { cache, names: &names }, &known)
}

fn stateful_set(cache: &RegistryCache) -> Value {
    let names = names(cache);
    let known = replicas::Known {
        image: "registry.example.com/larder:1",
        restart: config(cache).restart()[..16].to_owned(),
        ..replicas::Known::default()
    };
    replicas::stateful_set(Scope { cache, names: &names }, &known)
}

/// All objects, in the order in which they are applied.
fn objects(cache: &RegistryCache) -> Vec<Value> {
    let names = names(cache);
    let scope = Scope { cache, names: &names };
    let config = config(cache);
    let peers = services::peers(scope, &places(cache));
    let mut objects = services::render(scope);
    if let Some(issuer) = cache.spec.http.as_ref().and_then(|it| it.issuer_ref.as_ref()) {
        let sans = Sans {
            names: BTreeSet::from(["larder-everything".to_owned()]),
            addresses: BTreeSet::from(["10.96.0.10".parse().unwrap()]),
        };
        objects.push(extras::certificate(scope, issuer, &sans));
    }
    objects.push(files::config(scope, &config, &peers));
    objects.push(files::credentials(scope, &config));
    objects.extend(storage(cache).map(|it| files::storage(scope, &it)));
    objects.push(stateful_set(cache));
    objects.push(replicas::disruption_budget(scope));
    objects.push(replicas::network_policy(scope));
    objects.push(extras::service_monitor(scope));
    objects
}

fn golden(name: &str, cache: &RegistryCache) {
    let path = Path::new("golden").join(format!("{name}.yaml"));
    let rendered: String = objects(cache).iter().map(manifest::document).collect();
    if std::env::var_os("LARDER_GOLDEN").is_some_and(|it| it == "write") {
        std::fs::write(&path, &rendered).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        rendered == expected,
        "{name} is not as in {}; if that is meant, run with LARDER_GOLDEN=write and look at the difference",
        path.display()
    );
}
