//! All replicas that are known, and whom a request is for.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use larder_core::{Digest, Host, owner};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use crate::known::LastKnown;
use crate::place::Place;
use crate::replica::Replica;

/// The most replicas that are known at a time: each has a pool of connections and is greeted now and
/// then.
const MAX_REPLICAS: usize = 64;

/// The replicas. Clones are the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Replicas(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// What this process calls itself when it greets.
    me: String,
    zone: RwLock<Option<String>>,
    members: RwLock<Arc<[Arc<Replica>]>>,
    /// Whether somebody has said who they are, now or before.
    is_said: AtomicBool,
}

impl Replicas {
    /// None yet. `zone`: the one that this node is in.
    pub(crate) fn new(me: String, zone: Option<String>) -> Self {
        let members = RwLock::new(Vec::new().into());
        let (zone, is_said) = (RwLock::new(zone), AtomicBool::new(false));
        Self(Arc::new(Inner { me, zone, members, is_said }))
    }

    /// Has this node be in `zone` from now on.
    pub(crate) fn be_in(&self, zone: String) {
        *self.0.zone.write() = Some(zone);
    }

    /// Those that can be asked for `key`, something of the registry `host`: its owner first, and all
    /// who know the same replicas agree on it. Replicas of the own zone go before all others.
    pub(crate) fn order(&self, key: &Digest, host: Option<&Host>) -> Vec<Arc<Replica>> {
        let members = Arc::clone(&self.0.members.read());
        let can_have = |it: &&Arc<Replica>| host.is_none_or(|host| it.is_for(host));
        let live = members.iter().filter(|it| it.may_be_up()).filter(can_have).cloned();
        let mut order = owner::order(key, live, |it| it.known_as());
        let zone = self.0.zone.read();
        if zone.is_some() {
            order.sort_by_key(|it| it.place().zone != *zone);
        }
        order
    }

    /// Whether there is one that may answer.
    pub(crate) fn may_answer(&self) -> bool {
        self.0.members.read().iter().any(|it| it.may_be_up())
    }

    /// Looks whether the others are there, as `one` is silent: whoever has to pass it over should know
    /// by then. Does not wait for what comes of it.
    pub(crate) fn doubt_all_but(&self, one: &Arc<Replica>) {
        let members = Arc::clone(&self.0.members.read());
        for other in members.iter().filter(|it| it.is_in_doubt() && !Arc::ptr_eq(it, one)) {
            let other = Arc::clone(other);
            tokio::spawn(async move { other.is_there().await });
        }
    }

    /// Whether there is a cache of the registry `host`, there or not.
    pub(crate) fn are_for(&self, host: &Host) -> bool {
        self.0.members.read().iter().any(|it| it.is_for(host))
    }

    /// The registries that there are caches of; `None` as long as nobody has said where any is.
    pub(crate) fn hosts(&self) -> Option<BTreeSet<String>> {
        self.0.is_said.load(Ordering::Relaxed).then_some(())?;
        let members = self.0.members.read();
        Some(members.iter().flat_map(|it| it.place().hosts.iter().cloned()).collect())
    }

    /// Where the registries are that are elsewhere than their name says.
    pub(crate) fn urls(&self) -> BTreeMap<String, Url> {
        let members = self.0.members.read();
        members.iter().flat_map(|it| it.place().urls.clone()).collect()
    }

    /// Where the registry `host` is, if that is elsewhere than its name says.
    pub(crate) fn url_of(&self, host: &Host) -> Option<Url> {
        let members = self.0.members.read();
        members.iter().find_map(|it| it.place().urls.get(host.as_str()).cloned())
    }

    /// How many are known, and how many of them are there.
    pub(crate) fn count(&self) -> (usize, usize) {
        let members = self.0.members.read();
        (members.len(), members.iter().filter(|it| it.is_up()).count())
    }

    /// Adopts what `source` says, until `stopping`. Before it has said anything, the last known ones
    /// count.
    pub(crate) async fn follow(
        self,
        mut source: watch::Receiver<Option<Vec<Place>>>,
        last_known: LastKnown,
        stopping: CancellationToken,
    ) {
        if source.borrow().is_none() {
            let places = last_known.read().await;
            if !places.is_empty() {
                self.adopt(places);
            }
        }
        loop {
            let said = source.borrow_and_update().clone();
            if let Some(places) = said {
                last_known.write(places.clone()).await;
                self.adopt(places);
            }
            tokio::select! {
                () = stopping.cancelled() => return,
                changed = source.changed() => if changed.is_err() {
                    // Nobody will say more.
                    return stopping.cancelled().await;
                },
            }
        }
    }

    /// Has `places` be all there are. Those that were known stay as they are.
    fn adopt(&self, mut places: Vec<Place>) {
        places.sort_by_key(Place::name);
        places.dedup_by_key(|place| place.name());
        places.truncate(MAX_REPLICAS);
        let before = Arc::clone(&self.0.members.read());
        let mut members = Vec::new();
        for place in places {
            if let Some(same) = before.iter().find(|it| *it.place() == place) {
                members.push(Arc::clone(same));
                continue;
            }
            let name = place.name();
            match Replica::new(place, &self.0.me) {
                Ok(replica) => {
                    info!(replica = name, "asking {name}");
                    members.push(replica);
                }
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "{name} cannot be asked");
                }
            }
        }
        for gone in before.iter().filter(|it| !members.iter().any(|new| Arc::ptr_eq(new, it))) {
            info!(replica = gone.name(), "asking {} no more", gone.name());
        }
        *self.0.members.write() = members.into();
        self.0.is_said.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_who_stay_stay_as_they_are_and_each_is_there_once() {
        let replicas = Replicas::new("me".to_owned(), None);
        replicas.adopt(vec![place(1, None), place(2, None)]);
        let before = Arc::clone(&replicas.0.members.read());
        replicas.adopt(vec![place(3, None), place(2, None), place(3, None)]);
        let after = Arc::clone(&replicas.0.members.read());
        let names: Vec<&str> = after.iter().map(|it| it.name()).collect();
        assert_eq!(names, ["http://127.0.0.2:1", "http://127.0.0.3:1"]);
        assert!(Arc::ptr_eq(&before[1], &after[0]));
    }

    #[tokio::test]
    async fn the_own_zone_goes_first_and_owners_are_the_ones_that_replicas_agree_on() {
        let places = |zones: [Option<&str>; 3]| {
            zones.iter().zip(1..).map(|(zone, n)| place(n, *zone)).collect::<Vec<_>>()
        };
        let key = Digest::sha256_of(b"blob");
        let order = |mine: Option<&str>, zones| {
            let replicas = Replicas::new("me".to_owned(), mine.map(str::to_owned));
            replicas.adopt(places(zones));
            let order = replicas.order(&key, None);
            order.iter().map(|it| it.name().to_owned()).collect::<Vec<_>>()
        };
        let names = ["http://127.0.0.1:1", "http://127.0.0.2:1", "http://127.0.0.3:1"];
        let agreed = owner::order(&key, names, |it| it);
        assert_eq!(order(None, [Some("a"), Some("b"), None]), agreed);
        for (n, name) in names.iter().enumerate() {
            let mut zones = [Some("b"); 3];
            zones[n] = Some("a");
            let order = order(Some("a"), zones);
            assert_eq!((order[0].as_str(), order.len()), (*name, 3));
        }
    }

    #[tokio::test]
    async fn only_caches_of_a_registry_are_asked_for_what_is_in_it() {
        let replicas = Replicas::new("me".to_owned(), None);
        let of = |n, host: &str| Place { hosts: vec![host.to_owned()], ..place(n, None) };
        replicas.adopt(vec![of(1, "docker.io"), of(2, "*.gcr.io"), of(3, "docker.io")]);
        let n_asked = |host: &str| {
            let host: Host = host.parse().unwrap();
            let order = replicas.order(&Digest::sha256_of(b"blob"), Some(&host));
            assert_eq!(replicas.are_for(&host), !order.is_empty());
            order.len()
        };
        assert_eq!((n_asked("docker.io"), n_asked("eu.gcr.io"), n_asked("quay.io")), (2, 1, 0));
        assert!(replicas.hosts().unwrap().iter().eq(["*.gcr.io", "docker.io"]));
    }

    fn place(n: u8, zone: Option<&str>) -> Place {
        let url = format!("http://127.0.0.{n}:1").parse().unwrap();
        let zone = zone.map(str::to_owned);
        let (address, peer, ca, hosts) = (None, None, None, Vec::new());
        Place { url, address, peer, zone, ca, hosts, urls: BTreeMap::new() }
    }
}
