//! Orders of eviction, over generated requests: how many bytes each has at hand.

mod orders;
mod trace;

use larder_core::eviction;

use self::orders::{Gdsf, Lru, Order, Ours, S3Fifo};
use self::trace::{Kind, Trace};
use super::report::{Findings, Target, Unit};
use super::{Bench, progress};

/// The share of all bytes that the store may hold.
const BUDGET: u64 = 10;

/// What this section does.
pub(crate) fn what(bench: &Bench) -> String {
    format!(
        "No server: {} requests over {} generated blobs, which come in images that share layers, \
         with a budget of a {BUDGET}th of all bytes. The share of the requested bytes that was at \
         hand, by the order of eviction. Seeds are fixed.",
        requests(bench),
        trace::BLOBS
    )
}

fn requests(bench: &Bench) -> usize {
    bench.scaled(200_000, 50_000)
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
        let trace = Trace::generate(kind, requests(bench));
        let budget = trace.total() / BUDGET;
        let orders: [(&str, Box<dyn Order>); 4] = [
            ("larder", Box::new(Ours::new(budget))),
            ("S3-FIFO", Box::new(S3Fifo::new(budget))),
            ("GDSF", Box::new(Gdsf::new(budget))),
            ("LRU", Box::new(Lru::new(budget))),
        ];
        let ratios = orders.map(|(name, mut order)| {
            let ratio = trace.byte_hit_ratio(order.as_mut());
            findings.row(format!("{kind}: {name}"), Unit::Times, &[ratio]);
            ratio
        });
        let [ours, s3_fifo, gdsf, lru] = ratios;
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
