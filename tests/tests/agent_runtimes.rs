//! The entries that the agent writes, as real runtimes read them.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::path::Path;

use larder_testkit::{Image, Upstream, patiently};
use larder_tests::scene::{HOST, REPOSITORY};
use larder_tests::{Agent, Containerd, Docker, Generation, Larder, Podman, Scene};
use serde_json::Value;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_self_test_goes_all_the_way_and_says_where_it_ends() {
    for generation in [Generation::V1_6, Generation::V1_7, Generation::V2_1 { fetch_buffer: 4096 }]
    {
        if generation.suite().has("containerd") {
            self_test(generation, "*").await;
        }
    }
    self_test(Generation::V1_6, "docker.io").await;
}

async fn self_test(generation: Generation, hosts: &str) {
    let containerd = Containerd::start_as(generation).await;
    let cache = Larder::settings().start().await;
    let (socket, certs_dir, config) =
        (containerd.socket(), containerd.certs_dir(), containerd.config());
    let text = format!(
        "[mirrors]\nhosts = [\"{hosts}\"]\n[mirrors.containerd]\ncerts_dir = {certs_dir:?}\nconfig = {config:?}\n"
    );
    let agent = Agent::settings()
        .config(&text)
        .cache(&cache.url(""))
        .certs_dir(&certs_dir)
        .arguments(&["--containerd-address", socket.to_str().unwrap()])
        .start()
        .await;
    agent.counts("larder_mirror_active", &[("runtime", "containerd")], |it| it == 1.0).await;
    let said = agent.run("self-test", &[]).await.expect("all of the way works");
    for hop in ["agent", "cache", "manifest", "layer", "containerd"] {
        let line = said.lines().find(|line| line.starts_with(hop)).unwrap();
        assert!(line.ends_with(" ms"), "{said}");
    }
    assert_eq!(containerd.cri().list_images().await.unwrap().len(), 0, "nothing is left of it");
    let said = agent.run("check", &[]).await.expect("containerd reads the entries");
    assert!(said.contains("it reads the mirror entries"), "{said}");

    cache.kill();
    let ended = agent.run("self-test", &[]).await;
    assert_eq!(ended.code, Some(1));
    for hop in ["cache", "manifest", "layer", "containerd"] {
        let line = ended.stdout.lines().find(|line| line.starts_with(hop)).unwrap();
        assert!(line.contains("FAILED: "), "{}", ended.stdout);
    }
}

#[tokio::test]
async fn the_check_says_which_line_of_containerd_to_change() {
    let settings = Agent::settings();
    let config = settings.scratch().write(
        "containerd.toml",
        "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"/other\"\n",
    );
    let text = format!("[mirrors.containerd]\nconfig = {config:?}\n");
    let ended = settings.config(&text).run(&["check"]).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.stdout.contains("line 3: write `config_path = "), "{}", ended.stdout);
}

#[tokio::test]
async fn settings_that_cannot_be_meant_are_refused_with_what_to_write() {
    let without = Agent::settings().run(&[]).await;
    assert_eq!(without.code, Some(2));
    assert!(without.stderr.contains("give --cache http://10.0.0.1:5000"), "{}", without.stderr);
    let wrong =
        Agent::settings().config("zone = \"a\"\n[[caches]]\nurl = \"http://u:hunter2@x\"\n");
    let wrong = wrong.run(&[]).await;
    assert_eq!(wrong.code, Some(2));
    assert!(!wrong.stderr.contains("hunter2"), "{}", wrong.stderr);
    let unknown = Agent::settings().config("zone = \"a\"\ncache = 1\n").run(&[]).await;
    assert_eq!(unknown.code, Some(2));
    assert!(unknown.stderr.contains("agent.toml:2: unknown field `cache`"), "{}", unknown.stderr);
}

#[tokio::test]
async fn podman_pulls_through_the_agent_and_past_it() {
    let scene = Scene::new().await;
    let (upstream, cache) = (&scene.upstream, &scene.larder);
    let agent = Agent::settings();
    let file = agent.scratch().join("registries.conf.d/900-larder.conf");
    let config = format!(
        "[mirrors]\nhosts = [\"{HOST}\"]\n[mirrors.podman]\nfile = {file:?}\n[upstreams]\n\"{HOST}\" = \"{}\"\n",
        upstream.url()
    );
    let agent = agent.config(&config).cache(&cache.url("")).start().await;
    agent.counts("larder_mirror_active", &[("runtime", "podman")], |it| it == 1.0).await;
    let registries = std::fs::read_to_string(&file).unwrap();

    pull_by_podman(upstream, &registries, 1).await;
    agent.counts("larder_agent_bytes_total", &[], |it| it > 0.0).await;
    let Scene { upstream, larder: cache } = scene;
    cache.kill();
    pull_by_podman(&upstream, &registries, 2).await;
    agent.kill();
    pull_by_podman(&upstream, &registries, 3).await;
}

async fn pull_by_podman(upstream: &Upstream, registries: &str, n: u64) {
    let image = Image::from_seed(n).layers(&[1000]).unpackable().build();
    upstream.push(REPOSITORY, &n.to_string(), &image);
    let podman = Podman::with_registries(registries);
    podman.pull(&format!("{HOST}/{REPOSITORY}:{n}")).await.expect("the pull works");
}

#[tokio::test]
async fn dockerd_pulls_through_the_mirror_that_the_agent_wrote() {
    let upstream = Upstream::start().await;
    let image = Image::from_seed(4).layers(&[1000]).unpackable().build();
    upstream.push("library/app", "1", &image);
    let cache = Larder::with_upstream("docker.io", &upstream.url()).await;
    let settings = Agent::settings();
    let before = "{\n    \"debug\": true,\n    \"registry-mirrors\": []\n}\n";
    let file = settings.scratch().write("daemon.json", before);
    let config = format!("[mirrors.dockerd]\nfile = {file:?}\n");
    let agent = settings.config(&config).cache(&cache.url("")).start().await;
    agent.logged(&["dockerd does not read", "systemctl reload docker"]).await;
    let mirrors = mirrors_in(&file);
    assert_eq!(mirrors, [agent.url("")]);
    let docker = Docker::start(&[&mirrors[0]]).await;
    let pulled = patiently("docker pulls", docker.pull("app:1")).await;
    pulled.unwrap();
    agent.counts("larder_agent_bytes_total", &[], |it| it > 0.0).await;
    let _settings = agent.stop().await;
    assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
}

fn mirrors_in(file: &Path) -> Vec<String> {
    let value: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mirrors = value["registry-mirrors"].as_array().unwrap();
    mirrors.iter().map(|it| it.as_str().unwrap().to_owned()).collect()
}
