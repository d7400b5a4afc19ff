//! Volumes grow in place. The template of a StatefulSet can never change, so each volume is asked for
//! more by itself, also the one of a replica that comes later.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use larder_k8s::quantity;

use crate::render::Problem;

/// What a cluster says by an annotation of the storage class that is meant where none is named.
const IS_DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";

/// What is to be done about the volumes of a cache, and how they are.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Plan {
    /// Claims that are to ask for the size that is wanted.
    pub(crate) grow: Vec<String>,
    /// What is on its way, for people.
    pub(crate) progress: Vec<String>,
    /// What a person has to do.
    pub(crate) problems: Vec<Problem>,
    /// The size that all of them have, if it is not that of the template: replicas measure theirs
    /// when they start.
    pub(crate) settled: Option<Quantity>,
}

/// Decides. `wanted` is the size of the spec, `template` that of the StatefulSet.
pub(crate) fn plan(
    claims: &[PersistentVolumeClaim],
    classes: &[StorageClass],
    wanted: &Quantity,
    template: &Quantity,
) -> Plan {
    let mut plan = Plan::default();
    let size = |it: &Quantity| quantity::bytes(&it.0).unwrap_or_default();
    let mut are_settled = !claims.is_empty();
    for claim in claims {
        let name = claim.metadata.name.clone().unwrap_or_default();
        let spec = claim.spec.clone().unwrap_or_default();
        let status = claim.status.clone().unwrap_or_default();
        let requests = spec.resources.and_then(|it| it.requests).unwrap_or_default();
        let asked = requests.get("storage").cloned().unwrap_or_default();
        let has = status.capacity.unwrap_or_default().get("storage").cloned().unwrap_or_default();
        let is_bound = status.phase.as_deref() == Some("Bound");
        are_settled &= is_bound && size(&asked) == size(wanted) && size(&has) >= size(wanted);
        if !is_bound {
            plan.problems.extend(unbound(&name, spec.storage_class_name.as_deref(), classes));
        } else if size(&asked) < size(wanted) {
            let class = spec.storage_class_name.unwrap_or_default();
            match may_grow(&class, classes) {
                true => plan.grow.push(name.clone()),
                false => plan.problems.push(Problem::new(
                    "VolumeCannotGrow",
                    format!("{name}: storage class `{class}` does not let volumes grow; set its allowVolumeExpansion, or make another cache"),
                )),
            }
        } else if size(&asked) > size(wanted) {
            let what = format!(
                "{name} has {}, and volumes cannot shrink; write at least that in volume.size, or make another cache",
                asked.0
            );
            plan.problems.push(Problem::new("VolumeCannotShrink", what));
        } else if size(&has) < size(&asked) {
            plan.progress.push(format!("{name} grows from {} to {}", has.0, asked.0));
        }
    }
    plan.settled = (are_settled && size(wanted) != size(template)).then(|| wanted.clone());
    plan
}

fn may_grow(class: &str, classes: &[StorageClass]) -> bool {
    let class = classes.iter().find(|it| it.metadata.name.as_deref() == Some(class));
    class.is_some_and(|it| it.allow_volume_expansion == Some(true))
}

/// Why a claim may wait for ever. Others wait for their pod to be scheduled, or for a moment.
fn unbound(name: &str, class: Option<&str>, classes: &[StorageClass]) -> Option<Problem> {
    let is_default = |class: &&StorageClass| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.and_then(|it| it.get(IS_DEFAULT)).is_some_and(|it| it == "true")
    };
    match class {
        None if !classes.iter().any(|it| is_default(&it)) => Some(Problem::new(
            "NoStorageClass",
            format!(
                "{name}: the cluster has no default storage class; name one in volume.storageClassName of another cache, or make one the default"
            ),
        )),
        Some(class)
            if !class.is_empty()
                && !classes.iter().any(|it| it.metadata.name.as_deref() == Some(class)) =>
        {
            Some(Problem::new(
                "NoStorageClass",
                format!("{name}: there is no storage class `{class}`"),
            ))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_volume_that_is_too_small_is_asked_to_grow_and_waited_for() {
        let classes = [class("fast", true, false)];
        let plan = planned(&[claim("fast", "10Gi", "10Gi")], &classes, "20Gi");
        assert_eq!(plan.grow, ["cache-volume-x-0"]);
        assert_eq!(plan.settled, None);
        let plan = planned(&[claim("fast", "20Gi", "10Gi")], &classes, "20Gi");
        assert_eq!(plan.progress, ["cache-volume-x-0 grows from 10Gi to 20Gi"]);
        let plan = planned(&[claim("fast", "20Gi", "20Gi")], &classes, "20Gi");
        assert_eq!(plan, Plan { settled: Some(Quantity("20Gi".to_owned())), ..Plan::default() });
    }

    #[test]
    fn a_volume_of_the_templates_size_is_no_news() {
        let classes = [class("fast", true, false)];
        // Written differently, and rounded up by whoever made it.
        let plan = planned(&[claim("fast", "10240Mi", "11Gi")], &classes, "10Gi");
        assert_eq!(plan, Plan::default());
    }

    #[test]
    fn what_a_person_has_to_do_is_said() {
        let fixed = [class("fixed", false, false)];
        let reason = |claims: &[PersistentVolumeClaim], classes: &[StorageClass], wanted| {
            let plan = planned(claims, classes, wanted);
            assert_eq!(plan.grow, [""; 0]);
            plan.problems.into_iter().map(|it| it.reason).collect::<Vec<_>>()
        };
        assert_eq!(reason(&[claim("fixed", "10Gi", "10Gi")], &fixed, "20Gi"), ["VolumeCannotGrow"]);
        assert_eq!(
            reason(&[claim("fixed", "10Gi", "10Gi")], &fixed, "5Gi"),
            ["VolumeCannotShrink"]
        );
        let pending = |class: Option<&str>| {
            let claim = json!({
                "metadata": {"name": "cache-volume-x-0"},
                "spec": {"storageClassName": class},
                "status": {"phase": "Pending"},
            });
            [serde_json::from_value(claim).unwrap()]
        };
        assert_eq!(reason(&pending(None), &fixed, "10Gi"), ["NoStorageClass"]);
        assert_eq!(reason(&pending(Some("gone")), &fixed, "10Gi"), ["NoStorageClass"]);
        assert_eq!(reason(&pending(Some("fixed")), &fixed, "10Gi"), [""; 0]);
        assert_eq!(reason(&pending(None), &[class("fixed", false, true)], "10Gi"), [""; 0]);
    }

    fn planned(claims: &[PersistentVolumeClaim], classes: &[StorageClass], wanted: &str) -> Plan {
        plan(claims, classes, &Quantity(wanted.to_owned()), &Quantity("10Gi".to_owned()))
    }

    fn claim(class: &str, asked: &str, has: &str) -> PersistentVolumeClaim {
        let claim: Value = json!({
            "metadata": {"name": "cache-volume-x-0"},
            "spec": {
                "storageClassName": class,
                "resources": {"requests": {"storage": asked}},
            },
            "status": {"phase": "Bound", "capacity": {"storage": has}},
        });
        serde_json::from_value(claim).unwrap()
    }

    fn class(name: &str, may_grow: bool, is_default: bool) -> StorageClass {
        let class = json!({
            "metadata": {"name": name, "annotations": {IS_DEFAULT: is_default.to_string()}},
            "provisioner": "x",
            "allowVolumeExpansion": may_grow,
        });
        serde_json::from_value(class).unwrap()
    }
}
