//! When a service that is away is not asked any more.
//!
//! A service that is away may cost whoever asks it the whole of a deadline. So after one failure
//! everybody else is refused at once, for a time that grows; then a single question finds out
//! whether the service is back.

use std::fmt;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::time::timeout;
use tracing::{info, warn};

/// How long the first rest is, and the longest: a service that is back serves within seconds.
const FIRST_REST: Duration = Duration::from_millis(500);
const LONGEST_REST: Duration = Duration::from_secs(4);

/// Decides whether a service is asked.
#[derive(Debug)]
pub(crate) struct Breaker {
    service: &'static str,
    state: Mutex<State>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Asked,
    Resting {
        until: Instant,
        rest: Duration,
    },
    /// One question finds out; the others are refused.
    Probed {
        rest: Duration,
    },
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unanswered<E: fmt::Debug + fmt::Display> {
    /// It is away, and was not asked.
    #[error("{0} is away")]
    Resting(&'static str),
    /// It did not answer in time.
    #[error("{0} did not answer in time")]
    TimedOut(&'static str),
    /// It said so.
    #[error("{0}")]
    Failed(E),
}

impl Breaker {
    /// Of a service that is called so in the log.
    pub(crate) fn new(service: &'static str) -> Self {
        Self { service, state: Mutex::new(State::Asked) }
    }

    /// Whether it answered when it was last asked.
    pub(crate) fn is_up(&self) -> bool {
        *self.state.lock() == State::Asked
    }

    /// Whether a question would be asked now.
    pub(crate) fn may_be_asked(&self) -> bool {
        match *self.state.lock() {
            State::Asked => true,
            State::Resting { until, .. } => until <= Instant::now(),
            State::Probed { .. } => false,
        }
    }

    /// Does `work`, which asks the service, within a time. `away` is what an error says about the service
    /// not being there; `None`: it is an answer.
    ///
    /// # Errors
    ///
    /// [`Unanswered`].
    pub(crate) async fn ask<T, E>(
        &self,
        within: Duration,
        work: impl Future<Output = Result<T, E>>,
        away: impl Fn(&E) -> Option<String>,
    ) -> Result<T, Unanswered<E>>
    where
        E: fmt::Debug + fmt::Display,
    {
        let Some(admission) = self.admit(Instant::now()) else {
            return Err(Unanswered::Resting(self.service));
        };
        match timeout(within, work).await {
            Ok(Err(error)) => {
                match away(&error) {
                    Some(reason) => admission.failed(Instant::now(), &reason),
                    None => admission.answered(),
                }
                Err(Unanswered::Failed(error))
            }
            Ok(Ok(answer)) => {
                admission.answered();
                Ok(answer)
            }
            Err(_) => {
                let error = Unanswered::TimedOut(self.service);
                admission.failed(Instant::now(), &error);
                Err(error)
            }
        }
    }

    /// An answer that had begun broke off: the next question finds out whether it is away.
    pub(crate) fn broke_off(&self) {
        let mut state = self.state.lock();
        if *state == State::Asked {
            *state = State::Resting { until: Instant::now(), rest: FIRST_REST };
        }
    }

    fn admit(&self, now: Instant) -> Option<Admission<'_>> {
        let mut state = self.state.lock();
        let probes = match *state {
            State::Asked => None,
            State::Resting { until, rest } if until <= now => {
                *state = State::Probed { rest };
                Some(rest)
            }
            State::Resting { .. } | State::Probed { .. } => return None,
        };
        Some(Admission { breaker: self, probes })
    }
}

/// The right to ask one question. One that is dropped unanswered says nothing about the service.
struct Admission<'b> {
    breaker: &'b Breaker,
    /// The last rest, if this question finds out whether the service is back.
    probes: Option<Duration>,
}

impl Admission<'_> {
    fn answered(mut self) {
        if self.probes.take().is_some() {
            info!("{} is back", self.breaker.service);
            *self.breaker.state.lock() = State::Asked;
        }
    }

    fn failed(mut self, now: Instant, reason: &dyn fmt::Display) {
        let mut state = self.breaker.state.lock();
        match (self.probes.take(), *state) {
            (Some(rest), _) => {
                let rest = (rest * 2).min(LONGEST_REST);
                *state = State::Resting { until: now + rest, rest };
            }
            (None, State::Asked) => {
                warn!(%reason, "{} is away", self.breaker.service);
                *state = State::Resting { until: now + FIRST_REST, rest: FIRST_REST };
            }
            // Asked before the rest began.
            (None, _) => {}
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let Some(rest) = self.probes {
            // Nobody knows yet; the next one finds out.
            *self.breaker.state.lock() = State::Resting { until: Instant::now(), rest };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test(start_paused = true)]
    async fn a_service_that_is_silent_costs_one_deadline_and_then_nothing() {
        let breaker = Breaker::new("it");
        let silent = || breaker.ask(SOON, pending::<Result<(), String>>(), |_| None);
        assert!(matches!(silent().await, Err(Unanswered::TimedOut(_))));
        assert!(matches!(silent().await, Err(Unanswered::Resting(_))));
        assert!(!breaker.is_up());
    }

    #[test]
    fn one_question_at_a_time_finds_out_whether_it_is_back() {
        let (breaker, now) = (Breaker::new("it"), Instant::now());
        breaker.admit(now).unwrap().failed(now, &"no");
        assert!(breaker.admit(now).is_none());
        let probe = breaker.admit(now + FIRST_REST).unwrap();
        assert!(breaker.admit(now + FIRST_REST).is_none());
        probe.answered();
        assert!(breaker.is_up());
    }

    #[test]
    fn rests_grow_and_have_an_end() {
        let (breaker, mut now) = (Breaker::new("it"), Instant::now());
        breaker.admit(now).unwrap().failed(now, &"no");
        for _ in 0..9 {
            now += LONGEST_REST;
            breaker.admit(now).unwrap().failed(now, &"no");
        }
        assert!(breaker.admit(now + LONGEST_REST - SOON).is_none());
        assert!(breaker.admit(now + LONGEST_REST).is_some());
    }

    #[test]
    fn a_question_that_nobody_waits_for_leaves_the_next_one_to_find_out() {
        let (breaker, now) = (Breaker::new("it"), Instant::now());
        breaker.admit(now).unwrap().failed(now, &"no");
        drop(breaker.admit(now + FIRST_REST).unwrap());
        assert!(breaker.admit(Instant::now() + FIRST_REST).is_some());
    }

    #[tokio::test]
    async fn a_refusal_is_an_answer() {
        let breaker = Breaker::new("it");
        let refused = breaker.ask(SOON, async { Err::<(), _>("no such thing") }, |_| None).await;
        assert!(matches!(refused, Err(Unanswered::Failed(_))));
        assert!(breaker.is_up());
    }
}
