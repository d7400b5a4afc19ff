//! `larder controller`

use std::collections::BTreeMap;
use std::env;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::{Args, Subcommand};
use larder_operator::{Mistake, Settings, WITHDRAWAL, Webhook};
use larder_process::shutdown::{self, Signals};
use larder_process::{Start, logs};
use larder_registry::config::{self, Environment, Files, Overrides};
use rustls::crypto::aws_lc_rs;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::LogFormat;
use crate::failure::Failure;

/// The most threads. It waits for the API server most of the time.
const MAX_THREADS: usize = 2;

/// How long to wait at the end for threads that are still busy.
const LAST_THREADS: Duration = Duration::from_secs(2);

#[derive(Args, Debug)]
pub(crate) struct Controller {
    #[command(subcommand)]
    act: Option<Act>,

    /// The namespace whose caches are looked after [default: that of the pod, or of the kubeconfig]
    #[arg(long, value_name = "NAME", env = "LARDER_NAMESPACE", hide_env_values = true)]
    #[arg(global = true)]
    namespace: Option<String>,

    /// Where to serve metrics and health [default: 127.0.0.1:5061]
    #[arg(long, value_name = "ADDRESS", env = "LARDER_ADMIN", hide_env_values = true)]
    #[arg(default_value = "127.0.0.1:5061", hide_default_value = true)]
    admin: SocketAddr,

    /// Where to answer the API server, which asks before it takes a RegistryCache [default: nowhere]
    #[arg(long, value_name = "ADDRESS", env = "LARDER_WEBHOOK_LISTEN", hide_env_values = true)]
    webhook_listen: Option<SocketAddr>,

    /// The ValidatingWebhookConfiguration that has the API server ask, and is told whom to trust
    /// [default: larder-webhook]
    #[arg(long, value_name = "NAME", env = "LARDER_WEBHOOK_CONFIGURATION", hide_env_values = true)]
    #[arg(default_value = "larder-webhook", hide_default_value = true)]
    webhook_configuration: String,

    /// The image that caches run: larder's own
    #[arg(long, value_name = "IMAGE", env = "LARDER_IMAGE", hide_env_values = true)]
    image: Option<String>,

    /// A secret of that namespace by which the image is pulled; can be given several times
    #[arg(long, value_name = "NAME", env = "LARDER_IMAGE_PULL_SECRET", hide_env_values = true)]
    #[arg(value_delimiter = ',')]
    image_pull_secret: Vec<String>,

    /// Take the taint larder.dev/not-ready from new nodes once their agent is ready
    #[arg(long, env = "LARDER_TAINT_NEW_NODES", hide_env_values = true)]
    taint_new_nodes: bool,

    /// What this controller is called among those of which one acts [default: HOSTNAME]
    #[arg(long, value_name = "NAME", env = "LARDER_IDENTITY", hide_env_values = true)]
    identity: Option<String>,

    /// How long a new certificate authority is told about before it signs [default: 10m]
    #[arg(long, value_name = "DURATION", env = "LARDER_CA_SETTLING", hide_env_values = true)]
    #[arg(value_parser = humantime::parse_duration)]
    ca_settling: Option<Duration>,

    /// How events are written to stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text", global = true)]
    #[arg(env = "LARDER_LOG_FORMAT", hide_env_values = true)]
    log_format: LogFormat,

    /// Which events are written: error, warn, info, debug or trace, or levels for parts, such as
    /// info,larder_operator=debug
    #[arg(long, value_name = "LEVEL", default_value_t, global = true)]
    #[arg(env = "LARDER_LOG", hide_env_values = true)]
    log_level: logs::Filter,
}

#[derive(Debug, Subcommand)]
enum Act {
    /// Delete all caches of the namespace, and wait until the controller that runs has removed them
    Cleanup {
        /// How long to wait
        #[arg(long, value_name = "DURATION", default_value = "5m")]
        #[arg(value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
}

pub(crate) fn run(command: &Controller) -> Result<(), Failure> {
    let image = match (&command.act, &command.image) {
        (None, None) => {
            let advice =
                "which image caches are to run is not known; give --image REGISTRY/larder:VERSION";
            return Err(Failure::Usage(anyhow!(advice)));
        }
        (_, image) => image.clone().unwrap_or_default(),
    };
    logs::init(command.log_format.into(), &command.log_level).context("beginning to log")?;
    aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("TLS has a provider of cryptography already"))?;
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
    let runtime = runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    let runtime = runtime.context("starting threads")?;
    let ended = runtime.block_on(async {
        match command.act {
            Some(Act::Cleanup { timeout }) => cleanup(command, timeout).await,
            None => control(command, image).await,
        }
    });
    runtime.shutdown_timeout(LAST_THREADS);
    Ok(ended?)
}

async fn control(command: &Controller, image: String) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("waiting for signals")?;
    let stopping = CancellationToken::new();
    let (admin, address) = bind(command.admin).await?;
    let webhook = match command.webhook_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let webhook_address = webhook.as_ref().map(|it| it.1);
    let configuration = command.webhook_configuration.clone();
    let webhook = webhook.map(|(tcp, _)| Webhook { tcp, configuration });
    let client = larder_k8s::connect().await?;
    let settings = Settings {
        namespace: namespace(command, &client),
        image,
        pull_secrets: command.image_pull_secret.clone(),
        frees_nodes: command.taint_new_nodes,
        identity: command.identity.clone().unwrap_or_else(own_name),
        withdrawal: WITHDRAWAL,
        settling: command.ca_settling,
        check,
    };
    let version = env!("CARGO_PKG_VERSION");
    info!("larder {version} is starting as the controller of {}", settings.namespace);
    let start = Start::new(version, &stopping, move || say_where(address, webhook_address));
    tokio::select! {
        biased;
        () = shutdown::second_signal(async || signals.next().await, &stopping) => {
            Err(anyhow!("ended by a second signal, before what was being done had ended"))
        }
        () = larder_operator::run(settings, client, start, admin, webhook) => Ok(()),
    }
}

async fn bind(address: SocketAddr) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let tcp = TcpListener::bind(address).await;
    let tcp = tcp.with_context(|| format!("listening on {address}"))?;
    let address = tcp.local_addr().context("asking where we listen")?;
    Ok((tcp, address))
}

/// What `serve` says to a configuration of a cache.
fn check(text: &str, files: &BTreeMap<String, String>) -> Vec<Mistake> {
    let overrides = Overrides::default();
    let files = &Given(files);
    let environment = Environment { overrides, default_data: PathBuf::new(), files };
    let mistakes = config::parse(text, "larder.toml", &environment).err().unwrap_or_default();
    let mistake = |config::Mistake { key, what, advice, .. }| {
        let what = advice.map_or(what.clone(), |advice| format!("{what}; {advice}"));
        Mistake { key, what }
    };
    mistakes.into_iter().map(mistake).collect()
}

/// Files as they would be in a replica's pod.
struct Given<'f>(&'f BTreeMap<String, String>);

impl Files for Given<'_> {
    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        let text = path.to_str().and_then(|path| self.0.get(path));
        text.map(|it| it.clone().into_bytes()).ok_or(io::ErrorKind::NotFound.into())
    }
}

async fn cleanup(command: &Controller, timeout: Duration) -> anyhow::Result<()> {
    let client = larder_k8s::connect().await?;
    let namespace = namespace(command, &client);
    let removed = larder_operator::remove_all(client, &namespace);
    match tokio::time::timeout(timeout, removed).await {
        Ok(removed) => removed.context("deleting the caches"),
        Err(_) => Err(anyhow!(
            "there are still caches in {namespace}; is a controller running that removes them?"
        )),
    }
}

fn namespace(command: &Controller, client: &larder_operator::Client) -> String {
    command.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned())
}

/// That of the pod; without one, one that nobody else has.
fn own_name() -> String {
    let named = env::var("HOSTNAME").ok().filter(|name| !name.is_empty());
    named.unwrap_or_else(|| format!("larder-{}", std::process::id()))
}

/// Says on stdout where we serve. Others wait for these lines.
fn say_where(admin: SocketAddr, webhook: Option<SocketAddr>) {
    let mut lines = webhook.map(|it| format!("webhook on https://{it}\n")).unwrap_or_default();
    lines.push_str(&format!("admin on http://{admin}\n"));
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush()) {
        warn!("saying on stdout where we listen: {error}");
    }
}
