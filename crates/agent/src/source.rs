//! Where the replicas are, as the configuration says.
//!
//! A file that is changed is read again, so that a cache which has moved is found without a restart;
//! so is the file of an authority.
//! Names are looked up again and again; whoever needs no DNS writes addresses.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::{BoxFuture, ready};
use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::{Host, Url};

use crate::kubernetes;
use crate::place::Place;
use crate::settings::{self, Cache, Settings};

/// How often is looked whether the file has changed, and what the names stand for.
const PERIOD: Duration = Duration::from_secs(2);

/// How long looking up a name may take.
const LOOKUP: Duration = Duration::from_secs(5);

/// Who says where the replicas are.
pub struct Source {
    /// All of them each time, `None` as long as nobody has said it.
    pub places: watch::Receiver<Option<Vec<Place>>>,
    /// The zone of this node, once it is known; `None`: it is in none.
    pub zone: BoxFuture<'static, Option<String>>,
}

/// Begins to follow what the settings name, or the cluster, until `stopping`.
///
/// # Errors
///
/// The settings name a cluster, and there is no way to it.
pub async fn open(
    settings: &Settings,
    stopping: CancellationToken,
) -> Result<Source, larder_k8s::ConnectError> {
    let zone = settings.zone.clone();
    if !settings.kubernetes {
        let places = configured(settings, stopping);
        return Ok(Source { places, zone: ready(zone).boxed() });
    }
    let client = larder_k8s::connect().await?;
    let places = kubernetes::watched(client.clone(), stopping);
    let zone = match (zone, settings.node.clone()) {
        (None, Some(node)) => async move { kubernetes::zone_of(client, &node).await }.boxed(),
        (zone, _) => ready(zone).boxed(),
    };
    Ok(Source { places, zone })
}

/// Where each cache is that is named here, now.
///
/// # Errors
///
/// A name stands for nothing at the moment, or an authority's file cannot be read.
pub(crate) async fn named_places(caches: &[Cache]) -> std::io::Result<Vec<Place>> {
    let mut places = Vec::new();
    for cache in caches {
        places.extend(places_of(cache).await.map_err(|error| {
            std::io::Error::new(error.kind(), format!("{}: {error}", cache.url))
        })?);
    }
    Ok(places)
}

/// The caches that the settings name. Follows them until `stopping`.
fn configured(
    settings: &Settings,
    stopping: CancellationToken,
) -> watch::Receiver<Option<Vec<Place>>> {
    let (sender, receiver) = watch::channel(None);
    let mut following = Following {
        file: settings.caches_file.clone(),
        seen: None,
        caches: settings.caches.clone(),
    };
    following.seen = following.stamp();
    tokio::spawn(async move {
        loop {
            following.read_if_changed();
            following.say(&sender).await;
            tokio::select! {
                () = stopping.cancelled() => return,
                () = sleep(PERIOD) => {}
            }
        }
    });
    receiver
}

struct Following {
    file: Option<PathBuf>,
    /// When the file was written that was read last, and how long it was.
    seen: Option<(SystemTime, u64)>,
    caches: Vec<Cache>,
}

impl Following {
    fn stamp(&self) -> Option<(SystemTime, u64)> {
        let metadata = self.file.as_ref()?.metadata().ok()?;
        Some((metadata.modified().ok()?, metadata.len()))
    }

    /// A file of some KiB; nobody waits for this task.
    fn read_if_changed(&mut self) {
        let stamp = self.stamp();
        let Some(file) = self.file.as_ref().filter(|_| stamp.is_some() && stamp != self.seen)
        else {
            return;
        };
        self.seen = stamp;
        match settings::caches_in(file) {
            Ok(caches) => {
                info!("{} has changed: {} caches", file.display(), caches.len());
                self.caches = caches;
            }
            Err(mistake) => warn!("going on with the caches of before: {mistake}"),
        }
    }

    /// Says what is known, unless some name stands for nothing at the moment: what it stood for last
    /// is then more than what can be said now.
    async fn say(&self, sender: &watch::Sender<Option<Vec<Place>>>) {
        let mut places = match named_places(&self.caches).await {
            Ok(places) => places,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "finding the caches");
                return;
            }
        };
        places.sort_by_key(Place::name);
        sender.send_if_modified(|said| {
            let is_new = said.as_ref() != Some(&places);
            *said = Some(places);
            is_new
        });
    }
}

/// Each address that the cache's host has.
async fn places_of(cache: &Cache) -> std::io::Result<Vec<Place>> {
    let ca = match &cache.ca {
        Some(file) => Some(tokio::fs::read_to_string(file).await?),
        None => None,
    };
    let place = |address| Place {
        url: cache.url.clone(),
        address,
        peer: None,
        zone: cache.zone.clone(),
        ca: ca.clone(),
        hosts: Vec::new(),
        urls: BTreeMap::new(),
    };
    match named(&cache.url) {
        None => Ok(vec![place(None)]),
        Some((name, port)) => {
            let found = timeout(LOOKUP, lookup_host((name, port))).await??;
            Ok(found.map(|address: SocketAddr| place(Some(address))).collect())
        }
    }
}

fn named(url: &Url) -> Option<(&str, u16)> {
    match url.host()? {
        Host::Domain(name) => Some((name, url.port_or_known_default()?)),
        Host::Ipv4(_) | Host::Ipv6(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_stands_for_every_address_that_it_has_and_an_address_for_itself() {
        let cache = |url: &str| Cache { url: url.parse().unwrap(), zone: None, ca: None };
        let names = async |url: &str| {
            let places = places_of(&cache(url)).await.unwrap();
            places.iter().map(Place::name).collect::<Vec<_>>()
        };
        assert!(
            names("https://localhost:5000").await.contains(&"https://127.0.0.1:5000".to_owned())
        );
        assert_eq!(names("http://[::1]:5000").await, ["http://[::1]:5000"]);
        assert!(places_of(&cache("http://nowhere.invalid:1")).await.is_err());
    }
}
