//! Manifests by digest: what is stored is served, and the rest is fetched, checked and stored.

use std::sync::Arc;

use larder_core::manifest::Manifest as Parsed;
use larder_core::media::Accept;
use larder_core::name::Named;
use larder_core::{Digest, Reference};
use larder_store::{CommitError, References, StoredManifest};
use larder_upstream::{Error, RawManifest};
use tracing::{info, warn};

use super::{Manifest, wait};
use crate::flights::Waiting;
use crate::metrics::{Outcome, StoreOp};
use crate::refusal::{Asking, Refusal};
use crate::service::{Ask, Registry};
use crate::upstream::Upstream;

impl Registry {
    pub(super) async fn manifest_by_digest(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        digest: &Digest,
    ) -> Result<(Manifest, Outcome), Refusal> {
        let asking = Asking::Manifest(&ask.name, digest);
        if let Some(stored) = self.found(self.store.manifest(digest).await) {
            if self.is_member(ask, digest).await {
                return Ok((stored.as_ref().into(), Outcome::Hit));
            }
            if !self.offline {
                self.confirm_manifest(ask, &stored).await?;
                return Ok((stored.as_ref().into(), Outcome::Hit));
            }
        }
        if self.offline {
            return Err(Refusal::offline(asking));
        }
        if self.absent.has(&ask.name, digest) {
            return Err(Refusal::unknown(asking));
        }
        let manifest = self.fetch_by_digest(&ask.name, &ask.upstream, digest);
        let manifest = wait(manifest, ask).await?.map_err(|error| {
            self.absent.note(&ask.name, digest, &error);
            Refusal::of_upstream(&error, asking)
        })?;
        let outcome = manifest.outcome();
        Ok((manifest, outcome))
    }

    /// Makes sure that upstream has a stored manifest in this repository, too; and then what it
    /// refers to, which is not asked for one by one.
    async fn confirm_manifest(
        &self,
        ask: &Ask<'_>,
        stored: &StoredManifest,
    ) -> Result<(), Refusal> {
        let digest = &stored.digest;
        let reference = Reference::Digest(digest.clone());
        let (upstream, repository) = (&ask.upstream, &ask.name.repository);
        let accept = Accept::all_manifests();
        let head = upstream.client.head_manifest(repository, &reference, &accept).await;
        self.note(upstream, &ask.name, head.as_ref().err());
        let asking = Asking::Manifest(&ask.name, digest);
        head.map_err(|error| Refusal::of_upstream(&error, asking))?;
        let children = Parsed::parse(&stored.bytes).map_or_else(
            |_| Vec::new(),
            |parsed| {
                self.fills.learn(&parsed);
                parsed.children().map(|child| child.digest.clone()).collect()
            },
        );
        self.recorded(self.store.add_manifest_member(&ask.name, digest, children).await);
        Ok(())
    }

    pub(crate) fn fetch_by_digest(
        self: &Arc<Self>,
        name: &Arc<Named>,
        upstream: &Arc<Upstream>,
        digest: &Digest,
    ) -> Waiting<Result<Manifest, Error>> {
        self.manifests.by_digest.join((Arc::clone(name), digest.clone()), || {
            let registry = Arc::clone(self);
            let (name, upstream, digest) = (Arc::clone(name), Arc::clone(upstream), digest.clone());
            async move {
                let reference = Reference::Digest(digest.clone());
                registry.fetch(&name, &upstream, &reference, &Accept::all_manifests()).await
            }
        })
    }

    /// Gets a manifest from upstream and stores it.
    pub(super) async fn fetch(
        &self,
        name: &Arc<Named>,
        upstream: &Upstream,
        reference: &Reference,
        accept: &Accept,
    ) -> Result<Manifest, Error> {
        let raw = upstream.client.manifest(&name.repository, reference, accept).await;
        self.note(upstream, name, raw.as_ref().err());
        let raw = raw.inspect_err(|error| {
            if let Error::Digest { .. } = error {
                self.metrics.corrupt.inc();
                warn!(%error, "discarding the manifest {reference} of {name}");
            }
        })?;
        let digest = match (reference, &raw.digest) {
            (Reference::Digest(digest), _) | (Reference::Tag(_), Some(digest)) => digest.clone(),
            (Reference::Tag(_), None) => Digest::sha256_of(&raw.bytes),
        };
        Ok(self.keep(name, digest, raw).await)
    }

    /// Stores a manifest, if it can be read and the store is able to.
    async fn keep(&self, name: &Named, digest: Digest, raw: RawManifest) -> Manifest {
        let parsed = match Parsed::parse(&raw.bytes) {
            Ok(parsed) => parsed,
            Err(error) => {
                info!(%error, "passing {digest} of {name} on without storing it");
                let media_type = raw.media_type.unwrap_or_default();
                return Manifest { digest, media_type, bytes: raw.bytes, is_stored: false };
            }
        };
        self.fills.learn(&parsed);
        let media_type = media_type(raw.media_type, &parsed);
        let stored = self.store.put_manifest(
            name,
            &digest,
            &media_type,
            raw.bytes.clone(),
            References {
                children: parsed.children().map(|child| child.digest.clone()).collect(),
                subject: parsed.subject.as_ref().map(|subject| subject.digest.clone()),
            },
        );
        let is_stored = match stored.await {
            Ok(_) => {
                self.metrics.storing.went_well();
                true
            }
            Err(error) => {
                let op = match error {
                    CommitError::Index { .. } => StoreOp::Record,
                    _ => StoreOp::Write,
                };
                self.metrics.store_error(op);
                let error = &error as &dyn std::error::Error;
                warn!(error, "passing {digest} of {name} on without storing it");
                false
            }
        };
        Manifest { digest, media_type, bytes: raw.bytes, is_stored }
    }
}

/// The media type to serve a manifest under. Registries that don't know manifests send a general
/// one; the manifest then says it better itself.
fn media_type(said: Option<String>, parsed: &Parsed) -> String {
    const GENERAL: [&str; 3] = ["application/json", "application/octet-stream", "text/plain"];
    match said {
        Some(said) if !said.is_empty() && !GENERAL.contains(&said.as_str()) => said,
        _ => parsed.media_type_or_guess().to_owned(),
    }
}
