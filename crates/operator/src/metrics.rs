//! What is counted.

use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// What is counted. Clones count the same.
#[derive(Clone, Debug)]
pub(crate) struct Metrics {
    turns: Family<[(&'static str, &'static str); 1], Counter>,
    seconds: Histogram,
    leads: Gauge,
    freed: Counter,
    reviews: Family<[(&'static str, &'static str); 1], Counter>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            turns: Family::default(),
            seconds: Histogram::new([0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0]),
            leads: Gauge::default(),
            freed: Counter::default(),
            reviews: Family::default(),
        }
    }
}

/// Measures a turn until it is dropped.
pub(crate) struct Timer<'a>(&'a Histogram, Instant);

// === impl Metrics ===

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let Self { turns, seconds, leads, freed, reviews } = &metrics;
        registry.register("controller_reconciles", "Turns taken for caches", turns.clone());
        registry.register("controller_reconcile_seconds", "How long a turn takes", seconds.clone());
        registry.register(
            "controller_leads",
            "1 while this controller is the one that acts",
            leads.clone(),
        );
        registry.register(
            "controller_freed_nodes",
            "Nodes that were freed of larder.dev/not-ready",
            freed.clone(),
        );
        registry.register("webhook_reviews", "Changes that were asked about", reviews.clone());
        metrics
    }

    pub(crate) fn turn(&self) -> Timer<'_> {
        Timer(&self.seconds, Instant::now())
    }

    pub(crate) fn ended(&self, has_failed: bool) {
        let outcome = if has_failed { "failed" } else { "done" };
        self.turns.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn leads(&self, leads: bool) {
        self.leads.set(leads.into());
    }

    /// `outcome`: what came of what the API server asked.
    pub(crate) fn reviewed(&self, outcome: &'static str) {
        self.reviews.get_or_create(&[("outcome", outcome)]).inc();
    }

    pub(crate) fn freed(&self) {
        self.freed.inc();
    }
}

impl Drop for Timer<'_> {
    fn drop(&mut self) {
        self.0.observe(self.1.elapsed().as_secs_f64());
    }
}
