//! Many clients at once on a stored blob.

use super::client::Target as Get;
use super::crowd;
use super::larder::{Larder, Setup};
use super::peers::Registry;
use super::proc::{PeakMemory, cpu_seconds};
use super::report::{Findings, Target, Unit};
use super::{Bench, GIB, MIB, progress};

const N_STREAMS: usize = 256;

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "{N_STREAMS} clients at once download a stored {} MiB blob, all in one thread of the bench.",
        bench.scaled(64, 16)
    )
}

/// Compares memory and throughput.
///
/// # Errors
///
/// A program does not start, a body is not whole, or everything is stuck for 60 s.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let blob = bench.images().add_random(3, bench.scaled(64, 16) * MIB)?;
    let upstream = Registry::start(bench, None)?;
    let registry = Registry::start(bench, None)?;
    let data = bench.directory()?;
    let larder = Larder::start(bench, &Setup::new(upstream.address(), data.path().to_owned()))?;
    let mut findings = Findings::default();

    let from_larder = larder.blob(&blob.digest);
    from_larder.verify(&blob.digest)?;
    let memory = watch("larder", &from_larder, larder.pid(), &mut findings)?;
    watch("docker-registry", &registry.blob(&blob.digest), registry.pid(), &mut findings)?;
    findings.target("larder: memory at most", Unit::Mebibytes, memory, Target::AtMost(100.0));
    Ok(findings)
}

/// Lets all streams run against one server. Its peak memory in MiB.
fn watch(name: &str, get: &Get, pid: u32, findings: &mut Findings) -> anyhow::Result<f64> {
    progress(&format!("streams: {name}"));
    let before = cpu_seconds(pid)?;
    let memory = PeakMemory::watch(pid);
    let crowd = crowd::download(get, N_STREAMS, None)?;
    let cpu = cpu_seconds(pid)? - before;
    anyhow::ensure!(crowd.right == N_STREAMS, "{name}: {} whole bodies", crowd.right);
    let rate = crowd.megabytes_per_second();
    findings.row(format!("{name}, all streams"), Unit::MegabytesPerSecond, &[rate]);
    let gib = crowd.bytes as f64 / GIB;
    findings.row(name, Unit::CpuSecondsPerGib, &[cpu / gib]);
    Ok(findings.row(format!("{name}, memory at most"), Unit::Mebibytes, &[memory.mebibytes()]))
}
