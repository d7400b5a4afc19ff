//! What was asked, and what was sent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering};

use larder_core::Digest;
use parking_lot::Mutex;
use tokio::sync::watch;

/// Which of the two listeners was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listener {
    /// The registry itself.
    Registry,
    /// The storage to which [`super::Fault::Redirect`] sends.
    Storage,
}

/// One request, and its answer so far.
#[derive(Clone, Debug)]
pub struct Request {
    /// Who was asked.
    pub listener: Listener,
    /// `GET`, `HEAD`, …
    pub method: String,
    /// Without the query.
    pub path: String,
    /// Without the question mark.
    pub query: Option<String>,
    /// Names in lower case, in the order they came, repeated ones repeated.
    pub headers: Vec<(String, String)>,
    /// The status that was answered; 0 as long as nothing was.
    pub status: u16,
    /// Bytes of the answer's body that were handed to the kernel.
    pub n_sent: u64,
    /// Whether the answer was sent whole: as intended, that is, without a fault that stopped it.
    pub is_whole: bool,
}

impl Request {
    /// The first value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(it, _)| it == name).map(|(_, value)| value.as_str())
    }

    /// Whether this is a GET or HEAD of a manifest.
    pub fn is_for_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }

    /// Whether this is a GET of the content called `digest` that was answered with some of it.
    pub fn is_fetch_of(&self, digest: &Digest) -> bool {
        self.method == "GET"
            && self.path.ends_with(&digest.to_string())
            && matches!(self.status, 200 | 206)
    }
}

/// A request as its connection fills it in.
#[derive(Debug)]
pub(super) struct Entry {
    asked: Request,
    status: AtomicU16,
    n_sent: AtomicU64,
    is_whole: AtomicBool,
    changes: watch::Sender<u64>,
}

impl Entry {
    pub(super) fn answering(&self, status: u16) {
        self.status.store(status, Ordering::Relaxed);
        self.tell();
    }

    pub(super) fn sent(&self, n: usize) {
        self.n_sent.fetch_add(n as u64, Ordering::Relaxed);
        self.tell();
    }

    pub(super) fn finished(&self) {
        self.is_whole.store(true, Ordering::Relaxed);
        self.tell();
    }

    fn tell(&self) {
        self.changes.send_modify(|n| *n += 1);
    }

    fn snapshot(&self) -> Request {
        Request {
            status: self.status.load(Ordering::Relaxed),
            n_sent: self.n_sent.load(Ordering::Relaxed),
            is_whole: self.is_whole.load(Ordering::Relaxed),
            ..self.asked.clone()
        }
    }
}

/// All requests.
#[derive(Debug, Default)]
pub(super) struct Log {
    entries: Mutex<Vec<Arc<Entry>>>,
    changes: watch::Sender<u64>,
}

impl Log {
    pub(super) fn begin(&self, asked: Request) -> Arc<Entry> {
        let entry = Arc::new(Entry {
            asked,
            status: AtomicU16::new(0),
            n_sent: AtomicU64::new(0),
            is_whole: AtomicBool::new(false),
            changes: self.changes.clone(),
        });
        self.entries.lock().push(entry.clone());
        entry.tell();
        entry
    }

    pub(super) fn requests(&self) -> Vec<Request> {
        self.entries.lock().iter().map(|entry| entry.snapshot()).collect()
    }

    pub(super) fn clear(&self) {
        self.entries.lock().clear();
    }

    /// Tells of every new request and of every step of an answer.
    pub(super) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}
