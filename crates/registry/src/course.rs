//! Whom the bytes of one blob are asked for, one after the other: its owner among the replicas, the
//! next one if that is not there, and upstream.
//!
//! A peer that is there and does not give it ends the peers' turns: what is wrong is not the peer,
//! and asking them all would multiply what upstream is asked. After upstream's turn has come, nobody
//! else is asked any more.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use larder_upstream::{Blob, Body, Error};
use tokio_util::sync::CancellationToken;

use crate::peer::{Peer, Reply};
use crate::source::Wanted;

/// Who is still to be asked.
pub(crate) struct Course {
    wanted: Wanted,
    peers: VecDeque<Arc<Peer>>,
    /// Cancelled when the peers have had their turns.
    alone: CancellationToken,
}

/// Bytes on their way from a peer or from upstream.
pub(crate) struct Flow {
    body: Body,
    peer: Option<Arc<Peer>>,
}

impl Course {
    /// `alone` is cancelled once nobody but upstream is asked.
    pub(crate) fn new(wanted: Wanted, alone: CancellationToken) -> Self {
        let peers = wanted.peers.iter().cloned().collect();
        Self { wanted, peers, alone }
    }

    /// Whether a peer is to be asked next.
    pub(crate) fn has_peers(&self) -> bool {
        !self.peers.is_empty()
    }

    /// Asks for a part of the blob, or all of it.
    ///
    /// # Errors
    ///
    /// As [`larder_upstream::Client::blob`]: upstream's.
    pub(crate) async fn ask(&mut self, range: Option<(u64, Option<u64>)>) -> Result<Part, Error> {
        let Wanted { upstream, name, digest, .. } = &self.wanted;
        while let Some(peer) = self.peers.front() {
            match peer.ask(name, digest, range).await {
                Reply::Blob(blob) => return Ok(Part::new(blob, Some(Arc::clone(peer)))),
                Reply::Lost => drop(self.peers.pop_front()),
                Reply::Refused | Reply::Here => self.peers.clear(),
            }
        }
        self.alone.cancel();
        let blob = upstream.client.blob(&name.repository, digest, range).await?;
        Ok(Part::new(blob, None))
    }

    /// The flow that was asked for last broke off. Decides who is next.
    pub(crate) async fn broke_off(&mut self) {
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
    fn new(blob: Blob, peer: Option<Arc<Peer>>) -> Self {
        let Blob { start, length, remaining, body } = blob;
        Self { start, length, remaining, flow: Flow { body, peer } }
    }
}

impl Flow {
    /// The next bytes. Can be dropped while it waits. After an error or the end there is nothing
    /// more to come.
    pub(crate) async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        let Some(peer) = &self.peer else { return self.body.next().await };
        match peer.while_there(self.body.next()).await {
            Some(Some(Err(error))) => Some(Err(broken_off(Some(error)))),
            Some(piece) => piece,
            None => Some(Err(broken_off(None))),
        }
    }
}

/// Whatever a peer does wrong, somebody else may do right.
fn broken_off(error: Option<Error>) -> Error {
    Error::Unavailable {
        doing: "a peer broke off a body".to_owned(),
        status: None,
        source: error.map(|error| Arc::new(error) as larder_upstream::Cause),
    }
}
