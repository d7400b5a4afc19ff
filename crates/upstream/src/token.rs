//! Tokens, and how a token service is asked for one.
//!
//! Source: distribution, "Token Authentication Specification" and "OAuth2 Token Authentication".

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use serde::Deserialize;
use url::Url;
use url::form_urlencoded::Serializer;

use crate::credentials::{Keychain, Login};
use crate::error::{Error, Failure};
use crate::settings::without_secrets;
use crate::transport::{Answer, Request, Transport};

/// The largest answer of a token service that is read, in bytes. Tokens go into a header, which
/// servers limit to some 8 to 64 KiB.
const MAX_ANSWER: usize = 1 << 20;

/// How long a token is good that does not say it. Docker's rule.
const DEFAULT_LIFETIME: u64 = 60;

/// The longest that a token is believed to be good.
const MAX_LIFETIME: u64 = 24 * 3600;

/// How long before its end a token is given up, so that none runs out under way.
const MARGIN: u64 = 10;

/// What a token is to be good for, and who gives it. Names the token in the cache.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Wanted {
    pub(crate) realm: Url,
    pub(crate) service: Option<String>,
    pub(crate) scope: Option<String>,
}

/// A token, as the header that carries it.
#[derive(Clone, Debug)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    /// How long it may be used; zero: for one request.
    pub(crate) lifetime: Duration,
}

/// Asks the token service.
///
/// # Errors
///
/// [`Error::CredentialRefused`] if it refuses `login` as such, [`Error::Denied`] if it refuses
/// what is `wanted` (some answer 403 then, also to a good credential), and those of any request.
pub(crate) async fn fetch(
    transport: &Transport,
    keychain: &Keychain,
    wanted: &Wanted,
    login: &Login,
) -> Result<Token, Failure> {
    let answer = ask(transport, wanted, login).await?;
    let (status, who) = (answer.status.as_u16(), without_secrets(&wanted.realm));
    match (status, login) {
        (200, _) => {
            let text = answer.read(MAX_ANSWER).await?;
            Ok(parse(&text).map_err(|problem| Error::Protocol(format!("{who} {problem}")))?)
        }
        (401 | 403, Login::Anonymous) => Err(Error::Denied.into()),
        (403, Login::Password { .. } | Login::Refresh(_)) if wanted.scope.is_some() => {
            let nothing = Wanted { scope: None, ..wanted.clone() };
            let is_known = ask(transport, &nothing, login).await?.status == StatusCode::OK;
            let refused = || keychain.refused_by(&who, status);
            Err(if is_known { Error::Denied } else { refused() }.into())
        }
        // OAuth2 says 400 to a refresh token that is no longer good (RFC 6749, 5.2).
        (400, Login::Refresh(_)) | (401 | 403, _) => Err(keychain.refused_by(&who, status).into()),
        (408 | 429 | 500..=599, _) => Err(answer.into_failure()),
        _ => Err(Error::Protocol(format!("{who} answered {status} when asked for a token")).into()),
    }
}

async fn ask(transport: &Transport, wanted: &Wanted, login: &Login) -> Result<Answer, Failure> {
    let request = match login {
        Login::Refresh(token) => refresh(wanted, token.expose()),
        Login::Anonymous | Login::Password { .. } => Request::new(Method::GET, address(wanted)),
    };
    transport.send(request, login.basic_header().as_ref()).await
}

/// The realm with the service, and each scope as a parameter of its own.
fn address(wanted: &Wanted) -> Url {
    let mut url = wanted.realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = &wanted.service {
            query.append_pair("service", service);
        }
        for scope in wanted.scope.iter().flat_map(|scope| scope.split_ascii_whitespace()) {
            query.append_pair("scope", scope);
        }
    }
    if url.query() == Some("") {
        url.set_query(None);
    }
    url
}

fn refresh(wanted: &Wanted, token: &str) -> Request {
    let mut form = Serializer::new(String::new());
    form.append_pair("grant_type", "refresh_token");
    form.append_pair("client_id", "larder");
    form.append_pair("refresh_token", token);
    for (key, value) in [("service", &wanted.service), ("scope", &wanted.scope)] {
        if let Some(value) = value {
            form.append_pair(key, value);
        }
    }
    let mut request = Request::new(Method::POST, wanted.realm.clone());
    let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
    request.headers.insert(CONTENT_TYPE, form_type);
    request.body = Some(form.finish());
    request
}

#[derive(Deserialize)]
struct Fields {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

/// Reads the answer of a token service. What is wrong with it is said without quoting it.
pub(crate) fn parse(text: &[u8]) -> Result<Token, &'static str> {
    let fields: Fields =
        serde_json::from_slice(text).map_err(|_| "sent what is no token answer")?;
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    let token = given(fields.token).or(given(fields.access_token)).ok_or("sent no token")?;
    let header = HeaderValue::from_str(&format!("Bearer {token}"));
    let mut header = header.map_err(|_| "sent a token that no header can carry")?;
    header.set_sensitive(true);
    let seconds = match fields.expires_in {
        // The conversion saturates, and makes nothing of what is not a number.
        Some(seconds) if seconds >= 1.0 => (seconds as u64).min(MAX_LIFETIME),
        _ => DEFAULT_LIFETIME,
    };
    Ok(Token { header, lifetime: Duration::from_secs(seconds.saturating_sub(MARGIN)) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_token_is_given_up_before_it_ends() {
        let lifetime = |text: &str| parse(text.as_bytes()).unwrap().lifetime.as_secs();
        assert_eq!(lifetime(r#"{"token":"t","expires_in":300}"#), 290);
        assert_eq!(lifetime(r#"{"token":"t"}"#), 50);
        assert_eq!(lifetime(r#"{"token":"t","expires_in":0}"#), 50);
        assert_eq!(lifetime(r#"{"token":"t","expires_in":null,"issued_at":"x"}"#), 50);
        assert_eq!(lifetime(r#"{"token":"t","expires_in":5}"#), 0);
        assert_eq!(lifetime(r#"{"token":"t","expires_in":1e30}"#), 86_390);
    }

    #[test]
    fn both_names_of_a_token_are_known() {
        let header = |text: &str| parse(text.as_bytes()).map(|token| token.header);
        assert_eq!(header(r#"{"access_token":"a"}"#).unwrap(), "Bearer a");
        assert_eq!(header(r#"{"token":"","access_token":"a"}"#).unwrap(), "Bearer a");
        assert_eq!(header(r#"{"token":"t","access_token":"a"}"#).unwrap(), "Bearer t");
        assert!(header(r#"{"token":"a\nb"}"#).is_err());
        assert!(header("{}").is_err() && header("<html>").is_err());
    }

    #[test]
    fn a_token_is_not_shown() {
        let token = parse(br#"{"token":"hunter2"}"#).unwrap();
        assert!(!format!("{token:?}").contains("hunter2"));
    }

    #[test]
    fn a_realm_keeps_its_own_query() {
        let wanted = Wanted {
            realm: Url::parse("https://a/t?x=1").unwrap(),
            service: Some("s s".to_owned()),
            scope: Some("repository:a:pull repository:b:pull".to_owned()),
        };
        let query = "x=1&service=s+s&scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull";
        assert_eq!(address(&wanted).query(), Some(query));
        let nothing =
            Wanted { realm: Url::parse("https://a/t").unwrap(), service: None, scope: None };
        assert_eq!(address(&nothing).as_str(), "https://a/t");
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(seconds: f64, token in "\\PC{0,20}", bytes: Vec<u8>) {
            let text = serde_json::json!({"token": token, "expires_in": seconds}).to_string();
            let _ = (parse(text.as_bytes()), parse(&bytes));
        }
    }
}
