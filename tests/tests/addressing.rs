//! Which upstream a request means: by default, by `Host`, with ports and IPv6.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_testkit::{Image, Upstream};
use larder_tests::http;
use larder_tests::larder::{Larder, Settings};
use larder_tests::scene::{HOST, REPOSITORY};

#[tokio::test]
async fn a_listener_can_stand_for_an_upstream() {
    let (upstream, image) = upstream().await;
    let listen = format!("127.0.0.1:0={HOST}");
    let larder = settings(&upstream, "").arguments(&["--listen", &listen]).start().await;
    let hosts = larder.hosts();
    let get = |host: &str| http::get(&format!("http://{host}/v2/{REPOSITORY}/manifests/1"));
    let response = get(&hosts[1]).send().await;
    response.expect_body(&image.manifest.bytes).await.unwrap();
    // The other one stands for Docker Hub, which is not what was pushed to.
    assert_ne!(get(&hosts[0]).send().await.status, 200);
}

#[tokio::test]
async fn a_host_name_can_stand_for_an_upstream() {
    let (upstream, image) = upstream().await;
    let hosts = format!("[hosts]\n\"mirror.test\" = \"{HOST}\"");
    let larder = settings(&upstream, &hosts).start().await;
    for name in ["mirror.test", "MIRROR.test:5000"] {
        let request = larder.request(&format!("/v2/{REPOSITORY}/manifests/1")).host(name);
        request.send().await.expect_body(&image.manifest.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn hosts_with_ports_and_addresses_are_upstreams_like_others() {
    let (upstream, image) = upstream().await;
    let url = upstream.url();
    for host in ["registry.test:5000", "10.0.0.1:5000", "[fd00::1]:5000", "[fd00::1]"] {
        let larder = Larder::settings().upstream(host, &url).start().await;
        let encoded = host.replace('[', "%5B").replace(']', "%5D").replace(':', "%3A");
        for path in [
            format!("/v2/{REPOSITORY}/manifests/1?ns={encoded}"),
            format!("/v2/{encoded}/{REPOSITORY}/manifests/1"),
        ] {
            let response = larder.get(&path).await;
            response.expect_body(&image.manifest.bytes).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_wildcard_stands_for_hosts_of_that_form_only() {
    let larder = Larder::settings()
        .config_first("builtin_upstreams = false\ndefault_upstream = \"\"")
        .config("[upstreams.\"*.registry.test\"]")
        .start()
        .await;
    let get = async |host: &str| {
        let response = larder.get(&format!("/v2/{host}/{REPOSITORY}/manifests/1")).await;
        response.error_code().await
    };
    // Nobody is there, which only a known upstream can be found out about.
    assert_eq!(get("eu.registry.test").await, "UNAVAILABLE");
    assert_eq!(get("registry.test").await, "NAME_UNKNOWN");
    assert_eq!(get("a.b.registry.test").await, "NAME_UNKNOWN");
}

#[tokio::test]
async fn repositories_that_are_kept_out_are_not_asked_for() {
    let (upstream, image) = upstream().await;
    upstream.push("secret/app", "1", &image);
    let config = format!(
        "[upstreams.\"{HOST}\"]\nurls = [\"{}\"]\nallow = [\"team/*\", \"secret/*\"]\ndeny = [\"secret/*\"]",
        upstream.url()
    );
    let larder = Larder::settings().config(&config).start().await;
    let get = async |name: &str| larder.get(&format!("/v2/{HOST}/{name}/manifests/1")).await;
    assert_eq!(get(REPOSITORY).await.status, 200);
    for name in ["secret/app", "other/app"] {
        assert_eq!(get(name).await.error_code().await, "NAME_UNKNOWN", "{name}");
    }
    assert_eq!(upstream.count(|request| !request.path.contains(REPOSITORY)), 0);
}

async fn upstream() -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::random(60, &[100]);
    upstream.push(REPOSITORY, "1", &image);
    (upstream, image)
}

fn settings(upstream: &Upstream, config_first: &str) -> Settings {
    Larder::settings().config_first(config_first).upstream(HOST, &upstream.url())
}
