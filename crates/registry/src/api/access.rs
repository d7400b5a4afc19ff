//! Who may change something.
//!
//! Whoever is on this machine may, as they may stop the process; others with the token of
//! `admin_token_file`. A browser on this machine speaks for whatever page it shows, so it may only
//! where the page is ours.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::{AUTHORIZATION, HOST, HeaderMap, ORIGIN};
use http::{Method, StatusCode};
use larder_api_types::PREFIX;
use larder_core::Digest;
use larder_process::admin::Peer;
use subtle::ConstantTimeEq as _;
use tracing::{info, warn};

use super::answer::Refused;
use crate::config::{Disk, Files as _, token_in};

/// How a caller may prove that it may change something.
#[derive(Debug)]
pub(crate) struct Access {
    token_file: Option<PathBuf>,
}

/// Why a caller may not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
enum Denied {
    #[error(
        "changes from another machine need a token: set `admin_token_file` in larder's configuration, and send the token as `Authorization: Bearer TOKEN`"
    )]
    NoToken,
    #[error(
        "no token is accepted: set `admin_token_file` in larder's configuration, or ask from the machine that larder runs on, without a token"
    )]
    NoFile,
    #[error("the token is not the one in the file that `admin_token_file` names")]
    WrongToken,
    #[error("the file that `admin_token_file` names cannot be used; larder's log says why")]
    BadFile,
    #[error("pages of another origin may change nothing here")]
    OtherOrigin,
}

impl Access {
    /// `token_file` is read again for each request that shows a token, so that it can be exchanged.
    pub(crate) fn new(token_file: Option<PathBuf>) -> Self {
        Self { token_file }
    }

    /// The token that a caller has to show. Blocks.
    fn token(&self) -> Result<Vec<u8>, Denied> {
        let path = self.token_file.as_ref().ok_or(Denied::NoFile)?;
        let bytes = Disk.read(path).map_err(|error| {
            warn!(%error, "reading `admin_token_file`, {}", path.display());
            Denied::BadFile
        })?;
        let token = token_in(&bytes).map_err(|error| {
            warn!(%error, "reading `admin_token_file`, {}", path.display());
            Denied::BadFile
        })?;
        Ok(token.to_owned())
    }
}

/// Answers whoever may not change something with 403, and lets everything else pass.
pub(super) async fn guard(
    State(access): State<Arc<Access>>,
    Extension(Peer(peer)): Extension<Peer>,
    request: Request,
    next: Next,
) -> Response {
    if matches!(*request.method(), Method::GET | Method::HEAD) {
        return next.run(request).await;
    }
    let headers = request.headers().clone();
    let decide = move || may_change(peer.ip(), &headers, || access.token());
    let decided = tokio::task::spawn_blocking(decide).await;
    match decided {
        Ok(Ok(())) => {
            info!(client.address = %peer, "{} {PREFIX}{}", request.method(), request.uri());
            next.run(request).await
        }
        Ok(Err(denied)) => refuse(&request, peer, denied),
        // Only the end of the runtime, or a panic.
        Err(_) => refuse(&request, peer, Denied::BadFile),
    }
}

fn refuse(request: &Request, peer: SocketAddr, denied: Denied) -> Response {
    warn!(client.address = %peer, "refused {} {PREFIX}{}: {denied}", request.method(), request.uri());
    Refused::new(StatusCode::FORBIDDEN, denied.to_string()).into_response()
}

/// Whether a caller at `peer` that sent `headers` may change something.
fn may_change(
    peer: IpAddr,
    headers: &HeaderMap,
    token: impl FnOnce() -> Result<Vec<u8>, Denied>,
) -> Result<(), Denied> {
    if let Some(shown) = headers.get(AUTHORIZATION) {
        return match is_token(shown.as_bytes(), &token()?) {
            true => Ok(()),
            false => Err(Denied::WrongToken),
        };
    }
    if !peer.to_canonical().is_loopback() {
        return Err(Denied::NoToken);
    }
    match is_of_other_origin(headers) {
        true => Err(Denied::OtherOrigin),
        false => Ok(()),
    }
}

/// Whether a header is `Bearer TOKEN`. How long this takes tells nothing about the token: it is
/// hashes of equal length that are compared.
fn is_token(header: &[u8], token: &[u8]) -> bool {
    let is_bearer = header.get(..7).is_some_and(|it| it.eq_ignore_ascii_case(b"bearer "));
    let shown = header.get(7..).unwrap_or_default().trim_ascii();
    let hash = |bytes: &[u8]| Digest::sha256_of(bytes).hex();
    is_bearer & bool::from(hash(shown).as_bytes().ct_eq(hash(token).as_bytes()))
}

/// Whether a browser says that the request comes from a page that is not ours: from another origin,
/// or from a name that somebody else has made mean this machine.
fn is_of_other_origin(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return false };
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = match host.parse::<SocketAddr>() {
        Ok(address) => return origin != &format!("http://{host}") || !address.ip().is_loopback(),
        Err(_) => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    origin != &format!("http://{host}") || name != "localhost"
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKEN: &str = "0123456789abcdef";

    #[test]
    fn this_machine_may_and_others_need_the_token() {
        let with_token = [("authorization", "Bearer 0123456789abcdef")];
        for here in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"] {
            assert_eq!(asked(here, &[]), Ok(()), "{here}");
            assert_eq!(asked(here, &with_token), Ok(()), "{here}");
        }
        for elsewhere in ["10.0.0.1", "::2", "::ffff:10.0.0.1"] {
            assert_eq!(asked(elsewhere, &[]), Err(Denied::NoToken), "{elsewhere}");
            assert_eq!(asked(elsewhere, &with_token), Ok(()), "{elsewhere}");
        }
    }

    #[test]
    fn only_the_token_itself_is_the_token() {
        for shown in ["Bearer 0123456789abcdef", "bearer  0123456789abcdef "] {
            assert_eq!(asked("10.0.0.1", &[("authorization", shown)]), Ok(()), "{shown}");
        }
        let wrong = [
            "Bearer 0123456789abcdeg",
            "Bearer 0123456789abcde",
            "Bearer ",
            "Bearer",
            "",
            "Basic 0123456789abcdef",
            "0123456789abcdef",
        ];
        for shown in wrong {
            // A wrong token is wrong from here, too.
            for peer in ["10.0.0.1", "127.0.0.1"] {
                let denied = asked(peer, &[("authorization", shown)]);
                assert_eq!(denied, Err(Denied::WrongToken), "{shown}");
            }
        }
    }

    #[test]
    fn without_a_file_no_token_is_right_and_the_text_says_which_key_to_set() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, "Bearer 0123456789abcdef".parse().unwrap());
        let token = || Access::new(None).token();
        let denied = may_change("10.0.0.1".parse().unwrap(), &headers, token).unwrap_err();
        assert_eq!(denied, Denied::NoFile);
        for denied in [Denied::NoFile, Denied::NoToken] {
            assert!(denied.to_string().contains("set `admin_token_file`"), "{denied}");
        }
    }

    #[test]
    fn a_page_of_somebody_else_may_change_nothing() {
        let page = |origin, host| asked("127.0.0.1", &[("origin", origin), ("host", host)]);
        assert_eq!(page("http://127.0.0.1:5001", "127.0.0.1:5001"), Ok(()));
        assert_eq!(page("http://[::1]:5001", "[::1]:5001"), Ok(()));
        assert_eq!(page("http://localhost:5001", "localhost:5001"), Ok(()));
        for (origin, host) in [
            ("http://evil.example", "127.0.0.1:5001"),
            ("http://evil.example:5001", "evil.example:5001"),
            ("http://127.0.0.1:8080", "127.0.0.1:5001"),
            ("null", "127.0.0.1:5001"),
            ("http://10.0.0.1:5001", "10.0.0.1:5001"),
        ] {
            assert_eq!(page(origin, host), Err(Denied::OtherOrigin), "{origin} {host}");
        }
    }

    fn asked(peer: &str, lines: &[(&'static str, &str)]) -> Result<(), Denied> {
        let headers = lines
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()));
        may_change(peer.parse().unwrap(), &headers.collect(), || Ok(TOKEN.into()))
    }
}
