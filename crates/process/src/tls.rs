//! Certificates, exchanged while the process runs.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{InconsistentKeys, ServerConfig};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often files are looked at for a change. Kubernetes itself takes about a minute to renew a
/// mounted secret, and a look costs two calls to the operating system.
pub const POLL: Duration = Duration::from_secs(5);

/// A certificate chain and its key, both PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    /// The chain, the server's own certificate first.
    pub cert: PathBuf,
    /// The private key: PKCS #8, PKCS #1 or SEC1.
    pub key: PathBuf,
}

/// Why a certificate and its key cannot be used. The text says which file, and never shows a key.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// A file cannot be read.
    #[error("reading {path}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// A file can be read, but what is needed is not in it.
    #[error("{path} has no {wanted} in it; it must be PEM (`-----BEGIN …-----`)", path = .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// What it should have.
        wanted: &'static str,
    },
    /// A file has broken PEM in it.
    #[error("reading {path} as PEM", path = .path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is broken.
        source: pem::Error,
    },
    /// The key is of a kind that cannot be used, or is damaged.
    #[error("using the key in {path}", path = .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// The first certificate is damaged.
    #[error("using the certificate in {path}", path = .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: rustls::Error,
    },
    /// Each is good, but they do not belong together.
    #[error("the key in {key} is not that of the first certificate in {cert}", key = .key.display(), cert = .cert.display())]
    Mismatch {
        /// The chain.
        cert: PathBuf,
        /// The key.
        key: PathBuf,
    },
}

/// The certificate that a server shows, which can be exchanged: connections from then on are shown
/// the new one.
pub struct ServerCertificate {
    files: Files,
    /// How the files were before they were first read.
    loaded: Versions,
    current: RwLock<Arc<CertifiedKey>>,
}

impl ServerCertificate {
    /// Reads `files`. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`LoadError`]
    pub fn load(files: Files) -> Result<Self, LoadError> {
        let loaded = versions(&files);
        let current = RwLock::new(Arc::new(read(&files)?));
        Ok(Self { files, loaded, current })
    }

    /// Reads the files again. On an error the certificate stays as it was. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// [`LoadError`]
    pub fn reload(&self) -> Result<(), LoadError> {
        let renewed = Arc::new(read(&self.files)?);
        *self.current.write() = renewed;
        Ok(())
    }

    /// Looks at the files `every` so often, and reads them again when they changed, until
    /// `stopping`. What cannot be used is logged once, and the old certificate is kept: when first
    /// the one file is renewed and then the other, the second look finds both.
    ///
    /// Files are told apart by what they are after following links, so that exchanging a directory
    /// by a link to another, as Kubernetes does, is seen.
    pub async fn watch(self: Arc<Self>, every: Duration, stopping: CancellationToken) {
        let mut seen = self.loaded;
        loop {
            let certificate = Arc::clone(&self);
            let look = tokio::task::spawn_blocking(move || certificate.look(seen));
            match look.await {
                Ok(now) => seen = now,
                Err(_) => warn!("looking at {} ended early", self.files.cert.display()),
            }
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = stopping.cancelled() => return,
            }
        }
    }

    /// Reads the files again if they are not as `seen`; returns how they are.
    fn look(&self, seen: Versions) -> Versions {
        // Before reading: a change while they are read is seen the next time.
        let now = versions(&self.files);
        if now == seen {
            return now;
        }
        match self.reload() {
            Ok(()) => info!("took over the new certificate in {}", self.files.cert.display()),
            Err(error) => {
                let cause = std::error::Error::source(&error);
                let cause = cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                warn!("keeping the old certificate: {error}{cause}");
            }
        }
        now
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read()))
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").field("files", &self.files).finish_non_exhaustive()
    }
}

/// The certificate that a server shows, which it is given while it runs, and again whenever there is
/// another one. Before the first, handshakes fail.
#[derive(Default)]
pub struct GivenCertificate(RwLock<Option<Arc<CertifiedKey>>>);

impl GivenCertificate {
    /// Connections from now on are shown this one.
    pub fn give(&self, certified: CertifiedKey) {
        *self.0.write() = Some(Arc::new(certified));
    }
}

impl ResolvesServerCert for GivenCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.read().clone()
    }
}

impl fmt::Debug for GivenCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GivenCertificate").finish_non_exhaustive()
    }
}

/// The certificate's file and the key's. `None`: there is no such file.
type Versions = [Option<Version>; 2];

fn versions(files: &Files) -> Versions {
    [Version::of(&files.cert), Version::of(&files.key)]
}

/// What tells a renewed file from the old one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    device: u64,
    inode: u64,
    len: u64,
    modified: (i64, i64),
}

impl Version {
    /// `None`: there is no such file.
    fn of(path: &Path) -> Option<Self> {
        let metadata = fs::metadata(path).ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        })
    }
}

/// How a server of ours speaks TLS 1.2 and 1.3: with `certificate`, offering HTTP/2 first, then
/// HTTP/1.1, and asking clients for no certificate.
pub fn server_config(certificate: Arc<impl ResolvesServerCert + 'static>) -> Arc<ServerConfig> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the provider has the cipher suites of TLS 1.2 and 1.3")
        .with_no_client_auth()
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Arc::new(config)
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(aws_lc_rs::default_provider())
}

fn read(files: &Files) -> Result<CertifiedKey, LoadError> {
    certified(files, &read_file(&files.cert)?, &read_file(&files.key)?)
}

fn read_file(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|source| LoadError::Read { path: path.to_owned(), source })
}

/// The certificate and key whose PEM is `cert` and `key`; `files` says in errors where they are
/// from.
///
/// # Errors
///
/// [`LoadError`], but never `Read`.
pub fn certified(files: &Files, cert: &[u8], key: &[u8]) -> Result<CertifiedKey, LoadError> {
    let chain = certificates(&files.cert, cert)?;
    let key = private_key(&files.key, key)?;
    let key = provider()
        .key_provider
        .load_private_key(key)
        .map_err(|source| LoadError::Key { path: files.key.clone(), source })?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(certified),
        Err(rustls::Error::InconsistentKeys(_)) => {
            Err(LoadError::Mismatch { cert: files.cert.clone(), key: files.key.clone() })
        }
        Err(source) => Err(LoadError::Certificate { path: files.cert.clone(), source }),
    }
}

/// The certificates in `pem`, at least one; `path` says in errors where they are from.
///
/// # Errors
///
/// [`LoadError::Pem`] and [`LoadError::Missing`].
pub fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, LoadError> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let chain = chain.map_err(|source| LoadError::Pem { path: path.to_owned(), source })?;
    if chain.is_empty() {
        return Err(LoadError::Missing { path: path.to_owned(), wanted: "certificate" });
    }
    Ok(chain)
}

fn private_key(path: &Path, pem: &[u8]) -> Result<PrivateKeyDer<'static>, LoadError> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|error| match error {
        pem::Error::NoItemsFound => {
            LoadError::Missing { path: path.to_owned(), wanted: "private key" }
        }
        source => LoadError::Pem { path: path.to_owned(), source },
    })
}

#[cfg(test)]
pub(crate) mod test_files;
#[cfg(test)]
mod tests;
