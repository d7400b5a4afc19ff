//! The pull-through registry: `/v2/` for clients, filled from upstreams, kept in the store.
//!
//! ```text
//! service ── which operation, which upstream ──▶ manifests ─┐
//!                                           ├──▶ blobs ─────┼──▶ store ── what replicas share
//!                                           ├──▶ tags       └──▶ fills ── source ── course ──▶ bucket, peers, upstream
//!                                           ├──▶ referrers
//!                                           └──▶ catalog
//! ```
//!
//! - [`config`]: what `serve` can be told;
//! - `service`: from a request to the part that answers it, with logs and metrics;
//! - `manifests`, `blobs`, `tags`, `referrers`, `catalog`: one operation each, and the decisions that go with it;
//! - `callers`, `rights`: who may read what, where upstream says so for each caller;
//! - `fills`, `fill`, `source`: one fetch of one blob, however many wait for it;
//! - `course`, `peers`, `peer`: whom it is asked for, and the replicas among those;
//! - `content`, `respond`, `refusal`: what clients are sent;
//! - `builtin`: the image that is there whatever the upstreams;
//! - `upstreams`, `upstream`, `roster`, `reload`: where content comes from, which may change meanwhile;
//! - `tier`: whether what replicas share is there;
//! - `verify`: reading again what is stored, and fetching again what is bad;
//! - `warm`, `export`, `intake`: images fetched ahead, taken away and brought;
//! - `api`: the REST API for people and programs that run the cache.
//!
//! Invariants:
//! - no body ends cleanly unless its bytes are what they were asked for as;
//! - what a client has been sent completely is stored, or a metric says why not;
//! - a failure of the store never fails a request that upstream can serve;
//! - nothing is served under a repository that neither a stored manifest nor upstream says is
//!   part of it;
//! - where callers' own rights count, nothing is served to one whom upstream has not let read from
//!   the repository lately.

mod absent;
mod api;
mod blobs;
mod builtin;
mod callers;
mod catalog;
pub mod config;
mod content;
mod course;
mod export;
mod fill;
mod fills;
mod flights;
mod intake;
mod manifests;
mod metrics;
mod peer;
mod peers;
pub mod probe;
mod referrers;
mod refusal;
mod reload;
mod respond;
mod rights;
mod roster;
mod service;
mod source;
mod storing;
mod tags;
mod tier;
mod upstream;
mod upstreams;
mod verify;
mod warm;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use larder_process::listener::Limits;
use larder_process::{Start, admin, listener, tls};
use larder_store::{OpenError, Store};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use url::Url;

use crate::absent::Absent;
use crate::api::Access;
use crate::callers::Callers;
use crate::config::{Budget, Config, Listener, TlsFiles};
use crate::fills::Fills;
use crate::manifests::Manifests;
use crate::metrics::{Metrics, Sequence};
use crate::peers::Peers;
use crate::referrers::Referrers;
use crate::roster::{OpenRosterError, Roster};
use crate::service::{Registry, Service};
use crate::upstream::SetupUpstreamError;
use crate::upstreams::Upstreams;
use crate::verify::Verifier;
use crate::warm::Warmer;

pub use crate::reload::Reread;
pub use crate::verify::{OfflineError, rebuild_index, verify_offline};
pub use larder_store::Rebuilt;

/// Why the registry could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The store cannot be opened.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The volume that the store is on cannot be measured.
    #[error("measuring the volume of {}", .directory.display())]
    Volume {
        /// The store's directory.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The upstreams that were made through the API cannot be read.
    #[error(transparent)]
    Roster(#[from] OpenRosterError),
    /// An upstream's settings do not work.
    #[error(transparent)]
    Upstream(#[from] SetupUpstreamError),
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] tls::LoadError),
}

/// Serves until `start.stopping`, on sockets that are listening already. `reread` is asked now and
/// then, and on SIGHUP, how the configuration is now.
///
/// Everything is opened before the first request is accepted; then `start.announce` is called. On
/// `stopping` no connection is accepted any more, bodies are finished within the listener's drain
/// time, what was being fetched is kept, and the store is closed.
///
/// # Errors
///
/// [`RunError`]: something could not be opened; nothing was served.
pub async fn run(
    config: Config,
    reread: Reread,
    mut start: Start,
    listeners: Vec<(TcpListener, Listener)>,
    admin_listener: TcpListener,
) -> Result<(), RunError> {
    let component = start.health.component("store");
    let configured = config.clone();
    let mut roster = Roster::open(config)?;
    let config = roster.effective();
    let store = open_store(&config).await?;
    let sharing = store.shared().map(|shared| {
        tier::watch(shared.clone(), start.health.component("shared"), start.stopping.clone())
    });
    let metrics = Metrics::register(start.metrics.registry(), store.clone());
    let upstreams = Upstreams::new(&config.upstreams, metrics.clone())?;
    let certificate = config.tls.map(load_certificate).transpose()?;

    let is_heard = certificate.is_none()
        && listeners.iter().any(|(_, listener)| !listener.address.ip().is_loopback());
    if is_heard && config.upstreams.iter().any(|it| it.access != config::Access::Shared) {
        warn!(
            "without `tls_cert`, callers show their credentials for upstreams with access = \"caller\" to \
             everybody on the way"
        );
    }
    let peers = Peers::new(config.peers, config.peers_ca, metrics.of_peers());
    let registry = Arc::new(Registry {
        fills: Fills::new(store.clone(), metrics.clone()),
        manifests: Manifests::new(),
        referrers: Referrers::new(),
        absent: Absent::new(),
        callers: Callers::new(),
        verifier: Verifier::new(),
        warmer: Warmer::new(),
        upstreams,
        roster,
        peers: peers.clone(),
        unaddressed: metrics.of_upstream(""),
        metrics,
        offline: config.offline,
        redirects: config.shared.as_ref().is_some_and(|it| it.redirect),
        hosts: config.hosts,
        requests: Sequence::default(),
        store,
    });
    if let Some(period) = config.scrub {
        registry.start_scrubbing(period);
    }
    let tasks = TaskTracker::new();
    let admin_stopping = CancellationToken::new();
    let access = Access::new(config.admin_token_file);
    let router = admin::router(start.health, start.metrics);
    let router = router.merge(api::router(Arc::clone(&registry), access));
    let admin = admin::serve(admin_listener, router, admin_stopping.clone(), Limits::default());
    tasks.spawn(admin);
    if let Some(certificate) = &certificate {
        tasks.spawn(Arc::clone(certificate).watch(tls::POLL, admin_stopping.clone()));
    }

    let registry_again = Arc::clone(&registry);
    tasks.spawn(reload::follow(registry_again, configured, reread, start.stopping.clone()));
    if let (Some(shared), Some(settings)) = (registry.store.shared().cloned(), config.shared) {
        let me = settings.advertise.or_else(|| first_url(&listeners, certificate.is_some()));
        // Nobody listens nowhere.
        if let Some(me) = me {
            tasks.spawn(peers.follow_shared(shared, me, start.stopping.clone()));
        }
    } else {
        tasks.spawn(peers.follow(start.stopping.clone()));
    }
    if let Some(sharing) = sharing {
        tasks.spawn(sharing);
    }
    let tls = certificate.map(tls::server_config);
    let serving = TaskTracker::new();
    for (tcp, settings) in listeners {
        let default_upstream =
            settings.default_upstream.or_else(|| config.default_upstream.clone());
        let service = Service {
            registry: Arc::clone(&registry),
            default_upstream: default_upstream.map(Arc::from),
        };
        let stopping = start.stopping.clone();
        let served = listener::serve(tcp, tls.clone(), service, stopping, Limits::default());
        serving.spawn(async move {
            let n_cut = served.await;
            if n_cut > 0 {
                warn!("cut {n_cut} connections that did not end in time");
            }
        });
    }
    let storing = registry.metrics.storing.clone();
    component.ready();
    tasks.spawn(storing::watch(storing, component, admin_stopping.clone()));
    start.announce.now();
    serving.close();
    serving.wait().await;

    info!("stopping");
    registry.verifier.close().await;
    registry.warmer.close().await;
    registry.fills.close().await;
    // What is being asked of upstreams ends by their time limits; nobody waits for it any more.
    let last_answers = async {
        let (manifests, referrers) = (registry.manifests.close(), registry.referrers.close());
        tokio::join!(manifests, referrers, registry.callers.close())
    };
    let _ = tokio::time::timeout(LAST_ANSWERS, last_answers).await;
    registry.store.close().await;
    admin_stopping.cancel();
    tasks.close();
    tasks.wait().await;
    Ok(())
}

/// How long to wait for upstreams' last answers before the store closes.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Where the first address is reached that is listened on.
fn first_url(listeners: &[(TcpListener, Listener)], is_encrypted: bool) -> Option<Url> {
    let address = listeners.first()?.0.local_addr().ok()?;
    let scheme = if is_encrypted { "https" } else { "http" };
    Url::parse(&format!("{scheme}://{address}")).ok()
}

fn load_certificate(files: TlsFiles) -> Result<Arc<tls::ServerCertificate>, tls::LoadError> {
    let TlsFiles { cert, key } = files;
    Ok(Arc::new(tls::ServerCertificate::load(tls::Files { cert, key })?))
}

async fn open_store(config: &Config) -> Result<Store, RunError> {
    let directory = config.data.clone();
    let budget = match config.budget {
        None => None,
        Some(Budget::Bytes(bytes)) => Some(bytes),
        Some(Budget::Percent(percent)) => {
            let size = volume_size(directory.clone()).await;
            let volume = |source| RunError::Volume { directory: directory.clone(), source };
            Some(size.map_err(volume)? / 100 * u64::from(percent))
        }
    };
    let (low_watermark, retention) = (config.low_watermark, config.retention());
    let shared = config.shared_store();
    let settings = larder_store::Settings { directory, budget, low_watermark, retention, shared };
    Ok(Store::open(settings).await?)
}

/// The bytes of the volume that a directory is on; the directory is made if it is missing.
async fn volume_size(directory: PathBuf) -> io::Result<u64> {
    let measure = move || {
        std::fs::create_dir_all(&directory)?;
        larder_store::volume_size(&directory)
    };
    tokio::task::spawn_blocking(measure).await.map_err(io::Error::other)?
}
