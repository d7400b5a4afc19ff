//! The part of a turn that is about certificates: by the cache's own authority, or by cert-manager.

use std::net::IpAddr;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt as _;
use larder_k8s::cache::IssuerRef;

use super::{ReconcileError, Turn};
use crate::apply;
use crate::cert_manager;
use crate::certificates::Sans;
use crate::render::{Problem, extras};
use crate::secrets;

impl Turn<'_> {
    /// Has the replicas' certificate be there, and whom to trust for it be known.
    pub(super) async fn certificates(
        &mut self,
        client_ip: Option<IpAddr>,
    ) -> Result<(), ReconcileError> {
        let staying = self.facts.replicas.iter().filter(|it| !it.is_leaving);
        let addresses = staying.filter_map(|it| it.node_address).chain(client_ip);
        let sans = secrets::sans(self.scope, &self.places, addresses);
        let issuer = self.scope.cache.spec.http.as_ref().and_then(|it| it.issuer_ref.as_ref());
        if let Some(issuer) = issuer {
            return self.certificates_of_others(issuer, &sans).await;
        }
        let names = self.scope.names;
        let secret = self.facts.secrets.get(&names.certificate()).map(|it| &it.metadata);
        if cert_manager::remove(self.context, self.scope.cache, names, secret).await? {
            self.facts.secrets.remove(&names.certificate());
        }
        let authority = self.facts.secrets.get(&names.authority());
        let stored = secrets::stored(authority, self.facts.secrets.get(&names.certificate()));
        let asked = secrets::is_rotation_asked(self.scope, authority);
        let (called, now) = (self.scope.cache.name_any(), Timestamp::now().as_second());
        let policy = self.context.settings.policy();
        let renewed = stored.renew(&called, &sans, asked, now, &policy)?;
        // First the keys, then what is signed by them: between the two a turn may end.
        let made = self.apply(secrets::authority(self.scope, &renewed.certificates)).await?;
        if made.is_some() {
            self.apply_files(secrets::certificate(self.scope, &renewed.certificates)).await?;
            self.bundle = Some(renewed.certificates.bundle());
        }
        for news in renewed.news {
            self.context.tell(self.scope.cache, "Certificates", news).await;
        }
        if renewed.certificates.are_changing() {
            self.progress.push("the certificates' authority is being replaced".to_owned());
        }
        self.due = Some(renewed.due);
        Ok(())
    }

    async fn certificates_of_others(
        &mut self,
        issuer: &IssuerRef,
        sans: &Sans,
    ) -> Result<(), ReconcileError> {
        if !self.context.has_kind(&apply::CERTIFICATE).await? {
            let what = "http.issuerRef needs cert-manager, which is not in this cluster; install it, or remove issuerRef";
            self.problems.push(Problem::new("NoCertManager", what));
            return Ok(());
        }
        let certificate = self.apply(extras::certificate(self.scope, issuer, sans)).await?;
        let names = self.scope.names;
        if let Some(why) = certificate.as_ref().and_then(cert_manager::failure) {
            let what = format!(
                "cert-manager could not issue the certificate `{}`, and is going to try again: {why}",
                names.certificate()
            );
            self.problems.push(Problem::new("NotIssued", what));
        }
        let secret = self.facts.secrets.get(&names.certificate());
        let is_issued = secret.is_some_and(|it| cert_manager::has_made(&it.metadata, names));
        if !is_issued {
            self.progress.push(format!(
                "cert-manager is issuing the certificate; `kubectl describe certificaterequests -n {}` says what it waits for",
                self.scope.cache.namespace().unwrap_or_default()
            ));
        }
        // Until then, replicas show what the cache's own authority has signed, if there was one.
        let Some(secret) = secret else { return Ok(()) };
        self.versions.extend(secret.resource_version());
        let data = secret.data.as_ref().and_then(|it| it.get("ca.crt"));
        let bundle = data.and_then(|it| String::from_utf8(it.0.clone()).ok());
        // Of that authority an issuer that has none leaves the certificate where it was.
        let own = secrets::stored(self.facts.secrets.get(&names.authority()), None).bundle();
        self.bundle = bundle.filter(|text| !(text.trim().is_empty() || is_issued && *text == own));
        if self.bundle.is_none() {
            let what = format!(
                "secret `{}`: the issuer of http.issuerRef has put no authority into it as `ca.crt`, so that nodes cannot know whom to trust; name an issuer that does",
                names.certificate()
            );
            self.problems.push(Problem::new("SecretIncomplete", what));
        }
        Ok(())
    }
}
