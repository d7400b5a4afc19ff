//! What the objects of a cache are called, and by which labels they are found.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

/// Who applies: the field manager of everything that is written.
pub(crate) const MANAGER: &str = "larder";

/// Keeps a cache from being gone before its objects are.
pub(crate) const FINALIZER: &str = "larder.dev/registrycache";

/// On a cache: any new value has its certificates' authority replaced. On the authority's secret: the
/// value that was there last.
pub(crate) const ROTATE: &str = "larder.dev/rotate-ca";

/// On the template of a replica's pod: changes when replicas have to start again.
pub(crate) const RESTART: &str = "larder.dev/restart";

/// On the template of a replica's pod: the size that volumes have grown to.
pub(crate) const GROWN: &str = "larder.dev/volume-size";

/// On a pod: changes when its files have, so that its kubelet looks at them at once instead of
/// within a minute or two.
pub(crate) const FILES: &str = "larder.dev/files";

/// The label with the name that all objects of a cache begin with.
pub(crate) const INSTANCE: &str = "app.kubernetes.io/instance";

/// The longest name whose longest derivative (`-63` of the last replica, and the hash that a
/// StatefulSet appends in a label) still has 63 letters, with what is put before it.
const MAX_NAME: usize = 38;

/// The names of a cache's objects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Names {
    base: String,
}

impl Names {
    /// Those of the cache called `cache`. Names that are too long for labels, or have dots, are
    /// shortened and told apart by a hash.
    pub(crate) fn of(cache: &str) -> Self {
        if cache.len() <= MAX_NAME && !cache.contains('.') {
            return Self { base: format!("larder-{cache}") };
        }
        let begin: String = cache.replace('.', "-").chars().take(MAX_NAME - 11).collect();
        Self { base: format!("larder-{}-{}", begin.trim_end_matches('-'), short_hash(cache)) }
    }

    /// Of the StatefulSet, the service for clients inside the cluster, and what else there is one of.
    pub(crate) fn base(&self) -> &str {
        &self.base
    }

    /// Of a replica's pod, and of its service.
    pub(crate) fn replica(&self, ordinal: u32) -> String {
        format!("{}-{ordinal}", self.base)
    }

    /// Which replica a pod, a service or (with what is before it) a volume is of.
    pub(crate) fn ordinal(&self, name: &str) -> Option<u32> {
        let name = name.strip_prefix(VOLUME).and_then(|it| it.strip_prefix('-')).unwrap_or(name);
        name.strip_prefix(&self.base)?.strip_prefix('-')?.parse().ok()
    }

    /// Of the service that is the StatefulSet's own.
    pub(crate) fn headless(&self) -> String {
        format!("{}-replicas", self.base)
    }

    /// Of the secret with the certificates' authority.
    pub(crate) fn authority(&self) -> String {
        format!("{}-ca", self.base)
    }

    /// Of the secret with the replicas' certificate.
    pub(crate) fn certificate(&self) -> String {
        format!("{}-tls", self.base)
    }

    /// Of the secret with the credentials for upstreams.
    pub(crate) fn credentials(&self) -> String {
        format!("{}-credentials", self.base)
    }

    /// Of the secret with the credentials for bucket and database.
    pub(crate) fn storage(&self) -> String {
        format!("{}-storage", self.base)
    }

    /// The labels by which replicas are selected. They can never change.
    pub(crate) fn selector(&self) -> BTreeMap<String, String> {
        let labels = [
            ("app.kubernetes.io/name", "larder"),
            ("app.kubernetes.io/component", "cache"),
            (INSTANCE, &self.base),
        ];
        labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into()
    }

    /// The labels of all objects.
    pub(crate) fn labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.selector();
        labels.insert("app.kubernetes.io/managed-by".to_owned(), "larder".to_owned());
        labels
    }

    /// What selects all objects of the cache.
    pub(crate) fn query(&self) -> String {
        format!("app.kubernetes.io/managed-by=larder,{INSTANCE}={}", self.base)
    }
}

/// What a replica's volume is called before the name of its pod.
pub(crate) const VOLUME: &str = "cache-volume";

/// Ten letters that differ where `text` does.
pub(crate) fn short_hash(text: &str) -> String {
    hash(text)[..10].to_owned()
}

/// 64 letters that differ where `text` does.
pub(crate) fn hash(text: &str) -> String {
    Sha256::digest(text).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_leaves_room_for_what_is_appended() {
        let long = "a".repeat(253);
        let dotted = format!("{}.{}", "a".repeat(26), "b".repeat(30));
        for cache in ["hub", "a", &"x".repeat(38), &"x".repeat(39), &long, &dotted, "a.b"] {
            let names = Names::of(cache);
            // `-63` of a replica or eleven of a revision, and 63 letters in all.
            assert!(names.base().len() <= 52, "{names:?}");
            assert!(!names.base().contains('.') && !names.base().contains("--"), "{names:?}");
        }
        assert_ne!(Names::of("a.b"), Names::of("a-b"));
    }

    #[test]
    fn a_replica_is_told_by_its_pods_and_volumes_name() {
        let names = Names::of("hub");
        assert_eq!(names.ordinal("larder-hub-12"), Some(12));
        assert_eq!(names.ordinal("cache-volume-larder-hub-0"), Some(0));
        assert_eq!(names.ordinal("larder-hub-replicas"), None);
        assert_eq!(names.ordinal("larder-hubs-1"), None);
    }
}
