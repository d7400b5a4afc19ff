//! From a request to the part that answers it, and back.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use http::header::{HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use larder_core::address::Asked;
use larder_core::name::Named;
use larder_core::route::{Route, query_value};
use larder_store::{Store, StoreError};
use larder_upstream::{Caller, X_LARDER_PEER};
use tracing::{Instrument as _, debug, info, info_span, warn};

use crate::absent::Absent;
use crate::builtin;
use crate::callers::Callers;
use crate::fills::Fills;
use crate::manifests::Manifests;
use crate::metrics::{Kind, Metrics, Outcome, Sequence, StoreOp, UpstreamMetrics};
use crate::peers::Peers;
use crate::referrers::Referrers;
use crate::refusal::Refusal;
use crate::respond::{self, Body, Meter, X_LARDER_CACHE};
use crate::roster::Roster;
use crate::upstream::Upstream;
use crate::upstreams::Upstreams;
use crate::verify::Verifier;
use crate::warm::Warmer;

/// Names a request in the log and in its answer.
const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Everything that answering a request takes.
pub(crate) struct Registry {
    pub(crate) store: Store,
    pub(crate) fills: Fills,
    pub(crate) manifests: Manifests,
    pub(crate) referrers: Referrers,
    pub(crate) absent: Absent,
    pub(crate) callers: Callers,
    pub(crate) verifier: Verifier,
    pub(crate) warmer: Warmer,
    pub(crate) upstreams: Upstreams,
    pub(crate) roster: Roster,
    pub(crate) peers: Peers,
    pub(crate) metrics: Metrics,
    /// Counts requests that name no upstream.
    pub(crate) unaddressed: Arc<UpstreamMetrics>,
    pub(crate) offline: bool,
    /// Whether clients are sent to the bucket for what is not stored here.
    pub(crate) redirects: bool,
    /// Which upstream a `Host` name stands for.
    pub(crate) hosts: BTreeMap<String, String>,
    pub(crate) requests: Sequence,
}

/// The registry as one listener serves it. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) registry: Arc<Registry>,
    /// The upstream of a request that names none.
    pub(crate) default_upstream: Option<Arc<str>>,
}

/// A request for something of a known upstream.
pub(crate) struct Ask<'a> {
    pub(crate) name: Arc<Named>,
    pub(crate) upstream: Arc<Upstream>,
    /// The name as the client wrote it.
    pub(crate) path_name: &'a str,
    pub(crate) query: Option<&'a str>,
    pub(crate) headers: &'a HeaderMap,
    /// Whether only the head of the answer is wanted.
    pub(crate) is_head: bool,
    /// Whether another replica asks, so that no further one is to be asked. It has no more rights
    /// than anybody else.
    pub(crate) is_from_peer: bool,
}

/// An answer with content, and how it came about.
pub(crate) struct Answer {
    pub(crate) response: Response<Body>,
    pub(crate) outcome: Outcome,
}

impl hyper::service::Service<Request<hyper::body::Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn call(&self, request: Request<hyper::body::Incoming>) -> Self::Future {
        let service = self.clone();
        let id = service.registry.requests.next();
        let span = info_span!("request", id);
        // The body is dropped unread: nothing that is served here has one.
        let (parts, _) = request.into_parts();
        Box::pin(async move { Ok(service.answer(&parts, id).await) }.instrument(span))
    }
}

impl Service {
    async fn answer(&self, request: &http::request::Parts, id: u64) -> Response<Body> {
        let since = Instant::now();
        let mut seen = Seen { kind: Kind::Other, metrics: Arc::clone(&self.registry.unaddressed) };
        let answered = self.route(request, &mut seen).await;
        let (mut response, outcome) = match answered {
            Ok(Answer { response, outcome }) => {
                log_answer(request, outcome, since);
                (response, outcome)
            }
            Err(refusal) => {
                let is_mirror = query_value(request.uri.query(), "ns").is_some();
                let refusal = if is_mirror { refusal.for_mirror() } else { refusal };
                log_refusal(request, &refusal, since);
                let outcome = refusal.outcome();
                (refusal.into_response(), outcome)
            }
        };
        seen.metrics.answered(seen.kind, outcome);
        if outcome != Outcome::Hit {
            response.headers_mut().insert(X_REQUEST_ID, HeaderValue::from(id));
        }
        if request.method == Method::HEAD {
            *response.body_mut() = Body::empty();
        }
        response.map(|body| body.metered(Meter::new(seen.metrics, since)))
    }

    async fn route(
        &self,
        request: &http::request::Parts,
        seen: &mut Seen,
    ) -> Result<Answer, Refusal> {
        let is_head = request.method == Method::HEAD;
        if !is_head && request.method != Method::GET {
            return Err(Refusal::unsupported());
        }
        let path = request.uri.path();
        let (kind, name) = match Route::parse(path) {
            Some(Route::Base) => {
                let mut response = respond::json(StatusCode::OK, &serde_json::json!({}));
                if !request.headers.contains_key(X_LARDER_PEER) {
                    self.answer_base(request, seen).await?;
                } else {
                    let me = respond::header_value(self.registry.peers.me().to_owned());
                    response.headers_mut().insert(X_LARDER_PEER, me);
                }
                return Ok(Answer { response, outcome: Outcome::Hit });
            }
            Some(Route::Manifest { name, reference }) => (What::Manifest(reference.parse()?), name),
            Some(Route::Blob { name, digest }) => (What::Blob(digest.parse()?), name),
            Some(Route::Tags { name }) => (What::Tags, name),
            Some(Route::Referrers { name, digest }) => (What::Referrers(digest.parse()?), name),
            Some(Route::Catalog) => return self.registry.catalog(request.uri.query()).await,
            Some(Route::Upload) => return Err(Refusal::unsupported()),
            None => return Err(Refusal::no_such_path()),
        };
        seen.kind = kind.kind();
        if builtin::is_meant(&name, request.uri.query()) {
            return builtin::answer(&name, &kind);
        }
        let ask = self.address(request, &name, seen)?;
        match &ask.upstream.asker {
            Some(asker) => self.registry.answer_to_caller(&ask, asker, &kind).await,
            None => self.registry.answer(&ask, &kind).await,
        }
    }

    /// Whether this is a registry to the caller, of the upstream that is meant where none is named.
    async fn answer_base(
        &self,
        request: &http::request::Parts,
        seen: &mut Seen,
    ) -> Result<(), Refusal> {
        let ns = query_value(request.uri.query(), "ns");
        let default_upstream = self.stands_for(request).or(self.default_upstream.as_deref());
        let meant = self.registry.upstreams.meant(ns.as_deref(), default_upstream);
        let Some(Ok(upstream)) = meant else { return Ok(()) };
        seen.metrics = Arc::clone(&upstream.settings.metrics);
        self.registry.answer_base(&upstream, &request.headers).await
    }

    fn address<'a>(
        &self,
        request: &'a http::request::Parts,
        name: &'a str,
        seen: &mut Seen,
    ) -> Result<Ask<'a>, Refusal> {
        let ns = query_value(request.uri.query(), "ns");
        let default_upstream = self.stands_for(request).or(self.default_upstream.as_deref());
        let asked = Asked { name, ns: ns.as_deref(), default_upstream };
        let found = self.registry.upstreams.resolve(asked)?;
        let upstream = found.upstream().map_err(|error| {
            warn!(error = &error as &dyn std::error::Error, "setting up {}", found.name.host);
            Refusal::internal()
        })?;
        seen.metrics = Arc::clone(&upstream.settings.metrics);
        if !upstream.settings.allows(&found.name.repository) {
            return Err(Refusal::not_allowed(&found.name));
        }
        let peer = request.headers.get(X_LARDER_PEER);
        if peer.is_some_and(|name| name.as_bytes() == self.registry.peers.me().as_bytes()) {
            return Err(Refusal::to_itself());
        }
        Ok(Ask {
            name: Arc::new(found.name),
            upstream: match upstream.asker {
                Some(_) => upstream.asked_by(Caller::of(&request.headers)?),
                None => upstream,
            },
            path_name: name,
            query: request.uri.query(),
            headers: &request.headers,
            is_head: request.method == Method::HEAD,
            is_from_peer: peer.is_some(),
        })
    }

    /// The upstream that the request's `Host` name stands for, if it is one of those.
    fn stands_for(&self, request: &http::request::Parts) -> Option<&str> {
        if self.registry.hosts.is_empty() {
            return None;
        }
        let host = match request.uri.host() {
            Some(host) => host,
            None => request.headers.get(HOST)?.to_str().ok()?,
        };
        let name = host.rsplit_once(':').map_or(host, |(name, port)| {
            if port.bytes().all(|byte| byte.is_ascii_digit()) { name } else { host }
        });
        self.registry.hosts.get(&name.to_ascii_lowercase()).map(String::as_str)
    }
}

/// What a request is for, parsed.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum What {
    Manifest(larder_core::Reference),
    Blob(larder_core::Digest),
    Tags,
    Referrers(larder_core::Digest),
}

impl What {
    fn kind(&self) -> Kind {
        match self {
            Self::Manifest(_) => Kind::Manifest,
            Self::Blob(_) => Kind::Blob,
            Self::Tags => Kind::Tags,
            Self::Referrers(_) => Kind::Referrers,
        }
    }
}

/// What is known of a request for its metrics, however far it gets.
struct Seen {
    kind: Kind,
    metrics: Arc<UpstreamMetrics>,
}

impl Registry {
    /// Answers with what is asked for. Who may have it was decided before.
    pub(crate) async fn answer(
        self: &Arc<Self>,
        ask: &Ask<'_>,
        what: &What,
    ) -> Result<Answer, Refusal> {
        match what {
            What::Manifest(reference) => self.manifest(ask, reference).await,
            What::Blob(digest) => self.blob(ask, digest).await,
            What::Tags => self.tags(ask).await,
            What::Referrers(subject) => self.referrers(ask, subject).await,
        }
    }

    /// What was found, or nothing if the store failed: upstream may still have it.
    pub(crate) fn found<T>(&self, lookup: Result<Option<T>, StoreError>) -> Option<T> {
        lookup.unwrap_or_else(|error| {
            self.metrics.store_error(StoreOp::Read);
            warn!(error = &error as &dyn std::error::Error, "the store cannot be asked");
            None
        })
    }

    /// Notes that the store could not remember something. It is found out again when needed.
    pub(crate) fn recorded(&self, result: Result<(), StoreError>) {
        if let Err(error) = result {
            self.metrics.store_error(StoreOp::Record);
            warn!(error = &error as &dyn std::error::Error, "the store cannot remember");
        }
    }

    /// Whether this repository may serve this content.
    pub(crate) async fn is_member(&self, ask: &Ask<'_>, digest: &larder_core::Digest) -> bool {
        let is_member = self.store.is_member(&ask.name, digest).await;
        self.found(is_member.map(Some)).unwrap_or(false)
    }
}

/// Hits are many and tell little, so they are for those who look closer.
fn log_answer(request: &http::request::Parts, outcome: Outcome, since: Instant) {
    let (method, uri, cache) = (&request.method, &request.uri, outcome.as_str());
    match outcome {
        Outcome::Hit => debug!(cache, "{method} {uri}"),
        _ => info!(cache, duration_ms = millis(since), "{method} {uri}"),
    }
}

fn log_refusal(request: &http::request::Parts, refusal: &Refusal, since: Instant) {
    let (method, uri, duration_ms) = (&request.method, &request.uri, millis(since));
    let (cache, reason) = (refusal.outcome().as_str(), refusal.message());
    match refusal.outcome() {
        Outcome::Failed => warn!(cache, reason, duration_ms, "{method} {uri}"),
        _ => info!(cache, reason, duration_ms, "{method} {uri}"),
    }
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

impl Answer {
    /// An answer from the head of a response that says by itself how it came about.
    pub(crate) fn new(response: Response<Body>, outcome: Outcome) -> Self {
        debug_assert!(response.headers().contains_key(X_LARDER_CACHE));
        Self { response, outcome }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_carries_little_along() {
        fn size<F>(
            _: impl FnOnce(&'static Service, &'static http::request::Parts, u64) -> F,
        ) -> usize {
            size_of::<F>()
        }
        // It is allocated and moved for each request, also for what takes microseconds.
        let size = size(Service::answer);
        assert!(size <= 4096, "{size} bytes: box what only a miss needs");
    }
}
