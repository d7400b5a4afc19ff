//! Who may change what is stored under a name.
//!
//! A file and its row cannot change in one step. Whoever changes the two (stores a blob, evicts it,
//! forgets it, keeps a beginning) holds the name's lock meanwhile; lookups take no lock, and
//! whoever of them finds a row without its file looks again with the lock held.

use std::collections::BTreeSet;
use std::hash::{BuildHasher as _, RandomState};

use larder_core::Digest;
use tokio::sync::{Mutex, MutexGuard};

/// How many locks there are. Names share them: who needs several takes them all at once, by
/// [`Names::lock_all`].
const LOCKS: usize = 256;

/// The locks of all names.
pub(crate) struct Names {
    locks: [Mutex<()>; LOCKS],
    choice: RandomState,
}

impl Names {
    /// Waits until nobody else changes what is stored under `digest`.
    pub(crate) async fn lock(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        self.locks[self.place(digest)].lock().await
    }

    /// The same for several. They are taken in one order by everybody, so that nobody waits in a
    /// circle.
    pub(crate) async fn lock_all(&self, digests: &[Digest]) -> Vec<MutexGuard<'_, ()>> {
        let places: BTreeSet<_> = digests.iter().map(|digest| self.place(digest)).collect();
        let mut locks = Vec::with_capacity(places.len());
        for place in places {
            locks.push(self.locks[place].lock().await);
        }
        locks
    }

    fn place(&self, digest: &Digest) -> usize {
        (self.choice.hash_one(digest) % LOCKS as u64) as usize
    }
}

impl Default for Names {
    fn default() -> Self {
        Self { locks: std::array::from_fn(|_| Mutex::default()), choice: RandomState::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::Poll;

    use bytes::Bytes;
    use larder_core::name::Named;

    use super::*;
    use crate::index::turns::FIRST;
    use crate::{Settings, Staging, Store};

    #[tokio::test]
    async fn nothing_changes_under_a_name_that_somebody_holds() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::new(directory.path().to_owned());
        let store = Store::open(settings).await.unwrap();
        let named = Named { host: "a.io".parse().unwrap(), repository: "b".parse().unwrap() };
        let digest = Digest::sha256_of(b"ab");

        let half = staged(&store, b"a").await;
        waits(&store, &digest, async { half.park().await.unwrap() }).await;
        waits(&store, &digest, async {
            assert_eq!(store.drop_beginning(&digest).await.unwrap(), store.room(1))
        })
        .await;
        let whole = staged(&store, b"ab").await;
        waits(&store, &digest, async { drop(whole.commit(None, &named).await.unwrap()) }).await;
        let content =
            store.index().unused_since(std::time::SystemTime::now() + DAY, FIRST, 9).await;
        let victims = [(content.unwrap()[0].content, None)];
        let evict = async {
            assert!(
                store.remove(&victims, std::slice::from_ref(&digest), false).await.unwrap() > 0
            );
        };
        waits(&store, &digest, evict).await;
    }

    /// Fails unless `act` changes nothing while the name is held, and something afterwards.
    async fn waits(store: &Store, digest: &Digest, act: impl Future<Output = ()>) {
        let state = async || {
            let row = store.index().blob(digest).await.unwrap().is_some();
            let beginning = store.index().is_parked(digest).await.unwrap();
            let (blob, parked) = (store.layout().blob(digest), store.layout().parked(digest));
            (row, beginning, blob.exists(), parked.exists())
        };
        let before = state().await;
        let mut act = pin!(act);
        let held = store.lock(digest).await;
        for _ in 0..50 {
            let polled = std::future::poll_fn(|context| Poll::Ready(act.as_mut().poll(context)));
            assert!(polled.await.is_pending());
            assert_eq!(state().await, before);
        }
        drop(held);
        act.await;
        assert_ne!(state().await, before);
    }

    async fn staged(store: &Store, bytes: &'static [u8]) -> Staging {
        let staging = store.stage(&Digest::sha256_of(b"ab")).await.unwrap();
        staging.write(vec![Bytes::from_static(bytes)]).await.unwrap()
    }

    const DAY: std::time::Duration = std::time::Duration::from_secs(86_400);
}
