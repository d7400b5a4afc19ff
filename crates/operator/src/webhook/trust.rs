//! How the API server trusts the webhook: a certificate that its authority has signed, and a
//! `ValidatingWebhookConfiguration` that names the authority.
//!
//! Both are in one secret, which every controller reads, and whoever is first writes: written only over
//! the version that was read, it is never of two minds. Nothing is signed by an authority that the
//! configuration does not have yet.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt as _};
use larder_process::Component;
use larder_process::tls::{self, GivenCertificate};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::{Host, Url};

use crate::certificates::{Certificates, MakeError, Pair, Policy, Sans};
use crate::names::{MANAGER, ROTATE};
use crate::settings::Settings;

/// The secret.
const SECRET: &str = "larder-webhook";

/// How often it is looked whether all is as it is to be: another controller may have renewed the
/// certificate, or somebody applied the configuration anew.
const EVERY: Duration = Duration::from_secs(10);

/// How long until the next look after one that failed.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// How long one look may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a look begins again because somebody else was faster, or because there is more to do. A
/// rotation takes three.
const MAX_ROUNDS: usize = 8;

/// Why the API server does not trust us yet.
#[derive(Debug, thiserror::Error)]
enum TrustError {
    /// Nobody has the API server ask.
    #[error(
        "there is no ValidatingWebhookConfiguration `{0}`, so the API server asks nothing; make it, or leave --webhook-listen out"
    )]
    NotConfigured(String),
    /// The API server did not answer, or not as it should.
    #[error("asking the API server about the webhook's certificate")]
    Unanswered(#[from] kube::Error),
    /// A certificate could not be made.
    #[error(transparent)]
    Certificates(#[from] MakeError),
}

/// Who is shown what, and is told whom to trust.
pub(super) struct Trust {
    configurations: Api<ValidatingWebhookConfiguration>,
    secrets: Api<Secret>,
    configuration: String,
    policy: Policy,
    certificate: Arc<GivenCertificate>,
    /// What the certificate was made of.
    shown: Mutex<Option<Pair>>,
}

// === impl Trust ===

impl Trust {
    pub(super) fn new(
        client: Client,
        settings: &Settings,
        configuration: String,
        certificate: Arc<GivenCertificate>,
    ) -> Self {
        Self {
            configurations: Api::all(client.clone()),
            secrets: Api::namespaced(client, &settings.namespace),
            configuration,
            policy: settings.policy(),
            certificate,
            shown: Mutex::default(),
        }
    }

    /// Keeps both as they are to be, until `stopping`.
    pub(super) async fn keep(&self, component: Component, stopping: CancellationToken) {
        component.ready_without("the API server does not trust it yet");
        let mut said = String::new();
        loop {
            let looked = tokio::select! {
                looked = timeout(PATIENCE, self.look()) => looked,
                () = stopping.cancelled() => return,
            };
            let wait = match looked {
                Ok(Ok(due)) => {
                    component.ready();
                    said.clear();
                    let left = due.saturating_sub(Timestamp::now().as_second());
                    Duration::from_secs(u64::try_from(left).unwrap_or(0).max(1)).min(EVERY)
                }
                Ok(Err(error)) => {
                    if said != error.to_string() {
                        said = error.to_string();
                        warn!(error = &error as &dyn Error, "the webhook is not asked");
                    }
                    component.ready_without(&said);
                    AFTER_FAILURE
                }
                Err(_) => {
                    component.ready_without("the API server does not answer");
                    AFTER_FAILURE
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// One look. Returns when the next is due at the latest, in seconds since 1970.
    async fn look(&self) -> Result<i64, TrustError> {
        for _ in 0..MAX_ROUNDS {
            let configuration = self.configurations.get_opt(&self.configuration).await?;
            let Some(configuration) = configuration else {
                return Err(TrustError::NotConfigured(self.configuration.clone()));
            };
            let secret = self.secrets.get_opt(SECRET).await?;
            let mut stored = secret.as_ref().map(read).unwrap_or_default();
            if !stored.leaf.as_ref().is_some_and(|leaf| self.show(leaf)) {
                stored.leaf = None;
            }
            // Before anything else is signed.
            if stored.leaf.is_some() {
                self.tell(&configuration, &stored.bundle()).await?;
            }
            let asked = configuration.annotations().get(ROTATE);
            let done = secret.as_ref().and_then(|it| it.annotations().get(ROTATE));
            let is_asked = secret.is_some() && asked.is_some() && asked != done;
            let (sans, now) = (sans(&configuration), Timestamp::now().as_second());
            let renewed = stored.clone().renew("webhook", &sans, is_asked, now, &self.policy)?;
            if renewed.certificates == stored && !is_asked {
                return Ok(renewed.due);
            }
            if self.write(&configuration, secret, &renewed.certificates).await? {
                for news in renewed.news {
                    info!("the webhook's certificates: {news}");
                }
            }
        }
        Ok(Timestamp::now().as_second())
    }

    /// Shows `leaf` from now on. Returns whether it can be shown.
    fn show(&self, leaf: &Pair) -> bool {
        let mut shown = self.shown.lock();
        if shown.as_ref() == Some(leaf) {
            return true;
        }
        let place = |key: &str| PathBuf::from(format!("{key} of the secret {SECRET}"));
        let files = tls::Files { cert: place("tls.crt"), key: place("tls.key") };
        match tls::certified(&files, leaf.cert.as_bytes(), leaf.key.as_bytes()) {
            Ok(certified) => {
                self.certificate.give(certified);
                *shown = Some(leaf.clone());
                true
            }
            Err(error) => {
                warn!(error = &error as &dyn Error, "making the webhook's certificate anew");
                false
            }
        }
    }

    /// Has the API server trust `bundle`, and only it.
    async fn tell(
        &self,
        configuration: &ValidatingWebhookConfiguration,
        bundle: &str,
    ) -> Result<(), TrustError> {
        let webhooks = configuration.webhooks.iter().flatten();
        let told =
            |it: &Option<ByteString>| it.as_ref().is_some_and(|it| it.0 == bundle.as_bytes());
        if webhooks.clone().all(|it| told(&it.client_config.ca_bundle)) {
            return Ok(());
        }
        let bundle = ByteString(bundle.as_bytes().to_vec());
        let told =
            webhooks.map(|it| json!({"name": it.name, "clientConfig": {"caBundle": bundle}}));
        let object = json!({
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "ValidatingWebhookConfiguration",
            // So that one that was made anew meanwhile is looked at first.
            "metadata": {"name": self.configuration, "uid": configuration.uid()},
            "webhooks": told.collect::<Vec<Value>>(),
        });
        // Nobody else's: the chart says everything but this, so both write without taking turns.
        let params = PatchParams::apply(MANAGER).force();
        self.configurations.patch(&self.configuration, &params, &Patch::Apply(object)).await?;
        Ok(())
    }

    /// Writes the secret over the version that was read. Returns false if there is another by now.
    async fn write(
        &self,
        configuration: &ValidatingWebhookConfiguration,
        before: Option<Secret>,
        certificates: &Certificates,
    ) -> Result<bool, TrustError> {
        let asked = configuration.annotations().get(ROTATE);
        let annotations = asked.map_or(json!({}), |it| json!({ROTATE: it}));
        let mut object = json!({
            "metadata": {
                "name": SECRET,
                "labels": {
                    "app.kubernetes.io/name": "larder",
                    "app.kubernetes.io/component": "controller",
                    "app.kubernetes.io/managed-by": "larder",
                },
                "annotations": annotations,
                // Goes with the configuration, when the chart is removed.
                "ownerReferences": [{
                    "apiVersion": "admissionregistration.k8s.io/v1",
                    "kind": "ValidatingWebhookConfiguration",
                    "name": self.configuration,
                    "uid": configuration.uid(),
                }],
            },
            "data": files(certificates),
        });
        let params =
            PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let written = match before {
            None => {
                let secret = serde_json::from_value(object).expect("it is a secret");
                self.secrets.create(&params, &secret).await
            }
            Some(before) => {
                object["metadata"]["resourceVersion"] = json!(before.resource_version());
                // What is not there any more has to be said.
                for key in before.data.iter().flat_map(BTreeMap::keys) {
                    if object["data"].get(key).is_none() {
                        object["data"][key] = Value::Null;
                    }
                }
                let params =
                    PatchParams { field_manager: params.field_manager, ..PatchParams::default() };
                self.secrets.patch(SECRET, &params, &Patch::Merge(object)).await
            }
        };
        match written {
            Ok(_) => Ok(true),
            // Somebody else was faster, or it is gone.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whom the certificate is for: wherever the API server asks.
fn sans(configuration: &ValidatingWebhookConfiguration) -> Sans {
    let mut sans = Sans::default();
    for webhook in configuration.webhooks.iter().flatten() {
        if let Some(service) = &webhook.client_config.service {
            sans.names.insert(format!("{}.{}.svc", service.name, service.namespace));
        }
        let url = webhook.client_config.url.as_deref().and_then(|it| Url::parse(it).ok());
        match url.as_ref().and_then(Url::host) {
            Some(Host::Domain(name)) => drop(sans.names.insert(name.to_owned())),
            Some(Host::Ipv4(address)) => drop(sans.addresses.insert(address.into())),
            Some(Host::Ipv6(address)) => drop(sans.addresses.insert(address.into())),
            None => {}
        }
    }
    sans
}

/// What of certificates is in the secret.
fn read(secret: &Secret) -> Certificates {
    let text = |key: &str| {
        let bytes = secret.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok()
    };
    let pair = |name: &str| {
        Some(Pair { cert: text(&format!("{name}.crt"))?, key: text(&format!("{name}.key"))? })
    };
    Certificates {
        current: pair("ca"),
        next: pair("next"),
        previous: text("previous.crt"),
        leaf: pair("tls"),
    }
}

/// The secret's files.
fn files(certificates: &Certificates) -> BTreeMap<String, ByteString> {
    let Certificates { current, next, previous, leaf } = certificates;
    let mut files = BTreeMap::new();
    let mut add = |name: &str, text: &str| {
        files.insert(name.to_owned(), ByteString(text.as_bytes().to_vec()));
    };
    for (name, pair) in [("ca", current), ("next", next), ("tls", leaf)] {
        if let Some(pair) = pair {
            add(&format!("{name}.crt"), &pair.cert);
            add(&format!("{name}.key"), &pair.key);
        }
    }
    if let Some(previous) = previous {
        add("previous.crt", previous);
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_into_the_secret_is_read_of_it() {
        let pair = |name: &str| Pair { cert: format!("{name} cert"), key: format!("{name} key") };
        let certificates = Certificates {
            current: Some(pair("current")),
            next: Some(pair("next")),
            previous: Some("previous".to_owned()),
            leaf: Some(pair("leaf")),
        };
        let secret = |it: &Certificates| Secret { data: Some(files(it)), ..Secret::default() };
        assert_eq!(read(&secret(&certificates)), certificates);
        let fewer = Certificates { next: None, previous: None, ..certificates };
        assert_eq!(read(&secret(&fewer)), fewer);
    }

    #[test]
    fn the_certificate_is_for_wherever_the_api_server_asks() {
        let webhook = |client: Value| {
            json!({
                "name": "a.b.c", "clientConfig": client, "sideEffects": "None",
                "admissionReviewVersions": ["v1"],
            })
        };
        let configuration = json!({"webhooks": [
            webhook(json!({"service": {"name": "larder-webhook", "namespace": "larder-system"}})),
            webhook(json!({"url": "https://10.0.0.1:9443/validate"})),
            webhook(json!({"url": "https://[fd00::1]/validate"})),
            webhook(json!({"url": "https://hook.example.com/validate"})),
        ]});
        let sans = sans(&serde_json::from_value(configuration).unwrap());
        let names: Vec<&str> = sans.names.iter().map(String::as_str).collect();
        assert_eq!(names, ["hook.example.com", "larder-webhook.larder-system.svc"]);
        let addresses: Vec<String> = sans.addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
    }
}
