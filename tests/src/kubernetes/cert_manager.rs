//! cert-manager: its controllers, as they were released, and its definitions. Its webhook does not run.

use std::process::Command;

use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};

use super::programs::CERT_MANAGER;
use super::{Cluster, until};
use crate::process::Process;

const VERSION: &str = "cert-manager.io/v1";

/// cert-manager, outside of the cluster that it issues for.
#[derive(Debug)]
pub struct CertManager {
    _process: Process,
}

impl CertManager {
    /// Tells a cluster its definitions, and starts it.
    ///
    /// # Panics
    ///
    /// If it is not built, or `kubectl` fails.
    pub async fn start(cluster: &Cluster) -> Self {
        apply_definitions(cluster).await;
        let mut command = Command::new(CERT_MANAGER.path("bin/cert-manager"));
        command.env("KUBECONFIG", cluster.kubeconfig());
        Self { _process: Process::start("cert-manager", &mut command) }
    }
}

/// Tells a cluster what cert-manager's resources are. Returns once they are served.
///
/// # Panics
///
/// If they are not there, or `kubectl` fails.
pub async fn apply_definitions(cluster: &Cluster) {
    let definitions = CERT_MANAGER.path("crds");
    let definitions = ["--filename", definitions.to_str().unwrap()];
    let apply = [&["apply", "--server-side"], &definitions[..]].concat();
    cluster.run("kubectl", &apply).await.expect("cert-manager's definitions");
    let wait = [&["wait", "--for=condition=Established"], &definitions[..]].concat();
    cluster.run("kubectl", &wait).await.expect("they are served");
}

/// The objects of a kind of a namespace.
pub fn objects(client: Client, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "cert-manager.io".to_owned(),
        version: "v1".to_owned(),
        api_version: VERSION.to_owned(),
        kind: kind.to_owned(),
        plural: format!("{}s", kind.to_lowercase()),
    };
    Api::namespaced_with(client, namespace, &resource)
}

/// Makes an object of a kind as a person. Returns once cert-manager says that it is ready.
///
/// # Panics
///
/// If the API server refuses it; after [`super::PATIENCE`].
pub async fn make(client: Client, namespace: &str, kind: &str, name: &str, spec: Value) {
    let api = objects(client, namespace, kind);
    let object = json!({
        "apiVersion": VERSION, "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    api.patch(name, &PatchParams::apply("person"), &Patch::Apply(object)).await.unwrap();
    let is_ready = async || is_ready(&api.get(name).await.unwrap());
    until(format!("{kind} {name} is ready"), is_ready).await;
}

/// Whether cert-manager says that an object is ready.
pub fn is_ready(object: &DynamicObject) -> bool {
    let conditions = object.data["status"]["conditions"].as_array();
    let mut conditions = conditions.into_iter().flatten();
    conditions.any(|it| it["type"] == "Ready" && it["status"] == "True")
}
