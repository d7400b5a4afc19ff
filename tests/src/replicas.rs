//! Replicas of the program with disks of their own, which share what they store.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use larder_core::{Digest, owner};
use larder_testkit::{Content, Image, Upstream, patiently};

use crate::larder::Larder;
use crate::scene::{REPOSITORY, Scene};

/// Some replicas before one upstream, which know each other.
#[derive(Debug)]
pub struct Replicas {
    /// What they ask.
    pub upstream: Upstream,
    /// The replicas.
    pub all: Vec<Larder>,
    /// What they call each other, in the same order.
    names: Vec<String>,
}

impl Replicas {
    /// Starts `n`, and waits until they have found each other.
    pub async fn start(n: usize) -> Self {
        Self::start_with(n, "").await
    }

    /// The same, with these settings for the upstream (TOML).
    pub async fn start_with(n: usize, config: &str) -> Self {
        let upstream = Upstream::start().await;
        let addresses: Vec<String> = (0..n).map(|_| free_address()).collect();
        let names: Vec<String> = addresses.iter().map(|it| format!("http://{it}")).collect();
        let mut all = Vec::new();
        for address in &addresses {
            let peers = format!("peers = {names:?}");
            let settings = Scene::settings(&upstream, config).config_first(&peers);
            all.push(settings.arguments(&["--listen", address]).start().await);
        }
        for replica in &all {
            acquainted(replica, n - 1).await;
        }
        Self { upstream, all, names }
    }

    /// An image with layers of these sizes, under [`REPOSITORY`] and tag `1`.
    pub fn push(&self, seed: u64, sizes: &[usize]) -> Arc<Image> {
        let image = Arc::new(Image::random(seed, sizes));
        self.upstream.push(REPOSITORY, "1", &image);
        image
    }

    /// The replicas in the order in which they are to have a blob, its owner first.
    pub fn order(&self, digest: &Digest) -> Vec<usize> {
        let order = owner::order(digest, self.names.iter().enumerate(), |(_, name)| name);
        order.into_iter().map(|(n, _)| n).collect()
    }

    /// The layers that a replica owns.
    pub fn owned_by(&self, replica: usize, image: &Image) -> Vec<Content> {
        let is_its = |layer: &&Content| self.order(&layer.digest)[0] == replica;
        image.layers.iter().filter(is_its).cloned().collect()
    }
}

/// Returns once a replica knows which one it is, and has heard of `n` others.
///
/// # Panics
///
/// After [`larder_testkit::PATIENCE`].
pub async fn acquainted(replica: &Larder, n: usize) {
    let count = async |state| replica.metric("larder_peers", &[("state", state)]).await as usize;
    let all_answer = async { while (count("here").await, count("up").await) != (1, n) {} };
    patiently("the replicas find each other", all_answer).await;
}

/// An address of this machine that nobody else has: one per replica, so that no port is taken between
/// finding it free and listening on it.
///
/// # Panics
///
/// If it has none.
pub fn free_address() -> String {
    static N_TAKEN: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, high, low, N_TAKEN.fetch_add(1, Ordering::Relaxed));
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().to_string()
}
