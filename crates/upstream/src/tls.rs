//! Whom we trust.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tracing::warn;

use crate::client_certificate::Identity;
use crate::error::SetupError;
use crate::settings::Settings;

/// The system's certificate authorities, read once: every upstream has a client of its own, and
/// parsing some 140 certificates for each of them adds up.
static SYSTEM_ROOTS: LazyLock<Vec<CertificateDer<'static>>> = LazyLock::new(|| {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        warn!(
            error = error as &dyn std::error::Error,
            "cannot read some of the system's certificates"
        );
    }
    if found.certs.is_empty() {
        warn!(
            "the system has no certificate authorities; only upstreams with `ca` can be reached by https"
        );
    }
    found.certs
});

/// The TLS settings of a client that speaks HTTP/2 and HTTP/1.1, and trusts the system's
/// authorities and those in the file `ca`; or anybody, if certificates are not to be verified.
/// Whoever asks for a client certificate is shown the one in `settings`.
pub(crate) fn client_config(settings: &Settings) -> Result<ClientConfig, SetupError> {
    let provider = provider();
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = if settings.insecure_skip_verify {
        let verifier = Arc::new(AnyCertificate(provider.clone()));
        builder.dangerous().with_custom_certificate_verifier(verifier)
    } else {
        builder.with_root_certificates(roots(settings.ca.as_deref())?)
    };
    let mut config = match &settings.client_certificate {
        Some(files) => {
            let identity = Identity::load(files.clone(), provider)?;
            builder.with_client_cert_resolver(Arc::new(identity))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// The TLS settings of a client that speaks HTTP/1.1 to a replica of this cache, and trusts the
/// system's authorities and those in the text `ca`.
pub(crate) fn replica_config(ca: Option<&str>) -> Result<ClientConfig, SetupError> {
    let builder = ClientConfig::builder_with_provider(provider());
    let builder = builder.with_safe_default_protocol_versions()?;
    let mut roots = system_roots();
    if let Some(pem) = ca {
        trust(&mut roots, pem.as_bytes()).map_err(SetupError::Authorities)?;
    }
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

pub(crate) fn roots(ca: Option<&Path>) -> Result<RootCertStore, SetupError> {
    let mut roots = system_roots();
    if let Some(path) = ca {
        let error = |source| SetupError::Ca { path: path.to_owned(), source };
        let pem = std::fs::read(path).map_err(|source| error(source.into()))?;
        trust(&mut roots, &pem).map_err(error)?;
    }
    Ok(roots)
}

fn system_roots() -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(SYSTEM_ROOTS.iter().cloned());
    roots
}

fn trust(roots: &mut RootCertStore, pem: &[u8]) -> Result<(), AnyError> {
    for certificate in certificates_in(pem)? {
        roots.add(certificate)?;
    }
    Ok(())
}

pub(crate) type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// The certificates in a PEM file, at least one.
pub(crate) fn certificates_in(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, AnyError> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?;
    if found.is_empty() { Err("the file holds no certificate".into()) } else { Ok(found) }
}

/// Believes every certificate. That the other side has the certificate's key is still checked.
#[derive(Debug)]
pub(crate) struct AnyCertificate(pub(crate) Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
