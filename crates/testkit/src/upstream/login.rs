//! Who may ask.
//!
//! Source: RFC 7617 (Basic); distribution's "Token Authentication Specification" (Bearer).

use std::collections::HashMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::json;

use super::answer::Answer;
use super::record::Request;

/// The credential that a registry asks for.
#[derive(Clone, Debug)]
pub enum Login {
    /// A name and a password with every request.
    Basic {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// The same, and any of these names with its password will do.
    AnyOf(Vec<(String, String)>),
    /// A token from `/token`, for one repository, which is given to this account only.
    Bearer {
        /// The name.
        username: String,
        /// The password.
        password: String,
    },
    /// A token from `/token`, for one repository, which is given to everyone, as Docker Hub does.
    Anonymous,
}

const BASIC_CHALLENGE: &str = "Basic realm=\"testkit\"";

/// Access tokens that were given out, with the scope each is for.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    valid: HashMap<String, String>,
    n_given: usize,
}

impl Tokens {
    pub(super) fn revoke(&mut self) {
        self.valid.clear();
    }
}

impl Login {
    /// Refuses `request` unless it brings what is needed to read `repository` (`None`: `/v2/`).
    pub(super) fn check(
        &self,
        request: &Request,
        repository: Option<&str>,
        tokens: &Tokens,
        url: &str,
    ) -> Result<(), Answer> {
        let shown = request.header("authorization");
        let challenge = match self {
            Self::Basic { username, password } => {
                if shown == Some(&basic(username, password)) {
                    return Ok(());
                }
                BASIC_CHALLENGE.to_owned()
            }
            Self::AnyOf(accounts) => {
                if accounts.iter().any(|(name, word)| shown == Some(&basic(name, word))) {
                    return Ok(());
                }
                BASIC_CHALLENGE.to_owned()
            }
            Self::Bearer { .. } | Self::Anonymous => {
                let scope = repository.map(|name| format!("repository:{name}:pull"));
                let token = shown.and_then(|shown| shown.strip_prefix("Bearer "));
                let granted = token.and_then(|token| tokens.valid.get(token));
                if granted.is_some_and(|granted| scope.as_ref().is_none_or(|it| it == granted)) {
                    return Ok(());
                }
                let scope = scope.map(|it| format!(",scope=\"{it}\"")).unwrap_or_default();
                format!("Bearer realm=\"{url}/token\",service=\"testkit\"{scope}")
            }
        };
        Err(Answer::error(401, "UNAUTHORIZED").with("www-authenticate", challenge))
    }

    /// Answers a GET of `/token`.
    pub(super) fn give_token(&self, request: &Request, tokens: &mut Tokens) -> Answer {
        let shown = request.header("authorization");
        let is_known = match self {
            Self::Basic { .. } | Self::AnyOf(_) => return Answer::error(404, "UNSUPPORTED"),
            Self::Bearer { username, password } => shown == Some(&basic(username, password)),
            Self::Anonymous => true,
        };
        if !is_known {
            return Answer::error(401, "UNAUTHORIZED");
        }
        let scope = larder_core::route::query_value(request.query.as_deref(), "scope");
        tokens.n_given += 1;
        let token = format!("token-{}", tokens.n_given);
        tokens.valid.insert(token.clone(), scope.unwrap_or_default().into_owned());
        Answer::json(200, &json!({ "token": token, "expires_in": 300 }))
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}
