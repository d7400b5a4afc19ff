//! `larder serve`

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use clap::ArgMatches;
use larder_process::shutdown::{self, Signals};
use larder_process::{Start, logs};
use larder_registry::Reread;
use larder_registry::config::{Config, Listener};
use rustls::crypto::aws_lc_rs;
use tokio::net::TcpListener;
use tokio::runtime;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::cli::Serve;
use crate::failure::Failure;

/// How long to wait at the end for threads that are still busy with the disk.
const LAST_THREADS: Duration = Duration::from_secs(5);

pub(crate) fn run(command: &Serve, matches: &ArgMatches) -> Result<(), Failure> {
    let config = command.settings.read(matches)?;
    let reread = reread(command, matches);
    logs::init(command.log_format.into(), &command.log_level).context("beginning to log")?;
    aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("TLS has a provider of cryptography already"))?;
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("starting threads")?;
    let ended = runtime.block_on(serve(config, reread));
    runtime.shutdown_timeout(match ended {
        Ok(()) => LAST_THREADS,
        Err(_) => Duration::ZERO,
    });
    Ok(ended?)
}

/// How the configuration is read again.
fn reread(command: &Serve, matches: &ArgMatches) -> Reread {
    let (settings, matches) = (command.settings.clone(), matches.clone());
    Arc::new(move || {
        settings.read(&matches).map_err(|failure| failure.to_string().trim_end().to_owned())
    })
}

async fn serve(config: Config, reread: Reread) -> anyhow::Result<()> {
    let mut signals = Signals::listen().context("waiting for signals")?;
    let stopping = CancellationToken::new();
    let (listeners, admin) = bind(&config).await?;

    let scheme = if config.tls.is_some() { "https" } else { "http" };
    let mut addresses = listeners.iter().map(|(tcp, _)| tcp.local_addr());
    let addresses = addresses.by_ref().collect::<io::Result<Vec<_>>>();
    let addresses = addresses.context("asking where we listen")?;
    let admin_address = admin.local_addr().context("asking where we listen")?;
    let announce = move || say_where(scheme, &addresses, admin_address);

    if let Err(error) = larder_process::files::raise_limit() {
        warn!(%error, "raising the limit of open files");
    }
    let version = env!("CARGO_PKG_VERSION");
    info!("larder {version} is starting; its store is {}", config.data.display());
    let start = Start::new(version, &stopping, announce);
    tokio::select! {
        biased;
        () = shutdown::second_signal(async || signals.next().await, &stopping) => {
            Err(anyhow!("ended by a second signal, before what was being done had ended"))
        }
        ended = larder_registry::run(config, reread, start, listeners, admin) => Ok(ended?),
    }
}

/// Opens every address, before anything else is opened: what cannot be had is known at once.
async fn bind(config: &Config) -> anyhow::Result<(Vec<(TcpListener, Listener)>, TcpListener)> {
    let mut listeners = Vec::new();
    for listener in &config.listen {
        listeners.push((bind_one(listener.address).await?, listener.clone()));
    }
    Ok((listeners, bind_one(config.admin).await?))
}

async fn bind_one(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listening on {address}"))
}

/// Says on stdout where we serve. Others wait for these lines.
fn say_where(scheme: &str, addresses: &[SocketAddr], admin: SocketAddr) {
    let mut lines: String =
        addresses.iter().map(|address| format!("listening on {scheme}://{address}\n")).collect();
    lines.push_str(&format!("admin on http://{admin}\n"));
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(lines.as_bytes()).and_then(|()| stdout.flush()) {
        warn!("saying on stdout where we listen: {error}");
    }
}
