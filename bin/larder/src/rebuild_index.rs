//! `larder rebuild-index`

use std::io::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use larder_core::size::human_size;
use tokio::runtime;

use crate::cli::RebuildIndex;
use crate::failure::Failure;
use crate::progress::Progress;

/// How often a person is told how far it is.
const PERIOD: Duration = Duration::from_millis(200);

pub(crate) fn run(command: &RebuildIndex) -> Result<(), Failure> {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("starting threads")?;
    let rebuilt = runtime.block_on(async {
        let read = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&read);
        let add = move |n| {
            count.fetch_add(n, Ordering::Relaxed);
        };
        let rebuilding = larder_registry::rebuild_index(command.data.clone(), add);
        let (mut rebuilding, mut progress) = (std::pin::pin!(rebuilding), Progress::new("read"));
        loop {
            tokio::select! {
                rebuilt = &mut rebuilding => return rebuilt,
                () = tokio::time::sleep(PERIOD) => {
                    progress.show(read.load(Ordering::Relaxed), None);
                }
            }
        }
    });
    let found = rebuilt.map_err(anyhow::Error::new)?;
    let bytes = human_size(found.bytes);
    let mut text = format!(
        "the index has {} blobs of {bytes}, {} of them manifests",
        found.blobs, found.manifests
    );
    if found.bad > 0 {
        text.push_str(&format!("; {} files were something else and are in quarantine", found.bad));
    }
    writeln!(io::stdout(), "{text}").map_err(Failure::writing)
}
