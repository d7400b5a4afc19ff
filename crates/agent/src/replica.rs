//! One replica of the cache as this node sees it, and whether it is there.
//!
//! A cold blob behind a slow upstream is silent and healthy, a dead cache is silent and dead. What
//! is asked for cannot tell the two apart; a question that takes a replica no time can (`GET /v2/`,
//! which touches neither its store nor an upstream). So whoever hears nothing for a moment greets
//! the replica, and waits on while it answers.
//!
//! ```text
//! Unknown ──▶ Up ◀──┐
//!    └──────▶ Lost ─┘   greeted again and again; no request goes there meanwhile
//! ```
//!
//! There are two paces. Before the first byte nothing is lost by giving up, as the runtime then goes
//! on to the upstream itself: a dead cache must cost a pull next to nothing. In the middle of a body
//! giving up may fail the pull, so a replica is given more time.

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, Method};
use larder_core::Host;
use larder_upstream::{
    Error, Heard, Observer, Passed, Replica as Client, ReplicaSettings, SetupError,
};
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{info, warn};

use crate::place::{Place, Scope};

/// Before the first byte: how long a replica may be silent before it is greeted, and how long it may
/// take to answer. Together what a dead one costs the first pull; on a busy node, too, less than
/// 300 ms. A replica next door answers within 1 ms.
const SILENCE: Duration = Duration::from_millis(30);
const ANSWER: Duration = Duration::from_millis(160);

/// The same in the middle of a body. A lost packet alone takes 200 ms.
const LONG_SILENCE: Duration = Duration::from_millis(500);
const LONG_ANSWER: Duration = Duration::from_secs(1);

/// The longest between two greetings of a silent replica that answers them.
const MAX_SILENCE: Duration = Duration::from_secs(1);

/// How much of a limit is waited for at a time. What is counted are waits, not time: where this
/// process itself gets no processor, nobody else is to blame.
const TICK: Duration = Duration::from_millis(20);

/// How long until a lost replica is greeted again, at first and at most.
const AGAIN: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(4));

/// How long a replica may go unheard at most, also if nobody asks it for anything.
const IDLE: Duration = Duration::from_secs(10);

/// How long a connection may take, TLS included, where greetings have not ended the wait before.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a replica that answers greetings may give nothing else. It gives up an upstream itself
/// after less.
const READ_TIMEOUT: Duration = Duration::from_secs(100);

/// Whether a replica is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Up,
    Lost,
}

/// A replica that can be asked.
pub(crate) struct Replica {
    name: String,
    known_as: String,
    place: Place,
    scope: Scope,
    client: Client,
    state: watch::Sender<State>,
    heard: Arc<Heard>,
    /// Whoever greets it holds this; the others wait for what comes of it.
    greeting: tokio::sync::Mutex<()>,
}

impl Replica {
    /// A replica that nobody has asked yet. Must be called on a runtime: until it is dropped, the
    /// replica is greeted now and then.
    ///
    /// # Errors
    ///
    /// The place cannot be one.
    pub(crate) fn new(place: Place, me: &str) -> Result<Arc<Self>, SetupError> {
        let heard = Arc::new(Heard::default());
        let settings = ReplicaSettings {
            url: place.url.clone(),
            address: place.address,
            ca: place.ca.clone(),
            me: me.to_owned(),
            connect_timeout: CONNECT_TIMEOUT,
            read_timeout: READ_TIMEOUT,
        };
        let client = Client::new(&settings, Arc::clone(&heard) as Arc<dyn Observer>)?;
        let replica = Arc::new(Self {
            name: place.name(),
            known_as: place.known_as(),
            scope: place.scope(),
            place,
            client,
            state: watch::Sender::new(State::Unknown),
            heard,
            greeting: tokio::sync::Mutex::default(),
        });
        replica.look_now_and_then();
        Ok(replica)
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// What decides what it owns.
    pub(crate) fn known_as(&self) -> &str {
        &self.known_as
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// Whether it is a cache of this registry.
    pub(crate) fn is_for(&self, host: &Host) -> bool {
        self.scope.has(host)
    }

    /// Whether it has answered, and has not stopped to.
    pub(crate) fn is_up(&self) -> bool {
        *self.state.borrow() == State::Up
    }

    /// Whether it is worth asking.
    pub(crate) fn may_be_up(&self) -> bool {
        *self.state.borrow() != State::Lost
    }

    /// Whether it may be there, and has not been heard of lately.
    pub(crate) fn is_in_doubt(&self) -> bool {
        self.may_be_up() && self.heard.ago() > MAX_SILENCE
    }

    /// Whether what is said to it can be read by others on the way.
    pub(crate) fn is_overheard(&self) -> bool {
        let is_here = match self.place.url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            _ => self.place.address.is_some_and(|address| address.ip().is_loopback()),
        };
        self.client.is_plain() && !is_here
    }

    /// Passes a request on. `None`: there was no answer. Nothing is asked of what has not greeted as a
    /// replica does.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        method: Method,
        path: &str,
        query: Option<&str>,
        headers: HeaderMap,
    ) -> Option<Passed> {
        if *self.state.borrow() == State::Unknown && !self.is_there().await {
            return None;
        }
        match self.while_there(self.client.pass(method, path, query, headers)).await? {
            Ok(passed) => Some(passed),
            Err(_) => {
                self.is_there().await;
                None
            }
        }
    }

    /// The same in the middle of a body, where another has been lost and this one is given more time.
    pub(crate) async fn ask_patiently(
        self: &Arc<Self>,
        method: Method,
        path: &str,
        query: Option<&str>,
        headers: HeaderMap,
    ) -> Option<Passed> {
        self.greet(LONG_ANSWER).await.ok()?;
        self.while_patient(self.client.pass(method, path, query, headers)).await?.ok()
    }

    /// What comes of `work`, which waits for the first byte; `None` once the replica is lost.
    pub(crate) async fn while_there<T>(
        self: &Arc<Self>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.until_lost() => None,
        }
    }

    /// What comes of `work`, which waits for more of a body that has begun; `None` once the replica
    /// has answered nothing for too long. `Lost` alone is no reason: somebody in more of a
    /// hurry may have said so.
    pub(crate) async fn while_patient<T>(
        self: &Arc<Self>,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        let until_silent = async {
            loop {
                sleep(LONG_SILENCE).await;
                let is_there =
                    self.heard.ago() < LONG_SILENCE || self.greet(LONG_ANSWER).await.is_ok();
                if !is_there {
                    return;
                }
            }
        };
        tokio::select! {
            biased;
            done = work => Some(done),
            () = until_silent => None,
        }
    }

    async fn until_lost(self: &Arc<Self>) {
        let since = Instant::now();
        let mut state = self.state.subscribe();
        let mut patience = SILENCE;
        let greeted = async {
            loop {
                let silent = self.heard.ago().min(since.elapsed());
                if silent < patience {
                    sleep(patience - silent).await;
                } else if self.is_there().await {
                    patience = (patience * 2).min(MAX_SILENCE);
                } else {
                    return;
                }
            }
        };
        tokio::select! {
            () = greeted => {}
            _ = state.wait_for(|state| *state == State::Lost) => {}
        }
    }

    /// Greets it, unless it is lost, and says whether it answers. One that does not is lost from then
    /// on, until it answers again.
    pub(crate) async fn is_there(self: &Arc<Self>) -> bool {
        let since = Instant::now();
        let _turn = self.greeting.lock().await;
        let state = *self.state.borrow();
        if state == State::Lost {
            return false;
        }
        // Somebody else's turn came first, and found out.
        if state == State::Up && self.heard.ago() < since.elapsed() {
            return true;
        }
        match self.greet(ANSWER).await {
            Ok(()) => {
                self.becomes(State::Up);
                true
            }
            Err(reason) => {
                self.is_lost(&reason);
                false
            }
        }
    }

    async fn greet(&self, limit: Duration) -> Result<(), Error> {
        // Whoever has our address now may be somebody else; only a replica says its name.
        within(limit, self.client.greet()).await.unwrap_or(Err(Error::TimedOut)).map(drop)
    }

    fn is_lost(self: &Arc<Self>, reason: &Error) {
        self.becomes(State::Lost);
        let reason = reason as &(dyn std::error::Error + 'static);
        warn!(replica = self.name, reason, "passing over {}", self.name);
        // Ends with the replica, when it is none of ours any more.
        let replica = Arc::downgrade(self);
        tokio::spawn(async move {
            let mut pause = AGAIN.0;
            loop {
                sleep(pause).await;
                let Some(replica) = replica.upgrade() else { return };
                if replica.greet(LONG_ANSWER).await.is_ok() {
                    replica.becomes(State::Up);
                    info!(replica = replica.name, "{} is back", replica.name);
                    return;
                }
                pause = (pause * 2).min(AGAIN.1);
            }
        });
    }

    /// Greets it at once, and then whenever it has not been heard for a while.
    fn look_now_and_then(self: &Arc<Self>) {
        let replica = Arc::downgrade(self);
        tokio::spawn(async move {
            while let Some(replica) = replica.upgrade() {
                if !replica.is_up() || replica.heard.ago() >= IDLE / 2 {
                    replica.is_there().await;
                }
                drop(replica);
                sleep(IDLE / 2).await;
            }
        });
    }

    fn becomes(&self, state: State) {
        self.state.send_replace(state);
    }
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Replica").field(&self.name).field(&*self.state.borrow()).finish()
    }
}

/// What comes of `work` within `limit`, during which this process must have run.
async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    let mut work = pin!(work);
    let mut waited = Duration::ZERO;
    while waited < limit {
        tokio::select! {
            biased;
            done = work.as_mut() => return Some(done),
            () = sleep(TICK) => waited += TICK,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_said_on_this_machine_or_encrypted_is_not_overheard() {
        for (url, address, is_overheard) in [
            ("http://10.0.0.1:5000", None, true),
            ("http://cache.test:5000", Some("10.0.0.1:5000"), true),
            ("http://localhost:5000", None, true),
            ("http://localhost:5000", Some("[::1]:5000"), false),
            ("http://127.0.0.1:5000", None, false),
            ("http://[::1]:5000", None, false),
            ("https://10.0.0.1:5000", None, false),
        ] {
            let address = address.map(|it| it.parse().unwrap());
            let url = url.parse().unwrap();
            let (peer, zone, ca, hosts) = (None, None, None, Vec::new());
            let place = Place { url, address, peer, zone, ca, hosts, urls: Default::default() };
            let replica = Replica::new(place, "me").unwrap();
            assert_eq!(replica.is_overheard(), is_overheard, "{} {address:?}", replica.name());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_counted_in_waits() {
        assert_eq!(within(ANSWER, async { 1 }).await, Some(1));
        let since = tokio::time::Instant::now();
        assert_eq!(within(ANSWER, std::future::pending::<()>()).await, None);
        assert!(since.elapsed() >= ANSWER);
        // What is ready when this process gets the processor again counts, however late that is.
        let late = async { std::thread::sleep(Duration::from_millis(300)) };
        assert_eq!(within(ANSWER, late).await, Some(()));
    }
}
