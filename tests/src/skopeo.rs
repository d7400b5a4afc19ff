//! skopeo as a real client.

use std::path::PathBuf;

use crate::process::{Ended, peer, run};
use crate::scratch::Scratch;

/// skopeo with a folder of its own.
#[derive(Debug, Default)]
pub struct Skopeo {
    scratch: Scratch,
}

impl Skopeo {
    /// Copies an image with all its platforms from `HOST/REPOSITORY:TAG`, by plain HTTP, into the
    /// folder `name`: a file for each manifest and blob, called by its hash.
    ///
    /// # Panics
    ///
    /// If skopeo is not installed; not if copying fails.
    pub async fn copy_all(&self, reference: &str, name: &str) -> Ended {
        let mut command = peer("skopeo", "skopeo");
        command.args(["--insecure-policy", "copy", "--all", "--src-tls-verify=false"]);
        command.arg(format!("docker://{reference}"));
        command.arg(format!("dir:{}", self.folder(name).display()));
        run(command.env("HOME", self.scratch.folder("home"))).await
    }

    /// Copies an image from one place to another, as skopeo names them.
    ///
    /// # Panics
    ///
    /// If skopeo is not installed; not if copying fails.
    pub async fn copy(&self, from: &str, to: &str) -> Ended {
        let mut command = peer("skopeo", "skopeo");
        command.args(["--insecure-policy", "copy", "--src-tls-verify=false", from, to]);
        run(command.env("HOME", self.scratch.folder("home"))).await
    }

    /// The same, with this `NAME:PASSWORD` for where it comes from.
    ///
    /// # Panics
    ///
    /// If skopeo is not installed; not if copying fails.
    pub async fn copy_as(&self, credential: &str, from: &str, to: &str) -> Ended {
        let mut command = peer("skopeo", "skopeo");
        command.args(["--insecure-policy", "copy", "--src-tls-verify=false"]);
        command.args(["--src-creds", credential, from, to]);
        run(command.env("HOME", self.scratch.folder("home"))).await
    }

    /// Where the folder `name` is.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }
}
