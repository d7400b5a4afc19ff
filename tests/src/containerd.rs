//! containerd as a real client, by CRI and by `ctr`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use larder_core::Digest;
use larder_cri::{Auth, Client, Error};

use crate::process::{Ended, Process, Stream, run};
use crate::scratch::{Scratch, digests_below};
use crate::suite::Suite;

/// How long a pull may take: as long as any wait of these tests.
const PULL_DEADLINE: Duration = larder_testkit::PATIENCE;

/// A running containerd with folders, socket and mirrors of its own.
#[derive(Debug)]
pub struct Containerd {
    cri: Client,
    generation: Generation,
    // Before the folder, so that it is gone when that is removed.
    _process: Process,
    scratch: Scratch,
}

/// Which containerd, as they differ in what they ask of a mirror.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Generation {
    /// Of Debian 12.
    V1_6,
    /// Of Debian 13.
    V1_7,
    /// Of Debian sid: pulls by its transfer service.
    V2_1 {
        /// In pieces of so many bytes, several at a time (`concurrent_layer_fetch_buffer`); 0:
        /// each layer at once.
        fetch_buffer: u64,
    },
}

impl Generation {
    /// Where it comes from.
    pub fn suite(self) -> Suite {
        match self {
            Self::V1_6 => Suite::Installed,
            Self::V1_7 => Suite::Trixie,
            Self::V2_1 { .. } => Suite::Sid,
        }
    }

    /// Some fields are here because of where tests run: without CAP_SYS_RESOURCE oom_score_adj
    /// cannot be lowered, and there may be no systemd.
    fn config(self, scratch: &Scratch) -> String {
        let root = scratch.path().display();
        let certs = scratch.folder("certs.d");
        let certs = certs.display();
        let version = if matches!(self, Self::V2_1 { .. }) { 3 } else { 2 };
        let common = format!(
            r#"
version = {version}
root = "{root}/root"
state = "{root}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
"#,
            socket = socket(scratch).display(),
        );
        let rest = match self {
            Self::V1_6 | Self::V1_7 => format!(
                r#"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{certs}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{root}/cni"
"#
            ),
            // Its downloads share one limit for all pulls of the node; with the usual 3, tests
            // that share a containerd would wait for each other.
            Self::V2_1 { fetch_buffer } => format!(
                r#"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = "{certs}"
[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = ["/usr/lib/cni"]
    conf_dir = "{root}/cni"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
        SystemdCgroup = false
[plugins."io.containerd.transfer.v1.local"]
  config_path = "{certs}"
  max_concurrent_downloads = 64
  concurrent_layer_fetch_buffer = {fetch_buffer}
[plugins."io.containerd.nri.v1.nri"]
  disable = true
"#
            ),
        };
        common + &rest
    }
}

impl Containerd {
    /// Starts an empty one, of the kind that is installed.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start (it needs root).
    pub async fn start() -> Self {
        Self::start_as(Generation::V1_6).await
    }

    /// Starts an empty one.
    ///
    /// # Panics
    ///
    /// If it is not there or does not start (it needs root).
    pub async fn start_as(generation: Generation) -> Self {
        let scratch = Scratch::new();
        let config = scratch.write("config.toml", &generation.config(&scratch));
        let mut command = generation.suite().command("containerd", "containerd");
        let process = Process::start("containerd", command.arg("--config").arg(config));
        let is_up = |lines: &[String]| {
            lines.iter().any(|line| line.contains("containerd successfully booted")).then_some(())
        };
        process.find(Stream::Stderr, "it boots", is_up).await;
        let cri = Client::connect(&socket(&scratch)).await.unwrap();
        Self { cri, generation, _process: process, scratch }
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        socket(&self.scratch)
    }

    /// Where it looks for mirrors.
    pub fn certs_dir(&self) -> PathBuf {
        self.scratch.join("certs.d")
    }

    /// Its configuration.
    pub fn config(&self) -> PathBuf {
        self.scratch.join("config.toml")
    }

    /// Makes it ask `mirror` (a URL) for images of `host`, and then `server`.
    pub fn mirror(&self, host: &str, server: &str, mirror: &str) {
        let hosts = format!(
            "server = \"{server}\"\n\
             [host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        self.scratch.write(&format!("certs.d/{host}/hosts.toml"), &hosts);
    }

    /// Makes it ask `mirror` (a URL) for the images of every registry.
    pub fn mirror_everything(&self, mirror: &str) {
        let hosts = format!("[host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        self.scratch.write("certs.d/_default/hosts.toml", &hosts);
    }

    /// Its CRI.
    pub fn cri(&self) -> &Client {
        &self.cri
    }

    /// Pulls by CRI, as the kubelet does.
    ///
    /// # Errors
    ///
    /// What containerd says.
    pub async fn pull(&self, reference: &str) -> Result<String, Error> {
        self.pull_within(reference, PULL_DEADLINE).await
    }

    /// The same, with a bound of its own.
    ///
    /// # Errors
    ///
    /// What containerd says.
    pub async fn pull_within(&self, reference: &str, limit: Duration) -> Result<String, Error> {
        self.cri.pull_image(reference, None, limit).await
    }

    /// Pulls by CRI with a pod's pull secret.
    ///
    /// # Errors
    ///
    /// What containerd says.
    pub async fn pull_as(
        &self,
        (username, password): (&str, &str),
        reference: &str,
    ) -> Result<String, Error> {
        let (username, password) = (username.to_owned(), password.to_owned());
        let auth = Auth::Password { username, password };
        self.cri.pull_image(reference, Some(auth), PULL_DEADLINE).await
    }

    /// Pulls by `ctr images pull --user`, with this `NAME:PASSWORD`.
    ///
    /// # Panics
    ///
    /// Not if the pull fails.
    pub async fn pull_by_ctr_as(&self, credential: &str, reference: &str) -> Ended {
        let mut command = self.generation.suite().command("ctr", "containerd");
        command.arg("--address").arg(self.socket()).args(["--namespace", "k8s.io"]);
        command.args(["images", "pull", "--user", credential, "--hosts-dir"]);
        run(command.arg(self.scratch.join("certs.d")).arg(reference)).await
    }

    /// Pulls by `ctr images pull`, into the namespace that CRI uses.
    ///
    /// # Panics
    ///
    /// If that fails.
    pub async fn pull_by_ctr(&self, reference: &str) {
        let certs = self.scratch.join("certs.d");
        let certs = certs.to_str().unwrap();
        self.ctr(&["images", "pull", "--hosts-dir", certs, reference]).await;
    }

    /// The path and digest of every file in an unpacked image.
    ///
    /// # Panics
    ///
    /// If it cannot be mounted.
    pub async fn files(&self, reference: &str) -> BTreeMap<String, Digest> {
        let target = self.scratch.folder(&reference.replace(['/', ':'], "-"));
        let target = target.to_str().unwrap();
        self.ctr(&["images", "mount", reference, target]).await;
        let files = digests_below(target.as_ref());
        self.ctr(&["images", "unmount", "--rm", target]).await;
        files
    }

    async fn ctr(&self, arguments: &[&str]) -> String {
        let mut command = self.generation.suite().command("ctr", "containerd");
        command.arg("--address").arg(self.socket());
        command.args(["--namespace", "k8s.io"]).args(arguments);
        run(&mut command).await.expect(&format!("ctr {}", arguments.join(" ")))
    }
}

fn socket(scratch: &Scratch) -> PathBuf {
    scratch.join("c.sock")
}
