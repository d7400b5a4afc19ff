//! Who we are to an upstream.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use larder_core::Host;
use serde_json::Value;

use super::files::{Disk, Files};

/// Text that must not be seen in logs, errors or `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` out of sight.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that sends it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Where the user name and password for an upstream come from.
///
/// Files are named here and not kept, so that a rotated password is found by reading again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Credentials {
    /// None: upstream is asked as nobody.
    #[default]
    Anonymous,
    /// Written in the configuration.
    Password {
        /// The user's name, not empty.
        username: String,
        /// The password or token, not empty.
        password: Secret,
    },
    /// The password in a file of its own, as Kubernetes mounts a secret.
    PasswordFile {
        /// The user's name, not empty.
        username: String,
        /// The file; white space at its end does not count.
        path: PathBuf,
    },
    /// A `config.json` as `docker login` writes it, or a secret of type
    /// `kubernetes.io/dockerconfigjson`.
    DockerConfig {
        /// The file.
        path: PathBuf,
    },
}

/// Why credentials cannot be had. The text names the file and never shows what is in it.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// The file cannot be read.
    #[error("reading {path}", path = path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The file can be read and has no password in it.
    #[error("{path} {what}", path = path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, as the rest of a sentence.
        what: String,
    },
}

impl Credentials {
    /// The user name and password for `host`, from disk where they are in a file. `None`: ask as
    /// nobody.
    ///
    /// Blocks on the disk. Reads again each time: ask when upstream refuses what is known.
    ///
    /// # Errors
    ///
    /// [`CredentialsError`]: go on with what is known, and tell the people who run this.
    pub fn read(&self, host: &Host) -> Result<Option<(String, Secret)>, CredentialsError> {
        self.read_from(&Disk, host)
    }

    /// [`Self::read`], with the disk as an argument.
    pub(super) fn read_from(
        &self,
        files: &dyn Files,
        host: &Host,
    ) -> Result<Option<(String, Secret)>, CredentialsError> {
        match self {
            Self::Anonymous => Ok(None),
            Self::Password { username, password } => Ok(Some((username.clone(), password.clone()))),
            Self::PasswordFile { username, path } => {
                let password = text_of(path, files)?;
                match password.trim_end() {
                    "" => Err(content(path, "is empty")),
                    password => Ok(Some((username.clone(), Secret::new(password)))),
                }
            }
            Self::DockerConfig { path } => docker_login(path, &text_of(path, files)?, host),
        }
    }
}

fn text_of(path: &Path, files: &dyn Files) -> Result<String, CredentialsError> {
    let bytes = files
        .read(path)
        .map_err(|source| CredentialsError::Read { path: path.to_owned(), source })?;
    String::from_utf8(bytes).map_err(|_| content(path, "is not UTF-8 text"))
}

fn content(path: &Path, what: impl Into<String>) -> CredentialsError {
    CredentialsError::Content { path: path.to_owned(), what: what.into() }
}

/// The login for `host` in the text of a `config.json`. `None`: there is none for this host.
fn docker_login(
    path: &Path,
    text: &str,
    host: &Host,
) -> Result<Option<(String, Secret)>, CredentialsError> {
    let document: Value = serde_json::from_str(text).map_err(|_| content(path, "is not JSON"))?;
    let Some(logins) = document.get("auths").and_then(Value::as_object) else {
        return Err(content(path, "has no `auths` (credential helpers are not asked)"));
    };
    let Some((_, login)) = logins.iter().find(|(server, _)| is_login_for(server, host)) else {
        return Ok(None);
    };
    let incomplete = || content(path, format!("has no user name and password for {host}"));
    let (username, password) = match login.get("auth").and_then(Value::as_str) {
        Some(auth) if !auth.is_empty() => {
            let both = STANDARD.decode(auth).ok().and_then(|it| String::from_utf8(it).ok());
            let both = both.ok_or_else(incomplete)?;
            let (username, password) = both.split_once(':').ok_or_else(incomplete)?;
            (username.to_owned(), password.to_owned())
        }
        _ => {
            let field = |name| login.get(name).and_then(Value::as_str).map(str::to_owned);
            field("username").zip(field("password")).ok_or_else(incomplete)?
        }
    };
    match username.is_empty() || password.is_empty() {
        true => Err(incomplete()),
        false => Ok(Some((username, Secret::new(password)))),
    }
}

/// Whether a key of `auths` means `host`: it may be a URL (`https://index.docker.io/v1/`), and
/// Docker Hub has several names.
fn is_login_for(server: &str, host: &Host) -> bool {
    let server =
        server.strip_prefix("https://").or(server.strip_prefix("http://")).unwrap_or(server);
    let authority = server.split('/').next().unwrap_or(server);
    authority.parse::<Host>().is_ok_and(|login| login == *host)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_docker_config_is_asked_for_the_host() {
        let text = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpwOnE="},
            "ghcr.io":{"username":"g","password":"h"}}}"#;
        assert_eq!(login(text, "docker.io").unwrap(), "u p:q");
        assert_eq!(login(text, "ghcr.io").unwrap(), "g h");
        assert_eq!(login(text, "quay.io").unwrap(), "nobody");
    }

    #[test]
    fn a_docker_config_without_a_password_is_an_error_that_shows_no_secret() {
        for (text, what) in [
            ("{", "is not JSON"),
            ("{}", "has no `auths`"),
            (r#"{"auths":{"ghcr.io":{}}}"#, "has no user name and password for ghcr.io"),
            (r#"{"auths":{"ghcr.io":{"auth":"c2VjcmV0"}}}"#, "has no user name and password"),
            (r#"{"auths":{"ghcr.io":{"auth":"%secret%"}}}"#, "has no user name and password"),
        ] {
            let error = login(text, "ghcr.io").unwrap_err().to_string();
            assert!(error.contains(what) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn white_space_at_the_end_of_a_password_file_does_not_count() {
        let from_file = Credentials::PasswordFile { username: "u".to_owned(), path: "p".into() };
        let host = "ghcr.io".parse().unwrap();
        let read = |content: &str| {
            let files = BTreeMap::from([(PathBuf::from("p"), content.to_owned())]);
            from_file.read_from(&files, &host)
        };
        let (_, password) = read("it\r\n").unwrap().unwrap();
        assert_eq!(password.expose(), "it");
        assert!(read("\n").is_err());
    }

    #[test]
    fn a_secret_is_not_in_debug_output() {
        let password = Secret::new("hunter2");
        let credentials = Credentials::Password { username: "u".to_owned(), password };
        assert!(!format!("{credentials:?}").contains("hunter2"));
    }

    fn login(text: &str, host: &str) -> Result<String, CredentialsError> {
        let login = docker_login(Path::new("config.json"), text, &host.parse().unwrap())?;
        Ok(match login {
            Some((username, password)) => format!("{username} {}", password.expose()),
            None => "nobody".to_owned(),
        })
    }
}
