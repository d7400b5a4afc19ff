//! From the chart to pods that are pulled through a cache, and back.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "these are tests, which print their figures"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Node as NodeObject, Pod};
use kube::Api;
use kube::api::PostParams;
use larder_testkit::upstream::Request;
use larder_testkit::{Image, Upstream};
use larder_tests::kubernetes::{Installation, Node, Plan, images, until};
use larder_tests::{Cluster, metrics};
use serde_json::{Value, json};

/// A registry that can be found by nobody but nodes that have been told.
const HOST: &str = "registry.test";

/// The same one by a name of which no cache knows.
const DIRECT: &str = "direct.test";

/// The cache.
const CACHE: &str = "hub";

/// The longest that a pull may take here, whatever is broken: far less than a runtime's patience with a
/// host that is silent. What it really takes is printed, and measured by `agent_faults.rs`.
const NO_HANG: Duration = Duration::from_secs(15);

/// How often something is pulled until it comes by the cache. An agent waits for a replica for 190 ms
/// and no longer, which a busy machine may take.
const N_TRIES: usize = 5;

/// A cluster before anything is installed, and its registry.
struct Scene {
    cluster: Cluster,
    upstream: Upstream,
    registry: String,
    n_pulled: u64,
}

impl Scene {
    async fn new() -> Self {
        let mut cluster = Cluster::start(2).await;
        let upstream = Upstream::start().await;
        let registry = format!("http://{}", cluster.expose(&upstream.host()));
        let scene = Self { cluster, upstream, registry, n_pulled: 0 };
        scene.cluster.nodes().iter().for_each(|node| scene.tell(node));
        scene
    }

    /// Tells a node where the registry is.
    fn tell(&self, node: &Node) {
        node.find_registry(HOST, &self.registry);
        node.find_registry(DIRECT, &self.registry);
    }

    /// Pulls an image that nobody has pulled yet on a node; says how long that took, and whether by
    /// the cache.
    async fn pull(&mut self, node: usize, host: &str) -> (Duration, bool) {
        self.n_pulled += 1;
        let image = Image::from_seed(self.n_pulled).unpackable().layers(&[1000, 1000]).build();
        let tag = self.n_pulled.to_string();
        self.upstream.push("team/small", &tag, &image);
        self.upstream.forget_requests();
        let since = Instant::now();
        pull(&self.cluster.nodes()[node], &format!("{host}/team/small:{tag}")).await;
        let took = since.elapsed();
        assert!(took < NO_HANG, "{took:?}");
        (took, self.n_direct() == 0)
    }

    /// Pulls twice on a node and once directly, and says how long it took.
    async fn pulls(&mut self, what: &str) {
        let (first, second) = (self.pull(0, HOST).await, self.pull(0, HOST).await);
        let direct = self.pull(0, DIRECT).await;
        println!("{what}: {:?}, then {:?}; directly {:?}", first.0, second.0, direct.0);
        assert_eq!((first.1, second.1, direct.1), (false, false, false), "{what}");
    }

    /// Pulls on a node until it was by the cache, each time another image.
    async fn pulls_by_cache(&mut self, larder: &Installation) {
        for _ in 0..N_TRIES {
            let (took, is_by_cache) = self.pull(0, HOST).await;
            println!("all is well: {took:?}, by the cache: {is_by_cache}");
            if is_by_cache {
                return;
            }
        }
        panic!("none came by the cache: {}", fallbacks(larder, &self.cluster.nodes()[0]).await);
    }

    /// Asserts that what nodes have pulled came by the cache, but for what their agents say that they
    /// have sent on.
    async fn is_by_cache(&self, larder: &Installation, nodes: &[Node]) {
        let (mut n_sent_on, mut why) = (0.0, String::new());
        for node in nodes {
            let page = larder.agent_metrics(node).await;
            n_sent_on += metrics::sum(&page, "larder_agent_fallbacks_total", &[]);
            why.push_str(&fallbacks(larder, node).await);
            let sent = metrics::sum(&page, "larder_agent_bytes_total", &[]);
            assert!(sent > 0.0, "nothing came to {} by the cache: {why}", node.name);
        }
        let n_direct = self.n_direct();
        assert!(n_direct as f64 <= n_sent_on, "{n_direct} straight from upstream; {why}");
        if n_direct > 0 {
            println!("{n_direct} straight from upstream; {why}");
        }
    }

    /// How often a cache has fetched some of a blob.
    fn n_fetched(&self, of: impl Fn(&Request) -> bool) -> usize {
        self.upstream.count(|it| of(it) && !is_by_runtime(it))
    }

    /// How often a runtime has asked the registry itself.
    fn n_direct(&self) -> usize {
        self.upstream.count(is_by_runtime)
    }

    /// What is below `/etc/containerd` on each node.
    fn files(&self) -> Vec<Vec<(String, Vec<u8>)>> {
        let files = |node: &Node| {
            let mut files = Vec::new();
            read(&node.machine().path("/etc/containerd"), "", &mut files);
            files.sort();
            files
        };
        self.cluster.nodes().iter().map(files).collect()
    }

    /// On all nodes, whether packets to these ports are lost.
    async fn lose(&self, ports: &[u16], are_lost: bool) {
        let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
        let (act, ports) = (if are_lost { "-I" } else { "-D" }, ports.join(","));
        for node in self.cluster.nodes() {
            for chain in ["PREROUTING", "OUTPUT"] {
                let rule = format!("-p tcp -m multiport --dports {ports} -j DROP");
                node.machine().iptables(&format!("-t raw {act} {chain} {rule}")).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_pulls_by_what_the_chart_installs_and_is_as_before_without_it() {
    let mut scene = Scene::new().await;
    let app = images::busybox_of("app");
    scene.upstream.push("team/app", "1", &app);
    let before = scene.files();
    Installation::prepare(scene.cluster.nodes()).await;

    // From nothing to a pod.
    let begin = Instant::now();
    let api_server = format!("agent.apiServer={}", scene.cluster.api_server());
    let cache = |rest: &str| format!("caches.{CACHE}.{rest}");
    let values = [
        "taintNewNodes=true",
        &api_server,
        &cache(&format!("upstreams[0].upstream={HOST}")),
        &cache(&format!("upstreams[0].remoteURL={}", scene.registry)),
        // Two replicas, which outlive the node of one of them.
        &cache("highAvailability.enabled=true"),
        &cache("volume.size=1Gi"),
    ];
    let larder = Installation::by_chart(&scene.cluster, &values).await;
    for node in scene.cluster.nodes() {
        larder.is_used(node, HOST).await;
    }
    let pods: Api<Pod> = Api::default_namespaced(scene.cluster.client());
    runs(&pods, "node1").await;
    println!("from helm install to the first pod: {:?}", begin.elapsed());
    runs(&pods, "node2").await;
    scene.is_by_cache(&larder, scene.cluster.nodes()).await;
    larder.settles(CACHE).await;
    let both = Image::from_seed(0).unpackable().layers(&[100_000]).build();
    scene.upstream.push("team/both", "1", &both);
    for node in scene.cluster.nodes() {
        pull(node, &format!("{HOST}/team/both:1")).await;
    }
    let n_fetched = scene.n_fetched(|it| it.is_fetch_of(&both.layers[0].digest));
    assert_eq!(n_fetched, 1);
    scene.pulls_by_cache(&larder).await;

    lose_a_replica(&scene, &larder).await;

    // A third node, where nothing starts before its runtime is pointed to the cache.
    let taint = Some("larder.dev/not-ready=:NoSchedule".to_owned());
    scene.cluster.boot_node(Plan { taint, ..Plan::default() }).await;
    let node = &scene.cluster.nodes()[2];
    scene.tell(node);
    Installation::prepare(&scene.cluster.nodes()[2..]).await;
    scene.cluster.let_join().await;
    scene.upstream.forget_requests();
    runs(&pods, "node3").await;
    let nodes: Api<NodeObject> = Api::all(scene.cluster.client());
    let taints = nodes.get("node3").await.unwrap().spec.unwrap().taints.unwrap_or_default();
    assert!(!taints.iter().any(|it| it.key == "larder.dev/not-ready"), "{taints:?}");
    scene.is_by_cache(&larder, &scene.cluster.nodes()[2..]).await;
    assert_eq!(scene.n_fetched(|it| it.path.contains("/blobs/")), 0);

    // Packets to the replicas are lost, and arrive again.
    larder.settles(CACHE).await;
    let ports = ports(&larder.cache(CACHE).await);
    scene.lose(&ports, true).await;
    scene.pulls("replicas are a black hole").await;
    scene.lose(&ports, false).await;
    comes_back(&mut scene, "packets arrive again").await;

    // Replicas and services are gone, and then their packets, too.
    let kubectl = async |arguments: &[&str]| {
        Installation::kubectl(&scene.cluster, arguments).await.expect("kubectl");
    };
    kubectl(&["scale", "deployment", "larder-controller", "--replicas=0"]).await;
    let controllers = "app.kubernetes.io/component=controller";
    until("no controller runs", async || larder.pods(controllers).await.is_empty()).await;
    let all = "statefulsets,services,pods";
    let of_cache = format!("app.kubernetes.io/instance=larder-{CACHE}");
    kubectl(&["delete", all, "--selector", &of_cache, "--grace-period=0", "--force"]).await;
    until("no replica runs", async || larder.replicas(CACHE).await.is_empty()).await;
    scene.pulls("replicas and services are deleted").await;
    scene.lose(&ports, true).await;
    scene.pulls("and their packets are lost").await;

    // They are made again, at other ports of the nodes.
    Installation::kubectl(
        &scene.cluster,
        &["scale", "deployment", "larder-controller", "--replicas=1"],
    )
    .await
    .expect("kubectl");
    let are_elsewhere = async || {
        let now = self::ports(&larder.cache(CACHE).await);
        !now.is_empty() && now != ports
    };
    until("replicas are elsewhere", are_elsewhere).await;
    larder.settles(CACHE).await;
    comes_back(&mut scene, "replicas have other addresses").await;
    scene.lose(&ports, false).await;

    let third = scene.files().pop().unwrap();
    assert!(third.iter().any(|(_, text)| String::from_utf8_lossy(text).contains("Written by")));
    larder.uninstall(&scene.cluster).await;
    let after = scene.files();
    assert_eq!(after[..2], before[..]);
    assert_eq!(after[2], before[0]);
    assert!(!scene.pull(2, HOST).await.1);
}

/// Kills the replica of the first node's zone while a layer comes from it that both replicas have: the
/// other one sends the rest, and nothing is fetched again.
async fn lose_a_replica(scene: &Scene, larder: &Installation) {
    // Five seconds of that network: time enough to find it and to kill.
    let image = Image::from_seed(1 << 20).unpackable().layers(&[64 << 20]).build();
    scene.upstream.push("team/large", "1", &image);
    let name = format!("{HOST}/team/large:1");
    for node in scene.cluster.nodes() {
        pull(node, &name).await;
    }
    let node = &scene.cluster.nodes()[0];
    node.forget(&name).await.expect("the image is removed");
    let replicas = larder.replicas(CACHE).await;
    let here = |it: &&Pod| it.spec.as_ref().unwrap().node_name.as_deref() == Some(&node.name);
    let replica = replicas.iter().find(here).expect("there is one in each zone");
    let id = replica.status.as_ref().unwrap().container_statuses.as_ref().unwrap()[0]
        .container_id
        .as_deref()
        .unwrap()
        .trim_start_matches("containerd://");
    let tasks = node.ctr(&["tasks", "ls"]).await.expect("the tasks");
    let task = tasks.lines().find(|line| line.starts_with(id)).expect("it runs");
    node.machine().slow_down(task.split_whitespace().nth(1).unwrap()).await;

    scene.upstream.forget_requests();
    let kill = async {
        let layer = image.layers[0].digest.hex();
        let is_coming = async || node.pulling().await.expect("what is on its way").contains(&layer);
        until("the layer is coming", is_coming).await;
        node.ctr(&["tasks", "kill", "--signal", "SIGKILL", id]).await.expect("it is killed");
    };
    tokio::join!(pull(node, &name), kill);
    println!("the replica was killed; {}", fallbacks(larder, node).await);
    // The figure is a little behind.
    let is_resumed = async || {
        let page = larder.agent_metrics(node).await;
        metrics::sum(&page, "larder_agent_resumed_total", &[("source", "replica")]) == 1.0
    };
    until("the body went on from the other replica", is_resumed).await;
    assert_eq!(scene.upstream.count(|it| it.path.contains("/blobs/")), 0);
    larder.settles(CACHE).await;
}

/// Why a node's agent has sent its runtime on, and how often.
async fn fallbacks(larder: &Installation, node: &Node) -> String {
    let page = larder.agent_metrics(node).await;
    let lines = page.lines().filter(|it| it.starts_with("larder_agent_fallbacks_total"));
    let counted: Vec<&str> = lines.filter(|it| !it.ends_with(" 0")).collect();
    format!("{}: {counted:?} ", node.name)
}

fn is_by_runtime(request: &Request) -> bool {
    request.header("user-agent").is_some_and(|it| it.starts_with("containerd/"))
}

/// Returns once a pull on the first node is by the cache, and says how long that took.
async fn comes_back(scene: &mut Scene, what: &str) {
    let since = Instant::now();
    while !scene.pull(0, HOST).await.1 {
        assert!(since.elapsed() < larder_tests::kubernetes::PATIENCE, "{what}");
    }
    println!("{what}: by the cache again after {:?}", since.elapsed());
}

/// Returns when a pod of the registry's image runs on a node.
async fn runs(pods: &Api<Pod>, node: &str) {
    let pod = json!({
        "metadata": { "name": node },
        "spec": {
            "nodeSelector": { "kubernetes.io/hostname": node },
            "terminationGracePeriodSeconds": 0,
            "containers": [{ "name": "main", "image": format!("{HOST}/team/app:1") }],
        },
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    pods.create(&PostParams::default(), &pod).await.unwrap();
    let runs = async || {
        let status = pods.get(node).await.unwrap().status;
        status.and_then(|it| it.phase).is_some_and(|it| it == "Running")
    };
    until(format!("{node}'s pod runs"), runs).await;
}

/// The ports of nodes at which replicas answer.
fn ports(cache: &Value) -> Vec<u16> {
    let endpoints = cache["status"]["endpoints"].as_array().cloned().unwrap_or_default();
    let port = |it: &Value| it["url"].as_str()?.rsplit_once(':')?.1.parse().ok();
    endpoints.iter().filter_map(port).collect()
}

async fn pull(node: &Node, name: &str) {
    node.pull(name, None).await.expect(name);
}

fn read(folder: &Path, name: &str, files: &mut Vec<(String, Vec<u8>)>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let name = format!("{name}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files.push((name.clone(), Vec::new()));
            read(&entry.path(), &name, files);
        } else {
            files.push((name, fs::read(entry.path()).unwrap()));
        }
    }
}
