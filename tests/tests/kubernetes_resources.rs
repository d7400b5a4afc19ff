//! Our custom resources as a real API server takes them.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::Arc;

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client};
use larder_tests::kubernetes::{Cluster, objects, until};
use larder_tests::process::{Ended, run};
use larder_tests::repository;
use larder_tests::scratch::{Scratch, files_below};
use serde_json::{Value, json};

const NAMESPACE: &str = "default";

/// The definitions as they are installed, in a cluster that takes them.
struct Installed {
    cluster: Arc<Cluster>,
    client: Client,
    caches: Api<DynamicObject>,
}

impl Installed {
    async fn new() -> Self {
        let cluster = Cluster::shared().await;
        objects::apply_definitions(&cluster).await;
        let client = cluster.client();
        let caches = caches(client.clone());
        until("caches are served", async || caches.list(&Default::default()).await.is_ok()).await;
        Self { cluster, client, caches }
    }

    /// What the API server says to a cache of this specification, as kubectl asks it; nothing is
    /// stored.
    async fn says(&self, spec: &Value) -> Result<(), String> {
        let cache = json!({
            "apiVersion": "larder.dev/v1alpha1",
            "kind": "RegistryCache",
            "metadata": { "name": "cache" },
            "spec": spec,
        });
        let url = format!("{}?dryRun=All&fieldValidation=Strict", self.caches.resource_url());
        let request = http::Request::post(url).header("content-type", "application/json");
        let request = request.body(cache.to_string().into_bytes()).unwrap();
        match self.client.request::<Value>(request).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) => Err(status.message),
            Err(other) => panic!("{cache}: {other}"),
        }
    }
}

fn caches(client: Client) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("larder.dev", "v1alpha1", "RegistryCache");
    let resource = ApiResource::from_gvk_with_plural(&kind, "registrycaches");
    Api::namespaced_with(client, NAMESPACE, &resource)
}

#[tokio::test]
async fn the_definitions_are_accepted_and_explained() {
    let installed = Installed::new().await;
    let explain = ["explain", "registrycache.spec.upstreams.freshness"];
    let said = installed.cluster.run("kubectl", &explain).await.expect("explain");
    assert!(said.contains("How long a tag's answer counts"), "{said}");
    let short = installed.cluster.run("kubectl", &["get", "rcache"]).await;
    assert_eq!(short.code, Some(0), "{}", short.stderr);
}

#[tokio::test]
async fn all_that_documents_show_is_accepted() {
    let installed = Installed::new().await;
    // Helm makes it, with `--create-namespace`.
    let namespace = ["create", "namespace", "larder-system"];
    installed.cluster.run("kubectl", &namespace).await.expect("create the namespace");
    let shown = ["docs", "deploy", "README.md"].map(repository::path);
    let files = shown.iter().flat_map(|it| match it.is_dir() {
        true => files_below(it),
        false => vec![it.clone()],
    });
    for path in files.filter(|path| path.extension().is_some_and(|it| it == "md")) {
        let text = std::fs::read_to_string(&path).unwrap();
        for example in text.split("```yaml\n").skip(1).filter_map(|it| it.split("```").next()) {
            if example.lines().any(|line| line == "kind: RegistryCache") {
                let scratch = Scratch::new();
                let file = scratch.write("example.yaml", example);
                let apply = ["apply", "--dry-run=server", "-f", file.to_str().unwrap()];
                let ended = installed.cluster.run("kubectl", &apply).await;
                assert_eq!(ended.code, Some(0), "{}: {}", path.display(), ended.stderr);
            }
        }
    }
    let full = json!({
        "upstreams": [
            {
                "upstream": "docker.io",
                "remoteURL": "https://registry-1.docker.io",
                "mirrors": ["https://mirror.gcr.io"],
                "secretRef": { "name": "hub" },
                "proxy": { "httpsProxy": "http://proxy.example.com:3128" },
                "freshness": "1m30s",
                "access": "caller",
                "ttl": "0s",
                "quota": "100Gi",
            },
            { "upstream": "registry.example.com:5000", "remoteURL": "http://[::1]:5000/" },
            { "upstream": "*.gcr.io" },
        ],
        "volume": { "size": "200Gi", "storageClassName": "fast" },
        "garbageCollection": { "ttl": "168h", "budget": "90%" },
        "http": { "tls": false },
        "highAvailability": { "enabled": true },
        "replicas": 3,
        "storage": {
            "s3": { "bucket": "images", "pathStyle": true, "secretRef": { "name": "s3" } },
            "postgresql": { "secretRef": { "name": "database" } },
        },
        "nodeSelector": { "disk": "ssd" },
        "tolerations": [{ "operator": "Exists" }],
        "resources": { "requests": { "cpu": "1" } },
        "priorityClassName": "system-cluster-critical",
    });
    assert_eq!(installed.says(&full).await, Ok(()));
    assert_eq!(installed.says(&json!({ "upstreams": [{ "upstream": "quay.io" }] })).await, Ok(()));
}

#[tokio::test]
async fn each_rule_refuses_with_what_a_person_has_to_know() {
    let installed = Installed::new().await;
    let host = "must be a registry's host as in image names, HOST or HOST:PORT";
    let url = "must be https://HOST or http://HOST, with a port at most";
    let duration = "must be a duration as in";
    // Of an upstream.
    for (key, value, path, message) in [
        ("upstream", json!("https://docker.io"), "upstream", host),
        ("upstream", json!("docker.io/library"), "upstream", host),
        ("upstream", json!("Docker.io"), "upstream", host),
        ("upstream", json!("a.b:x"), "upstream", host),
        ("upstream", json!("a.b:123456"), "upstream", host),
        ("upstream", json!(""), "upstream", "at least 1 chars long"),
        ("upstream", json!("a".repeat(260)), "upstream", "may not be more than 259"),
        ("remoteURL", json!("ftp://a.b"), "remoteURL", url),
        ("remoteURL", json!("a.b"), "remoteURL", url),
        ("remoteURL", json!("https://a.b/path"), "remoteURL", url),
        ("remoteURL", json!("https://a.b?q"), "remoteURL", url),
        ("remoteURL", json!("https://u:hunter2@a.b"), "remoteURL", url),
        ("mirrors", json!(vec!["https://m"; 8]), "mirrors", "must have at most 7 items"),
        ("secretRef", json!({ "name": "" }), "secretRef.name", "at least 1 chars long"),
        ("proxy", json!({}), "proxy", "must have httpProxy, httpsProxy or both"),
        ("freshness", json!("-1s"), "freshness", duration),
        ("freshness", json!("7d"), "freshness", duration),
        ("access", json!("everybody"), "access", "supported values: \"shared\", \"caller\""),
        ("ttl", json!("-1h"), "ttl", duration),
        ("unheardOf", json!(1), "unheardOf", "unknown field"),
    ] {
        let mut upstream = json!({ "upstream": "docker.io" });
        upstream[key] = value;
        let spec = json!({ "upstreams": [upstream] });
        refuses(&installed, &spec, &format!("spec.upstreams[0].{path}"), message).await;
    }
    // Of the cache.
    for (key, value, path, message) in [
        ("upstreams", json!([]), "upstreams", "should have at least 1 items"),
        (
            "upstreams",
            json!([{ "upstream": "quay.io" }, { "upstream": "quay.io" }]),
            "upstreams[1]",
            "Duplicate value",
        ),
        ("volume", json!({ "size": "0" }), "volume.size", "must be more than 0"),
        ("volume", json!({ "size": "-1Gi" }), "volume.size", "must be more than 0"),
        ("volume", json!({ "size": "much" }), "volume.size", "must be more than 0"),
        (
            "volume",
            json!({ "storageClassName": "" }),
            "volume.storageClassName",
            "at least 1 chars",
        ),
        ("garbageCollection", json!({ "ttl": "-1h" }), "garbageCollection.ttl", duration),
        ("garbageCollection", json!({ "ttl": "7d" }), "garbageCollection.ttl", duration),
        ("replicas", json!(0), "replicas", "greater than or equal to 1"),
        ("replicas", json!(65), "replicas", "less than or equal to 64"),
        ("http", json!({ "tls": "yes" }), "http.tls", "must be of type boolean"),
        (
            "storage",
            json!({ "s3": { "bucket": "images" } }),
            "",
            "storage.s3 needs storage.postgresql beside it: the index is there",
        ),
        (
            "storage",
            json!({ "s3": { "bucket": "ab" }, "postgresql": { "secretRef": { "name": "a" } } }),
            "storage.s3.bucket",
            "at least 3 chars long",
        ),
        ("priorityClassName", json!(""), "priorityClassName", "at least 1 chars long"),
        ("unheardOf", json!(1), "unheardOf", "unknown field"),
    ] {
        let mut spec = json!({ "upstreams": [{ "upstream": "docker.io" }] });
        spec[key] = value;
        let path = if path.is_empty() { "spec".to_owned() } else { format!("spec.{path}") };
        refuses(&installed, &spec, &path, message).await;
    }
    let mut spec = json!({ "upstreams": [{ "upstream": "docker.io" }], "replicas": 1 });
    spec["highAvailability"] = json!({ "enabled": true });
    let message = "highAvailability needs at least 2 replicas; write more, or leave replicas out";
    refuses(&installed, &spec, "spec", message).await;
    refuses(&installed, &json!({}), "spec.upstreams", "Required value").await;
}

async fn refuses(installed: &Installed, spec: &Value, path: &str, message: &str) {
    let said = installed.says(spec).await.expect_err(&format!("{spec} is refused"));
    assert!(said.contains(path) && said.contains(message), "{spec}: {said}");
}

#[tokio::test]
async fn a_volume_may_grow_but_stays_in_its_storage_class() {
    let installed = Installed::new().await;
    let create = json!({
        "apiVersion": "larder.dev/v1alpha1",
        "kind": "RegistryCache",
        "metadata": { "generateName": "stays-" },
        "spec": {
            "upstreams": [{ "upstream": "docker.io" }],
            "volume": { "size": "1Gi", "storageClassName": "fast" },
        },
    });
    let create = serde_json::from_value(create).unwrap();
    let made = installed.caches.create(&PostParams::default(), &create).await.unwrap();
    let name = made.metadata.name.unwrap();
    let patch = async |volume: Value| {
        let patch = Patch::Merge(json!({ "spec": { "volume": volume } }));
        installed.caches.patch(&name, &PatchParams::default(), &patch).await
    };
    patch(json!({ "size": "2Gi" })).await.unwrap();
    let message = "storageClassName cannot change: a volume stays where it is. Make another cache";
    for other in [json!("slow"), json!(null)] {
        match patch(json!({ "storageClassName": other })).await {
            Err(kube::Error::Api(status)) => {
                assert!(status.message.contains(message), "{}", status.message);
            }
            answer => panic!("{answer:?}"),
        }
    }
    installed.caches.delete(&name, &Default::default()).await.unwrap();
}

#[tokio::test]
async fn what_gardener_accepts_becomes_what_the_api_server_accepts() {
    let installed = Installed::new().await;
    let text = r#"
apiVersion: core.gardener.cloud/v1beta1
kind: Shoot
spec:
  extensions:
  - type: registry-cache
    providerConfig:
      apiVersion: registry.extensions.gardener.cloud/v1alpha3
      kind: RegistryConfig
      caches:
      - upstream: docker.io
        remoteURL: https://registry-1.docker.io/
        volume: {size: 100Gi, storageClassName: premium.ssd}
        garbageCollection: {ttl: 0s}
        secretReferenceName: hub
        proxy: {httpProxy: "http://proxy.example.com:3128", httpsProxy: "http://proxy.example.com:3128"}
        http: {tls: false}
        highAvailability: {enabled: true}
        serviceNameSuffix: hub
      - upstream: registry.example.com:5000
        garbageCollection: {ttl: 1h30m}
      - upstream: quay.io
        garbageCollection: {ttl: "0"}
  - type: registry-mirror
    providerConfig:
      apiVersion: mirror.extensions.gardener.cloud/v1alpha1
      kind: MirrorConfig
      mirrors:
      - upstream: gcr.io
        hosts: [{host: "https://mirror.gcr.io/path", capabilities: [pull, resolve]}]
  resources:
  - name: hub
    resourceRef: {kind: Secret, name: hub-login-1, apiVersion: v1}
"#;
    let ours = import(text).await.expect("Gardener accepts it");
    let scratch = Scratch::new();
    // The namespace need not be there for what is only tried.
    let file = scratch.write("ours.yaml", &ours.replace("namespace: larder", "namespace: default"));
    let apply = ["apply", "--dry-run=server", "-f", file.to_str().unwrap()];
    let said = installed.cluster.run("kubectl", &apply).await.expect(&ours);
    assert_eq!(said.matches("created").count(), ours.matches("kind: RegistryCache").count());
    assert!(said.contains("registrycache.larder.dev/registry-cache created"), "{said}");
}

#[tokio::test]
async fn what_gardener_refuses_is_refused_before_it_becomes_ours() {
    for (cache, path, message) in [
        ("upstream: https://docker.io", "upstream", "has a scheme"),
        ("upstream: a.b:0", "upstream", "has no port of 1 to 65535"),
        ("{upstream: a.b, remoteURL: 'https://a.b/path'}", "remoteURL", "has a path"),
        ("{upstream: a.b, remoteURL: 'https://u:hunter2@a.b'}", "remoteURL", "has a user in it"),
        ("{upstream: a.b, volume: {size: '0'}}", "volume.size", "must be more than 0"),
        (
            "{upstream: a.b, volume: {storageClassName: A}}",
            "volume.storageClassName",
            "no DNS name",
        ),
        ("{upstream: a.b, garbageCollection: {ttl: -1h}}", "garbageCollection.ttl", "is negative"),
        ("{upstream: a.b, proxy: {httpProxy: 'a.b:1'}}", "proxy.httpProxy", "begin with http"),
        ("{upstream: a.b, serviceNameSuffix: a.b}", "serviceNameSuffix", "is no DNS label"),
    ] {
        let config = format!(
            "apiVersion: registry.extensions.gardener.cloud/v1alpha3\nkind: RegistryConfig\ncaches:\n- {cache}\n"
        );
        expect_refusal(&config, &format!("caches[0].{path}"), message).await;
    }
    for (mirror, path, message) in [
        ("{upstream: quay.io, hosts: []}", "hosts", "at least one host"),
        ("{upstream: quay.io, hosts: [{host: m}]}", "hosts[0].host", "begins with http"),
        (
            "{upstream: quay.io, hosts: [{host: 'https://m', capabilities: [push]}]}",
            "hosts[0].capabilities",
            "write pull or resolve",
        ),
    ] {
        let config = format!(
            "apiVersion: mirror.extensions.gardener.cloud/v1alpha1\nkind: MirrorConfig\nmirrors:\n- {mirror}\n"
        );
        expect_refusal(&config, &format!("mirrors[0].{path}"), message).await;
    }
}

async fn expect_refusal(config: &str, path: &str, message: &str) {
    let ended = import(config).await;
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""), "{config}");
    let said = ended.stderr;
    assert!(said.contains(path) && said.contains(message), "{config}: {said}");
    assert!(!said.contains("hunter2"), "{said}");
}

/// What `larder import-gardener` makes of a file.
async fn import(text: &str) -> Ended {
    let scratch = Scratch::new();
    let file = scratch.write("gardener.yaml", text);
    let mut command = std::process::Command::new(larder_tests::larder::program());
    run(command.arg("import-gardener").arg(file)).await
}
