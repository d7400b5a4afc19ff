//! Podman, CRI-O, Buildah, Skopeo and Apptainer: a file of our own in `registries.conf.d`.
//!
//! They read the files in the order of their names, and a registry that is there again replaces the
//! one before, mirrors and all. So registries that somebody else has configured are left out.
//!
//! Source: containers-registries.conf(5).

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::{COMMENT, Merge, Wanted};

/// What the file is to hold, and what to say about it. `others`: the texts of all other files that
/// are read.
pub(super) fn merged(
    wanted: &Wanted,
    before: Option<&str>,
    others: &[String],
) -> (Merge, Vec<String>) {
    let mut notes = Vec::new();
    if before.is_some() {
        return (Merge::Leave("somebody else has written it".to_owned()), notes);
    }
    let theirs: BTreeSet<String> = others.iter().flat_map(|text| registries(text)).collect();
    let mut text = COMMENT.to_owned();
    let mut n_hosts = 0;
    for host in wanted.named_hosts() {
        if theirs.contains(host) {
            notes.push(format!("{host} is configured elsewhere, and stays as it is"));
            continue;
        }
        n_hosts += 1;
        text.push_str(&entry(host, &wanted.endpoint.to_string(), &wanted.server(host)));
    }
    match n_hosts {
        0 => (Merge::Leave("every registry is configured elsewhere".to_owned()), notes),
        _ => (Merge::Write(text), notes),
    }
}

fn entry(host: &str, endpoint: &str, server: &str) -> String {
    let (scheme, location) = server.split_once("://").unwrap_or(("https", server));
    // Docker Hub is known by its name.
    let location = if host == "docker.io" { host } else { location };
    let insecure = if scheme == "http" { "insecure = true\n" } else { "" };
    format!(
        "\n[[registry]]\nprefix = \"{host}\"\nlocation = \"{location}\"\n{insecure}\
         [[registry.mirror]]\nlocation = \"{endpoint}/{host}\"\ninsecure = true\n"
    )
}

/// The prefixes that a file configures; without one, the location is meant. A file that cannot be
/// read configures nothing: podman refuses it itself.
fn registries(text: &str) -> Vec<String> {
    let Ok(table) = text.parse::<Table>() else { return Vec::new() };
    let registries = table.get("registry").and_then(Value::as_array);
    let name = |registry: &Value| {
        let text = |key| registry.get(key).and_then(Value::as_str).filter(|it| !it.is_empty());
        text("prefix").or(text("location")).map(str::to_owned)
    };
    registries.into_iter().flatten().filter_map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Mirrors;
    use super::*;

    #[test]
    fn the_file_is_the_one_of_the_golden_text() {
        let (merge, notes) = merged(&wanted(&["docker.io", "r.io:5000"]), None, &[]);
        let expected = "\
# Written by `larder agent` while it runs, and removed by it.

[[registry]]
prefix = \"docker.io\"
location = \"docker.io\"
[[registry.mirror]]
location = \"127.0.0.1:5050/docker.io\"
insecure = true

[[registry]]
prefix = \"r.io:5000\"
location = \"10.0.0.1:1\"
insecure = true
[[registry.mirror]]
location = \"127.0.0.1:5050/r.io:5000\"
insecure = true
";
        assert_eq!((merge, notes), (Merge::Write(expected.to_owned()), Vec::new()));
    }

    #[test]
    fn registries_of_others_stay_theirs() {
        let theirs = "[[registry]]\nprefix = \"docker.io\"\nlocation = \"x\"\n[[registry]]\nlocation = \"q.io\"\n";
        let others = [theirs.to_owned(), "]".to_owned()];
        let (merge, notes) = merged(&wanted(&["docker.io", "q.io", "ghcr.io"]), None, &others);
        let Merge::Write(text) = merge else { panic!() };
        assert!(text.contains("ghcr.io") && !text.contains("docker.io"), "{text}");
        assert_eq!(notes.len(), 2);
        let (merge, _) = merged(&wanted(&["docker.io"]), None, &others);
        assert!(matches!(merge, Merge::Leave(_)));
        let (merge, _) = merged(&wanted(&["*"]), Some("theirs"), &[]);
        assert!(matches!(merge, Merge::Leave(_)));
    }

    #[test]
    fn all_registries_are_the_well_known_ones() {
        let (Merge::Write(text), _) = merged(&wanted(&["*", "r.io"]), None, &[]) else { panic!() };
        for host in ["docker.io", "ghcr.io", "quay.io", "r.io"] {
            assert!(text.contains(&format!("prefix = \"{host}\"")), "{host}");
        }
        assert!(text.parse::<Table>().is_ok());
    }

    fn wanted(hosts: &[&str]) -> Wanted {
        let upstreams = [("r.io:5000".to_owned(), "http://10.0.0.1:1".parse().unwrap())].into();
        let hosts = hosts.iter().map(|&host| host.to_owned()).collect();
        let mirrors = Mirrors { hosts, ..Mirrors::default() };
        Wanted { endpoint: "127.0.0.1:5050".parse().unwrap(), mirrors, upstreams }
    }
}
