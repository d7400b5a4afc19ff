//! The controller, from its start to its end.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{ConfigMap, PersistentVolumeClaim, Pod, Secret, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::Api;
use kube::core::{NamespaceResourceScope, PartialObjectMeta};
use kube::runtime::controller::{Action, Config, Controller};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt as _};
use larder_k8s::RegistryCache;
use larder_process::listener::Limits;
use larder_process::{Component, Start, admin};
use serde::de::DeserializeOwned;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::context::Context;
use crate::facts::secrets_of;
use crate::lease::Elector;
use crate::metrics::Metrics;
use crate::names::{INSTANCE, Names};
use crate::nodes;
use crate::reconcile::{ReconcileError, reconcile};
use crate::settings::Settings;
use crate::webhook::{self, Webhook};

/// How long after a turn that failed the next one begins: about as long as an API server takes to
/// start again.
const AFTER_FAILURE: Duration = Duration::from_secs(3);

/// How many caches are worked on at a time.
const CONCURRENCY: u16 = 8;

/// How long turns that have begun may take at the end.
const LAST_TURNS: Duration = Duration::from_secs(10);

/// Acts while no other controller does, until `start.stopping`. Metrics and health are served on
/// `admin_listener`, and the API server's questions by `webhook`, whether it acts or not.
pub async fn run(
    settings: Settings,
    client: Client,
    mut start: Start,
    admin_listener: TcpListener,
    webhook: Option<Webhook>,
) {
    let component = start.health.component("controller");
    let asked = webhook.as_ref().map(|_| start.health.component("webhook"));
    let metrics = Metrics::register(start.metrics.registry());
    let router = admin::router(start.health, start.metrics);
    let admin_stopping = CancellationToken::new();
    let limits = Limits { drain: Duration::from_secs(2), ..Limits::default() };
    let served = admin::serve(admin_listener, router, admin_stopping.clone(), limits);
    let served = tokio::spawn(served);
    let answered = webhook.zip(asked).map(|(webhook, component)| {
        let (client, metrics) = (client.clone(), metrics.clone());
        // To the end, as the API server asks here until it has heard that this one ends.
        let stopping = admin_stopping.clone();
        tokio::spawn(webhook::serve(
            webhook,
            client,
            settings.clone(),
            metrics,
            component,
            stopping,
        ))
    });
    start.announce.now();

    let stopping = start.stopping;
    let mut elector = Elector::new(client.clone(), &settings.namespace, settings.identity.clone());
    let context = Arc::new(Context::new(client, settings, metrics.clone()));
    while !stopping.is_cancelled() {
        component.ready_without("another controller acts, or the API server does not answer");
        let is_ours = tokio::select! {
            () = elector.acquire() => true,
            () = stopping.cancelled() => false,
        };
        if !is_ours {
            break;
        }
        metrics.leads(true);
        lead(&context, &mut elector, &component, &stopping).await;
        metrics.leads(false);
    }
    elector.release().await;
    admin_stopping.cancel();
    let _ = served.await;
    if let Some(answered) = answered {
        let _ = answered.await;
    }
}

/// Acts, until the lease is lost or the process is to stop.
async fn lead(
    context: &Arc<Context>,
    elector: &mut Elector,
    component: &Component,
    stopping: &CancellationToken,
) {
    component.ready();
    let ending = CancellationToken::new();
    let mut acting = tokio::spawn(act(Arc::clone(context), ending.clone()));
    tokio::select! {
        () = elector.keep() => {}
        () = stopping.cancelled() => {}
        ended = &mut acting => {
            return warn!("the controller ended early: {ended:?}");
        }
    }
    ending.cancel();
    if tokio::time::timeout(LAST_TURNS, &mut acting).await.is_err() {
        acting.abort();
    }
}

async fn act(context: Arc<Context>, ending: CancellationToken) {
    let nodes = async {
        match context.settings.frees_nodes {
            true => {
                let (client, namespace) = (context.client.clone(), &context.settings.namespace);
                nodes::free(client, namespace, &context.metrics).await;
            }
            false => std::future::pending().await,
        }
    };
    let caches = look_after_caches(Arc::clone(&context), ending.clone());
    tokio::select! {
        () = nodes => {}
        () = caches => {}
    }
}

async fn look_after_caches(context: Arc<Context>, ending: CancellationToken) {
    let (client, namespace) = (context.client.clone(), context.settings.namespace.clone());
    let caches: Api<RegistryCache> = Api::namespaced(client.clone(), &namespace);
    let controller = Controller::new(caches, watcher::Config::default())
        .with_config(Config::default().concurrency(CONCURRENCY));
    let store = controller.store();
    let ours = Ours { client, namespace, store };
    let controller = ours.watch::<StatefulSet>(controller);
    let controller = ours.watch::<Service>(controller);
    let controller = ours.watch::<ConfigMap>(controller);
    let controller = ours.watch::<PodDisruptionBudget>(controller);
    let controller = ours.watch::<NetworkPolicy>(controller);
    let controller = ours.watch::<Pod>(controller);
    let controller = ours.watch::<PersistentVolumeClaim>(controller);
    let controller = ours.watch_secrets(controller);
    let turns = controller.graceful_shutdown_on(ending.cancelled_owned()).run(
        reconcile,
        |_, _: &ReconcileError, _| Action::requeue(AFTER_FAILURE),
        Arc::clone(&context),
    );
    info!("looking after the caches in {}", context.settings.namespace);
    turns
        .for_each(|turn| {
            match turn {
                Ok(_) => context.metrics.ended(false),
                Err(error) => {
                    context.metrics.ended(true);
                    warn!(error = &error as &dyn std::error::Error, "a turn failed");
                }
            }
            std::future::ready(())
        })
        .await;
}

/// What caches are made of, and how the cache is found that an object is of. Only the metadata is
/// read of what is watched.
struct Ours {
    client: Client,
    namespace: String,
    store: Store<RegistryCache>,
}

// === impl Ours ===

impl Ours {
    fn api<K>(&self) -> Api<PartialObjectMeta<K>>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn watch<K>(&self, controller: Controller<RegistryCache>) -> Controller<RegistryCache>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + DeserializeOwned
            + std::fmt::Debug
            + Send
            + Sync
            + 'static,
    {
        let store = self.store.clone();
        let query = "app.kubernetes.io/name=larder,app.kubernetes.io/component=cache";
        let config = watcher::Config::default().labels(query);
        controller.watches(self.api::<K>(), config, move |object| {
            let instance = object.labels().get(INSTANCE).cloned();
            let is_its = move |cache: &RegistryCache| {
                instance.as_deref() == Some(Names::of(&cache.name_any()).base())
            };
            found(&store, is_its)
        })
    }

    /// Those that are ours, and those that people's caches name.
    fn watch_secrets(&self, controller: Controller<RegistryCache>) -> Controller<RegistryCache> {
        let store = self.store.clone();
        controller.watches(self.api::<Secret>(), watcher::Config::default(), move |secret| {
            let (name, instance) = (secret.name_any(), secret.labels().get(INSTANCE).cloned());
            found(&store, move |cache| {
                secrets_of(cache).contains(&name)
                    || instance.as_deref() == Some(Names::of(&cache.name_any()).base())
            })
        })
    }
}

fn found(
    store: &Store<RegistryCache>,
    is_it: impl Fn(&RegistryCache) -> bool,
) -> Vec<ObjectRef<RegistryCache>> {
    let caches = store.state();
    caches.iter().filter(|it| is_it(it)).map(|it| ObjectRef::from_obj(it.as_ref())).collect()
}
