//! What a worker counts, and reports to its supervisor.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// Why a runtime was sent to the upstream itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Reason {
    /// No replica is known, or none of those that are is there.
    NoReplica,
    /// No cache is one of this registry.
    NotCached,
    /// A replica was asked and did not answer.
    Lost,
    /// A replica answered with a failure of its own, or with wrong bytes.
    Failing,
    /// A replica says that it cannot have it from the upstream.
    Upstream,
    /// A replica asks for a credential, which would be sent to it in the clear.
    Unencrypted,
    /// This agent itself could not answer: its worker was hung or gone.
    Worker,
}

impl Reason {
    pub(crate) const ALL: [Self; 7] = [
        Self::NoReplica,
        Self::NotCached,
        Self::Lost,
        Self::Failing,
        Self::Upstream,
        Self::Unencrypted,
        Self::Worker,
    ];

    /// The word for metrics and logs.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::NoReplica => "no_replica",
            Self::NotCached => "not_cached",
            Self::Lost => "lost",
            Self::Failing => "failing",
            Self::Upstream => "upstream",
            Self::Unencrypted => "unencrypted",
            Self::Worker => "worker",
        }
    }

    /// What the client is told.
    pub(crate) fn message(self) -> &'static str {
        match self {
            Self::NoReplica => "no replica of the cache is there",
            Self::NotCached => "no cache is one of this registry",
            Self::Lost => "the cache does not answer",
            Self::Failing => "the cache fails",
            Self::Upstream => "the cache cannot have it from the upstream",
            Self::Unencrypted => "the cache asks for a credential, and is not reached by https",
            Self::Worker => "the agent cannot answer at this moment",
        }
    }
}

/// Where the rest of a body came from whose beginning a replica had sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    Replica,
    Upstream,
    /// From nowhere: the body was cut off.
    Nowhere,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    requests: AtomicU64,
    bytes: AtomicU64,
    rests: [AtomicU64; 3],
    fallbacks: [AtomicU64; Reason::ALL.len()],
}

/// All that was counted since the worker began.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sum {
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    pub(crate) resumed_from_replica: u64,
    pub(crate) resumed_from_upstream: u64,
    pub(crate) cut: u64,
    pub(crate) fallbacks: BTreeMap<Reason, u64>,
}

impl Counts {
    pub(crate) fn request(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn bytes(&self, n: usize) {
        self.bytes.fetch_add(n as u64, Ordering::Relaxed);
    }

    pub(crate) fn rest(&self, rest: Rest) {
        self.rests[rest as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn fallback(&self, reason: Reason) {
        self.fallbacks[reason as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn sum(&self) -> Sum {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let reasons =
            Reason::ALL.iter().map(|reason| (*reason, value(&self.fallbacks[*reason as usize])));
        let [replica, upstream, nowhere] = &self.rests;
        Sum {
            requests: value(&self.requests),
            bytes: value(&self.bytes),
            resumed_from_replica: value(replica),
            resumed_from_upstream: value(upstream),
            cut: value(nowhere),
            fallbacks: reasons.filter(|(_, n)| *n > 0).collect(),
        }
    }
}

impl Sum {
    /// What has come to it since `before`.
    pub(crate) fn since(&self, before: &Self) -> Self {
        let fallbacks = self.fallbacks.iter().map(|(reason, n)| {
            (*reason, n.saturating_sub(before.fallbacks.get(reason).copied().unwrap_or(0)))
        });
        Self {
            requests: self.requests.saturating_sub(before.requests),
            bytes: self.bytes.saturating_sub(before.bytes),
            resumed_from_replica: self
                .resumed_from_replica
                .saturating_sub(before.resumed_from_replica),
            resumed_from_upstream: self
                .resumed_from_upstream
                .saturating_sub(before.resumed_from_upstream),
            cut: self.cut.saturating_sub(before.cut),
            fallbacks: fallbacks.collect(),
        }
    }
}
