//! The upstream itself, for the rest of a body that no replica can send any more.
//!
//! It is asked without a credential: those are the runtime's, and it shows them to nobody here. For a
//! private image the rest cannot be had, and the body is cut off.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use larder_core::Digest;
use larder_core::Host;
use larder_core::name::Named;
use larder_upstream::{Blob, Client, Credentials, Observer, Reach, Settings};
use parking_lot::Mutex;
use tracing::debug;
use url::Url;

use crate::replicas::Replicas;

/// The most upstreams that are remembered; a node pulls from a few.
const MAX_CLIENTS: usize = 32;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const READ_TIMEOUT: Duration = Duration::from_secs(30);

/// Who can be asked.
pub(crate) struct Direct {
    urls: BTreeMap<String, Url>,
    replicas: Replicas,
    clients: Mutex<HashMap<(Host, Url), Client>>,
}

/// Where upstreams are that are not where their name says.
pub(crate) fn default_url(host: &str) -> String {
    match host {
        "docker.io" => "https://registry-1.docker.io".to_owned(),
        host => format!("https://{host}"),
    }
}

impl Direct {
    /// `urls`: where the upstreams are that are elsewhere than their name says, before what is known
    /// with `replicas`.
    pub(crate) fn new(urls: BTreeMap<String, Url>, replicas: Replicas) -> Self {
        Self { urls, replicas, clients: Mutex::default() }
    }

    /// The bytes of a blob from `start` to `last`, included. `None`: they cannot be had.
    pub(crate) async fn blob(
        &self,
        name: &Named,
        digest: &Digest,
        (start, last): (u64, u64),
    ) -> Option<Blob> {
        let client = self.client(&name.host)?;
        match client.blob(&name.repository, digest, Some((start, Some(last)))).await {
            Ok(blob) if blob.start == start => Some(blob),
            Ok(_) => None,
            Err(error) => {
                let error = &error as &dyn std::error::Error;
                debug!(error, "asking {} for the rest of a blob", name.host);
                None
            }
        }
    }

    fn client(&self, host: &Host) -> Option<Client> {
        let configured = self.urls.get(host.as_str()).cloned();
        let configured = configured.or_else(|| self.replicas.url_of(host));
        // Whoever pulls can name any host, so that it is only asked where everybody may.
        let reach = match configured {
            Some(_) => Reach::Anywhere,
            None => Reach::Public { besides: Vec::new() },
        };
        let url = configured.or_else(|| default_url(host.as_str()).parse().ok())?;
        let key = (host.clone(), url.clone());
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&key) {
            return Some(client.clone());
        }
        let settings = Settings {
            host: host.clone(),
            urls: vec![url],
            credentials: Credentials::Anonymous,
            proxy: None,
            ca: None,
            client_certificate: None,
            insecure_skip_verify: false,
            reach,
            max_requests: 64,
            max_rate: None,
            connect_timeout: CONNECT_TIMEOUT,
            read_timeout: READ_TIMEOUT,
        };
        let client = Client::new(settings, Arc::new(Unobserved)).ok()?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Some(client)
    }
}

struct Unobserved;

impl Observer for Unobserved {
    fn request(&self, _method: &'static str, _code: Option<u16>) {}
    fn bytes(&self, _n: u64) {}
    fn quota(&self, _remaining: u64) {}
}
