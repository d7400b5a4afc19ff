//! A stored blob, one client: larder, nginx and docker-registry in turns.

use super::client::{Download, Target as Get};
use super::larder::{Larder, Setup};
use super::machine::congestion_control;
use super::peers::{Nginx, Registry};
use super::proc::cpu_seconds;
use super::report::{Findings, Target, Unit};
use super::rounds::take_turns;
use super::tls::Certificate;
use super::{Bench, GIB, MIB};

/// What [`measure_plain`] does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "One client, one connection, a stored {} MiB blob: larder, nginx with sendfile, and \
         docker-registry that has the blob itself.",
        size(bench) / MIB
    )
}

/// What [`measure_tls`] does.
pub(crate) fn what_tls(bench: &Bench) -> String {
    format!(
        "The same {} MiB blob over TLS 1.3 with AES-128-GCM, each server ending TLS itself.",
        size(bench) / MIB
    )
}

fn size(bench: &Bench) -> u64 {
    bench.scaled(256, 64) * MIB
}

/// One server and what it is asked for.
struct Contender {
    name: &'static str,
    get: Get,
    pid: u32,
}

/// Medians over the rounds of one server.
struct Measured {
    megabytes_per_second: f64,
    cpu_per_gib: f64,
}

/// Measured on one machine, in a network namespace for each: nginx 3.2 GB/s with bbr and 7.4 GB/s
/// with reno, larder 3.2 and 3.4, docker-registry 2.5 and 2.6.
const PACED: &str = "\
This kernel sends with BBR, which paces what goes over loopback too. That costs nginx, whose \
sendfile copies\nnothing, more than half of its rate, and those who copy hardly anything: with \
cubic or reno, expect nginx to be\ntwice as fast as larder on bare loopback. Larder asks for reno there by itself.";

/// Compares the three without TLS.
///
/// # Errors
///
/// A program does not start, or a download fails.
pub(crate) fn measure_plain(bench: &Bench) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    let [larder, nginx, registry] = compare(bench, false, &mut findings)?;
    let times = |a: f64, b: f64| a / b;
    let rate = |other: &Measured| times(larder.megabytes_per_second, other.megabytes_per_second);
    findings.target("larder ÷ nginx", Unit::Times, rate(&nginx), Target::AtLeast(1.15));
    findings.target("larder ÷ docker-registry", Unit::Times, rate(&registry), Target::AtLeast(1.3));
    let cpu = times(larder.cpu_per_gib, registry.cpu_per_gib);
    let what = "CPU per GiB, larder ÷ docker-registry";
    findings.target(what, Unit::Times, cpu, Target::AtMost(0.7));
    if congestion_control() == "bbr" {
        findings.note(PACED);
    }
    Ok(findings)
}

/// Compares the three with TLS.
///
/// # Errors
///
/// A program does not start, or a download fails.
pub(crate) fn measure_tls(bench: &Bench) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    let [larder, nginx, registry] = compare(bench, true, &mut findings)?;
    let rate = |other: &Measured| larder.megabytes_per_second / other.megabytes_per_second;
    findings.target("larder ÷ nginx", Unit::Times, rate(&nginx), Target::AtLeast(1.1));
    findings.target("larder ÷ docker-registry", Unit::Times, rate(&registry), Target::AtLeast(1.8));
    Ok(findings)
}

fn compare(
    bench: &Bench,
    with_tls: bool,
    findings: &mut Findings,
) -> anyhow::Result<[Measured; 3]> {
    let blob = bench.images().add_random(1, size(bench))?;
    let certificate = Certificate::create(&bench.path(""))?;
    let encrypted = with_tls.then_some(&certificate);
    let registry = Registry::start(bench, encrypted)?;
    let nginx = Nginx::start(bench, &certificate)?;
    let upstream = Registry::start(bench, None)?;
    let data = bench.directory()?;
    let setup = Setup::new(upstream.address(), data.path().to_owned());
    let larder = Larder::start(bench, &Setup { certificate: encrypted, ..setup })?;
    let from_nginx =
        if with_tls { nginx.encrypted_blob(&blob.digest) } else { nginx.blob(&blob.digest) };
    let mut contenders = [
        Contender { name: "larder", get: larder.blob(&blob.digest), pid: larder.pid() },
        Contender { name: "nginx", get: from_nginx, pid: nginx.pid() },
        Contender {
            name: "docker-registry",
            get: registry.blob(&blob.digest),
            pid: registry.pid(),
        },
    ];
    for contender in &contenders {
        // Fills larder, brings the files into memory, and makes sure that all serve the same.
        contender.get.verify(&blob.digest)?;
        contender.get.drain()?;
    }
    let title = if with_tls { "tls" } else { "warm" };
    let results = take_turns(title, bench.scaled(21, 5), &mut contenders, Contender::drain)?;
    let measured = |index: usize| {
        let name: &str = contenders[index].name;
        let rates: Vec<f64> =
            results[index].iter().map(|(it, _)| it.megabytes_per_second()).collect();
        let bytes: u64 = results[index].iter().map(|(it, _)| it.bytes).sum();
        let cpu: f64 = results[index].iter().map(|(_, cpu)| cpu).sum();
        (name, rates, cpu / (bytes as f64 / GIB))
    };
    let all = [0, 1, 2].map(measured);
    let all = all.map(|(name, rates, cpu_per_gib)| {
        let megabytes_per_second = findings.row(name, Unit::MegabytesPerSecond, &rates);
        (name, Measured { megabytes_per_second, cpu_per_gib })
    });
    Ok(all.map(|(name, measured)| {
        let what = format!("{name}, all rounds");
        findings.row(what, Unit::CpuSecondsPerGib, &[measured.cpu_per_gib]);
        measured
    }))
}

impl Contender {
    /// One download, and the CPU seconds that the server took for it.
    fn drain(&mut self) -> anyhow::Result<(Download, f64)> {
        let before = cpu_seconds(self.pid)?;
        let download = self.get.drain()?;
        Ok((download, cpu_seconds(self.pid)? - before))
    }
}
