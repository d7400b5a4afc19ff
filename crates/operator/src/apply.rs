//! Writing objects: server-side apply, which leaves alone what belongs to others.

use std::collections::{BTreeMap, BTreeSet};

use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams,
    PropagationPolicy,
};
use kube::core::PartialObjectMeta;
use kube::core::params::ValidationDirective;
use kube::{Client, ResourceExt as _};
use serde_json::Value;
use tracing::{info, warn};

use crate::conflict::{self, Taken};
use crate::names::{MANAGER, Names};
use crate::render::Problem;

/// Every kind of object that a cache is made of, but those that only some clusters have: API version,
/// kind, plural. The order is that in which they are removed.
pub(crate) const KINDS: [(&str, &str, &str); 6] = [
    ("apps/v1", "StatefulSet", "statefulsets"),
    ("policy/v1", "PodDisruptionBudget", "poddisruptionbudgets"),
    ("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies"),
    ("v1", "ConfigMap", "configmaps"),
    ("v1", "Secret", "secrets"),
    ("v1", "Service", "services"),
];

/// Those of other people's operators.
pub(crate) const SERVICE_MONITOR: (&str, &str, &str) =
    ("monitoring.coreos.com/v1", "ServiceMonitor", "servicemonitors");
pub(crate) const CERTIFICATE: (&str, &str, &str) =
    ("cert-manager.io/v1", "Certificate", "certificates");

/// What an object became.
#[derive(Debug)]
pub(crate) struct Applied {
    /// As it is now.
    pub(crate) object: Value,
    /// What of it belongs to others.
    pub(crate) taken: Vec<Taken>,
}

/// Why an object was not applied.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApplyError {
    /// There is one of that name, and it is not ours.
    #[error("there is a {kind} `{name}` that is not of this cache; rename it, or the cache")]
    NotOurs {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// The API server does not want it, or not from us.
    #[error("{kind} `{name}`: {message}")]
    Refused {
        /// Its kind.
        kind: String,
        /// Its name.
        name: String,
        /// What the API server says.
        message: String,
    },
    /// The API server cannot be asked.
    #[error("asking the API server")]
    Unanswered(#[source] kube::Error),
}

impl ApplyError {
    /// What a person is told, if it is not only a matter of time.
    pub(crate) fn problem(&self) -> Option<Problem> {
        match self {
            Self::NotOurs { .. } => Some(Problem::new("NameTaken", self.to_string())),
            Self::Refused { .. } => Some(Problem::new("Refused", self.to_string())),
            Self::Unanswered(_) => None,
        }
    }
}

/// Writes and removes the objects of one cache.
pub(crate) struct Writer<'a> {
    client: &'a Client,
    namespace: &'a str,
    owner: &'a str,
    names: &'a Names,
    /// What there is of ours, as kind and name.
    ours: BTreeSet<(String, String)>,
    /// What is applied in this turn.
    applied: BTreeSet<(String, String)>,
}

pub(crate) fn resource((api_version, kind, plural): (&str, &str, &str)) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

// === impl Writer ===

impl<'a> Writer<'a> {
    /// Looks at what there is. `owner` is the uid of the cache.
    pub(crate) async fn open(
        client: &'a Client,
        namespace: &'a str,
        owner: &'a str,
        names: &'a Names,
    ) -> Result<Self, ApplyError> {
        let mut writer = Self {
            client,
            namespace,
            owner,
            names,
            ours: BTreeSet::new(),
            applied: BTreeSet::new(),
        };
        let query = ListParams::default().labels(&names.query());
        let lists = KINDS.map(|kind| {
            let (api, query) = (writer.api(kind), &query);
            async move { api.list_metadata(query).await.map(|list| (kind.1, list)) }
        });
        // At once, as each is a way to the API server and back.
        let lists = futures_util::future::try_join_all(lists).await;
        for (kind, list) in lists.map_err(ApplyError::Unanswered)? {
            let is_its = |found: &PartialObjectMeta<DynamicObject>| {
                found.owner_references().iter().any(|it| it.uid == owner)
            };
            let its = list.iter().filter(|it| is_its(it));
            writer.ours.extend(its.map(|it| (kind.to_owned(), it.name_any())));
        }
        Ok(writer)
    }

    fn api(&self, kind: (&str, &str, &str)) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), self.namespace, &resource(kind))
    }

    /// Has `object` be as it is rendered, but for fields that belong to others.
    pub(crate) async fn apply(&mut self, mut object: Value) -> Result<Applied, ApplyError> {
        let text = |path: &str| {
            object.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let (kind, name) = (text("/kind"), text("/metadata/name"));
        let known = KINDS.into_iter().chain([SERVICE_MONITOR, CERTIFICATE]);
        let resource = known.into_iter().find(|it| it.1 == kind).expect("all kinds are listed");
        let api = self.api(resource);
        let id = (kind, name);
        self.refuse_others(&api, &id).await?;
        let mut taken = Vec::new();
        loop {
            let mut params = PatchParams::apply(MANAGER);
            // A field that the server does not know is a mistake of ours that must not go unnoticed.
            params.field_validation = Some(ValidationDirective::Strict);
            match api.patch(&id.1, &params, &Patch::Apply(&object)).await {
                Ok(applied) => {
                    self.applied.insert(id.clone());
                    self.ours.insert(id);
                    let object = serde_json::to_value(applied).expect("it came as JSON");
                    return Ok(Applied { object, taken });
                }
                Err(kube::Error::Api(status)) => {
                    let others = conflict::taken(&status);
                    let removed =
                        others.iter().filter(|it| conflict::remove(&mut object, &it.field));
                    // Each turn makes the object smaller, so this ends.
                    if removed.count() == 0 {
                        return Err(refused(&id, *status));
                    }
                    taken.extend(others);
                }
                Err(error) => return Err(ApplyError::Unanswered(error)),
            }
        }
    }

    /// Fails if there is an object of this name that is not ours.
    async fn refuse_others(
        &self,
        api: &Api<DynamicObject>,
        id: &(String, String),
    ) -> Result<(), ApplyError> {
        if self.ours.contains(id) {
            return Ok(());
        }
        let found = api.get_metadata_opt(&id.1).await.map_err(ApplyError::Unanswered)?;
        match found {
            Some(found) if !found.owner_references().iter().any(|it| it.uid == self.owner) => {
                Err(ApplyError::NotOurs { kind: id.0.clone(), name: id.1.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Removes what is ours, was not applied in this turn, and has a name of which `is_over` says so.
    pub(crate) async fn remove(&self, is_over: impl Fn(&str) -> bool) -> Result<(), ApplyError> {
        for kind in KINDS {
            let ours = self.ours.difference(&self.applied).filter(|(it, _)| it == kind.1);
            for (_, name) in ours.filter(|(_, name)| is_over(name)) {
                let params = DeleteParams {
                    propagation_policy: Some(PropagationPolicy::Background),
                    ..DeleteParams::default()
                };
                match self.api(kind).delete(name, &params).await {
                    Ok(_) => info!(cache = self.names.base(), "removed the {} {name}", kind.1),
                    Err(kube::Error::Api(status)) if status.code == 404 => {}
                    Err(error) => return Err(ApplyError::Unanswered(error)),
                }
            }
        }
        Ok(())
    }
}

fn refused((kind, name): &(String, String), status: kube::core::Status) -> ApplyError {
    // What is not about the object will pass.
    if status.code >= 500
        || status.code == 429
        || (status.code == 409 && status.reason != "Conflict")
    {
        return ApplyError::Unanswered(kube::Error::Api(Box::new(status)));
    }
    let error = ApplyError::Refused {
        kind: kind.clone(),
        name: name.clone(),
        message: status.message.clone(),
    };
    warn!("{error}");
    error
}

/// The fields that belong to others, for people; empty if there are none.
pub(crate) fn describe(taken: &BTreeMap<String, Vec<Taken>>) -> String {
    let object = |(object, taken): (&String, &Vec<Taken>)| {
        let fields: Vec<String> =
            taken.iter().map(|it| format!("{} ({})", it.field, it.by)).collect();
        format!("{object}: {}", fields.join(", "))
    };
    taken.iter().filter(|(_, taken)| !taken.is_empty()).map(object).collect::<Vec<_>>().join("; ")
}
