//! What is counted of what clients ask and of what upstreams are asked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use larder_store::Store;
use larder_upstream::Observer;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeLabelSet, EncodeLabelValue, EncodeMetric as _,
};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// The kind of thing that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Kind {
    /// A manifest by tag or digest.
    Manifest,
    /// A blob.
    Blob,
    /// A list of tags.
    Tags,
    /// Anything else, `/v2/` included.
    Other,
}

/// How it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Outcome {
    /// From the store, as upstream has it or had it within the freshness.
    Hit,
    /// From upstream, and stored.
    Miss,
    /// From the store, because upstream could not be asked.
    Stale,
    /// From upstream, and not stored.
    Pass,
    /// Not: there is no such thing, or it may not be served.
    NotFound,
    /// Not: the request is at fault.
    Refused,
    /// Not: upstream, or the cache itself, is at fault.
    Failed,
}

impl Outcome {
    const ALL: [Self; 7] = [
        Self::Hit,
        Self::Miss,
        Self::Stale,
        Self::Pass,
        Self::NotFound,
        Self::Refused,
        Self::Failed,
    ];

    /// The word for logs, and for the header `X-Larder-Cache` where content is served.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Pass => "pass",
            Self::NotFound => "not found",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

impl Kind {
    const ALL: [Self; 4] = [Self::Manifest, Self::Blob, Self::Tags, Self::Other];
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    upstream: String,
    kind: Kind,
    outcome: Outcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamLabels {
    upstream: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UpstreamRequestLabels {
    upstream: String,
    method: &'static str,
    /// The status, or 0 where there was no answer.
    code: u16,
}

/// What of the store failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum StoreOp {
    /// Looking something up, or reading it.
    Read,
    /// Writing a blob or manifest.
    Write,
    /// Recording what was learned.
    Record,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct StoreLabels {
    op: StoreOp,
}

/// The metrics of the registry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    requests: Family<RequestLabels, Counter>,
    client_bytes: Family<UpstreamLabels, Counter>,
    upstream_requests: Family<UpstreamRequestLabels, Counter>,
    upstream_bytes: Family<UpstreamLabels, Counter>,
    quota: Family<UpstreamLabels, Gauge<u64, AtomicU64>>,
    store_errors: Family<StoreLabels, Counter>,
    pub(crate) corrupt: Counter,
    pub(crate) fills: Gauge,
    first_byte: FirstByte,
}

/// Time to the first byte of an answer.
#[derive(Clone, Debug)]
struct FirstByte(Histogram);

impl Default for FirstByte {
    fn default() -> Self {
        // 0.1 ms to 26 s: from a manifest in memory to the longest that a client waits.
        Self(Histogram::new(exponential_buckets(0.000_1, 4.0, 10)))
    }
}

impl Metrics {
    /// Registers everything in `registry`, which has our prefix.
    pub(crate) fn register(registry: &mut Registry, store: Store) -> Self {
        let metrics = Self::default();
        registry.register(
            "requests",
            "Requests of clients by how they were answered",
            metrics.requests.clone(),
        );
        registry.register(
            "client_bytes",
            "Bytes of bodies sent to clients",
            metrics.client_bytes.clone(),
        );
        registry.register(
            "upstream_requests",
            "Requests to upstreams by the status of the answer, 0 where there was none",
            metrics.upstream_requests.clone(),
        );
        registry.register(
            "upstream_bytes",
            "Bytes of bodies received from upstreams",
            metrics.upstream_bytes.clone(),
        );
        registry.register(
            "upstream_quota_remaining",
            "Pulls that an upstream says it will still answer",
            metrics.quota.clone(),
        );
        registry.register(
            "store_errors",
            "Failures of the store; content was passed on all the same",
            metrics.store_errors.clone(),
        );
        registry.register(
            "corrupt",
            "Bodies from upstream that were not what they were asked for as",
            metrics.corrupt.clone(),
        );
        registry.register("fills_in_flight", "Blobs being fetched", metrics.fills.clone());
        registry.register_with_unit(
            "first_byte",
            "Time from a request to the first byte of its answer",
            Unit::Seconds,
            metrics.first_byte.0.clone(),
        );
        registry.register_collector(Box::new(StoreCollector(store)));
        metrics
    }

    /// The handles of one configured upstream. `label` is the entry as configured, so that a
    /// wildcard is one label however many hosts it stands for.
    pub(crate) fn of_upstream(&self, label: &str) -> Arc<UpstreamMetrics> {
        let upstream = UpstreamLabels { upstream: label.to_owned() };
        let requests = Kind::ALL.map(|kind| {
            Outcome::ALL.map(|outcome| {
                let labels = RequestLabels { upstream: label.to_owned(), kind, outcome };
                self.requests.get_or_create_owned(&labels)
            })
        });
        Arc::new(UpstreamMetrics {
            label: label.to_owned(),
            requests,
            client_bytes: self.client_bytes.get_or_create_owned(&upstream),
            first_byte: self.first_byte.0.clone(),
            upstream_requests: self.upstream_requests.clone(),
            upstream_bytes: self.upstream_bytes.get_or_create_owned(&upstream),
            quota: self.quota.clone(),
        })
    }

    pub(crate) fn store_error(&self, op: StoreOp) {
        self.store_errors.get_or_create(&StoreLabels { op }).inc();
    }
}

/// The metrics of one configured upstream, looked up once.
#[derive(Debug)]
pub(crate) struct UpstreamMetrics {
    label: String,
    requests: [[Counter; Outcome::ALL.len()]; Kind::ALL.len()],
    pub(crate) client_bytes: Counter,
    first_byte: Histogram,
    upstream_requests: Family<UpstreamRequestLabels, Counter>,
    upstream_bytes: Counter,
    quota: Family<UpstreamLabels, Gauge<u64, AtomicU64>>,
}

impl UpstreamMetrics {
    pub(crate) fn answered(&self, kind: Kind, outcome: Outcome) {
        self.requests[kind as usize][outcome as usize].inc();
    }

    pub(crate) fn first_byte(&self, after: std::time::Duration) {
        self.first_byte.observe(after.as_secs_f64());
    }
}

impl Observer for UpstreamMetrics {
    fn request(&self, method: &'static str, code: Option<u16>) {
        let (upstream, code) = (self.label.clone(), code.unwrap_or(0));
        self.upstream_requests
            .get_or_create(&UpstreamRequestLabels { upstream, method, code })
            .inc();
    }

    fn bytes(&self, n: u64) {
        self.upstream_bytes.inc_by(n);
    }

    fn quota(&self, remaining: u64) {
        self.quota.get_or_create(&UpstreamLabels { upstream: self.label.clone() }).set(remaining);
    }
}

/// What the store holds, read when it is asked for.
#[derive(Debug)]
struct StoreCollector(Store);

impl Collector for StoreCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let usage = self.0.usage();
        let gauge = |bytes: u64| ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
        let bytes = gauge(usage.bytes);
        let help = "Bytes that the store holds";
        let metric = encoder.encode_descriptor("store_bytes", help, None, bytes.metric_type())?;
        bytes.encode(metric)?;
        if let Some(budget) = usage.budget {
            let budget = gauge(budget);
            let help = "Bytes that the store may hold";
            let name = "store_budget_bytes";
            let metric = encoder.encode_descriptor(name, help, None, budget.metric_type())?;
            budget.encode(metric)?;
        }
        let evicted = ConstCounter::new(usage.evicted);
        let help = "Bytes removed to keep the budget";
        let metric =
            encoder.encode_descriptor("evicted_bytes", help, None, evicted.metric_type())?;
        evicted.encode(metric)
    }
}

/// A count that only goes up, for ids.
#[derive(Debug, Default)]
pub(crate) struct Sequence(AtomicU64);

impl Sequence {
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}
