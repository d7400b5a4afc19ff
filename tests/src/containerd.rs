//! containerd as a real client, by CRI and by `ctr`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use larder_core::Digest;
use larder_cri::{Client, Error};

use crate::process::{Process, Stream, peer, run};
use crate::scratch::{Scratch, digests_below};

/// How long a pull may take: as long as any wait of these tests.
const PULL_DEADLINE: Duration = larder_testkit::PATIENCE;

/// A running containerd with folders, socket and mirrors of its own.
#[derive(Debug)]
pub struct Containerd {
    cri: Client,
    // Before the folder, so that it is gone when that is removed.
    _process: Process,
    scratch: Scratch,
}

impl Containerd {
    /// Starts an empty one.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start (it needs root).
    pub async fn start() -> Self {
        let scratch = Scratch::new();
        // Some fields are here because of where tests run: without CAP_SYS_RESOURCE oom_score_adj
        // cannot be lowered, and there may be no systemd.
        let config = format!(
            r#"
version = 2
root = "{root}/root"
state = "{root}/state"
[grpc]
  address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
  disable_tcp_service = true
  restrict_oom_score_adj = true
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
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
[plugins."io.containerd.internal.v1.opt"]
  path = "{root}/opt"
"#,
            root = scratch.path().display(),
            socket = socket(&scratch).display(),
            certs = scratch.folder("certs.d").display(),
        );
        let config = scratch.write("config.toml", &config);
        let mut command = peer("containerd", "containerd");
        let process = Process::start("containerd", command.arg("--config").arg(config));
        let is_up = |lines: &[String]| {
            lines.iter().any(|line| line.contains("containerd successfully booted")).then_some(())
        };
        process.find(Stream::Stderr, "it boots", is_up).await;
        let cri = Client::connect(&socket(&scratch)).await.unwrap();
        Self { cri, _process: process, scratch }
    }

    /// Makes it ask `mirror` (a URL) for images of `host`, and then `server`.
    pub fn mirror(&self, host: &str, server: &str, mirror: &str) {
        let hosts = format!(
            "server = \"{server}\"\n\
             [host.\"{mirror}\"]\n  capabilities = [\"pull\", \"resolve\"]\n"
        );
        self.scratch.write(&format!("certs.d/{host}/hosts.toml"), &hosts);
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
        self.cri.pull_image(reference, None, PULL_DEADLINE).await
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
        let target = self.scratch.folder("mounted");
        let target = target.to_str().unwrap();
        self.ctr(&["images", "mount", reference, target]).await;
        let files = digests_below(target.as_ref());
        self.ctr(&["images", "unmount", "--rm", target]).await;
        files
    }

    async fn ctr(&self, arguments: &[&str]) -> String {
        let mut command = peer("ctr", "containerd");
        command.arg("--address").arg(socket(&self.scratch));
        command.args(["--namespace", "k8s.io"]).args(arguments);
        run(&mut command).await.expect(&format!("ctr {}", arguments.join(" ")))
    }
}

fn socket(scratch: &Scratch) -> PathBuf {
    scratch.join("c.sock")
}
