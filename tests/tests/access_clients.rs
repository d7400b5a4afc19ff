//! Real clients with private images, where each caller's own right counts; and the ways between them
//! and the cache.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use larder_core::owner;
use larder_testkit::blackhole::Blackhole;
use larder_testkit::{Accounts, Fault, Gate, Image, Login, On, Upstream};
use larder_tests::larder::Settings;
use larder_tests::scene::{HOST, REPOSITORY, blob_path, manifest_path};
use larder_tests::{
    Agent, Containerd, DockerRegistry, Generation, Larder, Podman, Replicas, Skopeo, http,
};

const USERNAME: &str = "alice";
const PASSWORD: &str = "alices-own-secret";
/// `htpasswd -nbB -C 4 alice alices-own-secret`
const HASH: &str = "$2b$04$PIcYp6pzHIjq4NMfPcA4FutN9Ob3TISjrr8q4I8xykSauvNlbidnG";

const RIGHT: &str = "alice:alices-own-secret";
const WRONG: &str = "alice:wrong";

#[tokio::test]
async fn containerd_shows_a_pods_secret_where_it_is_told_to() {
    for generation in [Generation::V1_6, Generation::V1_7, Generation::V2_1 { fetch_buffer: 0 }] {
        if !generation.suite().has("containerd") {
            continue;
        }
        for (n, way) in ways().await.into_iter().enumerate() {
            let containerd = Containerd::start_as(generation).await;
            let dead = Blackhole::refusing();
            containerd.mirror(HOST, &dead.url(), &way.larder.url(""));
            let name = format!("{HOST}/{REPOSITORY}:1");
            // Somebody has pulled it before.
            if n == 0 {
                containerd.pull_as((USERNAME, PASSWORD), &name).await.unwrap();
                containerd.cri().remove_image(&name).await.unwrap();
            }
            containerd.pull(&name).await.unwrap_err();
            containerd.pull_as((USERNAME, "wrong"), &name).await.unwrap_err();
            containerd.pull_as((USERNAME, PASSWORD), &name).await.unwrap();
            let files = containerd.files(&name).await;
            assert_eq!(files.len(), way.image.files.len());
            containerd.cri().remove_image(&name).await.unwrap();

            assert_ne!(containerd.pull_by_ctr_as(WRONG, &name).await.code, Some(0));
            containerd.pull_by_ctr_as(RIGHT, &name).await.expect("ctr images pull");
        }
    }
}

#[tokio::test]
async fn podman_and_skopeo_log_in_where_an_upstream_has_a_listener_of_its_own() {
    for way in ways().await {
        let reference = format!("{}/{REPOSITORY}:1", way.own_host());
        let registries = format!(
            "unqualified-search-registries = []\n[[registry]]\nlocation = \"{}\"\ninsecure = true\n",
            way.own_host()
        );
        let podman = Podman::with_registries(&registries);
        assert_ne!(podman.pull(&reference).await.code, Some(0));
        assert_ne!(podman.pull_as(WRONG, &reference).await.code, Some(0));
        podman.pull_as(RIGHT, &reference).await.expect("podman pull");
        assert_eq!(podman.files(&reference).await.len(), way.image.files.len());

        let skopeo = Skopeo::default();
        let from = format!("docker://{reference}");
        let to = |name: &str| format!("dir:{}", skopeo.folder(name).display());
        assert_ne!(skopeo.copy(&from, &to("nobody")).await.code, Some(0));
        assert_ne!(skopeo.copy_as(WRONG, &from, &to("wrong")).await.code, Some(0));
        skopeo.copy_as(RIGHT, &from, &to("right")).await.expect("skopeo copy");

        // By the path they find no login; a wrong answer is no image.
        let by_path = format!("docker://{}/{HOST}/{REPOSITORY}:1", way.larder.host);
        assert_ne!(skopeo.copy(&by_path, &to("path")).await.code, Some(0));
    }
}

#[tokio::test]
async fn replicas_hold_each_others_callers_to_the_same_rule() {
    let replicas = Replicas::start_with(2, "access = \"caller\"\n").await;
    replicas.upstream.require(accounts(false));
    let image = replicas.push(1, &[8 << 20]);
    let layer = &image.layers[0];
    let [owner, other] = replicas.order(&layer.digest)[..] else { unreachable!() };
    let gate = Gate::closed();
    let once = On::digest(&layer.digest).get().times(1);
    replicas.upstream.fault(once, Fault::WaitAfter(4 << 20, gate.clone()));
    let get = async |replica: usize, shown: &str| {
        let request = replicas.all[replica].request(&blob_path(&layer.digest));
        request.header("authorization", shown).send().await
    };
    let one = get(other, &basic(RIGHT)).await;
    let two = get(owner, &basic(RIGHT)).await;
    for replica in [owner, other] {
        assert_eq!(get(replica, &basic(WRONG)).await.status, 401);
        let as_a_peer = replicas.all[replica].request(&blob_path(&layer.digest));
        assert_eq!(as_a_peer.header("x-larder-peer", "somebody").send().await.status, 401);
    }
    gate.open();
    for answer in [one, two] {
        answer.expect_body(&layer.bytes).await.unwrap();
    }
    assert_eq!(replicas.upstream.n_fetches(&layer.digest), 1);
}

#[tokio::test]
async fn an_agent_passes_secrets_on_where_nobody_hears_them() {
    let upstream = Upstream::start().await;
    upstream.require(accounts(false));
    let image = Image::random(1, &[100]);
    upstream.push(REPOSITORY, "1", &image);
    let larder = settings(&upstream.url()).start().await;
    let agent = Agent::settings().cache(&larder.url("")).start().await;
    agent.knows(1).await;
    let path = agent.url(&manifest_path("1"));
    let refused = http::get(&path).send().await;
    assert_eq!(
        (refused.status, refused.header("www-authenticate")),
        (401, "Basic realm=\"testkit\"")
    );
    let answer = http::get(&path).header("authorization", &basic(WRONG)).send().await;
    assert_eq!(answer.status, 401);
    let answer = http::get(&path).header("authorization", &basic(RIGHT)).send().await;
    answer.expect_body(&image.manifest.bytes).await.unwrap();
}

#[tokio::test]
async fn the_rest_of_a_private_body_comes_from_another_replica() {
    let mut replicas = Replicas::start_with(2, "access = \"caller\"\n").await;
    replicas.upstream.require(accounts(false));
    // More than sockets hold.
    let image = replicas.push(2, &[192 << 20]);
    let layer = &image.layers[0];
    let settings = replicas.all.iter().fold(Agent::settings(), |it, one| it.cache(&one.url("")));
    let agent = settings.start().await;
    agent.knows(2).await;
    let request = http::get(&agent.url(&blob_path(&layer.digest)));
    let mut response = request.header("authorization", &basic(RIGHT)).send().await;
    assert_eq!(response.status, 200);
    let beginning = response.at_least(8 << 20).await;
    // The agent knows them by where it reaches them.
    let names: Vec<String> = replicas.all.iter().map(|it| it.url("")).collect();
    let order = owner::order(&layer.digest, names.iter().enumerate(), |(_, name)| name);
    let (asked, _) = order[0];
    replicas.all.remove(asked).kill();
    response.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    agent.counts("larder_agent_resumed_total", &[("source", "replica")], |it| it == 1.0).await;
}

/// The program before a private registry, in one of the two ways that registries ask who is there.
struct Way {
    larder: Larder,
    image: Image,
    _upstream: Box<dyn Send>,
}

impl Way {
    /// Where the upstream is the one that is meant.
    fn own_host(&self) -> String {
        self.larder.hosts()[1].clone()
    }
}

/// A real registry with passwords, and one with a token service.
async fn ways() -> [Way; 2] {
    let image = Image::from_seed(1).layers(&[1000, 2 << 20]).unpackable().build();
    let registry = DockerRegistry::start_for(USERNAME, PASSWORD, HASH).await;
    registry.push(REPOSITORY, "1", &image).await;
    let upstream = Upstream::start().await;
    upstream.require(accounts(true));
    upstream.push(REPOSITORY, "1", &image);
    [
        Way {
            larder: settings(&registry.url()).start().await,
            image: image.clone(),
            _upstream: Box::new(registry),
        },
        Way {
            larder: settings(&upstream.url()).start().await,
            image,
            _upstream: Box::new(upstream),
        },
    ]
}

fn settings(url: &str) -> Settings {
    let config = format!("[upstreams.\"{HOST}\"]\nurls = [\"{url}\"]\naccess = \"caller\"\n");
    let own = format!("127.0.0.1:0={HOST}");
    Larder::settings().config(&config).arguments(&["--listen", &own])
}

fn accounts(by_token: bool) -> Login {
    let account = (USERNAME.to_owned(), PASSWORD.to_owned(), vec![REPOSITORY.to_owned()]);
    Login::Each(Accounts { by_token, accounts: vec![account], public: Vec::new() })
}

fn basic(credential: &str) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(credential))
}
