//! One question to an upstream, tried until it is answered or not worth another try.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use http::{Method, StatusCode};
use larder_core::Repository;
use parking_lot::Mutex;
use rand::RngExt as _;
use tracing::debug;

use crate::Observer;
use crate::auth::{Authenticator, Place};
use crate::breaker::Breaker;
use crate::challenge;
use crate::credentials::Keychain;
use crate::error::{Again, Error, Failure, SetupError};
use crate::header;
use crate::limits::Limits;
use crate::settings::{Base, Settings};
use crate::transport::{Answer, Request, Transport};

/// The fewest tries, the first included.
const MIN_TRIES: usize = 3;

/// Before the second and the third try; later ones wait as long as the third.
const PAUSES: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];

/// An upstream that can be asked.
pub(crate) struct Exchange {
    host: String,
    bases: Vec<Base>,
    transport: Transport,
    auth: Authenticator,
    limits: Limits,
    breaker: Breaker,
    preferred: Mutex<Option<Preferred>>,
}

/// The address that answered after others had failed, and when it was found.
#[derive(Clone, Copy, Debug)]
struct Preferred {
    base: usize,
    since: Instant,
}

/// How long an address is preferred to those before it. A first address that is away then costs one
/// question in a minute a failure, and not all of them.
const PREFERENCE: Duration = Duration::from_secs(60);

/// A question, whichever address answers it.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) method: Method,
    pub(crate) repository: Option<Repository>,
    /// Begins with `v2/`.
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    pub(crate) headers: HeaderMap,
}

/// In whose name a question is asked.
#[derive(Clone, Debug)]
pub(crate) enum Who {
    /// Ours, with the configured credential.
    Ourselves,
    /// A caller's who shows nothing: with a token, where everybody is given one.
    Nobody,
    /// A caller's, with what they show and nothing else.
    Shown(Option<HeaderValue>),
}

impl Exchange {
    pub(crate) fn new(settings: Settings, observer: Arc<dyn Observer>) -> Result<Self, SetupError> {
        let bases = settings.bases()?;
        let transport = Transport::new(&settings, observer)?;
        let limits = Limits::new(settings.max_requests, settings.max_rate, settings.read_timeout);
        let host = settings.host.as_str().to_owned();
        let keychain = Keychain::open(settings.credentials, settings.host)?;
        Ok(Self {
            host,
            bases,
            transport,
            auth: Authenticator::new(keychain),
            limits,
            breaker: Breaker::default(),
            preferred: Mutex::default(),
        })
    }

    /// The registry's name in image references.
    pub(crate) fn host(&self) -> &str {
        &self.host
    }

    /// The answer to `question`, with status 200 or 206.
    pub(crate) async fn ask(&self, question: &Question, who: &Who) -> Result<Answer, Error> {
        let admission = self.breaker.admit(Instant::now());
        let admission = admission.map_err(|wait| Error::Resting { wait })?;
        let slot = self.limits.enter().await?;
        // Boxed, since it takes kilobytes: whoever may ask would carry them along, also where what is
        // asked for is stored and nobody is asked.
        let answer = Box::pin(self.ask_in_turn(question, who)).await;
        match &answer {
            Err(Error::Unavailable { .. } | Error::TimedOut) => admission.failed(Instant::now()),
            // Nothing was heard of it.
            Err(Error::Busy | Error::Unreachable(_)) => drop(admission),
            _ => admission.answered(),
        }
        Ok(answer?.in_slot(slot))
    }

    /// Asks one address after the other.
    async fn ask_in_turn(&self, question: &Question, who: &Who) -> Result<Answer, Error> {
        let first = self.preferred(Instant::now());
        let mut course = Course::new(self.bases.len(), first);
        loop {
            self.limits.pace().await?;
            let base = &self.bases[course.base];
            let failure = match self.attempt_as(who, base, question).await {
                Ok(answer) => {
                    self.prefer(first, course.base);
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            let Some(pause) = course.after(failure.again) else {
                return Err(failure.error);
            };
            debug!(
                upstream = self.host,
                error = &failure.error as &dyn std::error::Error,
                "asking {} again after a failure",
                self.host
            );
            tokio::time::sleep(jittered(pause)).await;
        }
    }

    /// The address to begin with.
    fn preferred(&self, now: Instant) -> usize {
        let mut preferred = self.preferred.lock();
        *preferred = preferred.filter(|it| now.duration_since(it.since) < PREFERENCE);
        preferred.map_or(0, |it| it.base)
    }

    /// Remembers that `base` answered where `first` did not.
    fn prefer(&self, first: usize, base: usize) {
        if base != first {
            *self.preferred.lock() = Some(Preferred { base, since: Instant::now() });
        }
    }

    async fn attempt_as(
        &self,
        who: &Who,
        base: &Base,
        question: &Question,
    ) -> Result<Answer, Failure> {
        match who {
            Who::Ourselves => self.attempt(base, question).await,
            Who::Shown(shown) => {
                let answer = self.send(base, question, shown.as_ref()).await?;
                match is_refusal(&answer) {
                    true => Err(refused_by(base, &answer).into()),
                    false => check(answer),
                }
            }
            Who::Nobody => match self.attempt(base, question).await {
                // Without a token, or with one that is not enough: asked bare, upstream says what is.
                // A token service that has none for everybody may say so in any way.
                Err(failure) if matches!(failure.error, Error::Denied | Error::Protocol(_)) => {
                    let answer = self.send(base, question, None).await?;
                    Err(match (is_refusal(&answer), failure.error) {
                        (true, _) => refused_by(base, &answer),
                        (false, Error::Denied) => Error::CallerRefused { challenge: None },
                        (false, error) => error,
                    }
                    .into())
                }
                answer => answer,
            },
        }
    }

    async fn attempt(&self, base: &Base, question: &Question) -> Result<Answer, Failure> {
        let place = Place { base: base.clone(), repository: question.repository.clone() };
        let remembered = self.auth.remembered(&self.transport, &place).await?;
        let shown = remembered.as_ref().map(|permit| &permit.header);
        let answer = self.send(base, question, shown).await?;
        if !is_challenge(&answer) {
            return check(answer);
        }
        let headers = &answer.headers;
        let permit = self.auth.answer(&self.transport, &place, headers, remembered.as_ref());
        let permit = permit.await?;
        drop(answer);
        let answer = self.send(base, question, Some(&permit.header)).await?;
        if is_challenge(&answer) {
            return Err(self.auth.refused(&place, &permit).await.into());
        }
        check(answer)
    }

    async fn send(
        &self,
        base: &Base,
        question: &Question,
        shown: Option<&HeaderValue>,
    ) -> Result<Answer, Failure> {
        let url = base.at(&question.path, question.query.as_deref());
        let mut request = Request::new(question.method.clone(), url);
        request.headers = question.headers.clone();
        self.transport.send(request, shown).await
    }
}

/// Whether the registry itself wants to know who we are. Another origin that it sent us to is not
/// to be told.
fn is_challenge(answer: &Answer) -> bool {
    answer.status == StatusCode::UNAUTHORIZED && !answer.is_elsewhere
}

/// Whether the registry itself keeps something from whoever was shown to it.
fn is_refusal(answer: &Answer) -> bool {
    matches!(answer.status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
        && !answer.is_elsewhere
}

fn refused_by(base: &Base, answer: &Answer) -> Error {
    let offered = header::lines(&answer.headers, &WWW_AUTHENTICATE);
    Error::CallerRefused { challenge: challenge::to_pass_on(offered, base.is_plain()) }
}

fn check(answer: Answer) -> Result<Answer, Failure> {
    match answer.status {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
        _ => Err(answer.into_failure()),
    }
}

/// Half to one and a half of `pause`, so that those who failed together don't return together.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..1.5))
}

/// Which address is tried when.
#[derive(Debug)]
struct Course {
    n_bases: usize,
    /// The address of this try, counted from 0.
    base: usize,
    /// The tries so far, this one included, those at once left out.
    n_tries: usize,
    was_at_once: bool,
}

impl Course {
    fn new(n_bases: usize, first: usize) -> Self {
        Self { n_bases, base: first, n_tries: 1, was_at_once: false }
    }

    /// Goes on after a failure; the answer is how long to wait before. `None`: give up.
    ///
    /// Each address is tried at least once, and all together at least [`MIN_TRIES`] times, if the
    /// failures allow it. A connection that was closed under its request gets one more try.
    fn after(&mut self, again: Again) -> Option<Duration> {
        if again == Again::AtOnce && !self.was_at_once {
            self.was_at_once = true;
            return Some(Duration::ZERO);
        }
        let is_allowed = match again {
            Again::Never => false,
            Again::AtOnce | Again::Later => self.n_tries < self.n_bases.max(MIN_TRIES),
            Again::Elsewhere => self.n_tries < self.n_bases,
        };
        if !is_allowed {
            return None;
        }
        let pause = PAUSES[(self.n_tries - 1).min(PAUSES.len() - 1)];
        self.n_tries += 1;
        self.base = (self.base + 1) % self.n_bases;
        Some(pause)
    }
}

#[cfg(test)]
mod tests {
    use Again::*;

    use super::*;

    #[test]
    fn one_address_is_tried_three_times() {
        assert_eq!(course(1, &[Later, Later, Later]), ["0 after 100", "0 after 400", "give up"]);
    }

    #[test]
    fn every_address_gets_its_turn() {
        assert_eq!(course(2, &[Later, Later, Later]), ["1 after 100", "0 after 400", "give up"]);
        let four = ["1 after 100", "2 after 400", "3 after 400", "give up"];
        assert_eq!(course(4, &[Later, Elsewhere, Later, Later]), four);
    }

    #[test]
    fn what_only_another_address_can_mend_is_not_tried_here_again() {
        assert_eq!(course(1, &[Elsewhere]), ["give up"]);
        assert_eq!(course(2, &[Elsewhere, Elsewhere]), ["1 after 100", "give up"]);
        assert_eq!(course(8, &[Never]), ["give up"]);
    }

    #[test]
    fn a_closed_connection_is_replaced_at_once_but_not_for_ever() {
        let tries = ["0 after 0", "0 after 100", "0 after 400", "give up"];
        assert_eq!(course(1, &[AtOnce, AtOnce, AtOnce, AtOnce]), tries);
    }

    #[test]
    fn pauses_vary_around_their_length() {
        for _ in 0..1000 {
            let pause = jittered(Duration::from_millis(100)).as_millis();
            assert!((50..=150).contains(&pause), "{pause}");
        }
    }

    /// The address of each further try and the milliseconds before it.
    fn course(n_bases: usize, failures: &[Again]) -> Vec<String> {
        let mut course = Course::new(n_bases, 0);
        let step = |again: &Again| match course.after(*again) {
            Some(pause) => format!("{} after {}", course.base, pause.as_millis()),
            None => "give up".to_owned(),
        };
        failures.iter().map(step).collect()
    }
}
