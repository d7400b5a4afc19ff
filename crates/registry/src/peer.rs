//! One other replica, and whether it is there.
//!
//! A replica that is silent may be waiting for a slow upstream, as whoever asked it would have to; or
//! it may be gone. What it is doing cannot tell the two apart, a question that takes it no time can.
//! So whoever has heard nothing of a peer for a moment greets it, and waits on while it answers.
//!
//! ```text
//! Unknown ──▶ Here      it is this process
//!    │    └─▶ Up ◀──┐
//!    └──────▶ Lost ─┘   greeted every second until it answers; nobody asks it meanwhile
//! ```

use std::fmt;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_core::Digest;
use larder_core::name::Named;
use larder_upstream::{Blob, Caller, Error, Heard, Observer, Replica, ReplicaSettings, SetupError};
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};
use tracing::{info, warn};

use crate::metrics::{PeerMetrics, PeerOutcome, PeerState};

/// How long a connection may take, TLS included: replicas are next door.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(700);

/// How long a peer may be silent before it is greeted, and how long it may take to answer. Together,
/// 1.5 s, what a dead one costs the first who asks it; a second one that is dead is found out at the
/// same time ([`Peer::ask_before`]). So both are passed over within 2 s.
const SILENCE: Duration = Duration::from_millis(500);
const GREETING: Duration = Duration::from_secs(1);

/// How often a lost peer is greeted.
const AGAIN: Duration = Duration::from_secs(1);

/// How long a peer that answers greetings may give nothing else. It gives up an upstream itself
/// after less.
const READ_TIMEOUT: Duration = Duration::from_secs(90);

/// Another replica, or this one as the others know it.
pub(crate) struct Peer {
    place: Place,
    /// What this process calls itself.
    me: Arc<str>,
    replica: Replica,
    state: Mutex<PeerState>,
    noted: Arc<Noted>,
    /// Whoever greets it holds this; the others wait for what comes of it.
    greeting: tokio::sync::Mutex<()>,
    metrics: PeerMetrics,
}

/// What came of asking a peer for a blob.
pub(crate) enum Reply {
    /// It is on its way.
    Blob(Blob),
    /// The peer is there, and does not have it for us.
    Refused,
    /// The peer is this process.
    Here,
    /// The peer is not there.
    Lost,
}

impl Peer {
    /// A peer that nobody has asked yet.
    ///
    /// # Errors
    ///
    /// The settings cannot work.
    pub(crate) fn new(
        place: Place,
        me: Arc<str>,
        metrics: PeerMetrics,
    ) -> Result<Self, SetupError> {
        let noted = Arc::new(Noted { heard: Heard::default(), metrics: metrics.clone() });
        let settings = ReplicaSettings {
            url: place.url.clone(),
            address: place.address,
            ca: place.ca.clone(),
            me: me.to_string(),
            connect_timeout: CONNECT_TIMEOUT,
            read_timeout: READ_TIMEOUT,
        };
        let replica = Replica::new(&settings, Arc::clone(&noted) as Arc<dyn Observer>)?;
        metrics.came(PeerState::Unknown);
        let (state, greeting) = (Mutex::new(PeerState::Unknown), tokio::sync::Mutex::default());
        Ok(Self { place, me, replica, state, noted, greeting, metrics })
    }

    /// What all replicas call it.
    pub(crate) fn name(&self) -> &str {
        &self.place.name
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    pub(crate) fn state(&self) -> PeerState {
        *self.state.lock()
    }

    /// Asks for a part of a blob, or all of it. A peer that is not there costs less than 2 s, one
    /// that was not there lately nothing.
    pub(crate) async fn ask(
        self: &Arc<Self>,
        name: &Named,
        digest: &Digest,
        range: Option<(u64, Option<u64>)>,
        caller: &Caller,
    ) -> Reply {
        // The caller's secret is not for others on the way; nor does a peer that has not heard it
        // know whom it is asked for.
        if !caller.is_nobody() && self.place.is_overheard() {
            return Reply::Refused;
        }
        // A request to ourselves would wait for the very fill that makes it.
        if self.state() == PeerState::Unknown {
            self.is_there().await;
        }
        match self.state() {
            PeerState::Here => return Reply::Here,
            PeerState::Lost => return Reply::Lost,
            PeerState::Unknown | PeerState::Up => {}
        }
        let asked = self.replica.blob(&name.host, &name.repository, digest, range, caller);
        let answer = match self.while_there(asked).await {
            Some(Ok(blob)) => {
                self.metrics.asked(PeerOutcome::Answered);
                return Reply::Blob(blob);
            }
            Some(Err(error)) => error,
            None => {
                self.metrics.asked(PeerOutcome::Failed);
                return Reply::Lost;
            }
        };
        let is_unanswered =
            matches!(answer, Error::TimedOut | Error::Unavailable { status: None, .. });
        self.metrics.asked(if is_unanswered { PeerOutcome::Failed } else { PeerOutcome::Refused });
        match is_unanswered && !self.is_there().await {
            true => Reply::Lost,
            false => Reply::Refused,
        }
    }

    /// As [`Self::ask`], and greets `next`, whose turn comes after, once this one has been silent for a
    /// moment: where both are dead, that costs no more than one of them.
    pub(crate) async fn ask_before(
        self: &Arc<Self>,
        next: Option<&Arc<Self>>,
        name: &Named,
        digest: &Digest,
        range: Option<(u64, Option<u64>)>,
        caller: &Caller,
    ) -> Reply {
        let mut asked = pin!(self.ask(name, digest, range, caller));
        let Some(next) = next else { return asked.await };
        tokio::select! {
            biased;
            reply = &mut asked => return reply,
            () = sleep(SILENCE) => {}
        }
        let mut greeted = pin!(next.is_there());
        tokio::select! {
            biased;
            reply = &mut asked => {
                if matches!(reply, Reply::Lost) {
                    // It was greeted no later than this one, so what comes of it is due, too.
                    greeted.await;
                }
                reply
            }
            _ = &mut greeted => asked.await,
        }
    }

    /// A body that it was sending broke off. Whether it is still there, so that the reason is what it
    /// was sending.
    pub(crate) async fn broke_off(self: &Arc<Self>) -> bool {
        self.metrics.asked(PeerOutcome::BrokenOff);
        self.is_there().await
    }

    /// What comes of `work`, which waits for the peer; `None` once it is not there any more.
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

    async fn until_lost(self: &Arc<Self>) {
        let since = Instant::now();
        loop {
            let silent = self.noted.heard.ago().min(since.elapsed());
            if silent < SILENCE {
                sleep(SILENCE - silent).await;
            } else if !self.is_there().await {
                return;
            }
        }
    }

    /// Greets it, unless it is lost, and says whether it answers. One that does not is lost from then
    /// on, until it answers again.
    pub(crate) async fn is_there(self: &Arc<Self>) -> bool {
        let since = Instant::now();
        let _turn = self.greeting.lock().await;
        if self.state() == PeerState::Lost {
            return false;
        }
        // Somebody else's turn came first, and found out.
        if self.state() != PeerState::Unknown && self.noted.heard.ago() < since.elapsed() {
            return true;
        }
        match self.greet().await {
            Ok(state) => self.becomes(state),
            Err(reason) => self.is_lost(&reason),
        }
        self.state() != PeerState::Lost
    }

    async fn greet(&self) -> Result<PeerState, Error> {
        let answered =
            timeout(GREETING, self.replica.greet()).await.map_err(|_| Error::TimedOut)??;
        Ok(if *answered == *self.me { PeerState::Here } else { PeerState::Up })
    }

    fn is_lost(self: &Arc<Self>, reason: &Error) {
        self.becomes(PeerState::Lost);
        let reason = reason as &(dyn std::error::Error + 'static);
        warn!(peer = self.name(), reason, "passing over {}", self.name());
        // Ends with the peer, when it is no member any more.
        let peer = Arc::downgrade(self);
        tokio::spawn(async move {
            loop {
                sleep(AGAIN).await;
                let Some(peer) = peer.upgrade() else { return };
                if let Ok(state) = peer.greet().await {
                    peer.becomes(state);
                    info!(peer = peer.name(), "{} is back", peer.name());
                    return;
                }
            }
        });
    }

    fn becomes(&self, state: PeerState) {
        let before = std::mem::replace(&mut *self.state.lock(), state);
        self.metrics.went(before);
        self.metrics.came(state);
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.metrics.went(self.state());
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Peer").field(&self.name()).field(&self.state()).finish()
    }
}

/// Where a peer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// As every replica writes it: `http://10.0.0.1:5000`.
    pub(crate) name: String,
    pub(crate) url: url::Url,
    pub(crate) address: Option<std::net::SocketAddr>,
    /// The text of a PEM file of authorities.
    pub(crate) ca: Option<String>,
}

impl Place {
    /// Whether what is said to it can be read by others on the way.
    fn is_overheard(&self) -> bool {
        let is_here = match (self.address, self.url.host()) {
            (Some(address), _) => address.ip().is_loopback(),
            (None, Some(url::Host::Ipv4(ip))) => ip.is_loopback(),
            (None, Some(url::Host::Ipv6(ip))) => ip.is_loopback(),
            (None, _) => false,
        };
        self.url.scheme() != "https" && !is_here
    }
}

/// What is noted of a peer, and counted.
struct Noted {
    heard: Heard,
    metrics: PeerMetrics,
}

impl Observer for Noted {
    fn request(&self, method: &'static str, code: Option<u16>) {
        self.heard.request(method, code);
    }

    fn bytes(&self, n: u64) {
        self.heard.bytes(n);
        self.metrics.received(n);
    }

    fn quota(&self, _remaining: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_for_peers_that_nobody_hears() {
        let is_overheard = |url: &str, address: Option<&str>| {
            let (name, url) = (url.to_owned(), url.parse().unwrap());
            let address = address.map(|it| it.parse().unwrap());
            Place { name, url, address, ca: None }.is_overheard()
        };
        for url in ["https://10.0.0.1:5000", "http://127.0.0.1:5000", "http://[::1]:5000"] {
            assert!(!is_overheard(url, None), "{url}");
        }
        assert!(!is_overheard("https://larder:5000", Some("10.0.0.1:5000")));
        for url in ["http://10.0.0.1:5000", "http://[fd00::1]:5000", "http://localhost:5000"] {
            assert!(is_overheard(url, None), "{url}");
        }
        assert!(is_overheard("http://larder:5000", Some("10.0.0.1:5000")));
        assert!(is_overheard("http://127.0.0.1:5000", Some("10.0.0.1:5000")));
    }
}
