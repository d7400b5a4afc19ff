//! The certificate that shows an upstream who we are.

use std::fmt;
use std::fs::Metadata;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, SignatureScheme};
use tracing::{info, warn};

use crate::error::SetupError;
use crate::tls::{AnyError, certificates_in};

/// A certificate chain and its key, both PEM files.
///
/// The files are named here and not kept: they are read again when they changed, as such
/// certificates are mostly good for days.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The chain, our own certificate first.
    pub cert: PathBuf,
    /// The private key: PKCS #8, PKCS #1 or SEC1.
    pub key: PathBuf,
}

/// Shows a client certificate to whoever asks for one in a handshake.
pub(crate) struct Identity {
    files: ClientCertificate,
    provider: Arc<CryptoProvider>,
    state: Mutex<State>,
}

struct State {
    stamps: [Option<Stamp>; 2],
    current: Arc<CertifiedKey>,
}

/// Modification time and length. `None` in its place: the file cannot be seen.
type Stamp = (SystemTime, u64);

impl Identity {
    /// Reads the files. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`SetupError::ClientCertificate`]: a file cannot be read or understood, or the two do not
    /// belong together.
    pub(crate) fn load(
        files: ClientCertificate,
        provider: Arc<CryptoProvider>,
    ) -> Result<Self, SetupError> {
        let stamps = stamps(&files);
        let current = Arc::new(read(&files, &provider)?);
        Ok(Self { files, provider, state: Mutex::new(State { stamps, current }) })
    }

    /// The certificate as it is now. What cannot be used leaves the old one in use, and a line in
    /// the log; when first the one file is renewed and then the other, the second look finds both.
    ///
    /// It blocks on the disk, for two calls to the operating system in each handshake, and for two
    /// small files when they changed.
    fn current(&self) -> Arc<CertifiedKey> {
        let stamps = stamps(&self.files);
        let mut state = self.state.lock();
        if stamps != state.stamps {
            state.stamps = stamps;
            let cert = self.files.cert.display();
            match read(&self.files, &self.provider) {
                Ok(renewed) => {
                    info!("took over the new client certificate in {cert}");
                    state.current = Arc::new(renewed);
                }
                Err(error) => warn!(
                    error = &error as &dyn std::error::Error,
                    "cannot use the changed client certificate in {cert}; the old one stays in use"
                ),
            }
        }
        state.current.clone()
    }
}

impl ResolvesClientCert for Identity {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.current())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("files", &self.files).finish_non_exhaustive()
    }
}

fn stamps(files: &ClientCertificate) -> [Option<Stamp>; 2] {
    let stamp_of = |metadata: Metadata| Some((metadata.modified().ok()?, metadata.len()));
    [&files.cert, &files.key].map(|path| std::fs::metadata(path).ok().and_then(stamp_of))
}

fn read(files: &ClientCertificate, provider: &CryptoProvider) -> Result<CertifiedKey, SetupError> {
    let ClientCertificate { cert, key } = files;
    let chain = from_file(cert, certificates_in)?;
    let private = from_file(key, |pem| {
        let key = PrivateKeyDer::from_pem_slice(pem)?;
        Ok(provider.key_provider.load_private_key(key)?)
    })?;
    let certified = CertifiedKey::new(chain, private);
    let refused = |path: &Path, source: AnyError| {
        Err(SetupError::ClientCertificate { path: path.to_owned(), source })
    };
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            refused(key, format!("it is not the key of {}", cert.display()).into())
        }
        Err(source) => refused(cert, source.into()),
    }
}

fn from_file<T>(
    path: &Path,
    parse: impl FnOnce(&[u8]) -> Result<T, AnyError>,
) -> Result<T, SetupError> {
    let bytes = std::fs::read(path).map_err(AnyError::from);
    let parsed = bytes.and_then(|bytes| parse(&bytes));
    parsed.map_err(|source| SetupError::ClientCertificate { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_renewed_certificate_is_taken_over_once_both_files_are_new() {
        let dir = tempfile::tempdir().unwrap();
        let files = ClientCertificate { cert: dir.path().join("c"), key: dir.path().join("k") };
        let (first, second) = (pair(), pair());
        write(&files.cert, &first.cert.pem(), 1);
        write(&files.key, &first.signing_key.serialize_pem(), 1);
        let identity = load(&files).unwrap();
        let shown = || identity.current().cert[0].clone();
        assert_eq!(shown(), *first.cert.der());

        write(&files.cert, &second.cert.pem(), 2);
        assert_eq!(shown(), *first.cert.der());
        write(&files.key, &second.signing_key.serialize_pem(), 2);
        assert_eq!(shown(), *second.cert.der());
        std::fs::remove_file(&files.key).unwrap();
        assert_eq!(shown(), *second.cert.der());
    }

    #[test]
    fn what_is_no_pair_is_refused_and_the_file_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (ours, other) = (pair(), pair());
        write(&path("cert"), &ours.cert.pem(), 1);
        write(&path("key"), &ours.signing_key.serialize_pem(), 1);
        write(&path("other"), &other.signing_key.serialize_pem(), 1);
        for (cert, key, wrong) in [
            ("absent", "key", "absent"),
            ("cert", "absent", "absent"),
            ("key", "key", "key"),
            ("cert", "cert", "cert"),
            ("cert", "other", "other"),
        ] {
            let error = load(&ClientCertificate { cert: path(cert), key: path(key) }).unwrap_err();
            let SetupError::ClientCertificate { path: named, .. } = error else {
                panic!("{error}");
            };
            assert_eq!(named, path(wrong));
        }
    }

    fn load(files: &ClientCertificate) -> Result<Identity, SetupError> {
        Identity::load(files.clone(), Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
    }

    fn pair() -> rcgen::CertifiedKey<rcgen::KeyPair> {
        rcgen::generate_simple_self_signed(["larder".to_owned()]).unwrap()
    }

    /// The second is the file's age, so that no two versions look alike.
    fn write(path: &Path, text: &str, second: u64) {
        std::fs::write(path, text).unwrap();
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }
}
