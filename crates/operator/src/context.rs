//! What every turn has at hand.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use larder_k8s::RegistryCache;
use parking_lot::Mutex;
use tracing::warn;

use crate::certificates::Policy;
use crate::metrics::Metrics;
use crate::reconcile;
use crate::settings::Settings;
use crate::usage::Usage;

/// How long it is believed which kinds the cluster has: installing an operator is a matter of minutes.
const KINDS_LAST: Duration = Duration::from_secs(60);

/// The longest note of an event, by the API.
const MAX_NOTE: usize = 1000;

/// What every turn has at hand.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) settings: Settings,
    pub(crate) metrics: Metrics,
    pub(crate) usage: Usage,
    recorder: Recorder,
    kinds: Mutex<HashMap<&'static str, (Instant, bool)>>,
}

// === impl Context ===

impl Context {
    pub(crate) fn new(client: Client, settings: Settings, metrics: Metrics) -> Self {
        let reporter = Reporter {
            controller: "larder.dev/controller".to_owned(),
            instance: Some(settings.identity.clone()),
        };
        let recorder = Recorder::new(client.clone(), reporter);
        Self {
            client,
            settings,
            metrics,
            usage: Usage::default(),
            recorder,
            kinds: Mutex::default(),
        }
    }

    /// Whether the cluster has a kind that is not Kubernetes' own.
    pub(crate) async fn has_kind(
        &self,
        (group_version, kind, _): &(&'static str, &'static str, &'static str),
    ) -> Result<bool, kube::Error> {
        let known = self.kinds.lock().get(kind).copied();
        if let Some((since, is_there)) = known
            && since.elapsed() < KINDS_LAST
        {
            return Ok(is_there);
        }
        let is_there = match self.client.list_api_group_resources(group_version).await {
            Ok(list) => list.resources.iter().any(|it| it.kind == *kind),
            Err(kube::Error::Api(status)) if status.code == 404 => false,
            Err(error) => return Err(error),
        };
        self.kinds.lock().insert(kind, (Instant::now(), is_there));
        Ok(is_there)
    }

    /// Has people who look at `cache` know something.
    pub(crate) async fn tell(&self, cache: &RegistryCache, reason: &str, what: &str) {
        self.publish(cache, EventType::Normal, reason, what).await;
    }

    /// Has them know what has become of it.
    pub(crate) async fn tell_condition(&self, cache: &RegistryCache, condition: &Condition) {
        let is_bad = condition.type_ == "Degraded" && condition.status == "True";
        let kind = if is_bad { EventType::Warning } else { EventType::Normal };
        self.publish(cache, kind, &condition.reason, &condition.message).await;
    }

    /// An event that cannot be written is no reason to stop.
    async fn publish(&self, cache: &RegistryCache, type_: EventType, reason: &str, what: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(what.chars().take(MAX_NOTE).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self.recorder.publish(&event, &cache.object_ref(&())).await {
            warn!(error = &error as &dyn std::error::Error, "writing an event");
        }
    }
}

impl Settings {
    /// How long certificates last.
    pub(crate) fn policy(&self) -> Policy {
        reconcile::policy(self.settling)
    }
}
