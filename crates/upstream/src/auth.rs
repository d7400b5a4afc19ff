//! Answers to challenges, and what is remembered of them.
//!
//! Nobody is asked for a challenge in advance. The first request for a repository goes out bare;
//! its 401 says what is wanted, and later requests for that repository carry it unasked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HeaderMap, HeaderValue, WWW_AUTHENTICATE};
use larder_core::Repository;
use moka::Expiry;
use moka::future::Cache;
use url::Url;

use crate::challenge::{self, Challenge};
use crate::credentials::{Current, Keychain, Login};
use crate::error::{Error, Failure};
use crate::header;
use crate::settings::Base;
use crate::token::{self, Token, Wanted};
use crate::transport::Transport;

/// How many tokens are kept, and of how many repositories it is known what they want: more than
/// are pulled within the life of a token, at some kilobytes each.
const MAX_REMEMBERED: u64 = 10_000;

/// How long it is remembered what a repository wants.
const SCHEME_MEMORY: Duration = Duration::from_secs(3600);

/// How long a credential that was refused is not shown again: repeated failures lock accounts.
const REFUSAL_MEMORY: Duration = Duration::from_secs(10);

/// Whatever asks for authentication in one way: a repository at one address, or the address itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Place {
    pub(crate) base: Base,
    pub(crate) repository: Option<Repository>,
}

/// What a request carries.
#[derive(Clone, Debug)]
pub(crate) struct Permit {
    pub(crate) header: HeaderValue,
    origin: Origin,
}

/// Where a permit came from.
#[derive(Clone, Debug)]
enum Origin {
    Token(TokenKey),
    Password { generation: u64 },
}

/// A token of one credential.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct TokenKey {
    wanted: Wanted,
    generation: u64,
}

/// What a place wants.
#[derive(Clone, Debug)]
enum Scheme {
    Bearer(Wanted),
    Basic,
}

/// Answers challenges with one upstream's credential.
pub(crate) struct Authenticator {
    keychain: Keychain,
    tokens: Cache<TokenKey, Token>,
    schemes: Cache<Place, Scheme>,
    /// By whom a credential (its generation) was refused lately.
    refusals: Cache<(url::Origin, u64), Error>,
}

impl Authenticator {
    pub(crate) fn new(keychain: Keychain) -> Self {
        Self {
            keychain,
            tokens: Cache::builder().max_capacity(MAX_REMEMBERED).expire_after(UntilItsEnd).build(),
            schemes: Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_live(SCHEME_MEMORY)
                .build(),
            refusals: Cache::builder()
                .max_capacity(MAX_REMEMBERED)
                .time_to_live(REFUSAL_MEMORY)
                .build(),
        }
    }

    /// What `place` is known to want. `None`: nothing, or it is not known yet.
    pub(crate) async fn remembered(
        &self,
        transport: &Transport,
        place: &Place,
    ) -> Result<Option<Permit>, Failure> {
        let Some(scheme) = self.schemes.get(place).await else {
            return Ok(None);
        };
        let permit = self.permit(transport, place, &scheme).await;
        if permit.is_err() {
            // What is remembered may be out of date: a token service that moved, say.
            self.schemes.invalidate(place).await;
        }
        permit.map(Some)
    }

    /// What to show to `place` after it answered 401 with `headers` to a request that carried
    /// `used`.
    ///
    /// # Errors
    ///
    /// [`Error::CredentialRefused`], also without asking anybody if it was refused in the last
    /// seconds; [`Error::Denied`] if there is nothing more to show; [`Error::Protocol`] if the
    /// token service's address is not acceptable.
    pub(crate) async fn answer(
        &self,
        transport: &Transport,
        place: &Place,
        headers: &HeaderMap,
        used: Option<&Permit>,
    ) -> Result<Permit, Failure> {
        if let Some(permit) = used {
            self.withdraw(place, permit).await?;
        }
        let chosen = challenge::choose(header::lines(headers, &WWW_AUTHENTICATE));
        let scheme = scheme(chosen.ok_or(Error::Denied)?, place)?;
        let permit = self.permit(transport, place, &scheme).await?;
        self.schemes.insert(place.clone(), scheme).await;
        Ok(permit)
    }

    /// The error for a 401 to a request that carried a `permit` made for it just now. The next
    /// request begins from nothing, as rights may be granted meanwhile.
    pub(crate) async fn refused(&self, place: &Place, permit: &Permit) -> Error {
        self.schemes.invalidate(place).await;
        match &permit.origin {
            Origin::Token(key) => {
                self.forget(key, &permit.header).await;
                Error::Denied
            }
            Origin::Password { generation } => self.refuse(place.base.origin(), *generation).await,
        }
    }

    /// Takes back a remembered permit that was not accepted.
    async fn withdraw(&self, place: &Place, permit: &Permit) -> Result<(), Error> {
        match &permit.origin {
            Origin::Token(key) => self.forget(key, &permit.header).await,
            Origin::Password { generation } => {
                if self.keychain.current().await.generation == *generation {
                    return Err(self.refuse(place.base.origin(), *generation).await);
                }
            }
        }
        Ok(())
    }

    /// Drops a token, unless somebody has put a newer one in its place.
    async fn forget(&self, key: &TokenKey, header: &HeaderValue) {
        if self.tokens.get(key).await.is_some_and(|token| token.header == header) {
            self.tokens.invalidate(key).await;
        }
    }

    async fn refuse(&self, by: url::Origin, generation: u64) -> Error {
        let error = self.keychain.refused_by(&by.ascii_serialization(), 401);
        self.refusals.insert((by, generation), error.clone()).await;
        error
    }

    async fn permit(
        &self,
        transport: &Transport,
        place: &Place,
        scheme: &Scheme,
    ) -> Result<Permit, Failure> {
        let current = self.keychain.current().await;
        let asked = match scheme {
            Scheme::Bearer(wanted) => wanted.realm.origin(),
            Scheme::Basic => place.base.origin(),
        };
        if let Some(error) = self.refusals.get(&(asked.clone(), current.generation)).await {
            return Err(error.into());
        }
        match scheme {
            Scheme::Bearer(wanted) => {
                let permit = self.token(transport, wanted, &current).await;
                if let Err(Failure { error: error @ Error::CredentialRefused(_), .. }) = &permit {
                    self.refusals.insert((asked, current.generation), error.clone()).await;
                }
                permit
            }
            Scheme::Basic => Ok(password(&current)?),
        }
    }

    /// A token that is still good, else a new one. Whoever wants the same meanwhile waits for it.
    async fn token(
        &self,
        transport: &Transport,
        wanted: &Wanted,
        current: &Current,
    ) -> Result<Permit, Failure> {
        let key = TokenKey { wanted: wanted.clone(), generation: current.generation };
        let fetch = token::fetch(transport, &self.keychain, wanted, &current.login);
        let token = self.tokens.try_get_with(key.clone(), fetch).await;
        let token = token.map_err(Arc::unwrap_or_clone)?;
        Ok(Permit { header: token.header, origin: Origin::Token(key) })
    }
}

/// What answers a Basic challenge.
fn password(current: &Current) -> Result<Permit, Error> {
    match (current.login.basic_header(), &current.login) {
        (Some(header), _) => {
            Ok(Permit { header, origin: Origin::Password { generation: current.generation } })
        }
        (None, Login::Refresh(_)) => Err(Error::CredentialRefused(
            "it wants a password, and an identity token is configured".to_owned(),
        )),
        (None, _) => Err(Error::Denied),
    }
}

/// What the challenge of `place` comes to.
fn scheme(challenge: Challenge, place: &Place) -> Result<Scheme, Error> {
    let Challenge::Bearer { realm, service, scope } = challenge else {
        return Ok(Scheme::Basic);
    };
    let refused = |problem: &str| {
        let origin = place.base.origin().ascii_serialization();
        Error::Protocol(format!("the token service that {origin} names {problem}"))
    };
    let mut realm = Url::parse(&realm).map_err(|_| refused("has no valid address"))?;
    realm.set_fragment(None);
    match realm.scheme() {
        "https" => {}
        "http" if place.base.is_plain() => {}
        _ => return Err(refused("is not reached by https")),
    }
    if !realm.username().is_empty() || realm.password().is_some() {
        return Err(refused("has credentials in its address"));
    }
    let own_scope =
        || place.repository.as_ref().map(|name| format!("repository:{}:pull", name.as_str()));
    Ok(Scheme::Bearer(Wanted { realm, service, scope: scope.or_else(own_scope) }))
}

/// Keeps each token as long as it is good.
struct UntilItsEnd;

impl Expiry<TokenKey, Token> for UntilItsEnd {
    fn expire_after_create(&self, _: &TokenKey, token: &Token, _: Instant) -> Option<Duration> {
        Some(token.lifetime)
    }

    fn expire_after_update(
        &self,
        _: &TokenKey,
        token: &Token,
        _: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(token.lifetime)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::base_of;

    #[test]
    fn a_token_service_is_reached_by_https_unless_the_registry_is_not() {
        assert!(scheme_at("https://r.io", "https://auth.io/t").is_ok());
        assert!(scheme_at("http://r.io", "http://auth.io/t").is_ok());
        for realm in ["http://auth.io/t", "ftp://auth.io", "/token", "https://u:p@auth.io/t"] {
            let error = scheme_at("https://r.io", realm).unwrap_err();
            assert!(matches!(error, Error::Protocol(_)), "{realm}: {error}");
        }
    }

    #[test]
    fn a_scope_that_is_not_named_is_pulling_the_repository() {
        let Ok(Scheme::Bearer(wanted)) = scheme_at("https://r.io", "https://auth.io/t") else {
            panic!("not bearer");
        };
        assert_eq!(wanted.scope.as_deref(), Some("repository:a/b:pull"));
    }

    fn scheme_at(base: &str, realm: &str) -> Result<Scheme, Error> {
        let challenge = Challenge::Bearer { realm: realm.to_owned(), service: None, scope: None };
        let repository = Some("a/b".parse().unwrap());
        scheme(challenge, &Place { base: base_of(base), repository })
    }
}
