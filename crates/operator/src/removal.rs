//! A cache that is deleted: nodes stop asking it, then it goes, with what it has stored.
//!
//! ```text
//! deleted ─▶ status.mirrored = false ─▶ agents withdraw ─▶ replicas end ─▶ volumes ─▶ the finalizer
//! ```

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use kube::runtime::controller::Action;
use kube::{Client, ResourceExt as _};
use larder_k8s::RegistryCache;
use serde_json::json;
use tracing::info;

use crate::apply::Writer;
use crate::cert_manager;
use crate::context::Context;
use crate::facts::Facts;
use crate::names::{FINALIZER, INSTANCE, Names};
use crate::reconcile::{ReconcileError, write_status};
use crate::status;

/// How often it is looked whether replicas have ended.
const LOOK: Duration = Duration::from_secs(1);

/// The reason of a cache that waits for agents.
const WITHDRAWING: &str = "Withdrawing";

/// The next step. Returns when to look again.
pub(crate) async fn step(
    cache: &RegistryCache,
    names: &Names,
    context: &Context,
) -> Result<Action, ReconcileError> {
    if !cache.finalizers().iter().any(|it| it == FINALIZER) {
        return Ok(Action::await_change());
    }
    let before = cache.status.clone().unwrap_or_default();
    let now = Timestamp::now();
    let say = async |reason: &'static str, message: String| {
        let generation = cache.metadata.generation;
        let status = status::leaving((reason, message), generation, &before, now);
        write_status(context, cache, &before, &status).await
    };
    let removing = status::since(&before, "Progressing", "Removing");
    let withdrawing = status::since(&before, "Progressing", WITHDRAWING);
    match (removing, withdrawing) {
        (None, None) => {
            say(WITHDRAWING, "nodes stop asking this cache".to_owned()).await?;
            return Ok(Action::requeue(context.settings.withdrawal));
        }
        (None, Some(since)) => {
            let passed = Duration::try_from(now.duration_since(since)).unwrap_or_default();
            if passed < context.settings.withdrawal {
                return Ok(Action::requeue(context.settings.withdrawal - passed));
            }
        }
        (Some(_), _) => {}
    }
    let namespace = cache.namespace().unwrap_or_default();
    let owner = cache.uid().unwrap_or_default();
    let secrets: Api<Secret> = Api::namespaced(context.client.clone(), &namespace);
    let secret = secrets.get_metadata_opt(&names.certificate()).await?;
    cert_manager::remove(context, cache, names, secret.as_ref().map(|it| &it.metadata)).await?;
    let writer = Writer::open(&context.client, &namespace, &owner, names).await?;
    writer.remove(|_| true).await?;
    remove_volumes(context, &namespace, names).await?;
    let facts = Facts::gather(&context.client, cache, names).await?;
    match facts.replicas.len() {
        0 => {
            context.tell(cache, "Removed", "the cache and what it stored are gone").await;
            release(context, cache).await?;
            Ok(Action::await_change())
        }
        n => {
            say("Removing", format!("{n} replicas are ending")).await?;
            Ok(Action::requeue(LOOK))
        }
    }
}

/// Deletes all caches of `namespace`, and returns once the controller that runs has removed them.
///
/// # Errors
///
/// The API server does not answer, or not as it should.
pub async fn remove_all(client: Client, namespace: &str) -> Result<(), RemoveError> {
    let api: Api<RegistryCache> = Api::namespaced(client, namespace);
    loop {
        let caches = api.list_metadata(&ListParams::default()).await?;
        if caches.items.is_empty() {
            return Ok(());
        }
        for cache in caches.iter().filter(|it| it.metadata.deletion_timestamp.is_none()) {
            info!("deleting {}", cache.name_any());
            match api.delete(&cache.name_any(), &DeleteParams::default()).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error.into()),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Caches could not be deleted.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct RemoveError(#[from] kube::Error);

/// A claim goes once no pod has it.
async fn remove_volumes(
    context: &Context,
    namespace: &str,
    names: &Names,
) -> Result<(), ReconcileError> {
    let api: Api<PersistentVolumeClaim> = Api::namespaced(context.client.clone(), namespace);
    let query = ListParams::default().labels(&format!("{INSTANCE}={}", names.base()));
    for claim in api.list_metadata(&query).await? {
        let name = claim.name_any();
        if names.ordinal(&name).is_none() || claim.metadata.deletion_timestamp.is_some() {
            continue;
        }
        match api.delete(&name, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

async fn release(context: &Context, cache: &RegistryCache) -> Result<(), ReconcileError> {
    let api: Api<RegistryCache> =
        Api::namespaced(context.client.clone(), &cache.namespace().unwrap_or_default());
    let others: Vec<&String> = cache.finalizers().iter().filter(|it| *it != FINALIZER).collect();
    let patch = json!({"metadata": {"uid": cache.uid(), "finalizers": others}});
    match api.patch(&cache.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(error.into()),
    }
}
