//! Fields that somebody else has taken over: they are left alone.
//!
//! Server-side apply says which of the fields that we applied belong to another manager with another
//! value. Those are taken out of what we apply; so they keep the other's value, and are ours again
//! once the other gives them up.

use kube::core::Status;
use serde_json::Value;

/// A field that belongs to somebody else.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Taken {
    /// As the API server writes it: `.spec.template.spec.containers[name="larder"].image`.
    pub(crate) field: String,
    /// Whose it is: `conflict with "kubectl-edit" using apps/v1`.
    pub(crate) by: String,
}

/// The fields that a refused apply is about; none if it was refused for something else.
///
/// Source: Kubernetes API, `metav1.CauseTypeFieldManagerConflict`.
pub(crate) fn taken(status: &Status) -> Vec<Taken> {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    let conflicts = causes.filter(|cause| cause.reason == "FieldManagerConflict");
    conflicts.map(|it| Taken { field: it.field.clone(), by: it.message.clone() }).collect()
}

/// Takes `field` out of `object`. Returns whether it was there.
pub(crate) fn remove(object: &mut Value, field: &str) -> bool {
    match object {
        Value::Object(fields) => {
            let Some(path) = field.strip_prefix('.') else { return false };
            // Keys may have dots in them (`larder.toml`); the longest that fits is meant.
            let fits = |key: &&String| {
                path.strip_prefix(key.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
            };
            let Some(key) = fields.keys().filter(fits).max_by_key(|key| key.len()).cloned() else {
                return false;
            };
            match &path[key.len()..] {
                "" => fields.remove(&key).is_some(),
                rest => fields.get_mut(&key).is_some_and(|inner| remove(inner, rest)),
            }
        }
        Value::Array(items) => {
            let Some((selector, rest)) = selector(field) else { return false };
            let Some(at) = items.iter().position(|item| selects(selector, item)) else {
                return false;
            };
            match rest {
                "" => {
                    items.remove(at);
                    true
                }
                rest => remove(&mut items[at], rest),
            }
        }
        _ => false,
    }
}

/// `[name="larder"]` and what follows it, as `name="larder"`.
fn selector(field: &str) -> Option<(&str, &str)> {
    let inner = field.strip_prefix('[')?;
    let mut is_quoted = false;
    let end = inner.char_indices().find(|&(at, c)| {
        if c == '"' && !inner[..at].ends_with('\\') {
            is_quoted = !is_quoted;
        }
        c == ']' && !is_quoted
    })?;
    Some((&inner[..end.0], &inner[end.0 + 1..]))
}

/// Whether `item` is the one that `selector` means: by its place, its value, or its keys.
fn selects(selector: &str, item: &Value) -> bool {
    if let Some(value) = selector.strip_prefix('=') {
        return serde_json::from_str::<Value>(value).is_ok_and(|value| value == *item);
    }
    let keys = selector.split(',').map(|pair| pair.split_once('='));
    keys.into_iter().all(|pair| {
        pair.is_some_and(|(key, value)| {
            serde_json::from_str::<Value>(value).ok().as_ref() == item.get(key)
        })
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_fields_that_the_server_names_are_taken_out() {
        let mut object = json!({
            "metadata": {"labels": {"app.kubernetes.io/name": "larder", "app": "x"}},
            "data": {"larder.toml": "…", "larder": "…"},
            "spec": {
                "replicas": 2,
                "finalizers": ["a", "b"],
                "ports": [{"port": 5000, "protocol": "TCP"}, {"port": 5001, "protocol": "TCP"}],
                "containers": [{"name": "larder", "image": "x", "args": ["serve"]}],
            },
        });
        for field in [
            ".spec.replicas",
            r#".spec.containers[name="larder"].image"#,
            r#".spec.ports[port=5000,protocol="TCP"]"#,
            r#".spec.finalizers[="b"]"#,
            ".data.larder.toml",
            ".metadata.labels.app.kubernetes.io/name",
        ] {
            assert!(remove(&mut object, field), "{field}");
            assert!(!remove(&mut object, field), "{field}, again");
        }
        assert_eq!(
            object,
            json!({
                "metadata": {"labels": {"app": "x"}},
                "data": {"larder": "…"},
                "spec": {
                    "finalizers": ["a"],
                    "ports": [{"port": 5001, "protocol": "TCP"}],
                    "containers": [{"name": "larder", "args": ["serve"]}],
                },
            })
        );
    }

    #[test]
    fn what_is_not_there_is_no_reason_to_take_out_something_else() {
        let object = json!({"spec": {"list": [{"name": "a"}], "text": "x"}});
        for field in [
            "",
            ".",
            "spec",
            ".spec.none",
            ".spec.list[name=\"b\"]",
            ".spec.list[0",
            ".spec.text.x",
            ".spec.list.a",
        ] {
            let mut same = object.clone();
            assert!(!remove(&mut same, field), "{field}");
            assert_eq!(same, object);
        }
    }

    #[test]
    fn only_conflicts_with_other_managers_count() {
        let status: Status = serde_json::from_value(json!({
            "status": "Failure", "code": 409, "reason": "Conflict", "message": "…",
            "details": {"causes": [
                {"reason": "FieldManagerConflict", "message": "conflict with \"kubectl\" using apps/v1", "field": ".spec.replicas"},
                {"reason": "FieldValueInvalid", "message": "…", "field": ".spec.x"},
            ]},
        }))
        .unwrap();
        let taken = taken(&status);
        assert_eq!(taken.len(), 1);
        assert_eq!(taken[0].field, ".spec.replicas");
    }
}
