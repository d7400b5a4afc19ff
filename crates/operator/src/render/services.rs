//! Where replicas are reached: by nodes, by each other, and by clients inside the cluster.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{ADMIN_PORT, PORT, Scope};

/// What the cluster has given to a replica's service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// An address that stays, and leads to the replica wherever it runs.
    pub(crate) cluster_ip: String,
    /// The port of its node that leads to it.
    pub(crate) node_port: u16,
}

impl Place {
    /// What an applied service says; `None` while it has no address.
    pub(crate) fn of(service: &Value) -> Option<Self> {
        let cluster_ip = service.pointer("/spec/clusterIP")?.as_str()?;
        let node_port = service.pointer("/spec/ports/0/nodePort")?.as_u64()?;
        let is_given = !cluster_ip.is_empty() && cluster_ip != "None";
        is_given.then_some(())?;
        Some(Self { cluster_ip: cluster_ip.to_owned(), node_port: u16::try_from(node_port).ok()? })
    }
}

/// `https://ADDRESS:PORT`, as everybody writes it who is to agree about who owns a blob.
pub(crate) fn url(scheme: &str, address: &str, port: u16) -> String {
    match address.contains(':') {
        true => format!("{scheme}://[{address}]:{port}"),
        false => format!("{scheme}://{address}:{port}"),
    }
}

/// What replicas call each other: by addresses that stay while they move, so that a restart moves
/// none of what they own, and that need no DNS.
pub(crate) fn peers(scope: Scope<'_>, places: &BTreeMap<u32, Place>) -> BTreeMap<u32, String> {
    let peer = |place: &Place| url(scope.scheme(), &place.cluster_ip, PORT);
    places.iter().map(|(ordinal, place)| (*ordinal, peer(place))).collect()
}

/// The services, those of the single replicas first, in the order of their ordinals.
pub(crate) fn render(scope: Scope<'_>) -> Vec<Value> {
    let mut services: Vec<Value> = (0..scope.replicas()).map(|n| of_replica(scope, n)).collect();
    services.push(headless(scope));
    services.push(for_clients(scope));
    services
}

/// For nodes: a port of the replica's own node, and of no other, so that agents choose the replica.
/// It leads there also while the pod is not ready: whether it answers, whoever asks finds out sooner.
fn of_replica(scope: Scope<'_>, ordinal: u32) -> Value {
    let name = scope.names.replica(ordinal);
    let spec = json!({
        "type": "NodePort",
        "externalTrafficPolicy": "Local",
        "publishNotReadyAddresses": true,
        "selector": {"statefulset.kubernetes.io/pod-name": name},
        "ports": [port("registry", PORT)],
    });
    scope.object("v1", "Service", &name, json!({"spec": spec}))
}

fn headless(scope: Scope<'_>) -> Value {
    let spec = json!({
        "clusterIP": "None",
        "publishNotReadyAddresses": true,
        "selector": scope.names.selector(),
        "ports": [port("registry", PORT)],
    });
    scope.object("v1", "Service", &scope.names.headless(), json!({"spec": spec}))
}

fn for_clients(scope: Scope<'_>) -> Value {
    let nearest = scope.is_highly_available().then_some("PreferClose");
    let spec = json!({
        "type": "ClusterIP",
        "trafficDistribution": nearest,
        "selector": scope.names.selector(),
        "ports": [port("registry", PORT), port("admin", ADMIN_PORT)],
    });
    scope.object("v1", "Service", scope.names.base(), json!({"spec": spec}))
}

fn port(name: &str, number: u16) -> Value {
    json!({"name": name, "port": number, "targetPort": name, "protocol": "TCP"})
}
