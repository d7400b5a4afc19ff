//! One registry that is read from: how it is configured, and how it is doing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use globset::{Glob, GlobSet, GlobSetBuilder};
use larder_core::name::Repository;
use larder_core::{Host, Tag};
use larder_upstream::{Caller, Client, Credentials, Reach, SetupError};
use parking_lot::Mutex;

use crate::config::{self, Access};
use crate::metrics::UpstreamMetrics;
use crate::rights::{Asker, Rights};

/// How long a connection may take, TLS included. Registries answer a handshake within a round trip
/// or two; who takes longer is away.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Why upstreams cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupUpstreamError {
    /// A client cannot be made with these settings.
    #[error("setting up the upstream {upstream}")]
    Client {
        /// The entry, as configured.
        upstream: String,
        /// What is wrong.
        source: SetupError,
    },
    /// A glob cannot be read.
    #[error("reading `allow` and `deny` of the upstream {upstream}")]
    Glob {
        /// The entry, as configured.
        upstream: String,
        /// What is wrong.
        source: globset::Error,
    },
}

/// What the hosts of one entry have in common.
#[derive(Debug)]
pub(crate) struct Settings {
    config: config::Upstream,
    allow: Option<GlobSet>,
    deny: GlobSet,
    /// In the order of `config.tags`.
    tags: GlobSet,
    pub(crate) metrics: Arc<UpstreamMetrics>,
}

/// One registry, as it is asked by us; or by one caller, where each caller's own right counts.
#[derive(Debug)]
pub(crate) struct Upstream {
    pub(crate) settings: Arc<Settings>,
    /// Asks in the name of `asker`, if there is one.
    pub(crate) client: Client,
    pub(crate) standing: Arc<Standing>,
    /// Who asks, where each caller's own right counts; nobody in particular, unless a caller does.
    pub(crate) asker: Option<Asker>,
}

/// How an upstream has been doing lately.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    is_suspect: AtomicBool,
    left_alone_until: Mutex<Option<Instant>>,
}

impl Settings {
    pub(crate) fn new(
        config: config::Upstream,
        metrics: Arc<UpstreamMetrics>,
    ) -> Result<Self, SetupUpstreamError> {
        let bad_glob = |source| {
            let upstream = config.host.to_string();
            SetupUpstreamError::Glob { upstream, source }
        };
        let allow = (!config.allow.is_empty()).then(|| glob_set(&config.allow)).transpose();
        let allow = allow.map_err(bad_glob)?;
        let deny = glob_set(&config.deny).map_err(bad_glob)?;
        let tags = glob_set(config.tags.iter().map(|it| &it.matching)).map_err(bad_glob)?;
        Ok(Self { config, allow, deny, tags, metrics })
    }

    /// Whether this cache serves the repository at all.
    pub(crate) fn allows(&self, repository: &Repository) -> bool {
        let name = repository.as_str();
        self.allow.as_ref().is_none_or(|allow| allow.is_match(name)) && !self.deny.is_match(name)
    }

    /// Whether everybody may read what is stored.
    pub(crate) fn is_for_all(&self) -> bool {
        self.config.access == Access::Shared
    }

    /// How it is configured.
    pub(crate) fn config(&self) -> &config::Upstream {
        &self.config
    }

    /// How long what is known counts, tags aside.
    pub(crate) fn freshness(&self) -> Duration {
        self.config.freshness
    }

    /// How long the answer for a tag counts.
    pub(crate) fn freshness_of(&self, tag: &Tag) -> Duration {
        match self.tags.matches(tag.as_str()).first() {
            Some(first) => self.config.tags[*first].freshness,
            None => self.config.freshness,
        }
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.config.deadline
    }

    pub(crate) fn serve_deleted(&self) -> bool {
        self.config.serve_deleted
    }

    pub(crate) fn parallel(&self) -> u8 {
        self.config.parallel
    }
}

fn glob_set<'a>(globs: impl IntoIterator<Item = &'a String>) -> Result<GlobSet, globset::Error> {
    let set = globs.into_iter().try_fold(GlobSetBuilder::new(), |mut set, glob| {
        set.add(Glob::new(glob)?);
        Ok(set)
    });
    set.and_then(|set| set.build())
}

impl Upstream {
    pub(crate) fn new(settings: &Arc<Settings>, host: &Host) -> Result<Self, SetupUpstreamError> {
        let config = &settings.config;
        let client = Client::new(
            client_settings(config, host),
            Arc::clone(&settings.metrics) as Arc<dyn larder_upstream::Observer>,
        );
        let client = client.map_err(|source| SetupUpstreamError::Client {
            upstream: config.host.to_string(),
            source,
        })?;
        let (client, asker) = match config.access {
            Access::Shared => (client, None),
            Access::Caller(bounds) => {
                let nobody = Asker::new(Caller::NOBODY, &Arc::new(Rights::new(bounds)));
                (client.on_behalf_of(&nobody.caller), Some(nobody))
            }
        };
        Ok(Self { settings: Arc::clone(settings), client, standing: Arc::default(), asker })
    }

    /// The same registry as `caller` asks it, where that makes a difference.
    pub(crate) fn asked_by(self: &Arc<Self>, caller: Caller) -> Arc<Self> {
        match &self.asker {
            // Also nobody is one of their own: what is refused is noted for each request by itself.
            Some(nobody) => Arc::new(Self {
                settings: Arc::clone(&self.settings),
                client: self.client.on_behalf_of(&caller),
                standing: Arc::clone(&self.standing),
                asker: Some(nobody.other(caller)),
            }),
            None => Arc::clone(self),
        }
    }
}

/// How `host`, which is `config`'s or one of those it stands for, is asked.
pub(crate) fn client_settings(config: &config::Upstream, host: &Host) -> larder_upstream::Settings {
    let urls = match config.urls.is_empty() {
        true => config::default_url(host).into_iter().collect(),
        false => config.urls.clone(),
    };
    larder_upstream::Settings {
        host: host.clone(),
        urls,
        credentials: match config.access {
            Access::Shared => config.credentials.clone(),
            Access::Caller(_) => Credentials::Callers,
        },
        proxy: config.proxy.clone(),
        ca: config.ca.clone(),
        client_certificate: config.client_certificate.clone(),
        insecure_skip_verify: config.insecure_skip_verify,
        connect_timeout: CONNECT_TIMEOUT,
        read_timeout: config.read_timeout,
        reach: match config.host.is_any() {
            true => Reach::Public { besides: config.addresses.clone() },
            false => Reach::Anywhere,
        },
        max_requests: config.max_requests,
        max_rate: config.max_rate,
    }
}

impl Standing {
    /// Whether a caller with a stored answer should not wait: upstream's last sign was a failure or
    /// a missed deadline, or it wants to be left alone.
    pub(crate) fn is_suspect(&self) -> bool {
        self.is_suspect.load(Ordering::Relaxed) || self.is_left_alone()
    }

    /// Whether upstream has asked to be left alone, and the time is not over.
    pub(crate) fn is_left_alone(&self) -> bool {
        let mut until = self.left_alone_until.lock();
        match *until {
            Some(instant) if Instant::now() < instant => true,
            Some(_) => {
                *until = None;
                false
            }
            None => false,
        }
    }

    /// Upstream has answered.
    pub(crate) fn answered(&self) {
        self.is_suspect.store(false, Ordering::Relaxed);
    }

    /// Upstream has failed, or not answered in time.
    pub(crate) fn failed(&self) {
        self.is_suspect.store(true, Ordering::Relaxed);
    }

    /// Upstream has asked for fewer requests.
    pub(crate) fn leave_alone(&self, wait: Duration) {
        *self.left_alone_until.lock() = Some(Instant::now() + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_is_suspect_until_it_answers() {
        let standing = Standing::default();
        assert!(!standing.is_suspect());
        standing.failed();
        assert!(standing.is_suspect());
        standing.answered();
        assert!(!standing.is_suspect());
    }

    #[test]
    fn an_upstream_is_left_alone_as_long_as_it_asked() {
        let standing = Standing::default();
        standing.leave_alone(Duration::from_secs(3600));
        standing.answered();
        assert!(standing.is_suspect() && standing.is_left_alone());
        standing.leave_alone(Duration::ZERO);
        assert!(!standing.is_suspect() && !standing.is_left_alone());
    }
}
