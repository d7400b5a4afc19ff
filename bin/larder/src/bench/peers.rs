//! The programs that larder is measured beside: docker-registry and nginx.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, bail};
use larder_core::Digest;

use super::Bench;
use super::client::Target;
use super::content::{Images, REPOSITORY};
use super::program::{self, Program, free_address};
use super::tls::Certificate;

/// Debian's docker-registry over an [`Images`].
#[derive(Debug)]
pub(crate) struct Registry {
    program: Program,
    address: SocketAddr,
    tls: Option<std::sync::Arc<rustls::ClientConfig>>,
}

/// nginx, with sendfile, one process, over the same files.
#[derive(Debug)]
pub(crate) struct Nginx {
    program: Program,
    plain: SocketAddr,
    encrypted: Target,
}

/// A program that is measured beside larder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Peer {
    Registry,
    Nginx,
}

impl Peer {
    /// Where it is.
    ///
    /// # Errors
    ///
    /// It is not installed; the error names the Debian package.
    fn installed(self) -> anyhow::Result<PathBuf> {
        let (name, package) = match self {
            Self::Registry => ("docker-registry", "docker-registry"),
            Self::Nginx => ("nginx", "nginx-core"),
        };
        match program::find(name) {
            Some(file) => Ok(file),
            None => bail!("{name} is not installed; it is in the Debian package {package}"),
        }
    }
}

impl Registry {
    /// Starts a docker-registry over the bench's images, with TLS if there is a certificate.
    ///
    /// # Errors
    ///
    /// It is not installed, or does not start.
    pub(crate) fn start(bench: &Bench, certificate: Option<&Certificate>) -> anyhow::Result<Self> {
        let file = Peer::Registry.installed()?;
        let name = if certificate.is_some() { "docker-registry-tls" } else { "docker-registry" };
        let address = free_address()?;
        let tls = certificate.map_or(
            serde_json::json!({}),
            |it| serde_json::json!({ "certificate": it.certificate, "key": it.key }),
        );
        // JSON is YAML. As Debian configures it, without authentication, and quiet: what it would
        // log of each request costs it a third of its rate.
        let configuration = serde_json::json!({
            "version": "0.1",
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": {
                "cache": { "blobdescriptor": "inmemory" },
                "filesystem": { "rootdirectory": bench.images().root() },
                "maintenance": { "uploadpurging": { "enabled": false } },
            },
            "http": { "addr": address, "tls": tls },
        });
        let path = bench.path(name).with_extension("json");
        fs::write(&path, configuration.to_string()).context("configuring docker-registry")?;
        let program = bench.start(name, Command::new(file).arg("serve").arg(path))?;
        program.accepts(address)?;
        Ok(Self { program, address, tls: certificate.map(|it| it.client.clone()) })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// A blob of the bench's repository.
    pub(crate) fn blob(&self, digest: &Digest) -> Target {
        Target { tls: self.tls.clone(), ..blob_at(self.address, digest) }
    }

    /// The path of a manifest of the bench's repository.
    pub(crate) fn manifest_path(reference: &str) -> String {
        format!("/v2/{REPOSITORY}/manifests/{reference}")
    }
}

/// A blob of the bench's repository as a registry at `address` names it; also through a forwarder.
pub(crate) fn blob_at(address: SocketAddr, digest: &Digest) -> Target {
    Target::plain(address, format!("/v2/{REPOSITORY}/blobs/{digest}"))
}

impl Nginx {
    /// Starts an nginx that serves the bench's images as files, plain and with TLS.
    ///
    /// # Errors
    ///
    /// It is not installed, or does not start.
    pub(crate) fn start(bench: &Bench, certificate: &Certificate) -> anyhow::Result<Self> {
        let file = Peer::Nginx.installed()?;
        let (plain, encrypted) = (free_address()?, free_address()?);
        let directory = bench.path("nginx");
        fs::create_dir_all(&directory)?;
        let configuration = configuration(bench.images(), certificate, plain, encrypted);
        let path = directory.join("nginx.conf");
        fs::write(&path, configuration).context("configuring nginx")?;
        let mut command = Command::new(file);
        command.arg("-p").arg(&directory).arg("-c").arg(path).args(["-e", "stderr"]);
        let program = bench.start("nginx", &mut command)?;
        program.accepts(plain)?;
        program.accepts(encrypted)?;
        let tls = Some(certificate.client.clone());
        let encrypted = Target { address: encrypted, path: String::new(), tls };
        Ok(Self { program, plain, encrypted })
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// A blob, as a plain file.
    pub(crate) fn blob(&self, digest: &Digest) -> Target {
        Target::plain(self.plain, format!("/{}", Images::data_path(digest)))
    }

    /// A blob, over TLS.
    pub(crate) fn encrypted_blob(&self, digest: &Digest) -> Target {
        Target { path: self.blob(digest).path, ..self.encrypted.clone() }
    }
}

/// One process, sendfile, the rest as nginx has it by default. With sendfile, encrypted bodies are
/// read into buffers, as this kernel has no TLS.
fn configuration(
    images: &Images,
    certificate: &Certificate,
    plain: SocketAddr,
    encrypted: SocketAddr,
) -> String {
    let root = images.root().display();
    let (chain, key) = (certificate.certificate.display(), certificate.key.display());
    format!(
        "daemon off;
master_process off;
pid nginx.pid;
error_log stderr error;
events {{ worker_connections 2048; }}
http {{
  sendfile on;
  tcp_nopush on;
  access_log off;
  keepalive_requests 1000000;
  client_body_temp_path tmp;
  proxy_temp_path tmp;
  fastcgi_temp_path tmp;
  uwsgi_temp_path tmp;
  scgi_temp_path tmp;
  server {{
    listen {plain} backlog=1024;
    listen {encrypted} ssl;
    ssl_certificate {chain};
    ssl_certificate_key {key};
    ssl_protocols TLSv1.3;
    root {root};
  }}
}}
"
    )
}

/// Says which peers are missing.
///
/// # Errors
///
/// One is; the error names every missing one with its Debian package.
pub(crate) fn require(peers: &BTreeSet<Peer>) -> anyhow::Result<()> {
    let missing = peers.iter().filter_map(|peer| peer.installed().err());
    let missing: Vec<String> = missing.map(|error| error.to_string()).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => bail!("{}", missing.join("; ")),
    }
}
