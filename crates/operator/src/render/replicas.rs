//! The replicas, and who may disturb them.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::{Value, json};

use super::config::{
    CERTIFICATE_DIRECTORY, CONFIG_DIRECTORY, CREDENTIALS_DIRECTORY, DATA_DIRECTORY,
    STORAGE_DIRECTORY,
};
use super::{ADMIN_PORT, PORT, Scope};
use crate::names::{GROWN, RESTART, VOLUME};

/// How large a volume is that nobody has said a size for.
pub(crate) const DEFAULT_SIZE: &str = "10Gi";

/// Nobody in particular, as whom replicas run; the group may write their volumes.
const USER: i64 = 65532;

/// How long replicas may finish what they are sending when they have to go: the server's own drain
/// time, and some for its store to close.
const GRACE_SECONDS: u32 = 60;

/// What is known besides the spec.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known<'a> {
    /// Our own image.
    pub(crate) image: &'a str,
    /// Secrets by which it is pulled.
    pub(crate) pull_secrets: &'a [String],
    /// What differs where replicas have to start again.
    pub(crate) restart: String,
    /// The size that volumes have grown to: replicas measure theirs when they start.
    pub(crate) grown: Option<String>,
    /// What the template of volumes says, if there is a StatefulSet already: it can never change.
    pub(crate) template: Option<Template>,
}

/// What the template of volumes says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Template {
    pub(crate) size: Quantity,
    pub(crate) storage_class_name: Option<String>,
}

impl Template {
    /// That of an existing StatefulSet.
    pub(crate) fn of(stateful_set: &Value) -> Option<Self> {
        let spec = stateful_set.pointer("/spec/volumeClaimTemplates/0/spec")?;
        let size = spec.pointer("/resources/requests/storage")?.as_str()?.to_owned();
        let class = spec.get("storageClassName").and_then(Value::as_str).map(str::to_owned);
        Some(Self { size: Quantity(size), storage_class_name: class })
    }

    /// That of the spec.
    pub(crate) fn wanted(scope: Scope<'_>) -> Self {
        let volume = scope.cache.spec.volume.clone().unwrap_or_default();
        Self {
            size: volume.size.unwrap_or_else(|| Quantity(DEFAULT_SIZE.to_owned())),
            storage_class_name: volume.storage_class_name,
        }
    }
}

pub(crate) fn stateful_set(scope: Scope<'_>, known: &Known<'_>) -> Value {
    let names = scope.names;
    let template = known.template.clone().unwrap_or_else(|| Template::wanted(scope));
    let volume = json!({
        "metadata": {"name": VOLUME, "labels": names.selector()},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": template.storage_class_name,
            "resources": {"requests": {"storage": template.size}},
        },
    });
    let spec = json!({
        "replicas": scope.replicas(),
        "serviceName": names.headless(),
        // Replicas need nobody: not even to start.
        "podManagementPolicy": "Parallel",
        "revisionHistoryLimit": 2,
        "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Delete"},
        "selector": {"matchLabels": names.selector()},
        "volumeClaimTemplates": [volume],
        "template": {
            "metadata": {
                "labels": names.labels(),
                "annotations": {
                    RESTART: known.restart,
                    GROWN: known.grown,
                    "kubectl.kubernetes.io/default-container": "larder",
                },
            },
            "spec": pod(scope, known),
        },
    });
    scope.object("apps/v1", "StatefulSet", names.base(), json!({"spec": spec}))
}

fn pod(scope: Scope<'_>, known: &Known<'_>) -> Value {
    let spec = &scope.cache.spec;
    let pull_secrets: Vec<Value> =
        known.pull_secrets.iter().map(|name| json!({"name": name})).collect();
    let tolerations = (!spec.tolerations.is_empty()).then_some(&spec.tolerations);
    let node_selector = (!spec.node_selector.is_empty()).then_some(&spec.node_selector);
    let priority = spec.priority_class_name.as_deref().unwrap_or("system-cluster-critical");
    json!({
        "automountServiceAccountToken": false,
        "enableServiceLinks": false,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "priorityClassName": priority,
        "imagePullSecrets": (!pull_secrets.is_empty()).then_some(pull_secrets),
        "nodeSelector": node_selector,
        "tolerations": tolerations,
        "affinity": spec.affinity,
        "topologySpreadConstraints": (scope.replicas() > 1).then(|| spread(scope)),
        "securityContext": {
            "runAsNonRoot": true,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(scope, known)],
        "volumes": volumes(scope),
    })
}

/// Over nodes, and over zones where nodes say theirs. A replica beside another is better than none,
/// unless the spec says that it is to outlive a node.
fn spread(scope: Scope<'_>) -> Value {
    let over = |key: &str, otherwise: &str| {
        json!({
            "topologyKey": key,
            "maxSkew": 1,
            "whenUnsatisfiable": otherwise,
            "labelSelector": {"matchLabels": scope.names.selector()},
        })
    };
    let on_one_node = if scope.is_highly_available() { "DoNotSchedule" } else { "ScheduleAnyway" };
    json!([
        over("kubernetes.io/hostname", on_one_node),
        over("topology.kubernetes.io/zone", "ScheduleAnyway"),
    ])
}

fn container(scope: Scope<'_>, known: &Known<'_>) -> Value {
    let resources = scope.cache.spec.resources.as_ref().map_or_else(
        || json!({"requests": {"cpu": "50m", "memory": "128Mi"}}),
        |resources| json!(resources),
    );
    // Kubernetes puts the pod's name in.
    let file = if scope.is_shared() { "$(POD_NAME).toml" } else { "larder.toml" };
    let pod_name = json!({
        "name": "POD_NAME",
        "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.name"}},
    });
    let get = |path: &str| json!({"path": path, "port": "admin", "scheme": "HTTP"});
    let port =
        |name: &str, number: u16| json!({"name": name, "containerPort": number, "protocol": "TCP"});
    json!({
        "name": "larder",
        "image": known.image,
        "args": ["serve", format!("--config={CONFIG_DIRECTORY}/{file}"), "--log-format=json"],
        "env": [pod_name],
        "ports": [port("registry", PORT), port("admin", ADMIN_PORT)],
        "resources": resources,
        // Opening a large store after a crash reads what was not synced.
        "startupProbe": {"httpGet": get("/healthz"), "periodSeconds": 2, "failureThreshold": 300},
        "readinessProbe": {"httpGet": get("/readyz"), "periodSeconds": 5, "timeoutSeconds": 3, "failureThreshold": 2},
        "livenessProbe": {"httpGet": get("/healthz"), "periodSeconds": 20, "timeoutSeconds": 5, "failureThreshold": 6},
        // What it says last is what the status passes on.
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": mounts(scope),
    })
}

fn mounts(scope: Scope<'_>) -> Value {
    let mount = |name: &str, path: &str| json!({"name": name, "mountPath": path});
    let read_only =
        |name: &str, path: &str| json!({"name": name, "mountPath": path, "readOnly": true});
    let mut mounts = vec![
        mount(VOLUME, DATA_DIRECTORY),
        read_only("config", CONFIG_DIRECTORY),
        read_only("credentials", CREDENTIALS_DIRECTORY),
    ];
    if scope.is_encrypted() {
        mounts.push(read_only("tls", CERTIFICATE_DIRECTORY));
    }
    if scope.is_shared() {
        mounts.push(read_only("storage", STORAGE_DIRECTORY));
    }
    mounts.into()
}

fn volumes(scope: Scope<'_>) -> Value {
    let names = scope.names;
    // The group of the replicas reads them, and nobody else in the pod's node.
    let secret = |name: &str, secret: String| json!({"name": name, "secret": {"secretName": secret, "defaultMode": 0o440}});
    let config =
        json!({"name": "config", "configMap": {"name": names.base(), "defaultMode": 0o444}});
    let mut volumes = vec![config, secret("credentials", names.credentials())];
    if scope.is_encrypted() {
        volumes.push(secret("tls", names.certificate()));
    }
    if scope.is_shared() {
        volumes.push(secret("storage", names.storage()));
    }
    volumes.into()
}

/// One replica at a time may be moved away for maintenance; one that does not work anyway, always.
pub(crate) fn disruption_budget(scope: Scope<'_>) -> Value {
    let spec = json!({
        "maxUnavailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": {"matchLabels": scope.names.selector()},
    });
    scope.object("policy/v1", "PodDisruptionBudget", scope.names.base(), json!({"spec": spec}))
}

/// Images for everybody: nodes come from addresses that no selector knows. Metrics only for pods.
pub(crate) fn network_policy(scope: Scope<'_>) -> Value {
    let port = |number: u16| json!({"protocol": "TCP", "port": number});
    let spec = json!({
        "podSelector": {"matchLabels": scope.names.selector()},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"ports": [port(PORT)]},
            {"from": [{"namespaceSelector": {}}], "ports": [port(ADMIN_PORT)]},
        ],
    });
    scope.object("networking.k8s.io/v1", "NetworkPolicy", scope.names.base(), json!({"spec": spec}))
}
