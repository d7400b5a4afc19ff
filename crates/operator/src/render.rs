//! What a cache is made of: the objects that are applied, from the resource and from what is known of
//! the cluster. Nothing here asks anybody.
//!
//! - [`config`]: what replicas are told; [`check`]: what they would say to it;
//! - [`files`]: the ConfigMap and the secrets that they are told by;
//! - [`services`]: where they are reached;
//! - [`replicas`]: the replicas themselves, and who may disturb them;
//! - [`extras`]: what only some clusters have.

pub(crate) mod check;
pub(crate) mod config;
pub(crate) mod extras;
pub(crate) mod files;
pub(crate) mod replicas;
pub(crate) mod services;
#[cfg(test)]
mod tests;

use larder_k8s::RegistryCache;
use serde_json::{Map, Value, json};

use crate::names::Names;

/// Where replicas serve images, and metrics and health, inside of their pods.
pub(crate) const PORT: u16 = 5000;
pub(crate) const ADMIN_PORT: u16 = 5001;

/// Something that is wrong with a cache and that a person can put right.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Problem {
    /// One word, for programs: `SecretMissing`.
    pub reason: &'static str,
    /// What is wrong and what to do about it, without secrets.
    pub message: String,
    /// Where in the spec, as in `upstreams[0].quota`; empty if it is not there.
    pub field: String,
}

impl Problem {
    pub(crate) fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), field: String::new() }
    }

    /// The same, with what stands at `field` of the spec.
    pub(crate) fn at(self, field: impl Into<String>) -> Self {
        Self { field: field.into(), ..self }
    }
}

/// The cache that objects are rendered for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scope<'a> {
    pub(crate) cache: &'a RegistryCache,
    pub(crate) names: &'a Names,
}

// === impl Scope ===

impl Scope<'_> {
    pub(crate) fn namespace(&self) -> &str {
        self.cache.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// How many replicas there are to be.
    pub(crate) fn replicas(&self) -> u32 {
        let spec = &self.cache.spec;
        let default = if self.is_highly_available() { 2 } else { 1 };
        spec.replicas.and_then(|it| u32::try_from(it).ok()).unwrap_or(default)
    }

    pub(crate) fn is_highly_available(&self) -> bool {
        self.cache.spec.high_availability.as_ref().is_some_and(|it| it.enabled)
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.cache.spec.http.as_ref().and_then(|it| it.tls).unwrap_or(true)
    }

    pub(crate) fn scheme(&self) -> &'static str {
        if self.is_encrypted() { "https" } else { "http" }
    }

    /// Whether replicas keep blobs in a bucket that they share.
    pub(crate) fn is_shared(&self) -> bool {
        self.cache.spec.storage.as_ref().is_some_and(|it| it.s3.is_some())
    }

    /// An object of this cache: found by its labels, and gone with its owner.
    pub(crate) fn object(&self, api_version: &str, kind: &str, name: &str, rest: Value) -> Value {
        let metadata = json!({
            "name": name,
            "namespace": self.namespace(),
            "labels": self.names.labels(),
            "ownerReferences": [{
                "apiVersion": "larder.dev/v1alpha1",
                "kind": "RegistryCache",
                "name": self.cache.metadata.name,
                "uid": self.cache.metadata.uid,
                "controller": true,
                "blockOwnerDeletion": true,
            }],
        });
        let mut object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata});
        merge(&mut object, rest);
        without_nulls(object)
    }
}

/// Adds `more` to `object`, table by table.
fn merge(object: &mut Value, more: Value) {
    match (object, more) {
        (Value::Object(object), Value::Object(more)) => {
            for (key, value) in more {
                merge(object.entry(key).or_insert(Value::Null), value);
            }
        }
        (object, more) => *object = more,
    }
}

/// `value` without what is null: to server-side apply that would be a value of ours.
fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let there = fields.into_iter().filter(|(_, value)| !value.is_null());
            Value::Object(there.map(|(key, it)| (key, without_nulls(it))).collect::<Map<_, _>>())
        }
        Value::Array(items) => items.into_iter().map(without_nulls).collect(),
        other => other,
    }
}
