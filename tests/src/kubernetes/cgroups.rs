//! Control groups for one node, as a kubelet wants to find them.

use std::fs;
use std::path::{Path, PathBuf};

/// A group in every hierarchy. Dropping it removes it, with the groups below it.
#[derive(Debug)]
pub(crate) struct Cgroups {
    name: String,
    paths: Vec<PathBuf>,
}

impl Cgroups {
    /// Makes the groups.
    ///
    /// # Panics
    ///
    /// If that cannot be done (it needs root).
    pub(crate) fn make(name: &str) -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut made = Self { name: name.to_owned(), paths: Vec::new() };
        for mount in mounts.lines() {
            let mut fields = mount.split(' ').skip(1);
            let (Some(root), Some(kind)) = (fields.next().map(Path::new), fields.next()) else {
                continue;
            };
            if kind != "cgroup" && kind != "cgroup2" {
                continue;
            }
            let path = root.join(name);
            if kind == "cgroup2" {
                delegate(root);
            }
            fs::create_dir(&path).unwrap();
            // A group has none to begin with where each has to be told.
            for set in ["cpuset.cpus", "cpuset.mems"] {
                if kind == "cgroup" && path.join(set).exists() {
                    fs::write(path.join(set), fs::read(root.join(set)).unwrap()).unwrap();
                }
            }
            made.paths.push(path);
        }
        made
    }

    /// The group in the unified hierarchy.
    ///
    /// # Panics
    ///
    /// If this computer has none mounted.
    pub(crate) fn unified(&self) -> &Path {
        let is_unified = |path: &&PathBuf| path.join("cgroup.type").exists();
        self.paths.iter().find(is_unified).expect("a cgroup2 file system is mounted")
    }

    /// What it is called, in each hierarchy.
    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        for path in &self.paths {
            remove(path);
        }
    }
}

/// Gives the groups below `root` all the controllers that this one has.
fn delegate(root: &Path) {
    let controllers = fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
    for controller in controllers.split_whitespace() {
        // One that cannot be had is missed by the kubelet, if it needs it.
        let _ = fs::write(root.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// Removes a group and those below it, whose files the kernel keeps.
fn remove(path: &Path) {
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove(&entry.path());
        }
    }
    // What is left behind is an empty group.
    let _ = fs::remove_dir(path);
}
