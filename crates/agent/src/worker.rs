//! The process that answers the runtimes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use larder_process::listener::{self, Limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use uuid::Uuid;

use crate::beat::{self, Beat, Inherited};
use crate::counts::Counts;
use crate::direct::Direct;
use crate::endpoint::Endpoint;
use crate::forward::Forward;
use crate::known::LastKnown;
use crate::replicas::Replicas;
use crate::settings::Settings;
use crate::source::Source;

/// What the runtimes of one node may hold. A runtime pulls a few layers at a time; each connection
/// may take some hundred KiB.
const LIMITS: Limits = Limits {
    connections: 512,
    handshake: Duration::from_secs(10),
    head: Duration::from_secs(15),
    idle: Duration::from_secs(120),
    stalled: Duration::from_secs(300),
    drain: Duration::from_secs(20),
};

/// Answers runtimes until `stopping`, or until the supervisor is gone.
///
/// # Errors
///
/// What was inherited is not what a supervisor gives.
pub async fn work(
    settings: Settings,
    source: Source,
    inherited: Inherited,
    stopping: CancellationToken,
) -> io::Result<()> {
    let tcp = TcpListener::from_std(inherited.listener)?;
    let supervisor = UnixStream::from_std(inherited.supervisor)?;
    // As replicas name themselves; the node's name is for whoever reads their logs.
    let me = format!("agent-{}", Uuid::now_v7());
    let replicas = Replicas::new(me, None);
    let counts = Arc::new(Counts::default());
    let forward = Forward {
        replicas: replicas.clone(),
        direct: Arc::new(Direct::new(settings.upstreams, replicas.clone())),
        counts: Arc::clone(&counts),
    };
    let last_known = LastKnown::in_directory(&settings.state);
    tokio::spawn(replicas.clone().follow(source.places, last_known, stopping.clone()));
    let here = replicas.clone();
    tokio::spawn(async move {
        if let Some(zone) = source.zone.await {
            here.be_in(zone);
        }
    });
    let endpoint = Endpoint(Arc::new(forward));
    let served = listener::serve(tcp, None, endpoint, stopping, LIMITS);
    tokio::select! {
        n_cut = served => {
            if n_cut > 0 {
                warn!("cut {n_cut} connections that did not end in time");
            }
        }
        // With nobody to replace it, a worker that hangs would hang for ever.
        () = beats(supervisor, &replicas, &counts, settings.kubernetes) => info!("the supervisor is gone"),
    }
    Ok(())
}

/// Returns when the supervisor is gone. `are_hosts_said`: the caches say for which registries runtimes
/// are pointed here.
async fn beats(supervisor: UnixStream, replicas: &Replicas, counts: &Counts, are_hosts_said: bool) {
    let (mut from, mut to) = supervisor.into_split();
    let mut period = interval(beat::PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let writing = async {
        loop {
            period.tick().await;
            let (known, live) = replicas.count();
            let hosts = are_hosts_said.then(|| replicas.hosts()).flatten();
            let (urls, counted) = (replicas.urls(), counts.sum());
            let beat = Beat { known, live, hosts, urls, counted };
            let Ok(mut line) = serde_json::to_vec(&beat) else { continue };
            line.push(b'\n');
            if to.write_all(&line).await.is_err() {
                return;
            }
        }
    };
    let mut nothing = [0; 1];
    tokio::select! {
        () = writing => {}
        _ = from.read(&mut nothing) => {}
    }
}
