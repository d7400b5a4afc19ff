//! What there is in the cluster that a cache depends on.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{Node, PersistentVolumeClaim, Pod, Secret};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt as _};
use larder_k8s::RegistryCache;
use serde_json::Value;

use crate::names::{INSTANCE, Names};
use crate::replica::Replica;

/// The label by which nodes say their zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Its replicas, by ordinal.
    pub(crate) replicas: Vec<Replica>,
    /// Their volumes.
    pub(crate) claims: Vec<PersistentVolumeClaim>,
    /// What volumes can be of.
    pub(crate) classes: Vec<StorageClass>,
    /// What makes the replicas.
    pub(crate) stateful_set: Option<Value>,
    /// Secrets, those that the spec names and the cache's own.
    pub(crate) secrets: BTreeMap<String, Secret>,
    /// The zones of the replicas' nodes.
    pub(crate) zones: BTreeMap<String, String>,
}

impl Facts {
    pub(crate) async fn gather(
        client: &Client,
        cache: &RegistryCache,
        names: &Names,
    ) -> Result<Self, kube::Error> {
        let namespace = cache.namespace().unwrap_or_default();
        let query = ListParams::default().labels(&format!("{INSTANCE}={}", names.base()));
        let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
        let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), &namespace);
        let stateful_sets: Api<StatefulSet> = Api::namespaced(client.clone(), &namespace);
        let classes: Api<StorageClass> = Api::all(client.clone());
        let every_class = ListParams::default();
        let (pods, claims, classes, stateful_set, secrets) = tokio::try_join!(
            pods.list(&query),
            claims.list(&query),
            classes.list(&every_class),
            stateful_sets.get_opt(names.base()),
            secrets(client, cache, names),
        )?;
        let mut replicas: Vec<Replica> =
            pods.iter().filter_map(|pod| Replica::of(names, pod)).collect();
        replicas.sort_by_key(|it| it.ordinal);
        let stateful_set = stateful_set
            .map(|it| serde_json::to_value(it).expect("a StatefulSet can be written as JSON"));
        let zones = zones(client, &replicas).await?;
        let (claims, classes) = (claims.items, classes.items);
        Ok(Self { replicas, claims, classes, stateful_set, secrets, zones })
    }

    /// Text of the StatefulSet, if there is one.
    pub(crate) fn stateful_set_text(&self, pointer: &str) -> Option<&str> {
        self.stateful_set.as_ref()?.pointer(pointer)?.as_str()
    }
}

/// The secrets that a cache reads, by name. Used also to find the cache that a secret is of.
pub(crate) fn secrets_of(cache: &RegistryCache) -> BTreeSet<String> {
    let upstreams = cache.spec.upstreams.iter().filter_map(|it| it.secret_ref.as_ref());
    let storage = cache.spec.storage.as_ref();
    let s3 = storage.and_then(|it| it.s3.as_ref()).and_then(|it| it.secret_ref.as_ref());
    let database = storage.and_then(|it| it.postgresql.as_ref()).map(|it| &it.secret_ref);
    upstreams.chain(s3).chain(database).map(|it| it.name.clone()).collect()
}

async fn secrets(
    client: &Client,
    cache: &RegistryCache,
    names: &Names,
) -> Result<BTreeMap<String, Secret>, kube::Error> {
    let api: Api<Secret> = Api::namespaced(client.clone(), &cache.namespace().unwrap_or_default());
    let mut wanted = secrets_of(cache);
    wanted.extend([names.authority(), names.certificate()]);
    let mut secrets = BTreeMap::new();
    for name in wanted {
        if let Some(secret) = api.get_opt(&name).await? {
            secrets.insert(name, secret);
        }
    }
    Ok(secrets)
}

async fn zones(
    client: &Client,
    replicas: &[Replica],
) -> Result<BTreeMap<String, String>, kube::Error> {
    let api: Api<Node> = Api::all(client.clone());
    let nodes: BTreeSet<&String> = replicas.iter().filter_map(|it| it.node.as_ref()).collect();
    let mut zones = BTreeMap::new();
    for name in nodes {
        // A node that is gone has no zone; its replica will be gone in a moment.
        if let Some(node) = api.get_metadata_opt(name).await?
            && let Some(zone) = node.labels().get(ZONE)
        {
            zones.insert(name.clone(), zone.clone());
        }
    }
    Ok(zones)
}
