//! Objects that several tests make or read.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;

use super::Cluster;
use crate::repository;

/// Tells a cluster what our resources are.
///
/// # Panics
///
/// If `kubectl` fails.
pub async fn apply_definitions(cluster: &Cluster) {
    let definitions = repository::path("deploy/crds");
    let apply = ["apply", "--server-side", "-f", definitions.to_str().unwrap()];
    cluster.run("kubectl", &apply).await.expect("the definitions");
}

/// The caches of a namespace.
pub fn caches(client: Client, namespace: &str) -> Api<DynamicObject> {
    let resource = ApiResource {
        group: "larder.dev".to_owned(),
        version: "v1alpha1".to_owned(),
        api_version: "larder.dev/v1alpha1".to_owned(),
        kind: "RegistryCache".to_owned(),
        plural: "registrycaches".to_owned(),
    };
    Api::namespaced_with(client, namespace, &resource)
}

/// Makes a secret, or changes it to this, as a person.
///
/// # Panics
///
/// If the API server refuses that.
pub async fn apply_secret(client: Client, namespace: &str, name: &str, texts: &[(&str, &str)]) {
    let texts: BTreeMap<_, _> = texts.iter().copied().collect();
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": texts,
    });
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let params = PatchParams::apply("person");
    secrets.patch(name, &params, &Patch::Apply(secret)).await.unwrap();
}
