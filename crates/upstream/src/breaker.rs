//! When an upstream that keeps failing is not asked any more.
//!
//! Each question to an upstream that is away costs its caller seconds. After a few failures in a row
//! the next ones are refused at once, for a time that grows; then a single question finds out
//! whether the upstream is back.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The failures in a row after which an upstream rests. Each was tried several times by itself.
const FAILURES: u32 = 5;

/// How long the first rest is, and the longest. An upstream that is back is found out after half a
/// minute at the latest.
const FIRST_REST: Duration = Duration::from_secs(1);
const LONGEST_REST: Duration = Duration::from_secs(30);

/// Decides whether an upstream is asked.
#[derive(Debug, Default)]
pub(crate) struct Breaker(Mutex<State>);

#[derive(Clone, Copy, Debug)]
enum State {
    Asked {
        failures: u32,
    },
    Resting {
        until: Instant,
        rest: Duration,
    },
    /// One question finds out; the others still rest.
    Probed,
}

/// The right to ask one question. What came of it must be said; one that is dropped unsaid says
/// nothing about the upstream.
#[must_use]
#[derive(Debug)]
pub(crate) struct Admission<'a> {
    breaker: &'a Breaker,
    /// How long the upstream has rested, if this question finds out whether it is back.
    probes_after: Option<Duration>,
    is_settled: bool,
}

impl Default for State {
    fn default() -> Self {
        Self::Asked { failures: 0 }
    }
}

impl Breaker {
    /// Whether a question may be asked `now`.
    ///
    /// # Errors
    ///
    /// Not before the time that is returned; what to do until then is the caller's choice.
    pub(crate) fn admit(&self, now: Instant) -> Result<Admission<'_>, Duration> {
        let mut state = self.0.lock();
        let probes_after = match *state {
            State::Asked { .. } => None,
            State::Resting { until, .. } if now < until => return Err(until - now),
            State::Resting { rest, .. } => {
                *state = State::Probed;
                Some(rest)
            }
            // Whoever asks meanwhile hears soon.
            State::Probed => return Err(FIRST_REST),
        };
        Ok(Admission { breaker: self, probes_after, is_settled: false })
    }
}

impl Admission<'_> {
    /// The upstream answered, whatever it said.
    pub(crate) fn answered(mut self) {
        self.is_settled = true;
        *self.breaker.0.lock() = State::default();
    }

    /// The upstream failed.
    pub(crate) fn failed(mut self, now: Instant) {
        self.is_settled = true;
        let mut state = self.breaker.0.lock();
        *state = match (*state, self.probes_after) {
            (_, Some(rest)) => {
                let rest = (rest * 2).min(LONGEST_REST);
                State::Resting { until: now + rest, rest }
            }
            (State::Asked { failures }, None) if failures + 1 < FAILURES => {
                State::Asked { failures: failures + 1 }
            }
            (State::Asked { .. }, None) => {
                State::Resting { until: now + FIRST_REST, rest: FIRST_REST }
            }
            // Asked before the rest began.
            (resting, None) => resting,
        };
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if let (false, Some(rest)) = (self.is_settled, self.probes_after) {
            // Nobody knows yet; the next one finds out.
            let mut state = self.breaker.0.lock();
            if let State::Probed = *state {
                *state = State::Resting { until: Instant::now(), rest };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_rests_after_some_failures_in_a_row() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        for _ in 1..FAILURES {
            breaker.admit(now).unwrap().failed(now);
        }
        breaker.admit(now).unwrap().answered();
        for _ in 0..FAILURES {
            breaker.admit(now).unwrap().failed(now);
        }
        assert_eq!(breaker.admit(now).unwrap_err(), FIRST_REST);
    }

    #[test]
    fn one_question_finds_out_whether_it_is_back() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let later = exhaust(&breaker, now);
        let probe = breaker.admit(later).unwrap();
        assert!(breaker.admit(later).is_err());
        probe.answered();
        assert!(breaker.admit(later).is_ok());
    }

    #[test]
    fn a_rest_grows_with_each_failure_up_to_a_bound() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let mut at = exhaust(&breaker, now);
        let mut rests = Vec::new();
        for _ in 0..7 {
            breaker.admit(at).unwrap().failed(at);
            let rest = breaker.admit(at).unwrap_err();
            rests.push(rest.as_secs());
            at += rest;
        }
        assert_eq!(rests, [2, 4, 8, 16, 30, 30, 30]);
    }

    #[test]
    fn a_question_that_is_given_up_lets_the_next_one_find_out() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let later = exhaust(&breaker, now);
        drop(breaker.admit(later).unwrap());
        assert!(breaker.admit(Instant::now() + FIRST_REST).is_ok());
    }

    #[test]
    fn failures_of_questions_from_before_the_rest_do_not_lengthen_it() {
        let (breaker, now) = (Breaker::default(), Instant::now());
        let early = breaker.admit(now).unwrap();
        let later = exhaust(&breaker, now);
        early.failed(later);
        assert!(breaker.admit(later).is_ok());
    }

    /// Lets it fail until it rests; the time when that is over.
    fn exhaust(breaker: &Breaker, now: Instant) -> Instant {
        for _ in 0..FAILURES {
            breaker.admit(now).unwrap().failed(now);
        }
        now + breaker.admit(now).unwrap_err()
    }
}
