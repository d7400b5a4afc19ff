//! A cache on real nodes: it serves, and nothing that is done to it fails a pull.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use k8s_openapi::api::core::v1::Pod;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use larder_testkit::Image;
use larder_tests::kubernetes::{Node, images, until};
use larder_tests::{Cluster, Controller, DockerRegistry, http, metrics};
use serde_json::{Value, json};

/// A registry that can be found by nobody but nodes that have been told.
const HOST: &str = "registry.test";
const IMAGE: &str = "larder.test/larder:1";
/// How many images there are to pull.
const N_IMAGES: u64 = 24;

/// Two nodes pull all the time, one image after the other, while everything is done to the cache that
/// an operator does: none of the pulls fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_to_a_cache_fails_no_pull() {
    let mut cluster = Cluster::start(2).await;
    let upstream = DockerRegistry::start().await;
    for n in 0..N_IMAGES {
        let image = Image::from_seed(n).layers(&[200 << 10, 50 << 10]).unpackable().build();
        upstream.push("team/app", &n.to_string(), &image).await;
    }
    let registry = format!("http://{}", cluster.expose(&upstream.host));
    cluster.import(IMAGE, &images::larder().await).await;
    let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
    let apply = ["apply", "--server-side", "-f", definitions.to_str().unwrap()];
    cluster.run("kubectl", &apply).await.expect("the definitions");
    let caches = caches(&cluster);
    until("caches are served", async || caches.list(&Default::default()).await.is_ok()).await;
    let start = async || Controller::start(&cluster, "default", &["--ca-settling", "5s"]).await;
    let controller = start().await;
    let spec = |size: &str, budget: &str, ttl: &str| {
        json!({
            "upstreams": [{"upstream": HOST, "remoteURL": registry}],
            "highAvailability": {"enabled": true},
            "volume": {"size": size},
            "garbageCollection": {"budget": budget, "ttl": ttl},
        })
    };
    apply_spec(&caches, spec("1Gi", "80%", "168h")).await;
    let ready = async || cache(&caches).await["status"]["readyReplicas"] == 2;
    until("both replicas answer", ready).await;
    until("all is settled", async || is_settled(&caches).await).await;

    // What an agent would know, as long as nodes have none: written anew for each of its words.
    let (stopping, n_pulls, n_failed) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let pulling = async |node: &Node| {
        let mut n = 0;
        while !stopping.load(Ordering::Relaxed) {
            point(node, &cache(&caches).await, &registry);
            let name = format!("{HOST}/team/app:{}", n % N_IMAGES);
            let hosts = ["--hosts-dir", "/etc/containerd/certs.d"];
            let pulled = node.ctr(&[&["images", "pull"], &hosts[..], &[&name]].concat()).await;
            n_pulls.fetch_add(1, Ordering::Relaxed);
            if pulled.code != Some(0) {
                println!("{}: {name}: {}", node.name, pulled.stderr);
                n_failed.fetch_add(1, Ordering::Relaxed);
            }
            // So that the next one has to ask for all of it.
            let _ = node.ctr(&["images", "rm", "--sync", &name]).await;
            n += 1;
        }
    };
    let doing = async {
        let counted = async |what: &str| {
            let begin = n_pulls.load(Ordering::Relaxed);
            until(format!("pulls go on: {what}"), async || {
                n_pulls.load(Ordering::Relaxed) > begin + 5
            })
            .await;
            println!("{what}: {} pulls", n_pulls.load(Ordering::Relaxed));
        };
        counted("all is as it was").await;

        apply_spec(&caches, spec("1Gi", "70%", "168h")).await;
        let before = pods(&cluster).await;
        let rolled = async || {
            let now = pods(&cluster).await;
            now.len() == 2 && before.iter().all(|uid| !now.contains(uid))
        };
        until("both replicas are other pods", rolled).await;
        until("all is settled", async || is_settled(&caches).await).await;
        counted("rolled").await;

        let before = pods(&cluster).await;
        let rotate = json!({"metadata": {"annotations": {"larder.dev/rotate-ca": "1"}}});
        let patch = Patch::Merge(rotate);
        caches.patch("cache", &PatchParams::default(), &patch).await.unwrap();
        let bundle =
            async || cache(&caches).await["status"]["caBundle"].as_str().unwrap().to_owned();
        let old = bundle().await;
        until("two are trusted", async || bundle().await.matches("BEGIN").count() == 2).await;
        let is_other =
            async || bundle().await.matches("BEGIN").count() == 1 && bundle().await != old;
        until("the other one is trusted alone", is_other).await;
        counted("another authority").await;
        assert_eq!(pods(&cluster).await, before, "nothing is started again for that");

        apply_spec(&caches, spec("2Gi", "70%", "168h")).await;
        let grown = async || {
            let now = pods(&cluster).await;
            now.len() == 2 && before.iter().all(|uid| !now.contains(uid))
        };
        until("volumes have grown and replicas know it", grown).await;
        until("all is settled", async || is_settled(&caches).await).await;
        counted("larger volumes").await;

        assert_eq!(controller.stop().await.code, Some(0));
        let _controller = start().await;
        apply_spec(&caches, spec("2Gi", "70%", "24h")).await;
        let generation = async || {
            let cache = cache(&caches).await;
            cache["status"]["observedGeneration"] == cache["metadata"]["generation"]
        };
        until("the new controller has seen it", generation).await;
        counted("another controller").await;
        let n_asked = asked(&cluster).await;
        assert!(n_asked > 20.0, "pulls came by the cache: {n_asked}");
        stopping.store(true, Ordering::Relaxed);
    };
    let nodes = cluster.nodes();
    tokio::join!(doing, pulling(&nodes[0]), pulling(&nodes[1]));
    let (n_pulls, n_failed) = (n_pulls.into_inner(), n_failed.into_inner());
    println!("{n_pulls} pulls, {n_failed} of them failed");
    assert_eq!(n_failed, 0);
}

fn caches(cluster: &Cluster) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "larder.dev".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "larder.dev/v1alpha1".to_owned(),
        kind: "RegistryCache".to_owned(),
        plural: "registrycaches".to_owned(),
    };
    Api::namespaced_with(cluster.client(), "default", &resource)
}

async fn apply_spec(caches: &Api<DynamicObject>, spec: Value) {
    let cache = json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "RegistryCache",
        "metadata": {"name": "cache"}, "spec": spec,
    });
    caches.patch("cache", &PatchParams::apply("person"), &Patch::Apply(cache)).await.unwrap();
}

async fn cache(caches: &Api<DynamicObject>) -> Value {
    serde_json::to_value(caches.get("cache").await.unwrap()).unwrap()
}

async fn is_settled(caches: &Api<DynamicObject>) -> bool {
    let cache = cache(caches).await;
    let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let is = |kind: &str, status: &str| {
        conditions.iter().any(|it| it["type"] == kind && it["status"] == status)
    };
    cache["status"]["observedGeneration"] == cache["metadata"]["generation"]
        && is("Ready", "True")
        && is("Progressing", "False")
        && is("Degraded", "False")
}

/// The uids of the replicas' pods.
async fn pods(cluster: &Cluster) -> Vec<String> {
    replicas(cluster).await.iter().filter_map(|it| it.uid()).collect()
}

async fn replicas(cluster: &Cluster) -> Vec<Pod> {
    let pods: Api<Pod> = Api::namespaced(cluster.client(), "default");
    let query = kube::api::ListParams::default().labels("app.kubernetes.io/instance=larder-cache");
    pods.list(&query).await.unwrap().items
}

/// Has a node's containerd ask the cache first, and the registry if that does not answer.
fn point(node: &Node, cache: &Value, registry: &str) {
    let status = &cache["status"];
    let folder = format!("/etc/containerd/certs.d/{HOST}");
    node.machine().write(&format!("{folder}/ca.pem"), status["caBundle"].as_str().unwrap());
    let entry = |endpoint: &Value| {
        format!(
            "[host.{}]\n  capabilities = [\"pull\", \"resolve\"]\n  ca = \"{folder}/ca.pem\"\n  dial_timeout = \"1s\"\n",
            endpoint["url"]
        )
    };
    let entries: String = status["endpoints"].as_array().into_iter().flatten().map(entry).collect();
    let text = format!("server = \"{registry}\"\n{entries}");
    node.machine().write(&format!("{folder}/hosts.toml"), &text);
}

/// How often the replicas that there are were asked for something of the registry.
async fn asked(cluster: &Cluster) -> f64 {
    let mut sum = 0.0;
    for pod in replicas(cluster).await {
        let address: std::net::IpAddr = pod.status.unwrap().pod_ip.unwrap().parse().unwrap();
        let forward = cluster.reach((address, 5001).into());
        let url = format!("http://{}/metrics", forward.address);
        let page = http::get(&url).send().await.bytes().await.unwrap();
        let page = std::str::from_utf8(&page).unwrap();
        sum += metrics::sum(page, "larder_requests_total", &[("upstream", HOST)]);
    }
    sum
}
