//! Docker: `registry-mirrors` in `daemon.json`, for Docker Hub only; it knows no mirrors of others.
//!
//! Source: dockerd's reference, "Daemon configuration file".

use serde_json::Value;

use super::{Merge, Wanted};

const KEY: &str = "registry-mirrors";

/// What `daemon.json` is to hold.
pub(super) fn merged(wanted: &Wanted, before: Option<&str>) -> Merge {
    let url = wanted.url();
    if !wanted.mirrors.hosts.iter().any(|host| host == "*" || host == "docker.io") {
        return Merge::Leave("docker only mirrors docker.io, which is not asked for".to_owned());
    }
    match before.filter(|text| !text.trim().is_empty()) {
        None => Merge::Write(format!("{{\n  \"{KEY}\": [\"{url}\"]\n}}\n")),
        Some(before) => match insert(before, &url) {
            Ok(Some(after)) => Merge::Write(after),
            Ok(None) => Merge::There,
            Err(why) => Merge::Leave(why.to_owned()),
        },
    }
}

/// `before` with `url` as the first mirror. Nothing else of it changes. `None`: it is there already.
fn insert(before: &str, url: &str) -> Result<Option<String>, &'static str> {
    let value: Value = serde_json::from_str(before).map_err(|_| "it is no JSON")?;
    let object = value.as_object().ok_or("it is no object")?;
    let after = match object.get(KEY) {
        None => {
            let at = before.find('{').ok_or("it is no object")? + 1;
            let comma = if object.is_empty() { "" } else { "," };
            format!("{}\n  \"{KEY}\": [\"{url}\"]{comma}{}", &before[..at], &before[at..])
        }
        Some(Value::Array(mirrors)) => {
            if mirrors
                .iter()
                .any(|it| it.as_str().is_some_and(|it| it.trim_end_matches('/') == url))
            {
                return Ok(None);
            }
            let at = array_of_key(before).ok_or("its mirrors cannot be found")?;
            let comma = if mirrors.is_empty() { "" } else { ", " };
            format!("{}\"{url}\"{comma}{}", &before[..at], &before[at..])
        }
        Some(_) => return Err("its mirrors are no list"),
    };
    match adds_only(&value, &after, url) {
        true => Ok(Some(after)),
        false => Err("another mirror cannot be put into it without changing it"),
    }
}

fn adds_only(before: &Value, after: &str, url: &str) -> bool {
    let Ok(mut value) = serde_json::from_str::<Value>(after) else { return false };
    let Some(mirrors) = value.get_mut(KEY).and_then(Value::as_array_mut) else { return false };
    if mirrors.first().and_then(Value::as_str) != Some(url) {
        return false;
    }
    mirrors.remove(0);
    if mirrors.is_empty()
        && before.get(KEY).is_none()
        && let Some(object) = value.as_object_mut()
    {
        object.remove(KEY);
    }
    value == *before
}

/// Behind the `[` of the mirrors in the outermost object of `text`, which is JSON.
fn array_of_key(text: &str) -> Option<usize> {
    let (mut depth, mut last_string) = (0_usize, "");
    let mut rest = text.char_indices();
    while let Some((at, letter)) = rest.next() {
        match letter {
            '"' => {
                let end = end_of_string(&mut rest)?;
                last_string = &text[at + 1..end];
            }
            '{' => depth += 1,
            '[' if depth == 1 && last_string == KEY => return Some(at + 1),
            '[' => depth += 1,
            '}' | ']' => depth = depth.checked_sub(1)?,
            _ => {}
        }
    }
    None
}

fn end_of_string(rest: &mut std::str::CharIndices<'_>) -> Option<usize> {
    while let Some((at, letter)) = rest.next() {
        match letter {
            '\\' => drop(rest.next()),
            '"' => return Some(at),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::Mirrors;
    use super::*;

    const URL: &str = "http://127.0.0.1:5050";

    #[test]
    fn the_mirror_is_added_and_all_else_stays() {
        for (before, after) in [
            ("", "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5050\"]\n}\n"),
            ("{}", "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5050\"]}"),
            (
                "{\n\t\"debug\": true\n}\n",
                "{\n  \"registry-mirrors\": [\"http://127.0.0.1:5050\"],\n\t\"debug\": true\n}\n",
            ),
            (
                "{\"x\": {\"registry-mirrors\": [1]}, \"registry-mirrors\" : [ \"https://m\" ]}",
                "{\"x\": {\"registry-mirrors\": [1]}, \"registry-mirrors\" : [\"http://127.0.0.1:5050\",  \"https://m\" ]}",
            ),
            ("{\"registry-mirrors\": []}", "{\"registry-mirrors\": [\"http://127.0.0.1:5050\"]}"),
        ] {
            assert_eq!(merged(&wanted(), Some(before)), Merge::Write(after.to_owned()));
        }
        let there = "{\"registry-mirrors\": [\"https://m\", \"http://127.0.0.1:5050/\"]}";
        assert_eq!(merged(&wanted(), Some(there)), Merge::There);
        for wrong in ["[]", "{", "{\"registry-mirrors\": 1}"] {
            assert!(matches!(merged(&wanted(), Some(wrong)), Merge::Leave(_)), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn an_edit_only_adds(keys in prop::collection::btree_map("[a-z\\\\\"\\[{-]{0,6}|registry-mirrors", value(), 0..5)) {
            let before = serde_json::to_string(&keys).unwrap();
            let value: Value = serde_json::from_str(&before).unwrap();
            if let Merge::Write(after) = merged(&wanted(), Some(&before)) {
                prop_assert!(adds_only(&value, &after, URL), "{}", after);
            } else {
                prop_assert!(value.get(KEY).is_some_and(|it| !it.is_array()));
            }
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        prop_oneof![
            any::<bool>().prop_map(Value::from),
            "[a-z\\\\\"\\]}]{0,5}".prop_map(Value::from),
            prop::collection::vec("[a-z\"\\[]{0,5}", 0..3).prop_map(Value::from),
            Just(serde_json::json!({"registry-mirrors": ["x"]})),
        ]
    }

    fn wanted() -> Wanted {
        let endpoint = "127.0.0.1:5050".parse().unwrap();
        Wanted { endpoint, mirrors: Mirrors::default(), upstreams: Default::default() }
    }
}
