//! The files in a replica's pod: its configuration, and what it must not show.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::Scope;
use super::config::Config;
use crate::storage::Storage;

/// The configuration, for all replicas; if they share a bucket, for each of them, since it says where
/// the others reach it. `peers` is what replicas call each other.
pub(crate) fn config(scope: Scope<'_>, config: &Config, peers: &BTreeMap<u32, String>) -> Value {
    let mut files = config.certificates.clone();
    match scope.is_shared() {
        true => files.extend(peers.iter().map(|(ordinal, url)| {
            (format!("{}.toml", scope.names.replica(*ordinal)), config.text(Some(url)))
        })),
        false => drop(files.insert("larder.toml".to_owned(), config.text(None))),
    }
    scope.object("v1", "ConfigMap", scope.names.base(), json!({"data": files}))
}

/// The credentials for upstreams. It exists also when there are none, so that the first one is no
/// reason to start replicas again.
pub(crate) fn credentials(scope: Scope<'_>, config: &Config) -> Value {
    secret(scope, &scope.names.credentials(), "Opaque", &config.credentials)
}

/// The credentials for bucket and database.
pub(crate) fn storage(scope: Scope<'_>, storage: &Storage) -> Value {
    secret(scope, &scope.names.storage(), "Opaque", &storage.files())
}

/// A secret with these files.
pub(crate) fn secret(
    scope: Scope<'_>,
    name: &str,
    kind: &str,
    files: &BTreeMap<String, String>,
) -> Value {
    let data: BTreeMap<&String, String> =
        files.iter().map(|(name, text)| (name, BASE64_STANDARD.encode(text))).collect();
    scope.object("v1", "Secret", name, json!({"type": kind, "data": data}))
}
