//! What has to be known of an upstream.

use std::fmt;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use larder_core::Host;
use url::Url;

use crate::client_certificate::ClientCertificate;
use crate::credentials::Credentials;
use crate::error::SetupError;
use crate::reach::Reach;

/// The most addresses of one upstream: each is tried before an image is given up, and a client
/// waits meanwhile.
pub const MAX_URLS: usize = 8;

/// How to reach one upstream.
#[derive(Clone)]
pub struct Settings {
    /// The registry as image references name it. Finds the credential in Docker's configuration.
    pub host: Host,
    /// Where it is: 1 to [`MAX_URLS`] addresses, `http` or `https`, before `/v2/`; a path is kept
    /// as a prefix. They are tried in this order when one cannot be reached or is broken.
    pub urls: Vec<Url>,
    /// Who we are to it.
    pub credentials: Credentials,
    /// The proxy for everything that is asked of it: `http`, `https`, `socks5` or `socks5h` (names
    /// are resolved by the proxy). `None`: as the environment says (`HTTPS_PROXY`, `HTTP_PROXY`,
    /// `ALL_PROXY`, `NO_PROXY`).
    pub proxy: Option<Url>,
    /// A file of PEM certificates that are trusted beside the system's.
    pub ca: Option<PathBuf>,
    /// What is shown to a server that asks for our certificate in the TLS handshake.
    pub client_certificate: Option<ClientCertificate>,
    /// Whether any certificate will do. Anybody on the way can then read the credentials.
    pub insecure_skip_verify: bool,
    /// Which addresses may be connected to. With a proxy it is the proxy that connects: only hosts
    /// that are written as addresses are looked at then, and the environment's proxies are not used.
    pub reach: Reach,
    /// How many requests may be under way at a time; at least 1. A body counts until it has ended.
    pub max_requests: usize,
    /// How many requests may be sent in a second, retries included. `None`: as many as there are.
    pub max_rate: Option<NonZeroU32>,
    /// The longest that a connection may take, TLS included.
    pub connect_timeout: Duration,
    /// The longest from a request to the head of its answer (a connection included), and between
    /// two pieces of a body.
    pub read_timeout: Duration,
}

/// Without the password that a proxy's address may hold.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("host", &self.host)
            .field("urls", &self.urls.iter().map(without_secrets).collect::<Vec<_>>())
            .field("credentials", &self.credentials)
            .field("proxy", &self.proxy.as_ref().map(without_secrets))
            .field("ca", &self.ca)
            .field("client_certificate", &self.client_certificate)
            .field("insecure_skip_verify", &self.insecure_skip_verify)
            .field("reach", &self.reach)
            .field("max_requests", &self.max_requests)
            .field("max_rate", &self.max_rate)
            .field("connect_timeout", &self.connect_timeout)
            .field("read_timeout", &self.read_timeout)
            .finish()
    }
}

/// `url` as it may be shown: scheme, host, port and path.
pub(crate) fn without_secrets(url: &Url) -> String {
    let mut url = url.clone();
    // Both fail only on addresses that cannot have a user.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.set_query(None);
    url.set_fragment(None);
    url.into()
}

impl Settings {
    /// The addresses, each fit to have `/v2/…` put behind it.
    pub(crate) fn bases(&self) -> Result<Vec<Base>, SetupError> {
        if self.urls.is_empty() || self.urls.len() > MAX_URLS {
            return Err(SetupError::UrlCount(self.urls.len()));
        }
        self.urls.iter().map(Base::new).collect()
    }
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Base(Url);

impl Base {
    pub(crate) fn new(url: &Url) -> Result<Self, SetupError> {
        let problem = if !matches!(url.scheme(), "http" | "https") {
            "the scheme is neither http nor https"
        } else if !url.username().is_empty() || url.password().is_some() {
            "credentials are set apart from the url"
        } else if url.query().is_some() || url.fragment().is_some() {
            "a query or fragment cannot be kept"
        } else {
            return Ok(Self(url.clone()));
        };
        Err(SetupError::Url { url: without_secrets(url), problem })
    }

    /// The address of `path`, which begins with `v2/`.
    pub(crate) fn at(&self, path: &str, query: Option<&str>) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}/{path}", self.0.path().trim_end_matches('/')));
        url.set_query(query);
        url
    }

    /// Whether the operator chose to speak to this address without encryption.
    pub(crate) fn is_plain(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// Scheme, host and port.
    pub(crate) fn origin(&self) -> url::Origin {
        self.0.origin()
    }
}

/// For tests: the address `url`.
#[cfg(test)]
pub(crate) fn base_of(url: &str) -> Base {
    Base(Url::parse(url).unwrap())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_an_address_is_kept() {
        let at = |url: &str| {
            let base = Base::new(&Url::parse(url).unwrap()).unwrap();
            base.at("v2/a/manifests/sha256:00", Some("n=1")).to_string()
        };
        assert_eq!(at("https://r.io"), "https://r.io/v2/a/manifests/sha256:00?n=1");
        assert_eq!(at("http://r.io:80/x/y/"), "http://r.io/x/y/v2/a/manifests/sha256:00?n=1");
    }

    #[test]
    fn an_address_that_no_registry_has_is_refused_without_showing_its_password() {
        for url in ["ftp://r.io", "https://u:hunter2@r.io", "https://r.io?a=hunter2", "data:x"] {
            let error = Base::new(&Url::parse(url).unwrap()).unwrap_err();
            assert!(matches!(error, SetupError::Url { .. }), "{url}");
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn settings_are_shown_without_passwords() {
        let settings = Settings {
            host: "r.io".parse().unwrap(),
            urls: vec![Url::parse("https://r.io").unwrap()],
            credentials: Credentials::Basic { username: "u".into(), password: "hunter2".into() },
            proxy: Some(Url::parse("http://p:hunter2@proxy:3128").unwrap()),
            ca: None,
            client_certificate: None,
            insecure_skip_verify: false,
            reach: Reach::Anywhere,
            max_requests: 1,
            max_rate: None,
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
        };
        let text = format!("{settings:?}");
        assert!(text.contains("proxy:3128") && !text.contains("hunter2"), "{text}");
    }
}
