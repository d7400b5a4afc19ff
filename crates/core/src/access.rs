//! Whether a caller may be given what is stored, where upstream says who may read what.
//!
//! A right is proved by upstream's answer to a request that was made with the caller's own
//! credential. It counts for a while, and for longer while upstream cannot be asked; a refusal ends
//! it at once.

use std::time::Duration;

/// How long a proved right counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// How long upstream is not asked again.
    pub memory: Duration,
    /// How long it counts while upstream cannot be asked; it may be shorter than `memory`.
    pub grace: Duration,
}

/// What is known when a caller asks for something.
#[derive(Clone, Copy, Debug)]
pub struct Situation {
    /// Time since this caller's right to the repository was proved last. `None`: it never was, it was
    /// refused since, or the credential has run out.
    pub proved: Option<Duration>,
    /// Whether upstream is never to be asked.
    pub offline: bool,
    /// Whether upstream's last sign was a failure or a missed deadline.
    pub upstream_suspect: bool,
}

/// What to do before the caller is given anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: the right was proved lately.
    Serve,
    /// Ask upstream, and wait for its word.
    Prove,
    /// Ask upstream, and wait for its word within the deadline; then the grace counts.
    ProveInTime,
    /// Ask upstream without waiting: it has lately been away or slow, and the grace counts.
    ServeAndProve,
    /// Nothing is given: upstream, which alone could say yes, is not to be asked.
    Refuse,
}

/// What upstream said to a request with the caller's credential.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// Here it is.
    Yes,
    /// Not to this caller (401, 403).
    No,
    /// There is no such thing (404). Some registries say so for what one may not know of.
    Absent,
    /// Nothing: unreachable, 5xx, 429, or slow past the deadline.
    Nothing,
}

/// What the caller gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// What is asked for.
    Serve,
    /// Upstream's refusal, with what it wants to see.
    Refuse,
    /// That there is no such thing.
    NotFound,
    /// That nobody can say at the moment.
    Unavailable,
}

/// Decides what to do before a caller is given anything.
pub fn plan(situation: Situation, bounds: Bounds) -> Plan {
    let counts = |bound| situation.proved.is_some_and(|age| age < bound);
    match situation {
        _ if situation.offline => Plan::Refuse,
        _ if counts(bounds.memory) => Plan::Serve,
        _ if !counts(bounds.grace) => Plan::Prove,
        Situation { upstream_suspect: true, .. } => Plan::ServeAndProve,
        _ => Plan::ProveInTime,
    }
}

/// Decides what a caller gets after upstream was asked. `proved` is as in [`Situation`], now.
pub fn settle(said: Said, proved: Option<Duration>, bounds: Bounds) -> Verdict {
    match said {
        Said::Yes => Verdict::Serve,
        Said::No => Verdict::Refuse,
        Said::Absent => Verdict::NotFound,
        Said::Nothing if proved.is_some_and(|age| age < bounds.grace) => Verdict::Serve,
        Said::Nothing => Verdict::Unavailable,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds =
        Bounds { memory: Duration::from_secs(60), grace: Duration::from_secs(600) };

    #[test]
    fn a_right_counts_for_its_time_and_in_an_outage_for_the_grace() {
        let plans = |proved: Option<u64>| [false, true].map(|it| planned(proved, it, BOUNDS));
        assert_eq!(plans(Some(59)), [Plan::Serve, Plan::Serve]);
        assert_eq!(plans(Some(60)), [Plan::ProveInTime, Plan::ServeAndProve]);
        assert_eq!(plans(Some(600)), [Plan::Prove, Plan::Prove]);
        assert_eq!(plans(None), [Plan::Prove, Plan::Prove]);
    }

    #[test]
    fn with_no_time_at_all_upstream_is_always_asked() {
        let never = Bounds { memory: Duration::ZERO, grace: Duration::ZERO };
        assert_eq!(planned(Some(0), false, never), Plan::Prove);
        assert_eq!(planned(Some(0), true, never), Plan::Prove);
    }

    #[test]
    fn only_silence_is_bridged_by_the_grace() {
        let settled =
            |said, proved: Option<u64>| settle(said, proved.map(Duration::from_secs), BOUNDS);
        assert_eq!(settled(Said::Nothing, Some(599)), Verdict::Serve);
        assert_eq!(settled(Said::Nothing, Some(600)), Verdict::Unavailable);
        assert_eq!(settled(Said::Nothing, None), Verdict::Unavailable);
        assert_eq!(settled(Said::No, Some(0)), Verdict::Refuse);
        assert_eq!(settled(Said::Absent, Some(0)), Verdict::NotFound);
        assert_eq!(settled(Said::Yes, None), Verdict::Serve);
    }

    proptest! {
        #[test]
        fn nobody_is_served_whom_upstream_has_never_let_in(
            offline: bool, upstream_suspect: bool, memory in 0_u64..1000, grace in 0_u64..1000,
        ) {
            let bounds = Bounds {
                memory: Duration::from_secs(memory),
                grace: Duration::from_secs(grace),
            };
            let plan = plan(Situation { proved: None, offline, upstream_suspect }, bounds);
            prop_assert!(matches!(plan, Plan::Prove | Plan::Refuse), "{plan:?}");
            for said in [Said::No, Said::Absent, Said::Nothing] {
                prop_assert_ne!(settle(said, None, bounds), Verdict::Serve);
            }
        }

        #[test]
        fn an_older_right_never_counts_for_more(
            age in 0_u64..1000, older in 0_u64..1000, upstream_suspect: bool,
        ) {
            let rank = |age| match planned(Some(age), upstream_suspect, BOUNDS) {
                Plan::Serve => 0,
                Plan::ServeAndProve | Plan::ProveInTime => 1,
                Plan::Prove | Plan::Refuse => 2,
            };
            prop_assert!(rank(age) <= rank(age + older));
        }
    }

    fn planned(proved: Option<u64>, upstream_suspect: bool, bounds: Bounds) -> Plan {
        let proved = proved.map(Duration::from_secs);
        plan(Situation { proved, offline: false, upstream_suspect }, bounds)
    }
}
