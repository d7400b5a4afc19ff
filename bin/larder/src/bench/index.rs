//! The start of a larder that has much stored.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::content::Blob;
use super::http;
use super::larder::{Larder, Setup, blob_path};
use super::load::{Load, Requests};
use super::origin::Origin;
use super::report::{Findings, Target, Unit};
use super::{Bench, progress};

/// Clients that fill the store at once.
const N_FILLERS: usize = 32;

/// Far longer than filling takes.
const FILL_WITHIN: Duration = Duration::from_secs(1800);

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "A store is filled through larder with {} blobs of 64 bytes, and the manifests that name \
         them. Then larder is ended and started again: from the start of the process until \
         `/readyz` says 200.",
        bench.scaled(100_000, 5000)
    )
}

/// Times the start.
///
/// # Errors
///
/// A program does not start, or a request fails.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let origin = Origin::start(bench.scaled(100_000, 5000))?;
    let data = bench.directory()?;
    let setup = Setup::new(origin.address(), data.path().to_owned());
    let larder = Larder::start(bench, &setup)?;
    progress("index: filling");
    for tag in origin.tags() {
        larder.manifest(&tag).body()?;
    }
    let filled = fill(larder.address(), origin.blobs())?;
    larder.stop();

    let mut seconds = Vec::new();
    let rounds = bench.scaled(5, 3);
    for round in 1..=rounds {
        progress(&format!("index: start {round} of {rounds}"));
        let started = Instant::now();
        let larder = Larder::start(bench, &setup)?;
        seconds.push(started.elapsed().as_secs_f64());
        let some = &origin.blobs()[round * 997 % origin.blobs().len()];
        larder.blob(&some.digest).verify(&some.digest)?;
        larder.stop();
    }
    let mut findings = Findings::default();
    findings.row("blobs filled", Unit::PerSecond, &[filled]);
    let start = findings.row("start until ready", Unit::Seconds, &seconds);
    findings.target("start until ready", Unit::Seconds, start, Target::AtMost(2.0));
    Ok(findings)
}

/// Has every blob pulled once. Blobs per second.
pub(crate) fn fill(larder: SocketAddr, blobs: &[Blob]) -> anyhow::Result<f64> {
    let mut pulls = Pulls { host: larder.to_string(), blobs: blobs.iter() };
    let mut load = Load::connect(larder, N_FILLERS)?;
    Ok(load.as_fast_as_answered(&mut pulls, FILL_WITHIN)?.per_second())
}

/// A GET of each blob.
struct Pulls<'a> {
    host: String,
    blobs: std::slice::Iter<'a, Blob>,
}

impl Requests for Pulls<'_> {
    fn next(&mut self, request: &mut Vec<u8>) -> bool {
        let Some(blob) = self.blobs.next() else { return false };
        request.extend(http::get(&self.host, &blob_path(&blob.digest)));
        true
    }
}
