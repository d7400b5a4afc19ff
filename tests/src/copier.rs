//! Programs that copy images into folders: skopeo, crane and oras, each pull with a new folder.

use std::collections::BTreeSet;
use std::process::Command;

use larder_core::Digest;

use crate::process::{peer, run_unbounded};
use crate::root::Root;
use crate::scratch::{Scratch, digests_below};
use crate::suite::Suite;

/// Which one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Copier {
    /// Of Debian 12.
    Skopeo,
    /// Of Debian 13, by chroot.
    NewerSkopeo,
    /// Of Debian sid.
    Crane,
    /// Of Debian 13.
    Oras,
}

impl Copier {
    /// Copies `HOST/REPOSITORY:TAG`, by plain HTTP, and says what came: the digest of every file,
    /// one for each manifest and blob. Whoever calls this bounds it.
    ///
    /// # Errors
    ///
    /// What the program says.
    ///
    /// # Panics
    ///
    /// If it is not there.
    pub async fn copy(self, reference: &str) -> Result<BTreeSet<Digest>, String> {
        let scratch = Scratch::new();
        let folder = scratch.join("image");
        let target = folder.display();
        let root = (self == Self::NewerSkopeo).then(|| Root::with(scratch.path()));
        let mut command = match &root {
            Some(root) => root.command("skopeo"),
            None => self.command(),
        };
        match self {
            Self::Skopeo | Self::NewerSkopeo => command
                .args(["--insecure-policy", "copy", "--all", "--src-tls-verify=false"])
                .arg(format!("docker://{reference}"))
                .arg(format!("dir:{target}")),
            Self::Crane => {
                command.args(["pull", "--insecure", "--format", "oci", reference]).arg(&folder)
            }
            Self::Oras => command
                .args(["copy", "--no-tty", "--from-plain-http", "--to-oci-layout", reference])
                .arg(format!("{target}:copied")),
        };
        command.env("HOME", scratch.folder("home"));
        command.env("DOCKER_CONFIG", scratch.folder("home/.docker"));
        run_unbounded(&mut command).await.ok()?;
        Ok(digests_below(&folder).into_values().collect())
    }

    /// Where it comes from, and its name.
    pub fn origin(self) -> (Suite, &'static str) {
        match self {
            Self::Skopeo => (Suite::Installed, "skopeo"),
            Self::NewerSkopeo => (Suite::Trixie, "skopeo"),
            Self::Crane => (Suite::Sid, "crane"),
            Self::Oras => (Suite::Trixie, "oras"),
        }
    }

    fn command(self) -> Command {
        match self.origin() {
            (Suite::Installed, name) => peer(name, name),
            (suite, name) => suite.command(name, name),
        }
    }
}
