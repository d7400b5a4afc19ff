//! What only some clusters have: Prometheus's operator, and cert-manager.

use larder_k8s::cache::IssuerRef;
use serde_json::{Value, json};

use super::Scope;
use crate::certificates::Sans;

/// Has the metrics of the replicas gathered. Each is found once: by the service for clients.
pub(crate) fn service_monitor(scope: Scope<'_>) -> Value {
    let spec = json!({
        "selector": {"matchLabels": scope.names.labels()},
        "namespaceSelector": {"matchNames": [scope.namespace()]},
        "endpoints": [{"port": "admin", "path": "/metrics", "interval": "30s"}],
    });
    scope.object(
        "monitoring.coreos.com/v1",
        "ServiceMonitor",
        scope.names.base(),
        json!({"spec": spec}),
    )
}

/// Has cert-manager issue the replicas' certificate, into a secret that is found like all others.
pub(crate) fn certificate(scope: Scope<'_>, issuer: &IssuerRef, sans: &Sans) -> Value {
    let spec = json!({
        "secretName": scope.names.certificate(),
        "secretTemplate": {"labels": scope.names.labels()},
        "dnsNames": sans.names,
        "ipAddresses": sans.addresses,
        "usages": ["digital signature", "server auth"],
        "privateKey": {"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"},
        "issuerRef": {
            "name": issuer.name,
            "kind": issuer.kind.as_deref().unwrap_or("Issuer"),
            "group": issuer.group.as_deref().unwrap_or("cert-manager.io"),
        },
    });
    scope.object(
        "cert-manager.io/v1",
        "Certificate",
        &scope.names.certificate(),
        json!({"spec": spec}),
    )
}
