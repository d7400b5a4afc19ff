//! Orders of eviction, over generated requests: how many bytes each has at hand.

use larder_core::eviction;
use larder_simulation::orders::{Gdsf, Lru, Ours, S3Fifo};
use larder_simulation::{Kind, Order, Trace};

use super::report::{Findings, Target, Unit};
use super::{Bench, progress};

/// How many blobs there are.
const BLOBS: usize = 20_000;

/// The share of all bytes that the store may hold.
const BUDGET: u64 = 10;

/// Each trace is generated once with each.
const SEEDS: [u64; 3] = [1, 2, 3];

/// The orders.
const NAMES: [&str; 4] = ["larder", "S3-FIFO", "GDSF", "LRU"];

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "No server: {} requests over {} generated blobs, which come in images that share layers, \
         with a budget of a {BUDGET}th of all bytes. The share of the requested bytes that was at \
         hand, by the order of eviction. Three fixed seeds.",
        requests(bench),
        BLOBS
    )
}

fn requests(bench: &Bench) -> usize {
    bench.scaled(200_000, 50_000)
}

/// The share of the requested bytes that was at hand, by each order.
fn ratios(trace: &Trace) -> [f64; 4] {
    let budget = trace.total() / BUDGET;
    let orders: [Box<dyn Order>; 4] = [
        Box::new(Ours::new(budget)),
        Box::new(S3Fifo::new(budget)),
        Box::new(Gdsf::new(budget)),
        Box::new(Lru::new(budget)),
    ];
    orders.map(|mut order| trace.byte_hit_ratio(order.as_mut()))
}

/// Runs every order over every trace.
///
/// # Errors
///
/// None; the signature is that of all sections.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    let mut findings = Findings::default();
    let (mut worst_of_peers, mut beside_lru) = (f64::INFINITY, 0.0);
    for kind in Kind::ALL {
        progress(&format!("eviction: {kind}"));
        let samples =
            SEEDS.map(|seed| ratios(&Trace::generate(kind, BLOBS, requests(bench), seed)));
        let [ours, s3_fifo, gdsf, lru] = std::array::from_fn(|order| {
            let ratios = samples.map(|ratios| ratios[order]);
            findings.row(format!("{kind}: {}", NAMES[order]), Unit::Times, &ratios);
            ratios.iter().sum::<f64>() / ratios.len() as f64
        });
        worst_of_peers = f64::min(worst_of_peers, ours / f64::max(s3_fifo, gdsf));
        if kind == Kind::Scans {
            beside_lru = ours / lru;
        }
    }
    let what = "larder ÷ the better of S3-FIFO and GDSF, worst trace";
    findings.target(what, Unit::Times, worst_of_peers, Target::AtLeast(1.0));
    findings.target("with scans, larder ÷ LRU", Unit::Times, beside_lru, Target::AtLeast(1.1));
    let memory = eviction::Order::memory(100);
    findings.note(format!(
        "larder and S3-FIFO remember the names of what went, up to {memory} % of the budget in bytes."
    ));
    Ok(findings)
}
