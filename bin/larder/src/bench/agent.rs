//! A stored blob straight from a cache, and through the agent of a node that is this very machine.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use larder_core::Digest;
use tempfile::TempDir;

use super::client::{Download, Target as Get};
use super::larder::{self, Larder, Setup};
use super::peers::Registry;
use super::proc::{child_of, cpu_seconds};
use super::program::Program;
use super::report::{Findings, Target, Unit};
use super::rounds::take_turns;
use super::tls::Certificate;
use super::{Bench, GIB, MIB};

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "A stored {} MiB blob straight from larder, and through an agent in front of it, which the \
         client asks without TLS: by one that only reads, and by one that hashes what it reads, as \
         container runtimes do.",
        size(bench) / MIB
    )
}

fn size(bench: &Bench) -> u64 {
    bench.scaled(1024, 64) * MIB
}

/// An agent that knows one cache.
struct Agent {
    program: Program,
    address: SocketAddr,
    admin: SocketAddr,
    /// What it keeps on the node.
    _state: TempDir,
}

/// One way to the blob, and what is done with it at its end.
struct Contender {
    name: String,
    get: Get,
    /// What it is verified against by the client that hashes.
    digest: Option<Digest>,
    /// The processes on the way that are the agent's.
    agent: Vec<u32>,
}

/// Compares the two ways, from a cache without TLS and from one with it.
///
/// # Errors
///
/// A program does not start, or a download fails.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let blob = bench.images().add_random(1, size(bench))?;
    let registry = Registry::start(bench, None)?;
    let certificate = Certificate::create(&bench.path(""))?;
    let mut findings = Findings::default();
    for (kind, certificate) in [("plain", None), ("TLS", Some(&certificate))] {
        let data = bench.directory()?;
        let setup = Setup::new(registry.address(), data.path().to_owned());
        let larder = Larder::start(bench, &Setup { certificate, ..setup })?;
        let agent = Agent::start(bench, &larder, certificate)?;
        compare(bench, kind, &larder, &agent, &blob.digest, &mut findings)?;
    }
    findings.note(
        "A cache is elsewhere than the nodes that use it. Here both ends and the agent between them \
         share one machine's cores. The client decrypts in place, for less than runtimes do, so that \
         it gains less than they do from an agent that decrypts for it.",
    );
    Ok(findings)
}

fn compare(
    bench: &Bench,
    kind: &str,
    larder: &Larder,
    agent: &Agent,
    digest: &Digest,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    let mut contenders = Vec::new();
    for (client, hashed) in [("read", None), ("hashed", Some(digest))] {
        for (way, get, agent) in [
            ("directly", larder.blob(digest), Vec::new()),
            ("through the agent", agent.blob(digest), agent.processes()?),
        ] {
            // Fills larder, brings the file into memory, and makes sure that both serve the same.
            get.verify(digest)?;
            let name = format!("{kind}, {client}: {way}");
            contenders.push(Contender { name, get, digest: hashed.cloned(), agent });
        }
    }
    let what = format!("agent, {kind}");
    let results = take_turns(&what, bench.scaled(15, 3), &mut contenders, Contender::download)?;
    let mut rates = Vec::new();
    for (contender, results) in contenders.iter().zip(&results) {
        let all: Vec<f64> = results.iter().map(|(it, _)| it.megabytes_per_second()).collect();
        rates.push(findings.row(&contender.name, Unit::MegabytesPerSecond, &all));
        if !contender.agent.is_empty() {
            let bytes: u64 = results.iter().map(|(it, _)| it.bytes).sum();
            let cpu: f64 = results.iter().map(|(_, cpu)| cpu).sum();
            let what = format!("{}, the agent's, all rounds", contender.name);
            findings.row(what, Unit::CpuSecondsPerGib, &[cpu / (bytes as f64 / GIB)]);
        }
    }
    for (client, rates) in ["read", "hashed"].into_iter().zip(rates.chunks_exact(2)) {
        let what = format!("{kind}, {client}: through the agent ÷ directly");
        findings.target(what, Unit::Times, rates[1] / rates[0], Target::AtLeast(0.9));
    }
    Ok(())
}

impl Contender {
    /// One download, and the CPU seconds that the agent took for it.
    fn download(&mut self) -> anyhow::Result<(Download, f64)> {
        let before = self.agent_cpu()?;
        let download = match &self.digest {
            Some(digest) => self.get.verify(digest)?,
            None => self.get.drain()?,
        };
        Ok((download, self.agent_cpu()? - before))
    }

    fn agent_cpu(&self) -> anyhow::Result<f64> {
        self.agent.iter().map(|pid| cpu_seconds(*pid)).sum()
    }
}

impl Agent {
    /// Starts an agent that points no runtime to itself, and waits until it has the cache.
    fn start(
        bench: &Bench,
        larder: &Larder,
        certificate: Option<&Certificate>,
    ) -> anyhow::Result<Self> {
        let state = bench.directory()?;
        let configuration = state.path().join("agent.toml");
        let text = configuration_of(larder, certificate, state.path());
        fs::write(&configuration, text).context("configuring the agent")?;
        let mut command = Command::new(bench.larder());
        command.args(["agent", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0"]);
        let program = bench.start("agent", command.arg("--config").arg(configuration))?;
        let address = larder::address_of(&program.line("listening on ")?)?;
        let admin = larder::address_of(&program.line("admin on ")?)?;
        let agent = Self { program, address, admin, _state: state };
        let is_ready = || Get::plain(agent.admin, "/readyz".to_owned()).drain().is_ok();
        agent.program.until("become ready", || is_ready().then_some(()))?;
        Ok(agent)
    }

    fn blob(&self, digest: &Digest) -> Get {
        Get::plain(self.address, larder::mirrored_blob_path(digest))
    }

    /// The supervisor, and the worker that it started.
    fn processes(&self) -> anyhow::Result<Vec<u32>> {
        let supervisor = self.program.pid();
        Ok(vec![supervisor, child_of(supervisor)?])
    }
}

fn configuration_of(larder: &Larder, certificate: Option<&Certificate>, state: &Path) -> String {
    let address = larder.address();
    let cache = match certificate {
        Some(it) => {
            let ca = it.certificate.display();
            format!("url = \"https://{address}\"\nca = \"{ca}\"\n")
        }
        None => format!("url = \"http://{address}\"\n"),
    };
    let state = state.display();
    format!("state = \"{state}\"\n[[caches]]\n{cache}[mirrors]\nhosts = []\n")
}
