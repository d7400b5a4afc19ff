//! What a replica's pod says about how it goes.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

use crate::names::{FILES, Names};
use crate::render::Problem;

/// The longest that is passed on of what a pod says.
const MAX_MESSAGE: usize = 300;

/// A replica that exists.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Replica {
    /// Its number.
    pub(crate) ordinal: u32,
    /// Its pod.
    pub(crate) name: String,
    /// Whether it is on its way out.
    pub(crate) is_leaving: bool,
    /// Whether it serves.
    pub(crate) is_ready: bool,
    /// The node that it runs on.
    pub(crate) node: Option<String>,
    /// An address of that node.
    pub(crate) node_address: Option<IpAddr>,
    /// Its own.
    pub(crate) address: Option<IpAddr>,
    /// Which of the StatefulSet's revisions it is of.
    pub(crate) revision: String,
    /// Which files it was last told to look at.
    pub(crate) files: String,
    /// What keeps it from serving.
    pub(crate) trouble: Option<Problem>,
}

impl Replica {
    /// What `pod` says; `None` if it is not one of the cache's.
    pub(crate) fn of(names: &Names, pod: &Pod) -> Option<Self> {
        let metadata = &pod.metadata;
        let name = metadata.name.clone()?;
        let status = pod.status.clone().unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let is_ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
        let text = |map: &Option<std::collections::BTreeMap<String, String>>, key: &str| {
            map.as_ref().and_then(|it| it.get(key)).cloned().unwrap_or_default()
        };
        let unscheduled = conditions
            .iter()
            .find(|it| it.type_ == "PodScheduled" && it.status == "False")
            .and_then(|it| it.message.as_deref());
        let trouble = match unscheduled {
            Some(why) => {
                Some(Problem::new("Unschedulable", format!("no node takes {name}: {}", short(why))))
            }
            None => {
                let mut containers = status.container_statuses.iter().flatten();
                containers.find_map(|container| trouble(&name, container))
            }
        };
        Some(Self {
            ordinal: names.ordinal(&name)?,
            is_leaving: metadata.deletion_timestamp.is_some(),
            is_ready,
            node: pod.spec.as_ref().and_then(|spec| spec.node_name.clone()),
            node_address: status.host_ip.and_then(|it| it.parse().ok()),
            address: status.pod_ip.and_then(|it| it.parse().ok()),
            revision: text(&metadata.labels, "controller-revision-hash"),
            files: text(&metadata.annotations, FILES),
            trouble: trouble.filter(|_| !is_ready),
            name,
        })
    }
}

/// What keeps a container from running.
fn trouble(pod: &str, container: &ContainerStatus) -> Option<Problem> {
    let waiting = container.state.as_ref()?.waiting.as_ref()?;
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let message = short(waiting.message.as_deref().unwrap_or(reason));
    match reason {
        "ErrImagePull" | "ImagePullBackOff" | "InvalidImageName" | "ErrImageNeverPull" => {
            let what = format!("the image of {pod} cannot be had: {message}");
            Some(Problem::new("ImageUnavailable", what))
        }
        "CrashLoopBackOff" => {
            let last = container.last_state.as_ref().and_then(|it| it.terminated.as_ref());
            let said = last.and_then(|it| it.message.as_deref()).map(last_lines);
            let code = last.map_or(0, |it| it.exit_code);
            let said = said.unwrap_or_else(|| format!("it ended with code {code}"));
            Some(Problem::new("Crashing", format!("{pod} does not stay up: {said}")))
        }
        "" | "ContainerCreating" | "PodInitializing" => None,
        _ => {
            Some(Problem::new("NotStarting", format!("{pod} does not start: {reason}: {message}")))
        }
    }
}

/// The end of what a program said, where the reason is.
fn last_lines(text: &str) -> String {
    let text = text.trim();
    let begin = text.len().saturating_sub(MAX_MESSAGE);
    let begin = (begin..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(0);
    text[begin..].to_owned()
}

fn short(text: &str) -> String {
    text.chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn where_it_runs_and_whether_it_serves_is_read() {
        let replica = replica(json!({
            "hostIP": "10.0.0.7", "podIP": "10.244.1.9",
            "conditions": [{"type": "Ready", "status": "True"}],
        }));
        assert_eq!((replica.ordinal, replica.is_ready, replica.is_leaving), (3, true, false));
        assert_eq!(replica.node_address, Some("10.0.0.7".parse().unwrap()));
        assert_eq!(replica.node.as_deref(), Some("n1"));
        assert_eq!(replica.trouble, None);
    }

    #[test]
    fn a_pods_own_message_is_passed_on() {
        let unscheduled = replica(json!({"conditions": [{
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient memory.",
        }]}));
        let told = unscheduled.trouble.unwrap();
        assert_eq!(told.reason, "Unschedulable");
        assert!(
            told.message.ends_with("larder-hub-3: 0/3 nodes are available: 3 Insufficient memory.")
        );

        let waiting = |reason: &str, last: Value| {
            replica(json!({"containerStatuses": [{
                "name": "larder", "image": "x", "imageID": "", "ready": false, "restartCount": 1,
                "state": {"waiting": {"reason": reason, "message": "back-off"}},
                "lastState": last,
            }]}))
        };
        let image = waiting("ImagePullBackOff", json!({})).trouble.unwrap();
        assert_eq!(image.message, "the image of larder-hub-3 cannot be had: back-off");
        let terminated =
            json!({"terminated": {"exitCode": 2, "message": "line 3: `x` is unknown\n"}});
        let crashing = waiting("CrashLoopBackOff", terminated).trouble.unwrap();
        assert_eq!(crashing.message, "larder-hub-3 does not stay up: line 3: `x` is unknown");
        assert_eq!(waiting("ContainerCreating", json!({})).trouble, None);
    }

    fn replica(status: Value) -> Replica {
        let pod = serde_json::from_value(json!({
            "metadata": {"name": "larder-hub-3"},
            "spec": {"containers": [], "nodeName": "n1"},
            "status": status,
        }));
        Replica::of(&Names::of("hub"), &pod.unwrap()).unwrap()
    }
}
