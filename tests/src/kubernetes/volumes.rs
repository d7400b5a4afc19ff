//! Volumes for claims, as a provisioner of a real cluster makes them: on the node that the claim's
//! pod goes to, when it goes there; larger when the claim is; gone with it.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;

use futures_util::StreamExt as _;
use futures_util::stream::select;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, watcher};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The class that a claim is of if it says none.
pub const STORAGE_CLASS: &str = "standard";

const PROVISIONER: &str = "larder.test/folders";
const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";

/// What makes volumes until it is dropped.
#[derive(Debug)]
pub(super) struct Provisioner(JoinHandle<()>);

/// What a claim wants.
#[derive(Debug, PartialEq)]
enum Wish {
    /// A volume of this size on this node.
    New { size: String, node: String },
    /// Its volume to be of this size.
    Larger { size: String, volume: String },
    /// Nothing: it has its volume, or no node yet.
    Nothing,
}

impl Provisioner {
    /// Begins. Volumes are folders in `folder`, which all nodes see at the same path.
    pub(super) async fn start(client: Client, folder: PathBuf) -> Self {
        let class = json!({
            "apiVersion": "storage.k8s.io/v1",
            "kind": "StorageClass",
            "metadata": {
                "name": STORAGE_CLASS,
                "annotations": { "storageclass.kubernetes.io/is-default-class": "true" },
            },
            "provisioner": PROVISIONER,
            "volumeBindingMode": "WaitForFirstConsumer",
            "allowVolumeExpansion": true,
        });
        let class: StorageClass = serde_json::from_value(class).unwrap();
        Api::all(client.clone()).create(&PostParams::default(), &class).await.unwrap();
        let claims: Api<PersistentVolumeClaim> = Api::all(client.clone());
        let volumes: Api<PersistentVolume> = Api::all(client.clone());
        let claims = watcher(claims, watcher::Config::default()).default_backoff().map(drop);
        let volumes = watcher(volumes, watcher::Config::default()).default_backoff().map(drop);
        Self(tokio::spawn(async move {
            let mut changes = pin!(select(claims, volumes));
            while changes.next().await.is_some() {
                // Whatever fails because something has changed, or because the API server is away, is
                // heard of again.
                let _ = look(&client, &folder).await;
            }
        }))
    }
}

impl Drop for Provisioner {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Looks at all claims and volumes once, and does what is wanted.
async fn look(client: &Client, folder: &Path) -> kube::Result<()> {
    let claims: Api<PersistentVolumeClaim> = Api::all(client.clone());
    for claim in claims.list(&ListParams::default()).await? {
        match Wish::of(&claim) {
            Wish::New { size, node } => make(client, folder, &claim, &size, &node).await?,
            Wish::Larger { size, volume } => grow(client, &claim, &size, &volume).await?,
            Wish::Nothing => {}
        }
    }
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    for volume in volumes.list(&ListParams::default()).await? {
        let is_released = volume.status.and_then(|it| it.phase).is_some_and(|it| it == "Released");
        if is_released {
            remove(client, folder, &volume.metadata.name.unwrap()).await?;
        }
    }
    Ok(())
}

impl Wish {
    fn of(claim: &PersistentVolumeClaim) -> Self {
        let Some(spec) = &claim.spec else { return Self::Nothing };
        let requests = spec.resources.as_ref().and_then(|it| it.requests.as_ref());
        let Some(Quantity(size)) = requests.and_then(|it| it.get("storage")) else {
            return Self::Nothing;
        };
        if spec.storage_class_name.as_deref() != Some(STORAGE_CLASS) {
            return Self::Nothing;
        }
        let size = size.clone();
        let capacity = claim.status.as_ref().and_then(|it| it.capacity.as_ref());
        let annotations = claim.metadata.annotations.as_ref();
        let node = annotations.and_then(|it| it.get(SELECTED_NODE));
        match (&spec.volume_name, node, capacity.and_then(|it| it.get("storage"))) {
            (None, Some(node), _) => Self::New { size, node: node.clone() },
            // The API server lets a request grow only.
            (Some(volume), _, Some(Quantity(had))) if *had != size => {
                Self::Larger { size, volume: volume.clone() }
            }
            _ => Self::Nothing,
        }
    }
}

async fn make(
    client: &Client,
    folder: &Path,
    claim: &PersistentVolumeClaim,
    size: &str,
    node: &str,
) -> kube::Result<()> {
    let name = format!("pvc-{}", claim.metadata.uid.as_deref().unwrap());
    let path = folder.join(&name);
    fs::create_dir_all(&path).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o777)).unwrap();
    let spec = claim.spec.as_ref().unwrap();
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {
            "name": name,
            "annotations": { "pv.kubernetes.io/provisioned-by": PROVISIONER },
        },
        "spec": {
            "capacity": { "storage": size },
            "accessModes": spec.access_modes,
            "storageClassName": STORAGE_CLASS,
            "persistentVolumeReclaimPolicy": "Delete",
            "local": { "path": path },
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": claim.metadata.namespace,
                "name": claim.metadata.name,
                "uid": claim.metadata.uid,
            },
            "nodeAffinity": { "required": { "nodeSelectorTerms": [{ "matchExpressions": [
                { "key": "kubernetes.io/hostname", "operator": "In", "values": [node] },
            ] }] } },
        },
    });
    let volume: PersistentVolume = serde_json::from_value(volume).unwrap();
    match Api::all(client.clone()).create(&PostParams::default(), &volume).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        made => made.map(drop),
    }
}

async fn grow(
    client: &Client,
    claim: &PersistentVolumeClaim,
    size: &str,
    volume: &str,
) -> kube::Result<()> {
    let capacity = json!({ "capacity": { "storage": size } });
    let (spec, status) = (json!({ "spec": capacity }), json!({ "status": capacity }));
    let merge = |it: Value| (PatchParams::default(), Patch::Merge(it));
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    let (params, patch) = merge(spec);
    volumes.patch(volume, &params, &patch).await?;
    let namespace = claim.metadata.namespace.as_deref().unwrap();
    let claims: Api<PersistentVolumeClaim> = Api::namespaced(client.clone(), namespace);
    let (params, patch) = merge(status);
    claims.patch_status(claim.metadata.name.as_deref().unwrap(), &params, &patch).await?;
    Ok(())
}

async fn remove(client: &Client, folder: &Path, name: &str) -> kube::Result<()> {
    let _ = fs::remove_dir_all(folder.join(name));
    let volumes: Api<PersistentVolume> = Api::all(client.clone());
    match volumes.delete(name, &DeleteParams::default()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        deleted => deleted.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(spec: &Value, capacity: Option<&str>) -> PersistentVolumeClaim {
        let value = json!({
            "metadata": { "annotations": { SELECTED_NODE: "node1" } },
            "spec": spec,
            "status": { "capacity": capacity.map(|it| json!({ "storage": it })) },
        });
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_claim_wants_a_volume_once_and_then_a_larger_one() {
        let mut spec = json!({
            "storageClassName": STORAGE_CLASS,
            "resources": { "requests": { "storage": "1Gi" } },
        });
        let (size, node) = ("1Gi".to_owned(), "node1".to_owned());
        assert_eq!(Wish::of(&claim(&spec, None)), Wish::New { size, node });
        spec["volumeName"] = "v".into();
        assert_eq!(Wish::of(&claim(&spec, None)), Wish::Nothing);
        assert_eq!(Wish::of(&claim(&spec, Some("1Gi"))), Wish::Nothing);
        spec["resources"]["requests"]["storage"] = "2Gi".into();
        let (size, volume) = ("2Gi".to_owned(), "v".to_owned());
        assert_eq!(Wish::of(&claim(&spec, Some("1Gi"))), Wish::Larger { size, volume });
        spec["storageClassName"] = "other".into();
        assert_eq!(Wish::of(&claim(&spec, Some("1Gi"))), Wish::Nothing);
    }
}
