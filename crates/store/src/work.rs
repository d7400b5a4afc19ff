//! Work that blocks, or that must come to its end.

use std::collections::VecDeque;
use std::fmt;
use std::future::pending;
use std::ops::Deref;
use std::panic::resume_unwind;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

/// Runs `work` on a thread that may block.
///
/// If the runtime ends before the work has begun, this never returns: whoever waits here ends with
/// the runtime.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    outcome(tokio::task::spawn_blocking(work)).await
}

/// Runs `work` to its end, even if the caller stops waiting for it in the midst: what is on disk,
/// what is in the index and what is counted must change together.
///
/// `tasks` waits for it. As for the end of the runtime, see [`blocking`].
pub(crate) async fn finish<T: Send + 'static>(
    tasks: &TaskTracker,
    work: impl Future<Output = T> + Send + 'static,
) -> T {
    outcome(tasks.spawn(work.in_current_span())).await
}

async fn outcome<T>(task: JoinHandle<T>) -> T {
    match task.await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => resume_unwind(panic),
            // Only the end of the runtime cancels it.
            Err(_) => pending().await,
        },
    }
}

/// Something whose end may block: a file, whose bytes are freed with its last handle if it has no
/// name any more, or that name. Freeing gigabytes takes a file system tens of milliseconds, in
/// which a thread of the runtime would serve nobody; so it ends on a thread that may block.
#[derive(Debug)]
pub(crate) struct Slow<T: Send + 'static> {
    /// Taken when it is dropped or given away.
    value: Option<T>,
    ending: Ending,
}

/// Where what is slow comes to its end. Cheap to clone.
///
/// Files that are no longer kept open go by the hundred; each on a thread of its own would cost the
/// memory of hundreds of threads.
#[derive(Clone, Default)]
pub(crate) struct Ending {
    tasks: TaskTracker,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<Box<dyn Send>>,
    n_threads: usize,
}

/// The most threads that wait for the disk to be done with something: one that hangs keeps not all
/// others from ending.
const MAX_THREADS: usize = 4;

impl Ending {
    /// `tasks` waits for each end once that has begun.
    pub(crate) fn new(tasks: TaskTracker) -> Self {
        Self { tasks, queue: Arc::default() }
    }

    fn end(&self, value: Box<dyn Send>) {
        let mut queue = self.queue.lock();
        queue.waiting.push_back(value);
        if queue.n_threads < MAX_THREADS {
            queue.n_threads += 1;
            drop(queue);
            // Also at the end of the runtime, when this is dropped without having been run.
            let rest = Rest(Arc::clone(&self.queue));
            self.tasks.spawn_blocking(move || drop(rest));
        }
    }
}

impl fmt::Debug for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ending").finish_non_exhaustive()
    }
}

/// Ends what waits, where it is dropped.
struct Rest(Arc<Mutex<Queue>>);

impl Rest {
    fn next(&self) -> Option<Box<dyn Send>> {
        let mut queue = self.0.lock();
        let next = queue.waiting.pop_front();
        if next.is_none() {
            queue.n_threads -= 1;
        }
        next
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        while let Some(value) = self.next() {
            drop(value);
        }
    }
}

impl<T: Send + 'static> Slow<T> {
    /// Wraps `value`.
    pub(crate) fn new(value: T, ending: &Ending) -> Self {
        Self { value: Some(value), ending: ending.clone() }
    }

    pub(crate) fn into_inner(mut self) -> T {
        self.value.take().expect("only this and `drop` take it, and both end the wrapper")
    }
}

impl<T: Send + 'static> Deref for Slow<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.value.as_ref().expect("only what ends the wrapper takes it")
    }
}

impl<T: Send + 'static> Drop for Slow<T> {
    fn drop(&mut self) {
        let Some(value) = self.value.take() else { return };
        // Outside of a runtime nobody is kept waiting.
        if Handle::try_current().is_ok() {
            self.ending.end(Box::new(value));
        }
    }
}

/// What an error says, with what its causes add to that.
pub(crate) fn with_causes(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::sync::mpsc;
    use std::task::{Context, Waker};
    use std::thread::ThreadId;

    use super::*;

    /// Tells which thread it was dropped on.
    struct Witness(mpsc::Sender<ThreadId>);

    impl Drop for Witness {
        fn drop(&mut self) {
            self.0.send(std::thread::current().id()).unwrap();
        }
    }

    /// Can be dropped only while nobody holds the gate.
    struct Held {
        gate: Arc<Mutex<()>>,
        _witness: Witness,
    }

    impl Drop for Held {
        fn drop(&mut self) {
            drop(self.gate.lock());
        }
    }

    #[tokio::test]
    async fn something_slow_ends_on_another_thread_and_its_tasks_wait_for_that() {
        let (tasks, (ended, end)) = (TaskTracker::new(), mpsc::channel());
        drop(Slow::new(Witness(ended), &Ending::new(tasks.clone())));
        tasks.close();
        tasks.wait().await;
        assert_ne!(end.try_recv().unwrap(), std::thread::current().id());
    }

    #[tokio::test]
    async fn many_things_end_on_a_few_threads() {
        let (tasks, (ended, end)) = (TaskTracker::new(), mpsc::channel());
        let ending = Ending::new(tasks.clone());
        // None ends before all wait: a thread that has nothing to do gives its place to another one.
        let gate = Arc::new(Mutex::new(()));
        let closed = gate.lock();
        for _ in 0..100 {
            let held = Held { gate: Arc::clone(&gate), _witness: Witness(ended.clone()) };
            drop(Slow::new(held, &ending));
        }
        drop(closed);
        tasks.close();
        tasks.wait().await;
        let threads: Vec<ThreadId> = end.try_iter().collect();
        assert_eq!(threads.len(), 100);
        assert!(threads.into_iter().collect::<HashSet<_>>().len() <= MAX_THREADS);
    }

    #[test]
    fn something_slow_ends_at_once_where_there_is_no_runtime() {
        let (ended, end) = mpsc::channel();
        drop(Slow::new(Witness(ended), &Ending::default()));
        assert_eq!(end.try_recv().unwrap(), std::thread::current().id());
    }

    #[test]
    fn something_slow_ends_also_when_the_runtime_has_ended() {
        let (ended, end) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let slow = Slow::new(Witness(ended), &Ending::default());
        runtime.spawn(async move {
            let _slow = slow;
            pending::<()>().await;
        });
        drop(runtime);
        assert!(end.try_recv().is_ok());
    }

    #[tokio::test]
    async fn work_goes_on_when_nobody_waits_for_it() {
        let (tasks, (ended, end)) = (TaskTracker::new(), mpsc::channel());
        let work = finish(&tasks, async move {
            tokio::task::yield_now().await;
            drop(Witness(ended));
        });
        tokio::select! {
            biased;
            () = work => unreachable!("it yields first"),
            () = std::future::ready(()) => {}
        }
        tasks.close();
        tasks.wait().await;
        assert!(end.try_recv().is_ok());
    }

    #[test]
    fn whoever_waits_when_the_runtime_ends_is_not_woken_to_panic() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let handle = runtime.handle().clone();
        runtime.shutdown_background();
        let _entered = handle.enter();
        let waiting = std::pin::pin!(blocking(|| ()));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.poll(&mut context).is_pending());
    }

    #[tokio::test]
    #[should_panic(expected = "on purpose")]
    async fn a_panic_in_blocking_work_is_a_panic_of_the_caller() {
        blocking(|| panic!("on purpose")).await;
    }
}
