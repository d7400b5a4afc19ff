//! Whether the process can do its work.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Whether the process can do its work: each of its components says so for itself.
///
/// A handle: clones are the same thing.
#[derive(Clone, Debug)]
pub struct Health {
    components: Arc<Mutex<BTreeMap<&'static str, Status>>>,
    stopping: CancellationToken,
}

/// `None`: ready. Otherwise why not.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Status {
    Ready,
    ReadyWithout(String),
    NotReady(String),
}

/// The handle by which one component says whether it is ready.
///
/// Not ready at first (`starting`), and not ready any more (`ended`) once the handle is dropped:
/// keep it where the work is done, so that a task which ends too early is seen.
#[derive(Debug)]
#[must_use = "a component that is dropped is not ready"]
pub struct Component {
    name: &'static str,
    health: Health,
}

/// What [`Health`] says at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    components: BTreeMap<&'static str, Status>,
    is_stopping: bool,
}

impl Health {
    /// No component yet. Never ready once `stopping` is cancelled, so that nobody sends new work.
    pub fn new(stopping: CancellationToken) -> Self {
        Self { components: Arc::default(), stopping }
    }

    /// Adds a component, not ready until it says so. A name that is there already is taken over.
    pub fn component(&self, name: &'static str) -> Component {
        let component = Component { name, health: self.clone() };
        component.not_ready("starting");
        component
    }

    /// What the components say now.
    pub fn report(&self) -> Report {
        Report {
            components: self.components.lock().clone(),
            is_stopping: self.stopping.is_cancelled(),
        }
    }
}

impl Component {
    /// The component can do its work.
    pub fn ready(&self) {
        self.set(Status::Ready);
    }

    /// The component does its work without something, and what that is: for people, and without
    /// secrets.
    pub fn ready_without(&self, reason: impl Into<String>) {
        self.set(Status::ReadyWithout(reason.into()));
    }

    /// The component cannot do its work, and why: for people, and without secrets.
    pub fn not_ready(&self, reason: impl Into<String>) {
        self.set(Status::NotReady(reason.into()));
    }

    fn set(&self, status: Status) {
        self.health.components.lock().insert(self.name, status);
    }
}

impl Drop for Component {
    fn drop(&mut self) {
        self.not_ready("ended");
    }
}

impl Report {
    /// Whether all components are ready and the process is not stopping.
    pub fn is_ready(&self) -> bool {
        let is_ready = |status: &Status| !matches!(status, Status::NotReady(_));
        !self.is_stopping && self.components.values().all(is_ready)
    }

    /// `{"ready": bool, "stopping": bool, "components": {NAME: {"ready": bool, "reason": text}}}`;
    /// `reason` only where a component is not ready, or has to do without something.
    pub fn to_json(&self) -> Value {
        let component = |status: &Status| match status {
            Status::Ready => json!({"ready": true}),
            Status::ReadyWithout(reason) => json!({"ready": true, "reason": reason}),
            Status::NotReady(reason) => json!({"ready": false, "reason": reason}),
        };
        let components: BTreeMap<&str, Value> =
            self.components.iter().map(|(name, status)| (*name, component(status))).collect();
        json!({
            "ready": self.is_ready(),
            "stopping": self.is_stopping,
            "components": components,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_components_must_be_ready() {
        let health = Health::new(CancellationToken::new());
        let (store, index) = (health.component("store"), health.component("index"));
        store.ready();
        assert!(!health.report().is_ready());
        index.ready();
        assert!(health.report().is_ready());
        store.not_ready("disk full");
        assert_eq!(
            health.report().to_json(),
            json!({"ready": false, "stopping": false, "components": {
                "index": {"ready": true},
                "store": {"ready": false, "reason": "disk full"},
            }})
        );
    }

    #[test]
    fn a_component_that_does_without_something_is_ready_and_says_so() {
        let health = Health::new(CancellationToken::new());
        let shared = health.component("shared");
        shared.ready_without("it is away");
        let report = health.report();
        assert!(report.is_ready());
        assert_eq!(report.to_json()["components"]["shared"]["reason"], "it is away");
    }

    #[test]
    fn a_component_that_ended_is_not_ready() {
        let health = Health::new(CancellationToken::new());
        let store = health.component("store");
        store.ready();
        drop(store);
        assert_eq!(health.report().to_json()["components"]["store"]["reason"], "ended");
        assert!(!health.report().is_ready());
    }

    #[test]
    fn a_stopping_process_is_not_ready() {
        let stopping = CancellationToken::new();
        let health = Health::new(stopping.clone());
        assert!(health.report().is_ready());
        stopping.cancel();
        assert!(!health.report().is_ready());
    }
}
