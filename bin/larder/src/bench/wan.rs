//! The first and the second pull over a long way.

use std::time::Duration;

use super::forwarder::{Forwarder, Link};
use super::larder::{Larder, Setup};
use super::peers::{Registry, blob_at};
use super::report::{Findings, Target, Unit};
use super::{Bench, MIB, progress};

/// One way; 80 ms both ways.
const DELAY: Duration = Duration::from_millis(40);

/// What one connection brings, in bytes per second.
const PER_CONNECTION: u64 = 25_000_000;

/// Connections that larder may use for one blob.
const PARALLEL: u8 = 8;

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "A {} MiB blob over a way of 80 ms that brings {} MB/s per connection: straight from the \
         upstream, first through a larder with `parallel = {PARALLEL}`, and again from it. Delay \
         and limit are a forwarder's, in user space.",
        bench.scaled(1024, 96),
        PER_CONNECTION / 1_000_000
    )
}

/// Times the three pulls.
///
/// # Errors
///
/// A program does not start, or a download fails.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let blob = bench.images().add_random(2, bench.scaled(1024, 96) * MIB)?;
    let registry = Registry::start(bench, None)?;
    let link = Link { delay: DELAY, per_connection: Some(PER_CONNECTION), ..Link::default() };
    let forwarder = Forwarder::start(registry.address(), link)?;
    let direct = blob_at(forwarder.address(), &blob.digest);
    let (mut direct_s, mut first_s, mut second_s) = (Vec::new(), Vec::new(), Vec::new());
    let rounds = bench.scaled(3, 1);
    for round in 1..=rounds {
        progress(&format!("wan: round {round} of {rounds}"));
        direct_s.push(direct.drain()?.seconds());
        let data = bench.directory()?;
        let setup = Setup::new(forwarder.address(), data.path().to_owned());
        let larder = Larder::start(bench, &Setup { parallel: PARALLEL, ..setup })?;
        let get = larder.blob(&blob.digest);
        first_s.push(get.drain()?.seconds());
        second_s.push(get.drain()?.seconds());
        if round == rounds {
            get.verify(&blob.digest)?;
        }
    }
    let mut findings = Findings::default();
    let direct = findings.row("direct", Unit::Seconds, &direct_s);
    let first = findings.row("through larder, first", Unit::Seconds, &first_s);
    let second = findings.row("through larder, second", Unit::Seconds, &second_s);
    findings.target("direct ÷ first", Unit::Times, direct / first, Target::AtLeast(1.0));
    findings.target("direct ÷ second", Unit::Times, direct / second, Target::AtLeast(4.2));
    Ok(findings)
}
