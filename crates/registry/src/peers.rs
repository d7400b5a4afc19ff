//! The replicas that share what they store: who they are now, and whom to ask for a blob.
//!
//! Every blob has an owner among them ([`larder_core::owner`]), which alone asks the upstream; the
//! others read from the owner as clients do. There is no leader and nothing to agree on: replicas
//! that believe different things about who is there only fetch something twice. They never wait for
//! each other in a circle, since whoever is asked by a replica waits for no further one (see
//! [`crate::fills`]).

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use larder_core::{Digest, owner};
use larder_process::tls::{LoadError, certificates};
use larder_store::Shared;
use parking_lot::RwLock;
use tokio::net::lookup_host;
use tokio::sync::Notify;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;
use uuid::Uuid;

use crate::config::{self, MAX_PEERS};
use crate::metrics::{PeerMetrics, PeerState};
use crate::peer::{Peer, Place};

/// How often DNS is asked who is there, and how long it may take.
const LOOKUP: Duration = Duration::from_secs(5);

/// How often a replica says that it is there: three times before the others take it for gone.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How many peers are asked for one blob before upstream is. More than one is dead at the same time
/// when a zone is, and then each costs the first who asks it some time.
const MAX_ASKED: usize = 2;

/// The replicas. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Peers(Arc<Inner>);

struct Inner {
    me: Arc<str>,
    configured: RwLock<Configured>,
    /// Something else has been configured.
    reconfigured: Notify,
    /// The text of the file of authorities, as it was read last.
    authorities: RwLock<Option<String>>,
    is_unreadable: AtomicBool,
    members: RwLock<Arc<[Arc<Peer>]>>,
    metrics: PeerMetrics,
}

/// What is configured about the replicas.
#[derive(Clone, Default, PartialEq)]
struct Configured {
    entries: Vec<config::Peer>,
    ca: Option<PathBuf>,
}

/// What an entry was found to stand for.
#[derive(Default)]
struct Found {
    places: Vec<Place>,
    has_failed: bool,
}

impl Peers {
    /// Knows nobody before [`Self::follow`] runs.
    pub(crate) fn new(
        entries: Vec<config::Peer>,
        ca: Option<PathBuf>,
        metrics: PeerMetrics,
    ) -> Self {
        Self(Arc::new(Inner {
            me: Uuid::now_v7().to_string().into(),
            configured: RwLock::new(Configured { entries, ca }),
            reconfigured: Notify::new(),
            authorities: RwLock::default(),
            is_unreadable: AtomicBool::new(false),
            members: RwLock::new(Arc::new([]) as Arc<[_]>),
            metrics,
        }))
    }

    /// Has others be the replicas, where they find each other by what is configured.
    pub(crate) fn reconfigure(&self, entries: Vec<config::Peer>, ca: Option<PathBuf>) {
        *self.0.configured.write() = Configured { entries, ca };
        self.0.reconfigured.notify_one();
    }

    /// What this process calls itself.
    pub(crate) fn me(&self) -> &str {
        &self.0.me
    }

    /// Whom to ask for a blob before upstream, in this order: nobody, if it is ours.
    pub(crate) fn before_upstream(&self, digest: &Digest) -> Arc<[Arc<Peer>]> {
        let members = Arc::clone(&self.0.members.read());
        let order = owner::order(digest, members.iter(), |peer| peer.name());
        let there = order.into_iter().filter(|peer| peer.state() != PeerState::Lost);
        let before = there.take_while(|peer| peer.state() != PeerState::Here);
        before.take(MAX_ASKED).cloned().collect()
    }

    /// Keeps up with who is there, until `stopping`.
    pub(crate) async fn follow(self, stopping: CancellationToken) {
        let by_dns = |it: &config::Peer| matches!(it, config::Peer::Named(_));
        let mut last = Configured::default();
        let mut found: Vec<Found> = Vec::new();
        let following = async {
            loop {
                let configured = self.0.configured.read().clone();
                if configured != last {
                    found = configured.entries.iter().map(|_| Found::default()).collect();
                    last = configured.clone();
                }
                for (configured, found) in configured.entries.iter().zip(&mut found) {
                    match self.places(configured).await {
                        Ok(places) => *found = Found { places, has_failed: false },
                        Err(reason) if !found.has_failed => {
                            warn!(reason, "looking up the peers {configured}");
                            found.has_failed = true;
                        }
                        Err(_) => {}
                    }
                }
                self.look_at_authorities().await;
                self.adopt(found.iter().flat_map(|it| it.places.iter().cloned()).collect());
                let is_followed = configured.ca.is_some() || configured.entries.iter().any(by_dns);
                tokio::select! {
                    () = sleep(LOOKUP), if is_followed => {}
                    () = self.0.reconfigured.notified() => {}
                }
            }
        };
        tokio::select! {
            () = following => {}
            () = stopping.cancelled() => {}
        }
    }

    /// Reads the file of authorities again. Connections are made anew when it has changed, so that an
    /// authority can be replaced while replicas run; while there are none in it to be read, the last
    /// ones count.
    async fn look_at_authorities(&self) {
        let Some(path) = self.0.configured.read().ca.clone() else {
            *self.0.authorities.write() = None;
            return;
        };
        match authorities_in(&path).await {
            Ok(text) => {
                *self.0.authorities.write() = Some(text);
                self.0.is_unreadable.store(false, Ordering::Relaxed);
            }
            Err(error) if !self.0.is_unreadable.swap(true, Ordering::Relaxed) => {
                let error = &error as &dyn std::error::Error;
                warn!(error, "the authorities of peers cannot be used, the last ones count");
            }
            Err(_) => {}
        }
    }

    /// Keeps up with who is there by the index that the replicas share, in which this one is at `me`,
    /// until `stopping`. While the index is away, those count that were there last.
    pub(crate) async fn follow_shared(self, shared: Shared, me: Url, stopping: CancellationToken) {
        let name = me.origin().ascii_serialization();
        let mut looked: Option<Instant> = None;
        let following = async {
            loop {
                if looked.is_none_or(|it| it.elapsed() >= LOOKUP) {
                    self.look_at_authorities().await;
                    looked = Some(Instant::now());
                }
                if let Ok(urls) = shared.heartbeat(&name).await {
                    let place = |url: String| {
                        let url = Url::parse(&url).ok()?;
                        let name = url.origin().ascii_serialization();
                        Some(Place { name, url, address: None, ca: None })
                    };
                    self.adopt(urls.into_iter().filter_map(place).collect());
                }
                sleep(HEARTBEAT).await;
            }
        };
        tokio::select! {
            () = following => {}
            () = stopping.cancelled() => {}
        }
        shared.leave(&name).await;
    }

    /// Where those are that an entry stands for.
    async fn places(&self, configured: &config::Peer) -> Result<Vec<Place>, String> {
        let url = match configured {
            config::Peer::At(url) => {
                let (name, url) = (url.origin().ascii_serialization(), url.clone());
                return Ok(vec![Place { name, url, address: None, ca: None }]);
            }
            config::Peer::Named(url) => url,
        };
        let (host, port) = (url.host_str().unwrap_or_default(), url.port_or_known_default());
        let found = timeout(LOOKUP, lookup_host((host, port.unwrap_or_default()))).await;
        let found = found.map_err(|_| "DNS did not answer in time".to_owned())?;
        let mut addresses: Vec<SocketAddr> = found.map_err(|error| error.to_string())?.collect();
        // One with both is one replica, and not two that die together.
        if addresses.iter().any(SocketAddr::is_ipv4) {
            addresses.retain(SocketAddr::is_ipv4);
        }
        let place = |address| Place {
            name: name_of(url, address),
            url: url.clone(),
            address: Some(address),
            ca: None,
        };
        let places: Vec<Place> = addresses.into_iter().map(place).collect();
        match places.is_empty() {
            true => Err("DNS knows the name and no address".to_owned()),
            false => Ok(places),
        }
    }

    /// Has these be the replicas: those who stay stay as they are, new ones are greeted.
    fn adopt(&self, mut places: Vec<Place>) {
        places.sort_by(|one, other| one.name.cmp(&other.name));
        places.dedup_by(|one, other| one.name == other.name);
        // All of them leave out the same ones.
        places.truncate(MAX_PEERS);
        let before = Arc::clone(&self.0.members.read());
        let authorities = self.0.authorities.read().clone();
        let mut members = Vec::new();
        for place in places {
            let place = Place { ca: authorities.clone(), ..place };
            if let Some(peer) = before.iter().find(|peer| *peer.place() == place) {
                members.push(Arc::clone(peer));
                continue;
            }
            let name = place.name.clone();
            match Peer::new(place, Arc::clone(&self.0.me), self.0.metrics.clone()) {
                Ok(peer) => {
                    let peer = Arc::new(peer);
                    info!(peer = name, "sharing with {name}");
                    members.push(Arc::clone(&peer));
                    tokio::spawn(async move { peer.is_there().await });
                }
                Err(error) => {
                    warn!(error = &error as &dyn std::error::Error, "setting up the peer {name}");
                }
            }
        }
        for gone in before.iter().filter(|it| !members.iter().any(|peer| Arc::ptr_eq(peer, it))) {
            info!(peer = gone.name(), "sharing no more with {}", gone.name());
        }
        *self.0.members.write() = members.into();
    }
}

/// The certificates in the file at `path`, as they are written there.
async fn authorities_in(path: &Path) -> Result<String, LoadError> {
    let read = tokio::fs::read_to_string(path).await;
    let text = read.map_err(|source| LoadError::Read { path: path.to_owned(), source })?;
    certificates(path, text.as_bytes())?;
    Ok(text)
}

/// What replicas call the one at `address`, however they found it.
fn name_of(url: &Url, address: SocketAddr) -> String {
    format!("{}://{address}", url.scheme())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Metrics;

    #[tokio::test]
    async fn those_who_stay_stay_as_they_are() {
        let peers = Peers::new(Vec::new(), None, Metrics::default().of_peers());
        peers.adopt(places(&[1, 2]));
        let before = Arc::clone(&peers.0.members.read());
        peers.adopt(places(&[3, 2, 3]));
        let after = Arc::clone(&peers.0.members.read());
        let names: Vec<&str> = after.iter().map(|peer| peer.name()).collect();
        assert_eq!(names, ["http://127.0.0.2:1", "http://127.0.0.3:1"]);
        assert!(Arc::ptr_eq(&before[1], &after[0]));
    }

    #[tokio::test]
    async fn no_more_replicas_are_known_than_may_be_and_few_are_asked_for_one_blob() {
        let peers = Peers::new(Vec::new(), None, Metrics::default().of_peers());
        peers.adopt(places(&(1..=100).collect::<Vec<u8>>()));
        assert_eq!(peers.0.members.read().len(), MAX_PEERS);
        assert_eq!(peers.before_upstream(&Digest::sha256_of(b"")).len(), MAX_ASKED);
    }

    #[tokio::test]
    async fn a_name_stands_for_every_address_that_it_has() {
        let peers = Peers::new(Vec::new(), None, Metrics::default().of_peers());
        let named = |url: &str| config::Peer::Named(Url::parse(url).unwrap());
        let found = peers.places(&named("https://localhost:5000")).await.unwrap();
        let one = found.iter().find(|it| it.name == "https://127.0.0.1:5000").unwrap();
        assert_eq!(one.url.host_str(), Some("localhost"));
        assert!(peers.places(&named("http://nowhere.invalid:1")).await.is_err());
    }

    #[tokio::test]
    async fn another_authority_has_everybody_connected_to_anew() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let authority = || rcgen::generate_simple_self_signed(Vec::new()).unwrap().cert.pem();
        std::fs::write(file.path(), authority()).unwrap();
        let ca = Some(file.path().to_owned());
        let peers = Peers::new(Vec::new(), ca, Metrics::default().of_peers());
        let first = async || {
            peers.look_at_authorities().await;
            peers.adopt(places(&[1]));
            Arc::clone(&peers.0.members.read()[0])
        };
        let before = first().await;
        assert!(Arc::ptr_eq(&before, &first().await));
        std::fs::write(file.path(), "half of one").unwrap();
        assert!(Arc::ptr_eq(&before, &first().await));
        std::fs::write(file.path(), authority()).unwrap();
        assert!(!Arc::ptr_eq(&before, &first().await));
    }

    #[tokio::test]
    async fn who_shares_can_change_while_it_runs() {
        let configured = |n: u8| config::Peer::At(places(&[n]).remove(0).url);
        let peers = Peers::new(vec![configured(1)], None, Metrics::default().of_peers());
        let stopping = CancellationToken::new();
        let following = tokio::spawn(peers.clone().follow(stopping.clone()));
        let names = async |wanted: &[&str]| loop {
            let members = Arc::clone(&peers.0.members.read());
            if members.iter().map(|it| it.name()).eq(wanted.iter().copied()) {
                return;
            }
            tokio::task::yield_now().await;
        };
        names(&["http://127.0.0.1:1"]).await;
        peers.reconfigure(vec![configured(1), configured(2)], None);
        names(&["http://127.0.0.1:1", "http://127.0.0.2:1"]).await;
        stopping.cancel();
        following.await.unwrap();
    }

    fn places(numbers: &[u8]) -> Vec<Place> {
        let place = |n: &u8| {
            let url = Url::parse(&format!("http://127.0.0.{n}:1")).unwrap();
            Place { name: url.origin().ascii_serialization(), url, address: None, ca: None }
        };
        numbers.iter().map(place).collect()
    }
}
