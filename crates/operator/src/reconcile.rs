//! One turn: has the cluster be what a cache says, and the cache say how it is.
//!
//! ```text
//! facts ─▶ services ─▶ certificates ─▶ files ─▶ replicas ─▶ what is over ─▶ volumes ─▶ pods ─▶ status
//! ```
//!
//! In this order since each needs what is before it: certificates the services' addresses, replicas
//! their files. A turn that finds everything as it is to be writes nothing that counts.

mod certificates;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt as _};
use larder_k8s::RegistryCache;
use larder_k8s::cache::RegistryCacheStatus;
use serde_json::{Value, json};
use tracing::info;

use crate::apply::{self, ApplyError, Writer};
use crate::certificates::{MakeError, Policy};
use crate::conflict::Taken;
use crate::context::Context;
use crate::credentials::{Login, doubt, login};
use crate::facts::Facts;
use crate::names::{FILES, FINALIZER, GROWN, MANAGER, Names, hash};
use crate::render::config::{Config, Known};
use crate::render::replicas::{self, Template};
use crate::render::services::{self, Place};
use crate::render::{Problem, Scope, check, extras, files};
use crate::storage::Storage;
use crate::{removal, status, volumes};

/// How long until a turn that nothing has asked for: usage changes without a word.
const AGAIN: Duration = Duration::from_secs(60);

/// Why a turn ended early. It is taken again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReconcileError {
    /// The API server did not answer, or not as it should.
    #[error("asking the API server")]
    Unanswered(#[from] kube::Error),
    /// An object was not applied.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// A certificate could not be made.
    #[error(transparent)]
    Certificates(#[from] MakeError),
}

/// One turn for `cache`.
pub(crate) async fn reconcile(
    cache: Arc<RegistryCache>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let _timer = context.metrics.turn();
    let names = Names::of(&cache.name_any());
    if cache.metadata.deletion_timestamp.is_some() {
        return removal::step(&cache, &names, &context).await;
    }
    if !cache.finalizers().iter().any(|it| it == FINALIZER) {
        add_finalizer(&context.client, &cache).await?;
    }
    let namespace = cache.namespace().unwrap_or_default();
    let owner = cache.uid().unwrap_or_default();
    let scope = Scope { cache: &cache, names: &names };
    let facts = Facts::gather(&context.client, &cache, &names).await?;
    let writer = Writer::open(&context.client, &namespace, &owner, &names).await?;
    let turn = Turn {
        scope,
        context: &context,
        facts,
        writer,
        problems: Vec::new(),
        progress: Vec::new(),
        taken: BTreeMap::new(),
        is_whole: true,
        versions: Vec::new(),
        places: BTreeMap::new(),
        bundle: None,
        due: None,
    };
    turn.take().await
}

async fn add_finalizer(client: &Client, cache: &RegistryCache) -> Result<(), kube::Error> {
    let api: Api<RegistryCache> =
        Api::namespaced(client.clone(), &cache.namespace().unwrap_or_default());
    let mut finalizers = cache.finalizers().to_vec();
    finalizers.push(FINALIZER.to_owned());
    let patch = json!({"metadata": {
        // So that nobody's finalizer is lost, and none is put on a cache of the same name.
        "resourceVersion": cache.resource_version(),
        "finalizers": finalizers,
    }});
    api.patch(&cache.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
}

struct Turn<'a> {
    scope: Scope<'a>,
    context: &'a Context,
    facts: Facts,
    writer: Writer<'a>,
    problems: Vec<Problem>,
    progress: Vec<String>,
    /// Fields that belong to others, by object.
    taken: BTreeMap<String, Vec<Taken>>,
    /// Whether all objects could be applied: what could not be would look as if it were over.
    is_whole: bool,
    /// The versions of the objects that replicas have as files.
    versions: Vec<String>,
    places: BTreeMap<u32, Place>,
    bundle: Option<String>,
    /// When something is due by the clock.
    due: Option<i64>,
}

// === impl Turn ===

impl Turn<'_> {
    async fn take(mut self) -> Result<Action, ReconcileError> {
        let client_ip = self.services().await?;
        if self.scope.is_encrypted() {
            self.certificates(client_ip).await?;
        }
        let storage = self.storage();
        match storage {
            Ok(storage) => self.replicas(storage.as_ref()).await?,
            Err(problem) => {
                self.problems.push(problem);
                self.is_whole = false;
            }
        }
        self.around().await?;
        if self.is_whole {
            // Certificates are kept for the day on which TLS is wanted again.
            let kept = [self.scope.names.authority(), self.scope.names.certificate()];
            self.writer.remove(|name| !kept.iter().any(|it| it == name)).await?;
        }
        self.volumes().await?;
        self.pods().await?;
        self.report().await
    }

    /// Applies `object`. What a person has to put right is noted, and `None` comes back.
    async fn apply(&mut self, object: Value) -> Result<Option<Value>, ReconcileError> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let called = format!("{} {}", text("/kind"), text("/metadata/name"));
        match self.writer.apply(object).await {
            Ok(applied) => {
                if !applied.taken.is_empty() {
                    self.taken.insert(called, applied.taken);
                }
                Ok(Some(applied.object))
            }
            Err(error) => match error.problem() {
                Some(problem) => {
                    self.problems.push(problem);
                    self.is_whole = false;
                    Ok(None)
                }
                None => Err(error.into()),
            },
        }
    }

    /// Applies an object that replicas have as files.
    async fn apply_files(&mut self, object: Value) -> Result<(), ReconcileError> {
        let applied = self.apply(object).await?;
        let version = applied.as_ref().and_then(|it| it.pointer("/metadata/resourceVersion"));
        self.versions.extend(version.and_then(Value::as_str).map(str::to_owned));
        Ok(())
    }

    /// Returns the address of the service for clients.
    async fn services(&mut self) -> Result<Option<IpAddr>, ReconcileError> {
        let mut client_ip = None;
        for service in services::render(self.scope) {
            let name = service["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let Some(applied) = self.apply(service).await? else { continue };
            if let Some(ordinal) = self.scope.names.ordinal(&name) {
                self.places.extend(Place::of(&applied).map(|place| (ordinal, place)));
            } else if name == self.scope.names.base() {
                let ip = applied.pointer("/spec/clusterIP").and_then(Value::as_str);
                client_ip = ip.and_then(|ip| ip.parse().ok());
            }
        }
        Ok(client_ip)
    }

    /// `Err`: replicas cannot be what the spec says, so they stay as they are.
    fn storage(&self) -> Result<Option<Storage>, Problem> {
        let Some(storage) = &self.scope.cache.spec.storage else { return Ok(None) };
        let (Some(s3), Some(database)) = (&storage.s3, &storage.postgresql) else {
            return Ok(None);
        };
        let named = |name: &String| self.facts.secrets.get(name);
        let keys = s3.secret_ref.as_ref().and_then(|it| named(&it.name));
        let database = &database.secret_ref.name;
        Storage::read(s3, keys, database, named(database)).map(Some)
    }

    fn logins(&mut self) -> BTreeMap<String, Login> {
        let mut logins = BTreeMap::new();
        for upstream in &self.scope.cache.spec.upstreams {
            let Some(named) = &upstream.secret_ref else { continue };
            let secret = self.facts.secrets.get(&named.name);
            match login(upstream, secret) {
                Ok(login) => drop(logins.insert(upstream.upstream.clone(), login)),
                Err(problem) => self.problems.push(problem),
            }
            self.problems.extend(secret.and_then(|it| doubt(upstream, it)));
        }
        logins
    }

    /// The files of the replicas, and the replicas.
    async fn replicas(&mut self, storage: Option<&Storage>) -> Result<(), ReconcileError> {
        let logins = self.logins();
        let known = Known { places: &self.places, logins: &logins, storage };
        let config = Config::render(self.scope, &known);
        let check = self.context.settings.check;
        self.problems.extend(check::problems(self.scope, &logins, storage, check));
        let peers = services::peers(self.scope, &self.places);
        self.apply_files(files::config(self.scope, &config, &peers)).await?;
        self.apply_files(files::credentials(self.scope, &config)).await?;
        let mut restart = config.restart();
        if let Some(storage) = storage {
            let applied = self.apply(files::storage(self.scope, storage)).await?;
            let version = applied.as_ref().and_then(|it| it.pointer("/metadata/resourceVersion"));
            restart.push_str(version.and_then(Value::as_str).unwrap_or_default());
        }
        let template = self.facts.stateful_set.as_ref().and_then(Template::of);
        let plan = self.volume_plan();
        let grown = plan.settled.map(|it| it.0).or_else(|| self.grown_before());
        let known = replicas::Known {
            image: &self.context.settings.image,
            pull_secrets: &self.context.settings.pull_secrets,
            restart: hash(&restart)[..16].to_owned(),
            grown,
            template,
        };
        let applied = self.apply(replicas::stateful_set(self.scope, &known)).await?;
        if let Some(applied) = applied {
            self.facts.stateful_set = Some(applied);
        }
        Ok(())
    }

    /// The size that replicas were told that their volumes have.
    fn grown_before(&self) -> Option<String> {
        let annotations = self.facts.stateful_set.as_ref()?;
        let annotations = annotations.pointer("/spec/template/metadata/annotations")?;
        annotations.get(GROWN)?.as_str().map(str::to_owned)
    }

    fn volume_plan(&self) -> volumes::Plan {
        let wanted = Template::wanted(self.scope);
        let template = self.facts.stateful_set.as_ref().and_then(Template::of);
        let template = template.unwrap_or_else(|| wanted.clone());
        volumes::plan(&self.facts.claims, &self.facts.classes, &wanted.size, &template.size)
    }

    /// What is around the replicas.
    async fn around(&mut self) -> Result<(), ReconcileError> {
        self.apply(replicas::disruption_budget(self.scope)).await?;
        self.apply(replicas::network_policy(self.scope)).await?;
        if self.context.has_kind(&apply::SERVICE_MONITOR).await? {
            self.apply(extras::service_monitor(self.scope)).await?;
        }
        Ok(())
    }

    async fn volumes(&mut self) -> Result<(), ReconcileError> {
        let plan = self.volume_plan();
        self.progress.extend(plan.progress);
        self.problems.extend(plan.problems);
        let size = Template::wanted(self.scope).size;
        let api: Api<PersistentVolumeClaim> =
            Api::namespaced(self.context.client.clone(), self.scope.namespace());
        for name in plan.grow {
            let patch = json!({"spec": {"resources": {"requests": {"storage": size}}}});
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    self.progress.push(format!("{name} grows to {}", size.0));
                    let news = format!("{name} is to grow to {}", size.0);
                    self.context.tell(self.scope.cache, "VolumeGrows", &news).await;
                }
                Err(kube::Error::Api(status)) if (400..500).contains(&status.code) => {
                    let what = format!("{name}: {}", status.message);
                    self.problems.push(Problem::new("VolumeCannotGrow", what));
                }
                Err(error) => return Err(error.into()),
            }
        }
        self.label_volumes(&api).await
    }

    /// Volumes of a single upstream are found by it.
    async fn label_volumes(&self, api: &Api<PersistentVolumeClaim>) -> Result<(), ReconcileError> {
        let [upstream] = &self.scope.cache.spec.upstreams[..] else { return Ok(()) };
        // A wildcard is no value of a label.
        let host = upstream.upstream.replace(':', "-").replace('*', "any");
        let host: String = host.chars().take(63).collect();
        for claim in &self.facts.claims {
            let label = |key: &str| claim.labels().get(key) == Some(&host);
            if !label("upstream-host") || !label("larder.dev/upstream-host") {
                let labels = json!({"upstream-host": host, "larder.dev/upstream-host": host});
                let patch = json!({"metadata": {"labels": labels}});
                let params = PatchParams {
                    field_manager: Some(MANAGER.to_owned()),
                    ..PatchParams::default()
                };
                api.patch(&claim.name_any(), &params, &Patch::Merge(patch)).await?;
            }
        }
        Ok(())
    }

    /// Has kubelets look at files that have changed.
    async fn pods(&self) -> Result<(), ReconcileError> {
        let files = self.versions.join("-");
        let api: Api<Pod> = Api::namespaced(self.context.client.clone(), self.scope.namespace());
        let stale = self.facts.replicas.iter().filter(|it| !it.is_leaving && it.files != files);
        for replica in stale {
            let patch = json!({"metadata": {"annotations": {FILES: files}}});
            match api.patch(&replica.name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    async fn report(mut self) -> Result<Action, ReconcileError> {
        let cache = self.scope.cache;
        let others = apply::describe(&self.taken);
        if !others.is_empty() {
            self.problems.push(Problem::new(
                "TakenOver",
                format!("somebody else has set these, and they are left as they are: {others}"),
            ));
        }
        let used = self.context.usage.of(cache, &self.facts.replicas);
        let peers = services::peers(self.scope, &self.places);
        let seen = status::Seen {
            generation: cache.metadata.generation,
            scheme: self.scope.scheme(),
            wanted: self.scope.replicas(),
            replicas: &self.facts.replicas,
            places: &self.places,
            peers: &peers,
            zones: &self.facts.zones,
            revision: self.facts.stateful_set_text("/status/updateRevision"),
            bundle: self.bundle,
            progress: self.progress,
            problems: self.problems,
            used,
        };
        let before = cache.status.clone().unwrap_or_default();
        let status = status::of(seen, &before, Timestamp::now());
        write_status(self.context, cache, &before, &status).await?;
        let due = self.due.map(|due| due - Timestamp::now().as_second());
        let due =
            due.map(|seconds| Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1)));
        Ok(Action::requeue(due.map_or(AGAIN, |due| due.min(AGAIN))))
    }
}

/// Writes a status that is not the one before, and tells what has become of the cache.
pub(crate) async fn write_status(
    context: &Context,
    cache: &RegistryCache,
    before: &RegistryCacheStatus,
    status: &RegistryCacheStatus,
) -> Result<(), ReconcileError> {
    if status == before {
        return Ok(());
    }
    let api: Api<RegistryCache> =
        Api::namespaced(context.client.clone(), &cache.namespace().unwrap_or_default());
    let object = json!({
        "apiVersion": "larder.dev/v1alpha1",
        "kind": "RegistryCache",
        "metadata": {"name": cache.name_any()},
        "status": status,
    });
    // All of the status is ours.
    let params = PatchParams::apply(MANAGER).force();
    api.patch_status(&cache.name_any(), &params, &Patch::Apply(object)).await?;
    for condition in &status.conditions {
        let was = before.conditions.iter().find(|it| it.type_ == condition.type_);
        let is_news = was.is_none_or(|it| {
            (&it.status, &it.reason, &it.message)
                != (&condition.status, &condition.reason, &condition.message)
        });
        if is_news {
            info!(
                cache = cache.name_any(),
                "{} is {}: {}", condition.type_, condition.status, condition.message
            );
            context.tell_condition(cache, condition).await;
        }
    }
    Ok(())
}

/// How long things last, as `settings` have it.
pub(crate) fn policy(settling: Option<Duration>) -> Policy {
    let default = Policy::default();
    let settling = settling.map_or(default.settling, |it| it.as_secs().cast_signed());
    // What is kept is kept for longer than it takes to be told.
    Policy { settling, keeping: default.keeping.min(settling * 6), ..default }
}
