use std::os::unix::fs::PermissionsExt as _;

use super::super::{Containerd, Dockerd, K3s, Mirrors, Podman};
use super::*;

struct Node(tempfile::TempDir);

impl Node {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    fn entries(&self, hosts: &[&str], port: u16) -> Entries {
        let config = self.path("config.toml");
        let mirrors = Mirrors {
            hosts: hosts.iter().map(|&host| host.to_owned()).collect(),
            containerd: Some(Containerd { certs_dir: self.path("etc/certs.d"), config }),
            podman: Some(Podman {
                file: self.path("etc/conf.d/9.conf"),
                config: self.path("none"),
            }),
            dockerd: Some(Dockerd { file: self.path("etc/daemon.json") }),
            k3s: Some(K3s { file: self.path("etc/k3s/registries.yaml") }),
            rke2: None,
        };
        let endpoint = ([127, 0, 0, 1], port).into();
        let wanted = Wanted { endpoint, mirrors, upstreams: Default::default() };
        Entries::open(wanted, &self.path("state")).unwrap()
    }

    /// Every path, with its permissions and content.
    fn snapshot(&self) -> Vec<(PathBuf, u32, String)> {
        let mut found = Vec::new();
        let mut folders = vec![self.path("etc")];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
                let (path, metadata) = (entry.path(), entry.metadata().unwrap());
                let text = if metadata.is_dir() {
                    String::new()
                } else {
                    fs::read_to_string(&path).unwrap()
                };
                if metadata.is_dir() {
                    folders.push(path.clone());
                }
                found.push((path, metadata.permissions().mode(), text));
            }
        }
        found.sort();
        found
    }
}

#[test]
fn everything_is_as_before_after_it_was_written_and_withdrawn() {
    let node = Node::new();
    node.put("etc/certs.d/docker.io/hosts.toml", "# mine\n[host.\"https://m\"]\n");
    node.put("etc/daemon.json", "{\"debug\": true}");
    fs::set_permissions(node.path("etc/daemon.json"), fs::Permissions::from_mode(0o600)).unwrap();
    let before = node.snapshot();
    let mut entries = node.entries(&["*", "docker.io", "r.io:5000"], 5050);
    let report = entries.write();
    assert_eq!((report.active.len(), report.notes.len()), (4, 0), "{report:?}");
    assert_eq!(report.changed.len(), 6);
    for name in ["_default", "docker.io", "r.io_5000_"] {
        assert!(node.text(&format!("etc/certs.d/{name}/hosts.toml")).contains(":5050"), "{name}");
    }
    assert_ne!(node.snapshot(), before);
    assert_eq!(entries.write().changed, [], "a second time changes nothing");

    // Another process finds what the first one left.
    let report = node.entries(&["*"], 5050).withdraw(true).unwrap();
    assert_eq!((report.notes.len(), report.changed.len()), (0, 6));
    assert_eq!(node.snapshot(), before);
    assert!(!node.path("state/mirrors.json").exists());
}

#[test]
fn an_entry_of_another_port_is_made_anew_from_what_was_there() {
    let node = Node::new();
    node.put("etc/certs.d/_default/hosts.toml", "[host.\"https://m\"]\n");
    let before = node.snapshot();
    node.entries(&["*"], 5050).write();
    let mut later = node.entries(&["*"], 6060);
    later.write();
    let text = node.text("etc/certs.d/_default/hosts.toml");
    assert!(text.contains(":6060") && !text.contains(":5050"), "{text}");
    later.withdraw(true).unwrap();
    assert_eq!(node.snapshot(), before);
}

#[test]
fn what_somebody_else_has_changed_since_is_left_alone() {
    let node = Node::new();
    let mut entries = node.entries(&["*"], 5050);
    entries.write();
    let theirs = node.text("etc/certs.d/_default/hosts.toml") + "# and more\n";
    node.put("etc/certs.d/_default/hosts.toml", &theirs);
    let report = entries.withdraw(true).unwrap();
    assert!(report.notes[0].contains("changed by somebody else"), "{report:?}");
    assert_eq!(node.text("etc/certs.d/_default/hosts.toml"), theirs);
    assert!(!node.path("etc/daemon.json").exists());
}

#[test]
fn what_was_put_back_or_removed_by_others_is_as_it_should_be() {
    let node = Node::new();
    node.put("etc/daemon.json", "{}");
    let before = node.snapshot();
    let mut entries = node.entries(&["*"], 5050);
    entries.write();
    node.put("etc/daemon.json", "{}");
    fs::remove_file(node.path("etc/certs.d/_default/hosts.toml")).unwrap();
    let report = entries.withdraw(true).unwrap();
    assert_eq!(report.notes, Vec::<String>::new());
    assert_eq!(node.snapshot(), before);
}

#[test]
fn a_runtime_that_would_not_notice_keeps_its_entry_until_the_end() {
    let node = Node::new();
    let mut entries = node.entries(&["*"], 5050);
    entries.write();
    let report = entries.withdraw(false).unwrap();
    assert_eq!(Vec::from_iter(report.active), [Runtime::Dockerd, Runtime::K3s]);
    assert!(node.path("etc/daemon.json").exists() && !node.path("etc/conf.d").exists());
    entries.withdraw(true).unwrap();
    assert!(!node.path("etc").exists(), "also the directories that were made");
}

#[test]
fn files_that_cannot_be_put_back_to_the_byte_are_never_touched() {
    let node = Node::new();
    node.put("etc/certs.d/r.io/ca.crt", "a certificate");
    node.put("etc/certs.d/q.io/hosts.toml", "");
    node.put("elsewhere.json", "{}");
    fs::write(node.path("etc/certs.d/q.io/hosts.toml"), b"\xff").unwrap();
    std::os::unix::fs::symlink(node.path("elsewhere.json"), node.path("etc/daemon.json")).unwrap();
    let report = node.entries(&["r.io", "q.io", "*"], 5050).write();
    assert_eq!(fs::read(node.path("etc/certs.d/q.io/hosts.toml")).unwrap(), b"\xff");
    assert_eq!(node.text("elsewhere.json"), "{}");
    for part in ["certificates", "UTF-8", "symbolic link"] {
        assert!(report.notes.iter().any(|note| note.contains(part)), "{part}: {report:?}");
    }
    assert!(report.active.contains(&Runtime::Containerd));
}

#[test]
fn a_registry_that_has_its_own_file_is_named() {
    let node = Node::new();
    node.put("etc/certs.d/docker.io/hosts.toml", "");
    let report = node.entries(&["*"], 5050).write();
    assert!(
        report.notes[0].contains("certs.d/docker.io counts for that registry alone"),
        "{report:?}"
    );
}

#[test]
fn a_record_that_cannot_be_read_keeps_everything_as_it_is() {
    let node = Node::new();
    node.put("state/mirrors.json", "{\"version\": 9, \"files\": []}");
    let wanted = node.entries_error();
    assert!(wanted.contains("reading the record"), "{wanted}");
}

impl Node {
    fn entries_error(&self) -> String {
        let endpoint = ([127, 0, 0, 1], 1).into();
        let wanted =
            Wanted { endpoint, mirrors: Mirrors::default(), upstreams: Default::default() };
        Entries::open(wanted, &self.path("state")).unwrap_err().to_string()
    }
}

#[test]
fn entries_follow_the_registries_that_there_are_caches_of() {
    let node = Node::new();
    node.put("etc/certs.d/a.io/hosts.toml", "server = \"https://a.io\"\n");
    node.put("etc/daemon.json", "{}");
    let before = node.snapshot();
    let mut entries = node.entries(&[], 5050);
    let of = |hosts: &[&str]| hosts.iter().map(|&host| host.to_owned()).collect();
    let urls: BTreeMap<String, Url> =
        [("b.io".to_owned(), "http://10.0.0.2:5000".parse().unwrap())].into();
    assert_eq!(entries.want(of(&["a.io", "docker.io"]), urls.clone()).unwrap(), Report::default());
    entries.write();
    assert!(node.text("etc/certs.d/a.io/hosts.toml").contains("127.0.0.1:5050"));
    assert!(node.text("etc/daemon.json").contains("127.0.0.1:5050"));

    entries.want(of(&["a.io", "b.io"]), urls.clone()).unwrap();
    entries.write();
    assert!(!node.path("etc/certs.d/docker.io").exists());
    assert!(node.text("etc/certs.d/b.io/hosts.toml").contains("127.0.0.1:5050"));
    assert!(node.text("etc/certs.d/b.io/hosts.toml").contains("server = \"http://10.0.0.2:5000\""));
    assert!(node.text("etc/certs.d/a.io/hosts.toml").contains("127.0.0.1:5050"));

    entries.want(of(&["*.gcr.io"]), urls.clone()).unwrap();
    entries.write();
    assert!(node.text("etc/certs.d/_default/hosts.toml").contains("127.0.0.1:5050"));

    entries.want(of(&[]), urls.clone()).unwrap();
    assert_eq!(node.snapshot(), before);
}
