//! The entries of this node: written, withdrawn, and said what became of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use larder_core::{Digest, builtin};
use url::Url;

use super::record::{self, Kept, Record, RecordError, Restored};
use super::{Merge, Runtime, Wanted, containerd, dockerd, k3s, podman};

/// The entries, and what was there before. Everything here blocks.
#[derive(Debug)]
pub struct Entries {
    wanted: Wanted,
    /// Where upstreams are as a person has configured, which counts before what caches say.
    upstreams: BTreeMap<String, Url>,
    record: Record,
}

/// What became of the entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// The runtimes that have entries now.
    pub active: BTreeSet<Runtime>,
    /// The files that were changed.
    pub changed: Vec<(Runtime, PathBuf)>,
    /// What a person should know, each in a line.
    pub notes: Vec<String>,
}

/// A file that may have an entry.
struct Target {
    runtime: Runtime,
    path: PathBuf,
    /// The registry, for a runtime with a file for each.
    host: String,
}

impl Entries {
    /// What is to be written, and what was written by an earlier process. Writes nothing.
    ///
    /// # Errors
    ///
    /// The record in the directory `state` cannot be read.
    pub fn open(wanted: Wanted, state: &Path) -> Result<Self, RecordError> {
        let upstreams = wanted.upstreams.clone();
        Ok(Self { wanted, upstreams, record: Record::open(state)? })
    }

    /// Writes all entries that are not there yet. One that cannot be written does not keep the others.
    pub fn write(&mut self) -> Report {
        let mut report = Report::default();
        for target in self.targets() {
            let Target { runtime, path, .. } = &target;
            match self.write_one(&target, &mut report) {
                Ok(true) => drop(report.active.insert(*runtime)),
                Ok(false) => {}
                Err(why) => report.notes.push(format!("{}: {why}", path.display())),
            }
        }
        if report.active.contains(&Runtime::Containerd) {
            report.notes.extend(self.hidden_registries());
        }
        report
    }

    /// Has the entries be for these registries from now on, some of which are at other `urls` than their
    /// names say, and puts back what was written for others. Registries by pattern are, for a runtime,
    /// all of them.
    ///
    /// # Errors
    ///
    /// The record cannot be written.
    pub fn want(
        &mut self,
        hosts: BTreeSet<String>,
        urls: BTreeMap<String, Url>,
    ) -> Result<Report, RecordError> {
        self.wanted.upstreams = urls;
        self.wanted.upstreams.extend(self.upstreams.clone());
        self.wanted.mirrors.hosts = match hosts.iter().any(|host| host.contains('*')) {
            true => vec!["*".to_owned()],
            false => hosts.into_iter().collect(),
        };
        let targets = self.targets();
        self.restore(|kept| !targets.iter().any(|target| target.path == kept.path))
    }

    /// Puts everything back as it was. Without `all`, only what runtimes read for each pull: the
    /// others would not notice.
    ///
    /// # Errors
    ///
    /// The record cannot be written.
    pub fn withdraw(&mut self, all: bool) -> Result<Report, RecordError> {
        self.restore(|kept| all || kept.runtime.restart().is_none())
    }

    /// Puts back those that are to `go`; the others stay active.
    fn restore(&mut self, go: impl Fn(&Kept) -> bool) -> Result<Report, RecordError> {
        let mut report = Report::default();
        for kept in self.record.all().to_vec() {
            if !go(&kept) {
                report.active.insert(kept.runtime);
                continue;
            }
            match self.record.restore(&kept.path)? {
                Restored::AsBefore(path) => report.changed.push((kept.runtime, path)),
                Restored::ChangedSince(path) => report.notes.push(format!(
                    "{} was changed by somebody else and is left alone; take {} out of it",
                    path.display(),
                    self.wanted.url()
                )),
                Restored::Failed(path, why) => {
                    report.active.insert(kept.runtime);
                    report.notes.push(format!("{}: {why}", path.display()));
                }
            }
        }
        Ok(report)
    }

    /// Whether the entry is there now.
    fn write_one(&mut self, target: &Target, report: &mut Report) -> Result<bool, String> {
        let Target { runtime, path, .. } = target;
        let now = record::read(path).map_err(|error| error.to_string())?;
        let earlier = self.record.of(path);
        let is_ours = |kept: &Kept| {
            now.as_ref().is_some_and(|now| Digest::sha256_of(now.text.as_bytes()) == kept.wrote)
        };
        // What an earlier process wrote is made anew from what was there before.
        let before = match earlier.filter(|kept| is_ours(kept)) {
            Some(kept) => kept.before.clone(),
            None => now.clone(),
        };
        let text = before.as_ref().map(|before| before.text.as_str());
        let merge = self.merged(target, text, report)?;
        let wanted = match merge {
            Merge::Write(text) => text,
            Merge::There => return Ok(true),
            Merge::Leave(why) => return Err(format!("left alone: {why}")),
        };
        if now.is_some_and(|now| now.text == wanted) {
            return Ok(true);
        }
        let kept = Kept {
            path: path.clone(),
            runtime: *runtime,
            before,
            wrote: Digest::sha256_of(wanted.as_bytes()),
            made: Vec::new(),
        };
        self.record.edit(kept, &wanted).map_err(|error| with_cause(&error))?;
        report.changed.push((*runtime, path.clone()));
        Ok(true)
    }

    fn merged(
        &self,
        target: &Target,
        before: Option<&str>,
        report: &mut Report,
    ) -> Result<Merge, String> {
        let wanted = &self.wanted;
        Ok(match target.runtime {
            Runtime::Containerd => {
                if before.is_none() && has_certificates(&target.path) {
                    let why = "its directory has certificates, which containerd then ignored";
                    return Ok(Merge::Leave(why.to_owned()));
                }
                containerd::merged(wanted, &target.host, before)
            }
            Runtime::Podman => {
                let others = self.other_registries_conf(&target.path);
                let (merge, notes) = podman::merged(wanted, before, &others);
                report.notes.extend(notes.into_iter().map(|note| format!("podman: {note}")));
                merge
            }
            Runtime::Dockerd => dockerd::merged(wanted, before),
            Runtime::K3s | Runtime::Rke2 => k3s::merged(wanted, before),
        })
    }

    fn targets(&self) -> Vec<Target> {
        let mirrors = &self.wanted.mirrors;
        if mirrors.hosts.is_empty() {
            return Vec::new();
        }
        let mut targets = Vec::new();
        if let Some(containerd) = &mirrors.containerd {
            // The self-test comes by the same way as everything else.
            let is_all = mirrors.hosts.iter().any(|host| host == "*");
            let own = (!is_all).then(|| builtin::HOST.to_owned());
            for host in mirrors.hosts.iter().chain(&own) {
                let is_there = |name: &str| containerd.certs_dir.join(name).exists();
                let directory = containerd.certs_dir.join(containerd::directory(host, is_there));
                let (path, host) = (directory.join("hosts.toml"), host.clone());
                targets.push(Target { runtime: Runtime::Containerd, path, host });
            }
        }
        let mut one = |runtime, path: Option<&PathBuf>| {
            let target =
                |path: &PathBuf| Target { runtime, path: path.clone(), host: String::new() };
            targets.extend(path.map(target));
        };
        one(Runtime::Podman, mirrors.podman.as_ref().map(|it| &it.file));
        one(Runtime::Dockerd, mirrors.dockerd.as_ref().map(|it| &it.file));
        one(Runtime::K3s, mirrors.k3s.as_ref().map(|it| &it.file));
        one(Runtime::Rke2, mirrors.rke2.as_ref().map(|it| &it.file));
        targets
    }

    /// Registries with a directory of their own, which containerd looks at instead of `_default`.
    fn hidden_registries(&self) -> Vec<String> {
        let mirrors = &self.wanted.mirrors;
        let Some(containerd) = mirrors.containerd.as_ref() else { return Vec::new() };
        if !mirrors.hosts.iter().any(|host| host == "*") {
            return Vec::new();
        }
        let names = fs::read_dir(&containerd.certs_dir).into_iter().flatten().flatten();
        let names = names.filter_map(|entry| entry.file_name().into_string().ok());
        let is_named = |name: &String| {
            mirrors
                .hosts
                .iter()
                .any(|host| containerd::directory(host, |_| false) == *name || host == name)
        };
        let mut hidden: Vec<String> = names
            .filter(|name| name != "_default" && !name.starts_with('.') && !is_named(name))
            .collect();
        hidden.sort();
        let note = |name: String| {
            let path = containerd.certs_dir.join(&name);
            format!(
                "{} counts for that registry alone; name it in `mirrors.hosts` to have the cache asked too",
                path.display()
            )
        };
        hidden.into_iter().map(note).collect()
    }

    /// The texts of all files that podman reads besides `ours`.
    fn other_registries_conf(&self, ours: &Path) -> Vec<String> {
        let beside = ours.parent().and_then(|directory| fs::read_dir(directory).ok());
        let beside = beside.into_iter().flatten().flatten().map(|entry| entry.path());
        let is_other =
            |path: &PathBuf| path != ours && path.extension().is_some_and(|it| it == "conf");
        let config = self.wanted.mirrors.podman.as_ref().map(|it| it.config.clone());
        let paths = beside.filter(is_other).chain(config);
        paths.filter_map(|path| Some(record::read(&path).ok()??.text)).collect()
    }
}

/// Whether a registry's directory has certificates and no `hosts.toml`.
fn has_certificates(path: &Path) -> bool {
    let names = path.parent().and_then(|directory| fs::read_dir(directory).ok());
    let is_certificate = |path: PathBuf| {
        path.extension().is_some_and(|it| it == "crt" || it == "cert" || it == "key")
    };
    names.into_iter().flatten().flatten().any(|entry| is_certificate(entry.path()))
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
