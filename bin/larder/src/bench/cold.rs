//! The first pull of a blob.

use std::net::SocketAddr;

use anyhow::Context;

use super::content::Blob;
use super::forwarder::{Forwarder, Link};
use super::larder::{Larder, Setup};
use super::peers::{Registry, blob_at};
use super::proc::cpu_seconds;
use super::report::{Findings, Target, Unit};
use super::rounds::take_turns;
use super::stats::Summary;
use super::{Bench, GIB, MIB, progress};

/// Above the size that larder verifies before the first byte, 1 MiB.
const FIRST_BYTE_BLOB: u64 = 8 * MIB;

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "A {} MiB blob straight from the upstream, and through a larder that has nothing stored \
         (a new one for each round). The first byte is timed on {} blobs of 8 MiB, from when the \
         forwarder passes on the first byte of the upstream's body.",
        bench.scaled(256, 64),
        bench.scaled(50, 10)
    )
}

/// Times first bytes and whole pulls.
///
/// # Errors
///
/// A program does not start, or a download fails.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let registry = Registry::start(bench, None)?;
    let bare = registry.address();
    let mut findings = Findings::default();
    let gbit = |n: u64| Link { total: Some(n * 125_000_000), ..Link::default() };
    let links = [("loopback", Link::default()), ("1 Gbit/s", gbit(1))];
    for ((name, link), series) in links.into_iter().zip(1..) {
        first_byte(bench, bare, name, link, series, &mut findings)?;
    }

    let blob = bench.images().add_random(1, bench.scaled(256, 64) * MIB)?;
    pull(bench, bare, "loopback", &blob, bench.scaled(9, 3), &mut findings)?;
    for (name, link) in [("10 Gbit/s", gbit(10)), ("1 Gbit/s", gbit(1))] {
        let forwarder = Forwarder::start(bare, link)?;
        let rounds = bench.scaled(7, 2);
        let ratio = pull(bench, forwarder.address(), name, &blob, rounds, &mut findings)?;
        let what = format!("{name}: through larder ÷ direct");
        findings.target(what, Unit::Times, ratio, Target::AtMost(1.05));
    }
    findings.note(
        "On bare loopback nothing waits for a network: upstream, larder (which also hashes and \
         stores), forwarder and client share the cores, and so they do at 10 Gbit/s; what is seen \
         there is CPU time, and waiting for a core, not for larder.",
    );
    Ok(findings)
}

/// Times the first byte of each of some blobs, which are other ones for every `series`.
fn first_byte(
    bench: &Bench,
    upstream: SocketAddr,
    name: &str,
    link: Link,
    series: u64,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    progress(&format!("cold, {name}: first byte"));
    let forwarder = Forwarder::start(upstream, link)?;
    let data = bench.directory()?;
    let larder = Larder::start(bench, &Setup::new(forwarder.address(), data.path().to_owned()))?;
    let mut milliseconds = Vec::new();
    for round in 0..bench.scaled(50, 10) {
        let blob = bench.images().add_random(1000 * series + round, FIRST_BYTE_BLOB)?;
        let download = larder.blob(&blob.digest).verify(&blob.digest)?;
        let upstream = forwarder.first_byte_of(&blob.digest).context("no body came through")?;
        let later = download.first_byte.saturating_duration_since(upstream);
        milliseconds.push(later.as_secs_f64() * 1e3);
    }
    let what = format!("{name}: first byte after the upstream's");
    let median = findings.row(&what, Unit::Milliseconds, &milliseconds);
    findings.target(&what, Unit::Milliseconds, median, Target::AtMost(5.0));
    let max = Summary::of(&milliseconds).map_or(f64::NAN, |summary| summary.max);
    findings.target(format!("{what}, slowest"), Unit::Milliseconds, max, Target::AtMost(5.0));
    Ok(())
}

/// Direct and cold pulls of `blob` from `upstream`, in turns. Time through larder, as a multiple
/// of the time without it.
fn pull(
    bench: &Bench,
    upstream: SocketAddr,
    name: &str,
    blob: &Blob,
    rounds: usize,
    findings: &mut Findings,
) -> anyhow::Result<f64> {
    let direct = || Ok((blob_at(upstream, &blob.digest).drain()?.seconds(), 0.0));
    let cold = || {
        let data = bench.directory()?;
        let larder = Larder::start(bench, &Setup::new(upstream, data.path().to_owned()))?;
        let before = cpu_seconds(larder.pid())?;
        let seconds = larder.blob(&blob.digest).drain()?.seconds();
        let cpu = cpu_seconds(larder.pid())? - before;
        Ok((seconds, cpu / (blob.size as f64 / GIB)))
    };
    let mut contenders: [&dyn Fn() -> anyhow::Result<(f64, f64)>; 2] = [&direct, &cold];
    let what = format!("cold, {name}");
    let rounds = take_turns(&what, rounds, &mut contenders, |contender| contender())?;
    let [direct, cold] =
        [0, 1].map(|who| rounds[who].iter().copied().unzip::<_, _, Vec<_>, Vec<_>>());
    let direct_s = findings.row(format!("{name}: direct"), Unit::Seconds, &direct.0);
    let cold_s = findings.row(format!("{name}: through larder"), Unit::Seconds, &cold.0);
    findings.row(format!("{name}: larder"), Unit::CpuSecondsPerGib, &cold.1);
    Ok(cold_s / direct_s)
}
