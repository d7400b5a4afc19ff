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
    /// To each account its repositories, and some to everyone.
    Each(Accounts),
}

/// Who may read what.
#[derive(Clone, Debug)]
pub struct Accounts {
    /// Whether a token from `/token` is wanted, which everyone is given, whatever it is good for;
    /// otherwise a name and a password.
    pub by_token: bool,
    /// Name, password, and the repositories that the account may read.
    pub accounts: Vec<(String, String, Vec<String>)>,
    /// The repositories that everyone may read.
    pub public: Vec<String>,
}

impl Accounts {
    /// Whether who shows this password, or nothing, may read `repository`.
    fn may_read(&self, shown: Option<&str>, repository: Option<&str>) -> bool {
        let Some(repository) = repository else {
            return shown.is_some_and(|it| self.accounts.iter().any(|(n, w, _)| it == basic(n, w)));
        };
        let has = |names: &[String]| names.iter().any(|name| name == repository);
        has(&self.public)
            || self.accounts.iter().any(|(name, word, repositories)| {
                shown == Some(&basic(name, word)) && has(repositories)
            })
    }
}

const BASIC_CHALLENGE: &str = "Basic realm=\"testkit\"";

/// Access tokens that were given out, with the scope each is for.
#[derive(Debug, Default)]
pub(super) struct Tokens {
    valid: HashMap<String, String>,
    n_given: usize,
}

impl Tokens {
    /// Gives out a token that is good for `scope`.
    pub(super) fn give(&mut self, scope: String) -> String {
        self.n_given += 1;
        let token = format!("token-{}", self.n_given);
        self.valid.insert(token.clone(), scope);
        token
    }

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
            Self::Each(accounts) if !accounts.by_token => {
                if accounts.may_read(shown, repository) {
                    return Ok(());
                }
                BASIC_CHALLENGE.to_owned()
            }
            Self::Bearer { .. } | Self::Anonymous | Self::Each(_) => {
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

    /// A token for who shows this to `/token`, for reading `repository`; good for nothing if they may
    /// not.
    pub(super) fn token(&self, shown: &str, repository: &str, tokens: &mut Tokens) -> String {
        let may_read = match self {
            Self::Each(accounts) => accounts.may_read(Some(shown), Some(repository)),
            _ => false,
        };
        let scope = may_read.then(|| format!("repository:{repository}:pull"));
        tokens.give(scope.unwrap_or_default())
    }

    /// Answers a GET of `/token`. A POST, which clients try first that know OAuth 2, is not understood,
    /// as by many a registry.
    pub(super) fn give_token(&self, request: &Request, tokens: &mut Tokens) -> Answer {
        if request.method == "POST" {
            return Answer::error(405, "UNSUPPORTED");
        }
        let shown = request.header("authorization");
        let is_known = match self {
            Self::Basic { .. } | Self::AnyOf(_) => return Answer::error(404, "UNSUPPORTED"),
            Self::Bearer { username, password } => shown == Some(&basic(username, password)),
            Self::Anonymous | Self::Each(_) => true,
        };
        if !is_known {
            return Answer::error(401, "UNAUTHORIZED");
        }
        let scope = larder_core::route::query_value(request.query.as_deref(), "scope");
        let scope = scope.filter(|scope| match self {
            Self::Each(accounts) => {
                let name =
                    scope.strip_prefix("repository:").and_then(|it| it.strip_suffix(":pull"));
                name.is_some() && accounts.may_read(shown, name)
            }
            _ => true,
        });
        let token = tokens.give(scope.unwrap_or_default().into_owned());
        Answer::json(200, &json!({ "token": token, "expires_in": 300 }))
    }
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}
