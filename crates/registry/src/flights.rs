//! Work that many wait for and none of them owns.
//!
//! The first who asks starts a task; whoever asks for the same meanwhile waits for the same result.
//! The task goes on when all of them have left, so an impatient client never wastes what upstream
//! has been asked already.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Tasks under way, by what they find out.
#[derive(Debug)]
pub(crate) struct Flights<K, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    tasks: TaskTracker,
}

/// A result that is awaited.
#[derive(Debug)]
pub(crate) struct Waiting<V>(watch::Receiver<Option<V>>);

/// The task ended without a result: it panicked, or the process is ending.
#[derive(Debug)]
pub(crate) struct Lost;

impl<K, V> Flights<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { under_way: Arc::default(), tasks }
    }

    /// Waits for `key`; starts `work` unless somebody has.
    pub(crate) fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> Waiting<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut under_way = self.under_way.lock();
        let vacant = match under_way.entry(key.clone()) {
            Entry::Occupied(entry) => return Waiting(entry.get().clone()),
            Entry::Vacant(vacant) => vacant,
        };
        let (done, waiting) = watch::channel(None);
        vacant.insert(waiting.clone());
        let landing = Landing { under_way: Arc::clone(&self.under_way), key };
        let work = work();
        let task = async move {
            let value = work.await;
            // Out of the map before the result is out: whoever comes later starts anew.
            drop(landing);
            done.send_replace(Some(value));
        };
        self.tasks.spawn(task.in_current_span());
        Waiting(waiting)
    }
}

impl<V: Clone> Waiting<V> {
    /// The result. Can be dropped and asked for again.
    pub(crate) async fn result(&mut self) -> Result<V, Lost> {
        let value = self.0.wait_for(Option::is_some).await.map_err(|_| Lost)?;
        value.clone().ok_or(Lost)
    }
}

/// Takes a task off the map also when it panics.
struct Landing<K: Eq + Hash, V> {
    under_way: Arc<Mutex<HashMap<K, watch::Receiver<Option<V>>>>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.under_way.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_for_the_same_share_one_task() {
        let flights = Flights::new(TaskTracker::new());
        let (go, wait) = oneshot::channel::<u32>();
        let mut first = flights.join("a", || async { wait.await.unwrap() });
        let mut second = flights.join("a", || async { unreachable!("the first one does it") });
        go.send(7).unwrap();
        assert_eq!((first.result().await.unwrap(), second.result().await.unwrap()), (7, 7));
        let mut third = flights.join("a", || async { 8 });
        assert_eq!(third.result().await.unwrap(), 8);
    }

    #[tokio::test]
    async fn a_task_goes_on_when_nobody_waits() {
        let flights = Flights::new(TaskTracker::new());
        let ((go, wait), (done, end)) = (oneshot::channel::<()>(), oneshot::channel());
        drop(flights.join(1, || async {
            wait.await.unwrap();
            done.send("went on").unwrap();
        }));
        go.send(()).unwrap();
        assert_eq!(end.await.unwrap(), "went on");
    }

    #[tokio::test]
    async fn a_task_that_panics_does_not_keep_its_place() {
        let flights: Flights<u8, u8> = Flights::new(TaskTracker::new());
        let mut lost = flights.join(1, || async { panic!("as the test wants") });
        assert!(lost.result().await.is_err());
        assert_eq!(flights.join(1, || async { 2 }).result().await.unwrap(), 2);
    }
}
