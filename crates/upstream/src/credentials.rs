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
use crate::error::{Error, SetupError};
use crate::secret::Secret;

/// Where the credential for an upstream comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials {
    /// There is none; token services are asked for anonymous tokens.
    Anonymous,
    /// A user name and password (or whatever a registry takes in its place).
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: Secret,
    },
    /// Docker's `config.json`, in which `auths.HOST` holds `auth`, or `username` and `password`, or
    /// `identitytoken`; `https://index.docker.io/v1/` is Docker Hub. A host that is not in it is
    /// asked anonymously. The file is read again when it changed.
    DockerConfig(PathBuf),
}

/// Why Docker's configuration file gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum ReadConfigError {
    /// The file cannot be read.
    #[error("reading the file")]
    Io(#[from] io::Error),
    /// It is larger than 1 MiB.
    #[error("the file has more than 1 MiB")]
    TooLarge,
    /// It has another form.
    #[error(transparent)]
    Parse(#[from] ParseDockerConfigError),
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
    file: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    /// What the file looked like when it was read last; `None` if that could not be seen.
    stamp: Option<Stamp>,
    current: Current,
}

/// Modification time and length.
type Stamp = (SystemTime, u64);

/// The most that is read of Docker's configuration, in bytes. Kubernetes allows no larger secrets.
const MAX_CONFIG: u64 = 1 << 20;

impl Keychain {
    /// # Errors
    ///
    /// The file cannot be read or understood.
    pub(crate) fn open(credentials: Credentials, host: Host) -> Result<Self, SetupError> {
        let (file, stamp, login) = match credentials {
            Credentials::Anonymous => (None, None, Login::Anonymous),
            Credentials::Basic { username, password } => {
                (None, None, Login::Password { username, password })
            }
            Credentials::DockerConfig(path) => match read(&path, &host) {
                Ok((stamp, login)) => (Some(path), Some(stamp), login),
                Err(source) => return Err(SetupError::DockerConfig { path, source }),
            },
        };
        let current = Current { login, generation: 0 };
        Ok(Self { host, file, state: Mutex::new(State { stamp, current }) })
    }

    /// The credential to use now. A file that has become unreadable leaves the one that was read
    /// last in use, and a line in the log.
    pub(crate) async fn current(&self) -> Current {
        let Some(path) = &self.file else {
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
        let (at, host) = (path.clone(), self.host.clone());
        let answer = tokio::task::spawn_blocking(move || read(&at, &host)).await;
        let answer = answer.unwrap_or_else(|panic| Err(io::Error::other(panic).into()));
        self.adopt(path, answer)
    }

    fn adopt(&self, path: &Path, answer: Result<(Stamp, Login), ReadConfigError>) -> Current {
        let mut state = self.state.lock();
        match answer {
            Ok((stamp, login)) => {
                state.stamp = Some(stamp);
                if login != state.current.login {
                    let generation = state.current.generation + 1;
                    state.current = Current { login, generation };
                }
            }
            Err(error) => warn!(
                upstream = self.host.as_str(),
                file = %path.display(),
                error = &error as &dyn std::error::Error,
                "cannot read the changed credentials for {}; the old ones stay in use",
                self.host.as_str(),
            ),
        }
        state.current.clone()
    }

    /// The error that says our credential was refused by `who`.
    pub(crate) fn refused_by(&self, who: &str, status: u16) -> Error {
        let origin = match &self.file {
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

fn read(path: &Path, host: &Host) -> Result<(Stamp, Login), ReadConfigError> {
    let file = std::fs::File::open(path)?;
    let stamp = stamp_of(&file.metadata()?)?;
    let mut text = Vec::new();
    file.take(MAX_CONFIG + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_CONFIG {
        return Err(ReadConfigError::TooLarge);
    }
    Ok((stamp, login_for(host, &text)?))
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

    #[test]
    fn a_file_that_cannot_be_understood_is_refused_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let open = |path: PathBuf| {
            Keychain::open(Credentials::DockerConfig(path), "a.io".parse().unwrap()).err()
        };
        let path = dir.path().join("config.json");
        assert!(matches!(
            open(path.clone()),
            Some(SetupError::DockerConfig { source: ReadConfigError::Io(_), .. })
        ));
        std::fs::write(&path, vec![b' '; (1 << 20) + 1]).unwrap();
        assert!(matches!(
            open(path),
            Some(SetupError::DockerConfig { source: ReadConfigError::TooLarge, .. })
        ));
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
