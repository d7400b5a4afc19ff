//! The process that answers the runtimes.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use larder_process::listener::{self, Limits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::watch;
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
use crate::replica::Place;
use crate::replicas::Replicas;
use crate::settings::Settings;

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
/// `source` says where the replicas are: each time all of them, `None` as long as it does not know.
///
/// # Errors
///
/// What was inherited is not what a supervisor gives.
pub async fn work(
    settings: Settings,
    source: watch::Receiver<Option<Vec<Place>>>,
    inherited: Inherited,
    stopping: CancellationToken,
) -> io::Result<()> {
    let tcp = TcpListener::from_std(inherited.listener)?;
    let supervisor = UnixStream::from_std(inherited.supervisor)?;
    // As replicas name themselves; the node's name is for whoever reads their logs.
    let me = format!("agent-{}", Uuid::now_v7());
    let replicas = Replicas::new(me, settings.zone);
    let counts = Arc::new(Counts::default());
    let forward = Forward {
        replicas: replicas.clone(),
        direct: Arc::new(Direct::new(settings.upstreams)),
        counts: Arc::clone(&counts),
    };
    let last_known = LastKnown::in_directory(&settings.state);
    tokio::spawn(replicas.clone().follow(source, last_known, stopping.clone()));
    let endpoint = Endpoint(Arc::new(forward));
    let served = listener::serve(tcp, None, endpoint, stopping, LIMITS);
    tokio::select! {
        n_cut = served => {
            if n_cut > 0 {
                warn!("cut {n_cut} connections that did not end in time");
            }
        }
        // With nobody to replace it, a worker that hangs would hang for ever.
        () = beats(supervisor, &replicas, &counts) => info!("the supervisor is gone"),
    }
    Ok(())
}

/// Returns when the supervisor is gone.
async fn beats(supervisor: UnixStream, replicas: &Replicas, counts: &Counts) {
    let (mut from, mut to) = supervisor.into_split();
    let mut period = interval(beat::PERIOD);
    period.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let writing = async {
        loop {
            period.tick().await;
            let (known, live) = replicas.count();
            let beat = Beat { known, live, counted: counts.sum() };
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
