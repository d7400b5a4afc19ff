//! A replica of the cache, as a client: another replica, or the agent of a node.
//!
//! It speaks the same protocol as an upstream, and is otherwise nothing like one: it never asks who
//! we are, it is next door, and whoever cannot have something from it goes on elsewhere at once. So
//! there are no credentials here, no proxy, no redirects, no pauses and no breaker: one request, and
//! what came of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use larder_core::{Digest, Host, Repository};
use url::Url;

use crate::Observer;
use crate::body::Body;
use crate::caller::Caller;
use crate::client::{self, Blob};
use crate::error::{Again, Error, SetupError};
use crate::header;
use crate::settings::Base;
use crate::transport::{Answer, Request, Transport};

/// Says which process asks, and which one answers. Whoever is asked with it asks no further replica.
pub const X_LARDER_PEER: HeaderName = HeaderName::from_static("x-larder-peer");

/// The longest answer to a greeting that is read: `{}`, and whatever stands between us may add.
const MAX_GREETING: usize = 64 << 10;

/// How to reach one replica.
#[derive(Clone, Debug)]
pub struct ReplicaSettings {
    /// Where it is: `http` or `https`, before `/v2/`.
    pub url: Url,
    /// The address to connect to, if it is not to be looked up. The certificate is still to be one
    /// for the host of `url`.
    pub address: Option<SocketAddr>,
    /// Authorities that are trusted beside the system's, as the text of a PEM file.
    pub ca: Option<String>,
    /// What this process calls itself: letters that a header may have.
    pub me: String,
    /// The longest that a connection may take, TLS included.
    pub connect_timeout: Duration,
    /// The longest from a request to the head of its answer (a connection included), and between
    /// two pieces of a body.
    pub read_timeout: Duration,
}

/// One replica. Clones share connections.
#[derive(Clone)]
pub struct Replica(Arc<Inner>);

struct Inner {
    base: Base,
    me: HeaderValue,
    transport: Transport,
}

/// An answer as the replica gave it.
#[derive(Debug)]
pub struct Passed {
    /// Its status, whatever that is.
    pub status: StatusCode,
    /// Its headers, those of the connection too.
    pub headers: HeaderMap,
    /// How many bytes the body is to have, if it has one and says so.
    pub length: Option<u64>,
    /// The bytes. They are not verified. Empty for a HEAD.
    pub body: Body,
}

impl Replica {
    /// A client with connections of its own. Nothing is asked yet.
    ///
    /// # Errors
    ///
    /// The settings cannot work; [`SetupError`] says which.
    pub fn new(
        settings: &ReplicaSettings,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, SetupError> {
        let base = Base::new(&settings.url)?;
        let me = HeaderValue::from_str(&settings.me).map_err(|_| SetupError::Name)?;
        let transport = Transport::to_replica(settings, observer)?;
        Ok(Self(Arc::new(Inner { base, me, transport })))
    }

    /// Asks which process answers there, and waits for all of the answer. It touches neither its store
    /// nor anybody else, so one that does not answer soon is not there, however long what it is doing
    /// for us may take.
    ///
    /// # Errors
    ///
    /// As [`Self::blob`]; `Protocol` also if it is no Larder that answers.
    pub async fn greet(&self) -> Result<String, Error> {
        let answer = self.ask("v2/".to_owned(), None, HeaderMap::new()).await?;
        let name = header::text(&answer.headers, &X_LARDER_PEER).map(str::to_owned);
        let no_replica = Error::Protocol(format!("{} is no replica of Larder", answer.who()));
        // One that begins to answer and does not go on is not there either.
        answer.read(MAX_GREETING).await?;
        name.ok_or(no_replica)
    }

    /// Begins to fetch a blob of `host`'s `repository`, as [`crate::Client::blob`] does, on behalf of
    /// `caller`. Only where nobody hears it may that be somebody.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and `Unavailable` without a status: there was no answer. Everything else is what
    /// the replica says.
    pub async fn blob(
        &self,
        host: &Host,
        repository: &Repository,
        digest: &Digest,
        range: Option<(u64, Option<u64>)>,
        caller: &Caller,
    ) -> Result<Blob, Error> {
        let mut headers = client::range_headers(range)?;
        if let Some(shown) = caller.expose() {
            headers.insert(AUTHORIZATION, shown.clone());
        }
        let path = format!("v2/{}/blobs/{digest}", repository.as_str());
        let query = format!("ns={}", host.as_str());
        client::blob_of(self.ask(path, Some(query), headers).await?, range)
    }

    /// Passes a client's request on as it is: `path` begins with `v2/`. Redirects are not followed.
    ///
    /// # Errors
    ///
    /// `TimedOut`, and `Unavailable` without a status: there was no answer. Any answer is none of
    /// them.
    pub async fn pass(
        &self,
        method: Method,
        path: &str,
        query: Option<&str>,
        headers: HeaderMap,
    ) -> Result<Passed, Error> {
        let is_head = method == Method::HEAD;
        let url = self.0.base.at(path, query);
        let answer = self.send(&Request { headers, ..Request::new(method, url) }).await?;
        let length = if is_head { None } else { header::length(&answer.headers) };
        let (status, headers) = (answer.status, answer.headers.clone());
        Ok(Passed { status, headers, length, body: answer.into_body(length) })
    }

    /// Whether what is said to it can be read by others on the way.
    pub fn is_plain(&self) -> bool {
        self.0.base.is_plain()
    }

    async fn ask(
        &self,
        path: String,
        query: Option<String>,
        mut headers: HeaderMap,
    ) -> Result<Answer, Error> {
        headers.insert(X_LARDER_PEER, self.0.me.clone());
        let url = self.0.base.at(&path, query.as_deref());
        let answer = self.send(&Request { headers, ..Request::new(Method::GET, url) }).await?;
        match answer.status {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            _ => Err(answer.into_failure().error),
        }
    }

    async fn send(&self, request: &Request) -> Result<Answer, Error> {
        let answer = match self.0.transport.hop(request, None, false).await {
            // A connection that was kept from before, and that the other side has closed meanwhile.
            Err(failure) if failure.again == Again::AtOnce => {
                self.0.transport.hop(request, None, false).await
            }
            answer => answer,
        };
        answer.map_err(|failure| failure.error)
    }
}
