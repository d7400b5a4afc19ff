//! Larder in a cluster, by its chart.

use std::fmt;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use super::{Cluster, Node, images, objects, until};
use crate::process::Ended;
use crate::{http, metrics, repository};

/// The image of all that is installed, which is on nodes before.
const IMAGE: &str = "larder.test/larder";
const TAG: &str = "tested";

/// Where it is installed.
pub const NAMESPACE: &str = "larder-system";

/// Where agents answer runtimes, on their nodes' loopback.
const ENDPOINT: &str = "127.0.0.1:5050";

/// Where they are measured, on the same.
const ADMIN: &str = "127.0.0.1:5051";

/// The installed chart.
pub struct Installation {
    client: Client,
}

impl fmt::Debug for Installation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Installation").finish_non_exhaustive()
    }
}

impl Installation {
    /// Puts the program on a node that is to run some of it.
    ///
    /// # Panics
    ///
    /// If the program is not built, or the node does not take it.
    pub async fn prepare(nodes: &[Node]) {
        let image = images::larder().await;
        for node in nodes {
            node.import(&format!("{IMAGE}:{TAG}"), &image).await;
        }
    }

    /// Installs the chart with these values (`KEY=VALUE`). Returns when Helm does, which waits for
    /// nothing.
    ///
    /// # Panics
    ///
    /// If Helm fails.
    pub async fn by_chart(cluster: &Cluster, values: &[&str]) -> Self {
        cluster.run("kubectl", &["create", "namespace", NAMESPACE]).await.expect("a namespace");
        let chart = repository::path("deploy/helm/larder");
        let mut arguments = vec!["install", "larder", chart.to_str().unwrap()];
        arguments.extend(["--namespace", NAMESPACE]);
        let image = format!("image.repository={IMAGE}");
        let tag = format!("image.tag={TAG}");
        for value in [&image, &tag, "image.pullPolicy=Never"].iter().chain(values) {
            arguments.extend(["--set", value]);
        }
        cluster.run("helm", &arguments).await.expect("helm install");
        Self { client: cluster.client() }
    }

    /// Removes it, as a person would.
    ///
    /// # Panics
    ///
    /// If Helm fails, or nodes still have pods of it after [`super::PATIENCE`].
    pub async fn uninstall(self, cluster: &Cluster) {
        let uninstall = ["uninstall", "larder", "--namespace", NAMESPACE];
        cluster.run_patiently("helm", &uninstall).await.expect("helm uninstall");
        let are_gone = async || self.pods("app.kubernetes.io/name=larder").await.is_empty();
        until("all pods are gone", are_gone).await;
    }

    /// Runs `kubectl` with these arguments in the namespace.
    ///
    /// # Panics
    ///
    /// As [`Cluster::run`].
    pub async fn kubectl(cluster: &Cluster, arguments: &[&str]) -> Ended {
        cluster.run("kubectl", &[&["--namespace", NAMESPACE], arguments].concat()).await
    }

    /// The caches.
    pub fn caches(&self) -> Api<DynamicObject> {
        objects::caches(self.client.clone(), NAMESPACE)
    }

    /// Makes a cache, or changes it to this.
    ///
    /// # Panics
    ///
    /// If the API server refuses that.
    pub async fn apply(&self, name: &str, spec: Value) {
        let cache = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "RegistryCache",
            "metadata": {"name": name}, "spec": spec,
        });
        let (params, patch) = (PatchParams::apply("person"), Patch::Apply(cache));
        self.caches().patch(name, &params, &patch).await.unwrap();
    }

    /// What a cache is now; null while the API server does not answer.
    pub async fn cache(&self, name: &str) -> Value {
        match self.caches().get(name).await {
            Ok(cache) => serde_json::to_value(cache).unwrap(),
            Err(_) => Value::Null,
        }
    }

    /// Returns once a cache is as its spec says, and nothing is wrong with it.
    ///
    /// # Panics
    ///
    /// After [`super::PATIENCE`].
    pub async fn settles(&self, name: &str) {
        until(format!("{name} is settled"), async || is_settled(&self.cache(name).await)).await;
    }

    /// Returns once the runtime of a node is pointed to its agent for the registry `host`.
    ///
    /// # Panics
    ///
    /// After [`super::PATIENCE`].
    pub async fn is_used(&self, node: &Node, host: &str) {
        let path = node.machine().path(&format!("/etc/containerd/certs.d/{host}/hosts.toml"));
        let is_used =
            async || std::fs::read_to_string(&path).is_ok_and(|text| text.contains(ENDPOINT));
        until(format!("{} asks its agent for {host}", node.name), is_used).await;
    }

    /// The metrics of a node's agent.
    ///
    /// # Panics
    ///
    /// If there is none.
    pub async fn agent_metrics(&self, node: &Node) -> String {
        let forward = node.machine().wire().forward(ADMIN.parse().unwrap());
        let url = format!("http://{}/metrics", forward.address);
        let page = http::get(&url).send().await.bytes().await.unwrap();
        String::from_utf8(page.into()).unwrap()
    }

    /// The pods of a cache.
    pub async fn replicas(&self, name: &str) -> Vec<Pod> {
        self.pods(&format!("app.kubernetes.io/instance=larder-{name}")).await
    }

    /// The uids of a cache's pods.
    pub async fn uids(&self, name: &str) -> Vec<String> {
        self.replicas(name).await.iter().filter_map(Pod::uid).collect()
    }

    /// The pods that a query finds; none while the API server does not answer.
    pub async fn pods(&self, query: &str) -> Vec<Pod> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), NAMESPACE);
        let found = pods.list(&ListParams::default().labels(query)).await;
        found.map(|it| it.items).unwrap_or_default()
    }

    /// How often the replicas of a cache that there are were asked for something of a registry.
    ///
    /// # Panics
    ///
    /// If one cannot be asked.
    pub async fn requests(&self, cluster: &Cluster, name: &str, host: &str) -> f64 {
        let pages = self.metrics(cluster, name).await;
        let of_host = [("upstream", host)];
        pages.iter().map(|page| metrics::sum(page, "larder_requests_total", &of_host)).sum()
    }

    /// The metrics of each replica of a cache that there is.
    ///
    /// # Panics
    ///
    /// If one cannot be asked.
    pub async fn metrics(&self, cluster: &Cluster, name: &str) -> Vec<String> {
        let mut pages = Vec::new();
        for pod in self.replicas(name).await {
            let address: IpAddr = pod.status.unwrap().pod_ip.unwrap().parse().unwrap();
            let forward = cluster.reach((address, 5001).into());
            let url = format!("http://{}/metrics", forward.address);
            let page = http::get(&url).send().await.bytes().await.unwrap();
            pages.push(String::from_utf8(page.into()).unwrap());
        }
        pages
    }
}

fn is_settled(cache: &Value) -> bool {
    let conditions = cache["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let is = |kind: &str, status: &str| {
        conditions.iter().any(|it| it["type"] == kind && it["status"] == status)
    };
    cache["status"]["observedGeneration"] == cache["metadata"]["generation"]
        && is("Ready", "True")
        && is("Progressing", "False")
        && is("Degraded", "False")
}
