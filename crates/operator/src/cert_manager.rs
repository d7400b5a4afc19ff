//! What cert-manager has made for a cache, what it says of it, and how it goes when it is not wanted any
//! more.
//!
//! The certificate that it was asked for is the cache's, and goes with it; the secret is nobody's, and
//! cert-manager leaves it behind.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, DynamicObject, Preconditions};
use larder_k8s::RegistryCache;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tracing::info;

use crate::apply::{CERTIFICATE, resource};
use crate::context::Context;
use crate::names::{INSTANCE, Names};

/// On a secret: the certificate that it was made for.
///
/// Source: cert-manager, `CertificateNameKey`.
const CERTIFICATE_NAME: &str = "cert-manager.io/certificate-name";

/// The most letters of a message that are passed on: an issuer's answer may be a whole page.
const MAX_MESSAGE: usize = 500;

/// Whether cert-manager has made the secret with the replicas' certificate, or has taken it over.
pub(crate) fn has_made(secret: &ObjectMeta, names: &Names) -> bool {
    let is = |map: &Option<BTreeMap<String, String>>, key: &str, value: &str| {
        map.as_ref().and_then(|it| it.get(key)).is_some_and(|it| it == value)
    };
    is(&secret.annotations, CERTIFICATE_NAME, &names.certificate())
        && is(&secret.labels, INSTANCE, names.base())
}

/// Why cert-manager could not issue a certificate or renew it the last time. `None`: it could, or is
/// trying.
pub(crate) fn failure(certificate: &Value) -> Option<String> {
    let is_failure = |it: &&Value| {
        it["type"] == "Issuing" && it["status"] == "False" && it["reason"] == "Failed"
    };
    let conditions = certificate.pointer("/status/conditions")?.as_array()?;
    let message = conditions.iter().find(is_failure)?["message"].as_str()?;
    Some(message.chars().take(MAX_MESSAGE).collect())
}

/// Removes the certificate that cert-manager was asked for, and then `secret`, if it was made for one.
/// Returns whether the secret is gone. A certificate of that name that is somebody else's stays, and
/// so does its secret.
pub(crate) async fn remove(
    context: &Context,
    cache: &RegistryCache,
    names: &Names,
    secret: Option<&ObjectMeta>,
) -> Result<bool, kube::Error> {
    let (client, name) = (&context.client, names.certificate());
    let namespace = cache.namespace().unwrap_or_default();
    if context.has_kind(&CERTIFICATE).await? {
        let kind = resource(CERTIFICATE);
        let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &kind);
        if let Some(found) = api.get_metadata_opt(&name).await? {
            if !found.owner_references().iter().any(|it| Some(&it.uid) == cache.uid().as_ref()) {
                return Ok(false);
            }
            // First, or the secret would be made again.
            delete(&api, &found.metadata).await?;
            info!(cache = names.base(), "removed the Certificate {name}");
        }
    }
    let Some(secret) = secret.filter(|it| has_made(it, names)) else { return Ok(false) };
    let api: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    delete(&api, secret).await?;
    info!(cache = names.base(), "removed the Secret {name}, which cert-manager had made");
    Ok(true)
}

/// Deletes what was seen, and nothing of its name that has come after it.
async fn delete<K>(api: &Api<K>, seen: &ObjectMeta) -> Result<(), kube::Error>
where
    K: Clone + DeserializeOwned + fmt::Debug,
{
    let preconditions = Preconditions { uid: seen.uid.clone(), resource_version: None };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(seen.name.as_deref().unwrap_or_default(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_failure_is_what_issuing_ended_with() {
        let of = |condition: Value| failure(&json!({"status": {"conditions": [condition]}}));
        let failed =
            json!({"type": "Issuing", "status": "False", "reason": "Failed", "message": "no"});
        assert_eq!(of(failed).as_deref(), Some("no"));
        for other in [
            json!({"type": "Issuing", "status": "True", "reason": "Expiring", "message": "soon"}),
            json!({"type": "Ready", "status": "False", "reason": "Failed", "message": "no"}),
        ] {
            assert_eq!(of(other), None);
        }
        assert_eq!(failure(&json!({"spec": {}})), None);
    }

    #[test]
    fn a_page_is_not_passed_on_whole() {
        let page = "ä".repeat(10_000);
        let condition =
            json!({"type": "Issuing", "status": "False", "reason": "Failed", "message": page});
        let said = failure(&json!({"status": {"conditions": [condition]}})).unwrap();
        assert_eq!(said.chars().count(), MAX_MESSAGE);
    }
}
