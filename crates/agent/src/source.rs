//! Where the replicas are, as the configuration says.
//!
//! A file that is changed is read again, so that a cache which has moved is found without a restart.
//! Names are looked up again and again; whoever needs no DNS writes addresses.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tokio::net::lookup_host;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::{Host, Url};

use crate::replica::Place;
use crate::settings::{self, Cache, Settings};

/// How often is looked whether the file has changed, and what the names stand for.
const PERIOD: Duration = Duration::from_secs(2);

/// How long looking up a name may take.
const LOOKUP: Duration = Duration::from_secs(5);

/// The caches that the settings name. Follows them until `stopping`.
pub fn configured(
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
        let mut places = Vec::new();
        for cache in &self.caches {
            match places_of(cache).await {
                Ok(found) => places.extend(found),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    warn!(error, "looking up {}", cache.url);
                    return;
                }
            }
        }
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
    let place = |address| Place {
        url: cache.url.clone(),
        address,
        zone: cache.zone.clone(),
        ca: cache.ca.clone(),
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
