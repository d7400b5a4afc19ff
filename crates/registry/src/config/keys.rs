//! The values of the file's keys, each right for itself.

use std::collections::BTreeMap;

use larder_core::name::Host;
use larder_core::retention::ImagePattern;

use super::document::{Node, Section};
use super::files::Files;
use super::mistake::{Located, Mistakes, Wrong, wrong};
use super::upstream::{self, Configured};
use super::value::{self, shown};
use super::{Budget, Listener};

pub(super) fn text<T>(
    section: &mut Section<'_>,
    mistakes: &mut Mistakes,
    key: &'static str,
    parse: impl FnOnce(&str) -> Result<T, Wrong>,
) -> Option<Located<T>> {
    let node = section.take(key)?;
    let value = node.text().and_then(parse);
    mistakes.keep(node.at, value)
}

pub(super) fn boolean(
    section: &mut Section<'_>,
    mistakes: &mut Mistakes,
    key: &'static str,
) -> Option<Located<bool>> {
    let node = section.take(key)?;
    let value = node.boolean();
    mistakes.keep(node.at, value)
}

/// A key that this version has no use for.
pub(super) fn later(
    section: &mut Section<'_>,
    mistakes: &mut Mistakes,
    key: &'static str,
    advice: &str,
) {
    if let Some(node) = section.take(key) {
        mistakes.note(&node.at, wrong("is not available in this version").advise(advice));
    }
}

pub(super) fn listeners(node: &Node<'_>, mistakes: &mut Mistakes) -> Vec<Located<Listener>> {
    let items = node.items();
    if items.is_empty() {
        let none = wrong("without an address nobody is served");
        mistakes.note(&node.at, none.write("one as in \"127.0.0.1:5000\""));
    }
    let keep = |item: Node<'_>| {
        let listener = item.text().and_then(value::listener);
        mistakes.keep(item.at, listener)
    };
    items.into_iter().filter_map(keep).collect()
}

/// Images that are kept: one, or a list.
pub(super) fn pins(root: &mut Section<'_>, mistakes: &mut Mistakes) -> Vec<ImagePattern> {
    let Some(node) = root.take("pins") else { return Vec::new() };
    let keep = |item: Node<'_>| {
        let pattern = item.text().and_then(value::image_pattern);
        mistakes.keep(item.at, pattern).map(|it| it.value)
    };
    node.items().into_iter().filter_map(keep).collect()
}

pub(super) fn budget(node: &Node<'_>) -> Result<Budget, Wrong> {
    match node.integer() {
        Some(bytes) => value::budget(&bytes.to_string()),
        None => node.text().and_then(value::budget),
    }
}

pub(super) fn hosts(
    root: &mut Section<'_>,
    mistakes: &mut Mistakes,
) -> BTreeMap<String, Located<String>> {
    let Some(node) = root.take("hosts") else { return BTreeMap::new() };
    let Some(section) = mistakes.keep(node.at.clone(), node.section()) else {
        return BTreeMap::new();
    };
    let mut hosts = BTreeMap::new();
    for (name, node) in section.value.entries() {
        let both = host_header(name).and_then(|name| Ok((name, node.text()?.to_owned())));
        let Some(Located { at, value: (name, upstream) }) = mistakes.keep(node.at, both) else {
            continue;
        };
        if hosts.contains_key(&name) {
            mistakes.note(&at, wrong(format!("`{name}` is there already")).advise("remove it"));
        }
        hosts.insert(name, Located { at, value: upstream });
    }
    hosts
}

/// A `Host` header's name: lower case, without port.
fn host_header(name: &str) -> Result<String, Wrong> {
    let lower = name.to_ascii_lowercase();
    let has_port = lower.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
    match has_port || lower.parse::<Host>().is_err() {
        true => Err(wrong(format!("`{}` is not the name of a host", shown(name)))
            .write("the name in the `Host` header, without port")),
        false => Ok(lower),
    }
}

pub(super) fn upstreams(
    root: &mut Section<'_>,
    files: &dyn Files,
    mistakes: &mut Mistakes,
) -> Vec<Configured> {
    let Some(node) = root.take("upstreams") else { return Vec::new() };
    let Some(section) = mistakes.keep(node.at.clone(), node.section()) else { return Vec::new() };
    let mut upstreams: Vec<Configured> = section
        .value
        .entries()
        .into_iter()
        .filter_map(|(name, node)| upstream::read(name, node, files, mistakes))
        .collect();
    // In the order of the file, so that of two with one name it is the second that is wrong.
    upstreams.sort_by(|one, other| one.at.place.cmp(&other.at.place));
    upstreams
}
