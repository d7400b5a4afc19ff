//! The agent of a node before a cache that is well, or that is lost in the middle.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::time::Duration;

use larder_core::Digest;
use larder_testkit::upstream::Request;
use larder_testkit::{Fault, Image, On, Upstream, patiently};
use larder_tests::agent::Settings;
use larder_tests::scene::{HOST, REPOSITORY, blob_path, manifest_path};
use larder_tests::scratch::Scratch;
use larder_tests::{Agent, Larder, Replicas, Scene, http};
use rustix::process::{Signal, kill_process};
use tokio::net::UnixDatagram;
use tokio::task::JoinSet;

const MIB: usize = 1 << 20;

/// More than what can be on its way: the windows of two connections, 32 MiB each.
const LARGE: usize = 192 * MIB;

#[tokio::test]
async fn a_request_comes_to_the_cache_as_it_is_and_its_answer_back() {
    let scene = Scene::new().await;
    let image = scene.push(1, &[3 * MIB, 100]);
    let agent = Agent::settings().cache(&scene.larder.url("")).start().await;
    agent.knows(1).await;
    let (large, small) = (&image.layers[0], &image.layers[1]);

    let manifest = agent.get(&manifest_path("1")).await;
    assert_eq!(manifest.header("docker-content-digest"), image.manifest.digest.to_string());
    assert_eq!(manifest.header("content-type"), image.manifest.media_type);
    assert_eq!(manifest.bytes().await.unwrap(), image.manifest.bytes);
    for blob in [large, small] {
        let answer = agent.get(&blob_path(&blob.digest)).await;
        assert_eq!((answer.status, answer.outcome()), (200, "miss"));
        assert_eq!(answer.header("content-length"), blob.bytes.len().to_string());
        answer.expect_body(&blob.bytes).await.unwrap();
    }
    let by_ns = format!("/v2/{REPOSITORY}/blobs/{}?ns={HOST}", large.digest);
    let part = http::get(&agent.url(&by_ns)).header("range", "bytes=1000000-2999999").send().await;
    assert_eq!((part.status, part.outcome()), (206, "hit"));
    assert_eq!(part.header("content-range"), format!("bytes 1000000-2999999/{}", 3 * MIB));
    part.expect_body(&large.bytes[1_000_000..3_000_000]).await.unwrap();
    let parts = http::get(&agent.url(&by_ns)).header("range", "bytes=0-1,1048576-2097152").send();
    let parts = parts.await;
    assert!(parts.header("content-type").starts_with("multipart/byteranges"), "{}", parts.status);
    assert!(parts.bytes().await.unwrap().len() > MIB);

    let head = http::head(&agent.url(&by_ns)).send().await;
    assert_eq!((head.status, head.header("content-length")), (200, "3145728"));
    let etag = format!("\"{}\"", image.manifest.digest);
    let path = agent.url(&manifest_path(&image.manifest.digest.to_string()));
    assert_eq!(http::get(&path).header("if-none-match", &etag).send().await.status, 304);
    let unknown = agent.get(&blob_path(&Digest::sha256_of(b"unknown"))).await;
    assert_eq!(unknown.status, 404);
    assert_eq!(agent.get("/v2/").await.status, 200);
    assert_eq!(agent.get("/metrics").await.status, 404);
    let upload = format!("/v2/{HOST}/{REPOSITORY}/blobs/uploads/");
    assert_eq!(http::request("POST", &agent.url(&upload)).send().await.status, 405);
    agent.counts("larder_agent_bytes_total", &[], |it| it > 5.0 * MIB as f64).await;
    assert_eq!(agent.metric("larder_agent_fallbacks_total", &[]).await, 0.0);
    assert_eq!(agent.admin("/readyz").await.status, 200);
}

#[tokio::test]
async fn what_does_not_greet_as_a_replica_is_asked_for_nothing() {
    let upstream = Upstream::start().await;
    upstream.push(REPOSITORY, "1", &Image::random(2, &[10]));
    let agent = Agent::settings().cache(&upstream.url()).start().await;
    let path = agent.url(&manifest_path("1"));
    let answer = http::get(&path).header("authorization", "Basic aHVudGVyMg==").send().await;
    assert_eq!(answer.status, 503);
    let greeting = |request: &Request| request.path == "/v2/";
    assert!(upstream.requests().iter().all(greeting), "{:?}", upstream.requests());
    let greeted = |requests: &[Request]| !requests.is_empty();
    upstream.wait_for("it is greeted", greeted).await;
}

#[tokio::test]
async fn twenty_nodes_that_want_one_cold_blob_of_a_slow_upstream_fetch_it_once() {
    let replicas = Replicas::start(2).await;
    let image = replicas.push(3, &[8 * MIB]);
    let layer = &image.layers[0];
    // Longer than any limit of the agents' for a cache that is dead.
    replicas.upstream.fault(On::digest(&layer.digest), Fault::Think(Duration::from_secs(2)));
    // They know where it is: whoever goes there is seen.
    let upstream = format!("{HOST}={}", replicas.upstream.url());
    let mut agents = Vec::new();
    for _ in 0..20 {
        let settings = settings_of(&replicas).arguments(&["--upstream", &upstream]);
        agents.push(settings.start().await);
    }
    for agent in &agents {
        agent.knows(2).await;
    }
    let mut pulls = JoinSet::new();
    for agent in &agents {
        let (url, image) = (agent.url(&blob_path(&layer.digest)), image.clone());
        pulls.spawn(async move {
            let response = http::get(&url).send().await;
            assert_eq!(response.status, 200);
            response.expect_body(&image.layers[0].bytes).await.unwrap();
        });
    }
    while let Some(pulled) = pulls.join_next().await {
        pulled.unwrap();
    }
    assert_eq!(replicas.upstream.n_fetches(&layer.digest), 1);
    assert_eq!(replicas.upstream.bytes_sent(&layer.digest), layer.bytes.len() as u64);
    let length = layer.bytes.len() as f64;
    for agent in &agents {
        // All of these are counted by the same beat of its worker.
        agent.counts("larder_agent_bytes_total", &[], |it| it == length).await;
        for name in ["fallbacks", "resumed", "cut"] {
            let name = format!("larder_agent_{name}_total");
            assert_eq!(agent.metric(&name, &[]).await, 0.0, "{name}");
        }
    }
}

#[tokio::test]
async fn a_body_goes_on_from_another_replica_when_its_own_is_killed() {
    let mut replicas = Replicas::start(2).await;
    let image = replicas.push(4, &[LARGE]);
    let layer = &image.layers[0];
    for replica in &replicas.all {
        let stored = replica.get(&blob_path(&layer.digest)).await;
        stored.expect_body(&layer.bytes).await.unwrap();
    }
    let fetched = replicas.upstream.bytes_sent(&layer.digest);
    let agent = agent_of(&replicas).await;
    agent.knows(2).await;
    let before = sent(&replicas).await;
    let mut response = agent.get(&blob_path(&layer.digest)).await;
    assert_eq!(response.status, 200);
    let beginning = response.at_least(8 * MIB).await;
    let sender = sender_of(&replicas, &before).await;
    replicas.all.remove(sender).kill();
    response.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    assert_eq!(replicas.upstream.bytes_sent(&layer.digest), fetched, "nothing is fetched again");
    agent.knows(1).await;
    agent.counts("larder_agent_resumed_total", &[("source", "replica")], |it| it == 1.0).await;
}

#[tokio::test]
async fn a_body_goes_on_from_another_replica_when_its_own_is_stopped() {
    let replicas = Replicas::start(2).await;
    let image = replicas.push(5, &[LARGE]);
    let layer = &image.layers[0];
    for replica in &replicas.all {
        let stored = replica.get(&blob_path(&layer.digest)).await;
        stored.expect_body(&layer.bytes).await.unwrap();
    }
    let agent = agent_of(&replicas).await;
    agent.knows(2).await;
    let before = sent(&replicas).await;
    let mut response = agent.get(&blob_path(&layer.digest)).await;
    let beginning = response.at_least(8 * MIB).await;
    let sender = &replicas.all[sender_of(&replicas, &before).await];
    kill_process(sender.pid(), Signal::STOP).unwrap();
    response.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    kill_process(sender.pid(), Signal::CONT).unwrap();
    agent.knows(2).await;
}

#[tokio::test]
async fn a_body_goes_on_from_the_upstream_when_no_replica_is_left() {
    let scene = Scene::new().await;
    let image = scene.push(6, &[LARGE]);
    let layer = &image.layers[0];
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    scene.upstream.forget_requests();
    let Scene { upstream, larder } = scene;
    let agent = Agent::settings()
        .cache(&larder.url(""))
        .arguments(&["--upstream", &format!("{HOST}={}", upstream.url())])
        .start()
        .await;
    agent.knows(1).await;
    let mut response = agent.get(&blob_path(&layer.digest)).await;
    let beginning = response.at_least(8 * MIB).await;
    larder.kill();
    response.expect_body(&layer.bytes[beginning.len()..]).await.unwrap();
    let sent = upstream.bytes_sent(&layer.digest);
    assert!(sent < layer.bytes.len() as u64 - 8 * MIB as u64, "{sent} bytes, and only the rest");
    agent.knows(0).await;
    agent.counts("larder_agent_resumed_total", &[("source", "upstream")], |it| it == 1.0).await;
}

#[tokio::test]
async fn a_body_whose_rest_nobody_has_is_cut_off() {
    let scene = Scene::new().await;
    let image = scene.push(7, &[LARGE]);
    let layer = &image.layers[0];
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    let Scene { upstream, larder } = scene;
    let agent = Agent::settings()
        .cache(&larder.url(""))
        .arguments(&["--upstream", &format!("{HOST}={}", upstream.url())])
        .start()
        .await;
    agent.knows(1).await;
    upstream.fault(On::blobs(), Fault::Status(404));
    let mut response = agent.get(&blob_path(&layer.digest)).await;
    response.at_least(8 * MIB).await;
    larder.kill();
    assert!(response.bytes().await.is_err(), "no clean end");
    agent.counts("larder_agent_cut_total", &[], |it| it == 1.0).await;
}

#[tokio::test]
async fn a_cache_that_has_moved_is_found_where_the_file_says_and_remembered() {
    let scene = Scene::new().await;
    scene.push(8, &[10]);
    let moved = Larder::with_upstream(HOST, &scene.upstream.url()).await;
    let caches = |url: &str| format!("[[caches]]\nurl = \"{url}\"\n");
    let agent = Agent::settings().config(&caches(&scene.larder.url(""))).start().await;
    agent.knows(1).await;
    assert_eq!(agent.get(&manifest_path("1")).await.status, 200);
    let Scene { upstream: _upstream, larder } = scene;
    larder.kill();
    assert_eq!(agent.get(&manifest_path("1")).await.status, 503);
    agent.its_settings().write_config(&caches(&moved.url("")));
    let back = async { while agent.get(&manifest_path("1")).await.status != 200 {} };
    patiently("the agent asks the cache at its new address", back).await;
    let known = std::fs::read_to_string(agent.its_settings().state().join("replicas.json"));
    assert!(known.unwrap().contains(&moved.host));
}

#[tokio::test]
async fn the_last_known_replicas_are_asked_while_their_name_stands_for_nothing() {
    let scene = Scene::new().await;
    scene.push(9, &[10]);
    let agent = Agent::settings().cache(&scene.larder.url("")).start().await;
    agent.knows(1).await;
    let (_, settings) = agent.stop().await;
    let config = "[[caches]]\nurl = \"http://cache.invalid:5000\"\n";
    let later = settings.without_arguments().config(config).start().await;
    later.knows(1).await;
    assert_eq!(later.get(&manifest_path("1")).await.status, 200);
}

#[tokio::test]
async fn systemd_is_told_that_it_serves_that_it_is_not_hung_and_that_it_ends() {
    let scratch = Scratch::new();
    let path = scratch.join("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    let told = async |what: &str| {
        let mut text = [0; 64];
        let heard = async {
            loop {
                let n = socket.recv(&mut text).await.unwrap();
                if &text[..n] == what.as_bytes() {
                    return;
                }
            }
        };
        patiently(what, heard).await;
    };
    let scene = Scene::new().await;
    // Who is there makes runtimes ask, and who is not keeps nobody waiting for ever.
    for (cache, has_entry) in [(scene.larder.url(""), true), ("http://127.0.0.1:1".into(), false)] {
        let settings = Agent::settings().cache(&cache);
        let entry = settings.scratch().join("certs.d/_default/hosts.toml");
        let agent = settings.variable("NOTIFY_SOCKET", path.to_str().unwrap()).start().await;
        told("READY=1").await;
        assert_eq!(entry.exists(), has_entry, "{cache}");
        told("WATCHDOG=1").await;
        let (ended, _settings) = agent.stop().await;
        told("STOPPING=1").await;
        assert_eq!(ended.code, Some(0));
    }
}

/// What each has sent so far, in bytes.
async fn sent(replicas: &Replicas) -> Vec<f64> {
    let mut sent = Vec::new();
    for replica in &replicas.all {
        sent.push(replica.metric("larder_client_bytes_total", &[]).await);
    }
    sent
}

/// The one that has sent more than `before`.
async fn sender_of(replicas: &Replicas, before: &[f64]) -> usize {
    let now = sent(replicas).await;
    let grown: Vec<usize> = (0..now.len()).filter(|n| now[*n] > before[*n]).collect();
    assert_eq!(grown.len(), 1, "{before:?} {now:?}");
    grown[0]
}

/// An agent that knows them all.
async fn agent_of(replicas: &Replicas) -> Agent {
    settings_of(replicas).start().await
}

fn settings_of(replicas: &Replicas) -> Settings {
    let caches = replicas.all.iter().map(|replica| replica.url(""));
    caches.fold(Agent::settings(), |settings, url| settings.cache(&url))
}
