//! A caller's own credential, which is passed on as it came.

use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use serde::Deserialize;

/// Who asks, where upstream says who may read what. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Caller(Option<HeaderValue>);

/// A request says who its caller is in a way that cannot be passed on.
#[derive(Debug, thiserror::Error)]
#[error("the request has a credential that is neither Basic nor Bearer, or more than one")]
pub struct UnreadableCaller;

impl Caller {
    /// Who shows nothing, and may read what everybody may.
    pub const NOBODY: Self = Self(None);

    /// Who sent a request with these headers.
    ///
    /// # Errors
    ///
    /// [`UnreadableCaller`]: what is shown is nothing that registries take.
    pub fn of(headers: &HeaderMap) -> Result<Self, UnreadableCaller> {
        let mut shown = headers.get_all(AUTHORIZATION).iter();
        let Some(header) = shown.next() else { return Ok(Self::NOBODY) };
        let scheme = header.as_bytes().split(|byte| *byte == b' ').next().unwrap_or_default();
        let is_known = [&b"basic"[..], b"bearer"].iter().any(|it| it.eq_ignore_ascii_case(scheme));
        if !is_known || shown.next().is_some() {
            return Err(UnreadableCaller);
        }
        let mut header = header.clone();
        header.set_sensitive(true);
        Ok(Self(Some(header)))
    }

    /// Whether there is no credential.
    pub fn is_nobody(&self) -> bool {
        self.0.is_none()
    }

    /// The credential as it is sent, for the few places that send it or hash it.
    pub fn expose(&self) -> Option<&HeaderValue> {
        self.0.as_ref()
    }

    /// When the credential ends by its own word, if it has one: `exp` of a token that is a JWT. Nobody
    /// has checked its signature, so it can make a right shorter and nothing else.
    ///
    /// Source: RFC 7519, sections 3.1 and 4.1.4.
    pub fn ends_at(&self) -> Option<SystemTime> {
        #[derive(Deserialize)]
        struct Claims {
            exp: f64,
        }
        let token = self.0.as_ref()?.to_str().ok()?.split_once(' ')?.1;
        let claims = token.split('.').nth(1)?.trim_end_matches('=');
        let claims = BASE64_URL_SAFE_NO_PAD.decode(claims).ok()?;
        let Claims { exp } = serde_json::from_slice(&claims).ok()?;
        // What is not a number, or before 1970, has ended.
        let since_1970 = Duration::try_from_secs_f64(exp).unwrap_or_default();
        SystemTime::UNIX_EPOCH.checked_add(since_1970)
    }
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_nobody() { "Caller(nobody)" } else { "Caller(..)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_registries_take_is_passed_on_and_nothing_else() {
        for shown in ["Basic dTpw", "bearer token", "BEARER a.b.c"] {
            assert_eq!(caller(&[shown]).unwrap().expose().unwrap(), shown);
        }
        assert!(caller(&[]).unwrap().is_nobody());
        for shown in [&["Negotiate YII="][..], &["Basic dTpw", "Basic dTpx"], &[""], &["token"]] {
            assert!(caller(shown).is_err(), "{shown:?}");
        }
    }

    #[test]
    fn a_caller_is_not_shown() {
        let caller = caller(&["Basic hunter2"]).unwrap();
        assert!(!format!("{caller:?} {:?}", caller.expose()).contains("hunter2"));
    }

    #[test]
    fn a_token_that_says_when_it_ends_is_believed() {
        let ends = |claims: &str| {
            let claims = BASE64_URL_SAFE_NO_PAD.encode(claims);
            let ends_at = caller(&[&format!("Bearer e30.{claims}.c2ln")]).unwrap().ends_at()?;
            Some(ends_at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
        };
        assert_eq!(ends(r#"{"exp":1800000000,"sub":"u"}"#), Some(1_800_000_000));
        assert_eq!(ends(r#"{"exp":1800000000.5}"#), Some(1_800_000_000));
        assert_eq!(ends(r#"{"exp":-1}"#), Some(0));
        assert_eq!(ends(r#"{"sub":"u"}"#), None);
        assert_eq!(caller(&["Bearer opaque"]).unwrap().ends_at(), None);
        assert_eq!(caller(&["Basic dTpw"]).unwrap().ends_at(), None);
        assert_eq!(Caller::NOBODY.ends_at(), None);
    }

    proptest::proptest! {
        #[test]
        fn no_credential_makes_the_reader_panic(shown in "(Bearer|Basic) [!-~]{0,40}", claims in "\\PC{0,40}") {
            let claims = BASE64_URL_SAFE_NO_PAD.encode(claims);
            for shown in [shown, format!("Bearer .{claims}.")] {
                let _ = caller(&[&shown]).map(|caller| caller.ends_at());
            }
        }
    }

    fn caller(shown: &[&str]) -> Result<Caller, UnreadableCaller> {
        let mut headers = HeaderMap::new();
        for line in shown {
            headers.append(AUTHORIZATION, line.parse().unwrap());
        }
        Caller::of(&headers)
    }
}
