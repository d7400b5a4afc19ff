//! Small manifests: how many per second, and how long each takes at half of that.

use std::net::SocketAddr;
use std::time::Duration;

use super::http;
use super::larder::{Larder, Setup, manifest_path};
use super::load::{Load, Same};
use super::peers::Registry;
use super::report::{Findings, Target, Unit};
use super::rounds::take_turns;
use super::{Bench, progress};

const N_CONNECTIONS: usize = 64;

/// Bytes of the manifest.
const SIZE: usize = 2048;

/// What this section does.
pub(crate) fn what(_: &Bench) -> String {
    format!(
        "A stored manifest of 2 KiB over {N_CONNECTIONS} connections. First each connection asks \
         again as soon as it was answered; then requests are sent evenly at half of that rate, and \
         timed from when each was to be sent, whether or not a connection was free then."
    )
}

/// One server and what it is asked for.
struct Contender {
    name: &'static str,
    address: SocketAddr,
    request: Vec<u8>,
}

/// Compares rates, and times requests.
///
/// # Errors
///
/// A program does not start, or an answer is not a 200.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let manifest = bench.images().add_manifest("small", SIZE)?;
    let registry = Registry::start(bench, None)?;
    let data = bench.directory()?;
    let larder = Larder::start(bench, &Setup::new(registry.address(), data.path().to_owned()))?;
    let digest = manifest.digest.to_string();
    let contender = |name, address: SocketAddr, path: String| Contender {
        name,
        address,
        request: http::get(&address.to_string(), &path),
    };
    let from_larder = |name, reference| contender(name, larder.address(), manifest_path(reference));
    let from_registry =
        |name, reference| contender(name, registry.address(), Registry::manifest_path(reference));
    let mut contenders = [
        from_larder("larder, by tag", manifest.tag),
        from_larder("larder, by digest", &digest),
        from_registry("docker-registry, by tag", manifest.tag),
        from_registry("docker-registry, by digest", &digest),
    ];
    for reference in [manifest.tag, &digest] {
        let body = larder.manifest(reference).body()?;
        anyhow::ensure!(body == manifest.bytes, "larder serves another manifest for {reference}");
    }

    let time = Duration::from_millis(bench.scaled(3000, 500));
    let rates = take_turns("manifests", bench.scaled(3, 2), &mut contenders, |it| {
        Ok(it.load()?.as_fast_as_answered(&mut Same(&it.request), time)?.per_second())
    })?;
    let mut findings = Findings::default();
    let mut medians = [0.0; 4];
    for ((contender, rates), median) in contenders.iter().zip(&rates).zip(&mut medians) {
        *median = findings.row(contender.name, Unit::PerSecond, rates);
    }
    let [tag, digest, registry_tag, registry_digest] = medians;
    let by_tag = tag / registry_tag;
    let by_digest = digest / registry_digest;
    let target = Target::AtLeast(40.0);
    findings.target("by tag, larder ÷ docker-registry", Unit::Times, by_tag, target);
    findings.target("by digest, larder ÷ docker-registry", Unit::Times, by_digest, target);

    let time = Duration::from_secs(bench.scaled(8, 2));
    for (contender, rate) in contenders.iter().zip(medians) {
        let p99 = contender.time_at(rate / 2.0, time, &mut findings)?;
        if contender.address == larder.address() {
            let what = format!("{} at half its rate: 99 % within", contender.name);
            findings.target(what, Unit::Milliseconds, p99, Target::AtMost(5.0));
        }
    }
    Ok(findings)
}

impl Contender {
    fn load(&self) -> anyhow::Result<Load> {
        Load::connect(self.address, N_CONNECTIONS)
    }

    /// Times requests at a given rate. The 99th percentile in milliseconds.
    fn time_at(
        &self,
        per_second: f64,
        time: Duration,
        findings: &mut Findings,
    ) -> anyhow::Result<f64> {
        progress(&format!("manifests: {} at {per_second:.0}/s", self.name));
        let mut answers = self.load()?.at_rate(&mut Same(&self.request), per_second, time)?;
        let percents = [50.0, 99.0, 99.9];
        let times = answers.latencies.percentiles(percents);
        for (percent, milliseconds) in percents.into_iter().zip(times) {
            let what = format!("{} at {per_second:.0}/s: {percent} % within", self.name);
            findings.row(what, Unit::Milliseconds, &[milliseconds]);
        }
        Ok(times[1])
    }
}
