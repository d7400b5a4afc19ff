//! Larder itself, as the bench starts it.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use larder_core::Digest;

use super::Bench;
use super::client::Target;
use super::content::REPOSITORY;
use super::program::Program;
use super::tls::Certificate;

/// The host that stands for the upstream in image references.
const HOST: &str = "registry.bench";

/// How a larder is set up. Begin with [`Setup::new`].
#[derive(Debug)]
pub(crate) struct Setup<'a> {
    /// Where the upstream is, or a forwarder in front of it.
    pub(crate) upstream: SocketAddr,
    /// The store's directory.
    pub(crate) data: PathBuf,
    /// Connections for one large blob.
    pub(crate) parallel: u8,
    /// How long a tag is not asked for again, as the configuration writes it.
    pub(crate) freshness: &'static str,
    /// The certificate to serve with.
    pub(crate) certificate: Option<&'a Certificate>,
    /// The most that the store may hold, in bytes.
    pub(crate) budget: Option<u64>,
    /// What to run larder with, such as `sh -c …`; its own command line follows.
    pub(crate) wrapper: Vec<String>,
}

/// A running larder.
#[derive(Debug)]
pub(crate) struct Larder {
    program: Program,
    address: SocketAddr,
    admin: SocketAddr,
    tls: Option<Arc<rustls::ClientConfig>>,
}

impl Setup<'_> {
    /// A larder in front of `upstream`, with a store in `data`, that never asks for a tag twice.
    pub(crate) fn new(upstream: SocketAddr, data: PathBuf) -> Self {
        let wrapper = Vec::new();
        let (certificate, budget) = (None, None);
        Self { upstream, data, parallel: 1, freshness: "1h", certificate, budget, wrapper }
    }

    fn configuration(&self) -> String {
        let mut text = String::new();
        let Self { upstream, parallel, freshness, .. } = self;
        write!(
            text,
            "[upstreams.\"{HOST}\"]\nurls = [\"http://{upstream}\"]\nfreshness = \"{freshness}\"\n\
             deadline = \"{DEADLINE}\"\nparallel = {parallel}\n"
        )
        .expect("a string takes everything");
        text
    }

    fn command(&self, larder: &Path, configuration: &Path) -> Command {
        let mut words = self.wrapper.iter().map(Into::into).chain([larder.as_os_str().to_owned()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        command.arg("--config").arg(configuration).arg("--data").arg(&self.data);
        if let Some(it) = self.certificate {
            command.arg("--tls-cert").arg(&it.certificate).arg("--tls-key").arg(&it.key);
        }
        if let Some(budget) = self.budget {
            command.arg("--budget").arg(budget.to_string());
        }
        command
    }
}

/// How long a larder of the bench waits for the upstream where it has a stale answer.
const DEADLINE: &str = "1s";

impl Larder {
    /// Starts a larder, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// It does not start; the error has its last words.
    pub(crate) fn start(bench: &Bench, setup: &Setup<'_>) -> anyhow::Result<Self> {
        let configuration = bench.path("larder.toml");
        fs::write(&configuration, setup.configuration()).context("configuring larder")?;
        let program = bench.start("larder", &mut setup.command(bench.larder(), &configuration))?;
        let address = address_of(&program.line("listening on ")?)?;
        let admin = address_of(&program.line("admin on ")?)?;
        let larder =
            Self { program, address, admin, tls: setup.certificate.map(|it| it.client.clone()) };
        larder.program.until("become ready", || larder.is_ready().then_some(()))?;
        Ok(larder)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// Whether its process has not ended.
    pub(crate) fn runs(&self) -> bool {
        self.program.runs()
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// A blob of the upstream's repository.
    pub(crate) fn blob(&self, digest: &Digest) -> Target {
        Target { address: self.address, path: blob_path(digest), tls: self.tls.clone() }
    }

    /// A manifest of the upstream's repository, by tag or digest.
    pub(crate) fn manifest(&self, reference: &str) -> Target {
        Target { address: self.address, path: manifest_path(reference), tls: self.tls.clone() }
    }

    /// Something on its admin address.
    pub(crate) fn admin(&self, path: &str) -> Target {
        Target::plain(self.admin, path.to_owned())
    }

    /// Asks it to end, and waits for that.
    pub(crate) fn stop(self) {
        self.program.stop();
    }

    fn is_ready(&self) -> bool {
        self.admin("/readyz").drain().is_ok()
    }
}

/// The path of a blob.
pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("/v2/{HOST}/{REPOSITORY}/blobs/{digest}")
}

/// The path of a blob, as runtimes ask a mirror for it.
pub(crate) fn mirrored_blob_path(digest: &Digest) -> String {
    format!("/v2/{REPOSITORY}/blobs/{digest}?ns={HOST}")
}

/// The path of a manifest.
pub(crate) fn manifest_path(reference: &str) -> String {
    format!("/v2/{HOST}/{REPOSITORY}/manifests/{reference}")
}

/// The address in `http://ADDRESS`, or `https://ADDRESS`.
///
/// # Errors
///
/// It is something else.
pub(crate) fn address_of(url: &str) -> anyhow::Result<SocketAddr> {
    let (_, address) = url.split_once("://").context("larder did not print a URL")?;
    address.trim_end_matches('/').parse().with_context(|| format!("reading {address:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_off_a_url() {
        assert_eq!(address_of("http://127.0.0.1:5000").unwrap().port(), 5000);
        assert_eq!(address_of("https://[::1]:5000/").unwrap().port(), 5000);
        assert!(address_of("127.0.0.1:5000").is_err());
    }
}
