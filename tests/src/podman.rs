//! Podman as a real client.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use larder_core::Digest;

use crate::process::{Ended, peer, run, run_unbounded};
use crate::root::Root;
use crate::scratch::{Scratch, digests_below};

/// Podman with storage and registries of its own.
#[derive(Debug)]
pub struct Podman {
    /// Of a newer one. Before the folder, which is mounted in it.
    root: Option<Root>,
    scratch: Scratch,
}

impl Podman {
    /// Makes its folders. It asks `mirror` (`HOST[/PATH]`, by plain HTTP) for images of `host`, and
    /// then `server` (`HOST`).
    pub fn with_mirror(host: &str, server: &str, mirror: &str) -> Self {
        Self::with_registries(&format!(
            "unqualified-search-registries = []\n\
             [[registry]]\nprefix = \"{host}\"\nlocation = \"{server}\"\ninsecure = true\n\
             [[registry.mirror]]\nlocation = \"{mirror}\"\ninsecure = true\n"
        ))
    }

    /// Makes its folders, with this `registries.conf`.
    pub fn with_registries(text: &str) -> Self {
        let scratch = Scratch::new();
        scratch.write("registries.conf", text);
        scratch.write("containers.conf", "[engine]\nevents_logger = \"file\"\n");
        scratch.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        Self { root: None, scratch }
    }

    /// The same with podman 5, of Debian 13.
    ///
    /// # Panics
    ///
    /// If it is not there.
    #[must_use]
    pub fn newer(self) -> Self {
        Self { root: Some(Root::with(self.scratch.path())), ..self }
    }

    /// Pulls an image.
    ///
    /// # Panics
    ///
    /// If Podman is not installed; not if the pull fails.
    pub async fn pull(&self, reference: &str) -> Ended {
        run(&mut self.pulling(reference)).await
    }

    /// Pulls an image with this `NAME:PASSWORD`.
    ///
    /// # Panics
    ///
    /// If Podman is not installed; not if the pull fails.
    pub async fn pull_as(&self, credential: &str, reference: &str) -> Ended {
        run(self.pulling(reference).args(["--creds", credential])).await
    }

    /// The same. Whoever calls this bounds it.
    pub async fn pull_unbounded(&self, reference: &str) -> Ended {
        run_unbounded(&mut self.pulling(reference)).await
    }

    fn pulling(&self, reference: &str) -> Command {
        let mut command = self.command(&["pull", "--quiet", "--signature-policy"]);
        command.arg(self.scratch.join("policy.json")).arg(reference);
        command
    }

    /// The path and digest of every file in an image.
    ///
    /// # Panics
    ///
    /// If it cannot be mounted.
    pub async fn files(&self, reference: &str) -> BTreeMap<String, Digest> {
        let mut mount = self.command(&["image", "mount", reference]);
        let target = run(&mut mount).await.expect("podman image mount");
        let target = Path::new(target.trim());
        let files = match &self.root {
            Some(root) => digests_below(&root.outside(target)),
            None => digests_below(target),
        };
        let mut unmount = self.command(&["image", "unmount", reference]);
        run(&mut unmount).await.expect("podman image unmount");
        files
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.root {
            Some(root) => root.command("podman"),
            None => peer("podman", "podman"),
        };
        for (flag, folder) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(flag).arg(self.scratch.folder(folder));
        }
        command
            .args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs"])
            .args(arguments)
            .env("CONTAINERS_CONF", self.scratch.join("containers.conf"))
            .env("CONTAINERS_REGISTRIES_CONF", self.scratch.join("registries.conf"))
            .env("HOME", self.scratch.folder("home"));
        command
    }
}
