//! Reading `peers`.

use std::path::PathBuf;

use super::Peer;
use super::certificate::authorities;
use super::document::{Node, Section};
use super::files::Files;
use super::mistake::{Located, Mistakes, Wrong, wrong};
use super::upstream::HTTP;
use super::value::{self, shown};

/// The most entries, and the most replicas that are known at a time: each has a pool of connections.
/// One owner fills a blob for all of them, so hundreds would want more than this.
pub(crate) const MAX_PEERS: usize = 64;

/// What is before the URL of a name that stands for several replicas.
const BY_DNS: &str = "dns+";

/// The other replicas as they are configured, with the places that matter beside other keys.
#[derive(Debug, Default)]
pub(super) struct Peers {
    pub(super) entries: Vec<Located<Peer>>,
    pub(super) ca: Option<Located<PathBuf>>,
}

impl Peers {
    pub(super) fn read(root: &mut Section<'_>, files: &dyn Files, mistakes: &mut Mistakes) -> Self {
        let entries = root.take("peers").map(|node| entries(&node, mistakes)).unwrap_or_default();
        let ca = root.take("peers_ca").and_then(|node| {
            let path = node.text().and_then(|text| Ok(authorities(text, files)?.0));
            mistakes.keep(node.at, path)
        });
        Self { entries, ca }
    }

    /// What is wrong with them beside each other, and beside where this process listens.
    /// `is_reachable`: whether it listens where another machine can reach it. `are_found`: whether
    /// replicas find each other without being configured.
    pub(super) fn check(&self, is_reachable: bool, are_found: bool, mistakes: &mut Mistakes) {
        for (index, Located { at, value }) in self.entries.iter().enumerate() {
            if let Some(first) = self.entries[..index].iter().find(|it| it.value == *value) {
                let twice = wrong(format!("{} is there already", first.value));
                mistakes.note(at, twice.advise("remove it"));
            }
        }
        if let Some(many) = self.entries.get(MAX_PEERS) {
            mistakes.note(&many.at, wrong("is one too many").write(format!("at most {MAX_PEERS}")));
        }
        let elsewhere = self.entries.iter().find(|it| !value::is_on_loopback(it.value.url()));
        if let (Some(Located { at, .. }), false) = (elsewhere, is_reachable) {
            let alone =
                wrong("no other replica can reach this one, which listens on loopback only");
            mistakes.note(at, alone.advise("set `listen` to an address that they reach"));
        }
        let is_encrypted =
            are_found || self.entries.iter().any(|it| it.value.url().scheme() == "https");
        if let (Some(Located { at, .. }), false) = (&self.ca, is_encrypted) {
            let useless = wrong("no peer is asked by https");
            mistakes.note(at, useless.advise("remove it, or write https URLs in `peers`"));
        }
    }
}

fn entries(node: &Node<'_>, mistakes: &mut Mistakes) -> Vec<Located<Peer>> {
    let items = node.items();
    if items.is_empty() {
        mistakes.note(&node.at, wrong("is empty").advise("remove it, or write one"));
    }
    let keep = |item: Node<'_>| {
        let peer = item.text().and_then(peer);
        mistakes.keep(item.at, peer)
    };
    items.into_iter().filter_map(keep).collect()
}

/// `http://10.0.0.1:5000`, or `dns+http://larder:5000`
fn peer(text: &str) -> Result<Peer, Wrong> {
    let Some(text) = text.strip_prefix(BY_DNS) else {
        return Ok(Peer::At(value::base_url(text, &HTTP)?));
    };
    let url = value::base_url(text, &HTTP)?;
    match url.domain() {
        Some(_) => Ok(Peer::Named(url)),
        None => Err(wrong(format!("`{}` is an address, and no name", shown(text)))
            .write(format!("{url} without {BY_DNS}"))),
    }
}
