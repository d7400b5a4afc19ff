//! The cluster that other tests stand on: nodes that pull, pods that meet, volumes that grow, and
//! nothing left of it.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod, Service};
use kube::Api;
use kube::api::{LogParams, Patch, PatchParams, PostParams};
use larder_tests::kubernetes::{images, until};
use larder_tests::{Cluster, DockerRegistry};
use serde_json::{Value, json};

/// A registry that can be found by nobody but nodes that have been told.
const HOST: &str = "registry.test";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_pull_and_pods_meet_and_another_node_joins() {
    let before = settings();
    let mut cluster = Cluster::start(2).await;
    let upstream = DockerRegistry::start().await;
    upstream.push("team/app", "1", &images::busybox()).await;
    let registry = format!("http://{}", cluster.expose(&upstream.host));
    for node in cluster.nodes() {
        node.find_registry(HOST, &registry);
    }
    let pods: Api<Pod> = Api::default_namespaced(cluster.client());

    // Each is pulled from the registry, and says something that the API server can fetch.
    for node in ["node1", "node2"] {
        let serve =
            format!("mkdir w; echo {node} > w/index.html; echo up; exec httpd -f -p 80 -h /w");
        create(&pods, &pod(node, node, &serve)).await;
        until(format!("{node}'s pod runs"), async || phase(&pods, node).await == "Running").await;
        let said = async || pods.logs(node, &LogParams::default()).await.unwrap_or_default();
        until(format!("{node}'s pod says so"), async || said().await == "up\n").await;
    }
    let pulls = upstream.requests().await;
    assert!(pulls.iter().any(|it| it.target.contains("/blobs/")), "{pulls:?}");

    // By a service, one reaches the other on the other node.
    let services: Api<Service> = Api::default_namespaced(cluster.client());
    let service = json!({
        "metadata": { "name": "web" },
        "spec": { "selector": { "name": "node2" }, "ports": [{ "port": 80 }] },
    });
    let service: Service = serde_json::from_value(service).unwrap();
    let service = services.create(&PostParams::default(), &service).await.unwrap();
    let address = service.spec.unwrap().cluster_ip.unwrap();
    let ask = format!("until wget -q -O - http://{address}/; do sleep 0.1; done");
    create(&pods, &pod("asks", "node1", &ask)).await;
    until("a pod has asked", async || phase(&pods, "asks").await == "Succeeded").await;
    assert_eq!(pods.logs("asks", &LogParams::default()).await.unwrap(), "node2\n");

    // A claim gets a volume on the node of its pod, which grows with it.
    let claims: Api<PersistentVolumeClaim> = Api::default_namespaced(cluster.client());
    let claim = json!({
        "metadata": { "name": "data" },
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": { "requests": { "storage": "1Gi" } },
        },
    });
    let claim = serde_json::from_value(claim).unwrap();
    claims.create(&PostParams::default(), &claim).await.unwrap();
    let mut writes = pod("writes", "", "echo kept > /data/file; exec sleep 1000000");
    writes["spec"]["volumes"] =
        json!([{ "name": "data", "persistentVolumeClaim": { "claimName": "data" } }]);
    writes["spec"]["containers"][0]["volumeMounts"] =
        json!([{ "name": "data", "mountPath": "/data" }]);
    // Not as root, as the cache does not run as root.
    writes["spec"]["securityContext"] = json!({ "runAsUser": 65532, "fsGroup": 65532 });
    create(&pods, &writes).await;
    until("a pod has a volume", async || phase(&pods, "writes").await == "Running").await;
    let patch = json!({ "spec": { "resources": { "requests": { "storage": "2Gi" } } } });
    claims.patch("data", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let capacity = async || {
        let claim = claims.get("data").await.unwrap();
        claim.status.unwrap().capacity.unwrap()["storage"].0.clone()
    };
    until("the volume has grown", async || capacity().await == "2Gi").await;

    let node = cluster.join_node().await;
    node.find_registry(HOST, &registry);
    create(&pods, &pod("late", "node3", "exec sleep 1000000")).await;
    until("the new node runs pods", async || phase(&pods, "late").await == "Running").await;

    let name = cluster.name().to_owned();
    assert_ne!(traces(&name), [""; 0]);
    drop(cluster);
    assert_eq!(traces(&name), [""; 0]);
    assert_eq!(settings(), before);
}

/// A pod of the registry's image that runs a line of shell; on any node if none is named.
fn pod(name: &str, node: &str, line: &str) -> Value {
    json!({
        "metadata": { "name": name, "labels": { "name": name } },
        "spec": {
            "nodeSelector": match node {
                "" => json!({}),
                node => json!({ "kubernetes.io/hostname": node }),
            },
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "containers": [{
                "name": "main",
                "image": format!("{HOST}/team/app:1"),
                "command": ["/bin/busybox", "sh", "-c", line],
            }],
        },
    })
}

async fn create(pods: &Api<Pod>, pod: &Value) {
    let pod: Pod = serde_json::from_value(pod.clone()).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
}

async fn phase(pods: &Api<Pod>, name: &str) -> String {
    pods.get(name).await.unwrap().status.and_then(|it| it.phase).unwrap_or_default()
}

/// The mounts and control groups of a cluster.
fn traces(cluster: &str) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let hierarchies = fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    let groups = hierarchies.flat_map(|it| fs::read_dir(it.path()).into_iter().flatten().flatten());
    let groups = groups.map(|it| it.path().to_string_lossy().into_owned());
    let all = mounts.lines().map(str::to_owned).chain(groups);
    all.filter(|it| it.contains(cluster)).collect()
}

/// What a kubelet likes to set for the whole computer.
fn settings() -> [String; 3] {
    ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops"]
        .map(|name| fs::read_to_string(format!("/proc/sys/{name}")).unwrap())
}
