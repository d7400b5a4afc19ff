//! An upstream that takes connections and never answers.

use super::client::Target as Get;
use super::forwarder::{Forwarder, Link};
use super::larder::{Larder, Setup};
use super::peers::Registry;
use super::report::{Findings, Target, Unit};
use super::{Bench, progress};

/// The deadline, and what an answer itself takes after it.
const AT_MOST: f64 = 1000.0 + 50.0;

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "A stored tag that is asked for again each time (`freshness = \"0s\"`, `deadline = \"1s\"`) \
         while the upstream takes connections and says nothing: the first request, and {} more. \
         Each connects anew.",
        bench.scaled(50, 20)
    )
}

/// Times the answers.
///
/// # Errors
///
/// A program does not start, or a request fails.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    progress("outage");
    let manifest = bench.images().add_manifest("stable", 2048)?;
    let registry = Registry::start(bench, None)?;
    let forwarder = Forwarder::start(registry.address(), Link::default())?;
    let data = bench.directory()?;
    let setup = Setup::new(forwarder.address(), data.path().to_owned());
    let larder = Larder::start(bench, &Setup { freshness: "0s", ..setup })?;
    let get = larder.manifest(manifest.tag);
    anyhow::ensure!(get.body()? == manifest.bytes, "larder serves another manifest");

    forwarder.fall_silent();
    let milliseconds = |get: &Get| -> anyhow::Result<f64> {
        let started = std::time::Instant::now();
        anyhow::ensure!(get.body()? == manifest.bytes, "larder serves another manifest");
        Ok(started.elapsed().as_secs_f64() * 1e3)
    };
    let first = milliseconds(&get)?;
    let rounds = 0..bench.scaled(50, 20);
    let next: Vec<f64> = rounds.map(|_| milliseconds(&get)).collect::<Result<_, _>>()?;
    let slowest = next.iter().copied().fold(0.0, f64::max);

    let mut findings = Findings::default();
    findings.row("first answer", Unit::Milliseconds, &[first]);
    findings.row("next answers", Unit::Milliseconds, &next);
    findings.target("first answer", Unit::Milliseconds, first, Target::AtMost(AT_MOST));
    findings.target("next answers, slowest", Unit::Milliseconds, slowest, Target::AtMost(10.0));
    findings
        .note("The first answer may take the deadline of 1 s, and 50 ms for the answer itself.");
    Ok(findings)
}
