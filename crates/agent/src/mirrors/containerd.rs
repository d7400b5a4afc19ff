//! containerd: `certs.d/HOST/hosts.toml`, and whether it reads those at all.
//!
//! Source: containerd `docs/hosts.md`; for what 1.6, 1.7 and 2.1 do with them, the whole-program
//! tests.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use toml::de::DeTable;
use toml::{Table, Value};

use super::{COMMENT, Merge, Wanted};

/// The directory for registries that have none of their own.
const DEFAULT: &str = "_default";

/// How long a connection may take, where it is known (since 2.1): the endpoint is on loopback. Older
/// ones ignore the key.
const DIAL_TIMEOUT: &str = "1s";

/// The name of the directory for `host`, given the names that are there. containerd looks for
/// `HOST_PORT_` first, so making that one would hide a `HOST:PORT` that is somebody's.
pub(super) fn directory(host: &str, is_there: impl Fn(&str) -> bool) -> String {
    match host.rsplit_once(':') {
        _ if host == "*" => DEFAULT.to_owned(),
        Some((name, port)) => {
            let escaped = format!("{name}_{port}_");
            if !is_there(&escaped) && is_there(host) { host.to_owned() } else { escaped }
        }
        None => host.to_owned(),
    }
}

/// What `hosts.toml` of `host` is to hold.
pub(super) fn merged(wanted: &Wanted, host: &str, before: Option<&str>) -> Merge {
    let url = wanted.url();
    let Some(before) = before else {
        // Without `server`, the registry itself is the last to be asked.
        let server = match host {
            "*" => String::new(),
            host => format!("server = \"{}\"\n\n", wanted.server(host)),
        };
        return Merge::Write(format!("{COMMENT}{server}{}", block(&url)));
    };
    match insert(before, &url) {
        Ok(Some(text)) => Merge::Write(text),
        Ok(None) => Merge::There,
        Err(why) => Merge::Leave(why),
    }
}

/// Only capabilities that every version knows: an unknown one makes containerd ignore the file.
fn block(url: &str) -> String {
    format!(
        "[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n  dial_timeout = \"{DIAL_TIMEOUT}\"\n"
    )
}

/// `before` with our block in front of all other hosts: they are asked in the order of the file.
/// Nothing else of it changes, not a space. `None`: the host is there already.
fn insert(before: &str, url: &str) -> Result<Option<String>, String> {
    let not_toml = |_| "it is no TOML".to_owned();
    let document = DeTable::parse(before).map_err(not_toml)?;
    let first = match document.get_ref().get("host") {
        None => None,
        Some(hosts) => {
            let hosts = hosts.get_ref().as_table().ok_or("its `host` is no table")?;
            if hosts.contains_key(url) {
                return Ok(None);
            }
            hosts.iter().map(|(name, _)| name.span().start).min()
        }
    };
    let at = match first {
        None => before.len(),
        Some(start) => {
            let line = before[..start].rfind('\n').map_or(0, |end| end + 1);
            if !before[line..].trim_start().starts_with("[host.") {
                return Err("its hosts are not written as [host.\"…\"]".to_owned());
            }
            above_comments(before, line)
        }
    };
    let (head, tail) = before.split_at(at);
    let gap = if head.is_empty() || head.ends_with('\n') { "" } else { "\n" };
    let after = format!("{head}{gap}{COMMENT}{}{tail}", block(url));
    match adds_only(before, &after, url) {
        true => Ok(Some(after)),
        false => Err("another host cannot be put into it without changing it".to_owned()),
    }
}

/// The beginning of the comments that stand right above the line at `line`: they are about it.
fn above_comments(text: &str, line: usize) -> usize {
    let mut at = line;
    while at > 0 {
        let previous = text[..at - 1].rfind('\n').map_or(0, |end| end + 1);
        if !text[previous..at].trim_start().starts_with('#') {
            break;
        }
        at = previous;
    }
    at
}

/// Whether `after` is `before` with the host `url`, first, and nothing else.
fn adds_only(before: &str, after: &str, url: &str) -> bool {
    let (Ok(before), Ok(mut table)) = (before.parse::<Table>(), after.parse::<Table>()) else {
        return false;
    };
    let Some(hosts) = table.get_mut("host").and_then(Value::as_table_mut) else { return false };
    let is_there = hosts.remove(url).is_some();
    let is_only_ours = hosts.is_empty() && !before.contains_key("host");
    if is_only_ours {
        table.remove("host");
    }
    is_there && table == before && first_host(after).as_deref() == Some(url)
}

fn first_host(text: &str) -> Option<String> {
    let document = DeTable::parse(text).ok()?;
    let hosts = document.get_ref().get("host")?.get_ref().as_table()?;
    let first = hosts.iter().min_by_key(|(name, _)| name.span().start)?;
    Some(first.0.get_ref().to_string())
}

/// What containerd's configuration says about mirrors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// It reads the directory.
    Active,
    /// It does not, or not always; what to change.
    Inactive {
        /// The line to change, counted from 1; `None`: there is none yet.
        line: Option<usize>,
        /// What to write.
        advice: String,
    },
}

impl Finding {
    fn inactive(line: Option<usize>, advice: String) -> Self {
        Self::Inactive { line, advice }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Active => f.write_str("it reads the mirror entries"),
            Self::Inactive { line: Some(line), advice } => write!(f, "line {line}: {advice}"),
            Self::Inactive { line: None, advice } => f.write_str(advice),
        }
    }
}

/// The plugins that pull, in the words of the configuration's version.
const PLUGINS_2: [&[&str]; 1] = [&["io.containerd.grpc.v1.cri", "registry"]];
const PLUGINS_3: [&[&str]; 2] =
    [&["io.containerd.cri.v1.images", "registry"], &["io.containerd.transfer.v1.local"]];
const PLUGINS_1: [&[&str]; 1] = [&["cri", "registry"]];

/// Says whether a containerd with the configuration `text` (`None`: there is no such file) looks for
/// mirrors in `certs_dir`, and otherwise what to change. Each place that is wrong is a finding.
pub fn check(text: Option<&str>, certs_dir: &Path) -> Vec<Finding> {
    let certs_dir = certs_dir.display().to_string();
    let Ok(document) = DeTable::parse(text.unwrap_or_default()) else {
        return vec![Finding::inactive(None, "the configuration is no TOML".to_owned())];
    };
    let root = document.get_ref();
    let version = root.get("version").and_then(|it| it.get_ref().as_integer());
    let plugins: &[&[&str]] = match version.map(|version| version.as_str()) {
        Some("3") => &PLUGINS_3,
        Some("2") => &PLUGINS_2,
        // Without a file its defaults count, which mirror nothing in 1.x.
        None if text.is_none() => &PLUGINS_2,
        _ => &PLUGINS_1,
    };
    let mut findings = Vec::new();
    for path in plugins {
        let mut table = root.get("plugins").and_then(|it| it.get_ref().as_table());
        for key in *path {
            table = table.and_then(|it| it.get(*key)).and_then(|it| it.get_ref().as_table());
        }
        let line = |at: usize| 1 + text.unwrap_or_default()[..at].matches('\n').count();
        let section = format!(
            "[plugins.\"{}\"{}]",
            path[0],
            path.get(1).map_or(String::new(), |it| format!(".{it}"))
        );
        let wanted = format!("config_path = \"{certs_dir}\"");
        let advice = format!("write `{wanted}` under {section}, then restart containerd");
        match table.and_then(|it| it.get_key_value("config_path")) {
            None => findings.push(Finding::inactive(None, advice)),
            Some((key, value)) => {
                let value = value.get_ref().as_str().unwrap_or_default();
                // The transfer service takes a list for the name of one directory.
                let is_one = path.len() == 1;
                let names: HashSet<&str> =
                    if is_one { [value].into() } else { value.split(':').collect() };
                if !names.contains(certs_dir.as_str()) {
                    findings.push(Finding::inactive(Some(line(key.span().start)), advice));
                }
            }
        }
    }
    if findings.is_empty() { vec![Finding::Active] } else { findings }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Mirrors;
    use super::*;

    const URL: &str = "http://127.0.0.1:5050";

    #[test]
    fn a_new_file_names_the_registry_itself_last() {
        let text = |host| match merged(&wanted(), host, None) {
            Merge::Write(text) => text,
            other => panic!("{other:?}"),
        };
        assert_eq!(
            text("docker.io"),
            "# Written by `larder agent` while it runs, and removed by it.\n\
             server = \"https://registry-1.docker.io\"\n\n\
             [host.\"http://127.0.0.1:5050\"]\n  capabilities = [\"pull\", \"resolve\"]\n  \
             dial_timeout = \"1s\"\n"
        );
        assert!(!text("*").contains("server"));
        assert!(text("r.io").contains("server = \"http://10.0.0.1:1\"\n"));
    }

    #[test]
    fn what_others_wrote_stays_to_the_letter_behind_ours() {
        let before = "server = \"https://r.io\" # keep\n\n# the proxy\n# of the site\n[host.\"https://p.io\"]\n  capabilities = [\"pull\"]\n\n  [host.\"https://p.io\".header]\n    x = \"1\"\n[host.\"https://q.io\"]\n";
        let Merge::Write(after) = merged(&wanted(), "r.io", Some(before)) else { panic!() };
        let ours = format!("{COMMENT}{}", block(URL));
        assert_eq!(after.replace(&ours, ""), before);
        assert!(after.find(&ours).unwrap() < after.find("# the proxy").unwrap());
        assert_eq!(merged(&wanted(), "r.io", Some(&after)), Merge::There);
        let Merge::Write(after) = merged(&wanted(), "r.io", Some("server = \"https://r.io\""))
        else {
            panic!()
        };
        assert!(after.starts_with("server = \"https://r.io\"\n# Written"), "{after}");
    }

    #[test]
    fn what_cannot_be_merged_without_loss_is_left_alone() {
        for before in [
            "host = { \"https://p.io\" = {} }\n",
            "[host]\n\"https://p.io\" = {}\n",
            "host.\"https://p.io\".skip_verify = true\n",
            "[host]\n[host.\"https://p.io\"]\n",
            "host = 1\n",
            "[[[",
        ] {
            match merged(&wanted(), "r.io", Some(before)) {
                Merge::Leave(_) => {}
                // A table header before it does no harm.
                Merge::Write(after) => assert!(adds_only(before, &after, URL), "{before}"),
                Merge::There => panic!("{before}"),
            }
        }
    }

    #[test]
    fn a_directory_that_is_there_is_the_one() {
        assert_eq!(directory("*", |_| false), "_default");
        assert_eq!(directory("r.io", |_| false), "r.io");
        assert_eq!(directory("r.io:5000", |_| false), "r.io_5000_");
        assert_eq!(directory("r.io:5000", |name| name == "r.io:5000"), "r.io:5000");
        assert_eq!(directory("r.io:5000", |_| true), "r.io_5000_");
    }

    #[test]
    fn the_check_says_which_line_to_change() {
        let check = |text: Option<&str>| {
            let findings = check(text, Path::new("/etc/containerd/certs.d"));
            findings.iter().map(Finding::to_string).collect::<Vec<_>>().join("\n")
        };
        let active = Finding::Active.to_string();
        let v2 = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = ";
        assert_eq!(check(Some(&format!("{v2}\"/etc/containerd/certs.d\"\n"))), active);
        assert_eq!(check(Some(&format!("{v2}\"/a:/etc/containerd/certs.d\"\n"))), active);
        let other = check(Some(&format!("{v2}\"/other\"\n")));
        assert!(
            other.starts_with("line 3: write `config_path = \"/etc/containerd/certs.d\"`"),
            "{other}"
        );
        assert!(check(Some("version = 2\n")).starts_with("write `config_path"));
        assert!(check(None).contains("io.containerd.grpc.v1.cri"));
        let v3 = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d'\n[plugins.'io.containerd.transfer.v1.local']\n";
        let half = check(Some(v3));
        assert!(
            half.contains("io.containerd.transfer.v1.local") && !half.contains("images"),
            "{half}"
        );
        let list = format!("{v3}config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n");
        assert!(check(Some(&list)).starts_with("line 5: "));
        assert_eq!(check(Some(&format!("{v3}config_path = '/etc/containerd/certs.d'\n"))), active);
        assert!(check(Some("]")).contains("no TOML"));
    }

    proptest! {
        /// Whatever others have written.
        #[test]
        fn an_edit_only_adds_or_is_not_done(lines in prop::collection::vec(line(), 0..8)) {
            let before = lines.concat();
            if let Merge::Write(after) = merged(&wanted(), "r.io", Some(&before)) {
                prop_assert!(adds_only(&before, &after, URL), "{}", after);
                let ours = COMMENT.to_owned() + &block(URL);
                let without = after.replacen(&ours, "", 1);
                prop_assert!(without == before || without == format!("{before}\n"), "{}", after);
            }
        }

        #[test]
        fn no_configuration_makes_the_check_panic(lines in prop::collection::vec(line(), 0..8), text in "\\PC{0,40}") {
            let _ = check(Some(&(lines.concat() + &text)), Path::new("/c"));
        }
    }

    fn line() -> impl Strategy<Value = String> {
        prop_oneof![
            Just("server = \"https://r.io\"\n".to_owned()),
            Just("# a comment\n".to_owned()),
            Just("\n".to_owned()),
            Just("[host]\n".to_owned()),
            Just("[header]\nx = 1\n".to_owned()),
            "[a-c]".prop_map(|it| format!(
                "[host.\"https://{it}\"] # x\n  capabilities = [\"pull\"]\n"
            )),
            "[a-c]".prop_map(|it| format!("  [host.\"https://{it}\".header]\n  y = [1,\n2]")),
            "[a-c]".prop_map(|it| format!("text{it} = \"\"\"\n[host.\"https://z\"]\n\"\"\"\n")),
            "[a-c]".prop_map(|it| format!("host.\"https://{it}\" = {{}}\n")),
        ]
    }

    fn wanted() -> Wanted {
        let upstreams = [("r.io".to_owned(), "http://10.0.0.1:1".parse().unwrap())].into();
        let endpoint = "127.0.0.1:5050".parse().unwrap();
        Wanted { endpoint, mirrors: Mirrors::default(), upstreams }
    }
}
