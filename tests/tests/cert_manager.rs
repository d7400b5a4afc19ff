//! Caches whose certificate is cert-manager's.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::{Namespace, Secret};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use larder_testkit::{Image, Upstream};
use larder_tests::Controller;
use larder_tests::kubernetes::cert_manager::{self, CertManager};
use larder_tests::kubernetes::installation::NAMESPACE;
use larder_tests::kubernetes::{Cluster, Installation, objects, until};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// A registry that can be found by nobody but nodes that have been told.
const HOST: &str = "registry.test";

const CACHE: &str = "cache";

/// What its certificate is called, and the secret with it.
const SECRET: &str = "larder-cache-tls";

/// Much sooner than the controller would look again without having heard of a change.
const SOON: Duration = Duration::from_secs(30);

/// cert-manager issues here, and a replica shows it to nodes.
struct Scene {
    cluster: Cluster,
    larder: Installation,
    upstream: Upstream,
    registry: String,
    _cert_manager: CertManager,
}

impl Scene {
    /// With an issuer called `ours`, which has an authority that cert-manager has made as well.
    async fn start() -> Self {
        let mut cluster = Cluster::start(1).await;
        let cert_manager = CertManager::start(&cluster).await;
        let upstream = Upstream::start().await;
        let registry = format!("http://{}", cluster.expose(&upstream.host()));
        cluster.nodes()[0].find_registry(HOST, &registry);
        Installation::prepare(cluster.nodes()).await;
        let api_server = format!("agent.apiServer={}", cluster.api_server());
        let larder = Installation::by_chart(&cluster, &[&api_server]).await;
        let make = async |kind: &str, name: &str, spec: Value| {
            cert_manager::make(cluster.client(), NAMESPACE, kind, name, spec).await;
        };
        make("Issuer", "itself", json!({"selfSigned": {}})).await;
        let authority = json!({
            "isCA": true, "commonName": "ours", "secretName": "ours",
            "privateKey": {"algorithm": "ECDSA", "size": 256},
            "issuerRef": {"name": "itself"},
        });
        make("Certificate", "ours", authority).await;
        make("Issuer", "ours", json!({"ca": {"secretName": "ours"}})).await;
        Self { cluster, larder, upstream, registry, _cert_manager: cert_manager }
    }

    /// Has the cache be there, with a certificate of the issuer `ours` or without one.
    async fn apply(&self, is_issued: bool) {
        let mut spec = json!({
            // The registry is on this computer.
            "upstreams": [{"upstream": HOST, "remoteURL": self.registry, "insecureSkipVerify": true}],
        });
        if is_issued {
            spec["http"] = json!({"issuerRef": {"name": "ours"}});
        }
        self.larder.apply(CACHE, spec).await;
    }

    fn certificates(&self) -> Api<DynamicObject> {
        cert_manager::objects(self.cluster.client(), NAMESPACE, "Certificate")
    }

    /// What a secret holds; nothing if there is none.
    async fn secret(&self, name: &str) -> BTreeMap<String, String> {
        let secrets: Api<Secret> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let data = secrets.get_opt(name).await.unwrap().and_then(|it| it.data).unwrap_or_default();
        data.into_iter().map(|(key, it)| (key, String::from_utf8(it.0).unwrap())).collect()
    }

    /// The certificate, and whom nodes are told to trust, once the replica shows the one that is in the
    /// secret, for the address that nodes ask at, to who trusts those alone.
    async fn settles(&self, what: &str) -> (String, String) {
        let shown = async || {
            let secret = self.secret(SECRET).await;
            let cache = self.larder.cache(CACHE).await;
            let bundle = cache["status"]["caBundle"].as_str()?.to_owned();
            let url = cache["status"]["endpoints"][0]["url"].as_str()?;
            let address: SocketAddr = url.strip_prefix("https://")?.parse().ok()?;
            let shown = self.shown(address, &bundle).await.ok()?;
            let issued = secret.get("tls.crt")?;
            let is_it = CertificateDer::from_pem_slice(issued.as_bytes()).ok()?[..] == shown[..];
            is_it.then(|| (issued.clone(), bundle))
        };
        self.larder.settles(CACHE).await;
        let found = OnceLock::new();
        let is_shown = async || shown().await.is_some_and(|it| found.set(it).is_ok());
        until(format!("{what}: the replica shows it"), is_shown).await;
        found.into_inner().expect("it was found")
    }

    /// What is shown at an address of the cluster, to who trusts `bundle`.
    async fn shown(&self, address: SocketAddr, bundle: &str) -> std::io::Result<Vec<u8>> {
        let mut roots = RootCertStore::empty();
        for it in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
            roots.add(it.unwrap()).unwrap();
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider);
        let config = config.with_safe_default_protocol_versions().unwrap();
        let config = config.with_root_certificates(roots).with_no_client_auth();
        let forward = self.cluster.reach(address);
        let stream = TcpStream::connect(forward.address).await?;
        let name = ServerName::IpAddress(address.ip().into());
        let stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await?;
        Ok(stream.get_ref().1.peer_certificates().unwrap()[0].to_vec())
    }

    /// Pulls on the node until that comes by the cache, as it does once the agent trusts the replica.
    async fn pulls_by_cache(&self, what: &str) {
        let node = &self.cluster.nodes()[0];
        self.larder.is_used(node, HOST).await;
        let requests = async || self.larder.requests(&self.cluster, CACHE, HOST).await;
        let before = requests().await;
        let name = format!("{HOST}/team/app:1");
        let is_asked = async || {
            node.pull(&name, None).await.expect("a pull");
            node.forget(&name).await.expect("it is forgotten");
            requests().await > before
        };
        until(format!("{what}: pulls come by the cache"), is_asked).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cert_manager_issues_and_renews_is_shown_and_trusted_and_goes_when_it_is_not_wanted() {
    let scene = Scene::start().await;
    let image = Image::from_seed(1).layers(&[1000]).unpackable().build();
    scene.upstream.push("team/app", "1", &image);
    let authority = scene.secret("ours").await["tls.crt"].clone();
    scene.apply(true).await;
    let (first, bundle) = scene.settles("issued").await;
    assert_eq!(bundle, authority);
    let secret = scene.secret(SECRET).await;
    assert_eq!(secret.keys().collect::<Vec<_>>(), ["ca.crt", "tls.crt", "tls.key"]);
    assert_eq!(secret["ca.crt"], authority);
    assert!(cert_manager::is_ready(&scene.certificates().get(SECRET).await.unwrap()));
    scene.pulls_by_cache("issued").await;

    // As `cmctl renew` does.
    let pods = scene.larder.uids(CACHE).await;
    say_of_issuing(&scene.certificates(), "True", "ManuallyTriggered", "a person wants it").await;
    let is_renewed =
        async || scene.secret(SECRET).await.get("tls.crt").is_some_and(|it| *it != first);
    until("it is renewed", is_renewed).await;
    let (_, same) = scene.settles("renewed").await;
    assert_eq!(same, bundle);
    assert_eq!(scene.larder.uids(CACHE).await, pods, "nothing is started again for that");
    for pod in scene.larder.replicas(CACHE).await {
        let containers = pod.status.unwrap().container_statuses.unwrap();
        assert!(containers.iter().all(|it| it.restart_count == 0), "{containers:?}");
    }
    scene.pulls_by_cache("renewed").await;

    scene.apply(false).await;
    let is_there = async || scene.certificates().get_opt(SECRET).await.unwrap().is_some();
    until("it is not asked for any more", async || !is_there().await).await;
    let told = async || scene.larder.cache(CACHE).await["status"]["caBundle"].clone();
    let is_other = async || told().await.as_str().is_some_and(|it| it != bundle);
    until("another authority is trusted", is_other).await;
    scene.settles("its own authority").await;
    scene.pulls_by_cache("its own authority").await;

    scene.apply(true).await;
    until("cert-manager's is trusted again", async || told().await == json!(bundle)).await;
    scene.settles("issued again").await;
    scene.larder.caches().delete(CACHE, &DeleteParams::default()).await.unwrap();
    let is_gone = async || scene.larder.cache(CACHE).await.is_null();
    until("the cache is gone", is_gone).await;
    until("the certificate is gone with it", async || !is_there().await).await;
    assert!(scene.secret(SECRET).await.is_empty(), "the key stays behind");
}

/// cert-manager does not run here: the test fills the secret as it does for an issuer that has no
/// authority, of which there is none without a network.
#[tokio::test]
async fn a_certificate_without_an_authority_is_named_and_one_with_it_is_told_to_nodes_at_once() {
    const NAMESPACE: &str = "cert-manager-test";
    let cluster = Cluster::shared().await;
    objects::apply_definitions(&cluster).await;
    cert_manager::apply_definitions(&cluster).await;
    let client = cluster.client();
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let certificates = cert_manager::objects(client.clone(), NAMESPACE, "Certificate");
    let caches = objects::caches(client.clone(), NAMESPACE);
    let _controller = Controller::start(&cluster, NAMESPACE, &[]).await;
    let apply = async |http: Value| {
        let cache = json!({
            "apiVersion": "larder.dev/v1alpha1", "kind": "RegistryCache",
            "metadata": {"name": CACHE},
            "spec": {"upstreams": [{"upstream": "docker.io"}], "http": http},
        });
        caches.patch(CACHE, &PatchParams::apply("person"), &Patch::Apply(cache)).await.unwrap();
    };
    let now = async || serde_json::to_value(caches.get(CACHE).await.unwrap()).unwrap();
    let message = async |kind: &str| {
        let now: Value = now().await;
        let conditions = now["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.into_iter().find(|it| it["type"] == kind).unwrap_or_default();
        found["message"].as_str().unwrap_or_default().to_owned()
    };
    let is_trusted = async || now().await["status"]["caBundle"].is_string();
    apply(json!({})).await;
    until("its own authority is trusted", is_trusted).await;

    apply(json!({"issuerRef": {"name": "ours", "kind": "ClusterIssuer"}})).await;
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
    let is_issued = async || message("Progressing").await.contains("is issuing the certificate");
    until("it waits for cert-manager", is_issued).await;
    assert!(is_trusted().await, "its own authority is, meanwhile");

    let fill = async |texts: &[(&str, &str)]| write(client.clone(), NAMESPACE, &spec, texts).await;
    let (leaf, authority) = pair();
    let (cert, key) = (leaf.0.as_str(), leaf.1.as_str());
    say_of_issuing(&certificates, "False", "Failed", "the issuer is on holiday").await;
    fill(&[("tls.crt", cert), ("tls.key", key)]).await;
    let is_named = async || message("Degraded").await.contains("the issuer is on holiday");
    until("what cert-manager failed at is named", is_named).await;
    until("the missing authority is named", async || {
        message("Degraded").await.contains("no authority into it as `ca.crt`")
    })
    .await;
    assert!(!is_trusted().await, "who has not signed it is not trusted for it");
    let since = Instant::now();
    fill(&[("tls.crt", cert), ("tls.key", key), ("ca.crt", &authority)]).await;
    let is_told = async || now().await["status"]["caBundle"] == json!(authority);
    until("nodes are told its authority", is_told).await;
    assert!(since.elapsed() < SOON, "{:?}", since.elapsed());
    assert!(!message("Degraded").await.contains("ca.crt"));
}

/// Sets the condition that has cert-manager issue the certificate, or says how that ended.
async fn say_of_issuing(
    certificates: &Api<DynamicObject>,
    status: &str,
    reason: &str,
    message: &str,
) {
    let said = json!({
        "apiVersion": "cert-manager.io/v1", "kind": "Certificate", "metadata": {"name": SECRET},
        "status": {"conditions": [{
            "type": "Issuing", "status": status, "reason": reason, "message": message,
            "lastTransitionTime": Timestamp::now().to_string(),
        }]},
    });
    let (params, said) = (PatchParams::apply("person"), Patch::Apply(said));
    certificates.patch_status(SECRET, &params, &said).await.unwrap();
}

/// Writes the secret of a certificate as cert-manager does.
async fn write(client: Client, namespace: &str, spec: &Value, texts: &[(&str, &str)]) {
    let data = texts.iter().map(|(key, text)| (*key, BASE64_STANDARD.encode(text)));
    let data: BTreeMap<_, _> = data.collect();
    let mut metadata = spec["secretTemplate"].clone();
    metadata["name"] = json!(SECRET);
    metadata["annotations"] = json!({"cert-manager.io/certificate-name": SECRET});
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
        "metadata": metadata, "data": data,
    });
    let secrets: Api<Secret> = Api::namespaced(client, namespace);
    let params = PatchParams::apply("cert-manager").force();
    secrets.patch(SECRET, &params, &Patch::Apply(secret)).await.unwrap();
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
