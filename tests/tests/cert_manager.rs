//! A cache whose certificate is cert-manager's, before a real API server with cert-manager's own
//! definition of one. cert-manager itself does not run: the test fills the secret as it would.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use kube::api::{ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use larder_tests::Controller;
use larder_tests::kubernetes::{Cluster, objects, until};
use larder_tests::repository;
use serde_json::{Value, json};

const NAMESPACE: &str = "cert-manager-test";
const SECRET: &str = "larder-cache-tls";

#[tokio::test]
async fn a_certificate_of_cert_managers_is_asked_for_and_its_authority_is_told_to_nodes() {
    let cluster = Cluster::shared().await;
    objects::apply_definitions(&cluster).await;
    let definition = "tests/kubernetes/cert-manager/certificates.yaml";
    let definition = repository::path(definition);
    let apply = ["apply", "--server-side", "-f", definition.to_str().unwrap()];
    let applied = cluster.run("kubectl", &apply).await;
    applied.expect("cert-manager's definition");
    let client = cluster.client();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let certificates: Api<DynamicObject> = Api::namespaced_with(
        client.clone(),
        NAMESPACE,
        &ApiResource {
            group: "cert-manager.io".to_owned(),
            version: "v1".to_owned(),
            api_version: "cert-manager.io/v1".to_owned(),
            kind: "Certificate".to_owned(),
            plural: "certificates".to_owned(),
        },
    );
    let caches = objects::caches(client.clone(), NAMESPACE);
    let are_served = async || {
        let list = ListParams::default();
        certificates.list(&list).await.is_ok() && caches.list(&list).await.is_ok()
    };
    until("both kinds are served", are_served).await;

    let _controller = Controller::start(&cluster, NAMESPACE, &[]).await;
    let cache = json!({
        "apiVersion": "larder.dev/v1alpha1", "kind": "RegistryCache", "metadata": {"name": "cache"},
        "spec": {
            "upstreams": [{"upstream": "docker.io"}],
            "http": {"issuerRef": {"name": "ours", "kind": "ClusterIssuer"}},
        },
    });
    let params = PatchParams::apply("person");
    caches.patch("cache", &params, &Patch::Apply(cache)).await.unwrap();
    let there = async || certificates.get_opt(SECRET).await.unwrap().is_some();
    until("a certificate is asked for", there).await;
    let spec = certificates.get(SECRET).await.unwrap().data["spec"].clone();
    // What its schema does not know is not kept.
    assert_eq!(spec["secretName"], SECRET);
    assert_eq!(spec["usages"], json!(["digital signature", "server auth"]));
    let key = json!({"algorithm": "ECDSA", "size": 256, "rotationPolicy": "Always"});
    assert_eq!(spec["privateKey"], key);
    let issuer = json!({"name": "ours", "kind": "ClusterIssuer", "group": "cert-manager.io"});
    assert_eq!(spec["issuerRef"], issuer);
    let names = spec["dnsNames"].as_array().unwrap();
    assert!(names.contains(&json!("cache.larder.internal")), "{names:?}");
    assert!(!spec["ipAddresses"].as_array().unwrap().is_empty(), "{spec}");

    let now = async || serde_json::to_value(caches.get("cache").await.unwrap()).unwrap();
    let message = async |kind: &str| {
        let now: Value = now().await;
        let conditions = now["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|it| it["type"] == kind).unwrap_or_default();
        found["message"].as_str().unwrap_or_default().to_owned()
    };
    let is_issued = async || message("Progressing").await.contains("is issuing the certificate");
    until("it waits for cert-manager", is_issued).await;

    let fill = async |texts: &[(&str, &str)]| {
        objects::apply_secret(client.clone(), NAMESPACE, SECRET, texts).await;
    };
    let (leaf, authority) = pair();
    let (cert, key) = (leaf.0.as_str(), leaf.1.as_str());
    // As an issuer does that has no authority of its own.
    fill(&[("tls.crt", cert), ("tls.key", key)]).await;
    until("the missing authority is named", async || {
        message("Degraded").await.contains("no authority into it as `ca.crt`")
    })
    .await;
    fill(&[("tls.crt", cert), ("tls.key", key), ("ca.crt", &authority)]).await;
    let is_told = async || now().await["status"]["caBundle"] == json!(authority);
    until("nodes are told its authority", is_told).await;
    assert!(!message("Degraded").await.contains("ca.crt"));
}

/// A certificate with its key, and the certificate of who signed it: all PEM.
fn pair() -> ((String, String), String) {
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec!["cache.larder.internal".to_owned()]).unwrap();
    let cert = params.signed_by(&key, &issuer).unwrap();
    ((cert.pem(), key.serialize_pem()), issuer.pem())
}
