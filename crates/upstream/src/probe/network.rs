//! The way to one address: names, connections, proxies, TLS.

use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::SystemTime;

use http::Uri;
use hyper_util::client::legacy::connect::proxy::{SocksV5, Tunnel};
use hyper_util::client::proxy::matcher::{Intercept, Matcher};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tower_service::Service;
use url::Url;

use super::{Certificate, Failed, Found, Outcome, Verdict, table, tls_cause, with_causes};
use crate::error::SetupError;
use crate::reach::Reach;
use crate::settings::{Settings, without_secrets};
use crate::tls;

/// A certificate that runs out in fewer days than this is worth a word. Those of Let's Encrypt are
/// renewed 30 days before their end.
const SOON: i64 = 14;

/// What to do when a server breaks off because of who we are.
pub(super) const ADVICE_CLIENT_CERTIFICATE: &str =
    "if the server wants our certificate, set `client_cert` and `client_key`, or renew them";

/// The proxy that leads to `url`, as it may be shown.
pub(super) fn proxy_of(settings: &Settings, url: &Url) -> Option<String> {
    let proxy = intercept(settings, url)?.uri().to_string();
    Url::parse(&proxy).ok().map(|url| without_secrets(&url))
}

/// What stands between us and `url`. The HTTP client decides by the same rules.
fn intercept(settings: &Settings, url: &Url) -> Option<Intercept> {
    let matcher = match (&settings.proxy, &settings.reach) {
        (Some(proxy), _) => Matcher::builder().all(proxy.as_str()).build(),
        (None, Reach::Anywhere) => Matcher::from_system(),
        (None, Reach::Public { .. }) => return None,
    };
    matcher.intercept(&url.as_str().parse().ok()?)
}

/// A connection, or what is spoken on one.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// How one address is reached.
pub(super) struct Route {
    url: Url,
    proxy: Option<Intercept>,
    /// Whom the first connection is made to.
    host: String,
    port: u16,
    /// How error texts name that.
    who: String,
    /// Where it may be.
    reach: Reach,
}

impl Route {
    /// The route to the first address of `settings`.
    pub(super) fn of(settings: &Settings) -> Self {
        let url = settings.urls[0].clone();
        let proxy = intercept(settings, &url);
        let (scheme, host, port) = match &proxy {
            Some(proxy) => {
                let uri = proxy.uri();
                (uri.scheme_str(), uri.host(), uri.port_u16())
            }
            None => (Some(url.scheme()), url.host_str(), url.port()),
        };
        let default = match scheme {
            Some("https") => 443,
            Some("socks5" | "socks5h" | "socks4" | "socks4a") => 1080,
            _ => 80,
        };
        // As name resolution and TLS want an IPv6 address: without its brackets.
        let host = host.unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = port.unwrap_or(default);
        let who = match proxy {
            Some(_) => format!("the proxy {host}:{port}"),
            None => format!("{host}:{port}"),
        };
        let reach = match proxy {
            Some(_) => Reach::Anywhere,
            None => settings.reach.clone(),
        };
        Self { url, proxy, host, port, who, reach }
    }

    /// Looks up whom to connect to.
    pub(super) async fn look_up(&self) -> Result<Verdict<Vec<IpAddr>>, Failed> {
        let host = &self.host;
        let found = tokio::net::lookup_host((host.as_str(), self.port)).await;
        let mut addresses: Vec<IpAddr> = match found {
            Ok(found) => found.map(|address| address.ip()).collect(),
            Err(error) => {
                let what = format!("{host} cannot be looked up: {error}");
                return Err(Failed::new(
                    what,
                    "look at the name; if it is right, this machine's name server does not know it (/etc/resolv.conf)",
                ));
            }
        };
        addresses.dedup();
        let n_found = addresses.len();
        addresses.retain(|address| self.reach.allows(*address));
        if addresses.len() < n_found && addresses.is_empty() {
            let what = format!("{host} is not on the public internet");
            return Err(Failed::new(
                what,
                "name it as an upstream of its own, or list its network in `addresses`",
            ));
        }
        if addresses.is_empty() {
            let what = format!("{host} has no address");
            return Err(Failed::new(what, "look at the name, and at its records"));
        }
        let what = match host.parse::<IpAddr>() {
            Ok(_) => format!("{host} needs no looking up"),
            Err(_) => format!("{host} is {}", join(&addresses)),
        };
        let found = Found::Addresses { name: host.clone(), addresses: addresses.clone() };
        Ok(Verdict::passed(addresses, what, found))
    }

    /// Connects to the first of `addresses` that takes the connection.
    pub(super) async fn connect(
        &self,
        addresses: &[IpAddr],
    ) -> Result<Verdict<Box<dyn Stream>>, Failed> {
        let mut refused = Vec::new();
        for ip in addresses {
            let address = SocketAddr::new(*ip, self.port);
            match TcpStream::connect(address).await {
                Ok(stream) => {
                    let mut what = format!("connected to {address}");
                    if !refused.is_empty() {
                        what = format!("{what}, but {}", refused.join(", "));
                    }
                    let stream: Box<dyn Stream> = Box::new(stream);
                    return Ok(Verdict::passed(stream, what, Found::Connection { address }));
                }
                Err(error) => refused.push(format!("{address}: {error}")),
            }
        }
        let what = format!("cannot connect to {}: {}", self.who, refused.join(", "));
        Err(Failed::new(
            what,
            "nobody listens there, or a firewall is in between: look at the host and port, and whether it runs",
        ))
    }

    /// Whether a proxy has to be asked for a way: one that speaks HTTP is given plain requests
    /// whole.
    pub(super) fn has_tunnel(&self) -> bool {
        let scheme = self.proxy.as_ref().and_then(|proxy| proxy.uri().scheme_str());
        match scheme {
            None => false,
            Some("http" | "https") => self.url.scheme() == "https",
            Some(_) => true,
        }
    }

    /// Asks the proxy, on a connection to it, for a way to the address.
    pub(super) async fn tunnel(
        &self,
        connection: Box<dyn Stream>,
        settings: &Settings,
    ) -> Result<Verdict<Box<dyn Stream>>, Failed> {
        let Some(proxy) = &self.proxy else {
            return Ok(Verdict::skipped(connection, "there is no proxy"));
        };
        let opened = match proxy.uri().scheme_str() {
            Some("socks5" | "socks5h") => self.socks(proxy, connection).await,
            Some("https") => match self.encrypt_to_proxy(connection, settings).await {
                Ok(connection) => self.http_tunnel(proxy, Box::new(connection)).await,
                Err(error) => Err(error),
            },
            _ => self.http_tunnel(proxy, connection).await,
        };
        let (host, port) =
            (self.url.host_str().unwrap_or_default(), self.url.port_or_known_default());
        let target = format!("{host}:{}", port.unwrap_or_default());
        match opened {
            Ok(stream) => {
                let what = format!("{} leads to {target}", self.who);
                Ok(Verdict { outcome: Outcome::Passed, ..Verdict::skipped(stream, what) })
            }
            Err(error) => Err(Failed::new(
                format!("{} does not lead to {target}: {}", self.who, with_causes(&*error)),
                "see whether it is a proxy of this kind, and may be used from here for this host and port; its log has the reason",
            )),
        }
    }

    async fn http_tunnel(
        &self,
        proxy: &Intercept,
        connection: Box<dyn Stream>,
    ) -> Result<Box<dyn Stream>, AnyError> {
        let mut tunnel = Tunnel::new(proxy.uri().clone(), Connected(Some(connection)));
        if let Some(value) = proxy.basic_auth() {
            tunnel = tunnel.with_auth(value.clone());
        }
        Ok(Box::new(tunnel.call(self.target(None)?).await?.into_inner()))
    }

    async fn socks(
        &self,
        proxy: &Intercept,
        connection: Box<dyn Stream>,
    ) -> Result<Box<dyn Stream>, AnyError> {
        let mut ip = None;
        if proxy.uri().scheme_str() == Some("socks5") {
            let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']);
            ip = tokio::net::lookup_host((host, 0)).await?.next().map(|address| address.ip());
        }
        let mut socks = SocksV5::new(proxy.uri().clone(), Connected(Some(connection)));
        if let Some((user, password)) = proxy.raw_auth() {
            socks = socks.with_auth(user.to_owned(), password.to_owned());
        }
        let connection = socks.call(self.target(ip)?).await.map_err(|error| error.to_string())?;
        Ok(Box::new(connection.into_inner()))
    }

    /// Scheme, host and port of the address; the host is `ip` if it has been looked up.
    fn target(&self, ip: Option<IpAddr>) -> Result<Uri, AnyError> {
        let mut url = self.url.clone();
        if let Some(ip) = ip {
            url.set_ip_host(ip).map_err(|()| "the address has no host")?;
        }
        let port = url.port_or_known_default().unwrap_or_default();
        let host = url.host_str().unwrap_or_default();
        Ok(format!("{}://{host}:{port}/", url.scheme()).parse()?)
    }

    async fn encrypt_to_proxy(
        &self,
        connection: Box<dyn Stream>,
        settings: &Settings,
    ) -> Result<impl Stream + use<>, AnyError> {
        let mut config = tls::client_config(settings)?;
        config.alpn_protocols.clear();
        let name = ServerName::try_from(self.host.clone())?;
        Ok(TlsConnector::from(Arc::new(config)).connect(name, connection).await?)
    }

    /// The TLS handshake. The answer is whether the server wants a certificate that we don't have.
    pub(super) async fn shake_hands(
        &self,
        connection: Box<dyn Stream>,
        settings: &Settings,
    ) -> Result<Verdict<bool>, Failed> {
        if self.url.scheme() != "https" {
            return Ok(Verdict::skipped(false, "the address is http, without encryption"));
        }
        let host = self.url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let no_name =
            || Failed::new(format!("`{host}` cannot be in a certificate"), "write another url");
        let name = ServerName::try_from(host.clone()).map_err(|_| no_name())?;
        let (config, witness, asked) = observed(settings).map_err(|error| {
            Failed::new(with_causes(&error), format!("mend this in {}", table(settings)))
        })?;
        let ended = TlsConnector::from(Arc::new(config)).connect(name, connection).await;
        let asks_for_certificate = asked.0.load(Ordering::Relaxed);
        let seen = witness.seen.lock().take();
        let certificate =
            seen.as_ref().and_then(|seen| Certificate::read(&seen.certificate, SystemTime::now()));
        let is_trusted = seen.as_ref().is_some_and(|seen| seen.refusal.is_none());
        let mut found = Found::Tls {
            version: None,
            protocol: None,
            certificate: certificate.clone(),
            is_trusted,
            asks_for_certificate,
        };
        let stream = match ended {
            Ok(stream) => stream,
            Err(error) => {
                let failed = refused(&error, certificate.as_ref(), &host, settings);
                return Err(Failed { found: Some(Box::new(found)), ..failed });
            }
        };
        let (_, connection) = stream.get_ref();
        let spoken = connection.protocol_version().map(|it| format!("{it:?}"));
        if let Found::Tls { version, protocol, .. } = &mut found {
            *version = spoken.clone();
            *protocol =
                connection.alpn_protocol().map(|it| String::from_utf8_lossy(it).into_owned());
        }
        let mut what = spoken.unwrap_or_default();
        let mut advice = None;
        if let Some(certificate) = &certificate {
            let days = certificate.expires_in_days;
            what.push_str(&format!(
                ", a certificate for {} by {}, good for {days} days",
                certificate.holder(),
                certificate.issuer
            ));
            if days < SOON {
                advice = Some("the certificate has to be renewed soon".to_owned());
            }
        }
        if let Some(refusal) = seen.and_then(|seen| seen.refusal) {
            what.push_str(&format!(
                "; it is not verified (insecure_skip_verify), and would be refused: {refusal}"
            ));
        }
        let lacks_certificate = asks_for_certificate && settings.client_certificate.is_none();
        if asks_for_certificate {
            what.push_str(match lacks_certificate {
                true => "; the server asks for our certificate, and none is configured",
                false => "; our certificate is shown",
            });
        }
        Ok(Verdict::passed(lacks_certificate, what, found).advise(advice))
    }
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn join(addresses: &[IpAddr]) -> String {
    let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    addresses.join(", ")
}

/// Why a handshake failed, and what to do about it.
fn refused(
    error: &io::Error,
    certificate: Option<&Certificate>,
    host: &str,
    settings: &Settings,
) -> Failed {
    use rustls::Error::{AlertReceived, InvalidCertificate, InvalidMessage, PeerIncompatible};
    let table = table(settings);
    let (what, advice) = match (tls_cause(error), certificate) {
        (Some(InvalidCertificate(problem)), Some(certificate)) => {
            return untrusted(problem, certificate, host, &table);
        }
        (Some(InvalidMessage(_)), _) => (
            "what answers does not speak TLS".to_owned(),
            format!("if the registry has no TLS, write http:// in `urls` of {table}"),
        ),
        (Some(PeerIncompatible(_)), _) => (
            format!("the server speaks only TLS that is no longer safe: {error}"),
            "the server needs TLS 1.2 or 1.3".to_owned(),
        ),
        (Some(AlertReceived(_)), _) => (
            format!("the server breaks off the handshake: {error}"),
            ADVICE_CLIENT_CERTIFICATE.to_owned(),
        ),
        _ => (
            format!("the handshake broke off: {error}"),
            format!(
                "see whether a firewall is in between; if this port has no TLS, write http:// in `urls` of {table}"
            ),
        ),
    };
    Failed::new(what, advice)
}

/// What is wrong with a certificate, and what to do about it.
fn untrusted(
    problem: &CertificateError,
    certificate: &Certificate,
    host: &str,
    table: &str,
) -> Failed {
    use CertificateError::{
        Expired, ExpiredContext, NotValidForName, NotValidForNameContext, NotValidYet,
        NotValidYetContext, UnknownIssuer,
    };
    let Certificate { issuer, expires_in_days, .. } = certificate;
    let (what, advice) = match problem {
        UnknownIssuer => (
            format!("the certificate is signed by `{issuer}`, whom this machine does not trust"),
            format!("put that authority's certificate, PEM, into a file and set `ca` in {table}"),
        ),
        Expired | ExpiredContext { .. } => (
            format!("the certificate ran out {} days ago", -expires_in_days),
            "its owner has to renew it; look at this machine's clock, too".to_owned(),
        ),
        NotValidYet | NotValidYetContext { .. } => (
            "the certificate is not good yet".to_owned(),
            "look at this machine's clock".to_owned(),
        ),
        NotValidForName | NotValidForNameContext { .. } => (
            format!("the certificate is for {}, not for {host}", certificate.holder()),
            format!(
                "write one of these names in `urls` of {table}, or have the certificate renewed with {host}"
            ),
        ),
        CertificateError::Other(_) if certificate.is_authority => (
            format!("the certificate of `{issuer}` is an authority's, which no server may show as its own"),
            "make the server one with basicConstraints=CA:FALSE (`openssl req -x509` makes authorities unless told)".to_owned(),
        ),
        other => (
            format!("the certificate by `{issuer}` is refused: {other}"),
            "its owner has to exchange it".to_owned(),
        ),
    };
    Failed::new(what, advice)
}

/// The TLS settings of the upstream, and two who see what is shown and asked for in a handshake.
fn observed(settings: &Settings) -> Result<(ClientConfig, Arc<Witness>, Arc<Asked>), SetupError> {
    let mut config = tls::client_config(settings)?;
    let provider = tls::provider();
    let roots = Arc::new(tls::roots(settings.ca.as_deref())?);
    let witness = Arc::new(Witness {
        // Without any authority there is none that could verify.
        verifier: WebPkiServerVerifier::builder_with_provider(roots, provider.clone()).build().ok(),
        accepts_all: settings.insecure_skip_verify,
        any: tls::AnyCertificate(provider),
        seen: Mutex::new(None),
    });
    config.dangerous().set_certificate_verifier(witness.clone());
    let asked = Arc::new(Asked(AtomicBool::new(false), config.client_auth_cert_resolver));
    config.client_auth_cert_resolver = asked.clone();
    Ok((config, witness, asked))
}

/// Verifies certificates, and keeps what it saw.
#[derive(Debug)]
struct Witness {
    verifier: Option<Arc<WebPkiServerVerifier>>,
    accepts_all: bool,
    any: tls::AnyCertificate,
    seen: Mutex<Option<Seen>>,
}

/// The server's own certificate, and what is wrong with it.
#[derive(Debug)]
struct Seen {
    certificate: CertificateDer<'static>,
    refusal: Option<rustls::Error>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verdict = match &self.verifier {
            Some(verifier) => verifier.verify_server_cert(
                end_entity,
                intermediates,
                server_name,
                ocsp_response,
                now,
            ),
            None => Err(CertificateError::UnknownIssuer.into()),
        };
        let refusal = verdict.as_ref().err().cloned();
        *self.seen.lock() = Some(Seen { certificate: end_entity.clone().into_owned(), refusal });
        if self.accepts_all { Ok(ServerCertVerified::assertion()) } else { verdict }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.any.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.any.supported_verify_schemes()
    }
}

/// Whether the server asked for our certificate, and who has it.
#[derive(Debug)]
struct Asked(AtomicBool, Arc<dyn ResolvesClientCert>);

impl ResolvesClientCert for Asked {
    fn resolve(&self, hints: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0.store(true, Ordering::Relaxed);
        self.1.resolve(hints, schemes)
    }

    /// Only who has some is asked for them.
    fn has_certs(&self) -> bool {
        true
    }
}

/// Gives away a connection that was made already.
struct Connected(Option<Box<dyn Stream>>);

impl Service<Uri> for Connected {
    type Response = TokioIo<Box<dyn Stream>>;
    type Error = io::Error;
    type Future = Ready<io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let connection = self.0.take().map(TokioIo::new);
        ready(connection.ok_or_else(|| io::Error::other("the connection was taken already")))
    }
}
