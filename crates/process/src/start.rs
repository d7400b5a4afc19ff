//! What a service is given when it starts.

use std::fmt;

use tokio_util::sync::CancellationToken;

use crate::health::Health;
use crate::metrics::Metrics;

/// What a service is given when it starts.
#[derive(Debug)]
pub struct Start {
    /// Cancelled once: no new work then, end what there is, return.
    pub stopping: CancellationToken,
    /// Where each part says whether it can do its work.
    pub health: Health,
    /// Where metrics are registered, until [`crate::admin::router`] takes it.
    pub metrics: Metrics,
    /// Says to whoever started the process that it serves now. Call it once everything is open.
    pub announce: Announce,
}

impl Start {
    /// Of a process of this version, with nothing registered; `announce` is what happens when it
    /// serves.
    pub fn new(
        version: &'static str,
        stopping: &CancellationToken,
        announce: impl FnOnce() + Send + 'static,
    ) -> Self {
        Self {
            stopping: stopping.clone(),
            health: Health::new(stopping.clone()),
            metrics: Metrics::new("larder", version),
            announce: Announce::new(announce),
        }
    }
}

/// Says that the process serves now. Can be said once; dropped, it is never said.
pub struct Announce(Box<dyn FnOnce() + Send>);

impl Announce {
    /// `say` is what happens then.
    pub fn new(say: impl FnOnce() + Send + 'static) -> Self {
        Self(Box::new(say))
    }

    /// Says it.
    pub fn now(self) {
        (self.0)();
    }
}

impl fmt::Debug for Announce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Announce")
    }
}
