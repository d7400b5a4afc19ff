//! K3s and RKE2: `mirrors` in `registries.yaml`, from which they write containerd's files when they
//! start.
//!
//! The file is edited by lines, in the form in which everybody writes it; any other form is left
//! alone.
//!
//! Source: K3s's documentation, "Private Registry Configuration".

use super::{COMMENT, Merge, Wanted};

const KEY: &str = "mirrors:";

/// What `registries.yaml` is to hold.
pub(super) fn merged(wanted: &Wanted, before: Option<&str>) -> Merge {
    let before = before.unwrap_or_default();
    let is_content = |line: &&str| !line.trim().is_empty() && !line.trim_start().starts_with('#');
    if !before.lines().any(|line| is_content(&line)) {
        let text = format!("{before}{COMMENT}{KEY}\n{}", entries(wanted, "  "));
        return Merge::Write(text);
    }
    if !before.lines().filter(is_content).all(is_plain) {
        return Merge::Leave("it is not written in the usual form".to_owned());
    }
    let mut sections = before.lines().filter(|line| line.trim_end() == KEY);
    match (sections.next(), sections.next()) {
        (None, _) if before.lines().any(|line| line.starts_with("mirrors")) => {
            Merge::Leave("its mirrors are not written in the usual form".to_owned())
        }
        (None, _) => {
            let gap = if before.ends_with('\n') { "" } else { "\n" };
            Merge::Write(format!("{before}{gap}{COMMENT}{KEY}\n{}", entries(wanted, "  ")))
        }
        (Some(_), None) => insert(wanted, before),
        (Some(_), Some(_)) => Merge::Leave("it has mirrors twice".to_owned()),
    }
}

/// Whether a line is one of a block: a key, or an item of a list.
fn is_plain(line: &str) -> bool {
    let text = line.trim_start_matches(' ');
    let is_top = text.len() == line.len();
    let is_other = ["---", "...", "%", "?", "&", "!", "|", ">", "{", "}", "]", "\t"]
        .iter()
        .any(|begin| text.starts_with(begin));
    !is_other && !line.contains('\t') && (!is_top || text.contains(':')) && !text.contains("<<:")
}

fn insert(wanted: &Wanted, before: &str) -> Merge {
    let mut at = 0;
    for line in before.split_inclusive('\n') {
        at += line.len();
        if line.trim_end() == KEY {
            break;
        }
    }
    let (head, tail) = before.split_at(at);
    let of_section =
        |line: &&str| line.starts_with(' ') || line.trim().is_empty() || line.starts_with('#');
    let children: Vec<&str> = tail.lines().take_while(of_section).collect();
    let first =
        children.iter().find(|line| line.starts_with(' ') && !line.trim_start().starts_with('#'));
    let indent = first.map_or("  ", |line| &line[..line.len() - line.trim_start().len()]);
    let keys = children.iter().filter_map(|line| line.strip_prefix(indent));
    let keys: Vec<&str> = keys
        .filter(|rest| !rest.starts_with([' ', '#', '-']))
        .filter_map(|rest| {
            rest.trim_end().strip_suffix(':').or(rest.split_once(": ").map(|it| it.0))
        })
        .map(|key| key.trim_matches(['"', '\'']))
        .collect();
    if let Some(host) = wanted.mirrors.hosts.iter().find(|host| keys.contains(&host.as_str())) {
        let has_ours = children.iter().any(|line| line.contains(&wanted.url()));
        return match has_ours {
            true => Merge::There,
            false => Merge::Leave(format!("it has a mirror of {host} already")),
        };
    }
    let gap = if head.ends_with('\n') { "" } else { "\n" };
    Merge::Write(format!("{head}{gap}{}{tail}", entries(wanted, indent)))
}

fn entries(wanted: &Wanted, indent: &str) -> String {
    let url = wanted.url();
    let entry = |host: &String| {
        format!("{indent}\"{host}\":\n{indent}  endpoint:\n{indent}    - \"{url}\"\n")
    };
    wanted.mirrors.hosts.iter().map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Mirrors;
    use super::*;

    const OURS: &str = "  \"*\":\n    endpoint:\n      - \"http://127.0.0.1:5050\"\n";

    #[test]
    fn a_new_file_is_the_one_of_the_golden_text() {
        for before in [None, Some("")] {
            let Merge::Write(text) = merged(&wanted(), before) else { panic!() };
            assert_eq!(text, format!("{COMMENT}mirrors:\n{OURS}"));
        }
    }

    #[test]
    fn what_others_wrote_stays_to_the_letter() {
        let configs = "# ours\nconfigs:\n  \"r.io\":\n    auth:\n      username: u\n";
        let Merge::Write(text) = merged(&wanted(), Some(configs)) else { panic!() };
        assert_eq!(text, format!("{configs}{COMMENT}mirrors:\n{OURS}"));
        let mirrors =
            "mirrors:\n    docker.io:\n        endpoint: [\"https://m\"]\nconfigs:\n  x:\n";
        let Merge::Write(text) = merged(&wanted(), Some(mirrors)) else { panic!() };
        assert_eq!(
            text,
            "mirrors:\n    \"*\":\n      endpoint:\n        - \"http://127.0.0.1:5050\"\n    docker.io:\n        endpoint: [\"https://m\"]\nconfigs:\n  x:\n"
        );
        assert_eq!(merged(&wanted(), Some(&text)), Merge::There);
    }

    #[test]
    fn any_other_form_is_left_alone() {
        for before in [
            "mirrors: {}\n",
            "mirrors:\n  \"*\":\n    endpoint: [\"https://m\"]\n",
            "mirrors:\n  '*':\n    endpoint: [\"https://m\"]\n",
            "---\nmirrors:\n",
            "{\"mirrors\": {}}\n",
            "mirrors:\n\t\"x\":\n",
            "mirrors:\nmirrors:\n",
            "text\n",
        ] {
            assert!(matches!(merged(&wanted(), Some(before)), Merge::Leave(_)), "{before}");
        }
    }

    fn wanted() -> Wanted {
        let endpoint = "127.0.0.1:5050".parse().unwrap();
        Wanted { endpoint, mirrors: Mirrors::default(), upstreams: Default::default() }
    }
}
