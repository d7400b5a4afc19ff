//! The controller before a real API server: what it makes of a cache, and whom it leaves alone.
//!
//! There are no nodes, so that nothing runs: what replicas do is in `operator_nodes.rs`.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use k8s_openapi::api::events::v1::Event;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
};
use kube::{Api, ResourceExt as _};
use larder_tests::Controller;
use larder_tests::kubernetes::{Cluster, PATIENCE, objects, until};
use larder_tests::larder::program;
use larder_tests::process::run;
use larder_tests::scratch::Scratch;
use serde_json::{Value, json};

/// Kinds that caches are made of: API version, kind, plural.
const KINDS: [(&str, &str, &str); 6] = [
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    ("v1", "ConfigMap", "configmaps"),
    ("v1", "Secret", "secrets"),
    ("v1", "Service", "services"),
];
const CACHES: (&str, &str, &str) = ("larder.dev/v1alpha1", "RegistryCache", "registrycaches");

#[tokio::test]
async fn a_cache_is_made_and_another_turn_changes_nothing() {
    let scene = Scene::new().await;
    scene.secret("login", &[("username", "robot"), ("password", "hush")]).await;
    let controller = scene.controller(&[]).await;
    scene
        .apply(json!({
            "replicas": 2,
            "upstreams": [
                {"upstream": "docker.io", "secretRef": {"name": "login"}, "freshness": "10m"},
                {"upstream": "ghcr.io", "mirrors": ["https://mirror.example.com"], "quota": "1Gi"},
            ],
        }))
        .await;
    scene.says("no default storage class").await;
    let cache = scene.cache().await;
    assert_eq!(cache["status"]["mirrored"], true);
    assert_eq!(cache["status"]["readyReplicas"], 0);
    assert!(cache["status"]["caBundle"].as_str().unwrap().starts_with("-----BEGIN CERT"));
    scene.events("NoStorageClass").await;
    // The configuration is one that the program takes.
    assert_eq!(scene.check_config().await, "ok: 2 upstreams\n");

    let said = controller.stop().await;
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(!said.stderr.contains("hush"));
    // What the first one may have left undone as it ended.
    scene.another_turn().await;
    let before = scene.versions().await;
    assert!(before.len() >= 11, "{before:#?}");
    scene.another_turn().await;
    assert_eq!(scene.versions().await, before);
}

#[tokio::test]
async fn what_somebody_else_has_set_stays_and_is_named() {
    let scene = Scene::new().await;
    let _controller = scene.controller(&[]).await;
    scene.apply(json!({"upstreams": [{"upstream": "docker.io"}]})).await;
    let name = "larder-cache";
    scene.there("StatefulSet", name).await;
    let object = json!({
        "apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": name},
        "spec": {"template": {"spec": {"terminationGracePeriodSeconds": 7}}},
    });
    let theirs = PatchParams::apply("somebody").force();
    scene.api(kind("StatefulSet")).patch(name, &theirs, &Patch::Apply(object)).await.unwrap();

    // Something that is ours still changes.
    scene.apply(json!({"upstreams": [{"upstream": "docker.io"}], "replicas": 3})).await;
    let replicas = async || scene.get("StatefulSet", name).await["spec"]["replicas"] == 3;
    until("there are to be 3 replicas", replicas).await;
    let grace = "/spec/template/spec/terminationGracePeriodSeconds";
    assert_eq!(scene.get("StatefulSet", name).await.pointer(grace), Some(&json!(7)));
    let field = ".spec.template.spec.terminationGracePeriodSeconds";
    until("the cache says so", async || scene.condition("Degraded").await.2.contains(field)).await;
    assert!(scene.condition("Degraded").await.2.contains("somebody"));
}

#[tokio::test]
async fn an_object_of_somebody_elses_is_not_taken_over() {
    let scene = Scene::new().await;
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "larder-cache"}, "data": {"theirs": "yes"},
    }))
    .unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(scene.cluster.client(), &scene.namespace);
    maps.create(&PostParams::default(), &map).await.unwrap();
    let _controller = scene.controller(&[]).await;
    scene.apply(json!({"upstreams": [{"upstream": "docker.io"}]})).await;
    scene.says("ConfigMap `larder-cache`").await;
    assert_eq!(scene.condition("Degraded").await.1, "NameTaken");
    let map = maps.get("larder-cache").await.unwrap();
    assert_eq!(map.data.unwrap(), [("theirs".to_owned(), "yes".to_owned())].into());
}

#[tokio::test]
async fn a_cache_that_is_deleted_is_left_by_nodes_first_and_then_gone() {
    let scene = Scene::new().await;
    let _controller = scene.controller(&[]).await;
    scene.apply(json!({"upstreams": [{"upstream": "docker.io"}]})).await;
    scene.there("StatefulSet", "larder-cache").await;
    let claims = ("v1", "PersistentVolumeClaim", "persistentvolumeclaims");
    until("there is a claim", async || !scene.names(claims).await.is_empty()).await;
    let caches = scene.api(CACHES);
    until("it is mirrored", async || scene.cache().await["status"]["mirrored"] == true).await;
    caches.delete("cache", &DeleteParams::default()).await.unwrap();
    until("nodes are told", async || scene.cache().await["status"]["mirrored"] == false).await;
    // Nothing is removed before they had the time to hear of it.
    scene.get("StatefulSet", "larder-cache").await;
    assert_eq!(scene.condition("Progressing").await.1, "Withdrawing");
    let told = Instant::now();

    until("it is gone", async || caches.get_opt("cache").await.unwrap().is_none()).await;
    assert!(told.elapsed() >= Duration::from_secs(9), "{:?}", told.elapsed());
    for kind in KINDS.into_iter().chain([claims]) {
        let of_cache = async || {
            let names = scene.names(kind).await;
            names.iter().any(|name| name.contains("larder-cache"))
        };
        until(format!("no {} is left", kind.1), async || !of_cache().await).await;
    }
}

#[tokio::test]
async fn an_authority_is_replaced_and_the_old_one_is_trusted_meanwhile() {
    let scene = Scene::new().await;
    let _controller = scene.controller(&["--ca-settling", "2s"]).await;
    scene.apply(json!({"upstreams": [{"upstream": "docker.io"}]})).await;
    let bundle = async || {
        let cache = scene.cache().await;
        cache["status"]["caBundle"].as_str().unwrap_or_default().to_owned()
    };
    until("it has an authority", async || !bundle().await.is_empty()).await;
    let old = bundle().await;
    let leaf = async || scene.get("Secret", "larder-cache-tls").await["data"]["tls.crt"].clone();
    let old_leaf = leaf().await;
    let rotate = json!({"metadata": {"annotations": {"larder.dev/rotate-ca": "1"}}});
    let patch = Patch::Merge(rotate);
    scene.api(CACHES).patch("cache", &PatchParams::default(), &patch).await.unwrap();

    let n_trusted = async || bundle().await.matches("BEGIN").count();
    until("both are trusted", async || n_trusted().await == 2).await;
    assert!(bundle().await.contains(old.trim()));
    assert_eq!(leaf().await, old_leaf, "nothing is signed before everybody knows by whom");
    until("the new one signs", async || leaf().await != old_leaf).await;
    assert_eq!(n_trusted().await, 2, "what the old one signed may still be shown");
    until("the old one is forgotten", async || n_trusted().await == 1).await;
    assert!(!bundle().await.contains(old.trim()));
    // Asked once, done once.
    let secret = scene.get("Secret", "larder-cache-ca").await;
    assert_eq!(secret["metadata"]["annotations"]["larder.dev/rotate-ca"], "1");
    scene.events("Certificates").await;
}

#[tokio::test]
async fn a_credential_comes_and_changes_without_another_pod() {
    let scene = Scene::new().await;
    let _controller = scene.controller(&[]).await;
    let upstreams = json!({"upstreams": [{"upstream": "ghcr.io", "secretRef": {"name": "login"}}]});
    scene.apply(upstreams).await;
    scene.says("no secret `login`").await;
    let template = async || scene.get("StatefulSet", "larder-cache").await["spec"].clone();
    let before = template().await;
    scene.secret("login", &[("username", "robot")]).await;
    scene.says("the key `password` is missing").await;
    let file = async || {
        let secret = scene.get("Secret", "larder-cache-credentials").await;
        secret["data"]["ghcr.io.json"].clone()
    };
    for password in ["one", "two"] {
        let last = file().await;
        scene.secret("login", &[("username", "robot"), ("password", password)]).await;
        until("the file has changed", async || file().await != last).await;
    }
    assert_eq!(template().await, before);
    // Its kubelet would be told to look at once.
    let pods: Api<Pod> = Api::namespaced(scene.cluster.client(), &scene.namespace);
    let told = async || {
        let pod = pods.get("larder-cache-0").await.unwrap();
        pod.annotations().get("larder.dev/files").cloned().unwrap_or_default()
    };
    let version = async || {
        let secret = scene.get("Secret", "larder-cache-credentials").await;
        secret["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
    };
    until("the pod is told", async || told().await.contains(&version().await)).await;
}

#[tokio::test]
async fn a_volume_grows_in_place() {
    let scene = Scene::new().await;
    let class = format!("grows-{}", scene.namespace);
    scene
        .create(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass", "metadata": {"name": class},
            "provisioner": "larder.test/nobody", "allowVolumeExpansion": true,
        }))
        .await;
    scene
        .create(json!({
            "apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": class},
            "spec": {
                "capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"],
                "storageClassName": class, "hostPath": {"path": "/nowhere"},
            },
        }))
        .await;
    let _controller = scene.controller(&[]).await;
    let sized = |size: &str| {
        json!({
            "upstreams": [{"upstream": "docker.io"}],
            "volume": {"size": size, "storageClassName": class},
        })
    };
    scene.apply(sized("1Gi")).await;
    let claims = ("v1", "PersistentVolumeClaim", "persistentvolumeclaims");
    let claim = "cache-volume-larder-cache-0";
    let phase = async || {
        let claim = scene.api(claims).get_opt(claim).await.unwrap();
        claim.map(|it| it.data["status"]["phase"].clone()).unwrap_or_default()
    };
    until("it has a volume", async || phase().await == "Bound").await;
    let labels = async || scene.api(claims).get(claim).await.unwrap().labels().clone();
    let labelled = async || labels().await.get("upstream-host").is_some_and(|it| it == "docker.io");
    until("it is found by its upstream", labelled).await;
    scene.apply(sized("2Gi")).await;
    let asked = async || {
        let claim = scene.api(claims).get(claim).await.unwrap();
        claim.data["spec"]["resources"]["requests"]["storage"].clone()
    };
    until("it asks for more", async || asked().await == "2Gi").await;
    let template = async || scene.get("StatefulSet", "larder-cache").await;
    let grown = "/spec/template/metadata/annotations/larder.dev~1volume-size";
    assert_eq!(template().await.pointer(grown), None, "replicas start again once it is there");
    // What a storage provider does.
    let patch = json!({"status": {"capacity": {"storage": "2Gi"}}});
    let params = PatchParams::default();
    scene.api(claims).patch_status(claim, &params, &Patch::Merge(patch)).await.unwrap();
    let told = async || template().await.pointer(grown) == Some(&json!("2Gi"));
    until("replicas are told", told).await;
    let size = "/spec/volumeClaimTemplates/0/spec/resources/requests/storage";
    assert_eq!(template().await.pointer(size), Some(&json!("1Gi")));
    scene.apply(sized("1Gi")).await;
    scene.says("has 2Gi").await;
}

#[tokio::test]
async fn one_of_several_acts_and_another_follows() {
    let scene = Scene::new().await;
    let first = scene.controller(&["--identity", "first"]).await;
    until("the first acts", async || first.acts().await).await;
    let second = scene.controller(&["--identity", "second"]).await;
    scene.apply(json!({"upstreams": [{"upstream": "docker.io"}]})).await;
    scene.there("StatefulSet", "larder-cache").await;
    assert!(!second.acts().await);
    let stopped = Instant::now();
    first.stop().await;
    until("the second acts", async || second.acts().await).await;
    assert!(
        stopped.elapsed() < Duration::from_secs(10),
        "a lease that was let go is not waited for"
    );
    until("it takes a turn", async || second.turns().await >= 1.0).await;
    let third = scene.controller(&["--identity", "third"]).await;
    second.kill();
    until("the third acts", async || third.acts().await).await;
}

#[tokio::test]
async fn a_new_node_waits_for_its_own_agent() {
    let scene = Scene::new().await;
    let nodes: Api<Node> = Api::all(scene.cluster.client());
    let pods: Api<Pod> = Api::namespaced(scene.cluster.client(), &scene.namespace);
    let name = format!("node-{}", scene.namespace);
    let node: Node = serde_json::from_value(json!({
        "metadata": {"name": name},
        "spec": {"taints": [
            {"key": "larder.dev/not-ready", "effect": "NoSchedule"},
            {"key": "example.com/theirs", "effect": "NoSchedule"},
        ]},
    }))
    .unwrap();
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let controller = scene.controller(&["--taint-new-nodes"]).await;
    until("it acts", async || controller.acts().await).await;
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "agent", "labels": {
            "app.kubernetes.io/name": "larder", "app.kubernetes.io/component": "agent",
        }},
        "spec": {
            "nodeName": name,
            "tolerations": [{"operator": "Exists"}],
            "containers": [{"name": "larder", "image": "larder.test/larder:1"}],
        },
    }))
    .unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let taints = async || {
        let taints = nodes.get(&name).await.unwrap().spec.unwrap().taints.unwrap_or_default();
        taints.into_iter().map(|it| it.key).collect::<Vec<_>>()
    };
    assert!(taints().await.contains(&"larder.dev/not-ready".to_owned()));
    let ready = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}});
    pods.patch_status("agent", &PatchParams::default(), &Patch::Merge(ready)).await.unwrap();
    let is_free = async || !taints().await.contains(&"larder.dev/not-ready".to_owned());
    until("the node is free", is_free).await;
    assert!(taints().await.contains(&"example.com/theirs".to_owned()));
    nodes.delete(&name, &DeleteParams::default()).await.unwrap();
}

/// The figures of the issue: a change counts within a second, and memory stays below 150 MiB.
#[tokio::test]
async fn a_thousand_nodes_make_it_neither_slow_nor_large() {
    const N: usize = 1000;
    let scene = Scene::new().await;
    let nodes: Api<Node> = Api::all(scene.cluster.client());
    // As large as kubelets make them, which list the images that they have.
    let images: Vec<Value> = (0..50)
        .map(|n| json!({"names": [format!("registry.example.com/team/application-{n}@sha256:{n:064}")], "sizeBytes": n}))
        .collect();
    let node = |n: usize| {
        let node = json!({
            "metadata": {"name": format!("{}-{n}", scene.namespace)},
            "spec": {"taints": [{"key": "larder.dev/not-ready", "effect": "NoSchedule"}]},
            "status": {"images": images},
        });
        serde_json::from_value::<Node>(node).unwrap()
    };
    let create = async |n: usize| nodes.create(&PostParams::default(), &node(n)).await.map(drop);
    for begin in (0..N).step_by(20) {
        let all = (begin..begin + 20).map(&create);
        futures_util::future::try_join_all(all).await.unwrap();
    }
    let controller = scene.controller(&["--taint-new-nodes"]).await;
    scene.apply(json!({"upstreams": [{"upstream": "docker.io"}]})).await;
    scene.there("NetworkPolicy", "larder-cache").await;
    let text = async || {
        let map = scene.get("ConfigMap", "larder-cache").await;
        map["data"]["larder.toml"].as_str().unwrap_or_default().to_owned()
    };
    let mut slowest = Duration::ZERO;
    for n in 1..=5 {
        let host = format!("registry-{n}.example.com");
        let begin = Instant::now();
        scene.apply(json!({"upstreams": [{"upstream": host}]})).await;
        // As often as the API server answers: half of the pauses of `until` would be in the figure.
        let has_it = async { while !text().await.contains(&host) {} };
        tokio::time::timeout(PATIENCE, has_it).await.expect("the change counts");
        slowest = slowest.max(begin.elapsed());
    }
    let bytes = controller.metric("process_resident_memory_bytes", &[]).await;
    println!("{N} nodes: a change counts after at most {slowest:?}; {:.1} MiB", bytes / 1048576.0);
    assert!(bytes < 150.0 * 1048576.0, "{bytes}");
    // Whoever compiles beside this test is not the controller's fault.
    assert!(slowest < Duration::from_secs(10), "{slowest:?}");
    let delete = async |n: usize| {
        let name = format!("{}-{n}", scene.namespace);
        nodes.delete(&name, &DeleteParams::default()).await.map(drop)
    };
    for begin in (0..N).step_by(20) {
        futures_util::future::try_join_all((begin..begin + 20).map(&delete)).await.unwrap();
    }
}

// === the scene ===

/// A namespace of its own in a cluster that takes our resources.
struct Scene {
    cluster: Arc<Cluster>,
    namespace: String,
    scratch: Scratch,
}

fn kind(name: &str) -> (&'static str, &'static str, &'static str) {
    KINDS.into_iter().find(|it| it.1 == name).unwrap()
}

impl Scene {
    async fn new() -> Self {
        let cluster = Cluster::shared().await;
        objects::apply_definitions(&cluster).await;
        let scratch = Scratch::new();
        let unique = scratch.path().file_name().unwrap().to_str().unwrap().to_lowercase();
        let namespace: String = unique.chars().filter(char::is_ascii_alphanumeric).collect();
        let object = json!({"metadata": {"name": namespace}});
        let object: Namespace = serde_json::from_value(object).unwrap();
        let namespaces: Api<Namespace> = Api::all(cluster.client());
        namespaces.create(&PostParams::default(), &object).await.unwrap();
        let scene = Self { cluster, namespace, scratch };
        let caches = scene.api(CACHES);
        let served = async || caches.list(&ListParams::default()).await.is_ok();
        until("caches are served", served).await;
        scene
    }

    async fn controller(&self, arguments: &[&str]) -> Controller {
        Controller::start(&self.cluster, &self.namespace, arguments).await
    }

    /// Has a new controller look at everything, and end.
    async fn another_turn(&self) {
        let controller = self.controller(&[]).await;
        until("it takes a turn", async || controller.turns().await >= 1.0).await;
        assert_eq!(controller.stop().await.code, Some(0));
    }

    fn api(&self, (api_version, kind, plural): (&str, &str, &str)) -> Api<DynamicObject> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        Api::namespaced_with(self.cluster.client(), &self.namespace, &resource)
    }

    /// Creates an object that is in no namespace.
    async fn create(&self, object: Value) {
        let file = self.scratch.write("object.json", &object.to_string());
        let create = ["create", "-f", file.to_str().unwrap()];
        self.cluster.run("kubectl", &create).await.expect("create");
    }

    /// Has the cache of this scene be so.
    async fn apply(&self, spec: Value) {
        let cache = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "RegistryCache",
            "metadata": {"name": "cache"}, "spec": spec,
        });
        let params = PatchParams::apply("person");
        self.api(CACHES).patch("cache", &params, &Patch::Apply(cache)).await.unwrap();
    }

    async fn secret(&self, name: &str, texts: &[(&str, &str)]) {
        objects::apply_secret(self.cluster.client(), &self.namespace, name, texts).await;
    }

    async fn cache(&self) -> Value {
        serde_json::to_value(self.api(CACHES).get("cache").await.unwrap()).unwrap()
    }

    async fn get(&self, name_of_kind: &str, name: &str) -> Value {
        let object = self.api(kind(name_of_kind)).get(name).await.unwrap();
        serde_json::to_value(object).unwrap()
    }

    async fn there(&self, name_of_kind: &str, name: &str) {
        let api = self.api(kind(name_of_kind));
        let is_there = async || api.get_opt(name).await.unwrap().is_some();
        until(format!("{name_of_kind} {name} is there"), is_there).await;
    }

    async fn names(&self, kind: (&str, &str, &str)) -> Vec<String> {
        let list = self.api(kind).list(&ListParams::default()).await.unwrap();
        list.iter().map(|it| it.name_any()).collect()
    }

    /// Status, reason and message of a condition; empty as long as there is none.
    async fn condition(&self, kind: &str) -> (String, String, String) {
        let cache = self.cache().await;
        let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|it| it["type"] == kind).unwrap_or_default();
        let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
        (text("status"), text("reason"), text("message"))
    }

    /// Returns once a person is told something.
    async fn says(&self, part: &str) {
        let says = async || {
            let (status, _, message) = self.condition("Degraded").await;
            status == "True" && message.contains(part)
        };
        until(format!("it says: {part}"), says).await;
    }

    async fn events(&self, reason: &str) {
        let events: Api<Event> = Api::namespaced(self.cluster.client(), &self.namespace);
        let told = async || {
            let list = events.list(&ListParams::default()).await.unwrap();
            list.iter().any(|it| it.reason.as_deref() == Some(reason))
        };
        until(format!("an event says {reason}"), told).await;
    }

    /// The version of everything that the controller writes, the cache included.
    async fn versions(&self) -> BTreeMap<String, String> {
        let mut versions = BTreeMap::new();
        for kind in KINDS.into_iter().chain([CACHES]) {
            for object in self.api(kind).list(&ListParams::default()).await.unwrap() {
                let name = format!("{} {}", kind.1, object.name_any());
                versions.insert(name, object.resource_version().unwrap());
            }
        }
        versions
    }

    /// What the program says to the configuration that replicas would have, with its files.
    async fn check_config(&self) -> String {
        let files = self.scratch.folder("files");
        let sources = [
            ("config", "ConfigMap", "larder-cache"),
            ("credentials", "Secret", "larder-cache-credentials"),
            ("tls", "Secret", "larder-cache-tls"),
        ];
        for (folder, kind, name) in sources {
            let object = self.get(kind, name).await;
            for (file, text) in object["data"].as_object().unwrap() {
                let text = text.as_str().unwrap();
                let text = match kind {
                    "Secret" => {
                        use base64::Engine as _;
                        let bytes = base64::prelude::BASE64_STANDARD.decode(text).unwrap();
                        String::from_utf8(bytes).unwrap()
                    }
                    _ => text.replace("/etc/larder", files.to_str().unwrap()),
                };
                self.scratch.write(&format!("files/{folder}/{file}"), &text);
            }
        }
        let mut command = std::process::Command::new(program());
        command.args(["check-config", "--config"]).arg(files.join("config/larder.toml"));
        run(&mut command).await.expect("check-config")
    }
}
