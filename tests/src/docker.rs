//! dockerd as a real client.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use larder_core::Digest;
use larder_testkit::blackhole::Blackhole;

use crate::containerd::Containerd;
use crate::process::{Process, Stream, peer, run, run_unbounded};
use crate::scratch::{Scratch, digests_below};

/// A running dockerd with a containerd, folders and a socket of its own, and without networks.
#[derive(Debug)]
pub struct Docker {
    // Before the folders, so that they are gone when those are removed.
    _process: Process,
    _containerd: Containerd,
    /// Where it would find Docker Hub.
    _hub: Blackhole,
    scratch: Scratch,
}

impl Docker {
    /// Starts an empty one. It asks `mirrors` (URLs) for images of Docker Hub, which is away.
    ///
    /// # Panics
    ///
    /// If it is not installed or does not start (it needs root).
    pub async fn start(mirrors: &[&str]) -> Self {
        let scratch = Scratch::new();
        let containerd = Containerd::start().await;
        let hub = Blackhole::refusing();
        let config = serde_json::json!({
            "registry-mirrors": mirrors,
            "hosts": [socket(&scratch)],
            "containerd": containerd.socket(),
            "data-root": scratch.folder("data"),
            "exec-root": scratch.folder("exec"),
            "pidfile": scratch.join("dockerd.pid"),
            "storage-driver": "overlay2",
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            // Each may take as long as the program goes on trying; by default there are 5.
            "max-download-attempts": 2,
            "bridge": "none",
            "iptables": false,
            "ip-forward": false,
            "ip-masq": false,
        });
        let config = scratch.write("daemon.json", &config.to_string());
        let mut command = peer("dockerd", "docker.io");
        command.arg("--config-file").arg(config);
        // Not for loopback, which is where everything else is.
        command.env("HTTPS_PROXY", hub.url()).env_remove("HTTP_PROXY").env_remove("NO_PROXY");
        let process = Process::start("dockerd", &mut command);
        let is_up = |lines: &[String]| {
            lines.iter().any(|line| line.contains("API listen on")).then_some(())
        };
        process.find(Stream::Stderr, "it listens", is_up).await;
        Self { _process: process, _containerd: containerd, _hub: hub, scratch }
    }

    /// Pulls an image. Whoever calls this bounds it.
    ///
    /// # Errors
    ///
    /// What `docker` says.
    pub async fn pull(&self, reference: &str) -> Result<(), String> {
        run_unbounded(&mut self.command(&["pull", "--quiet", reference])).await.ok().map(drop)
    }

    /// The digest of every file in an image.
    ///
    /// # Panics
    ///
    /// If it is not there.
    pub async fn files(&self, reference: &str) -> BTreeSet<Digest> {
        let format = "{{.GraphDriver.Data.UpperDir}}:{{.GraphDriver.Data.LowerDir}}";
        let mut inspect = self.command(&["image", "inspect", "--format", format, reference]);
        let folders = run(&mut inspect).await.expect("docker image inspect");
        let folders = folders.trim().split(':').filter(|folder| folder.starts_with('/'));
        folders.flat_map(|folder| digests_below(Path::new(folder)).into_values()).collect()
    }

    /// Removes an image, with its layers.
    ///
    /// # Panics
    ///
    /// If it is not there.
    pub async fn remove(&self, reference: &str) {
        run(&mut self.command(&["image", "rm", reference])).await.expect("docker image rm");
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = peer("docker", "docker.io");
        command.args(["--host", &socket(&self.scratch)]).args(arguments);
        command.env("DOCKER_CONFIG", self.scratch.folder("config")).env_remove("DOCKER_CONTEXT");
        command
    }
}

fn socket(scratch: &Scratch) -> String {
    format!("unix://{}", scratch.join("d.sock").display())
}
