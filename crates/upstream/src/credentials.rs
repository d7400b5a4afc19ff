//! Who we are to an upstream.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use larder_core::Host;
use parking_lot::Mutex;
use tracing::warn;

use crate::docker_config::{ParseDockerConfigError, login_for};
use crate::error::Error;
use crate::secret::Secret;

/// Where the credential for an upstream comes from.
///
/// A file is named here and not kept: it is read again when it changed, so that a rotated password
/// is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// There is none; token services are asked for anonymous tokens.
    Anonymous,
    /// There is none of ours: callers show theirs, see
    /// [`Client::on_behalf_of`](crate::Client::on_behalf_of). Where nobody has shown one, as
    /// `Anonymous`.
    Callers,
    /// A user name and password (or whatever a registry takes in its place).
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// The password in a file of its own, as Kubernetes mounts a secret.
    PasswordFile {
        /// The user.
        username: String,
        /// The file: UTF-8 text; white space at its end does not count.
        path: PathBuf,
    },
    /// Docker's `config.json`, in which `auths.HOST` holds `auth`, or `username` and `password`, or
    /// `identitytoken`; `https://index.docker.io/v1/` is Docker Hub. A host that is not in it is
    /// asked anonymously.
    DockerConfig(PathBuf),
}

/// A file with credentials that gave none: which, and why. The text never shows what is in it.
#[derive(Debug, thiserror::Error)]
#[error("reading {}", .path.display())]
pub struct CredentialsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub source: CredentialsProblem,
}

/// What is wrong with a file of credentials.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsProblem {
    /// It cannot be read.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// It is larger than 1 MiB.
    #[error("the file has more than 1 MiB")]
    TooLarge,
    /// It has nothing but white space.
    #[error("the file is empty")]
    Empty,
    /// A password in it could not be sent.
    #[error("the file is not UTF-8 text")]
    NotText,
    /// It is not Docker's `config.json`.
    #[error(transparent)]
    DockerConfig(#[from] ParseDockerConfigError),
}

impl Credentials {
    /// The file that they are in, if they are in one.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Self::Anonymous | Self::Callers | Self::Basic { .. } => None,
            Self::PasswordFile { path, .. } | Self::DockerConfig(path) => Some(path),
        }
    }

    /// Whether there is something to show to `host`; without it, `host` is asked anonymously.
    /// `read` gives the content of a file.
    ///
    /// # Errors
    ///
    /// The file cannot be read or understood, and [`Client::new`](crate::Client::new) would fail.
    pub fn has_login(
        &self,
        host: &Host,
        read: impl FnOnce(&Path) -> io::Result<Vec<u8>>,
    ) -> Result<bool, CredentialsError> {
        let login = self.login(host, |path| Ok(read(path)?))?;
        Ok(login != Login::Anonymous)
    }

    fn login(
        &self,
        host: &Host,
        read: impl FnOnce(&Path) -> Result<Vec<u8>, CredentialsProblem>,
    ) -> Result<Login, CredentialsError> {
        let (path, login) = match self {
            Self::Anonymous | Self::Callers => return Ok(Login::Anonymous),
            Self::Basic { username, password } => {
                let (username, password) = (username.clone(), password.clone());
                return Ok(Login::Password { username, password });
            }
            Self::PasswordFile { username, path } => {
                let password = read(path).and_then(password_in);
                let username = username.clone();
                (path, password.map(|password| Login::Password { username, password }))
            }
            Self::DockerConfig(path) => {
                (path, read(path).and_then(|text| Ok(login_for(host, &text)?)))
            }
        };
        login.map_err(|source| CredentialsError { path: path.clone(), source })
    }
}

fn password_in(bytes: Vec<u8>) -> Result<Secret, CredentialsProblem> {
    let text = String::from_utf8(bytes).map_err(|_| CredentialsProblem::NotText)?;
    match text.trim_end() {
        "" => Err(CredentialsProblem::Empty),
        password => Ok(Secret::from(password)),
    }
}

/// What is shown to an upstream or its token service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Login {
    Anonymous,
    Password {
        username: String,
        password: Secret,
    },
    /// OAuth2's refresh token: `identitytoken` of Docker's configuration.
    Refresh(Secret),
}

impl Login {
    /// The header that carries a user name and password; `None` if this is neither.
    pub(crate) fn basic_header(&self) -> Option<HeaderValue> {
        let Self::Password { username, password } = self else {
            return None;
        };
        let text = BASE64_STANDARD.encode(format!("{username}:{}", password.expose()));
        let mut header = HeaderValue::from_str(&format!("Basic {text}"))
            .expect("Base64 has only characters that a header may have");
        header.set_sensitive(true);
        Some(header)
    }
}

/// The credential as it is now, and a number that changes with it.
#[derive(Clone, Debug)]
pub(crate) struct Current {
    pub(crate) login: Login,
    pub(crate) generation: u64,
}

/// Holds the credential, and reads its file again when that changed.
pub(crate) struct Keychain {
    host: Host,
    credentials: Credentials,
    state: Mutex<State>,
}

struct State {
    /// What the file looked like when it was read last; `None` if that could not be seen, and
    /// without a file.
    stamp: Option<Stamp>,
    current: Current,
}

/// Modification time and length.
type Stamp = (SystemTime, u64);

/// The most that is read of a file, in bytes. Kubernetes allows no larger secrets.
const MAX_FILE: u64 = 1 << 20;

impl Keychain {
    /// # Errors
    ///
    /// The file cannot be read or understood.
    pub(crate) fn open(credentials: Credentials, host: Host) -> Result<Self, CredentialsError> {
        let (stamp, login) = read(&credentials, &host)?;
        let current = Current { login, generation: 0 };
        Ok(Self { host, credentials, state: Mutex::new(State { stamp, current }) })
    }

    /// The credential to use now. A file that has become unreadable leaves the one that was read
    /// last in use, and a line in the log.
    pub(crate) async fn current(&self) -> Current {
        let Some(path) = self.credentials.file() else {
            return self.state.lock().current.clone();
        };
        let stamp = tokio::fs::metadata(path).await.and_then(|metadata| stamp_of(&metadata)).ok();
        {
            let mut state = self.state.lock();
            if stamp == state.stamp {
                return state.current.clone();
            }
            // Whoever comes now uses the old credential while this caller reads the new one. A
            // failure is not tried again before the file changes once more.
            state.stamp = stamp;
        }
        let (credentials, host) = (self.credentials.clone(), self.host.clone());
        let answer = tokio::task::spawn_blocking(move || read(&credentials, &host)).await;
        self.adopt(answer.unwrap_or_else(|panic| {
            let source = io::Error::other(panic).into();
            Err(CredentialsError { path: path.to_owned(), source })
        }))
    }

    fn adopt(&self, answer: Result<(Option<Stamp>, Login), CredentialsError>) -> Current {
        let mut state = self.state.lock();
        match answer {
            Ok((stamp, login)) => {
                state.stamp = stamp;
                if login != state.current.login {
                    let generation = state.current.generation + 1;
                    state.current = Current { login, generation };
                }
            }
            Err(error) => warn!(
                upstream = self.host.as_str(),
                file = %error.path.display(),
                error = &error as &dyn std::error::Error,
                "cannot read the changed credentials for {}; the old ones stay in use",
                self.host.as_str(),
            ),
        }
        state.current.clone()
    }

    /// The error that says our credential was refused by `who`.
    pub(crate) fn refused_by(&self, who: &str, status: u16) -> Error {
        let origin = match self.credentials.file() {
            Some(path) => format!("from {}", path.display()),
            None => "from the configuration".to_owned(),
        };
        Error::CredentialRefused(format!(
            "{who} answered {status} to the credential for {} {origin}",
            self.host.as_str()
        ))
    }
}

fn stamp_of(metadata: &std::fs::Metadata) -> io::Result<Stamp> {
    Ok((metadata.modified()?, metadata.len()))
}

/// What `credentials` say for `host`, from disk where they are in a file. Blocks.
fn read(
    credentials: &Credentials,
    host: &Host,
) -> Result<(Option<Stamp>, Login), CredentialsError> {
    let mut stamp = None;
    let login = credentials.login(host, |path| {
        let (read_at, bytes) = read_file(path)?;
        stamp = Some(read_at);
        Ok(bytes)
    })?;
    Ok((stamp, login))
}

fn read_file(path: &Path) -> Result<(Stamp, Vec<u8>), CredentialsProblem> {
    let file = std::fs::File::open(path)?;
    let stamp = stamp_of(&file.metadata()?)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > MAX_FILE {
        true => Err(CredentialsProblem::TooLarge),
        false => Ok((stamp, bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_changed_file_is_read_again_and_a_broken_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        write(&path, r#"{"auths":{"a.io":{"username":"u","password":"one"}}}"#, 1);
        let host: Host = "a.io".parse().unwrap();
        let keychain = Keychain::open(Credentials::DockerConfig(path.clone()), host).unwrap();
        let first = keychain.current().await;
        assert_eq!(password(&first), "one");
        assert_eq!(keychain.current().await.generation, first.generation);

        write(&path, r#"{"auths":{"a.io":{"username":"u","password":"two"}}}"#, 2);
        let second = keychain.current().await;
        assert_eq!(password(&second), "two");
        assert_ne!(second.generation, first.generation);

        write(&path, "{", 3);
        assert_eq!(password(&keychain.current().await), "two");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(password(&keychain.current().await), "two");
        write(&path, r#"{"auths":{}}"#, 4);
        assert_eq!(keychain.current().await.login, Login::Anonymous);
    }

    #[tokio::test]
    async fn a_changed_password_is_used_and_an_empty_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("password");
        write(&path, "one\n", 1);
        let keychain = Keychain::open(in_file(&path), "a.io".parse().unwrap()).unwrap();
        let first = keychain.current().await;
        assert_eq!(password(&first), "one");

        write(&path, "two\n", 2);
        let second = keychain.current().await;
        assert_eq!(password(&second), "two");
        assert_ne!(second.generation, first.generation);

        write(&path, "\n", 3);
        assert_eq!(password(&keychain.current().await), "two");
        write(&path, "two", 4);
        assert_eq!(keychain.current().await.generation, second.generation);
    }

    #[test]
    fn white_space_at_the_end_of_a_password_file_does_not_count() {
        let credentials = in_file(Path::new("p"));
        let login = |bytes: &[u8]| {
            credentials.login(&"a.io".parse().unwrap(), |_| Ok(bytes.to_owned())).ok()
        };
        for (content, wanted) in [("it\r\n", "it"), (" i t \n\n", " i t"), ("it", "it")] {
            let wanted = Login::Password { username: "u".to_owned(), password: wanted.into() };
            assert_eq!(login(content.as_bytes()), Some(wanted));
        }
        for content in [&b""[..], b"\n", b" \t\r\n", b"\xff"] {
            assert_eq!(login(content), None);
        }
    }

    #[test]
    fn what_is_wrong_with_a_file_names_it_and_does_not_quote_it() {
        let said = |credentials: Credentials, content: &str| {
            let bytes = content.as_bytes().to_owned();
            let error = credentials.has_login(&"a.io".parse().unwrap(), |_| Ok(bytes)).unwrap_err();
            format!("{error}: {}", error.source)
        };
        let path = Path::new("/etc/secret");
        assert_eq!(said(in_file(path), " \n"), "reading /etc/secret: the file is empty");
        assert_eq!(
            said(Credentials::DockerConfig(path.to_owned()), "hunter2"),
            "reading /etc/secret: not docker's config.json: wrong at line 1, column 1"
        );
    }

    #[test]
    fn there_is_a_login_unless_the_file_has_none_for_the_host() {
        let config = r#"{"auths":{"a.io":{"username":"u","password":"p"},"b.io":{}}}"#;
        let has_login = |credentials: Credentials, host: &str| {
            let read = |_: &Path| Ok(config.as_bytes().to_owned());
            credentials.has_login(&host.parse().unwrap(), read).unwrap()
        };
        let docker_config = || Credentials::DockerConfig("config.json".into());
        assert!(has_login(docker_config(), "a.io"));
        assert!(!has_login(docker_config(), "b.io") && !has_login(docker_config(), "c.io"));
        assert!(has_login(in_file(Path::new("p")), "c.io"));
        assert!(!has_login(Credentials::Anonymous, "a.io"));
    }

    #[test]
    fn a_file_that_cannot_be_understood_is_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let open = |credentials| {
            Keychain::open(credentials, "a.io".parse().unwrap()).err().map(|error| error.source)
        };
        for credentials in [Credentials::DockerConfig(path.clone()), in_file(&path)] {
            let _ = std::fs::remove_file(&path);
            assert!(matches!(open(credentials.clone()), Some(CredentialsProblem::Io(_))));
            std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
            assert!(matches!(open(credentials), Some(CredentialsProblem::TooLarge)));
        }
    }

    fn in_file(path: &Path) -> Credentials {
        Credentials::PasswordFile { username: "u".to_owned(), path: path.to_owned() }
    }

    /// The second is the file's age, so that no two versions look alike.
    fn write(path: &Path, text: &str, second: u64) {
        std::fs::write(path, text).unwrap();
        let time = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(second);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    fn password(current: &Current) -> &str {
        match &current.login {
            Login::Password { password, .. } => password.expose(),
            other => panic!("no password: {other:?}"),
        }
    }
}
