//! A registry on loopback that serves what a test puts into it, counts what it is asked, and fails
//! in the ways it is told to.
//!
//! It writes HTTP/1.1 byte by byte itself, because a proper server library would not let it lie
//! about lengths, stop in the middle of a body or reset a connection.
//!
//! It knows: `/v2/`, manifests, blobs (with one range), tags, referrers, `/token`, and a second
//! listener that plays the storage to which registries redirect blobs. It does not take pushes.

mod answer;
mod fault;
mod login;
mod record;
mod shelf;
mod wire;

use std::net::SocketAddr;
use std::sync::Arc;

use larder_core::Digest;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

pub use fault::{Fault, On};
pub use login::{Accounts, Login};
pub use record::{Listener, Request};

use crate::{Content, Image, patiently};
use fault::Rules;
use login::Tokens;
use record::Log;
use shelf::Shelf;

/// A running registry. Dropping it closes every connection.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    serving: Option<[Serving; 2]>,
}

/// What its connections share.
#[derive(Debug)]
struct Shared {
    registry: SocketAddr,
    storage: SocketAddr,
    shelf: Mutex<Shelf>,
    rules: Mutex<Rules>,
    login: Mutex<Option<Login>>,
    tokens: Mutex<Tokens>,
    log: Log,
}

/// A listener and its connections; all end when this is dropped.
#[derive(Debug)]
struct Serving(JoinHandle<()>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Upstream {
    /// Starts an empty registry on free ports of 127.0.0.1, on the runtime of the caller.
    ///
    /// # Panics
    ///
    /// If loopback has no free port.
    pub async fn start() -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (registry, storage) = (bind(any).await, bind(any).await);
        let address = |listener: &TcpListener| listener.local_addr().expect("it is bound");
        let shared = Arc::new(Shared {
            registry: address(&registry),
            storage: address(&storage),
            shelf: Mutex::default(),
            rules: Mutex::default(),
            login: Mutex::default(),
            tokens: Mutex::default(),
            log: Log::default(),
        });
        let serving = serve_both(&shared, registry, storage);
        Self { shared, serving: Some(serving) }
    }

    /// Closes both listeners and every connection. Connections are refused from then on.
    pub async fn stop(&mut self) {
        for mut serving in self.serving.take().into_iter().flatten() {
            serving.0.abort();
            // The error is that it was aborted.
            let _ = (&mut serving.0).await;
        }
    }

    /// Listens again, on the same addresses, with the same content and rules.
    ///
    /// # Panics
    ///
    /// If it was not stopped, or somebody else has taken its ports meanwhile.
    pub async fn resume(&mut self) {
        assert!(self.serving.is_none(), "the upstream is running");
        let registry = bind(self.shared.registry).await;
        let storage = bind(self.shared.storage).await;
        self.serving = Some(serve_both(&self.shared, registry, storage));
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.host())
    }

    /// `127.0.0.1:PORT`
    pub fn host(&self) -> String {
        self.shared.registry.to_string()
    }

    /// Makes `image`, with everything it refers to, available under `repository` and `tag`.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        let mut shelf = self.shared.shelf.lock();
        shelf.add_image(repository, image);
        shelf.tag(repository, tag, &image.manifest.digest);
    }

    /// Makes `image` available under `repository` by its digest only.
    pub fn push_untagged(&self, repository: &str, image: &Image) {
        self.shared.shelf.lock().add_image(repository, image);
    }

    /// Makes one blob available under `repository`.
    pub fn put_blob(&self, repository: &str, blob: &Content) {
        self.shared.shelf.lock().add_blob(repository, blob);
    }

    /// Takes away a tag; its manifest can still be had by digest.
    pub fn untag(&self, repository: &str, tag: &str) {
        self.shared.shelf.lock().untag(repository, tag);
    }

    /// Takes away a repository with all its content.
    pub fn remove(&self, repository: &str) {
        self.shared.shelf.lock().remove(repository);
    }

    /// From now on, fails requests that `on` describes by `fault`. Several faults may meet in one
    /// request.
    pub fn fault(&self, on: On, fault: Fault) {
        self.shared.rules.lock().add(on, fault);
    }

    /// From now on, nothing fails. What waits at a gate goes on waiting.
    pub fn heal(&self) {
        *self.shared.rules.lock() = Rules::default();
    }

    /// From now on, asks everybody for a credential.
    pub fn require(&self, login: Login) {
        *self.shared.login.lock() = Some(login);
    }

    /// A token for the account of which `shown` is the `Authorization`, as `/token` gives it to clients;
    /// where there are accounts.
    pub fn token(&self, shown: &str, repository: &str) -> String {
        let login = self.shared.login.lock();
        let mut tokens = self.shared.tokens.lock();
        login.as_ref().map_or_else(String::new, |it| it.token(shown, repository, &mut tokens))
    }

    /// From now on, refuses every access token that was given out.
    pub fn revoke_tokens(&self) {
        self.shared.tokens.lock().revoke();
    }

    /// Every request since the start or [`Self::forget_requests`], in the order they came, as far
    /// as they have been answered.
    pub fn requests(&self) -> Vec<Request> {
        self.shared.log.requests()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        self.shared.log.clear();
    }

    /// How many requests there were that `which` chooses.
    pub fn count(&self, which: impl Fn(&Request) -> bool) -> usize {
        self.requests().iter().filter(|request| which(request)).count()
    }

    /// How many GETs there were for the content called `digest`, on either listener, that were
    /// answered with some of it (not with an error or a redirect).
    pub fn n_fetches(&self, digest: &Digest) -> usize {
        self.count(|request| request.is_fetch_of(digest))
    }

    /// How many bytes of the content called `digest` were sent, all requests together.
    pub fn bytes_sent(&self, digest: &Digest) -> u64 {
        let requests = self.requests();
        let fetches = requests.iter().filter(|request| request.is_fetch_of(digest));
        fetches.map(|request| request.n_sent).sum()
    }

    /// Returns once the requests so far are as `is_enough` wants them.
    ///
    /// # Panics
    ///
    /// If that is not so within [`crate::PATIENCE`].
    pub async fn wait_for(&self, what: &str, is_enough: impl Fn(&[Request]) -> bool) {
        let mut changes = self.shared.log.changes();
        let enough = async {
            while !is_enough(&self.requests()) {
                changes.changed().await.expect("the log lives as long as the upstream");
            }
        };
        patiently(what, enough).await;
    }
}

fn serve_both(shared: &Arc<Shared>, registry: TcpListener, storage: TcpListener) -> [Serving; 2] {
    [
        serve(shared.clone(), Listener::Registry, registry),
        serve(shared.clone(), Listener::Storage, storage),
    ]
}

fn serve(shared: Arc<Shared>, which: Listener, listener: TcpListener) -> Serving {
    Serving(tokio::spawn(async move {
        // Owned here, so that aborting this task ends the connections too.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    connections.spawn(wire::serve_connection(shared.clone(), which, stream));
                }
                Some(_) = connections.join_next() => {}
            }
        }
    }))
}

async fn bind(address: SocketAddr) -> TcpListener {
    match TcpListener::bind(address).await {
        Ok(listener) => listener,
        Err(error) => panic!("listening on {address}: {error}"),
    }
}

#[cfg(test)]
mod tests;
