//! What an operator sees of a node's way to the cache.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::beat::Beat;
use crate::counts::{Reason, Sum};
use crate::mirrors::{Report, Runtime};

/// All of them. Clones are the same ones.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    requests: Counter,
    bytes: Counter,
    fallbacks: Family<Why, Counter>,
    resumed: Family<From, Counter>,
    cut: Counter,
    replicas: Gauge,
    replicas_up: Gauge,
    restarts: Counter,
    mirrors: Family<Of, Gauge>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Why {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct From {
    source: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    runtime: &'static str,
}

impl Metrics {
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let it = Self::default();
        for reason in Reason::ALL {
            drop(it.fallbacks.get_or_create(&Why { reason: reason.as_str() }));
        }
        let mut agent = |name: &str, help: &str, metric: Registered| match metric {
            Registered::Counter(counter) => registry.register(name, help, counter),
            Registered::Gauge(gauge) => registry.register(name, help, gauge),
        };
        let requests = Registered::Counter(it.requests.clone());
        agent("agent_requests", "What runtimes asked", requests);
        let bytes = Registered::Counter(it.bytes.clone());
        agent("agent_bytes", "Bytes of bodies that runtimes were sent", bytes);
        let cut = Registered::Counter(it.cut.clone());
        agent("agent_cut", "Bodies whose rest could not be had", cut);
        let restarts = Registered::Counter(it.restarts.clone());
        agent("agent_worker_restarts", "Workers that hung or ended and were replaced", restarts);
        let known = Registered::Gauge(it.replicas.clone());
        agent("agent_replicas", "Replicas of the cache that are known", known);
        let up = Registered::Gauge(it.replicas_up.clone());
        agent("agent_replicas_up", "Replicas of the cache that answer", up);
        let help = "Requests that runtimes were sent to the upstream with";
        registry.register("agent_fallbacks", help, it.fallbacks.clone());
        let help = "Bodies that went on from elsewhere when a replica was lost";
        registry.register("agent_resumed", help, it.resumed.clone());
        let help = "Whether a runtime is pointed at this agent";
        registry.register("mirror_active", help, it.mirrors.clone());
        it
    }

    /// Adds what a worker has counted, and shows what it knows.
    pub(crate) fn beat(&self, beat: &Beat, new: &Sum) {
        self.requests.inc_by(new.requests);
        self.bytes.inc_by(new.bytes);
        self.cut.inc_by(new.cut);
        for (source, n) in
            [("replica", new.resumed_from_replica), ("upstream", new.resumed_from_upstream)]
        {
            self.resumed.get_or_create(&From { source }).inc_by(n);
        }
        for (reason, n) in &new.fallbacks {
            self.fallbacks.get_or_create(&Why { reason: reason.as_str() }).inc_by(*n);
        }
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        self.replicas.set(number(beat.known));
        self.replicas_up.set(number(beat.live));
    }

    /// A request was answered without a worker.
    pub(crate) fn without_worker(&self) {
        self.requests.inc();
        self.fallbacks.get_or_create(&Why { reason: Reason::Worker.as_str() }).inc();
    }

    pub(crate) fn worker_gone(&self) {
        self.restarts.inc();
        self.replicas_up.set(0);
    }

    pub(crate) fn mirrors(&self, of: &[Runtime], report: &Report) {
        for runtime in of {
            let is_active = report.active.contains(runtime);
            let gauge = self.mirrors.get_or_create(&Of { runtime: runtime.as_str() });
            gauge.set(i64::from(is_active));
        }
    }
}

enum Registered {
    Counter(Counter),
    Gauge(Gauge),
}
