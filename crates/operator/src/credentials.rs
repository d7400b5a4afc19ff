//! Who a cache is to its upstreams: what a person's secret says, as `larder serve` reads it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use larder_k8s::cache::Upstream;
use serde_json::{Value, json};

use crate::render::Problem;

/// The user of Google's registries whose password is the key of a service account.
const JSON_KEY: &str = "_json_key";

/// What such a key consists of. Anything else in it is a key of another kind, which those registries
/// refuse, or none.
///
/// Source: Google's IAM, `keys.create`; Gardener's registry-cache allows the same.
const SERVICE_ACCOUNT: [&str; 11] = [
    "type",
    "project_id",
    "private_key_id",
    "private_key",
    "client_email",
    "client_id",
    "auth_uri",
    "token_uri",
    "auth_provider_x509_cert_url",
    "client_x509_cert_url",
    "universe_domain",
];

/// What Docker calls its Hub in its own files.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// A login for one upstream.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Login {
    /// Docker's `config.json`. User and password change together, since they are one file.
    DockerConfig(String),
    /// For wildcards, of whose hosts Docker's file would have to name each.
    Password {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
}

/// Shows no secret.
impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DockerConfig(_) => "DockerConfig(…)",
            Self::Password { .. } => "Password(…)",
        })
    }
}

/// The login for `upstream` that is in `secret`; `None` if the secret does not exist.
///
/// # Errors
///
/// What is wrong with the secret, and what to do.
pub(crate) fn login(upstream: &Upstream, secret: Option<&Secret>) -> Result<Login, Problem> {
    let host = upstream.upstream.as_str();
    let name = upstream.secret_ref.as_ref().map(|it| it.name.as_str()).unwrap_or_default();
    let Some(secret) = secret else {
        let what = format!(
            "{host}: there is no secret `{name}`; until there is, it is asked without credentials"
        );
        return Err(Problem::new("SecretMissing", what));
    };
    let incomplete =
        |what: String| Problem::new("SecretIncomplete", format!("{host}: secret `{name}`: {what}"));
    let data = secret.data.clone().unwrap_or_default();
    if let Some(config) = data.get(".dockerconfigjson") {
        return of_docker(host, &config.0).map_err(incomplete);
    }
    let text = |key: &str| text(&data, key).map_err(incomplete);
    let (username, password) = (text("username")?, text("password")?);
    if username.contains(char::is_whitespace) {
        return Err(incomplete("`username` has white space in it; remove it".to_owned()));
    }
    match host {
        "*" => Err(incomplete(
            "a password cannot be shown to just any registry; write `.dockerconfigjson`, with one for each".to_owned(),
        )),
        host if host.contains('*') => Ok(Login::Password { username, password }),
        host => {
            let entry = json!({"username": username, "password": password});
            Ok(Login::DockerConfig(docker_config(&docker_name(host), entry)))
        }
    }
}

/// What is wrong with a password that is the key of a Google service account, if it is to be one. It
/// is shown to the upstream all the same: whether it will do is for the upstream to say.
pub(crate) fn doubt(upstream: &Upstream, secret: &Secret) -> Option<Problem> {
    let data = secret.data.as_ref().filter(|it| !it.contains_key(".dockerconfigjson"))?;
    (text(data, "username").ok()? == JSON_KEY).then_some(())?;
    let what = not_a_service_account(&text(data, "password").ok()?)?;
    let (host, name) = (&upstream.upstream, &upstream.secret_ref.as_ref()?.name);
    let advice = "write the JSON file of a service account's key";
    let what = format!(
        "{host}: secret `{name}`: `username` is {JSON_KEY}, but `password` {what}; {advice}"
    );
    Some(Problem::new("SecretIncomplete", what))
}

/// Why `key` is not that of a service account. Shows nothing of it.
fn not_a_service_account(key: &str) -> Option<String> {
    let Ok(Value::Object(fields)) = serde_json::from_str(key) else {
        return Some("is not JSON".to_owned());
    };
    if fields.get("type").and_then(Value::as_str) != Some("service_account") {
        return Some("has another `type` than service_account".to_owned());
    }
    let is_there =
        |name: &&&str| fields.get(**name).and_then(Value::as_str).is_some_and(|it| !it.is_empty());
    if let Some(missing) = ["client_email", "private_key"].iter().find(|it| !is_there(it)) {
        return Some(format!("has no `{missing}`"));
    }
    // How many, not which: it may be anything.
    match fields.keys().filter(|it| !SERVICE_ACCOUNT.contains(&it.as_str())).count() {
        0 => None,
        n => Some(format!("has {n} fields that no such key has")),
    }
}

/// The text under `key`, not empty.
fn text(data: &BTreeMap<String, ByteString>, key: &str) -> Result<String, String> {
    let Some(bytes) = data.get(key) else {
        let instead = if data.contains_key(".dockerconfigjson") {
            ""
        } else {
            ", or all of it under `.dockerconfigjson`"
        };
        return Err(format!("the key `{key}` is missing; write it{instead}"));
    };
    let text =
        String::from_utf8(bytes.0.clone()).map_err(|_| format!("`{key}` is not UTF-8 text"))?;
    // What `echo` and editors append is not part of it.
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("`{key}` is empty")),
        text => Ok(text.to_owned()),
    }
}

/// The part of Docker's configuration that is for `host`.
fn of_docker(host: &str, config: &[u8]) -> Result<Login, String> {
    let config: Value = serde_json::from_slice(config).map_err(|_| {
        "`.dockerconfigjson` is not JSON; make it by `kubectl create secret docker-registry`"
            .to_owned()
    })?;
    if host.contains('*') {
        return Ok(Login::DockerConfig(config.to_string()));
    }
    let auths = config.get("auths").and_then(Value::as_object);
    let entry = auths.into_iter().flatten().find(|(key, _)| registry(key) == registry(host));
    match entry {
        Some((_, entry)) if is_login(entry) => {
            Ok(Login::DockerConfig(docker_config(&docker_name(host), entry.clone())))
        }
        Some((key, _)) => {
            Err(format!("`{key}` in it has neither `auth` nor `username` and `password`"))
        }
        None => Err(format!("it has no login for {host}; add one to `auths`")),
    }
}

fn is_login(entry: &Value) -> bool {
    let text = |key| entry.get(key).and_then(Value::as_str).unwrap_or_default();
    let decoded = BASE64_STANDARD.decode(text("auth").trim()).unwrap_or_default();
    decoded.iter().position(|&byte| byte == b':').is_some_and(|at| at > 0 && at + 1 < decoded.len())
        || !text("username").is_empty() && !text("password").is_empty()
        || !text("identitytoken").is_empty()
}

fn docker_config(name: &str, entry: Value) -> String {
    json!({"auths": {name: entry}}).to_string()
}

fn docker_name(host: &str) -> String {
    if registry(host) == "docker.io" { DOCKER_HUB.to_owned() } else { host.to_owned() }
}

/// The registry that a key of `auths` means: Docker has written them in several ways.
fn registry(key: &str) -> String {
    let rest = key.strip_prefix("https://").or(key.strip_prefix("http://")).unwrap_or(key);
    match rest.split('/').next().unwrap_or_default() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => {
            "docker.io".to_owned()
        }
        host => host.to_ascii_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use larder_k8s::cache::SecretRef;

    use super::*;

    #[test]
    fn a_user_and_a_password_are_one_file_for_the_host() {
        let login = read("ghcr.io", &[("username", "robot"), ("password", "word\n")]).unwrap();
        let auths = r#"{"auths":{"ghcr.io":{"password":"word","username":"robot"}}}"#;
        assert_eq!(login, Login::DockerConfig(auths.to_owned()));
        let Login::DockerConfig(hub) =
            read("docker.io", &[("username", "u"), ("password", "p")]).unwrap()
        else {
            panic!("a file");
        };
        assert!(hub.contains(DOCKER_HUB), "{hub}");
    }

    #[test]
    fn a_wildcard_has_a_password_for_all_its_hosts_but_not_for_any_host() {
        let given = [("username", "AWS"), ("password", "p")];
        let login = read("*.dkr.ecr.eu-west-1.amazonaws.com", &given).unwrap();
        assert!(matches!(login, Login::Password { .. }));
        assert!(read("*", &given).unwrap_err().message.contains("any registry"));
    }

    #[test]
    fn only_the_login_for_the_upstream_is_taken_of_dockers_file() {
        let auths = r#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "ghcr.io": {"auth": "dTo="}
        }, "credsStore": "desktop"}"#;
        let login = read("docker.io", &[(".dockerconfigjson", auths)]).unwrap();
        let only = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#;
        assert_eq!(login, Login::DockerConfig(only.to_owned()));
        let empty = read("ghcr.io", &[(".dockerconfigjson", auths)]).unwrap_err();
        assert!(empty.message.contains("`ghcr.io` in it has neither"), "{}", empty.message);
        let other = read("quay.io", &[(".dockerconfigjson", auths)]).unwrap_err();
        assert!(other.message.contains("no login for quay.io"), "{}", other.message);
    }

    #[test]
    fn what_is_wrong_with_a_secret_is_said_without_showing_it() {
        let message = |given: &[(&str, &str)]| read("ghcr.io", given).unwrap_err().message;
        assert_eq!(
            message(&[("password", "hush")]),
            "ghcr.io: secret `login`: the key `username` is missing; write it, or all of it under `.dockerconfigjson`"
        );
        assert!(message(&[("username", "a b"), ("password", "hush")]).contains("white space"));
        assert!(message(&[("username", "a"), ("password", "\n")]).contains("`password` is empty"));
        assert!(message(&[(".dockerconfigjson", "hush")]).contains("not JSON"));
        let missing = login(&upstream("ghcr.io"), None).unwrap_err();
        assert_eq!(missing.reason, "SecretMissing");
        let login = read("ghcr.io", &[("username", "a"), ("password", "hush")]).unwrap();
        assert!(!format!("{login:?}").contains("hush"));
    }

    #[test]
    fn the_key_of_a_service_account_is_one() {
        let key = r#"{"type": "service_account", "client_email": "a@b", "private_key": "hush"}"#;
        let with = |from: &str, to: &str| key.replace(from, to);
        for (password, what) in [
            ("hush".to_owned(), "is not JSON"),
            ("[\"hush\"]".to_owned(), "is not JSON"),
            (with("service_account", "external_account"), "has another `type`"),
            (with("private_key", "hush"), "has no `private_key`"),
            (with("a@b", ""), "has no `client_email`"),
            (with("{", r#"{"hush": 1, "#), "has 1 fields that no such key has"),
        ] {
            let given = [("username", JSON_KEY), ("password", &password)];
            let doubt = doubt(&upstream("gcr.io"), &secret(&given)).unwrap().message;
            assert!(doubt.contains(what) && !doubt.contains("hush"), "{doubt}");
        }
        let user = |user, password| {
            doubt(&upstream("gcr.io"), &secret(&[("username", user), ("password", password)]))
        };
        assert_eq!(user(JSON_KEY, key), None);
        assert_eq!(user("robot", "hush"), None);
    }

    fn secret(given: &[(&str, &str)]) -> Secret {
        let data = given
            .iter()
            .map(|(key, value)| ((*key).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret { data: Some(data.collect()), ..Secret::default() }
    }

    fn read(host: &str, given: &[(&str, &str)]) -> Result<Login, Problem> {
        login(&upstream(host), Some(&secret(given)))
    }

    fn upstream(host: &str) -> Upstream {
        Upstream {
            upstream: host.to_owned(),
            secret_ref: Some(SecretRef { name: "login".to_owned() }),
            ..Upstream::default()
        }
    }
}
