//! Reading the configuration again while the process runs: when it has changed, and on SIGHUP.

use std::sync::Arc;

use larder_process::tls::POLL;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::config::Config;
use crate::service::Registry;

/// Reads the configuration as it is now, or says in lines for people what is wrong with it. Blocks on
/// the disk.
pub type Reread = Arc<dyn Fn() -> Result<Config, String> + Send + Sync>;

/// Has what changes in the configuration count, until `stopping`. One that cannot be used is logged
/// once, and the one before counts.
///
/// The whole is read every time, not only when the file has another date: what it depends on besides
/// are variables and other files.
pub(crate) async fn follow(
    registry: Arc<Registry>,
    mut current: Config,
    reread: Reread,
    stopping: CancellationToken,
) {
    let mut hangup = match signal(SignalKind::hangup()) {
        Ok(hangup) => hangup,
        Err(error) => return warn!(%error, "the configuration will not be read again"),
    };
    let mut said = String::new();
    loop {
        let is_asked = tokio::select! {
            () = tokio::time::sleep(POLL) => false,
            _ = hangup.recv() => true,
            () = stopping.cancelled() => return,
        };
        let reread = Arc::clone(&reread);
        let read = tokio::task::spawn_blocking(move || reread()).await;
        let outcome = match read {
            Ok(Ok(config)) if config == current => Ok(None),
            Ok(Ok(config)) => {
                let adopted = registry.reconfigure(config.clone()).await;
                if adopted.is_ok() {
                    registry.peers.reconfigure(config.peers.clone(), config.peers_ca.clone());
                }
                adopted.map(|()| Some(config)).map_err(|error| error.to_string())
            }
            Ok(Err(mistakes)) => Err(mistakes),
            Err(_) => return,
        };
        match outcome {
            Ok(changed) => {
                said.clear();
                if let Some(config) = changed {
                    info!("the configuration has changed");
                    for key in needs_restart(&current, &config) {
                        warn!("`{key}` has changed; that counts from the next start on");
                    }
                    current = config;
                } else if is_asked {
                    info!("the configuration is as it was");
                }
            }
            Err(mistakes) => {
                if is_asked || said != mistakes {
                    error!("the configuration cannot be used; the one before counts: {mistakes}");
                }
                said = mistakes;
            }
        }
    }
}

/// The keys that differ and count from the start only.
fn needs_restart(old: &Config, new: &Config) -> Vec<&'static str> {
    // Whole, so that nobody forgets a new key here.
    let Config {
        listen,
        admin,
        admin_token_file,
        data,
        offline,
        budget,
        low_watermark,
        shared,
        scrub,
        tls,
        default_upstream,
        hosts,
        ttl: _,
        untagged_ttl: _,
        pins: _,
        upstreams: _,
        peers: _,
        peers_ca: _,
    } = old;
    let keys = [
        ("listen", *listen != new.listen),
        ("admin", *admin != new.admin),
        ("admin_token_file", *admin_token_file != new.admin_token_file),
        ("data", *data != new.data),
        ("offline", *offline != new.offline),
        ("budget", *budget != new.budget),
        ("low_watermark", *low_watermark != new.low_watermark),
        ("storage", *shared != new.shared),
        ("scrub", *scrub != new.scrub),
        ("tls_cert", *tls != new.tls),
        ("default_upstream", *default_upstream != new.default_upstream),
        ("hosts", *hosts != new.hosts),
    ];
    keys.into_iter().filter_map(|(key, differs)| differs.then_some(key)).collect()
}
