//! The process that owns the socket and the mirror entries, and sees to it that somebody answers.
//!
//! ```text
//! starting ──▶ serving ──(silent, or gone)──▶ starting …
//!    └ the supervisor itself answers 503, so that runtimes go on at once
//! ```
//!
//! It does next to nothing itself, so that there is little in it that could hang.

mod entries;
mod stand_in;

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use larder_process::listener::Limits;
use larder_process::{Announce, Component, Start, admin};
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::{TcpListener, UnixStream};
use tokio::process::Child;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::entries::Works;
use self::stand_in::StandIn;
use crate::beat::{self, Beat};
use crate::counts::Sum;
use crate::metrics::Metrics;
use crate::mirrors::{Entries, RecordError, Wanted};
use crate::notify::Systemd;
use crate::settings::Settings;

/// How many periods a worker may be silent: 700 ms, so that all that a hang costs stays below a
/// second. Periods are counted, not time: where this process gets no processor, the worker did not
/// either.
const SILENT: u32 = 7;

/// How many periods it may take to begin.
const BEGINNING: u32 = 150;

/// After how many periods systemd is told that this process is not hung.
const ALIVE: u64 = 10;

/// How many periods others wait for the mirror entries: 5 s, so that a node without a cache boots
/// nearly as soon as one with it.
const WAITED_FOR: u64 = 50;

/// How long until the next worker is started, if the one before ended soon: at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// A worker that has lived so long did not end because it cannot begin.
const LONG: Duration = Duration::from_secs(30);

/// How long a worker may take to end what it is doing.
const ENDING: Duration = Duration::from_secs(25);

/// Why the agent could not start.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The state directory cannot be used.
    #[error("using the directory {}", .directory.display())]
    State {
        /// Which.
        directory: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another agent uses the state directory.
    #[error("another agent is running with the directory {}", .0.display())]
    Busy(PathBuf),
    /// What was there before cannot be known.
    #[error(transparent)]
    Record(#[from] RecordError),
    /// The socket cannot be shared with a worker.
    #[error("sharing the socket")]
    Socket(#[source] io::Error),
}

/// The state directory, taken for as long as this lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the directory, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// [`RunError::Busy`]: an agent has it. [`RunError::State`]: it cannot be used.
    pub fn take(state: &Path) -> Result<Self, RunError> {
        let error = |source| RunError::State { directory: state.to_owned(), source };
        std::fs::create_dir_all(state).map_err(error)?;
        let file = File::create(state.join("lock")).map_err(error)?;
        match file.try_lock() {
            Ok(()) => Ok(Self { _file: file }),
            Err(std::fs::TryLockError::WouldBlock) => Err(RunError::Busy(state.to_owned())),
            Err(std::fs::TryLockError::Error(source)) => Err(error(source)),
        }
    }
}

/// Runs the agent until `start.stopping`, on a socket that is listening already. `worker` is the
/// command that [`crate::worker`] is run by.
///
/// On `stopping` the entries are withdrawn first; then the worker ends what it is doing.
///
/// # Errors
///
/// [`RunError`]: nothing was served, and no entry was written.
pub async fn run(
    settings: Settings,
    mut start: Start,
    tcp: std::net::TcpListener,
    admin_listener: TcpListener,
    worker: impl Fn() -> Command,
) -> Result<(), RunError> {
    let _lock = Lock::take(&settings.state)?;
    let address = tcp.local_addr().map_err(RunError::Socket)?;
    tcp.set_nonblocking(true).map_err(RunError::Socket)?;
    let metrics = Metrics::register(start.metrics.registry());
    let wanted = settings.wanted(address);
    let kept = Entries::open(wanted, &settings.state)?;
    let (serving, cache) = (start.health.component("worker"), start.health.component("cache"));
    cache.not_ready("no replica of the cache has answered yet");
    let mirrors = start.health.component("mirrors");
    let (works, is_working) = watch::channel(Works::default());
    let (written, withdrawn) = (CancellationToken::new(), CancellationToken::new());
    let keeping = tokio::spawn(entries::keep(
        kept,
        settings.mirrors.runtimes(),
        address,
        is_working,
        entries::Said { metrics: metrics.clone(), health: mirrors, written: written.clone() },
        start.stopping.clone(),
        withdrawn.clone(),
    ));
    let ended = CancellationToken::new();
    let router = admin::router(start.health, start.metrics);
    let admin = admin::serve(admin_listener, router, ended.clone(), Limits::default());
    let admin = tokio::spawn(admin);
    let supervisor = Supervisor {
        stand_in: StandIn::new(tcp.try_clone().map_err(RunError::Socket)?, metrics.clone()),
        tcp,
        address,
        metrics,
        serving,
        cache,
        works,
        written,
        withdrawn,
        systemd: Systemd::of_environment(),
        announce: Some(start.announce),
        n_periods: 0,
        is_waited_for: true,
    };
    supervisor.supervise(worker).await;
    let _ = keeping.await;
    ended.cancel();
    let _ = admin.await;
    Ok(())
}

impl Settings {
    /// What the entries are to say, for an endpoint at `endpoint`.
    pub fn wanted(&self, endpoint: SocketAddr) -> Wanted {
        let (mirrors, upstreams) = (self.mirrors.clone(), self.upstreams.clone());
        Wanted { endpoint, mirrors, upstreams }
    }
}

struct Supervisor {
    tcp: std::net::TcpListener,
    address: SocketAddr,
    stand_in: StandIn,
    metrics: Metrics,
    serving: Component,
    cache: Component,
    /// Whether runtimes are served from a cache.
    works: watch::Sender<Works>,
    /// Cancelled when the entries have been written once, or need not be.
    written: CancellationToken,
    /// Cancelled when the entries are gone, and the worker may end.
    withdrawn: CancellationToken,
    systemd: Systemd,
    announce: Option<Announce>,
    n_periods: u64,
    /// Whether systemd has not been told yet that it is ready.
    is_waited_for: bool,
}

/// How a worker ended.
enum Ended {
    /// As it was told to.
    AsTold,
    /// By itself, or it hung.
    By(String),
}

// === impl Supervisor ===

impl Supervisor {
    /// Returns when the entries were withdrawn and the worker has ended.
    async fn supervise(mut self, worker: impl Fn() -> Command) {
        let mut pause = AGAIN.0;
        loop {
            self.stand_in.begin();
            let began = Instant::now();
            let why = match self.one_worker(worker()).await {
                Ok(Ended::AsTold) => return,
                Ok(Ended::By(why)) => why,
                Err(error) => format!("it cannot be started: {error}"),
            };
            self.stand_in.begin();
            warn!("the worker is replaced: {why}");
            self.metrics.worker_gone();
            self.serving.not_ready(why);
            self.works.send_modify(|works| works.is_working = false);
            if began.elapsed() > LONG {
                pause = AGAIN.0;
            }
            tokio::select! {
                () = sleep(pause) => {}
                () = self.withdrawn.cancelled() => return,
            }
            pause = (pause * 2).min(AGAIN.1);
        }
    }

    async fn one_worker(&mut self, command: Command) -> io::Result<Ended> {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        ours.set_nonblocking(true)?;
        let mut command = tokio::process::Command::from(command);
        command
            .stdin(Stdio::from(OwnedFd::from(self.tcp.try_clone()?)))
            .stdout(Stdio::from(OwnedFd::from(theirs)))
            .kill_on_drop(true);
        let mut child = command.spawn()?;
        // It has its copy; with ours, its end would never be seen.
        drop(command);
        let mut lines = BufReader::new(UnixStream::from_std(ours)?).lines();
        let mut period = interval(beat::PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut silent, mut limit) = (0, BEGINNING);
        let mut counted = Sum::default();
        let why = loop {
            tokio::select! {
                line = lines.next_line() => match line.ok().flatten() {
                    Some(line) => {
                        (silent, limit) = (0, SILENT);
                        if let Ok(beat) = serde_json::from_str::<Beat>(&line) {
                            self.heard(&beat, &counted);
                            counted = beat.counted;
                        }
                    }
                    None => break "it has ended".to_owned(),
                },
                _ = period.tick() => {
                    silent += 1;
                    self.tell_systemd();
                    if silent > limit {
                        break format!("it has said nothing for {:?}", beat::PERIOD * silent);
                    }
                }
                () = self.withdrawn.cancelled() => {
                    self.systemd.stopping();
                    end(&mut child).await;
                    return Ok(Ended::AsTold);
                }
            }
        };
        // Also one that is stopped, or does not listen.
        child.start_kill()?;
        let status = child.wait().await?;
        Ok(Ended::By(format!("{why} ({status})")))
    }

    /// The worker is there.
    fn heard(&mut self, beat: &Beat, before: &Sum) {
        self.stand_in.end();
        self.metrics.beat(beat, &beat.counted.since(before));
        self.serving.ready();
        match beat.live {
            0 => match beat.known {
                0 if beat.hosts.is_some() => self.cache.ready_without("the cluster has no cache"),
                0 => self.cache.not_ready("no replica of the cache is known"),
                known => {
                    self.cache.not_ready(format!("none of {known} replicas of the cache answers"));
                }
            },
            _ => self.cache.ready(),
        }
        let (hosts, urls) = (beat.hosts.clone(), beat.urls.clone());
        let now = Works { is_working: beat.live > 0, hosts, urls };
        self.works.send_if_modified(|works| std::mem::replace(works, now) != *works);
        if let Some(announce) = self.announce.take() {
            info!("answering runtimes on {}", self.address);
            announce.now();
        }
    }

    /// Once a period. Units after this one may pull images, so that they begin when runtimes are
    /// pointed here.
    fn tell_systemd(&mut self) {
        self.n_periods += 1;
        let is_written = self.written.is_cancelled() || self.n_periods > WAITED_FOR;
        if self.is_waited_for && self.announce.is_none() && is_written {
            self.is_waited_for = false;
            self.systemd.ready();
        }
        if self.n_periods.is_multiple_of(ALIVE) {
            self.systemd.alive();
        }
    }
}

/// Asks a worker to end, and sees to it that it does.
async fn end(child: &mut Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It has not been waited for, so that the number is still its own.
        let _ = kill_process(pid, Signal::TERM);
    }
    if timeout(ENDING, child.wait()).await.is_err() {
        warn!("the worker does not end; killing it");
        let _ = child.kill().await;
    }
}
