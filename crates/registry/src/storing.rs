//! Whether the disk takes what comes, for who watches this process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use larder_process::health::Component;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// How often it is looked at; no disk is asked for it.
const PERIOD: Duration = Duration::from_secs(1);

/// What came of storing something last. Cheap to clone; all clones are the same.
#[derive(Clone, Debug, Default)]
pub(crate) struct Storing {
    is_refused: Arc<AtomicBool>,
}

impl Storing {
    /// Something could not be stored.
    pub(crate) fn was_refused(&self) {
        self.is_refused.store(true, Ordering::Relaxed);
    }

    /// Something was stored.
    pub(crate) fn went_well(&self) {
        self.is_refused.store(false, Ordering::Relaxed);
    }
}

/// Says what came of it last, until `stopping`. The process is ready all the same: clients get what
/// they ask for, also where nothing can be stored.
pub(crate) async fn watch(storing: Storing, component: Component, stopping: CancellationToken) {
    let watching = async {
        loop {
            match storing.is_refused.load(Ordering::Relaxed) {
                false => component.ready(),
                true => component.ready_without(
                    "what came last could not be stored and was passed on; see larder's log",
                ),
            }
            sleep(PERIOD).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = stopping.cancelled() => {}
    }
}
