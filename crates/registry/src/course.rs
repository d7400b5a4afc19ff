//! Whom the bytes of one blob are asked for, one after the other: the bucket that the replicas share,
//! if it is there; its owner among the replicas, the next one if that is not there; and upstream.
//!
//! A peer that is there and does not give it ends the peers' turns: what is wrong is not the peer,
//! and asking them all would multiply what upstream is asked. After upstream's turn has come, nobody
//! else is asked any more.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use larder_store::{SharedBlob, SharedBody, SharedError};
use larder_upstream::{Blob, Body, Caller, Error};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use crate::peer::{Peer, Reply};
use crate::source::Wanted;

/// Who is still to be asked.
pub(crate) struct Course {
    wanted: Wanted,
    /// The bucket, before its turn is over.
    shared: Option<SharedBlob>,
    peers: VecDeque<Arc<Peer>>,
    /// Cancelled when the peers have had their turns.
    alone: CancellationToken,
}

/// Bytes on their way.
pub(crate) enum Flow {
    /// From the bucket.
    Shared(BoxStream<'static, Result<Bytes, SharedError>>),
    /// From a peer.
    Peer(Body, Arc<Peer>),
    /// From upstream.
    Upstream(Body),
}

impl Course {
    /// `alone` is cancelled once nobody but upstream is asked.
    pub(crate) fn new(wanted: Wanted, alone: CancellationToken) -> Self {
        let (shared, peers) = (wanted.shared.clone(), wanted.peers.iter().cloned().collect());
        Self { wanted, shared, peers, alone }
    }

    /// Whether nobody is to be asked before upstream.
    pub(crate) fn is_upstreams_turn(&self) -> bool {
        self.shared.is_none() && self.peers.is_empty()
    }

    /// Asks for a part of the blob, or all of it.
    ///
    /// # Errors
    ///
    /// As [`larder_upstream::Client::blob`]: upstream's.
    pub(crate) async fn ask(&mut self, range: Option<(u64, Option<u64>)>) -> Result<Part, Error> {
        let Wanted { name, digest, .. } = &self.wanted;
        if let Some(shared) = &self.shared {
            match shared.read(range).await {
                Ok(body) => return Ok(Part::of_bucket(body)),
                Err(error) => {
                    debug!(blob.digest = %digest, %error, "not reading {digest} from the bucket");
                    self.shared = None;
                }
            }
        }
        while let Some(peer) = self.peers.front() {
            let caller = self.wanted.upstream.asker.as_ref().map(|asker| &asker.caller);
            let (caller, next) = (caller.unwrap_or(&Caller::NOBODY), self.peers.get(1));
            match peer.ask_before(next, name, digest, range, caller).await {
                Reply::Blob(blob) => {
                    let peer = Arc::clone(peer);
                    return Ok(Part::new(blob, |body| Flow::Peer(body, peer)));
                }
                Reply::Lost => drop(self.peers.pop_front()),
                Reply::Refused | Reply::Here => self.peers.clear(),
            }
        }
        self.alone.cancel();
        if self.wanted.is_offline {
            let doing = "the bucket does not give it, and no upstream may be asked".to_owned();
            return Err(Error::Unavailable { doing, status: None, source: None });
        }
        let blob = self.ask_upstream(range).await?;
        Ok(Part::new(blob, Flow::Upstream))
    }

    /// Asks upstream; where it refuses the caller in whose name that is, in the name of another one
    /// who waits.
    async fn ask_upstream(&mut self, range: Option<(u64, Option<u64>)>) -> Result<Blob, Error> {
        loop {
            let Wanted { upstream, name, digest, stand_ins, .. } = &self.wanted;
            let asked = upstream.client.blob(&name.repository, digest, range).await;
            if !matches!(asked, Err(Error::CallerRefused { .. })) {
                return asked;
            }
            if let Some(asker) = &upstream.asker {
                asker.refuse(&name.repository);
            }
            let Some(other) = stand_ins.instead_of(upstream) else { return asked };
            debug!(blob.digest = %digest, "going on with {digest} for another caller");
            self.wanted.upstream = other;
        }
    }

    /// The flow that was asked for last broke off. Decides who is next.
    pub(crate) async fn broke_off(&mut self) {
        if self.shared.take().is_some() {
            return;
        }
        if let Some(peer) = self.peers.pop_front()
            && peer.broke_off().await
        {
            self.peers.clear();
        }
    }
}

/// A part of a blob, under way.
pub(crate) struct Part {
    /// As [`Blob::start`].
    pub(crate) start: u64,
    /// As [`Blob::length`].
    pub(crate) length: Option<u64>,
    /// As [`Blob::remaining`].
    pub(crate) remaining: Option<u64>,
    pub(crate) flow: Flow,
}

impl Part {
    fn new(blob: Blob, flow: impl FnOnce(Body) -> Flow) -> Self {
        let Blob { start, length, remaining, body } = blob;
        Self { start, length, remaining, flow: flow(body) }
    }

    fn of_bucket(body: SharedBody) -> Self {
        let SharedBody { start, length, remaining, body } = body;
        let flow = Flow::Shared(body);
        Self { start, length: Some(length), remaining: Some(remaining), flow }
    }
}

impl Flow {
    /// The next bytes. Can be dropped while it waits. After an error or the end there is nothing
    /// more to come.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        match self {
            Self::Upstream(body) => body.next().await,
            Self::Shared(body) => {
                let piece = body.next().await?;
                Some(piece.map_err(|error| broken_off("the bucket", Some(Arc::new(error)))))
            }
            Self::Peer(body, peer) => match peer.while_there(body.next()).await {
                Some(Some(Err(error))) => Some(Err(broken_off("a peer", Some(Arc::new(error))))),
                Some(piece) => piece,
                None => Some(Err(broken_off("a peer", None))),
            },
        }
    }
}

/// Whatever a replica or the bucket does wrong, somebody else may do right.
fn broken_off(who: &str, source: Option<larder_upstream::Cause>) -> Error {
    Error::Unavailable { doing: format!("{who} broke off a body"), status: None, source }
}
