//! Programs that nobody packages, as `scripts/kubernetes-programs` has built them.

use std::path::PathBuf;
use std::process::Command;

use larder_core::Digest;

use crate::suite;

/// What some of them are built by: a Go module.
#[derive(Clone, Copy, Debug)]
pub(super) struct Module {
    /// What is made of it is kept by this name.
    name: &'static str,
    /// Whose version counts.
    required: &'static str,
    /// All that tells what it makes, `go.mod` first.
    files: &'static [&'static str],
}

/// Kubernetes' own, and Helm.
pub(super) const KUBERNETES: Module = Module {
    name: "kubernetes",
    required: "k8s.io/kubernetes ",
    files: &[include_str!("../../kubernetes/tools/go.mod")],
};

/// cert-manager's controllers.
pub(super) const CERT_MANAGER: Module = Module {
    name: "cert-manager",
    required: "github.com/cert-manager/cert-manager ",
    files: &[
        include_str!("../../kubernetes/cert-manager/go.mod"),
        include_str!("../../kubernetes/cert-manager/main.go"),
    ],
};

/// A command for one of Kubernetes'.
///
/// # Panics
///
/// If it is not there, with what to do.
pub fn program(name: &str) -> Command {
    Command::new(KUBERNETES.path(&format!("bin/{name}")))
}

// === impl Module ===

impl Module {
    /// Where some of what it makes is.
    ///
    /// # Panics
    ///
    /// If it is not there, with what to do.
    pub(super) fn path(self, name: &str) -> PathBuf {
        let path = self.folder().join(name);
        assert!(
            path.exists(),
            "{name} is missing: there is no {} (make test-deps)",
            path.display()
        );
        path
    }

    fn folder(self) -> PathBuf {
        let lines = self.files[0].lines().map(str::trim);
        let mut lines = lines.map(|line| line.strip_prefix("require ").unwrap_or(line));
        let version = lines.find_map(|line| line.strip_prefix(self.required));
        let version = version.and_then(|it| it.split(' ').next()).expect("it is required there");
        let hash = Digest::sha256_of(self.files.concat().as_bytes()).hex();
        suite::cache().join(self.name).join(format!("{version}-{}", &hash[..12]))
    }
}
