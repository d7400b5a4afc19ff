//! Replicas that share an index in PostgreSQL and a bucket: what one has stored all have, each blob
//! comes from upstream once for all of them, and none of the services is needed for what is at hand.
//! `LARDER_SHARED_ROUNDS` says how often something is killed.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use larder_core::{Digest, owner};
use larder_testkit::random::Numbers;
use larder_testkit::{Content, Fault, Gate, Image, Login, On, Postgres, Rgw, Upstream, patiently};
use larder_tests::larder::Settings;
use larder_tests::process::run;
use larder_tests::scene::{REPOSITORY, blob_path, manifest_path};
use larder_tests::{Larder, Scene, http};
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

/// Held by tests that need the whole machine: where replicas wait for a processor longer than they
/// wait for each other, they take each other for dead, and fetch what they would have shared.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Within which time all replicas serve again after something has come back.
const SERVES_WITHIN: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ninety_clients_over_three_replicas_share_one_fetch_and_a_fourth_one_needs_none() {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::of_shared(3).await;
    let image = cluster.push(1, &[256 * MIB]);
    let layer = &image.layers[0];
    let mut clients = JoinSet::new();
    for n in 0..90 {
        let url = cluster.replicas[n % 3].url(&blob_path(&layer.digest));
        let image = image.clone();
        clients.spawn(async move { expect(&url, &image.layers[0]).await });
    }
    while let Some(finished) = clients.join_next().await {
        finished.unwrap();
    }
    assert_eq!(cluster.upstream.n_fetches(&layer.digest), 1);
    assert_eq!(cluster.upstream.bytes_sent(&layer.digest), layer.bytes.len() as u64);

    cluster.uploaded(1.0).await;
    cluster.upstream.stop().await;
    let fourth = cluster.another().await;
    let response = fourth.get(&blob_path(&layer.digest)).await;
    assert_eq!((response.status, response.outcome()), (200, "hit"));
    response.expect_body(&layer.bytes).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_the_others_notice_nothing_when_the_filling_owner_is_killed() {
    let _alone = ALONE.lock().await;
    let mut cluster = Cluster::of_shared(3).await;
    let image = cluster.push(2, &[256 * MIB]);
    let layer = &image.layers[0];
    let gate = Gate::closed();
    let first = On::digest(&layer.digest).get().times(1);
    cluster.upstream.fault(first, Fault::WaitAfter(128 << 20, gate.clone()));
    let [owner, second, third] = cluster.order(&layer.digest)[..] else { unreachable!() };
    let (half, mut reading) = tokio::sync::mpsc::channel(8);
    let mut clients = JoinSet::new();
    for n in 0..8 {
        let replica = if n % 2 == 0 { second } else { third };
        let url = cluster.replicas[replica].url(&blob_path(&layer.digest));
        let (image, half) = (image.clone(), half.clone());
        clients.spawn(async move {
            let layer = &image.layers[0];
            let mut response = http::get(&url).send().await;
            assert_eq!(response.status, 200);
            let beginning = response.at_least(100 * MIB).await;
            assert!(beginning == layer.bytes[..beginning.len()]);
            half.send(()).await.unwrap();
            response.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
        });
    }
    for _ in 0..8 {
        patiently("all clients read the beginning", reading.recv()).await.unwrap();
    }
    gate.reached(1).await;
    cluster.replicas.remove(owner).kill();
    while let Some(finished) = clients.join_next().await {
        finished.unwrap();
    }
    gate.open();
    let sent = cluster.upstream.bytes_sent(&layer.digest);
    assert!(sent as f64 <= layer.bytes.len() as f64 * 2.1, "{} MiB", sent >> 20);
    // The others stop counting on it.
    let known = async |replica: &Larder| replica.metric("larder_peers", &[]).await as usize;
    for replica in &cluster.replicas {
        patiently("it is forgotten", async { while known(replica).await != 2 {} }).await;
    }
}

#[tokio::test]
async fn what_one_replica_has_pulled_another_one_serves_without_upstream() {
    let mut cluster = Cluster::of_shared(1).await;
    let image = cluster.push(3, &[100, 20 * MIB]);
    cluster.pull(0, &image).await;
    cluster.uploaded(4.0).await;
    let other = cluster.another().await;
    cluster.upstream.stop().await;
    for reference in ["1", &image.digest().to_string()] {
        let response = other.get(&manifest_path(reference)).await;
        assert_eq!((response.status, response.outcome()), (200, "hit"), "{reference}");
        response.expect_body(&image.manifest.bytes).await.unwrap();
    }
    let large = &image.layers[1];
    let head = other.head(&blob_path(&large.digest)).await;
    assert_eq!((head.status, head.header("content-length")), (200, "20971520"));
    let range = other.request(&blob_path(&large.digest)).header("range", "bytes=20000000-20000099");
    let part = range.send().await;
    assert_eq!(part.status, 206);
    part.expect_body(&large.bytes[20_000_000..20_000_100]).await.unwrap();
    for blob in image.blobs() {
        expect(&other.url(&blob_path(&blob.digest)), blob).await;
    }
    let elsewhere = blob_path(&large.digest).replace(REPOSITORY, "team/other");
    assert_ne!(other.get(&elsewhere).await.status, 200, "nobody has confirmed it there");
}

#[tokio::test]
async fn a_tag_that_another_replica_has_asked_about_is_not_asked_about_again() {
    let cluster = Cluster::of_shared(2).await;
    let image = cluster.push(4, &[100]);
    cluster.pull(0, &image).await;
    cluster.uploaded(3.0).await;
    // What was found out about a tag is told on a way of its own.
    let is_told = async || {
        let tags = ["--tuples-only", "--no-align", "--command", "SELECT tag FROM tags"];
        let told = run(Command::new("psql").arg(&cluster.database).args(tags)).await;
        told.expect("psql").trim() == "1"
    };
    patiently("the tag is told", async { while !is_told().await {} }).await;
    let asked = || cluster.upstream.count(|request| request.path.ends_with("/manifests/1"));
    assert_eq!(asked(), 1);
    let response = cluster.replicas[1].get(&manifest_path("1")).await;
    assert_eq!((response.status, response.outcome()), (200, "hit"));
    assert_eq!(asked(), 1);
}

#[tokio::test]
async fn clients_are_sent_to_the_bucket_for_what_is_not_at_hand_and_never_for_a_head() {
    let mut cluster = Cluster::of_shared(1).await;
    let image = cluster.push(5, &[9 * MIB]);
    cluster.pull(0, &image).await;
    cluster.uploaded(3.0).await;
    cluster.bucket_settings = "redirect = true".to_owned();
    let other = cluster.another().await;
    let layer = &image.layers[0];
    let head = other.head(&blob_path(&layer.digest)).await;
    assert_eq!((head.status, head.header("content-length")), (200, "9437184"));
    let sent = other.get(&blob_path(&layer.digest)).await;
    assert_eq!(sent.status, 307);
    expect(sent.header("location"), layer).await;
    let at_hand = cluster.replicas[0].get(&blob_path(&layer.digest)).await;
    assert_eq!(at_hand.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_sent_to_the_bucket_for_what_upstream_would_not_give_them() {
    let mut cluster = Cluster::of_shared(1).await;
    let image = cluster.push(11, &[9 * MIB]);
    cluster.pull(0, &image).await;
    cluster.uploaded(3.0).await;
    let (username, password) = ("alice".to_owned(), "hunter2".to_owned());
    cluster.upstream.require(Login::Basic { username, password });
    cluster.upstream_settings = "access = \"caller\"".to_owned();
    cluster.bucket_settings = "redirect = true".to_owned();
    let other = cluster.another().await;
    let layer = &image.layers[0];
    let url = other.url(&blob_path(&layer.digest));
    // Also once somebody has been sent there.
    for _ in 0..2 {
        for shown in ["", "alice:wrong", "mallory:hunter2"] {
            let asked = http::get(&url);
            let refused = match shown {
                "" => asked.send().await,
                shown => asked.header("authorization", &basic(shown)).send().await,
            };
            assert_eq!((refused.status, refused.header("location")), (401, ""), "{shown}");
        }
        let sent = http::get(&url).header("authorization", &basic("alice:hunter2")).send().await;
        assert_eq!(sent.status, 307);
        expect(sent.header("location"), layer).await;
    }
}

fn basic(shown: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(shown))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_s3_or_postgresql_what_is_at_hand_is_served_and_the_rest_passes_through() {
    let mut cluster = Cluster::start(2).await;
    let old = cluster.push(6, &[100, 2 * MIB]);
    cluster.pull(0, &old).await;
    cluster.uploaded(4.0).await;
    for (seed, service) in [(7, "S3"), (8, "PostgreSQL")] {
        cluster.kill(service).await;
        for blob in old.blobs() {
            let response = cluster.replicas[0].get(&blob_path(&blob.digest)).await;
            assert_eq!((response.status, response.outcome()), (200, "hit"));
            response.expect_body(&blob.bytes).await.unwrap();
        }
        let new = cluster.push(seed, &[100, 2 * MIB]);
        let before = uploads(&cluster).await;
        for replica in [0, 1] {
            cluster.pull(replica, &new).await;
        }
        let ready = cluster.replicas[0].admin("/readyz").await;
        assert_eq!(ready.status, 200);
        let says = async |replica: &Larder, is_it: &dyn Fn(&str) -> bool| loop {
            let ready = replica.admin("/readyz").await.json().await;
            let reason = ready["components"]["shared"]["reason"].as_str().unwrap_or_default();
            if is_it(reason) {
                break;
            }
        };
        let is_away = |reason: &str| reason.contains(service);
        patiently("it says what is away", says(&cluster.replicas[0], &is_away)).await;
        cluster.restart(service).await;
        patiently("it is back", says(&cluster.replicas[0], &str::is_empty)).await;
        cluster.uploaded(before + 4.0).await;
    }
    let other = cluster.another().await;
    cluster.upstream.stop().await;
    for blob in old.blobs() {
        expect(&other.url(&blob_path(&blob.digest)), blob).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whatever_is_killed_under_load_no_byte_is_wrong_and_no_stored_blob_is_lost() {
    let _alone = ALONE.lock().await;
    let n_rounds: u64 = match std::env::var("LARDER_SHARED_ROUNDS") {
        Ok(text) => text.parse().unwrap(),
        Err(_) => 5,
    };
    let mut cluster = Cluster::start(3).await;
    let mut chance = Numbers::new(99);
    let first = chance.below(5);
    let mut received = BTreeMap::new();
    for round in 0..n_rounds {
        let sizes: Vec<usize> = (0..8).map(|_| 1 + chance.below(12 << 20) as usize).collect();
        let image = cluster.push_as(&round.to_string(), 1000 + round, &sizes);
        let load = Load::start(&cluster, &image, round);
        load.underway().await;
        let victim = (first + round) % 5;
        match victim {
            0 => cluster.kill("S3").await,
            1 => cluster.kill("PostgreSQL").await,
            n => {
                let replica = cluster.replicas.remove(n as usize - 2);
                cluster.killed = Some((n as usize - 2, replica.kill()));
            }
        }
        // Some of what is asked now is asked while it is away.
        load.goes_on().await;
        match victim {
            0 => cluster.restart("S3").await,
            1 => cluster.restart("PostgreSQL").await,
            _ => {
                let (n, settings) = cluster.killed.take().unwrap();
                cluster.replicas.insert(n, settings.start().await);
            }
        }
        let since = Instant::now();
        let cold = cluster.push_as("cold", 2000 + round, &[1000, 1000, 1000]);
        for (n, replica) in cluster.replicas.iter().enumerate() {
            let url = replica.url(&blob_path(&cold.layers[n].digest));
            patiently("it serves again", async { while !try_get(&url, &cold.layers[n]).await {} })
                .await;
        }
        assert!(since.elapsed() < SERVES_WITHIN, "round {round}: {:?}", since.elapsed());
        let whole = load.end().await;
        println!("round {round}: killed {victim}, {} blobs received whole", whole.len());
        received.extend(whole);
    }
    assert!(!received.is_empty());
    let n_waiting = async || {
        let mut n = 0.0;
        for replica in &cluster.replicas {
            n += replica.metric("larder_shared_waiting", &[]).await;
        }
        n
    };
    patiently("all is uploaded", async { while n_waiting().await > 0.0 {} }).await;
    let other = cluster.another().await;
    cluster.upstream.stop().await;
    for (digest, content) in &received {
        for replica in cluster.replicas.iter().chain([&other]) {
            expect(&replica.url(&blob_path(digest)), content).await;
        }
    }
}

/// Clients that ask all replicas for the layers of one image, again and again.
struct Load {
    clients: JoinSet<()>,
    whole: Arc<Mutex<BTreeMap<Digest, Content>>>,
    n_begun: tokio::sync::watch::Sender<u64>,
    ends: Arc<AtomicBool>,
}

impl Load {
    fn start(cluster: &Cluster, image: &Arc<Image>, seed: u64) -> Self {
        let (n_begun, _) = tokio::sync::watch::channel(0);
        let load =
            Self { clients: JoinSet::new(), whole: Arc::default(), n_begun, ends: Arc::default() };
        let mut load = load;
        for n in 0..9 {
            // As the others know it: there it is also after a restart.
            let replica = cluster.names[n % 3].clone();
            let (image, whole) = (image.clone(), load.whole.clone());
            let (n_begun, ends) = (load.n_begun.clone(), load.ends.clone());
            let mut chance = Numbers::new(seed * 100 + n as u64);
            load.clients.spawn(async move {
                while !ends.load(Ordering::Relaxed) {
                    let layer = &image.layers[chance.below(image.layers.len() as u64) as usize];
                    n_begun.send_modify(|n| *n += 1);
                    if try_get(&format!("{replica}{}", blob_path(&layer.digest)), layer).await {
                        whole.lock().unwrap().insert(layer.digest.clone(), layer.clone());
                    }
                }
            });
        }
        load
    }

    async fn underway(&self) {
        self.begins(9).await;
    }

    async fn goes_on(&self) {
        self.begins(30).await;
    }

    async fn begins(&self, more: u64) {
        let mut begun = self.n_begun.subscribe();
        let before = *begun.borrow();
        patiently("clients ask", begun.wait_for(|n| *n >= before + more)).await.unwrap();
    }

    /// Waits until all have what they asked for last, and returns what was received whole.
    async fn end(mut self) -> BTreeMap<Digest, Content> {
        self.ends.store(true, Ordering::Relaxed);
        while let Some(finished) = self.clients.join_next().await {
            finished.unwrap();
        }
        std::mem::take(&mut *self.whole.lock().unwrap())
    }
}

/// Whether a blob can be had now. Whatever comes of it has to be right.
async fn try_get(url: &str, content: &Content) -> bool {
    let Ok(mut response) = http::get(url).try_send().await else { return false };
    if response.status != 200 {
        assert!(response.status >= 500, "{url}: {}", response.status);
        return false;
    }
    let mut at = 0;
    while let Some(chunk) = response.chunk().await {
        let Ok(chunk) = chunk else { return false };
        assert!(content.bytes[at..].starts_with(&chunk), "{url} at {at}");
        at += chunk.len();
    }
    assert_eq!(at, content.bytes.len(), "{url} ended cleanly");
    true
}

/// Services, an upstream, and replicas between them.
struct Cluster {
    upstream: Upstream,
    replicas: Vec<Larder>,
    /// What they call each other, in the same order.
    names: Vec<String>,
    killed: Option<(usize, Settings)>,
    services: Services,
    bucket: String,
    database: String,
    /// More of `[s3]`.
    bucket_settings: String,
    /// More of the upstream's table.
    upstream_settings: String,
}

enum Services {
    /// Those of all tests.
    Shared(Arc<Rgw>, Arc<Postgres>),
    /// Those that may be killed.
    Own(Box<(Rgw, Postgres)>),
}

impl Services {
    fn rgw(&self) -> &Rgw {
        match self {
            Self::Shared(rgw, _) => rgw,
            Self::Own(own) => &own.0,
        }
    }

    fn postgres(&self) -> &Postgres {
        match self {
            Self::Shared(_, postgres) => postgres,
            Self::Own(own) => &own.1,
        }
    }
}

impl Cluster {
    /// `n` replicas before services that other tests use, too.
    async fn of_shared(n: usize) -> Self {
        let (rgw, postgres) = tokio::join!(Rgw::shared(), Postgres::shared());
        Self::before(Services::Shared(rgw, postgres), n).await
    }

    /// `n` replicas before services that can be killed.
    async fn start(n: usize) -> Self {
        let (rgw, postgres) = tokio::join!(Rgw::start(), Postgres::start());
        Self::before(Services::Own(Box::new((rgw, postgres))), n).await
    }

    async fn before(services: Services, n: usize) -> Self {
        let (bucket, database) =
            (services.rgw().bucket().await, services.postgres().database().await);
        let upstream = Upstream::start().await;
        let mut cluster = Self {
            upstream,
            replicas: Vec::new(),
            names: Vec::new(),
            killed: None,
            services,
            bucket,
            database,
            bucket_settings: String::new(),
            upstream_settings: String::new(),
        };
        for _ in 0..n {
            let address = free_address();
            let name = format!("http://{address}");
            let arguments = ["--listen", &address, "--advertise", &name];
            cluster.replicas.push(cluster.settings().arguments(&arguments).start().await);
            cluster.names.push(name);
        }
        for replica in &cluster.replicas {
            let count = async |state| replica.metric("larder_peers", &[("state", state)]).await;
            let all_answer = async {
                while (count("here").await as usize, count("up").await as usize) != (1, n - 1) {}
            };
            patiently("the replicas find each other", all_answer).await;
        }
        cluster
    }

    fn settings(&self) -> Settings {
        let (id, secret) = self.services.rgw().keys();
        let (endpoint, bucket) = (self.services.rgw().endpoint(), &self.bucket);
        let shared = format!("storage = \"s3\"\nindex = \"{}\"", self.database);
        let s3 = format!("[s3]\nendpoint = \"{endpoint}\"\nbucket = \"{bucket}\"\n");
        Scene::settings(&self.upstream, &format!("{}\n", self.upstream_settings))
            .config_first(&shared)
            .config(&format!("{s3}{}", self.bucket_settings))
            .variable("AWS_ACCESS_KEY_ID", id)
            .variable("AWS_SECRET_ACCESS_KEY", secret)
    }

    /// One more replica, with nothing stored.
    async fn another(&self) -> Larder {
        self.settings().start().await
    }

    fn push(&self, seed: u64, sizes: &[usize]) -> Arc<Image> {
        self.push_as("1", seed, sizes)
    }

    fn push_as(&self, tag: &str, seed: u64, sizes: &[usize]) -> Arc<Image> {
        let image = Arc::new(Image::random(seed, sizes));
        self.upstream.push(REPOSITORY, tag, &image);
        image
    }

    /// Has a replica fetch an image by its tag.
    async fn pull(&self, replica: usize, image: &Image) {
        let replica = &self.replicas[replica];
        let manifest = replica.get(&manifest_path(&image.digest().to_string())).await;
        assert_eq!(manifest.status, 200);
        manifest.bytes().await.unwrap();
        assert_eq!(replica.get(&manifest_path("1")).await.status, 200);
        for blob in image.blobs() {
            expect(&replica.url(&blob_path(&blob.digest)), blob).await;
        }
    }

    /// Returns once so many blobs have been uploaded, and nothing waits.
    async fn uploaded(&self, n: f64) {
        patiently("it is uploaded", async { while uploads(self).await < n {} }).await;
    }

    /// The replicas in the order in which they are to have a blob, its owner first.
    fn order(&self, digest: &Digest) -> Vec<usize> {
        let order = owner::order(digest, self.names.iter().enumerate(), |(_, name)| name);
        order.into_iter().map(|(n, _)| n).collect()
    }

    async fn kill(&mut self, service: &str) {
        let Services::Own(own) = &mut self.services else { unreachable!("others need it") };
        match service {
            "S3" => own.0.kill(),
            _ => own.1.kill().await,
        }
    }

    async fn restart(&mut self, service: &str) {
        let Services::Own(own) = &mut self.services else { unreachable!("others need it") };
        match service {
            "S3" => own.0.restart().await,
            _ => own.1.restart().await,
        }
    }
}

async fn uploads(cluster: &Cluster) -> f64 {
    let mut n = 0.0;
    for replica in &cluster.replicas {
        n += replica.metric("larder_shared_uploads_total", &[]).await;
    }
    n
}

/// An address of this machine that nobody else has: one per replica, so that no port is taken between
/// finding it free and listening on it.
fn free_address() -> String {
    static N_TAKEN: AtomicU8 = AtomicU8::new(1);
    let [_, _, high, low] = std::process::id().to_be_bytes();
    let address = Ipv4Addr::new(127, high, low, N_TAKEN.fetch_add(1, Ordering::Relaxed));
    TcpListener::bind((address, 0)).unwrap().local_addr().unwrap().to_string()
}

async fn expect(url: &str, content: &Content) {
    let response = http::get(url).send().await;
    assert_eq!(response.status, 200, "{url}");
    response.expect_body(&content.bytes).await.unwrap();
}
