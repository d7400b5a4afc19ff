//! A body on its way from a replica to the runtime, and where it goes on when the replica is lost.
//!
//! A runtime takes a body that breaks off for a failed pull. So the rest is asked for by range: of
//! another replica, then of the upstream. Whoever sends it, the bytes are those of one digest, and as
//! many as the first answer announced.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue, RANGE};
use http::{Method, StatusCode};
use larder_core::range::ByteRange;
use larder_upstream::Body;
use tracing::{info, warn};

use crate::asked::{self, Asked};
use crate::counts::{Counts, Rest};
use crate::direct::Direct;
use crate::replica::Replica;
use crate::replicas::Replicas;

/// A body could not be finished. The connection is cut, so that no client takes what it has for all
/// there is.
#[derive(Debug, thiserror::Error)]
#[error("the rest of a body cannot be had")]
pub(crate) struct BrokenOff;

/// Whom the rest can be asked for.
pub(crate) struct Others {
    pub(crate) asked: Arc<Asked>,
    pub(crate) replicas: Replicas,
    pub(crate) direct: Arc<Direct>,
    /// Those that are not asked again.
    pub(crate) tried: Vec<String>,
    /// Whether the upstream has had its turn.
    pub(crate) is_last: bool,
}

/// Bytes under way.
pub(crate) struct Pour {
    body: Body,
    /// Who sends them; `None`: the upstream.
    from: Option<Arc<Replica>>,
    /// The bytes of the blob that are still to come. `None`: it cannot be told which those are.
    left: Option<ByteRange>,
    others: Others,
    counts: Arc<Counts>,
}

impl Pour {
    /// `left`: which bytes of the blob `body` is going to have.
    pub(crate) fn new(
        body: Body,
        from: Arc<Replica>,
        left: Option<ByteRange>,
        others: Others,
        counts: Arc<Counts>,
    ) -> Self {
        Self { body, from: Some(from), left, others, counts }
    }

    /// All bytes, `first` first.
    pub(crate) fn after(
        mut self,
        first: Bytes,
    ) -> impl Stream<Item = Result<Bytes, BrokenOff>> + Send {
        self.passed(&first);
        let rest = stream::unfold(Some(self), |pour| async move {
            let mut pour: Self = pour?;
            match pour.next().await? {
                Ok(bytes) => Some((Ok(bytes), Some(pour))),
                Err(broken_off) => Some((Err(broken_off), None)),
            }
        });
        stream::iter([Ok(first)]).chain(rest)
    }

    async fn next(&mut self) -> Option<Result<Bytes, BrokenOff>> {
        loop {
            let piece = match &self.from {
                Some(replica) => replica.while_patient(self.body.next()).await,
                None => Some(self.body.next().await),
            };
            match piece {
                Some(Some(Ok(bytes))) => {
                    self.passed(&bytes);
                    return Some(Ok(bytes));
                }
                // It had as many bytes as it announced: the body makes sure of it.
                Some(None) => return None,
                Some(Some(Err(_))) | None => {}
            }
            let Some(left) = self.left else {
                // Everything that was announced is there, or nothing can be done.
                return Some(Err(self.broken_off()));
            };
            match self.others.rest(self.from.take(), left).await {
                Some((body, from)) => {
                    self.counts.rest(if from.is_some() { Rest::Replica } else { Rest::Upstream });
                    (self.body, self.from) = (body, from);
                }
                None => return Some(Err(self.broken_off())),
            }
        }
    }

    fn passed(&mut self, bytes: &Bytes) {
        self.counts.bytes(bytes.len());
        let start = self.left.map(|left| left.start + bytes.len() as u64);
        self.left = self
            .left
            .zip(start)
            .and_then(|(left, start)| (start <= left.last).then_some(ByteRange { start, ..left }));
    }

    fn broken_off(&self) -> BrokenOff {
        self.counts.rest(Rest::Nowhere);
        warn!("cutting off a body: the rest of {} cannot be had", self.others.asked.path);
        BrokenOff
    }
}

impl fmt::Debug for Pour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pour")
            .field("from", &self.from)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Others {
    /// The bytes `left`, and who sends them now that `lost` does not.
    async fn rest(
        &mut self,
        lost: Option<Arc<Replica>>,
        left: ByteRange,
    ) -> Option<(Body, Option<Arc<Replica>>)> {
        if let Some(lost) = lost {
            self.tried.push(lost.name().to_owned());
            // So that nobody else begins there, if it is gone.
            lost.is_there().await;
        }
        let digest = self.asked.digest()?.clone();
        let name = self.asked.named();
        let host = name.as_ref().map(|name| &name.host);
        for replica in self.replicas.order(&digest, host) {
            if self.is_last || self.tried.iter().any(|it| it == replica.name()) {
                continue;
            }
            self.tried.push(replica.name().to_owned());
            if let Some(body) = self.part_of(&replica, left).await {
                info!("the rest of {} comes from {}", self.asked.path, replica.name());
                return Some((body, Some(replica)));
            }
        }
        if std::mem::replace(&mut self.is_last, true) {
            return None;
        }
        let name = name?;
        let blob = self.direct.blob(&name, &digest, (left.start, left.last)).await?;
        if blob.remaining != Some(left.len()) {
            return None;
        }
        info!("the rest of {} comes from {}", self.asked.path, name.host);
        Some((blob.body, None))
    }

    async fn part_of(&self, replica: &Arc<Replica>, left: ByteRange) -> Option<Body> {
        let mut headers = HeaderMap::new();
        let range = format!("bytes={}-{}", left.start, left.last);
        headers.insert(RANGE, HeaderValue::try_from(range).ok()?);
        // Where each caller's own right counts, without it there is no rest.
        let shown = self.asked.secret.get(AUTHORIZATION).filter(|_| !replica.is_overheard());
        headers.extend(shown.map(|shown| (AUTHORIZATION, shown.clone())));
        let Asked { path, query, .. } = &*self.asked;
        let query = query.as_deref();
        let passed = replica.ask_patiently(Method::GET, path, query, headers).await?;
        let part = asked::part(passed.status, &passed.headers, passed.length);
        let is_it = passed.status == StatusCode::PARTIAL_CONTENT && part == Some(left);
        is_it.then_some(passed.body)
    }
}
