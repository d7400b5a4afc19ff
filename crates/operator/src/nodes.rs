//! New nodes: their taint goes once runtimes on them ask the cache.
//!
//! A node is made with `larder.dev/not-ready` (by its kubelet's `--register-with-taints`), so that
//! pods wait. Its agent puts up with the taint, and is ready once it answers and its entries are
//! written. Of nodes nothing is kept but the names of those that wait.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{Api, Patch, PatchParams};
use kube::core::{ClusterResourceScope, ObjectMeta};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, Resource, ResourceExt as _};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tracing::{info, warn};

use crate::metrics::Metrics;

/// The taint of nodes that are not ready yet.
pub(crate) const TAINT: &str = "larder.dev/not-ready";

/// What selects agents.
pub(crate) const AGENTS: &str = "app.kubernetes.io/name=larder,app.kubernetes.io/component=agent";

/// How many nodes are read at a time: each is some 10 KiB, most of which is forgotten at once.
const PAGE: u32 = 100;

/// A node, as far as it is of interest.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub(crate) struct TaintedNode {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: TaintedSpec,
}

#[derive(Clone, Debug, Default, Deserialize, Serialize)]
struct TaintedSpec {
    #[serde(default)]
    taints: Vec<Taint>,
}

impl Resource for TaintedNode {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Node::kind(&())
    }
    fn group((): &()) -> Cow<'_, str> {
        Node::group(&())
    }
    fn version((): &()) -> Cow<'_, str> {
        Node::version(&())
    }
    fn plural((): &()) -> Cow<'_, str> {
        Node::plural(&())
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl TaintedNode {
    fn waits(&self) -> bool {
        self.spec.taints.iter().any(|taint| taint.key == TAINT)
    }
}

/// Who waits, and whose agent is ready.
#[derive(Debug, Default)]
struct Waiting {
    nodes: BTreeSet<String>,
    /// Pods of agents that are ready, and the node of each.
    ready: BTreeMap<String, String>,
}

// === impl Waiting ===

impl Waiting {
    fn node(&mut self, event: Event<TaintedNode>) {
        match event {
            Event::Apply(node) | Event::InitApply(node) if node.waits() => {
                self.nodes.insert(node.name_any());
            }
            Event::Apply(node) | Event::InitApply(node) | Event::Delete(node) => {
                self.nodes.remove(&node.name_any());
            }
            Event::Init => self.nodes.clear(),
            Event::InitDone => {}
        }
    }

    fn agent(&mut self, event: Event<Pod>) {
        match event {
            Event::Apply(pod) | Event::InitApply(pod) => match ready_on(&pod) {
                Some(node) => drop(self.ready.insert(pod.name_any(), node)),
                None => drop(self.ready.remove(&pod.name_any())),
            },
            Event::Delete(pod) => drop(self.ready.remove(&pod.name_any())),
            Event::Init => self.ready.clear(),
            Event::InitDone => {}
        }
    }

    /// A node that need not wait any more.
    fn next(&self) -> Option<&String> {
        self.ready.values().find(|node| self.nodes.contains(*node))
    }
}

/// The node that a pod is ready on.
fn ready_on(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let is_ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
    let stays = pod.metadata.deletion_timestamp.is_none();
    (is_ready && stays).then(|| pod.spec.as_ref()?.node_name.clone()).flatten()
}

enum Heard {
    Node(Box<Event<TaintedNode>>),
    Agent(Box<Event<Pod>>),
}

/// Frees nodes, for ever.
pub(crate) async fn free(client: Client, namespace: &str, metrics: &Metrics) {
    let nodes: Api<TaintedNode> = Api::all(client.clone());
    let agents: Api<Pod> = Api::namespaced(client, namespace);
    let mut heard = std::pin::pin!(heard(nodes.clone(), agents));
    let mut waiting = Waiting::default();
    while let Some(next) = heard.next().await {
        match next {
            Ok(Heard::Node(event)) => waiting.node(*event),
            Ok(Heard::Agent(event)) => waiting.agent(*event),
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "watching nodes and agents");
            }
        }
        while let Some(name) = waiting.next().cloned() {
            match free_one(&nodes, &name).await {
                Ok(()) => {
                    info!(node = name, "{name} is ready: its runtimes ask the cache");
                    metrics.freed();
                }
                // Whatever it is, the node is heard of again when it changes, or listed anew.
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, node = name, "freeing {name}");
                }
            }
            waiting.nodes.remove(&name);
        }
    }
}

fn heard(
    nodes: Api<TaintedNode>,
    agents: Api<Pod>,
) -> impl Stream<Item = Result<Heard, watcher::Error>> {
    let nodes = watcher(nodes, watcher::Config::default().page_size(PAGE)).default_backoff();
    let agents = watcher(agents, watcher::Config::default().labels(AGENTS).page_size(PAGE))
        .default_backoff();
    futures_util::stream::select(
        nodes.map_ok(|it| Heard::Node(Box::new(it))),
        agents.map_ok(|it| Heard::Agent(Box::new(it))),
    )
}

/// Takes the taint from a node. Only ours, also if others change theirs at the same time.
async fn free_one(nodes: &Api<TaintedNode>, name: &str) -> Result<(), kube::Error> {
    /// How often somebody else may be faster.
    const TRIES: usize = 5;
    for n in 1.. {
        let Some(node) = nodes.get_opt(name).await? else { return Ok(()) };
        if !node.waits() {
            return Ok(());
        }
        let others: Vec<&Taint> = node.spec.taints.iter().filter(|it| it.key != TAINT).collect();
        let patch = json!({
            "metadata": {"resourceVersion": node.resource_version()},
            "spec": {"taints": others},
        });
        match nodes.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.code == 409 && n < TRIES => {}
            done => return done.map(drop),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_free_once_its_own_agent_is_ready() {
        let mut waiting = Waiting::default();
        waiting.node(Event::Apply(node("one", &[TAINT, "other"])));
        waiting.node(Event::Apply(node("two", &["other"])));
        waiting.agent(Event::Apply(agent("a", "two", "True")));
        waiting.agent(Event::Apply(agent("b", "one", "False")));
        assert_eq!(waiting.next(), None);
        waiting.agent(Event::Apply(agent("b", "one", "True")));
        assert_eq!(waiting.next(), Some(&"one".to_owned()));
        waiting.node(Event::Apply(node("one", &["other"])));
        assert_eq!(waiting.next(), None);
    }

    #[test]
    fn whichever_comes_first_the_other_is_waited_for() {
        let mut waiting = Waiting::default();
        waiting.agent(Event::InitApply(agent("b", "one", "True")));
        waiting.node(Event::InitApply(node("one", &[TAINT])));
        assert!(waiting.next().is_some());
        waiting.agent(Event::Delete(agent("b", "one", "True")));
        assert_eq!(waiting.next(), None);
        waiting.agent(Event::Apply(agent("c", "one", "True")));
        waiting.agent(Event::Init);
        assert_eq!(waiting.next(), None);
    }

    fn node(name: &str, taints: &[&str]) -> TaintedNode {
        let taints: Vec<_> =
            taints.iter().map(|key| json!({"key": key, "effect": "NoSchedule"})).collect();
        let node = json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": name},
            "spec": {"taints": taints, "podCIDR": "x"},
            "status": {"images": []},
        });
        serde_json::from_value(node).unwrap()
    }

    fn agent(name: &str, node: &str, ready: &str) -> Pod {
        let pod = json!({
            "metadata": {"name": name},
            "spec": {"containers": [], "nodeName": node},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        });
        serde_json::from_value(pod).unwrap()
    }
}
