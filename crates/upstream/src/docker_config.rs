//! Docker's `config.json`: which credential is for which registry.
//!
//! Credential helpers (`credsStore`, `credHelpers`) are programs of a person's machine and are not
//! run.
//!
//! Source: docker/cli, `cli/config/configfile`; containers/image, `containers-auth.json(5)`.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use larder_core::Host;
use serde::Deserialize;

use crate::credentials::Login;
use crate::secret::Secret;

/// Why a text is not Docker's configuration. It never quotes the text, which is made of secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDockerConfigError {
    /// Not JSON, or a field of another type.
    #[error("not docker's config.json: wrong at line {line}, column {column}")]
    Json {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// The entry's `auth` is not the Base64 of `USER:PASSWORD`.
    #[error("the `auth` of {0} is not the Base64 of USER:PASSWORD")]
    Auth(Host),
}

#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// What the configuration `text` says to use for `host`; anonymous if it says nothing.
///
/// # Errors
///
/// [`ParseDockerConfigError`]; entries of other hosts may hold anything.
pub(crate) fn login_for(host: &Host, text: &[u8]) -> Result<Login, ParseDockerConfigError> {
    let config: Config = serde_json::from_slice(text).map_err(|error| {
        ParseDockerConfigError::Json { line: error.line(), column: error.column() }
    })?;
    let mut entries =
        config.auths.into_iter().filter(|(key, _)| host_of(key).as_ref() == Some(host));
    match entries.next() {
        Some((_, entry)) => login_of(entry, host),
        None => Ok(Login::Anonymous),
    }
}

/// The registry that a key names: `ghcr.io`, `https://ghcr.io/v2/`. `None` for one that is about a
/// part of a registry (`quay.io/team`): used for all of it, its credential would go too far.
fn host_of(key: &str) -> Option<Host> {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let is_whole = matches!(path.trim_end_matches('/'), "" | "v1" | "v2");
    is_whole.then(|| host.parse().ok()).flatten()
}

fn login_of(entry: Entry, host: &Host) -> Result<Login, ParseDockerConfigError> {
    let given = |text: Option<String>| text.filter(|text| !text.is_empty());
    if let Some(token) = given(entry.identitytoken) {
        return Ok(Login::Refresh(Secret::from(token)));
    }
    if let Some(auth) = given(entry.auth) {
        return decode(&auth).ok_or_else(|| ParseDockerConfigError::Auth(host.clone()));
    }
    match given(entry.username) {
        Some(username) => {
            let password = Secret::from(entry.password.unwrap_or_default());
            Ok(Login::Password { username, password })
        }
        None => Ok(Login::Anonymous),
    }
}

/// Base64 with or without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn decode(auth: &str) -> Option<Login> {
    let text = String::from_utf8(BASE64.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    if username.is_empty() {
        return None;
    }
    // Old versions of Docker wrote NULs behind the password.
    let password = Secret::from(password.trim_end_matches('\0'));
    Some(Login::Password { username: username.to_owned(), password })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_registry_is_found_under_every_name_it_is_written_by() {
        for key in ["ghcr.io", "https://ghcr.io", "https://ghcr.io/v2/", "GHCR.io/"] {
            assert_eq!(
                find("ghcr.io", &entry(key, r#""auth":"dTpwOnE=""#)),
                Ok(password("u", "p:q"))
            );
        }
        let hub = entry("https://index.docker.io/v1/", r#""auth":"dTpwOnE""#);
        assert_eq!(find("docker.io", &hub), Ok(password("u", "p:q")));
    }

    #[test]
    fn the_credential_of_a_part_or_of_another_registry_is_not_used() {
        for key in ["ghcr.io/team", "ghcr.io:443", "xghcr.io", "https://example.org/ghcr.io"] {
            assert_eq!(find("ghcr.io", &entry(key, r#""auth":"dTpwOnE=""#)), Ok(Login::Anonymous));
        }
        assert_eq!(find("ghcr.io", r#"{"credsStore":"desktop"}"#), Ok(Login::Anonymous));
        assert_eq!(find("ghcr.io", &entry("ghcr.io", "")), Ok(Login::Anonymous));
    }

    #[test]
    fn an_entry_may_have_a_password_or_an_identity_token() {
        let text = entry("a.io", r#""username":"u","password":"p""#);
        assert_eq!(find("a.io", &text), Ok(password("u", "p")));
        let text = entry("a.io", r#""auth":"dTpwOnE=","identitytoken":"t""#);
        assert_eq!(find("a.io", &text), Ok(Login::Refresh(Secret::from("t"))));
    }

    #[test]
    fn what_is_wrong_is_said_without_quoting_it() {
        let wrong = find("a.io", r#"{"auths":"c2VjcmV0"}"#).unwrap_err();
        assert!(matches!(wrong, ParseDockerConfigError::Json { line: 1, .. }), "{wrong}");
        assert!(!wrong.to_string().contains("c2VjcmV0"));
        for auth in ["%%", "dXNlcg==", "OnA="] {
            let text = entry("a.io", &format!(r#""auth":"{auth}""#));
            assert!(matches!(find("a.io", &text), Err(ParseDockerConfigError::Auth(_))), "{auth}");
        }
    }

    fn find(host: &str, text: &str) -> Result<Login, ParseDockerConfigError> {
        login_for(&host.parse().unwrap(), text.as_bytes())
    }

    fn entry(key: &str, fields: &str) -> String {
        format!(r#"{{"auths":{{"other.io":{{}},"{key}":{{{fields}}}}}}}"#)
    }

    fn password(username: &str, password: &str) -> Login {
        Login::Password { username: username.to_owned(), password: Secret::from(password) }
    }

    proptest! {
        #[test]
        fn no_file_makes_the_reader_panic(key in "\\PC{0,20}", auth in "\\PC{0,20}", bytes: Vec<u8>) {
            let host = "docker.io".parse().unwrap();
            let text = serde_json::json!({"auths": {key: {"auth": auth.clone()}, "docker.io": {"auth": auth}}});
            let _ = login_for(&host, text.to_string().as_bytes());
            let _ = login_for(&host, &bytes);
        }

        #[test]
        fn every_password_is_read_back(user in "[a-z]{1,9}", pass in "[ -~]{0,40}") {
            let auth = BASE64.encode(format!("{user}:{pass}"));
            let text = serde_json::json!({"auths": {"a.io": {"auth": auth}}}).to_string();
            prop_assert_eq!(find("a.io", &text), Ok(password(&user, &pass)));
        }
    }
}
