//! A node: containerd, a kubelet and kube-proxy in a machine of their own.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;

use larder_testkit::Image;

use super::cgroups::Cgroups;
use super::control_plane::{self, ControlPlane};
use super::images::PAUSE;
use super::keys::Keys;
use super::machine::Machine;
use super::programs::program;
use super::{PODS, images};
use crate::process::{Ended, Process, Stream};
use crate::suite::Suite;

/// The runtime's namespace of what tests pull.
const PULLED: &str = "pulled";

/// Where the kubelet's files are.
const ETC: &str = "/etc/kubernetes";

/// How many zones nodes are in, by turns.
const N_ZONES: u8 = 2;

/// How a node joins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The image of the first container of each pod; the usual one is there without a registry.
    pub pause: String,
    /// Whether pods have a network, or wait until there is [`Node::network`] in
    /// `/etc/cni/net.d/10-bridge.conflist`.
    pub has_network: bool,
    /// What it is tainted with from the beginning, as in `KEY=VALUE:EFFECT`.
    pub taint: Option<String>,
}

impl Default for Plan {
    fn default() -> Self {
        Self { pause: PAUSE.to_owned(), has_network: true, taint: None }
    }
}

/// A running node. Dropping it ends all that runs on it.
#[derive(Debug)]
pub struct Node {
    /// As Kubernetes knows it: `node1`, `node2`, …
    pub name: String,
    /// Where it is found by nodes, pods and the API server.
    pub address: Ipv4Addr,
    n: u8,
    plan: Plan,
    programs: Vec<Process>,
    machine: Machine,
    // After the machine, as nothing may be in them.
    _cgroups: Cgroups,
}

impl Node {
    /// Boots the `n`th one, from 1 on: its runtime is there, its kubelet not yet. `folder` is an empty
    /// one of the test; `id` is no other cluster's of this computer.
    pub(super) async fn boot(
        n: u8,
        id: &str,
        folder: &Path,
        control_plane: &ControlPlane,
        keys: &Keys,
        plan: Plan,
    ) -> Self {
        let name = format!("node{n}");
        let [a, b, c, _] = control_plane::ADDRESS.octets();
        let address = Ipv4Addr::new(a, b, c, 10 + n);
        let cgroups = Cgroups::make(&format!("{id}-{name}"));
        let machine = Machine::boot(&name, folder).await;
        control_plane.connect(&machine, address, &pods(n)).await;
        std::fs::create_dir_all(machine.path("/etc/cni/net.d")).unwrap();
        if plan.has_network {
            machine.write("/etc/cni/net.d/10-bridge.conflist", &network(&pods(n)));
        }
        machine.write("/etc/containerd/config.toml", &containerd_config(&plan.pause));
        std::fs::create_dir_all(machine.path("/etc/containerd/certs.d")).unwrap();
        machine.write("/etc/resolv.conf", "nameserver 127.0.0.1\n");

        let authority = keys.authority().certificate;
        machine.write(&format!("{ETC}/ca.crt"), &authority);
        let user = format!("system:node:{name}");
        let own = keys.sign(&user, Some("system:nodes"), &[&name], &[IpAddr::V4(address)]);
        machine.write(&format!("{ETC}/kubelet.crt"), &own.certificate);
        machine.write(&format!("{ETC}/kubelet.key"), &own.key);
        let server = control_plane::inner_url();
        let kubeconfig = keys.kubeconfig(&user, Some("system:nodes"), &server);
        machine.write(&format!("{ETC}/kubelet.conf"), &kubeconfig);
        machine.write(&format!("{ETC}/kubelet.yaml"), &kubelet_config(address, cgroups.name()));

        let containerd = machine.start("containerd", &SUITE.command("containerd", "containerd"));
        let is_up = |lines: &[String]| {
            lines.iter().any(|line| line.contains("containerd successfully booted")).then_some(())
        };
        containerd.find(Stream::Stderr, "it boots", is_up).await;
        let programs = vec![containerd];
        let node = Self { name, address, n, plan, programs, machine, _cgroups: cgroups };
        if node.plan.pause == PAUSE {
            node.import(PAUSE, &images::busybox()).await;
        }
        node
    }

    /// Starts its kubelet and kube-proxy, and does not wait until it is ready.
    pub(super) fn join(&mut self, keys: &Keys) {
        let kubelet = kubelet(self.address, self.n, self.plan.taint.as_deref());
        let kubelet = self.machine.start("kubelet", &kubelet);
        let proxy = start_proxy(&self.machine, &self.name, keys);
        self.programs.extend([kubelet, proxy]);
    }

    /// What a network of pods is configured with here.
    pub fn network(&self) -> String {
        network(&pods(self.n))
    }

    /// Where its kubelet has its credential, in the machine.
    pub fn kubeconfig(&self) -> String {
        format!("{ETC}/kubelet.conf")
    }

    /// What it runs in.
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// Has containerd find a registry that has no address (`registry.test`) at a URL.
    pub fn find_registry(&self, host: &str, url: &str) {
        // containerd 1.7 takes no file without a `host`.
        let hosts = format!(
            "server = \"{url}\"\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        self.machine.write(&format!("/etc/containerd/certs.d/{host}/hosts.toml"), &hosts);
    }

    /// Puts an image where the kubelet finds it without a registry, as `name`
    /// (`HOST/REPOSITORY:TAG`).
    ///
    /// # Panics
    ///
    /// If containerd does not take it.
    pub async fn import(&self, name: &str, image: &Image) {
        let path = "/run/image.tar";
        std::fs::write(self.machine.path(path), image.layout(name)).unwrap();
        self.ctr(&["images", "import", path]).await.expect(&format!("{}: {name}", self.name));
        std::fs::remove_file(self.machine.path(path)).unwrap();
    }

    /// Pulls an image by the node's runtime, as somebody (`NAME:PASSWORD`) if the registry wants to know.
    /// Kubernetes does not see it: of what that has seen, it keeps some after [`Self::forget`].
    pub async fn pull(&self, name: &str, login: Option<&str>) -> Ended {
        let mut arguments = vec!["images", "pull", "--hosts-dir", "/etc/containerd/certs.d"];
        arguments.extend(login.iter().flat_map(|login| ["--user", *login]));
        arguments.push(name);
        self.ctr_in(PULLED, &arguments).await
    }

    /// Removes what was pulled, so that the next one who pulls it has to ask for all of it.
    pub async fn forget(&self, name: &str) -> Ended {
        self.ctr_in(PULLED, &["images", "rm", "--sync", name]).await
    }

    /// The blobs of pulls that are on their way, as the runtime names them.
    pub async fn pulling(&self) -> Ended {
        self.ctr_in(PULLED, &["content", "active"]).await
    }

    /// Runs `ctr` with these arguments in the namespace that the kubelet uses.
    pub async fn ctr(&self, arguments: &[&str]) -> Ended {
        self.ctr_in("k8s.io", arguments).await
    }

    async fn ctr_in(&self, namespace: &str, arguments: &[&str]) -> Ended {
        let mut command = SUITE.command("ctr", "containerd");
        command.args(["--namespace", namespace]).args(arguments);
        self.machine.run(&command).await
    }
}

/// Whose containerd nodes have.
const SUITE: Suite = Suite::Trixie;

/// `restrict_oom_score_adj` and the cgroup driver are because of where tests run: without
/// CAP_SYS_RESOURCE, and perhaps without systemd.
fn containerd_config(pause: &str) -> String {
    format!(
        r#"
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
"#
    )
}

/// The addresses of the pods of the `n`th node.
fn pods(n: u8) -> String {
    format!("10.244.{n}.0/24")
}

fn network(pods: &str) -> String {
    format!(
        r#"{{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {{"type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
    "ipam": {{"type": "host-local", "ranges": [[{{"subnet": "{pods}"}}]], "routes": [{{"dst": "0.0.0.0/0"}}]}}}},
  {{"type": "portmap", "capabilities": {{"portMappings": true}}}}
]}}
"#
    )
}

/// No container is evicted for what other tests do to the computer's disk and memory.
fn kubelet_config(address: Ipv4Addr, cgroup: &str) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: {address}
healthzBindAddress: 127.0.0.1
tlsCertFile: {ETC}/kubelet.crt
tlsPrivateKeyFile: {ETC}/kubelet.key
authentication: {{anonymous: {{enabled: false}}, x509: {{clientCAFile: {ETC}/ca.crt}}, webhook: {{enabled: true}}}}
authorization: {{mode: Webhook}}
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
cgroupRoot: /{cgroup}
failCgroupV1: false
failSwapOn: false
enforceNodeAllocatable: []
localStorageCapacityIsolation: false
evictionHard: {{memory.available: 50Mi}}
imageGCHighThresholdPercent: 100
resolvConf: /etc/resolv.conf
clusterDomain: cluster.local
nodeStatusUpdateFrequency: 5s
serializeImagePulls: false
maxParallelImagePulls: 5
"
    )
}

fn kubelet(address: Ipv4Addr, n: u8, taint: Option<&str>) -> Command {
    let mut command = program("kubelet");
    command.arg(format!("--config={ETC}/kubelet.yaml"));
    command.arg(format!("--kubeconfig={ETC}/kubelet.conf"));
    command.arg(format!("--node-ip={address}"));
    command.arg(format!("--node-labels=topology.kubernetes.io/zone=zone{}", n % N_ZONES));
    command.args(taint.map(|taint| format!("--register-with-taints={taint}")));
    command
}

/// Has a machine of the cluster reach services, as pods of `node` do.
pub(super) fn start_proxy(machine: &Machine, node: &str, keys: &Keys) -> Process {
    let user = keys.kubeconfig("system:kube-proxy", None, &control_plane::inner_url());
    machine.write(&format!("{ETC}/kube-proxy.conf"), &user);
    // Connection tracking is left as it is: its limits are the whole computer's.
    let config = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: iptables
hostnameOverride: {node}
clientConnection: {{kubeconfig: {ETC}/kube-proxy.conf}}
clusterCIDR: {PODS}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
"
    );
    machine.write(&format!("{ETC}/kube-proxy.yaml"), &config);
    let mut command = program("kube-proxy");
    command.arg(format!("--config={ETC}/kube-proxy.yaml"));
    machine.start("kube-proxy", &command)
}
