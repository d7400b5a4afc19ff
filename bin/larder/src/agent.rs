//! `larder agent`

use std::env;
use std::io::{self, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use larder_agent::mirrors::{self, Entries, Finding, Runtime};
use larder_agent::self_test::{self, Hop};
use larder_agent::supervisor::Lock;
use larder_agent::{Inherited, Overrides, Settings, source, supervisor, worker};
use larder_process::shutdown::{self, Signals};
use larder_process::{Start, logs};
use reqwest::Url;
use rustls::crypto::aws_lc_rs;
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::cli::LogFormat;
use crate::failure::Failure;
use crate::server;

/// The most threads that answer runtimes. One passes on more than most networks carry; a node is
/// there for others.
const MAX_THREADS: usize = 2;

/// How long to wait at the end for threads that are still busy.
const LAST_THREADS: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub(crate) struct Agent {
    #[command(subcommand)]
    act: Option<Act>,

    #[command(flatten)]
    flags: Flags,

    /// How events are written to stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text", global = true)]
    #[arg(env = "LARDER_LOG_FORMAT", hide_env_values = true)]
    log_format: LogFormat,

    /// Which events are written: error, warn, info, debug or trace, or levels for parts, such as
    /// info,larder_agent=debug
    #[arg(long, value_name = "LEVEL", default_value_t, global = true)]
    #[arg(env = "LARDER_LOG", hide_env_values = true)]
    log_level: logs::Filter,

    /// Be the process that answers, which the agent starts itself
    #[arg(long, hide = true)]
    worker: bool,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Put all files back as they were before an agent edited them
    Cleanup,
    /// Say whether the runtimes of this node read the files that the agent writes
    Check,
    /// Pull a tiny image all the way through containerd, the agent and the cache, and say how long each part took
    SelfTest,
}

#[derive(Args, Debug)]
struct Flags {
    /// The configuration: a TOML file
    #[arg(long, value_name = "FILE", env = "LARDER_CONFIG", hide_env_values = true, global = true)]
    config: Option<PathBuf>,

    /// Where runtimes ask, on loopback [default: 127.0.0.1:5050]
    #[arg(long, value_name = "ADDRESS", env = "LARDER_LISTEN", hide_env_values = true)]
    #[arg(global = true)]
    listen: Option<SocketAddr>,

    /// Where to serve metrics and health [default: 127.0.0.1:5051]
    #[arg(long, value_name = "ADDRESS", env = "LARDER_ADMIN", hide_env_values = true)]
    #[arg(global = true)]
    admin: Option<SocketAddr>,

    /// Where the cache is; can be given several times, for its replicas. A name is looked up and
    /// stands for all its addresses
    #[arg(long, value_name = "URL", env = "LARDER_CACHE", hide_env_values = true, global = true)]
    #[arg(value_delimiter = ',')]
    cache: Vec<Url>,

    /// Have the cluster say where the cache is, by its RegistryCache objects: the one that KUBECONFIG
    /// names, or the one that this pod is in
    #[arg(long, env = "LARDER_KUBERNETES", hide_env_values = true, global = true)]
    kubernetes: bool,

    /// The zone of this node, whose replicas are asked first
    #[arg(long, value_name = "NAME", env = "LARDER_ZONE", hide_env_values = true, global = true)]
    zone: Option<String>,

    /// What this node is called, in the log and by the cluster
    #[arg(long, value_name = "NAME", env = "LARDER_NODE_NAME", hide_env_values = true)]
    #[arg(global = true)]
    node_name: Option<String>,

    /// Where it is kept what other programs' files were before [default: /var/lib/larder-agent]
    #[arg(long, value_name = "DIRECTORY", env = "LARDER_STATE", hide_env_values = true)]
    #[arg(global = true)]
    state: Option<PathBuf>,

    /// The socket of containerd [default: /run/containerd/containerd.sock]
    #[arg(long, value_name = "SOCKET", env = "LARDER_CONTAINERD_ADDRESS", hide_env_values = true)]
    #[arg(global = true)]
    containerd_address: Option<PathBuf>,

    /// Where containerd looks for mirrors [default: /etc/containerd/certs.d]
    #[arg(long, value_name = "DIRECTORY", env = "LARDER_CERTS_DIR", hide_env_values = true)]
    #[arg(global = true)]
    certs_dir: Option<PathBuf>,

    /// An upstream that is not at https://HOST
    #[arg(long, value_name = "HOST=URL", env = "LARDER_UPSTREAM", hide_env_values = true)]
    #[arg(global = true, value_delimiter = ',', value_parser = upstream)]
    upstream: Vec<(String, Url)>,
}

fn upstream(text: &str) -> Result<(String, Url), String> {
    let wrong = || "write it as registry.example.com=http://10.0.0.1:5000".to_owned();
    let (host, url) = text.split_once('=').ok_or_else(wrong)?;
    Ok((host.to_owned(), url.parse().map_err(|_| wrong())?))
}

pub(crate) fn run(command: &Agent) -> Result<(), Failure> {
    let settings = command.flags.read()?;
    match command.act {
        Some(Act::Cleanup) => return cleanup(&settings),
        Some(Act::Check) => return check(&settings),
        Some(Act::SelfTest) => return test(&settings),
        None if settings.caches.is_empty() && !settings.kubernetes => {
            let advice = "no cache is named; give --cache http://10.0.0.1:5000, [[caches]] in the configuration, or --kubernetes";
            return Err(Failure::Usage(anyhow!(advice)));
        }
        None => {}
    }
    logs::init(command.log_format.into(), &command.log_level).context("beginning to log")?;
    aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("TLS has a provider of cryptography already"))?;
    let done = if command.worker { work(settings) } else { supervise(settings, &command.flags) };
    Ok(done?)
}

impl Flags {
    fn read(&self) -> Result<Settings, Failure> {
        // Whole, so that a flag that nobody uses does not compile.
        let Self {
            config,
            listen,
            admin,
            cache,
            kubernetes,
            zone,
            node_name,
            state,
            containerd_address,
            certs_dir,
            upstream,
        } = self;
        let overrides = Overrides {
            listen: *listen,
            admin: *admin,
            caches: cache.clone(),
            kubernetes: *kubernetes,
            node: node_name.clone(),
            zone: zone.clone(),
            state: state.clone(),
            containerd_address: containerd_address.clone(),
            certs_dir: certs_dir.clone(),
            upstreams: upstream.clone(),
        };
        let read = Settings::read(config.as_deref(), overrides);
        read.map_err(|mistake| Failure::Usage(mistake.into()))
    }
}

/// The process that answers.
fn work(settings: Settings) -> anyhow::Result<()> {
    let inherited = Inherited::take().context("taking over the socket of the agent")?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
    let runtime = runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.context("starting threads")?;
    let worked = runtime.block_on(async {
        let mut signals = Signals::listen().context("waiting for signals")?;
        let stopping = CancellationToken::new();
        let source = source::open(&settings, stopping.clone()).await?;
        tokio::select! {
            biased;
            () = shutdown::second_signal(async || signals.next().await, &stopping) => Ok(()),
            worked = worker::work(settings, source, inherited, stopping.clone()) => {
                worked.context("answering runtimes")
            }
        }
    });
    runtime.shutdown_timeout(LAST_THREADS);
    worked
}

/// The process that sees to it that somebody answers.
fn supervise(settings: Settings, flags: &Flags) -> anyhow::Result<()> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting threads")?;
    let ended = runtime.block_on(async {
        let mut signals = Signals::listen().context("waiting for signals")?;
        let stopping = CancellationToken::new();
        if settings.kubernetes {
            // Once more by each worker, which is the one that asks it.
            larder_k8s::connect().await?;
        }
        let listen = settings.listen;
        let tcp = TcpListener::bind(listen).with_context(|| format!("listening on {listen}"))?;
        let admin = tokio::net::TcpListener::bind(settings.admin).await;
        let admin = admin.with_context(|| format!("listening on {}", settings.admin))?;
        let addresses = (tcp.local_addr()?, admin.local_addr()?);
        if let Err(error) = larder_process::files::raise_limit() {
            warn!(%error, "raising the limit of open files");
        }
        let version = env!("CARGO_PKG_VERSION");
        let node = flags.node_name.as_deref().unwrap_or("this node");
        tracing::info!("larder {version} is starting as the agent of {node}");
        check_runtimes(&settings);
        let start = Start::new(version, &stopping, move || say_where(addresses));
        tokio::select! {
            biased;
            () = shutdown::second_signal(async || signals.next().await, &stopping) => {
                Err(anyhow!("ended by a second signal; `larder agent cleanup` puts files back"))
            }
            ended = supervisor::run(settings, start, tcp, admin, worker_command) => Ok(ended?),
        }
    });
    runtime.shutdown_timeout(LAST_THREADS);
    ended
}

/// This program again, as it was started, but for what it does.
fn worker_command() -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(env::args_os().skip(1)).arg("--worker");
    command
}

/// Warns about runtimes that do not read what is going to be written.
fn check_runtimes(settings: &Settings) {
    for (file, finding) in findings(settings) {
        if finding != Finding::Active {
            warn!("containerd does not ask the cache as it is: {file}: {finding}");
        }
    }
}

fn findings(settings: &Settings) -> Vec<(String, Finding)> {
    let Some(containerd) = &settings.mirrors.containerd else { return Vec::new() };
    let text = std::fs::read_to_string(&containerd.config).ok();
    let findings = mirrors::check_containerd(text.as_deref(), &containerd.certs_dir);
    let name = containerd.config.display().to_string();
    findings.into_iter().map(|finding| (name.clone(), finding)).collect()
}

fn check(settings: &Settings) -> Result<(), Failure> {
    let findings = findings(settings);
    let mut text = String::new();
    for (file, finding) in &findings {
        let name = Runtime::Containerd.as_str();
        text.push_str(&format!("{name}: {file}: {finding}\n"));
    }
    if findings.is_empty() {
        text.push_str("nothing to check: containerd is none of the runtimes in [mirrors]\n");
    }
    io::stdout().write_all(text.as_bytes()).map_err(Failure::writing)?;
    match findings.iter().all(|(_, finding)| *finding == Finding::Active) {
        true => Ok(()),
        false => Err(Failure::Said(1)),
    }
}

fn test(settings: &Settings) -> Result<(), Failure> {
    // Somebody else may have been first; then there is one.
    let _ = aws_lc_rs::default_provider().install_default();
    let hops = server::block_on(async { Ok(self_test::run(settings).await) })?;
    let line = |hop: &Hop| match &hop.result {
        Ok(took) => {
            let milliseconds = took.as_secs_f64() * 1000.0;
            format!("{:<11} {:<40} {milliseconds:>8.1} ms\n", hop.name, hop.place)
        }
        Err(why) => format!("{:<11} {:<40} FAILED: {why}\n", hop.name, hop.place),
    };
    let text: String = hops.iter().map(line).collect();
    io::stdout().write_all(text.as_bytes()).map_err(Failure::writing)?;
    if hops.iter().all(|hop| hop.result.is_ok()) { Ok(()) } else { Err(Failure::Said(1)) }
}

fn cleanup(settings: &Settings) -> Result<(), Failure> {
    let _lock = Lock::take(&settings.state).map_err(anyhow::Error::new)?;
    let entries = Entries::open(settings.wanted(settings.listen), &settings.state);
    let report = entries.and_then(|mut entries| entries.withdraw(true));
    let report = report.map_err(anyhow::Error::new)?;
    let changed = report.changed.iter().map(|(runtime, path)| {
        let restart = match runtime.restart() {
            Some(restart) => format!("; {} reads it after: {restart}", runtime.as_str()),
            None => String::new(),
        };
        format!("{} is as before{restart}\n", path.display())
    });
    let notes = report.notes.iter().map(|note| format!("{note}\n"));
    let text: String = changed.chain(notes).collect();
    let text = if text.is_empty() { "there was nothing to put back\n".to_owned() } else { text };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::writing)?;
    if report.notes.is_empty() { Ok(()) } else { Err(Failure::Said(1)) }
}

/// Says on stdout where we serve. Others wait for these lines.
fn say_where((listen, admin): (SocketAddr, SocketAddr)) {
    let lines = format!("listening on http://{listen}\nadmin on http://{admin}\n");
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush()) {
        warn!("saying on stdout where we listen: {error}");
    }
}
