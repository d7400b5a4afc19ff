//! Whether all of the way works, from a runtime through the agent to the cache, and how long each
//! part of it takes.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use http::{HeaderMap, Method, StatusCode};
use larder_core::Digest;
use larder_core::builtin::{self, Content};
use larder_cri::Client as Runtime;
use larder_upstream::{Observer, Replica, ReplicaSettings};
use url::Url;
use uuid::Uuid;

use crate::known::LastKnown;
use crate::place::Place;
use crate::settings::Settings;
use crate::source;

/// How long one part may take.
const LIMIT: Duration = Duration::from_secs(10);

/// How long a pull may take; busy disks were seen to take seconds.
const PULL: Duration = Duration::from_secs(60);

/// One part of the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hop {
    /// `agent`, `cache`, `manifest`, `layer` or `containerd`.
    pub name: &'static str,
    /// Where that is.
    pub place: String,
    /// How long it took, or what is wrong, for a person.
    pub result: Result<Duration, String>,
}

/// Tries each part of the way, also if one before does not work; but for the pull, which then cannot.
pub async fn run(settings: &Settings) -> Vec<Hop> {
    let agent = format!("http://{}", settings.listen);
    let endpoint = agent.parse().map_err(|error: url::ParseError| error.to_string());
    let endpoint = endpoint.and_then(|url| replica(url, None, None));
    let mut hops = vec![hop("agent", &agent, is_there(&endpoint)).await];
    match places(settings).await {
        Ok(places) => {
            for place in places {
                hops.push(hop("cache", &place.name(), is_replica(&place)).await);
            }
        }
        Err(why) => hops.push(hop("cache", "nowhere", async { Err(why) }).await),
    }
    let through = "through the agent";
    for (name, path, content) in [
        ("manifest", "manifests/1".to_owned(), builtin::index()),
        ("layer", format!("blobs/{}", builtin::layer().digest), builtin::layer()),
    ] {
        let path = format!("v2/{}/{path}", builtin::REPOSITORY);
        hops.push(hop(name, through, is_served(&endpoint, path, content)).await);
    }
    let socket = &settings.containerd_address;
    let has_image = hops.iter().rev().take(2).all(|hop| hop.result.is_ok());
    let pulled = async {
        match has_image {
            true => pull(socket).await,
            false => Err("not tried, as the agent does not have the image for it".to_owned()),
        }
    };
    hops.push(hop("containerd", "pulled through the agent", pulled).await);
    hops
}

async fn hop(
    name: &'static str,
    place: &str,
    work: impl Future<Output = Result<(), String>>,
) -> Hop {
    let since = Instant::now();
    let result = work.await.map(|()| since.elapsed());
    Hop { name, place: place.to_owned(), result }
}

async fn is_there(endpoint: &Result<Replica, String>) -> Result<(), String> {
    match ask(endpoint, "v2/".to_owned()).await?.0 {
        StatusCode::OK => Ok(()),
        status => Err(format!("it answers {status}: no replica of the cache is there for it")),
    }
}

/// Where the cache is: as the settings say, or as the agent was told last.
async fn places(settings: &Settings) -> Result<Vec<Place>, String> {
    if !settings.kubernetes {
        let places = source::named_places(&settings.caches).await;
        return places.map_err(|error| error.to_string());
    }
    let places = LastKnown::in_directory(&settings.state).read().await;
    match places.is_empty() {
        true => Err("the agent has not been told by the cluster where a cache is".to_owned()),
        false => Ok(places),
    }
}

async fn is_replica(place: &Place) -> Result<(), String> {
    let replica = replica(place.url.clone(), place.address, place.ca.clone())?;
    replica.greet().await.map(drop).map_err(|error| with_causes(&error))
}

fn replica(url: Url, address: Option<SocketAddr>, ca: Option<String>) -> Result<Replica, String> {
    let settings = ReplicaSettings {
        url,
        address,
        ca,
        me: format!("self-test-{}", Uuid::now_v7()),
        connect_timeout: LIMIT,
        read_timeout: LIMIT,
    };
    Replica::new(&settings, Arc::new(Unobserved)).map_err(|error| with_causes(&error))
}

/// The status of an answer, and its body.
async fn ask(
    endpoint: &Result<Replica, String>,
    path: String,
) -> Result<(StatusCode, Vec<u8>), String> {
    let endpoint = endpoint.as_ref().map_err(Clone::clone)?;
    let query = format!("ns={}", builtin::HOST);
    let passed = endpoint.pass(Method::GET, &path, Some(&query), HeaderMap::new()).await;
    let mut passed =
        passed.map_err(|error| format!("{}; does the agent run?", with_causes(&error)))?;
    let mut bytes = Vec::new();
    while let Some(piece) = passed.body.next().await {
        bytes.extend_from_slice(&piece.map_err(|error| with_causes(&error))?);
    }
    Ok((passed.status, bytes))
}

async fn is_served(
    endpoint: &Result<Replica, String>,
    path: String,
    content: &Content,
) -> Result<(), String> {
    match ask(endpoint, path).await? {
        (StatusCode::OK, bytes) if Digest::sha256_of(&bytes) == content.digest => Ok(()),
        (StatusCode::OK, _) => Err("other bytes came; is the cache another version?".to_owned()),
        (status, _) => Err(format!("the answer is {status}")),
    }
}

/// Pulls by the runtime, under a name that it does not have yet, and has it forget the image.
async fn pull(socket: &Path) -> Result<(), String> {
    let runtime = Runtime::connect(socket).await;
    let runtime =
        runtime.map_err(|error| format!("{}: {}", socket.display(), with_causes(&error)))?;
    let tag = Uuid::now_v7().simple();
    let reference = format!("{}/{}:{tag}", builtin::HOST, builtin::REPOSITORY);
    let pulled = runtime.pull_image(&reference, None, PULL).await;
    // Whatever it has of it.
    let _ = runtime.remove_image(&reference).await;
    let advice = "it does not ask the agent: see `larder agent check`";
    pulled.map(drop).map_err(|error| format!("{advice} ({})", with_causes(&error)))
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

struct Unobserved;

impl Observer for Unobserved {
    fn request(&self, _method: &'static str, _code: Option<u16>) {}
    fn bytes(&self, _n: u64) {}
    fn quota(&self, _remaining: u64) {}
}
