//! Upstreams that are reached by https.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::http::{Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use larder_upstream::{Client, ClientCertificate, Error, Settings, SetupError, Url};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::fake::*;

#[tokio::test]
async fn a_configured_authority_is_trusted_and_http_2_spoken() {
    let server = Server::start(|_| ok("{}")).await;
    let client = server.client(|settings, ca| settings.ca = Some(ca));
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
    assert_eq!(*server.versions.lock().unwrap(), [Version::HTTP_2]);
}

#[tokio::test]
async fn an_unknown_authority_is_not_trusted_unless_that_is_wanted() {
    let server = Server::start(|_| ok("{}")).await;
    let client = server.client(|_, _| ());
    let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(format!("{error:?}").contains("UnknownIssuer"), "{error:?}");
    let client = server.client(|settings, _| settings.insecure_skip_verify = true);
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
}

#[tokio::test]
async fn nothing_is_asked_for_without_encryption_once_there_was_one() {
    let plain = Fake::start(|_| ok(r#"{"token":"t"}"#)).await;
    let challenge = format!(r#"Bearer realm="{}token""#, plain.url);
    let asking = Server::start(move |_| with(401, &[("www-authenticate", &challenge)], "")).await;
    let storage = plain.url.to_string();
    let redirecting = Server::start(move |_| redirect(&storage)).await;
    for server in [asking, redirecting] {
        let client = server.client(|settings, ca| settings.ca = Some(ca));
        let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
        assert!(matches!(error, Error::Protocol(_)), "{error:?}");
    }
    assert_eq!(plain.log(), [""; 0]);
}

#[test]
fn a_file_without_certificates_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    let url = Url::parse("https://127.0.0.1").unwrap();
    let new = || {
        let settings = Settings { ca: Some(path.clone()), ..settings(&[&url]) };
        Client::new(settings, Arc::new(Recorder::default())).unwrap_err()
    };
    assert!(matches!(new(), SetupError::Ca { .. }));
    std::fs::write(&path, "no certificate").unwrap();
    assert!(matches!(new(), SetupError::Ca { .. }));
}

#[tokio::test]
async fn a_server_that_demands_our_certificate_is_shown_it() {
    let ours = rcgen::generate_simple_self_signed(["larder".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, ours.cert.pem()).unwrap();
    std::fs::write(&key, ours.signing_key.serialize_pem()).unwrap();
    let server = Server::start_for(Some(ours.cert.der()), |_| ok("{}")).await;

    let client = server.client(|settings, ca| settings.ca = Some(ca));
    let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    for skip_verify in [false, true] {
        let client = server.client(|settings, ca| {
            settings.ca = Some(ca);
            settings.insecure_skip_verify = skip_verify;
            let (cert, key) = (cert.clone(), key.clone());
            settings.client_certificate = Some(ClientCertificate { cert, key });
        });
        client.manifest(&repository(), &tag(), &all()).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_certificate_of_somebody_else_is_not_accepted() {
    let expected = rcgen::generate_simple_self_signed(["larder".to_owned()]).unwrap();
    let other = rcgen::generate_simple_self_signed(["larder".to_owned()]).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = (dir.path().join("cert.pem"), dir.path().join("key.pem"));
    std::fs::write(&cert, other.cert.pem()).unwrap();
    std::fs::write(&key, other.signing_key.serialize_pem()).unwrap();
    let server = Server::start_for(Some(expected.cert.der()), |_| ok("{}")).await;
    let client = server.client(|settings, ca| {
        settings.ca = Some(ca);
        let (cert, key) = (cert.clone(), key.clone());
        settings.client_certificate = Some(ClientCertificate { cert, key });
    });
    let error = client.manifest(&repository(), &tag(), &all()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert_eq!(server.versions.lock().unwrap().len(), 0);
}

/// A server with a certificate of its own.
struct Server {
    url: Url,
    versions: Arc<Mutex<Vec<Version>>>,
    ca: PathBuf,
    _dir: tempfile::TempDir,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    async fn start(
        answer: impl Fn(&Request<Incoming>) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        Self::start_for(None, answer).await
    }

    /// A server for those whose certificate is `client`, or is signed by it; or for everyone.
    async fn start_for(
        client: Option<&CertificateDer<'static>>,
        answer: impl Fn(&Request<Incoming>) -> Response<Body> + Send + Sync + 'static,
    ) -> Self {
        let (acceptor, pem) = acceptor(client);
        let dir = tempfile::tempdir().unwrap();
        let ca = dir.path().join("ca.pem");
        std::fs::write(&ca, pem).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let versions: Arc<Mutex<Vec<Version>>> = Arc::default();
        let task = tokio::spawn(serve(listener, acceptor, versions.clone(), Arc::new(answer)));
        Self { url: Url::parse(&url).unwrap(), versions, ca, _dir: dir, task }
    }

    fn client(&self, change: impl Fn(&mut Settings, PathBuf)) -> Client {
        let mut settings = settings(&[&self.url]);
        change(&mut settings, self.ca.clone());
        client_of(settings)
    }
}

/// What a server on 127.0.0.1 speaks TLS with, and its certificate as PEM. If `client` is given, it
/// is only for those whose certificate is that, or is signed by it.
pub(crate) fn acceptor(client: Option<&CertificateDer<'static>>) -> (TlsAcceptor, String) {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let mut roots = RootCertStore::empty();
            roots.add(client.clone()).unwrap();
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            builder.with_client_cert_verifier(verifier.build().unwrap())
        }
    };
    let mut config = builder.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem())
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    versions: Arc<Mutex<Vec<Version>>>,
    answer: Arc<impl Fn(&Request<Incoming>) -> Response<Body> + Send + Sync + 'static>,
) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, versions, answer) = (acceptor.clone(), versions.clone(), answer.clone());
        tokio::spawn(async move {
            // A client that does not trust us breaks off here.
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request: Request<Incoming>| {
                versions.lock().unwrap().push(request.version());
                let response = answer(&request);
                async move { Ok::<_, Infallible>(response) }
            });
            let builder = auto::Builder::new(TokioExecutor::new());
            let _ = builder.serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
