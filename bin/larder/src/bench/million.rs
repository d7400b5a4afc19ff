//! A store with a million blobs: how it starts, and how it makes room while it serves.

use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::content::Blob;
use super::http;
use super::index::fill;
use super::larder::{Larder, Setup, blob_path};
use super::load::{Load, Requests};
use super::origin::Origin;
use super::proc::PeakMemory;
use super::report::{Findings, Target, Unit};
use super::stats::Latencies;
use super::{Bench, progress};

/// Blobs that clients go on asking for: what a busy node pulls.
const N_HOT: usize = 1000;

/// Requests per second for those, over some connections.
const RATE: f64 = 500.0;
const N_CONNECTIONS: usize = 8;

/// Far longer than making room takes.
const ROOM_WITHIN: Duration = Duration::from_secs(300);

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "A store is filled with {} blobs of 64 bytes, and larder is started again: from the start of \
         the process until `/readyz` says 200. Then it is started with a budget just below what is \
         stored, so that it evicts 10 %, while {RATE} stored blobs per second are asked for, evenly, \
         over {N_CONNECTIONS} connections.",
        n_blobs(bench)
    )
}

fn n_blobs(bench: &Bench) -> usize {
    bench.scaled(1_000_000, 20_000)
}

/// Times both.
///
/// # Errors
///
/// A program does not start, a request fails, or no room is made.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let origin = Origin::start(n_blobs(bench))?;
    let data = bench.directory()?;
    let mut setup = Setup::new(origin.address(), data.path().to_owned());
    let larder = Larder::start(bench, &setup)?;
    progress("million: filling");
    for tag in origin.tags() {
        larder.manifest(&tag).body()?;
    }
    let mut findings = Findings::default();
    let filled = fill(larder.address(), origin.blobs())?;
    findings.row("blobs filled", Unit::PerSecond, &[filled]);
    let hot = &origin.blobs()[origin.blobs().len().saturating_sub(N_HOT)..];
    for _ in 0..2 {
        fill(larder.address(), hot)?;
    }
    let stored = larder.metric("larder_store_bytes")?;
    larder.stop();

    progress("million: starting");
    let started = Instant::now();
    let larder = Larder::start(bench, &setup)?;
    let start =
        findings.row("start until ready", Unit::Seconds, &[started.elapsed().as_secs_f64()]);
    findings.target("start until ready", Unit::Seconds, start, Target::AtMost(5.0));
    larder.stop();

    progress("million: making room");
    setup.budget = Some(stored as u64 - 1);
    let began = Instant::now();
    let larder = Larder::start(bench, &setup)?;
    let memory = PeakMemory::watch(larder.pid());
    let enough = stored * 0.9;
    let mut latencies = Latencies::with_capacity(1 << 16);
    let mut load = Load::connect(larder.address(), N_CONNECTIONS)?;
    let mut asked = Around { host: larder.address().to_string(), blobs: hot.iter().cycle() };
    let took = loop {
        let answers = load.at_rate(&mut asked, RATE, Duration::from_secs(1))?;
        latencies.extend(answers.latencies);
        if larder.metric("larder_store_bytes")? <= enough {
            break began.elapsed();
        }
        anyhow::ensure!(began.elapsed() < ROOM_WITHIN, "no room was made in {ROOM_WITHIN:?}");
    };
    let took = findings.row("evicting 10 %, with the start", Unit::Seconds, &[took.as_secs_f64()]);
    findings.target("evicting 10 %", Unit::Seconds, took, Target::AtMost(30.0));
    let percents = [50.0, 99.0, 99.9];
    let times = latencies.percentiles(percents);
    for (percent, milliseconds) in percents.into_iter().zip(times) {
        findings.row(
            format!("reads meanwhile: {percent} % within"),
            Unit::Milliseconds,
            &[milliseconds],
        );
    }
    let target = Target::AtMost(10.0);
    findings.target("reads meanwhile: 99 % within", Unit::Milliseconds, times[1], target);
    let memory = findings.row("memory", Unit::Mebibytes, &[memory.mebibytes()]);
    findings.target("memory", Unit::Mebibytes, memory, Target::AtMost(200.0));
    larder.stop();
    Ok(findings)
}

/// A GET of each blob, again and again.
struct Around<'a> {
    host: String,
    blobs: std::iter::Cycle<std::slice::Iter<'a, Blob>>,
}

impl Requests for Around<'_> {
    fn next(&mut self, request: &mut Vec<u8>) -> bool {
        let Some(blob) = self.blobs.next() else { return false };
        request.extend(http::get(&self.host, &blob_path(&blob.digest)));
        true
    }
}

impl Larder {
    /// The one sample of a metric now.
    fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let text = String::from_utf8(self.admin("/metrics").body()?)?;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        let value = line.and_then(|value| value.trim().parse().ok());
        value.with_context(|| format!("larder has no metric {name}"))
    }
}
