//! `RegistryCache`: a cache, or several replicas of one, for many upstreams.

#![expect(unreachable_pub, reason = "`KubeSchema` repeats each type inside of a function")]
#![expect(clippy::duplicated_attributes, reason = "each column of kubectl says its own type")]

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Affinity, ResourceRequirements, Toleration};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a cache should be.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "larder.dev",
    version = "v1alpha1",
    kind = "RegistryCache",
    plural = "registrycaches",
    shortname = "rcache",
    category = "larder",
    namespaced,
    status = "RegistryCacheStatus",
    derive = "PartialEq",
    derive = "Default",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(
        name = "Status",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    ),
    printcolumn(name = "Upstreams", type_ = "string", json_path = ".spec.upstreams[*].upstream"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[cfg_attr(test, kube(cel))]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(has(self.replicas) && has(self.highAvailability) && self.highAvailability.enabled && self.replicas < 2)").message("highAvailability needs at least 2 replicas; write more, or leave replicas out"))]
#[x_kube(validation = Rule::new("!has(self.storage) || !has(self.storage.s3) || has(self.storage.postgresql)").message("storage.s3 needs storage.postgresql beside it: the index is there"))]
pub struct RegistryCacheSpec {
    /// Where images come from: each upstream once.
    #[schemars(length(min = 1, max = 128))]
    #[schemars(extend("x-kubernetes-list-type" = "map"))]
    #[schemars(extend("x-kubernetes-list-map-keys" = ["upstream"]))]
    pub upstreams: Vec<Upstream>,

    /// What each replica stores on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub volume: Option<Volume>,

    /// What is kept, and for how long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub garbage_collection: Option<GarbageCollection>,

    /// How nodes speak to the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,

    /// Two replicas in different zones, unless `replicas` says more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub high_availability: Option<HighAvailability>,

    /// How many replicas share the blobs among them. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub replicas: Option<i32>,

    /// Where blobs are kept besides the replicas' own volumes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,

    /// Labels of the nodes that replicas may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints that replicas put up with.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tolerations: Vec<Toleration>,

    /// Where replicas rather run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// What each replica is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<ResourceRequirements>,

    /// How important replicas are. Default `system-cluster-critical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// A registry that is read from.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Upstream {
    /// The registry as image names have it: `docker.io`, `registry.example.com:5000`, `*.gcr.io`.
    #[schemars(length(min = 1, max = 259))]
    #[x_kube(validation = Rule::new(r"self.matches('^([a-z0-9]([-a-z0-9]*[a-z0-9])?|[*])([.]([a-z0-9]([-a-z0-9]*[a-z0-9])?|[*]))*(:[0-9]{1,5})?$')").message("must be a registry's host as in image names, HOST or HOST:PORT, without https:// and without a path"))]
    pub upstream: String,

    /// Where it is asked. Default `https://` and the upstream (Docker Hub:
    /// `https://registry-1.docker.io`).
    #[serde(default, rename = "remoteURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new(r"self.matches('^https?://[-a-zA-Z0-9.]+(:[0-9]{1,5})?/?$') || self.matches(r'^https?://\[[0-9a-fA-F:.]+\](:[0-9]{1,5})?/?$')").message("must be https://HOST or http://HOST, with a port at most: no path, user, query or fragment"))]
    pub remote_url: Option<String>,

    /// Mirrors of it that are asked first, in this order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7), inner(length(max = 2048)))]
    pub mirrors: Vec<String>,

    /// A secret of the same namespace with `username` and `password`, or `.dockerconfigjson`. It may
    /// change at any time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,

    /// Certificates, in PEM, of authorities that are trusted for it besides the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 65536))]
    pub ca_bundle: Option<String>,

    /// Whether any certificate will do, and its password may be sent without encryption. Default no.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_verify: bool,

    /// The proxy that leads there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proxy: Option<Proxy>,

    /// How long a tag's answer counts, as in `1m`. Default 1 minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s')").message("must be a duration as in 90s or 10m, and not negative"))]
    pub freshness: Option<String>,

    /// Who may read what is stored of it. Default `shared`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,

    /// How long its content may go unused; `0` is for ever. Default: that of the cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s')").message("must be a duration as in 168h, or 0s for never, and not negative"))]
    pub ttl: Option<String>,

    /// The most of the volume that its content may take. Default: all of it.
    // No rule here: the API server counts what may be a number or text as three megabytes, times 128
    // upstreams, which is eight times what a rule may cost. The webhook refuses what is no amount.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quantity>,
}

/// The name of a secret.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretRef {
    /// In the namespace of the cache.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A way out.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.httpProxy) || has(self.httpsProxy)").message("must have httpProxy, httpsProxy or both"))]
pub struct Proxy {
    /// For an upstream that is asked by HTTP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub http_proxy: Option<String>,
    /// For an upstream that is asked by HTTPS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub https_proxy: Option<String>,
}

/// Who may read what is stored of an upstream.
#[derive(JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Anyone who reaches the cache.
    Shared,
    /// Whoever the upstream would let read it.
    Caller,
}

/// A volume for each replica.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.storageClassName) || has(self.storageClassName) && self.storageClassName == oldSelf.storageClassName").message("storageClassName cannot change: a volume stays where it is. Make another cache"))]
pub struct Volume {
    /// How large. May grow at any time. Default 10Gi.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))").message("must be more than 0"))]
    pub size: Option<Quantity>,
    /// Of which storage class. Default: the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// What is kept, and for how long.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GarbageCollection {
    /// How long content may go unused; `0s` is for ever, and can be changed again. Default `168h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("duration(self) >= duration('0s')").message("must be a duration as in 168h, or 0s for never, and not negative"))]
    pub ttl: Option<String>,
    /// The most of the volume that may be used, as in `90%` or `100Gi`. Default `90%`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub budget: Option<String>,
}

/// How nodes speak to a cache.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.issuerRef) || !has(self.tls) || self.tls").message("issuerRef has no meaning without tls"))]
pub struct Http {
    /// Whether with TLS. Default yes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<bool>,
    /// Who of cert-manager issues the certificate. Default: an authority of the cache's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issuer_ref: Option<IssuerRef>,
}

/// An issuer of cert-manager.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct IssuerRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Default `Issuer`, of the cache's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub kind: Option<String>,
    /// Default `cert-manager.io`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub group: Option<String>,
}

/// Whether a cache outlives a node and a zone.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HighAvailability {
    /// Default no.
    #[serde(default)]
    pub enabled: bool,
}

/// Where blobs are kept besides the volumes.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Storage {
    /// A bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub s3: Option<S3>,
    /// The database of what is in the bucket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgresql: Option<PostgreSql>,
}

/// A bucket of an object store that speaks S3.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct S3 {
    /// `https://HOST`; without, that of AWS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub endpoint: Option<String>,
    /// The bucket.
    #[schemars(length(min = 3, max = 63))]
    pub bucket: String,
    /// What the names of all objects begin with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub prefix: Option<String>,
    /// The region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub region: Option<String>,
    /// Whether the bucket stands in the path, not in the host.
    #[serde(default)]
    pub path_style: bool,
    /// A secret with `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`; without, the pod's identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_ref: Option<SecretRef>,
}

/// A database.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PostgreSql {
    /// A secret whose `url` is `postgres://…`.
    pub secret_ref: SecretRef,
}

/// How a cache is.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RegistryCacheStatus {
    /// The `metadata.generation` that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `Progressing`, `Degraded`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map"))]
    #[schemars(extend("x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// Where each replica answers, for agents: all that are not on their way out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map"))]
    #[schemars(extend("x-kubernetes-list-map-keys" = ["url"]))]
    pub endpoints: Vec<Endpoint>,
    /// Replicas that answer.
    #[serde(default)]
    pub ready_replicas: i32,
    /// The certificates, in PEM, of the authorities that may have signed the replicas' own, if they
    /// have TLS: two while one replaces the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_bundle: Option<String>,
    /// Whether nodes ask this cache. No longer, once it is being deleted: agents then withdraw what
    /// sends runtimes to it.
    #[serde(default)]
    pub mirrored: bool,
    /// Bytes that are stored, of all replicas together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_bytes: Option<i64>,
}

/// Where one replica answers.
#[derive(JsonSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// `https://ADDRESS:PORT` (`http://` without TLS), an address of the node that it runs on: can be
    /// reached without the cluster's network and names.
    pub url: String,
    /// What the other replicas call it, as in `https://10.244.1.7:5000`: agents that know it agree with
    /// them about who owns a blob.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// The zone of that node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// That node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
}
