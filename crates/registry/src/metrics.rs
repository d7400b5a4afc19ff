//! What is counted of what clients ask and of what upstreams are asked.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use larder_store::{SharedStatus, Store};
use larder_upstream::Observer;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::storing::Storing;

/// The kind of thing that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    /// A manifest by tag or digest.
    Manifest,
    /// A blob.
    Blob,
    /// A list of tags.
    Tags,
    /// A list of what refers to a manifest.
    Referrers,
    /// Anything else, `/v2/` included.
    Other,
}

/// How it was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    /// Not: the caller shows nothing, and is told what upstream wants to see.
    Challenged,
    /// Not: upstream does not let the caller read it.
    Denied,
    /// Not: upstream, or the cache itself, is at fault.
    Failed,
}

impl Outcome {
    const N: usize = Self::Failed as usize + 1;

    /// The word for metrics and logs, and for the header `X-Larder-Cache` where content is served.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Pass => "pass",
            Self::NotFound => "not_found",
            Self::Refused => "refused",
            Self::Challenged => "challenged",
            Self::Denied => "denied",
            Self::Failed => "failed",
        }
    }
}

impl Kind {
    const N: usize = Self::Other as usize + 1;

    fn as_str(self) -> &'static str {
        match self {
            Self::Manifest => "manifest",
            Self::Blob => "blob",
            Self::Tags => "tags",
            Self::Referrers => "referrers",
            Self::Other => "other",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    upstream: String,
    kind: &'static str,
    outcome: &'static str,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
    op: &'static str,
}

impl StoreOp {
    fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Record => "record",
        }
    }
}

/// What came of a request to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PeerOutcome {
    /// It sends the blob.
    Answered,
    /// It does not give the blob.
    Refused,
    /// It did not answer.
    Failed,
    /// What it sent broke off.
    BrokenOff,
}

/// How a peer is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PeerState {
    /// Nobody has asked it yet.
    Unknown,
    /// It is this process.
    Here,
    /// It answers.
    Up,
    /// It does not answer.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerRequestLabels {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PeerLabels {
    state: &'static str,
}

impl PeerOutcome {
    fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::BrokenOff => "broken_off",
        }
    }
}

impl PeerState {
    fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Here => "here",
            Self::Up => "up",
            Self::Lost => "lost",
        }
    }
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
    peer_requests: Family<PeerRequestLabels, Counter>,
    peer_bytes: Counter,
    peers: Family<PeerLabels, Gauge>,
    pub(crate) corrupt: Counter,
    pub(crate) fills: Gauge,
    pub(crate) storing: Storing,
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
            "peer_requests",
            "Requests for blobs to other replicas by what came of them",
            metrics.peer_requests.clone(),
        );
        registry.register(
            "peer_bytes",
            "Bytes of blobs received from other replicas",
            metrics.peer_bytes.clone(),
        );
        registry.register("peers", "Replicas by how they are doing", metrics.peers.clone());
        registry.register(
            "corrupt",
            "Bodies from upstream, and stored blobs, that were not what they are called",
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
        Arc::new(UpstreamMetrics {
            label: label.to_owned(),
            requests: self.requests.clone(),
            answers: Default::default(),
            client_bytes: self.client_bytes.get_or_create_owned(&upstream),
            first_byte: self.first_byte.0.clone(),
            upstream_requests: self.upstream_requests.clone(),
            upstream_bytes: self.upstream_bytes.get_or_create_owned(&upstream),
            quota: self.quota.clone(),
        })
    }

    /// The handles of all peers.
    pub(crate) fn of_peers(&self) -> PeerMetrics {
        PeerMetrics {
            requests: self.peer_requests.clone(),
            bytes: self.peer_bytes.clone(),
            peers: self.peers.clone(),
        }
    }

    pub(crate) fn store_error(&self, op: StoreOp) {
        if !matches!(op, StoreOp::Read) {
            self.storing.was_refused();
        }
        self.store_errors.get_or_create(&StoreLabels { op: op.as_str() }).inc();
    }
}

/// The metrics of the other replicas. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct PeerMetrics {
    requests: Family<PeerRequestLabels, Counter>,
    bytes: Counter,
    peers: Family<PeerLabels, Gauge>,
}

impl PeerMetrics {
    pub(crate) fn asked(&self, outcome: PeerOutcome) {
        self.requests.get_or_create(&PeerRequestLabels { outcome: outcome.as_str() }).inc();
    }

    pub(crate) fn received(&self, n: u64) {
        self.bytes.inc_by(n);
    }

    /// One more peer is doing so.
    pub(crate) fn came(&self, state: PeerState) {
        self.peers.get_or_create(&PeerLabels { state: state.as_str() }).inc();
    }

    /// One peer less is doing so.
    pub(crate) fn went(&self, state: PeerState) {
        self.peers.get_or_create(&PeerLabels { state: state.as_str() }).dec();
    }
}

/// The metrics of one configured upstream, looked up once.
#[derive(Debug)]
pub(crate) struct UpstreamMetrics {
    label: String,
    requests: Family<RequestLabels, Counter>,
    /// The counters of `requests` that were needed so far: found without hashing labels, and not
    /// shown before there is something to count.
    answers: [[OnceLock<Counter>; Outcome::N]; Kind::N],
    pub(crate) client_bytes: Counter,
    first_byte: Histogram,
    upstream_requests: Family<UpstreamRequestLabels, Counter>,
    upstream_bytes: Counter,
    quota: Family<UpstreamLabels, Gauge<u64, AtomicU64>>,
}

impl UpstreamMetrics {
    pub(crate) fn answered(&self, kind: Kind, outcome: Outcome) {
        let count = self.answers[kind as usize][outcome as usize].get_or_init(|| {
            let upstream = self.label.clone();
            let (kind, outcome) = (kind.as_str(), outcome.as_str());
            self.requests.get_or_create_owned(&RequestLabels { upstream, kind, outcome })
        });
        count.inc();
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
        evicted.encode(metric)?;
        match self.0.shared() {
            Some(shared) => encode_shared(shared.status(), &mut encoder),
            None => Ok(()),
        }
    }
}

fn encode_shared(
    status: SharedStatus,
    encoder: &mut DescriptorEncoder<'_>,
) -> Result<(), std::fmt::Error> {
    let services = [("s3", status.bucket), ("postgresql", status.index)];
    let up = ConstGauge::new(0_i64);
    let help = "Whether a service that replicas share answered when it was last asked";
    let mut metric = encoder.encode_descriptor("shared_up", help, None, up.metric_type())?;
    for (service, is_up) in services {
        let up = ConstGauge::new(i64::from(is_up));
        up.encode(metric.encode_family(&[("service", service)])?)?;
    }
    let waiting = ConstGauge::new(i64::try_from(status.waiting).unwrap_or(i64::MAX));
    let help = "Stored blobs that have yet to be uploaded to the bucket";
    let metric = encoder.encode_descriptor("shared_waiting", help, None, waiting.metric_type())?;
    waiting.encode(metric)?;
    let counts = [
        ("shared_uploads", "Blobs uploaded to the bucket", status.uploaded.0),
        ("shared_uploaded_bytes", "Bytes of blobs uploaded to the bucket", status.uploaded.1),
        ("shared_read_bytes", "Bytes read from the bucket", status.read),
    ];
    for (name, help, n) in counts {
        let counter = ConstCounter::new(n);
        counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
    }
    Ok(())
}

/// A count that only goes up, for ids.
#[derive(Debug, Default)]
pub(crate) struct Sequence(AtomicU64);

impl Sequence {
    pub(crate) fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text;

    use super::*;

    const DOCUMENT: &str = include_str!("../../../docs/operations.md");

    #[tokio::test]
    async fn every_metric_is_in_the_document_with_its_labels() {
        let directory = tempfile::tempdir().unwrap();
        let settings = larder_store::Settings {
            budget: Some(1),
            ..larder_store::Settings::new(directory.path().to_owned())
        };
        let store = Store::open(settings).await.unwrap();
        let mut registry = Registry::with_prefix("larder");
        let metrics = Metrics::register(&mut registry, store.clone());
        let upstream = metrics.of_upstream("docker.io");
        upstream.answered(Kind::Blob, Outcome::Hit);
        upstream.request("GET", None);
        upstream.quota(1);
        metrics.store_error(StoreOp::Read);
        metrics.of_peers().asked(PeerOutcome::Failed);
        metrics.of_peers().came(PeerState::Up);
        let mut page = String::new();
        text::encode(&mut page, &registry).unwrap();
        store.close().await;

        let series: Vec<String> = page.lines().filter_map(|line| series(line, &page)).collect();
        assert!(series.len() >= 12, "{series:?}");
        for series in series {
            assert!(DOCUMENT.contains(&format!("\n| `{series}` | ")), "{series}");
        }
    }

    #[test]
    fn every_label_of_a_fixed_set_is_in_the_document() {
        use {Kind as K, Outcome as O, PeerOutcome as P, PeerState as T, StoreOp as S};
        let kinds = [K::Manifest, K::Blob, K::Tags, K::Referrers, K::Other].map(K::as_str);
        let served = [O::Hit, O::Miss, O::Stale, O::Pass].map(O::as_str);
        let refused = [O::NotFound, O::Refused, O::Challenged, O::Denied, O::Failed].map(O::as_str);
        let ops = [S::Read, S::Write, S::Record].map(S::as_str);
        let peers = [P::Answered, P::Refused, P::Failed, P::BrokenOff].map(P::as_str);
        let states = [T::Unknown, T::Here, T::Up, T::Lost].map(T::as_str);
        let outcomes = [&served[..], &refused].concat();
        assert_eq!((kinds.len(), outcomes.len()), (K::N, O::N));
        for label in kinds.iter().chain(&outcomes).chain(&ops).chain(&peers).chain(&states) {
            assert!(DOCUMENT.contains(&format!("`{label}`")), "{label}");
        }
    }

    /// `NAME{LABEL,…}` of the metric that a `# TYPE` line begins.
    fn series(line: &str, page: &str) -> Option<String> {
        let (name, kind) = line.strip_prefix("# TYPE ")?.split_once(' ')?;
        let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
        let labelled = format!("{name}{{");
        let Some(sample) = page.lines().find_map(|line| line.strip_prefix(&labelled)) else {
            return Some(name);
        };
        let labels = sample.split_once('}')?.0.split(',').filter_map(|it| it.split_once('='));
        let labels: Vec<&str> = labels.map(|(label, _)| label).collect();
        Some(format!("{name}{{{}}}", labels.join(",")))
    }
}
