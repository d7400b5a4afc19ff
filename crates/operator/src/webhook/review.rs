//! The question and the answer, as the API server writes them.
//!
//! Source: Kubernetes API, `admission.k8s.io/v1`, `AdmissionReview`.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;
use kube::core::DynamicObject;
use kube::core::admission::{AdmissionRequest, AdmissionResponse, AdmissionReview};
use kube::{Client, ResourceExt as _};
use larder_k8s::RegistryCache;
use tokio::time::timeout;
use tracing::{info, warn};

use super::verdict::{Secrets, Verdict, validate};
use crate::facts::secrets_of;
use crate::metrics::Metrics;
use crate::settings::Settings;

/// How long it may take to read the secrets.
const SECRETS_TIMEOUT: Duration = Duration::from_secs(2);

/// Answers what the API server asks.
pub(super) struct Reviewer {
    client: Client,
    settings: Settings,
    metrics: Metrics,
}

// === impl Reviewer ===

impl Reviewer {
    pub(super) fn new(client: Client, settings: Settings, metrics: Metrics) -> Self {
        Self { client, settings, metrics }
    }

    /// The answer, as JSON; `None` if it was no question.
    pub(super) async fn answer(&self, question: &[u8]) -> Option<Vec<u8>> {
        let review: AdmissionReview<DynamicObject> = serde_json::from_slice(question).ok()?;
        let request: AdmissionRequest<DynamicObject> = review.try_into().ok()?;
        let mut response = AdmissionResponse::from(&request);
        let verdict = self.review(&request).await;
        let outcome = match &verdict {
            Verdict { refusals, .. } if !refusals.is_empty() => "refused",
            Verdict { warnings, .. } if !warnings.is_empty() => "warned",
            _ => "allowed",
        };
        self.metrics.reviewed(outcome);
        if !verdict.refusals.is_empty() {
            let refusals = verdict.refusals.join("\n");
            info!(cache = request.name, "refused: {refusals}");
            response = response.deny(refusals);
            response.result.code = 422;
            response.result.reason = "Invalid".to_owned();
        }
        response.warnings = Some(verdict.warnings).filter(|it| !it.is_empty());
        serde_json::to_vec(&response.into_review()).ok()
    }

    async fn review(&self, request: &AdmissionRequest<DynamicObject>) -> Verdict {
        // Nobody makes anything of a cache elsewhere, nor may its secrets be read.
        if request.namespace.as_deref() != Some(&self.settings.namespace) {
            return Verdict::default();
        }
        let read = |object: Option<&DynamicObject>| {
            object.and_then(|it| it.clone().try_parse::<RegistryCache>().ok())
        };
        let Some(cache) = read(request.object.as_ref()) else {
            let what = "this version of the controller cannot read it, so nobody has looked at it";
            return Verdict { warnings: vec![what.to_owned()], ..Verdict::default() };
        };
        let old = read(request.old_object.as_ref());
        let secrets = timeout(SECRETS_TIMEOUT, self.secrets(&cache, old.as_ref())).await;
        let secrets = match secrets {
            Ok(Ok(secrets)) => Some(secrets),
            Ok(Err(error)) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, "reading the secrets of {}", request.name);
                None
            }
            Err(_) => {
                warn!("the API server does not answer about the secrets of {}", request.name);
                None
            }
        };
        validate(&cache, old.as_ref(), secrets.as_ref(), self.settings.check)
    }

    /// The secrets as they are now: one may have been made a moment ago, by the same command.
    async fn secrets(
        &self,
        cache: &RegistryCache,
        old: Option<&RegistryCache>,
    ) -> Result<Secrets, kube::Error> {
        let api: Api<Secret> = Api::namespaced(self.client.clone(), &self.settings.namespace);
        let mut names = secrets_of(cache);
        names.extend(old.map(secrets_of).unwrap_or_default());
        let found = names.iter().map(|name| api.get_opt(name));
        let found = futures_util::future::try_join_all(found).await?;
        Ok(found.into_iter().flatten().map(|secret| (secret.name_any(), secret)).collect())
    }
}
