//! Where the replicas are, as a cluster's [`RegistryCache`] objects say.
//!
//! Their status has the address of each replica on its node, and the certificates of the authority
//! that signed it. So nothing is asked for but these objects, and, once, the zone of this node; and
//! what is heard needs neither the cluster's names nor its service network.

use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use k8s_openapi::api::core::v1::Node;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use larder_k8s::RegistryCache;
use larder_k8s::cache::Upstream;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use crate::place::Place;

/// The label of a node that names its zone.
const ZONE: &str = "topology.kubernetes.io/zone";

/// How long until a node, or a credential, is asked for again that could not be had.
const AGAIN: Duration = Duration::from_secs(5);

/// All replicas of all caches that nodes are to ask, followed until `stopping`. While the API server
/// is away, those count that were there last.
pub fn watched(client: Client, stopping: CancellationToken) -> watch::Receiver<Option<Vec<Place>>> {
    let (sender, receiver) = watch::channel(None);
    let following = async move {
        let mut client = client;
        loop {
            follow(client.clone(), &sender).await;
            // A kubelet's certificate is another one now and then, and is read with the rest.
            sleep(AGAIN).await;
            match larder_k8s::connect().await {
                Ok(new) => client = new,
                Err(error) => warn!(error = &error as &dyn std::error::Error, "beginning anew"),
            }
        }
    };
    tokio::spawn(async move {
        tokio::select! {
            () = following => {}
            () = stopping.cancelled() => {}
        }
    });
    receiver
}

/// Returns when the API server does not know us any more.
async fn follow(client: Client, sender: &watch::Sender<Option<Vec<Place>>>) {
    let caches: Api<RegistryCache> = Api::all(client);
    let mut known = BTreeMap::new();
    let mut listed = BTreeMap::new();
    // Waits between two attempts, and never ends.
    let mut events = pin!(watcher(caches, watcher::Config::default()).default_backoff());
    loop {
        match events.try_next().await {
            // Nothing is known of all of them until they have been listed.
            Ok(Some(Event::Init)) => {
                listed.clear();
                continue;
            }
            Ok(Some(Event::InitApply(cache))) => {
                listed.insert(key(&cache), places_of(&cache));
                continue;
            }
            Ok(Some(Event::InitDone)) => known = std::mem::take(&mut listed),
            Ok(Some(Event::Apply(cache))) => drop(known.insert(key(&cache), places_of(&cache))),
            Ok(Some(Event::Delete(cache))) => drop(known.remove(&key(&cache))),
            Ok(None) => return,
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "watching the cluster's caches");
                match is_unknown_to_it(&error) {
                    true => return,
                    false => continue,
                }
            }
        }
        say(sender, &known);
    }
}

/// Whether the API server has refused who asks, rather than what is asked.
fn is_unknown_to_it(error: &watcher::Error) -> bool {
    use watcher::Error;
    let status = match error {
        Error::InitialListFailed(kube::Error::Api(status))
        | Error::WatchStartFailed(kube::Error::Api(status))
        | Error::WatchError(status) => status,
        _ => return false,
    };
    status.code == 401
}

/// The namespace and the name.
fn key(cache: &RegistryCache) -> (String, String) {
    (cache.namespace().unwrap_or_default(), cache.name_any())
}

fn say(sender: &watch::Sender<Option<Vec<Place>>>, known: &BTreeMap<(String, String), Vec<Place>>) {
    let mut places: Vec<Place> = known.values().flatten().cloned().collect();
    places.sort_by_key(Place::name);
    sender.send_if_modified(|said| {
        let is_new = said.as_ref() != Some(&places);
        *said = Some(places);
        is_new
    });
}

/// Where the replicas of one cache are; nowhere, if nodes are not to ask it.
fn places_of(cache: &RegistryCache) -> Vec<Place> {
    let Some(status) = cache.status.as_ref().filter(|status| status.mirrored) else {
        return Vec::new();
    };
    let hosts: Vec<String> =
        cache.spec.upstreams.iter().map(|upstream| upstream.upstream.clone()).collect();
    let url = |upstream: &Upstream| {
        let url = upstream.remote_url.as_ref()?.parse().ok()?;
        Some((upstream.upstream.clone(), url))
    };
    let urls: BTreeMap<String, Url> = cache.spec.upstreams.iter().filter_map(url).collect();
    let mut places = Vec::new();
    for endpoint in &status.endpoints {
        let url = match endpoint.url.parse() {
            Ok(url) => url,
            Err(error) => {
                warn!("{} has an endpoint that is no url: {error}", cache.name_any());
                continue;
            }
        };
        places.push(Place {
            url,
            address: None,
            peer: endpoint.peer.clone(),
            zone: endpoint.zone.clone(),
            ca: status.ca_bundle.clone(),
            hosts: hosts.clone(),
            urls: urls.clone(),
        });
    }
    places
}

/// The zone of the node of this name, once the API server says it. `None`: it is in none.
pub async fn zone_of(client: Client, node: &str) -> Option<String> {
    let nodes: Api<Node> = Api::all(client);
    loop {
        match nodes.get_metadata(node).await {
            Ok(node) => {
                let zone = node.labels().get(ZONE).cloned();
                info!("this node is in {}", zone.as_deref().unwrap_or("no zone"));
                return zone;
            }
            Err(error) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "asking which zone the node {node} is in"
                );
                sleep(AGAIN).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kube::Config;
    use larder_k8s::cache::Endpoint;
    use larder_k8s::{RegistryCacheSpec, RegistryCacheStatus};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    /// Or the mirrors of a node would be withdrawn whenever its credential is exchanged.
    #[tokio::test]
    async fn that_there_is_no_cache_is_not_said_before_they_have_been_listed() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        tokio::spawn(async move {
            let refusal = r#"{"kind":"Status","apiVersion":"v1","metadata":{},"status":"Failure","message":"no","reason":"Unauthorized","code":401}"#;
            let head =
                "HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Type: application/json";
            let answer = format!("{head}\r\nContent-Length: {}\r\n\r\n{refusal}", refusal.len());
            loop {
                let (mut socket, _) = server.accept().await.unwrap();
                assert!(socket.read(&mut [0; 4096]).await.unwrap() > 0);
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let client = Client::try_from(Config::new(url.parse().unwrap())).unwrap();
        let (sender, receiver) = watch::channel(None);
        follow(client, &sender).await;
        assert_eq!(*receiver.borrow(), None);
    }

    #[test]
    fn a_cache_is_asked_where_its_status_says_and_for_its_upstreams_while_it_is_mirrored() {
        let upstream = |name: &str| Upstream { upstream: name.to_owned(), ..Upstream::default() };
        let remote_url = Some("https://10.0.0.2:8443".to_owned());
        let upstreams =
            vec![Upstream { remote_url, ..upstream("docker.io") }, upstream("*.gcr.io")];
        let spec = RegistryCacheSpec { upstreams, ..RegistryCacheSpec::default() };
        let mut cache = RegistryCache::new("cache", spec);
        assert_eq!(places_of(&cache), []);
        let endpoint = |url: &str| Endpoint {
            url: url.to_owned(),
            peer: Some("https://10.244.0.7:5000".to_owned()),
            zone: Some("a".to_owned()),
            node: None,
        };
        cache.status = Some(RegistryCacheStatus {
            endpoints: vec![endpoint("https://10.0.0.1:30001"), endpoint("no url")],
            ca_bundle: Some("PEM".to_owned()),
            mirrored: true,
            ..RegistryCacheStatus::default()
        });
        let places = places_of(&cache);
        assert_eq!(places.len(), 1);
        assert_eq!(places[0].name(), "https://10.0.0.1:30001");
        assert_eq!(places[0].known_as(), "https://10.244.0.7:5000");
        assert_eq!(places[0].hosts, ["docker.io", "*.gcr.io"]);
        let (host, url) = places[0].urls.first_key_value().unwrap();
        assert_eq!((host.as_str(), url.as_str()), ("docker.io", "https://10.0.0.2:8443/"));
        assert_eq!((places[0].zone.as_deref(), places[0].ca.as_deref()), (Some("a"), Some("PEM")));
        cache.status.as_mut().unwrap().mirrored = false;
        assert_eq!(places_of(&cache), []);
    }
}
