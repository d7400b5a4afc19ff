//! What a new node pulls before its pods have a network.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::process::Command;

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::Api;
use kube::api::PostParams;
use larder_testkit::Upstream;
use larder_tests::kubernetes::{Installation, Node, Plan, images, until};
use larder_tests::process::Process;
use larder_tests::{Cluster, larder};
use serde_json::{Value, json};

/// A registry that can be found by nobody but nodes that have been told.
const HOST: &str = "registry.test";

/// The node that comes later.
const LATE: &str = "node2";

/// The agent of the new node is no pod: it is there before the kubelet, and asks with its credential. So
/// all comes by the cache: the first image of every pod, the one that makes the network of pods, and
/// the first one that has it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn system_images_of_a_new_node_come_by_the_cache() {
    let mut cluster = Cluster::start(1).await;
    let upstream = Upstream::start().await;
    for name in ["pause", "network", "names"] {
        upstream.push(&format!("system/{name}"), "1", &images::busybox_of(name));
    }
    let registry = format!("http://{}", cluster.expose(&upstream.host()));
    Installation::prepare(cluster.nodes()).await;
    let values = ["agent.enabled=false", "agent.onHosts=true"];
    let larder = Installation::by_chart(&cluster, &values).await;
    let spec = json!({
        "upstreams": [{"upstream": HOST, "remoteURL": registry}], "volume": {"size": "1Gi"},
    });
    larder.apply("hub", spec).await;
    larder.settles("hub").await;

    let pause = format!("{HOST}/system/pause:1");
    let plan = Plan { pause, has_network: false, ..Plan::default() };
    let node = cluster.boot_node(plan).await;
    node.find_registry(HOST, &registry);
    let agent = start_agent(node);
    larder.is_used(&cluster.nodes()[1], HOST).await;
    cluster.let_join().await;
    let network = cluster.nodes()[1].network();
    daemon_set(&cluster, "network", &makes_network(&network)).await;
    daemon_set(&cluster, "names", &json!({"containers": [container("names")]})).await;
    cluster.is_ready(LATE).await;
    runs(&cluster, "names").await;

    let by_runtime = |it: &str| it.starts_with("containerd/");
    let n_direct = upstream.count(|it| it.header("user-agent").is_some_and(by_runtime));
    assert_eq!(n_direct, 0);
    for name in ["pause", "network", "names"] {
        let path = format!("/v2/system/{name}/manifests/");
        assert!(upstream.count(|it| it.path.starts_with(&path)) > 0, "{name} was pulled");
    }
    drop(agent);
}

/// As `deploy/systemd/larder-agent.service` would.
fn start_agent(node: &Node) -> Process {
    let mut command = Command::new(larder::program());
    command.args(["agent", "--kubernetes", "--node-name", &node.name]);
    command.env("KUBECONFIG", node.kubeconfig());
    node.machine().start("larder agent", &command)
}

/// A daemon of the new node that needs no network of pods, and makes it.
fn makes_network(network: &str) -> Value {
    let mut container = container("network");
    let line = "echo \"$NETWORK\" > /net.d/10-bridge.conflist; exec sleep 1000000";
    container["command"] = json!(["/bin/busybox", "sh", "-c", line]);
    container["env"] = json!([{"name": "NETWORK", "value": network}]);
    container["volumeMounts"] = json!([{"name": "folder", "mountPath": "/net.d"}]);
    json!({
        "hostNetwork": true,
        "containers": [container],
        "volumes": [{"name": "folder", "hostPath": {"path": "/etc/cni/net.d"}}],
    })
}

fn container(name: &str) -> Value {
    json!({"name": name, "image": format!("{HOST}/system/{name}:1")})
}

/// Has the new node run such a pod from the beginning.
async fn daemon_set(cluster: &Cluster, name: &str, pod: &Value) {
    let mut pod = pod.clone();
    pod["nodeSelector"] = json!({"kubernetes.io/hostname": LATE});
    pod["tolerations"] = json!([{"operator": "Exists"}]);
    let labels = json!({"name": name});
    let daemon_set = json!({
        "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    });
    let daemon_set: DaemonSet = serde_json::from_value(daemon_set).unwrap();
    let daemon_sets: Api<DaemonSet> = Api::default_namespaced(cluster.client());
    daemon_sets.create(&PostParams::default(), &daemon_set).await.unwrap();
}

async fn runs(cluster: &Cluster, name: &str) {
    let daemon_sets: Api<DaemonSet> = Api::default_namespaced(cluster.client());
    let is_ready = async || {
        let status = daemon_sets.get(name).await.unwrap().status;
        status.is_some_and(|it| it.number_ready == 1)
    };
    until(format!("{name} runs"), is_ready).await;
}
