//! Finds out what does not work with an upstream: one thing is tested after the other, from the
//! configuration to the first byte of a blob, and each is reported by itself.
//!
//! ```text
//! configuration ─▶ for each address: dns ─▶ tcp ─▶ proxy ─▶ tls ─▶ registry ─▶ token ─▶ image ─▶ blob
//! ```
//!
//! It goes the way that a [`Client`](crate::Client) goes, with the same proxies, certificates and
//! credentials, and asks nothing that a pull would not ask. What a step finds is a value; nothing is
//! logged here.

mod certificate;
mod network;
mod registry;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use larder_core::{Digest, Reference, Repository};
use serde::Serialize;

pub use certificate::Certificate;

use crate::Observer;
use crate::credentials::Credentials;
use crate::error::Error;
use crate::settings::{Settings, without_secrets};
use network::Route;

/// What is tested, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Check {
    /// Whether a client can be made of the settings, which are said without secrets.
    Configuration,
    /// The name of the host, or of the proxy, is looked up.
    Dns,
    /// A connection to it is made.
    Tcp,
    /// The proxy is asked for a way to the host. Without such a proxy this step does not exist.
    Proxy,
    /// The TLS handshake, and the host's certificate.
    Tls,
    /// Whether it is a registry, and what it asks of those who ask.
    Registry,
    /// Whether the credential is accepted, or the token service gives tokens to anyone.
    Token,
    /// The manifest of the image.
    Image,
    /// The first byte of its largest blob, wherever the registry keeps it.
    Blob,
}

impl Check {
    /// Those that are made of each address.
    const OF_ADDRESS: [Self; 8] = [
        Self::Dns,
        Self::Tcp,
        Self::Proxy,
        Self::Tls,
        Self::Registry,
        Self::Token,
        Self::Image,
        Self::Blob,
    ];

    /// `dns`
    pub fn name(self) -> &'static str {
        match self {
            Self::Configuration => "configuration",
            Self::Dns => "dns",
            Self::Tcp => "tcp",
            Self::Proxy => "proxy",
            Self::Tls => "tls",
            Self::Registry => "registry",
            Self::Token => "token",
            Self::Image => "image",
            Self::Blob => "blob",
        }
    }
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It works.
    Passed,
    /// It does not.
    Failed,
    /// It was not tested, because it does not apply or because an earlier step failed.
    Skipped,
}

/// One test and what came of it.
#[derive(Clone, Debug, Serialize)]
pub struct Step {
    /// What was tested.
    pub check: Check,
    /// The address that was tested, without secrets. `None` for the configuration.
    pub url: Option<String>,
    /// How it ended.
    pub outcome: Outcome,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// What was found, or what is wrong, as a sentence for people. Never shows a secret.
    pub what: String,
    /// What to do about it.
    pub advice: Option<String>,
    /// What was found, for programs.
    pub found: Option<Found>,
}

/// What a step found.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum Found {
    /// Of [`Check::Configuration`].
    Configuration {
        /// The upstream.
        host: String,
        /// Its addresses, in the order in which they are asked.
        urls: Vec<String>,
        /// The proxy that leads to each address, from the configuration or the environment.
        proxies: Vec<Option<String>>,
        /// Of which kind the credential is: `anonymous`, `password`, `password_file` or
        /// `docker_config`.
        credentials: &'static str,
        /// The file of certificate authorities.
        ca: Option<String>,
        /// The file of our own certificate.
        client_cert: Option<String>,
        /// Whether any certificate will do.
        insecure_skip_verify: bool,
    },
    /// Of [`Check::Dns`].
    Addresses {
        /// The name that was looked up, or the address that needs no looking up.
        name: String,
        /// What it stands for.
        addresses: Vec<IpAddr>,
    },
    /// Of [`Check::Tcp`].
    Connection {
        /// Whom the connection leads to.
        address: SocketAddr,
    },
    /// Of [`Check::Tls`].
    Tls {
        /// `TLSv1_3`
        version: Option<String>,
        /// `h2` or `http/1.1`
        protocol: Option<String>,
        /// The server's certificate.
        certificate: Option<Certificate>,
        /// Whether it was found good.
        is_trusted: bool,
        /// Whether the server asks for our certificate.
        asks_for_certificate: bool,
    },
    /// Of [`Check::Registry`].
    Registry {
        /// What was answered.
        status: u16,
        /// `none`, `basic` or `bearer`.
        authentication: &'static str,
        /// The address of the token service.
        realm: Option<String>,
    },
    /// Of [`Check::Token`].
    Token {
        /// The address of the token service; none where a password is shown to the registry itself.
        realm: Option<String>,
        /// What it knows the registry as.
        service: Option<String>,
        /// Whether our credential was shown, or nobody's.
        is_anonymous: bool,
    },
    /// Of [`Check::Image`].
    Image {
        /// The digest of the manifest.
        digest: Digest,
        /// Its media type.
        media_type: String,
        /// Those of an index, as `linux/arm64`; empty for an image.
        platforms: Vec<String>,
        /// The bytes of all layers and the configuration; none for an index.
        bytes: Option<u64>,
    },
    /// Of [`Check::Blob`].
    Blob {
        /// Which one.
        digest: Digest,
        /// Scheme, host and port that its bytes came from.
        origin: String,
        /// Whether that is another one than the registry's.
        is_redirected: bool,
        /// Whether a part of it can be asked for. Without that, a download that broke off begins
        /// anew.
        has_ranges: bool,
    },
}

/// The image to ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// As the upstream knows it.
    pub repository: Repository,
    /// Its tag or digest.
    pub reference: Reference,
}

/// Where a probe is.
#[derive(Clone, Copy, Debug)]
pub enum Progress<'p> {
    /// A test has begun.
    Begun {
        /// Which one.
        check: Check,
        /// Of which address.
        url: Option<&'p str>,
    },
    /// A test has ended, or was skipped.
    Ended(&'p Step),
}

/// Tests the upstream that `settings` describe: each of its addresses by itself, all steps, and the
/// last two only if there is an `image`.
///
/// No step takes longer than `limit`; there are at most nine for each address, and
/// [`MAX_URLS`](crate::MAX_URLS) addresses. Dropping the future ends the test.
pub async fn probe(
    settings: Settings,
    image: Option<&Image>,
    limit: Duration,
    watch: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Vec<Step> {
    let mut course = Course { steps: Vec::new(), url: None, limit, watch };
    if course.step(Check::Configuration, async { configuration(&settings) }).await.is_none() {
        return course.steps;
    }
    for url in settings.urls.clone() {
        let settings = Settings { urls: vec![url], ..settings.clone() };
        course.url = Some(without_secrets(&settings.urls[0]));
        let n_before = course.steps.len();
        address(&mut course, &settings, image).await;
        course.skip_rest(n_before, image.is_some());
    }
    course.steps
}

/// All steps of one address, up to the first that fails.
async fn address(
    course: &mut Course<'_>,
    settings: &Settings,
    image: Option<&Image>,
) -> Option<()> {
    let route = Route::of(settings);
    let addresses = course.step(Check::Dns, route.look_up()).await?;
    let connection = course.step(Check::Tcp, route.connect(&addresses)).await?;
    let connection = match route.has_tunnel() {
        true => course.step(Check::Proxy, route.tunnel(connection, settings)).await?,
        false => connection,
    };
    let tls = course.step(Check::Tls, route.shake_hands(connection, settings)).await?;
    let registry = registry::Registry::new(settings, tls).ok()?;
    let challenge = course.step(Check::Registry, registry.greet()).await?;
    course.step(Check::Token, registry.log_in(image, challenge)).await?;
    let image = image?;
    let manifest = course.step(Check::Image, registry.fetch(image)).await?;
    course.step(Check::Blob, registry.first_byte(image, manifest)).await
}

fn configuration(settings: &Settings) -> Result<Verdict<()>, Failed> {
    let shown = |path: &std::path::Path| path.display().to_string();
    let proxies = settings.urls.iter().map(|url| network::proxy_of(settings, url));
    let proxies: Vec<Option<String>> = proxies.collect();
    let credentials = match &settings.credentials {
        Credentials::Anonymous => "anonymous",
        Credentials::Callers => "each caller by their own credential",
        Credentials::Basic { .. } => "password",
        Credentials::PasswordFile { .. } => "password_file",
        Credentials::DockerConfig(_) => "docker_config",
    };
    let urls: Vec<String> = settings.urls.iter().map(without_secrets).collect();
    let mut what = format!("{} at {}", settings.host.as_str(), urls.join(", "));
    what.push_str(&match settings.credentials.file() {
        Some(path) => format!(", {credentials} {}", path.display()),
        None => format!(", {credentials}"),
    });
    if let Some(proxy) = proxies.iter().flatten().next() {
        what.push_str(&format!(", by the proxy {proxy}"));
    }
    let found = Found::Configuration {
        host: settings.host.as_str().to_owned(),
        urls,
        proxies,
        credentials,
        ca: settings.ca.as_deref().map(shown),
        client_cert: settings.client_certificate.as_ref().map(|it| shown(&it.cert)),
        insecure_skip_verify: settings.insecure_skip_verify,
    };
    match crate::Client::new(settings.clone(), Arc::new(Nobody)) {
        Ok(_) => Ok(Verdict::passed((), what, found)),
        Err(error) => Err(Failed {
            what: with_causes(&error),
            advice: format!("mend this in {}", table(settings)),
            found: Some(Box::new(found)),
        }),
    }
}

/// A step that did not fail.
struct Verdict<T> {
    value: T,
    outcome: Outcome,
    what: String,
    advice: Option<String>,
    found: Option<Found>,
}

impl<T> Verdict<T> {
    fn passed(value: T, what: impl Into<String>, found: Found) -> Self {
        let (what, found) = (what.into(), Some(found));
        Self { value, outcome: Outcome::Passed, what, advice: None, found }
    }

    fn skipped(value: T, why: impl Into<String>) -> Self {
        Self { value, outcome: Outcome::Skipped, what: why.into(), advice: None, found: None }
    }

    fn advise(self, advice: Option<String>) -> Self {
        Self { advice, ..self }
    }
}

/// A step that failed.
struct Failed {
    what: String,
    advice: String,
    /// Boxed, to keep the size of results in hand.
    found: Option<Box<Found>>,
}

impl Failed {
    fn new(what: impl Into<String>, advice: impl Into<String>) -> Self {
        Self { what: what.into(), advice: advice.into(), found: None }
    }
}

/// The steps so far.
struct Course<'w> {
    steps: Vec<Step>,
    url: Option<String>,
    limit: Duration,
    watch: &'w mut (dyn FnMut(Progress<'_>) + Send),
}

impl Course<'_> {
    /// Makes one test and reports it. `None`: it failed.
    async fn step<T>(
        &mut self,
        check: Check,
        test: impl Future<Output = Result<Verdict<T>, Failed>>,
    ) -> Option<T> {
        (self.watch)(Progress::Begun { check, url: self.url.as_deref() });
        let begun = Instant::now();
        let ended = tokio::time::timeout(self.limit, test).await;
        let ended = ended.unwrap_or_else(|_| Err(took_too_long(check, self.limit)));
        let ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let (value, outcome, what, advice, found) = match ended {
            Ok(Verdict { value, outcome, what, advice, found }) => {
                (Some(value), outcome, what, advice, found)
            }
            Err(Failed { what, advice, found }) => {
                (None, Outcome::Failed, what, Some(advice), found.map(|it| *it))
            }
        };
        self.report(Step { check, url: self.url.clone(), outcome, ms, what, advice, found });
        value
    }

    /// Reports those that were not reached, of the steps of the address that began at `from`.
    fn skip_rest(&mut self, from: usize, has_image: bool) {
        let failed = self.steps[from..].iter().find(|step| step.outcome == Outcome::Failed);
        let failed = failed.map(|step| step.check);
        for check in Check::OF_ADDRESS {
            let is_reported = self.steps[from..].iter().any(|step| step.check == check);
            if is_reported || check == Check::Proxy {
                continue;
            }
            let what = match (failed, check) {
                (_, Check::Image | Check::Blob) if !has_image => "no image was named".to_owned(),
                (Some(failed), _) => format!("{} did not work", failed.name()),
                (None, _) => "the settings do not allow it".to_owned(),
            };
            let (url, outcome) = (self.url.clone(), Outcome::Skipped);
            self.report(Step { check, url, outcome, ms: 0, what, advice: None, found: None });
        }
    }

    fn report(&mut self, step: Step) {
        (self.watch)(Progress::Ended(&step));
        self.steps.push(step);
    }
}

fn took_too_long(check: Check, limit: Duration) -> Failed {
    let advice = match check {
        Check::Dns => "ask this machine's name server; /etc/resolv.conf has its address",
        Check::Tcp => "a firewall may drop what is sent: allow the way there, or set `proxy`",
        Check::Proxy => "see what the proxy's log says",
        Check::Configuration | Check::Tls | Check::Registry | Check::Token => {
            "whatever takes the connection does not answer: see whether it is the registry, and well"
        }
        Check::Image | Check::Blob => "try again; if it stays slow, give it longer with --timeout",
    };
    Failed::new(format!("nothing came of it within {}", seconds(limit)), advice)
}

/// `2 s`, `0.5 s`
fn seconds(duration: Duration) -> String {
    format!("{} s", duration.as_secs_f64())
}

/// Where in the configuration the upstream is.
fn table(settings: &Settings) -> String {
    format!("[upstreams.\"{}\"]", settings.host.as_str())
}

/// `error: cause: cause`
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    for cause in std::iter::successors(error.source(), |error| error.source()) {
        let cause = cause.to_string();
        // Some errors quote their cause themselves.
        if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// The TLS library's word, if it is among the causes of `error`.
fn tls_cause<'e>(error: &'e (dyn std::error::Error + 'static)) -> Option<&'e rustls::Error> {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.into_iter().find_map(|error| {
        // What an `io::Error` was made of is not its source.
        let inner = error.downcast_ref::<std::io::Error>().and_then(|error| error.get_ref());
        let inner = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>());
        error.downcast_ref::<rustls::Error>().or(inner)
    })
}

/// Whoever is told what is asked: here, nobody.
struct Nobody;

impl Observer for Nobody {
    fn request(&self, _: &'static str, _: Option<u16>) {}

    fn bytes(&self, _: u64) {}

    fn quota(&self, _: u64) {}
}

/// Whether this test shows no credential.
fn is_nobody(settings: &Settings) -> bool {
    matches!(settings.credentials, Credentials::Anonymous | Credentials::Callers)
}

/// What lets more be pulled than this test can.
fn more_rights(settings: &Settings) -> String {
    match settings.credentials {
        Credentials::Callers => {
            "pull it with a client that is logged in: everybody shows their own \
                                 credential here (`access = \"caller\"`)"
                .to_owned()
        }
        _ => format!("set `credentials` in {}", table(settings)),
    }
}

/// What an error of the client means for whoever asked, and what they can do.
fn explain(error: &Error, settings: &Settings) -> Failed {
    let table = table(settings);
    let more_rights = more_rights(settings);
    let advice = match error {
        Error::NotFound => {
            "look at the name and the tag; some registries say this also of what they keep from us"
                .to_owned()
        }
        Error::Denied if is_nobody(settings) => {
            format!("look at the name; if it is right, {more_rights}")
        }
        // Nobody's credential but ours is tested.
        Error::Denied | Error::CallerRefused { .. } => "give this user the right to pull it, or look at the name".to_owned(),
        Error::CredentialRefused(_) => {
            format!("renew the user name and password that `credentials` in {table} leads to")
        }
        Error::RateLimited { retry_after: Some(wait) } => {
            format!("wait {} and try again, or {more_rights}", seconds(*wait))
        }
        Error::RateLimited { retry_after: None } => {
            format!("wait and try again, or {more_rights}")
        }
        Error::Unavailable { status: Some(401 | 403), .. } => {
            "the registry's storage refuses its own signature: look at the clocks, or ask the registry's owner".to_owned()
        }
        Error::Unavailable { status: Some(_), .. } => {
            "the registry is not well: try again, and see what its owner says".to_owned()
        }
        Error::Unavailable { .. } => match tls_cause(error) {
            Some(rustls::Error::AlertReceived(_)) => network::ADVICE_CLIENT_CERTIFICATE.to_owned(),
            Some(_) => format!("set `ca` in {table} if it is signed by an authority of your own"),
            None => "allow the way there from this machine, or set `proxy`".to_owned(),
        },
        Error::Busy | Error::Resting { .. } => "try again later".to_owned(),
        Error::Unreachable(_) => {
            "name it as an upstream of its own, or list its network in `addresses`".to_owned()
        }
        Error::TimedOut => "it takes connections and does not answer: see whether it is well".to_owned(),
        Error::Digest { .. } => {
            "something on the way changes what is sent, or the registry is damaged: ask another address".to_owned()
        }
        Error::TooLarge { .. } | Error::Protocol(_) | Error::Range => {
            format!("see whether `urls` in {table} leads to a registry")
        }
    };
    Failed::new(with_causes(error), advice)
}
