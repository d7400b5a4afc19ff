//! The secrets that certificates are kept in.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Secret;
use serde_json::{Value, json};

use crate::certificates::{Certificates, Pair, Sans};
use crate::names::ROTATE;
use crate::render::Scope;
use crate::render::files::secret;
use crate::render::services::Place;

/// A name that is in every cache's certificate, for whoever knows a replica by its address only.
pub(crate) const FIXED_NAME: &str = "cache.larder.internal";

/// What of certificates is in the two secrets.
pub(crate) fn stored(authority: Option<&Secret>, certificate: Option<&Secret>) -> Certificates {
    let text = |secret: Option<&Secret>, key: &str| {
        let bytes = secret?.data.as_ref()?.get(key)?;
        String::from_utf8(bytes.0.clone()).ok()
    };
    let pair = |secret, name: &str| {
        let cert = text(secret, &format!("{name}.crt"))?;
        Some(Pair { cert, key: text(secret, &format!("{name}.key"))? })
    };
    Certificates {
        current: pair(authority, "tls"),
        next: pair(authority, "next"),
        previous: text(authority, "previous.crt"),
        leaf: pair(certificate, "tls"),
    }
}

/// Whether somebody has asked for another authority, since there is one.
pub(crate) fn is_rotation_asked(scope: Scope<'_>, authority: Option<&Secret>) -> bool {
    let asked = scope.cache.metadata.annotations.as_ref().and_then(|it| it.get(ROTATE));
    let Some(authority) = authority else { return false };
    let done = authority.metadata.annotations.as_ref().and_then(|it| it.get(ROTATE));
    asked.is_some() && asked != done
}

/// The secret with the authorities and their keys, which nobody mounts.
pub(crate) fn authority(scope: Scope<'_>, certificates: &Certificates) -> Value {
    let mut files = BTreeMap::new();
    let mut add = |name: &str, pair: &Option<Pair>| {
        if let Some(pair) = pair {
            files.insert(format!("{name}.crt"), pair.cert.clone());
            files.insert(format!("{name}.key"), pair.key.clone());
        }
    };
    add("tls", &certificates.current);
    add("next", &certificates.next);
    files.extend(certificates.previous.clone().map(|cert| ("previous.crt".to_owned(), cert)));
    let mut object = secret(scope, &scope.names.authority(), "Opaque", &files);
    let asked = scope.cache.metadata.annotations.as_ref().and_then(|it| it.get(ROTATE));
    if let Some(asked) = asked {
        object["metadata"]["annotations"] = json!({ROTATE: asked});
    }
    object
}

/// The secret with what replicas show, and whom they trust.
pub(crate) fn certificate(scope: Scope<'_>, certificates: &Certificates) -> Value {
    let mut files: BTreeMap<String, String> = [("ca.crt".to_owned(), certificates.bundle())].into();
    if let Some(leaf) = &certificates.leaf {
        files.insert("tls.crt".to_owned(), leaf.cert.clone());
        files.insert("tls.key".to_owned(), leaf.key.clone());
    }
    secret(scope, &scope.names.certificate(), "kubernetes.io/tls", &files)
}

/// Whom the replicas' certificate is for: `addresses` are those of their nodes, and of the service for
/// clients.
pub(crate) fn sans(
    scope: Scope<'_>,
    places: &BTreeMap<u32, Place>,
    addresses: impl IntoIterator<Item = IpAddr>,
) -> Sans {
    let (base, namespace) = (scope.names.base(), scope.namespace());
    let headless = scope.names.headless();
    let names = [
        FIXED_NAME.to_owned(),
        base.to_owned(),
        format!("{base}.{namespace}"),
        format!("{base}.{namespace}.svc"),
        format!("{headless}.{namespace}.svc"),
        format!("*.{headless}.{namespace}.svc"),
    ];
    let of_services = places.values().filter_map(|place| place.cluster_ip.parse().ok());
    let addresses: BTreeSet<IpAddr> = of_services.chain(addresses).collect();
    Sans { names: names.into(), addresses }
}
