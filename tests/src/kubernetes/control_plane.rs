//! etcd, the API server, and what stands beside it, in a machine of their own.
//!
//! The machine is also where the nodes' cables meet.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;

use super::keys::Keys;
use super::machine::Machine;
use super::programs::program;
use super::wire::{Forward, Wire};
use super::{PODS, SERVICES};
use crate::process::{Process, peer};

/// Where nodes, pods and the API server find each other. The same in all clusters, which never meet.
pub(super) const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PORT: u16 = 6443;

/// The address that pods ask the API server at: the first of [`SERVICES`].
const INNER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// Where its files are.
const ETC: &str = "/etc/kubernetes";

#[derive(Debug)]
pub(super) struct ControlPlane {
    programs: Vec<Process>,
    api_server: Mutex<Process>,
    /// Where this computer finds the API server.
    forward: Forward,
    machine: Machine,
}

impl ControlPlane {
    /// Starts one without what asks the API server, which may not answer yet.
    pub(super) async fn start(name: &str, folder: &Path, keys: &Keys) -> Self {
        let machine = Machine::boot(name, folder).await;
        for words in [
            "link add br0 type bridge",
            &format!("addr add {ADDRESS}/24 dev br0"),
            "link set br0 up",
            // The API server asks webhooks at such an address; kube-proxy turns it into a pod's.
            &format!("route add {SERVICES} dev br0"),
        ] {
            machine.ip(words).await;
        }
        write_keys(&machine, keys);
        let programs = vec![start_etcd(&machine)];
        let api_server = Mutex::new(start_api_server(&machine));
        let forward = machine.wire().forward(SocketAddr::from((ADDRESS, PORT)));
        Self { programs, api_server, forward, machine }
    }

    /// Kills the API server and starts it again. Does not wait until it answers.
    pub(super) fn restart_api_server(&self) {
        let mut api_server = self.api_server.lock().unwrap();
        api_server.kill();
        *api_server = start_api_server(&self.machine);
    }

    /// Starts the rest. They give up soon if the API server does not answer.
    pub(super) fn complete(&mut self) {
        self.programs.extend([start_controllers(&self.machine), start_scheduler(&self.machine)]);
    }

    pub(super) fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The URL of the API server, for programs of this computer.
    pub(super) fn url(&self) -> String {
        format!("https://{}", self.forward.address)
    }

    /// The network in which nodes, pods and the API server find each other.
    pub(super) fn wire(&self) -> Wire {
        self.machine.wire()
    }

    /// Joins a node's machine to it, at `address`, with these pods.
    pub(super) async fn connect(&self, node: &Machine, address: Ipv4Addr, pods: &str) {
        let end = format!("to{}", address.octets()[3]);
        let hub = &self.machine;
        hub.ip(&format!("link add {end} type veth peer name eth0 netns {}", node.pid())).await;
        hub.ip(&format!("link set {end} master br0 up")).await;
        node.ip(&format!("addr add {address}/24 dev eth0")).await;
        node.ip("link set eth0 up").await;
        node.ip(&format!("route add default via {ADDRESS}")).await;
        hub.ip(&format!("route add {pods} via {address}")).await;
    }
}

/// The URL of the API server, for programs in its network.
pub(super) fn inner_url() -> String {
    format!("https://{ADDRESS}:{PORT}")
}

fn write_keys(machine: &Machine, keys: &Keys) {
    let write = |name: &str, text: &str| machine.write(&format!("{ETC}/{name}"), text);
    let authority = keys.authority();
    write("ca.crt", &authority.certificate);
    write("ca.key", &authority.key);
    let (signing, checking) = keys.tokens();
    write("tokens.key", &signing);
    write("tokens.pub", &checking);
    let names = ["kubernetes", "kubernetes.default", "kubernetes.default.svc", "localhost"];
    let addresses = [ADDRESS, INNER_ADDRESS, Ipv4Addr::LOCALHOST].map(IpAddr::V4);
    let server = keys.sign("kube-apiserver", None, &names, &addresses);
    write("server.crt", &server.certificate);
    write("server.key", &server.key);
    let client = keys.sign("kube-apiserver-kubelet-client", Some("system:masters"), &[], &[]);
    write("client.crt", &client.certificate);
    write("client.key", &client.key);
    for name in ["kube-controller-manager", "kube-scheduler"] {
        let user = format!("system:{name}");
        write(&format!("{name}.conf"), &keys.kubeconfig(&user, None, &inner_url()));
    }
}

fn start_etcd(machine: &Machine) -> Process {
    let mut command = peer("etcd", "etcd-server");
    command.args(["--data-dir=/var/lib/etcd", "--unsafe-no-fsync", "--logger=zap"]);
    command.args(["--listen-client-urls=http://127.0.0.1:2379"]);
    command.args(["--advertise-client-urls=http://127.0.0.1:2379"]);
    command.args(["--listen-peer-urls=http://127.0.0.1:2380"]);
    machine.start("etcd", &command)
}

fn start_api_server(machine: &Machine) -> Process {
    let mut command = program("kube-apiserver");
    command.arg("--etcd-servers=http://127.0.0.1:2379");
    command.arg(format!("--bind-address={ADDRESS}"));
    command.arg(format!("--advertise-address={ADDRESS}"));
    command.arg(format!("--secure-port={PORT}"));
    command.arg(format!("--tls-cert-file={ETC}/server.crt"));
    command.arg(format!("--tls-private-key-file={ETC}/server.key"));
    command.arg(format!("--client-ca-file={ETC}/ca.crt"));
    command.arg(format!("--kubelet-certificate-authority={ETC}/ca.crt"));
    command.arg(format!("--kubelet-client-certificate={ETC}/client.crt"));
    command.arg(format!("--kubelet-client-key={ETC}/client.key"));
    command.arg("--kubelet-preferred-address-types=InternalIP");
    command.arg("--service-account-issuer=https://kubernetes.default.svc");
    command.arg(format!("--service-account-key-file={ETC}/tokens.pub"));
    command.arg(format!("--service-account-signing-key-file={ETC}/tokens.key"));
    command.arg(format!("--service-cluster-ip-range={SERVICES}"));
    command.args(["--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction"]);
    command.args(["--allow-privileged=true", "--shutdown-delay-duration=0s"]);
    machine.start("kube-apiserver", &command)
}

fn start_controllers(machine: &Machine) -> Process {
    let mut command = program("kube-controller-manager");
    for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        command.arg(format!("--{flag}={ETC}/kube-controller-manager.conf"));
    }
    command.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
    command.arg("--use-service-account-credentials");
    command.arg(format!("--service-account-private-key-file={ETC}/tokens.key"));
    command.arg(format!("--root-ca-file={ETC}/ca.crt"));
    command.arg(format!("--cluster-signing-cert-file={ETC}/ca.crt"));
    command.arg(format!("--cluster-signing-key-file={ETC}/ca.key"));
    command.arg(format!("--cluster-cidr={PODS}"));
    machine.start("kube-controller-manager", &command)
}

fn start_scheduler(machine: &Machine) -> Process {
    let mut command = program("kube-scheduler");
    for flag in ["kubeconfig", "authentication-kubeconfig", "authorization-kubeconfig"] {
        command.arg(format!("--{flag}={ETC}/kube-scheduler.conf"));
    }
    command.args(["--bind-address=127.0.0.1", "--leader-elect=false"]);
    machine.start("kube-scheduler", &command)
}
