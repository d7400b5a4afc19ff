//! Many clients at once on a blob that is not stored.

use std::time::Duration;

use super::content::Blob;
use super::crowd;
use super::forwarder::{Forwarder, Link};
use super::larder::{Larder, Setup};
use super::peers::Registry;
use super::proc::PeakMemory;
use super::report::{Findings, Target, Unit};
use super::{Bench, MIB};

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "Clients ask at once for a {} MiB blob that is not stored. A forwarder in front of the \
         upstream counts requests and bytes; every body is hashed.",
        bench.scaled(256, 32)
    )
}

/// Counts what clients get, and what the upstream gives for it.
///
/// # Errors
///
/// A program does not start, or everything is stuck for 60 s.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let blob = bench.images().add_random(1, bench.scaled(256, 32) * MIB)?;
    let registry = Registry::start(bench, None)?;
    let mut findings = Findings::default();
    pull(bench, &registry, &blob, 64, Duration::ZERO, &mut findings)?;
    pull(bench, &registry, &blob, 20, Duration::from_secs(2), &mut findings)?;
    Ok(findings)
}

fn pull(
    bench: &Bench,
    registry: &Registry,
    blob: &Blob,
    n_clients: usize,
    first_byte: Duration,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    super::progress(&format!("coalesce: {n_clients} clients"));
    let link = Link { first_byte, ..Link::default() };
    let forwarder = Forwarder::start(registry.address(), link)?;
    let data = bench.directory()?;
    let setup = Setup::new(forwarder.address(), data.path().to_owned());
    let larder = Larder::start(bench, &setup)?;
    let before = forwarder.bytes_received();
    let memory = PeakMemory::watch(larder.pid());
    let crowd = crowd::download(&larder.blob(&blob.digest), n_clients, Some(&blob.digest))?;

    let who = match first_byte {
        Duration::ZERO => format!("{n_clients} clients"),
        _ => format!("{n_clients} clients, upstream thinks {} s", first_byte.as_secs()),
    };
    let bytes = (forwarder.bytes_received() - before) as f64 / blob.size as f64;
    let gets = forwarder.gets_of(&blob.digest) as f64;
    let right = crowd.right as f64;
    let mut target = |what: &str, unit, measured, target| {
        findings.target(format!("{who}: {what}"), unit, measured, target);
    };
    target("right bodies", Unit::Count, right, Target::Exactly(n_clients as f64));
    target("GETs upstream", Unit::Count, gets, Target::Exactly(1.0));
    target("bytes upstream", Unit::Times, bytes, Target::AtMost(1.01));
    target("memory at most", Unit::Mebibytes, memory.mebibytes(), Target::AtMost(100.0));
    findings.row(format!("{who}: until all have it"), Unit::Seconds, &[crowd.seconds]);
    Ok(())
}
