//! One request after the other, along redirects.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER};
use http::{Method, StatusCode};
use url::Url;

use crate::Observer;
use crate::body::Body;
use crate::error::{Again, Error, Failure, SetupError};
use crate::header;
use crate::limits::Slot;
use crate::reach::{Reach, Resolver, Unreachable};
use crate::replica::ReplicaSettings;
use crate::settings::{Settings, without_secrets};
use crate::tls;

/// The most redirects that are followed. Registries need one or two; browsers and Go stop at 10 to
/// 20.
const MAX_HOPS: usize = 10;

/// Idle connections that are kept to each host, and for how long: enough for the parallel layers of
/// a few pulls, gone before most servers and firewalls drop them.
const MAX_IDLE: usize = 16;
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// How often a silent connection is asked whether it is still there, and how long it may take to
/// say so.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest that a body may take that is read whole (the largest is a list of tags of 16 MiB).
/// The read timeout alone would let one byte at a time hold up a caller for ever.
const SMALL_BODY_TIME: Duration = Duration::from_secs(120);

/// Sends requests.
pub(crate) struct Transport {
    http: reqwest::Client,
    observer: Arc<dyn Observer>,
    reach: Reach,
    read_timeout: Duration,
}

/// A request, without what authenticates it.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Option<String>,
}

impl Request {
    pub(crate) fn new(method: Method, url: Url) -> Self {
        Self { method, url, headers: HeaderMap::new(), body: None }
    }

    /// The method as metrics name it.
    fn label(&self) -> &'static str {
        match self.method {
            Method::HEAD => "HEAD",
            Method::POST => "POST",
            _ => "GET",
        }
    }
}

/// The head of an answer, with the body still to come.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    /// The address that answered, after redirects.
    pub(crate) url: Url,
    /// Whether another origin answered than the one that was asked.
    pub(crate) is_elsewhere: bool,
    body: reqwest::Body,
    observer: Arc<dyn Observer>,
    read_timeout: Duration,
    slot: Option<Slot>,
}

impl Answer {
    /// Has `slot` taken until the body has ended.
    pub(crate) fn in_slot(self, slot: Slot) -> Self {
        Self { slot: Some(slot), ..self }
    }

    /// The body, which is to have `length` bytes if that is known.
    pub(crate) fn into_body(self, length: Option<u64>) -> Body {
        Body::new(self.body, self.observer, length, self.read_timeout).in_slot(self.slot)
    }

    /// All of the body.
    ///
    /// # Errors
    ///
    /// [`Error::TooLarge`] if it has more than `limit` bytes; otherwise as [`Body`].
    pub(crate) async fn read(self, limit: usize) -> Result<Bytes, Error> {
        let length = header::length(&self.headers);
        self.into_body(length).read(limit, SMALL_BODY_TIME).await
    }

    /// Who answered, as error texts name it.
    pub(crate) fn who(&self) -> String {
        without_secrets(&self.url)
    }

    /// What is wrong, given that the status is not the one hoped for.
    pub(crate) fn into_failure(self) -> Failure {
        let status = self.status.as_u16();
        let is_registry_error = !self.is_elsewhere && !is_web_page(&self.headers);
        let error = match status {
            429 => {
                let value = header::text(&self.headers, &RETRY_AFTER);
                let retry_after = value.and_then(|v| header::retry_after(v, SystemTime::now()));
                Error::RateLimited { retry_after }
            }
            404 if !self.is_elsewhere && !is_registry_error => {
                Error::Protocol(format!("{} answered 404 with a web page", self.who()))
            }
            // The registry had sent us there: storage that refuses is broken (a signature that has
            // run out, say), and says nothing about the image.
            401 | 403 if self.is_elsewhere => Error::Unavailable {
                doing: format!("{} answered {status}", self.who()),
                status: Some(status),
                source: None,
            },
            _ => Error::of_status(status, &self.who()),
        };
        let again = match status {
            502..=504 => Again::Later,
            500..=599 => Again::Elsewhere,
            _ => Again::Never,
        };
        Failure { error, again }
    }
}

/// Whether this is a page for people: a sign-in page, or a load balancer's error.
pub(crate) fn is_web_page(headers: &HeaderMap) -> bool {
    header::media_type(headers).is_some_and(|media_type| media_type == "text/html")
}

impl Transport {
    pub(crate) fn new(
        settings: &Settings,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, SetupError> {
        let mut builder = builder(tls::client_config(settings)?, settings.connect_timeout)
            .http2_keep_alive_interval(KEEPALIVE)
            .http2_keep_alive_timeout(KEEPALIVE_TIMEOUT);
        if let Some(proxy) = &settings.proxy {
            let proxy = reqwest::Proxy::all(proxy.clone());
            builder = builder.proxy(proxy.map_err(|e| SetupError::Proxy(e.without_url()))?);
        }
        if settings.reach != Reach::Anywhere {
            builder = match settings.proxy {
                // The environment's proxy may be where nothing else may be reached.
                None => builder.no_proxy().dns_resolver(Arc::new(Resolver(settings.reach.clone()))),
                Some(_) => builder,
            };
        }
        let http = builder.build().map_err(|error| SetupError::Http(error.without_url()))?;
        let (reach, read_timeout) = (settings.reach.clone(), settings.read_timeout);
        Ok(Self { http, observer, reach, read_timeout })
    }

    /// What speaks to a replica: directly, and each body on a connection of its own, so that none
    /// waits for another one's reader, nor a question whether it is there for any of them.
    pub(crate) fn to_replica(
        settings: &ReplicaSettings,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, SetupError> {
        let tls = tls::replica_config(settings.ca.as_deref())?;
        let mut builder = builder(tls, settings.connect_timeout).no_proxy().http1_only();
        if let (Some(host), Some(address)) = (settings.url.host_str(), settings.address) {
            builder = builder.resolve(host, address);
        }
        let http = builder.build().map_err(|error| SetupError::Http(error.without_url()))?;
        let read_timeout = settings.read_timeout;
        Ok(Self { http, observer, reach: Reach::Anywhere, read_timeout })
    }

    /// Sends `request` with `authorization` and follows redirects.
    ///
    /// Only the origin that `request` names sees `authorization`, and only until it redirects to
    /// another one. A redirect from `https` to `http` is refused, and any redirect of a request that
    /// has a body: what we post is a credential.
    ///
    /// The answer can have any status but those of redirects.
    pub(crate) async fn send(
        &self,
        request: Request,
        authorization: Option<&HeaderValue>,
    ) -> Result<Answer, Failure> {
        let origin = request.url.origin();
        let is_plain = request.url.scheme() == "http";
        let mut request = request;
        let mut is_elsewhere = false;
        for _ in 0..=MAX_HOPS {
            is_elsewhere |= request.url.origin() != origin;
            let authorization = authorization.filter(|_| !is_elsewhere);
            let answer = self.hop(&request, authorization, is_elsewhere).await?;
            let is_redirect = matches!(answer.status.as_u16(), 301 | 302 | 303 | 307 | 308);
            if !is_redirect {
                return check_encoding(answer);
            }
            if request.body.is_some() {
                let text = format!("{} redirects what was posted", answer.who());
                return Err(Error::Protocol(text).into());
            }
            request.url = target(&answer, is_plain)?;
        }
        let text = format!("more than {MAX_HOPS} redirects from {}", origin.ascii_serialization());
        Err(Error::Protocol(text).into())
    }

    /// Sends `request`, and nothing more.
    pub(crate) async fn hop(
        &self,
        request: &Request,
        authorization: Option<&HeaderValue>,
        is_elsewhere: bool,
    ) -> Result<Answer, Failure> {
        let unreachable = |error: Unreachable| Error::Unreachable(error.to_string());
        self.reach.check(&request.url).map_err(unreachable)?;
        let mut builder = self
            .http
            .request(request.method.clone(), request.url.clone())
            .headers(request.headers.clone());
        if let Some(value) = authorization {
            builder = builder.header(AUTHORIZATION, value.clone());
        }
        if let Some(body) = &request.body {
            builder = builder.body(body.clone());
        }
        let sent = tokio::time::timeout(self.read_timeout, builder.send()).await;
        let code = match &sent {
            Ok(Ok(response)) => Some(response.status().as_u16()),
            _ => None,
        };
        self.observer.request(request.label(), code);
        let response = match sent {
            Err(_) => return Err(Error::TimedOut.into()),
            Ok(Err(error)) => return Err(unanswered(error, &request.url)),
            Ok(Ok(response)) => http::Response::<reqwest::Body>::from(response),
        };
        let (head, body) = response.into_parts();
        if !is_elsewhere && let Some(remaining) = header::quota(&head.headers) {
            self.observer.quota(remaining);
        }
        Ok(Answer {
            status: head.status,
            headers: head.headers,
            url: request.url.clone(),
            is_elsewhere,
            body,
            observer: self.observer.clone(),
            read_timeout: self.read_timeout,
            slot: None,
        })
    }
}

/// What every client has.
fn builder(tls: rustls::ClientConfig, connect_timeout: Duration) -> reqwest::ClientBuilder {
    let mut headers = HeaderMap::new();
    // Digests are of the bytes as they are stored; an encoding would have to be undone.
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .user_agent(concat!("larder/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false)
        .connect_timeout(connect_timeout)
        .pool_max_idle_per_host(MAX_IDLE)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(KEEPALIVE)
}

fn check_encoding(answer: Answer) -> Result<Answer, Failure> {
    match header::encoding(&answer.headers) {
        None => Ok(answer),
        Some(encoding) => {
            let encoding: String = encoding.chars().take(40).collect();
            let text = format!("{} sent a body encoded as {encoding}", answer.who());
            Err(Error::Protocol(text).into())
        }
    }
}

/// Where a redirect leads.
fn target(answer: &Answer, is_plain: bool) -> Result<Url, Error> {
    let refused =
        |problem: &str| Error::Protocol(format!("{} redirects to {problem}", answer.who()));
    let location = header::text(&answer.headers, &LOCATION);
    let location = location.ok_or_else(|| refused("nowhere"))?;
    let mut url = answer.url.join(location).map_err(|_| refused("what is no address"))?;
    url.set_fragment(None);
    match url.scheme() {
        "https" => {}
        "http" if is_plain => {}
        "http" => return Err(refused("an unencrypted address")),
        _ => return Err(refused("an address that is neither http nor https")),
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refused("an address with credentials"));
    }
    Ok(url)
}

/// The address that the resolver has kept from us, if that is why there is no connection.
fn refused_address(error: &reqwest::Error) -> Option<&Unreachable> {
    let first = std::error::Error::source(error);
    std::iter::successors(first, |error| error.source()).find_map(|error| error.downcast_ref())
}

/// What it means that no answer came.
fn unanswered(error: reqwest::Error, url: &Url) -> Failure {
    let is_connect = error.is_connect();
    if let Some(refused) = refused_address(&error) {
        return Error::Unreachable(refused.to_string()).into();
    }
    if error.is_timeout() {
        // Another address may well answer at once; this one would only cost the same time again.
        let again = if is_connect { Again::Elsewhere } else { Again::Never };
        return Failure { error: Error::TimedOut, again };
    }
    let again = match (error.is_builder(), is_connect) {
        (true, _) => Again::Never,
        (_, true) => Again::Later,
        (_, false) => Again::AtOnce,
    };
    let origin = url.origin().ascii_serialization();
    let doing =
        if is_connect { format!("connecting to {origin}") } else { format!("asking {origin}") };
    let source = Some(Arc::new(error.without_url()) as crate::Cause);
    Failure { error: Error::Unavailable { doing, status: None, source }, again }
}
