//! A real Kubernetes: control plane, nodes, and the network between them.
//!
//! ```text
//!        ┌── machine: node1 ────┐      ┌── machine: control plane ──────────┐
//! pods ──┤ containerd, kubelet, ├─eth0─┤ br0 10.77.0.1: etcd, API server,   ├─ 127.0.0.1 ── test,
//!        │ kube-proxy           │      │ controllers, scheduler, kube-proxy │   kubectl, helm
//!        └──────────────────────┘      └───────────────┬────────────────────┘
//!        ┌── machine: node2 ────┐                      │
//! pods ──┤ …                    ├─eth0─────────────────┘
//! ```
//!
//! - [`machine`]: what a node or the control plane runs in; [`wire`]: how this computer and theirs
//!   speak to each other;
//! - [`Cluster`]: all of it; [`Node`]: one of its nodes;
//! - [`images`]: images that need no registry; [`volumes`]: the storage class;
//! - [`Installation`]: Larder in it, by its chart; [`CertManager`]: who issues certificates there;
//!   [`objects`]: what several tests make or read.
//!
//! No two clusters share an address or a file, so that as many as the computer bears may run at
//! once. There is no cluster DNS. The computer's own settings stay as they are.

pub mod cert_manager;
pub(crate) mod cgroups;
mod control_plane;
pub mod images;
pub mod installation;
mod keys;
pub mod machine;
mod node;
pub mod objects;
mod programs;
pub mod volumes;
pub mod wire;

use std::env;
use std::fmt::Display;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Weak};
use std::time::Duration;

use k8s_openapi::api::core::v1 as core;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use larder_testkit::Image;
use tokio::sync::Mutex;
use tokio::time::MissedTickBehavior;

use crate::process::{Ended, Process, run, run_unbounded};
use crate::scratch::Scratch;
pub use cert_manager::CertManager;
use control_plane::ControlPlane;
pub use installation::Installation;
use keys::Keys;
pub use node::{Node, Plan};
pub use programs::program;
use volumes::Provisioner;
use wire::Forward;

/// The addresses of all pods, and those of services.
const PODS: &str = "10.244.0.0/16";
const SERVICES: &str = "10.96.0.0/16";

/// How long a cluster may take to become what it should. Longer than other waits of tests: dozens of
/// programs work at it, and other tests beside them.
pub const PATIENCE: Duration = Duration::from_secs(240);

/// How long until it is looked again whether something is so.
const PAUSE: Duration = Duration::from_millis(100);

/// The one of [`Cluster::shared`], as long as somebody has it.
static SHARED: Mutex<Weak<Cluster>> = Mutex::const_new(Weak::new());

/// A cluster. Dropping it ends all of it.
#[derive(Debug)]
pub struct Cluster {
    /// How somebody who may do everything reaches the API.
    config: Config,
    kubeconfig: PathBuf,
    nodes: Vec<Node>,
    // Of the nodes' services, for the API server, once there is a node.
    proxy: Option<Process>,
    provisioner: Option<Provisioner>,
    exposed: Vec<Forward>,
    own: Option<Own>,
}

/// What is not there for a cluster that was there before.
#[derive(Debug)]
struct Own {
    control_plane: ControlPlane,
    keys: Keys,
    scratch: Scratch,
}

impl Cluster {
    /// One for all tests of a process that need the API alone at the same time: a control plane
    /// without nodes, or what `KUBECONFIG` names where `LARDER_TEST_CLUSTER` is `existing`.
    ///
    /// # Panics
    ///
    /// As [`Self::start`].
    pub async fn shared() -> Arc<Self> {
        let mut shared = SHARED.lock().await;
        if let Some(running) = shared.upgrade() {
            return running;
        }
        let started = if env::var("LARDER_TEST_CLUSTER").is_ok_and(|it| it == "existing") {
            let path = env::var("KUBECONFIG").expect("KUBECONFIG says which cluster exists");
            Self::new(path.into(), None).await
        } else {
            Self::start(0).await
        };
        let started = Arc::new(started);
        *shared = Arc::downgrade(&started);
        started
    }

    /// Starts one with so many nodes, which are ready.
    ///
    /// # Panics
    ///
    /// If a program is not there, or the cluster does not become ready (it needs root).
    pub async fn start(n_nodes: u8) -> Self {
        let (scratch, keys) = (Scratch::new(), Keys::new());
        let folder = scratch.folder("control-plane");
        let control_plane = ControlPlane::start("control-plane", &folder, &keys).await;
        let kubeconfig = keys.kubeconfig("admin", Some("system:masters"), &control_plane.url());
        let kubeconfig = scratch.write("admin.conf", &kubeconfig);
        let mut cluster = Self::new(kubeconfig, Some(Own { control_plane, keys, scratch })).await;
        cluster.own.as_mut().expect("it has just been made").control_plane.complete();
        // Pods are refused until then.
        let accounts: Api<core::ServiceAccount> = Api::default_namespaced(cluster.client());
        let there = async || accounts.get_opt("default").await.is_ok_and(|it| it.is_some());
        until("the default service account is there", there).await;
        for _ in 0..n_nodes {
            cluster.boot_node(Plan::default()).await;
            cluster.let_join().await;
        }
        for n in 0..usize::from(n_nodes) {
            cluster.is_ready(&cluster.nodes[n].name).await;
        }
        cluster
    }

    async fn new(kubeconfig: PathBuf, own: Option<Own>) -> Self {
        let config = Kubeconfig::read_from(&kubeconfig).unwrap();
        let options = KubeConfigOptions::default();
        let config = Config::from_custom_kubeconfig(config, &options).await.unwrap();
        let client = Client::try_from(config.clone()).unwrap();
        answers(&client).await;
        let (nodes, exposed) = (Vec::new(), Vec::new());
        Self { config, kubeconfig, nodes, proxy: None, provisioner: None, exposed, own }
    }

    /// The file by which programs reach the API, as somebody who may do everything.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// A client for the API, as somebody who may do everything. Each test has its own.
    ///
    /// # Panics
    ///
    /// Never, as the same has been made before.
    pub fn client(&self) -> Client {
        Client::try_from(self.config.clone()).unwrap()
    }

    /// What its traces on this computer have in their names.
    ///
    /// # Panics
    ///
    /// For a cluster that was there before.
    pub fn name(&self) -> &str {
        self.own.as_ref().expect("this cluster is ours").name()
    }

    /// The nodes, in the order in which they joined.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Adds a node, and returns when it is ready.
    ///
    /// # Panics
    ///
    /// As [`Self::start`]; and for a cluster that was there before.
    pub async fn join_node(&mut self) -> &Node {
        self.boot_node(Plan::default()).await;
        self.let_join().await;
        let node = self.nodes.last().expect("one was added");
        self.is_ready(&node.name).await;
        node
    }

    /// Boots a node, which does not join before [`Self::let_join`].
    ///
    /// # Panics
    ///
    /// As [`Self::join_node`].
    pub async fn boot_node(&mut self, plan: Plan) -> &Node {
        let own = self.own.as_ref().expect("this cluster is ours");
        let n = u8::try_from(self.nodes.len() + 1).expect("so many fit into no test");
        let folder = own.scratch.folder(&format!("node{n}"));
        let node = Node::boot(n, own.name(), &folder, &own.control_plane, &own.keys, plan).await;
        self.nodes.push(node);
        self.nodes.last().expect("it is there")
    }

    /// Has the node that was booted last join, and does not wait until it is ready.
    ///
    /// # Panics
    ///
    /// As [`Self::join_node`].
    pub async fn let_join(&mut self) {
        let own = self.own.as_ref().expect("this cluster is ours");
        self.nodes.last_mut().expect("one was booted").join(&own.keys);
        if self.proxy.is_none() {
            let hub = own.control_plane.machine();
            self.proxy = Some(node::start_proxy(hub, &self.nodes[0].name, &own.keys));
            let folder = own.scratch.folder("volumes");
            self.provisioner = Some(Provisioner::start(self.client(), folder).await);
        }
    }

    /// Returns once a node is ready.
    ///
    /// # Panics
    ///
    /// After [`PATIENCE`].
    pub async fn is_ready(&self, node: &str) {
        let nodes: Api<core::Node> = Api::all(self.client());
        let is_ready = async || {
            let node = nodes.get_opt(node).await.ok().flatten();
            let conditions = node.and_then(|it| it.status?.conditions).unwrap_or_default();
            conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True")
        };
        until(&format!("{node} is ready"), is_ready).await;
    }

    /// Puts an image on every node that there is, as `name` (`HOST/REPOSITORY:TAG`).
    ///
    /// # Panics
    ///
    /// If a node does not take it.
    pub async fn import(&self, name: &str, image: &Image) {
        for node in &self.nodes {
            node.import(name, image).await;
        }
    }

    /// Lets nodes and pods reach what listens on loopback at `address` (`127.0.0.1:PORT`), and returns
    /// where they do (`HOST:PORT`).
    ///
    /// # Panics
    ///
    /// If `address` is none; and for a cluster that was there before.
    pub fn expose(&mut self, address: &str) -> String {
        let exposed = self.lead_to(address.parse().unwrap());
        let host = exposed.address.to_string();
        self.exposed.push(exposed);
        host
    }

    /// Where nodes and pods find the API server without a service (`HOST:PORT`).
    pub fn api_server(&self) -> String {
        control_plane::inner_url().trim_start_matches("https://").to_owned()
    }

    /// Kills the API server and starts it again. Returns once it answers.
    ///
    /// # Panics
    ///
    /// For a cluster that was there before, or if it does not answer after [`PATIENCE`].
    pub async fn restart_api_server(&self) {
        self.own.as_ref().expect("this cluster is ours").control_plane.restart_api_server();
        answers(&self.client()).await;
    }

    /// An address by which nodes, pods and the API server reach what listens on loopback at `address`.
    ///
    /// # Panics
    ///
    /// For a cluster that was there before.
    pub fn lead_to(&self, address: SocketAddr) -> Forward {
        let own = self.own.as_ref().expect("this cluster is ours");
        let there = SocketAddr::from((control_plane::ADDRESS, 0));
        own.control_plane.wire().expose(there, address)
    }

    /// A loopback address that leads to a pod's or a node's.
    ///
    /// # Panics
    ///
    /// For a cluster that was there before.
    pub fn reach(&self, address: SocketAddr) -> Forward {
        self.own.as_ref().expect("this cluster is ours").control_plane.wire().forward(address)
    }

    /// Runs `kubectl` or `helm` with these arguments.
    ///
    /// # Panics
    ///
    /// If it is not there.
    pub async fn run(&self, name: &str, arguments: &[&str]) -> Ended {
        run(&mut self.command(name, arguments)).await
    }

    /// The same, for what may take longer than other programs of tests do.
    ///
    /// # Panics
    ///
    /// After [`PATIENCE`].
    pub async fn run_patiently(&self, name: &str, arguments: &[&str]) -> Ended {
        let mut command = self.command(name, arguments);
        let ended = tokio::time::timeout(PATIENCE, run_unbounded(&mut command)).await;
        ended.expect("it ends")
    }

    fn command(&self, name: &str, arguments: &[&str]) -> Command {
        let mut command = program(name);
        // What these programs remember is remembered beside the cluster.
        if let Some(own) = &self.own {
            command.env("HOME", own.scratch.folder("home"));
        }
        command.args(arguments).env("KUBECONFIG", &self.kubeconfig);
        command
    }
}

impl Own {
    fn name(&self) -> &str {
        self.scratch.path().file_name().unwrap().to_str().unwrap()
    }
}

/// Returns once an API server answers.
async fn answers(client: &Client) {
    let answers = async || {
        let request = http::Request::get("/readyz").body(Vec::new()).unwrap();
        client.request_text(request).await.is_ok()
    };
    until("the API server answers", answers).await;
}

/// Returns once something is so.
///
/// # Panics
///
/// After [`PATIENCE`].
pub async fn until(what: impl Display, is_so: impl AsyncFn() -> bool) {
    let mut again = tokio::time::interval(PAUSE);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let so = async {
        while !is_so().await {
            again.tick().await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, so).await.is_ok(), "{what}: not within {PATIENCE:?}");
}
