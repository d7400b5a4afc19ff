//! What the registry at one address says.

use std::sync::Arc;

use futures_util::StreamExt as _;
use http::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE, WWW_AUTHENTICATE};
use http::{HeaderName, Method, StatusCode};
use larder_core::manifest::{Descriptor, Manifest};
use larder_core::media::Accept;
use larder_core::range::parse_content_range;
use larder_core::{Digest, Reference};
use url::Url;

use super::{
    Failed, Found, Image, Nobody, Verdict, explain, is_nobody, more_rights, network, table,
    tls_cause,
};
use crate::auth::{Authenticator, Place};
use crate::challenge::{self, Challenge};
use crate::client::Client;
use crate::credentials::Keychain;
use crate::error::{Error, SetupError};
use crate::header;
use crate::settings::{Base, Settings, without_secrets};
use crate::transport::{Answer, Request, Transport, is_web_page};

/// The most that is read of the answer to `/v2/`, which is `{}` or nothing.
const MAX_GREETING: usize = 64 << 10;

/// Parts of the media types of layers that registries do not have themselves.
const FOREIGN: [&str; 2] = ["nondistributable", "foreign"];

/// One address, asked as a client would ask it.
pub(super) struct Registry {
    settings: Settings,
    base: Base,
    transport: Transport,
    auth: Authenticator,
    client: Client,
    /// Whether it wanted a certificate of ours in the handshake, and there is none.
    lacks_certificate: bool,
}

impl Registry {
    pub(super) fn new(settings: &Settings, lacks_certificate: bool) -> Result<Self, SetupError> {
        let transport = Transport::new(settings, Arc::new(Nobody))?;
        let keychain = Keychain::open(settings.credentials.clone(), settings.host.clone())?;
        let base = settings.bases()?.swap_remove(0);
        let client = Client::new(settings.clone(), Arc::new(Nobody))?;
        let (settings, auth) = (settings.clone(), Authenticator::new(keychain));
        Ok(Self { settings, base, transport, auth, client, lacks_certificate })
    }

    /// Asks `/v2/` as nobody. The answer has the headers of a 401, if that is what it is.
    pub(super) async fn greet(&self) -> Result<Verdict<Option<HeaderMap>>, Failed> {
        let answer = self.ask(Method::GET, "v2/", HeaderMap::new(), None).await;
        let answer = answer.map_err(|error| self.explain(&error))?;
        let (status, headers) = (answer.status.as_u16(), answer.headers.clone());
        let found = |authentication, realm| Found::Registry { status, authentication, realm };
        match answer.status {
            StatusCode::OK => {
                self.check_greeting(answer).await?;
                let what = "it is a registry, and asks nobody who they are";
                Ok(Verdict::passed(None, what, found("none", None)))
            }
            StatusCode::UNAUTHORIZED => {
                let (what, found) =
                    match challenge::choose(header::lines(&headers, &WWW_AUTHENTICATE)) {
                        Some(Challenge::Bearer { realm, .. }) => {
                            let realm = shown(&realm);
                            let what = format!("it is a registry; tokens are given by {realm}");
                            (what, found("bearer", Some(realm)))
                        }
                        Some(Challenge::Basic) => {
                            let what = "it is a registry, and asks for a user name and password";
                            (what.to_owned(), found("basic", None))
                        }
                        None => {
                            return Err(
                                self.no_registry("401 without a challenge that a registry has")
                            );
                        }
                    };
                Ok(Verdict::passed(Some(headers), what, found))
            }
            StatusCode::BAD_REQUEST if self.base.is_plain() => Err(Failed::new(
                format!("{} answers 400 to an unencrypted request", answer.who()),
                format!("if it wants TLS, write https:// in `urls` of {}", table(&self.settings)),
            )),
            StatusCode::FORBIDDEN => Err(Failed::new(
                format!("{} answers 403 to whoever asks from here", answer.who()),
                "it may let in only some networks: ask the registry's owner",
            )),
            StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(Failed::new(
                "the proxy asks for a user name and password",
                "set it by the environment, as in HTTP_PROXY=http://USER:PASSWORD@HOST:PORT, instead of `proxy`",
            )),
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
                Err(self.explain(&answer.into_failure().error))
            }
            status if status.is_server_error() => Err(self.explain(&answer.into_failure().error)),
            status => Err(self.no_registry(&status.as_u16().to_string())),
        }
    }

    /// Whether a 200 comes from a registry: `{}`, nothing, or whatever says that it does.
    async fn check_greeting(&self, answer: Answer) -> Result<(), Failed> {
        if is_web_page(&answer.headers) {
            return Err(self.no_registry("200 with a web page"));
        }
        let version = HeaderName::from_static("docker-distribution-api-version");
        let says_so = answer.headers.contains_key(version);
        let body = answer.read(MAX_GREETING).await.map_err(|error| self.explain(&error))?;
        let is_json = serde_json::from_slice::<serde_json::Value>(&body).is_ok();
        match says_so || is_json || body.trim_ascii().is_empty() {
            true => Ok(()),
            false => Err(self.no_registry("200 with something that no registry says")),
        }
    }

    fn no_registry(&self, answered: &str) -> Failed {
        let url = without_secrets(&self.base.at("v2/", None));
        Failed::new(
            format!("there is no registry here: {url} answers {answered}"),
            format!("write the registry's own address in `urls` of {}", table(&self.settings)),
        )
    }

    /// Answers the challenge for the image, or else the one that came with the greeting.
    pub(super) async fn log_in(
        &self,
        image: Option<&Image>,
        greeting: Option<HeaderMap>,
    ) -> Result<Verdict<()>, Failed> {
        let (method, path) = match image {
            Some(image) => (Method::HEAD, manifest_path(image)),
            None => (Method::GET, "v2/".to_owned()),
        };
        let asked = match image {
            None => greeting,
            Some(_) => {
                let answer = self.ask(method.clone(), &path, manifest_headers(), None).await;
                let answer = answer.map_err(|error| self.explain(&error))?;
                is_challenge(&answer).then(|| answer.headers.clone())
            }
        };
        let is_anonymous = self.is_anonymous();
        let Some(headers) = asked else {
            return Ok(Verdict::skipped(
                (),
                match is_anonymous {
                    true => "nobody is asked who they are",
                    false => "nobody is asked who they are: the credentials are not needed",
                },
            ));
        };
        let (what, found) = self.describe(&headers);
        let repository = image.map(|image| image.repository.clone());
        let place = Place { base: self.base.clone(), repository };
        let permit = match self.auth.answer(&self.transport, &place, &headers, None).await {
            Ok(permit) => permit,
            // Some token services give nothing for nothing.
            Err(failure)
                if image.is_none()
                    && matches!(failure.error, Error::Denied)
                    && matches!(found, Found::Token { realm: Some(_), .. }) =>
            {
                return Ok(Verdict::skipped(
                    (),
                    "the token service wants to know for which image: name one",
                ));
            }
            Err(failure) => return Err(self.explain_login(&failure.error, &found)),
        };
        let answer = self.ask(method, &path, manifest_headers(), Some(&permit.header)).await;
        let answer = answer.map_err(|error| self.explain(&error))?;
        if is_challenge(&answer) {
            let error = self.auth.refused(&place, &permit).await;
            return Err(self.explain_login(&error, &found));
        }
        Ok(Verdict::passed((), what, found))
    }

    /// What is asked for by `headers`, and by whom it is answered.
    fn describe(&self, headers: &HeaderMap) -> (String, Found) {
        let is_anonymous = self.is_anonymous();
        let who = if is_anonymous { "nobody in particular" } else { "our credential" };
        match challenge::choose(header::lines(headers, &WWW_AUTHENTICATE)) {
            Some(Challenge::Bearer { realm, service, .. }) => {
                let realm = shown(&realm);
                let what = format!("{realm} gives a token to {who}");
                (what, Found::Token { realm: Some(realm), service, is_anonymous })
            }
            _ => {
                let what = format!("the registry lets in {who}");
                (what, Found::Token { realm: None, service: None, is_anonymous })
            }
        }
    }

    fn explain_login(&self, error: &Error, found: &Found) -> Failed {
        let failed = match error {
            Error::Denied if self.is_anonymous() => Failed::new(
                "nobody gets in here without a user name and password, or the image does not exist",
                format!(
                    "look at the image's name; if it is right, {}",
                    more_rights(&self.settings)
                ),
            ),
            Error::Unavailable { status: None, .. } => Failed::new(
                super::with_causes(error),
                "the token service must be reached from here as well: allow the way there",
            ),
            error => self.explain(error),
        };
        Failed { found: Some(Box::new(found.clone())), ..failed }
    }

    /// Fetches the manifest, and of an index one of its images.
    pub(super) async fn fetch(&self, image: &Image) -> Result<Verdict<Manifest>, Failed> {
        let (digest, media_type, manifest) = self.manifest(image).await?;
        let platforms: Vec<String> = manifest.manifests.iter().filter_map(platform).collect();
        let bytes = manifest
            .manifests
            .is_empty()
            .then(|| manifest.blobs.iter().fold(0, |sum: u64, blob| sum.saturating_add(blob.size)));
        let what = match bytes {
            Some(bytes) => {
                let size = larder_core::size::human_size(bytes);
                format!("{digest}, {media_type}, {size} in {} blobs", manifest.blobs.len())
            }
            None => format!("{digest}, {media_type} for {}", platforms.join(", ")),
        };
        let found = Found::Image { digest, media_type, platforms, bytes };
        let manifest = match preferred(&manifest.manifests) {
            None => manifest,
            Some(child) => {
                let reference = Reference::Digest(child.digest.clone());
                let repository = image.repository.clone();
                self.manifest(&Image { repository, reference }).await?.2
            }
        };
        Ok(Verdict::passed(manifest, what, found))
    }

    async fn manifest(&self, image: &Image) -> Result<(Digest, String, Manifest), Failed> {
        let Image { repository, reference } = image;
        let raw = self.client.manifest(repository, reference, &Accept::all_manifests()).await;
        let raw = raw.map_err(|error| self.explain(&error))?;
        let manifest = Manifest::parse(&raw.bytes).map_err(|error| {
            Failed::new(
                format!("what is sent is {}", super::with_causes(&error)),
                "an image of this kind can be passed on, but not stored; push it again with a newer tool",
            )
        })?;
        let digest = match reference {
            Reference::Digest(digest) => digest.clone(),
            Reference::Tag(_) => raw.digest.unwrap_or_else(|| Digest::sha256_of(&raw.bytes)),
        };
        let media_type =
            raw.media_type.unwrap_or_else(|| manifest.media_type_or_guess().to_owned());
        Ok((digest, media_type, manifest))
    }

    /// Fetches one byte of a layer, from where the registry keeps it.
    pub(super) async fn first_byte(
        &self,
        image: &Image,
        manifest: Manifest,
    ) -> Result<Verdict<()>, Failed> {
        let Some(blob) = largest_own(&manifest.blobs) else {
            return Ok(Verdict::skipped((), "the image has no blob of its own"));
        };
        let digest = blob.digest.clone();
        let repository = Some(image.repository.clone());
        let place = Place { base: self.base.clone(), repository };
        let permit = self.auth.remembered(&self.transport, &place).await;
        let permit = permit.map_err(|failure| self.explain(&failure.error))?;
        let path = format!("v2/{}/blobs/{digest}", image.repository.as_str());
        let range = HeaderMap::from_iter([(RANGE, HeaderValue::from_static("bytes=0-0"))]);
        let header = permit.as_ref().map(|permit| &permit.header);
        let answer = self.ask(Method::GET, &path, range, header).await;
        let answer = answer.map_err(|error| self.explain_storage(&error))?;
        let has_ranges = match answer.status {
            StatusCode::OK => false,
            StatusCode::PARTIAL_CONTENT => true,
            _ => return Err(self.explain_storage(&answer.into_failure().error)),
        };
        let range = header::text(&answer.headers, &CONTENT_RANGE).and_then(parse_content_range);
        if has_ranges && range.is_none_or(|(range, _)| range.start != 0) {
            let text = format!("{} sends another part than was asked for", answer.who());
            return Err(self.explain(&Error::Protocol(text)));
        }
        let (origin, is_redirected) = (origin(&answer.url), answer.is_elsewhere);
        match answer.into_body(None).next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(self.explain_storage(&error)),
            None => {
                let text = format!("{origin} sends an empty body");
                return Err(self.explain(&Error::Protocol(text)));
            }
        }
        let mut what = match is_redirected {
            true => format!("the registry sends us to {origin} for blobs, and they come"),
            false => format!("blobs come from {origin}"),
        };
        if !has_ranges {
            what.push_str("; only whole, so that a download that broke off begins anew");
        }
        let found = Found::Blob { digest, origin, is_redirected, has_ranges };
        Ok(Verdict::passed((), what, found))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        headers: HeaderMap,
        permit: Option<&HeaderValue>,
    ) -> Result<Answer, Error> {
        let mut request = Request::new(method, self.base.at(path, None));
        request.headers = headers;
        self.transport.send(request, permit).await.map_err(|failure| failure.error)
    }

    fn is_anonymous(&self) -> bool {
        is_nobody(&self.settings)
    }

    fn explain(&self, error: &Error) -> Failed {
        let failed = explain(error, &self.settings);
        let broke_off = matches!(error, Error::Unavailable { status: None, .. });
        match self.lacks_certificate && broke_off && tls_cause(error).is_none() {
            // With TLS 1.3 a server may refuse us only after the handshake, also by just hanging up.
            true => Failed { advice: network::ADVICE_CLIENT_CERTIFICATE.to_owned(), ..failed },
            false => failed,
        }
    }

    fn explain_storage(&self, error: &Error) -> Failed {
        match error {
            Error::Unavailable { status: None, .. } => Failed::new(
                super::with_causes(error),
                "blobs come from there: it must be reached from here as well, so allow the way there",
            ),
            error => self.explain(error),
        }
    }
}

fn is_challenge(answer: &Answer) -> bool {
    answer.status == StatusCode::UNAUTHORIZED && !answer.is_elsewhere
}

fn manifest_path(image: &Image) -> String {
    format!("v2/{}/manifests/{}", image.repository.as_str(), image.reference)
}

fn manifest_headers() -> HeaderMap {
    let accept = HeaderValue::from_str(&Accept::all_manifests().to_string());
    accept.into_iter().map(|value| (http::header::ACCEPT, value)).collect()
}

/// A token service's address without what may be secret in it.
fn shown(realm: &str) -> String {
    match Url::parse(realm) {
        Ok(url) => without_secrets(&url),
        Err(_) => "an address that is none".to_owned(),
    }
}

fn origin(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// `linux/arm64/v8`
fn platform(descriptor: &Descriptor) -> Option<String> {
    let platform = descriptor.platform.as_ref()?;
    let mut text = format!("{}/{}", platform.os, platform.architecture);
    if let Some(variant) = &platform.variant {
        text.push_str(&format!("/{variant}"));
    }
    Some(text)
}

/// The image of an index to go on with: Linux on amd64, else the first.
fn preferred(images: &[Descriptor]) -> Option<&Descriptor> {
    let is_usual = |it: &&Descriptor| platform(it).as_deref() == Some("linux/amd64");
    images.iter().find(is_usual).or(images.first())
}

/// The largest blob that the registry has itself: some keep small ones at hand and large ones
/// elsewhere.
fn largest_own(blobs: &[Descriptor]) -> Option<&Descriptor> {
    let is_own =
        |it: &&Descriptor| it.size > 0 && !FOREIGN.iter().any(|part| it.media_type.contains(part));
    blobs.iter().filter(is_own).max_by_key(|it| it.size)
}
