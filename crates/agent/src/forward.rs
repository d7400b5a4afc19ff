//! From a request to an answer of a replica, or to the word that the runtime has to go elsewhere.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::header::{CONNECTION, HeaderMap, HeaderName, TRANSFER_ENCODING};
use http::{Method, Response, StatusCode};
use larder_core::Digest;
use larder_core::manifest::MAX_MANIFEST;
use larder_upstream::Passed;
use tokio::time::sleep;
use tracing::debug;

use crate::answer::Body;
use crate::asked::{self, Asked, What};
use crate::counts::{Counts, Reason};
use crate::direct::Direct;
use crate::pour::{Others, Pour};
use crate::replica::Replica;
use crate::replicas::Replicas;

/// What is read whole before any of it is passed on, so that whatever goes wrong with it can still be
/// answered by a status: as much as a replica reads whole before it answers, and every manifest.
const SMALL: u64 = 1 << 20;

/// The most replicas that are asked for one request.
const MAX_ASKED: usize = 3;

/// How long a replica may be silent until the others are looked at: they may be gone, too.
const DOUBT: Duration = Duration::from_millis(30);

/// What is said about the connection to the replica, and not about the answer.
const OF_THE_CONNECTION: [HeaderName; 4] = [
    CONNECTION,
    TRANSFER_ENCODING,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("upgrade"),
];

/// What answering takes.
pub(crate) struct Forward {
    pub(crate) replicas: Replicas,
    pub(crate) direct: Arc<Direct>,
    pub(crate) counts: Arc<Counts>,
}

/// Why one replica gave no answer.
enum No {
    /// Another one may.
    Next(Reason),
    /// No other one should be asked.
    Enough(Reason),
}

impl Forward {
    /// Asks the replicas, one after the other.
    ///
    /// # Errors
    ///
    /// None of them has it for us; nothing was sent to the client yet.
    pub(crate) async fn answer(&self, asked: Asked) -> Result<Response<Body>, Reason> {
        let asked = Arc::new(asked);
        let host = asked.named().map(|named| named.host);
        let mut reason = match &host {
            Some(host) if !self.replicas.are_for(host) => Reason::NotCached,
            _ => Reason::NoReplica,
        };
        let order = self.replicas.order(&asked.key(), host.as_ref());
        for replica in order.into_iter().take(MAX_ASKED) {
            // It was when the order was made.
            if !replica.may_be_up() {
                continue;
            }
            match self.answer_of(&replica, &asked).await {
                Ok(response) => return Ok(response),
                Err(No::Next(why)) => reason = why,
                Err(No::Enough(why)) => return Err(why),
            }
            debug!(reason = reason.as_str(), "{} from {}", asked.path, replica.name());
        }
        Err(reason)
    }

    async fn answer_of(
        &self,
        replica: &Arc<Replica>,
        asked: &Arc<Asked>,
    ) -> Result<Response<Body>, No> {
        let Passed { status, headers, length, body } = self.head_of(replica, asked).await?;
        match status.as_u16() {
            // What it answers would make the runtime show its secret, which cannot be passed on.
            401 if replica.is_overheard() => return Err(No::Enough(Reason::Unencrypted)),
            // The replica is well and its upstream is not: the others would only ask it again.
            502..=504 => return Err(No::Enough(Reason::Upstream)),
            500..=599 => return Err(No::Next(Reason::Failing)),
            _ => {}
        }
        let mut response = Response::new(Body::empty());
        *response.status_mut() = status;
        *response.headers_mut() = without_connection(headers);
        if asked.method == Method::HEAD || !may_have_body(status) {
            return Ok(response);
        }
        let is_small = asked.is_for_manifest() || length.is_some_and(|length| length <= SMALL);
        let lost = No::Next(Reason::Lost);
        if is_small {
            let whole = replica.while_there(whole(body)).await.flatten().ok_or(lost)?;
            if !is_right(asked, status, &whole) {
                return Err(No::Next(Reason::Failing));
            }
            self.counts.bytes(whole.len());
            *response.body_mut() = Body::whole(whole);
            return Ok(response);
        }
        let mut body = body;
        let first = match replica.while_there(body.next()).await {
            Some(Some(Ok(first))) => first,
            Some(None) => return Ok(response),
            Some(Some(Err(_))) | None => return Err(lost),
        };
        let part = match asked.what {
            What::Blob(_) => asked::part(status, response.headers(), length),
            _ => None,
        };
        let others = Others {
            asked: Arc::clone(asked),
            replicas: self.replicas.clone(),
            direct: Arc::clone(&self.direct),
            tried: Vec::new(),
            is_last: false,
        };
        let pour = Pour::new(body, Arc::clone(replica), part, others, Arc::clone(&self.counts));
        *response.body_mut() = Body::pieces(pour.after(first));
        Ok(response)
    }

    /// The head of an answer. Meanwhile looks at the other replicas, if it takes a moment.
    async fn head_of(&self, replica: &Arc<Replica>, asked: &Asked) -> Result<Passed, No> {
        let headers = if replica.is_overheard() { &asked.headers } else { &asked.secret };
        let Asked { method, path, query, .. } = asked;
        let answer = replica.ask(method.clone(), path, query.as_deref(), headers.clone());
        let doubt = async {
            sleep(DOUBT).await;
            self.replicas.doubt_all_but(replica);
            std::future::pending().await
        };
        let passed = tokio::select! {
            biased;
            passed = answer => passed,
            never = doubt => never,
        };
        passed.ok_or(No::Next(Reason::Lost))
    }
}

/// All of a small body; `None`: it broke off, or is not small.
async fn whole(mut body: larder_upstream::Body) -> Option<Bytes> {
    let mut all = BytesMut::new();
    while let Some(piece) = body.next().await {
        let piece = piece.ok()?;
        if all.len() + piece.len() > MAX_MANIFEST {
            return None;
        }
        all.extend_from_slice(&piece);
    }
    Some(all.freeze())
}

/// Whether the bytes are those that were asked for, as far as that can be told.
fn is_right(asked: &Asked, status: StatusCode, bytes: &Bytes) -> bool {
    match asked.digest() {
        Some(digest) if status == StatusCode::OK => has_digest(digest, bytes),
        _ => true,
    }
}

fn has_digest(digest: &Digest, bytes: &Bytes) -> bool {
    let mut hasher = digest.hasher();
    hasher.update(bytes);
    hasher.finish() == *digest
}

fn may_have_body(status: StatusCode) -> bool {
    status != StatusCode::NO_CONTENT && status != StatusCode::NOT_MODIFIED
}

fn without_connection(mut headers: HeaderMap) -> HeaderMap {
    for name in &OF_THE_CONNECTION {
        headers.remove(name);
    }
    headers
}
