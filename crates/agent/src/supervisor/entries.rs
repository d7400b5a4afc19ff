//! When the mirror entries are there: while they work.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use larder_process::Component;
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use url::Url;

use crate::metrics::Metrics;
use crate::mirrors::{Entries, RecordError, Report, Runtime};

/// For whom the endpoint works.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Works {
    /// Whether a replica is there.
    pub(super) is_working: bool,
    /// The registries that there are caches of; `None`: as the settings say.
    pub(super) hosts: Option<BTreeSet<String>>,
    /// Where those are that are elsewhere than their name says.
    pub(super) urls: BTreeMap<String, Url>,
}

/// How long the endpoint may work for nobody until the entries are withdrawn. Before that it answers
/// 503 at once, which costs next to nothing; files that come and go with each hiccup would cost more.
const GRACE: Duration = Duration::from_secs(15);

/// How long the endpoint may take to answer before entries are written.
const ANSWER: Duration = Duration::from_secs(2);

/// How long until it is asked again.
const AGAIN: Duration = Duration::from_millis(250);

/// To whom it is said how the entries are.
pub(super) struct Said {
    pub(super) metrics: Metrics,
    pub(super) health: Component,
    /// Cancelled when they have been written once, or need not be.
    pub(super) written: CancellationToken,
}

/// Has the entries be there while `works`, and cancels `withdrawn` when they are gone for good, after
/// `stopping`.
pub(super) async fn keep(
    entries: Entries,
    runtimes: Vec<Runtime>,
    endpoint: SocketAddr,
    mut works: watch::Receiver<Works>,
    said: Said,
    stopping: CancellationToken,
    withdrawn: CancellationToken,
) {
    let keeper = Keeper { entries: Arc::new(Mutex::new(entries)), runtimes, said };
    keeper.said.metrics.mirrors(&keeper.runtimes, &Report::default());
    let keeping = async {
        loop {
            // Written by now, by this process or an earlier one, or withdrawn.
            let Works { is_working, hosts, urls } = works.borrow_and_update().clone();
            let is_for_none = hosts.as_ref().is_some_and(BTreeSet::is_empty);
            if let Some(hosts) = hosts {
                keeper.want(hosts, urls).await;
            }
            if is_for_none {
                keeper.are_as_wanted();
            } else if is_working {
                tokio::select! {
                    () = answering(endpoint) => keeper.write().await,
                    () = changed(&mut works) => continue,
                }
            } else {
                tokio::select! {
                    () = changed(&mut works) => continue,
                    () = sleep(GRACE) => keeper.withdraw(false).await,
                }
            }
            changed(&mut works).await;
        }
    };
    tokio::select! {
        () = stopping.cancelled() => {}
        () = keeping => {}
    }
    keeper.withdraw(true).await;
    withdrawn.cancel();
}

struct Keeper {
    entries: Arc<Mutex<Entries>>,
    runtimes: Vec<Runtime>,
    said: Said,
}

impl Keeper {
    async fn write(&self) {
        let report = self.blocking(|entries| Ok(entries.write())).await;
        self.say(&report, "written");
        for (runtime, path) in &report.changed {
            if let Some(restart) = runtime.restart() {
                let name = runtime.as_str();
                warn!("{name} does not read {} before it is told to: {restart}", path.display());
            }
        }
        self.are_as_wanted();
    }

    fn are_as_wanted(&self) {
        self.said.health.ready();
        self.said.written.cancel();
    }

    /// Has the entries be for these registries; those for others are put back at once.
    async fn want(&self, hosts: BTreeSet<String>, urls: BTreeMap<String, Url>) {
        let report = self.blocking(move |entries| entries.want(hosts, urls)).await;
        for (runtime, path) in &report.changed {
            info!(runtime = runtime.as_str(), "{} is put back", path.display());
        }
        for note in &report.notes {
            warn!("{note}");
        }
    }

    async fn withdraw(&self, all: bool) {
        let report = self.blocking(move |entries| entries.withdraw(all)).await;
        self.say(&report, "put back");
        self.said.health.not_ready("the mirror entries are withdrawn");
    }

    fn say(&self, report: &Report, done: &str) {
        for (runtime, path) in &report.changed {
            info!(runtime = runtime.as_str(), "{} is {done}", path.display());
        }
        for note in &report.notes {
            warn!("{note}");
        }
        self.said.metrics.mirrors(&self.runtimes, report);
    }

    async fn blocking(
        &self,
        work: impl FnOnce(&mut Entries) -> Result<Report, RecordError> + Send + 'static,
    ) -> Report {
        let entries = Arc::clone(&self.entries);
        let done = tokio::task::spawn_blocking(move || work(&mut entries.lock())).await;
        match done {
            Ok(Ok(report)) => report,
            Ok(Err(error)) => {
                warn!(
                    error = &error as &dyn std::error::Error,
                    "the mirror entries stay as they are"
                );
                Report::default()
            }
            Err(error) => {
                warn!("the mirror entries stay as they are: {error}");
                Report::default()
            }
        }
    }
}

/// Returns once something is different.
async fn changed(works: &mut watch::Receiver<Works>) {
    if works.changed().await.is_err() {
        std::future::pending().await
    }
}

/// Returns once the endpoint answers.
async fn answering(endpoint: SocketAddr) {
    while !answers(endpoint).await {
        sleep(AGAIN).await;
    }
}

/// Whether `/v2/` is answered with 200, as a runtime would ask it.
async fn answers(endpoint: SocketAddr) -> bool {
    let ask = async {
        let mut socket = TcpStream::connect(endpoint).await?;
        let request = format!("GET /v2/ HTTP/1.1\r\nhost: {endpoint}\r\nconnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await?;
        let mut status = [0; 12];
        socket.read_exact(&mut status).await?;
        Ok::<bool, std::io::Error>(status == *b"HTTP/1.1 200")
    };
    timeout(ANSWER, ask).await.is_ok_and(|answered| answered.unwrap_or(false))
}
