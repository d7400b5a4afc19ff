//! A cache on real nodes: nothing that is done to it fails a pull.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use larder_testkit::{Image, Login, Upstream};
use larder_tests::Cluster;
use larder_tests::kubernetes::installation::NAMESPACE;
use larder_tests::kubernetes::{Installation, Node, until};
use serde_json::json;

/// A registry that can be found by nobody but nodes that have been told.
const HOST: &str = "registry.test";
const CACHE: &str = "hub";
const SECRET: &str = "login";

/// How many images there are to pull.
const N_IMAGES: u64 = 24;

/// Who asks the registry: nodes, when no cache answers; and the cache, before and after somebody has
/// given it another password.
const POD: (&str, &str) = ("pod", "of-its-own");
const BEFORE: (&str, &str) = ("cache", "old");
const AFTER: (&str, &str) = ("cache", "new");

/// Two nodes pull all the time, one image after the other, while everything is done to the cache that
/// is ever done to one: none of the pulls fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_done_to_a_cache_fails_no_pull() {
    let mut cluster = Cluster::start(2).await;
    let upstream = Upstream::start().await;
    for n in 0..N_IMAGES {
        let image = Image::from_seed(n).layers(&[200 << 10, 50 << 10]).unpackable().build();
        upstream.push("team/app", &n.to_string(), &image);
    }
    let registry = format!("http://{}", cluster.expose(&upstream.host()));
    upstream.require(any_of(&[POD, BEFORE]));
    cluster.nodes().iter().for_each(|node| node.find_registry(HOST, &registry));
    Installation::prepare(cluster.nodes()).await;
    let api_server = format!("agent.apiServer={}", cluster.api_server());
    let settling = "controller.extraEnv[0].value=5s";
    let values = ["controller.extraEnv[0].name=LARDER_CA_SETTLING", settling, &api_server];
    let larder = Installation::by_chart(&cluster, &values).await;
    be(&cluster, BEFORE).await;
    let spec = |size: &str, budget: &str, ttl: &str| {
        json!({
            "upstreams": [{
                "upstream": HOST, "remoteURL": registry, "secretRef": {"name": SECRET},
                // The registry is on this computer.
                "insecureSkipVerify": true,
            }],
            "highAvailability": {"enabled": true},
            "volume": {"size": size},
            "garbageCollection": {"budget": budget, "ttl": ttl},
        })
    };
    larder.apply(CACHE, spec("1Gi", "80%", "168h")).await;
    larder.settles(CACHE).await;
    for node in cluster.nodes() {
        larder.is_used(node, HOST).await;
    }

    let (stopping, n_pulls, n_failed) =
        (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
    let pulling = async |node: &Node| {
        let (name, word) = POD;
        let login = format!("{name}:{word}");
        let mut n = 0;
        while !stopping.load(Ordering::Relaxed) {
            let name = format!("{HOST}/team/app:{}", n % N_IMAGES);
            let pulled = node.pull(&name, Some(&login)).await;
            n_pulls.fetch_add(1, Ordering::Relaxed);
            if pulled.code != Some(0) {
                println!("{}: {name}: {}", node.name, pulled.stderr);
                n_failed.fetch_add(1, Ordering::Relaxed);
            }
            let _ = node.forget(&name).await;
            n += 1;
        }
    };
    let doing = async {
        let counted = async |what: &str| {
            let begin = n_pulls.load(Ordering::Relaxed);
            until(format!("pulls go on: {what}"), async || {
                n_pulls.load(Ordering::Relaxed) > begin + 5
            })
            .await;
            println!("{what}: {} pulls", n_pulls.load(Ordering::Relaxed));
        };
        let uids = async || larder.uids(CACHE).await;
        let replaced = async |what: &str, before: &[String]| {
            let are_others = async || {
                let now = uids().await;
                now.len() == 2 && before.iter().all(|uid| !now.contains(uid))
            };
            until(what, are_others).await;
            larder.settles(CACHE).await;
            counted(what).await;
        };
        counted("all is as it was").await;

        let before = uids().await;
        larder.apply(CACHE, spec("1Gi", "70%", "168h")).await;
        replaced("both replicas are other pods", &before).await;

        let before = uids().await;
        let rotate = json!({"metadata": {"annotations": {"larder.dev/rotate-ca": "1"}}});
        let patch = Patch::Merge(rotate);
        larder.caches().patch(CACHE, &PatchParams::default(), &patch).await.unwrap();
        let bundle = async || {
            let cache = larder.cache(CACHE).await;
            cache["status"]["caBundle"].as_str().unwrap_or_default().to_owned()
        };
        let old = bundle().await;
        until("two are trusted", async || bundle().await.matches("BEGIN").count() == 2).await;
        let is_other =
            async || bundle().await.matches("BEGIN").count() == 1 && bundle().await != old;
        until("the other one is trusted alone", is_other).await;
        counted("another authority").await;

        upstream.require(any_of(&[POD, BEFORE, AFTER]));
        be(&cluster, AFTER).await;
        let header = basic(AFTER);
        let is_used =
            async || upstream.count(|it| it.header("authorization") == Some(header.as_str())) > 0;
        until("the new password is used", is_used).await;
        upstream.require(any_of(&[POD, AFTER]));
        counted("another password").await;
        assert_eq!(uids().await, before, "nothing is started again for that");

        larder.apply(CACHE, spec("2Gi", "70%", "168h")).await;
        replaced("volumes have grown and replicas know it", &before).await;

        let pods = "app.kubernetes.io/component=controller";
        let before = larder.pods(pods).await.iter().filter_map(|it| it.uid()).collect::<Vec<_>>();
        let delete = ["delete", "pods", "--selector", pods];
        Installation::kubectl(&cluster, &delete).await.expect("the controller is deleted");
        larder.apply(CACHE, spec("2Gi", "70%", "24h")).await;
        let is_seen = async || {
            let cache = larder.cache(CACHE).await;
            cache["status"]["observedGeneration"] == cache["metadata"]["generation"]
        };
        until("the new controller has seen it", is_seen).await;
        let now = larder.pods(pods).await.iter().filter_map(|it| it.uid()).collect::<Vec<_>>();
        assert!(before.iter().all(|it| !now.contains(it)), "{before:?} {now:?}");
        counted("another controller").await;

        cluster.restart_api_server().await;
        larder.settles(CACHE).await;
        counted("another API server").await;

        let n_asked = larder.requests(&cluster, CACHE, HOST).await;
        assert!(n_asked > 20.0, "pulls came by the cache: {n_asked}");
        stopping.store(true, Ordering::Relaxed);
    };
    let nodes = cluster.nodes();
    tokio::join!(doing, pulling(&nodes[0]), pulling(&nodes[1]));
    let (n_pulls, n_failed) = (n_pulls.into_inner(), n_failed.into_inner());
    let by_node = |it: &str| it.starts_with("containerd/");
    let n_direct = upstream
        .count(|it| it.path.contains("/blobs/") && it.header("user-agent").is_some_and(by_node));
    for node in nodes {
        let page = larder.agent_metrics(node).await;
        let lines = page.lines().filter(|it| it.starts_with("larder_agent_fallbacks"));
        lines.for_each(|line| println!("{}: {line}", node.name));
    }
    println!("{n_pulls} pulls, {n_failed} of them failed; {n_direct} blobs straight from upstream");
    assert_eq!(n_failed, 0);
}

/// Has the cache be somebody before the registry.
async fn be(cluster: &Cluster, (username, password): (&str, &str)) {
    let secrets: Api<Secret> = Api::namespaced(cluster.client(), NAMESPACE);
    let secret = json!({
        "apiVersion": "v1", "kind": "Secret",
        "metadata": {"name": SECRET},
        "stringData": {"username": username, "password": password},
    });
    let patch = Patch::Apply(secret);
    secrets.patch(SECRET, &PatchParams::apply("person"), &patch).await.unwrap();
}

fn any_of(accounts: &[(&str, &str)]) -> Login {
    Login::AnyOf(accounts.iter().map(|(name, word)| ((*name).into(), (*word).into())).collect())
}

fn basic((username, password): (&str, &str)) -> String {
    format!("Basic {}", BASE64_STANDARD.encode(format!("{username}:{password}")))
}
