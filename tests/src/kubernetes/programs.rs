//! Kubernetes' own programs, as `scripts/kubernetes-programs` has built them.

use std::path::PathBuf;
use std::process::Command;

use larder_core::Digest;

use crate::suite;

/// Which versions they are of: what they are built by.
const MODULE: &str = include_str!("../../kubernetes/tools/go.mod");

/// A command for one of them.
///
/// # Panics
///
/// If it is not there, with what to do.
pub fn program(name: &str) -> Command {
    let path = folder().join("bin").join(name);
    assert!(path.is_file(), "{name} is missing: there is no {} (make test-deps)", path.display());
    Command::new(path)
}

/// Where the programs of these versions are.
fn folder() -> PathBuf {
    let version = MODULE.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    let version = version.and_then(|it| it.split(' ').next()).expect("it is required there");
    let hash = Digest::sha256_of(MODULE.as_bytes()).hex();
    suite::cache().join("kubernetes").join(format!("{version}-{}", &hash[..12]))
}
