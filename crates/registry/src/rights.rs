//! What upstream has let whom read, remembered for a while.
//!
//! A caller is known by a hash of the credential, with a key that this process made for itself: what
//! is remembered is of no use to anybody, and the credential itself is nowhere but in requests.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use larder_core::access::Bounds;
use larder_core::{Digest, Repository};
use larder_upstream::Caller;
use moka::policy::EvictionPolicy;

/// How many rights are remembered of one registry, those longest unused going first: more than the pulls
/// of a large cluster within the usual grace, at some 200 bytes each. Who is forgotten is asked about
/// again.
const MAX_RIGHTS: u64 = 10_000;

/// The rights to one upstream's repositories.
pub(crate) struct Rights {
    bounds: Bounds,
    key: [u8; 32],
    proved: moka::sync::Cache<(CallerId, Repository), Instant>,
}

/// A caller, as this process knows them; `None`: who shows nothing.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct CallerId(Option<Digest>);

/// One who asks, for the length of one request and of what it has begun.
pub(crate) struct Asker {
    pub(crate) caller: Caller,
    id: CallerId,
    /// When the credential runs out, by its own word.
    ends_at: Option<Instant>,
    rights: Arc<Rights>,
    was_refused: AtomicBool,
}

impl Rights {
    pub(crate) fn new(bounds: Bounds) -> Self {
        let proved = moka::sync::Cache::builder()
            .max_capacity(MAX_RIGHTS)
            .time_to_live(bounds.memory.max(bounds.grace))
            // A right that was proved just now is one that is about to be used.
            .eviction_policy(EvictionPolicy::lru());
        Self { bounds, key: rand::random(), proved: proved.build() }
    }

    fn id_of(&self, caller: &Caller) -> CallerId {
        CallerId(
            caller.expose().map(|shown| Digest::sha256_of(&[&self.key, shown.as_bytes()].concat())),
        )
    }
}

impl Asker {
    pub(crate) fn new(caller: Caller, rights: &Arc<Rights>) -> Self {
        let ends_at = caller
            .ends_at()
            .map(|end| Instant::now() + end.duration_since(SystemTime::now()).unwrap_or_default());
        let (id, was_refused) = (rights.id_of(&caller), AtomicBool::new(false));
        Self { caller, id, ends_at, rights: Arc::clone(rights), was_refused }
    }

    /// Another one at the same upstream.
    pub(crate) fn other(&self, caller: Caller) -> Self {
        Self::new(caller, &self.rights)
    }

    /// Who it is.
    pub(crate) fn id(&self) -> &CallerId {
        &self.id
    }

    /// How long rights count here.
    pub(crate) fn bounds(&self) -> Bounds {
        self.rights.bounds
    }

    /// Time since the right to `repository` was proved last, if it counts for anything.
    pub(crate) fn proved(&self, repository: &Repository, now: Instant) -> Option<Duration> {
        if self.ends_at.is_some_and(|end| end <= now) {
            return None;
        }
        let at = self.rights.proved.get(&(self.id.clone(), repository.clone()))?;
        Some(now.saturating_duration_since(at))
    }

    /// Upstream has just let the caller read from `repository`.
    pub(crate) fn prove(&self, repository: &Repository, now: Instant) {
        self.rights.proved.insert((self.id.clone(), repository.clone()), now);
    }

    /// Upstream has just refused it.
    pub(crate) fn refuse(&self, repository: &Repository) {
        self.rights.proved.invalidate(&(self.id.clone(), repository.clone()));
        self.was_refused.store(true, Ordering::Release);
    }

    /// Whether upstream has refused it since this was asked last.
    pub(crate) fn take_refusal(&self) -> bool {
        self.was_refused.swap(false, Ordering::AcqRel)
    }
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Asker").field(&self.caller).finish()
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;
    use base64::prelude::BASE64_URL_SAFE_NO_PAD;
    use http::header::{AUTHORIZATION, HeaderMap};

    use super::*;

    #[test]
    fn a_right_is_one_callers_to_one_repository() {
        let rights = rights();
        let (one, other) = (asker(&rights, "Basic b25l"), asker(&rights, "Basic dHdv"));
        let nobody = Asker::new(Caller::NOBODY, &rights);
        let now = Instant::now();
        one.prove(&repository("a/b"), now);
        let later = now + Duration::from_secs(7);
        assert_eq!(one.proved(&repository("a/b"), later), Some(Duration::from_secs(7)));
        assert_eq!(
            asker(&rights, "Basic b25l").proved(&repository("a/b"), now),
            Some(Duration::ZERO)
        );
        assert_eq!(one.proved(&repository("a/c"), now), None);
        assert_eq!(other.proved(&repository("a/b"), now), None);
        assert_eq!(nobody.proved(&repository("a/b"), now), None);
    }

    #[test]
    fn a_refusal_ends_a_right_at_once() {
        let rights = rights();
        let (one, same) = (asker(&rights, "Basic b25l"), asker(&rights, "Basic b25l"));
        let now = Instant::now();
        one.prove(&repository("a/b"), now);
        same.refuse(&repository("a/b"));
        assert_eq!(one.proved(&repository("a/b"), now), None);
        assert_eq!(
            [same.take_refusal(), same.take_refusal(), one.take_refusal()],
            [true, false, false]
        );
    }

    #[test]
    fn a_right_ends_with_the_token_that_it_was_proved_with() {
        let rights = rights();
        let in_an_hour = SystemTime::now() + Duration::from_secs(3600);
        let one = asker(&rights, &token(in_an_hour));
        let now = Instant::now();
        one.prove(&repository("a/b"), now);
        assert!(one.proved(&repository("a/b"), now).is_some());
        assert_eq!(one.proved(&repository("a/b"), now + Duration::from_secs(3601)), None);
        let past = asker(&rights, &token(SystemTime::UNIX_EPOCH));
        let now = Instant::now();
        past.prove(&repository("a/b"), now);
        assert_eq!(past.proved(&repository("a/b"), now), None);
    }

    #[test]
    fn a_credential_is_not_kept_and_known_to_nobody_else() {
        let (here, there) = (rights(), rights());
        let id = |rights: &Arc<Rights>| asker(rights, "Basic b25l").id().clone().0.unwrap();
        assert_eq!(id(&here), id(&here));
        assert_ne!(id(&here), id(&there));
        assert_ne!(id(&here), Digest::sha256_of(b"Basic b25l"));
    }

    fn rights() -> Arc<Rights> {
        let day = Duration::from_secs(24 * 3600);
        Arc::new(Rights::new(Bounds { memory: day, grace: day }))
    }

    fn asker(rights: &Arc<Rights>, shown: &str) -> Asker {
        let headers = HeaderMap::from_iter([(AUTHORIZATION, shown.parse().unwrap())]);
        Asker::new(Caller::of(&headers).unwrap(), rights)
    }

    /// A token that ends then, as a JWT.
    fn token(end: SystemTime) -> String {
        let end = end.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        let claims = format!("{{\"exp\":{end}}}");
        format!("Bearer e30.{}.c2ln", BASE64_URL_SAFE_NO_PAD.encode(claims))
    }

    fn repository(name: &str) -> Repository {
        name.parse().unwrap()
    }
}
