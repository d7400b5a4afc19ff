//! What a pull shows the registry about who is asking.

use std::fmt;

use crate::v1;

/// A credential for one pull, as a pod's pull secret holds it.
///
/// The runtime may show it to every mirror that asks, not only to the registry it was given for.
#[derive(Clone, PartialEq, Eq)]
pub enum Auth {
    /// A name and its password.
    Password {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A token to be exchanged for an access token (OAuth 2 refresh token).
    Identity(String),
    /// An access token, sent to the registry as it is.
    Registry(String),
}

impl Auth {
    pub(crate) fn into_message(self) -> v1::AuthConfig {
        let nothing = v1::AuthConfig::default();
        match self {
            Self::Password { username, password } => {
                v1::AuthConfig { username, password, ..nothing }
            }
            Self::Identity(identity_token) => v1::AuthConfig { identity_token, ..nothing },
            Self::Registry(registry_token) => v1::AuthConfig { registry_token, ..nothing },
        }
    }
}

/// Names who, never the secret.
impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Password { username, .. } => write!(f, "Password({username:?}, ***)"),
            Self::Identity(_) => f.write_str("Identity(***)"),
            Self::Registry(_) => f.write_str("Registry(***)"),
        }
    }
}

/// The generated message holds the same secrets.
impl fmt::Debug for v1::AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthConfig(***)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        let all = [
            Auth::Password { username: "ann".to_owned(), password: "s3cret".to_owned() },
            Auth::Identity("s3cret".to_owned()),
            Auth::Registry("s3cret".to_owned()),
        ];
        for auth in all {
            let request = v1::PullImageRequest {
                auth: Some(auth.clone().into_message()),
                ..Default::default()
            };
            let printed = format!("{auth:?} {request:?}");
            assert!(!printed.contains("s3cret"), "{printed}");
        }
    }
}
