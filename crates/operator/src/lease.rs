//! Which of several controllers acts: the one that holds a `Lease`.
//!
//! Whoever holds it renews it every two seconds. One that has not changed for fifteen is free; how
//! long that is, each measures by its own clock, so that clocks need not agree. Whoever could not renew
//! it for ten seconds stops acting before another one begins.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

/// The name of the lease.
pub(crate) const NAME: &str = "larder-controller";

/// After how long without a change it is free.
const DURATION: Duration = Duration::from_secs(15);

/// After how long without having renewed it whoever holds it stops acting.
const DEADLINE: Duration = Duration::from_secs(10);

/// How often it is looked at.
const PERIOD: Duration = Duration::from_secs(2);

/// What to do about a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    /// Nobody has it: take it.
    Take,
    /// We have it: say so again.
    Renew,
    /// Somebody else has it.
    Wait,
}

/// What came of it.
enum Outcome {
    Ours,
    Theirs(String),
    /// It changed meanwhile; the next look tells by whom.
    Raced,
}

/// Decides. `unchanged`: since when the lease was seen as it is.
fn act(holder: Option<&str>, me: &str, unchanged: Duration) -> Act {
    match holder {
        Some(holder) if holder == me => Act::Renew,
        None | Some("") => Act::Take,
        Some(_) if unchanged >= DURATION => Act::Take,
        Some(_) => Act::Wait,
    }
}

/// A lease, and who wants it.
pub(crate) struct Elector {
    api: Api<Lease>,
    me: String,
    /// Its version when it was last seen, and since when.
    seen: Option<(String, Instant)>,
}

// === impl Elector ===

impl Elector {
    pub(crate) fn new(client: Client, namespace: &str, me: String) -> Self {
        Self { api: Api::namespaced(client, namespace), me, seen: None }
    }

    /// Returns once the lease is ours.
    pub(crate) async fn acquire(&mut self) {
        let mut said = String::new();
        loop {
            match timeout(DEADLINE, self.turn()).await {
                Ok(Ok(Outcome::Ours)) => return info!("{} acts from now on", self.me),
                Ok(Ok(Outcome::Theirs(holder))) if said != holder => {
                    info!("{holder} acts; {} waits", self.me);
                    said = holder;
                }
                Ok(Ok(Outcome::Theirs(_) | Outcome::Raced)) => {}
                Ok(Err(error)) => {
                    warn!(error = &error as &dyn std::error::Error, "looking at the lease {NAME}");
                }
                Err(_) => warn!("the API server does not answer about the lease {NAME}"),
            }
            sleep(PERIOD).await;
        }
    }

    /// Keeps the lease. Returns once it is not ours any more, or could not be renewed in time.
    pub(crate) async fn keep(&mut self) {
        let mut renewed = Instant::now();
        while renewed.elapsed() < DEADLINE {
            sleep(PERIOD).await;
            let left = DEADLINE.saturating_sub(renewed.elapsed());
            match timeout(left, self.turn()).await {
                Ok(Ok(Outcome::Ours)) => renewed = Instant::now(),
                Ok(Ok(Outcome::Theirs(holder))) => return warn!("{holder} has taken over"),
                Ok(Ok(Outcome::Raced)) => {}
                Ok(Err(error)) => {
                    warn!(error = &error as &dyn std::error::Error, "renewing the lease {NAME}");
                }
                Err(_) => {}
            }
        }
        warn!("the lease {NAME} could not be renewed for {DEADLINE:?}; another one may act now");
    }

    /// Lets the lease go, so that the next one need not wait.
    pub(crate) async fn release(&self) {
        let released = async {
            let Some(mut lease) = self.api.get_opt(NAME).await? else { return Ok(()) };
            let spec = lease.spec.get_or_insert_default();
            if spec.holder_identity.as_deref() == Some(&self.me) {
                spec.holder_identity = None;
                self.api.replace(NAME, &PostParams::default(), &lease).await?;
            }
            Ok::<_, kube::Error>(())
        };
        // It is free after a while in any case.
        let _ = timeout(PERIOD, released).await;
    }

    /// Takes or renews the lease if that can be.
    async fn turn(&mut self) -> Result<Outcome, kube::Error> {
        let Some(lease) = self.api.get_opt(NAME).await? else {
            let metadata = ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() };
            let spec = Some(self.spec(None));
            let lease = Lease { metadata, spec };
            return written(self.api.create(&PostParams::default(), &lease).await);
        };
        let version = lease.metadata.resource_version.clone().unwrap_or_default();
        let since = match &self.seen {
            Some((seen, since)) if *seen == version => *since,
            _ => Instant::now(),
        };
        self.seen = Some((version, since));
        let spec = lease.spec.clone().unwrap_or_default();
        let act = act(spec.holder_identity.as_deref(), &self.me, since.elapsed());
        if act == Act::Wait {
            return Ok(Outcome::Theirs(spec.holder_identity.unwrap_or_default()));
        }
        let before = (act == Act::Renew).then_some(&spec);
        let transitions = spec.lease_transitions.unwrap_or_default();
        let mut renewed = Lease { spec: Some(self.spec(before)), ..lease };
        if let (Act::Take, Some(spec)) = (act, &mut renewed.spec) {
            spec.lease_transitions = Some(transitions.saturating_add(1));
        }
        written(self.api.replace(NAME, &PostParams::default(), &renewed).await)
    }

    /// What the lease says when it is ours; `before`, if it was ours already.
    fn spec(&self, before: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: before.and_then(|it| it.acquire_time.clone()).or(Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: before.and_then(|it| it.lease_transitions).or(Some(0)),
            ..LeaseSpec::default()
        }
    }
}

/// What came of writing it: another one may have been faster.
fn written(written: Result<Lease, kube::Error>) -> Result<Outcome, kube::Error> {
    match written {
        Ok(_) => Ok(Outcome::Ours),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Outcome::Raced),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_is_taken_when_it_is_free_or_was_left() {
        let late = DURATION;
        let early = DURATION - Duration::from_millis(1);
        assert_eq!(act(None, "me", Duration::ZERO), Act::Take);
        assert_eq!(act(Some(""), "me", Duration::ZERO), Act::Take);
        assert_eq!(act(Some("me"), "me", late), Act::Renew);
        assert_eq!(act(Some("other"), "me", early), Act::Wait);
        assert_eq!(act(Some("other"), "me", late), Act::Take);
    }

    #[test]
    fn whoever_loses_it_stops_before_another_one_begins() {
        assert!(DEADLINE + PERIOD < DURATION);
    }
}
