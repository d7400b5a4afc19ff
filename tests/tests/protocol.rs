//! What clients are answered, to the letter.
//!
//! Source: OCI distribution-spec 1.1; RFC 9110.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use larder_core::Digest;
use larder_testkit::{Image, On, Upstream};
use larder_tests::http::{self, Response};
use larder_tests::scene::{HOST, REPOSITORY, blob_path, manifest_path};
use larder_tests::{Larder, Scene};

#[tokio::test]
async fn a_registry_is_what_it_says_it_is() {
    let scene = Scene::new().await;
    for path in ["/v2/", "/v2"] {
        let base = scene.larder.get(path).await;
        assert_eq!(base.status, 200, "{path}");
        assert_eq!(base.header("docker-distribution-api-version"), "registry/2.0");
    }
}

#[tokio::test]
async fn a_blob_has_the_same_head_cold_warm_and_asked_for_alone() {
    for size in [100, 3 << 20] {
        let scene = Scene::new().await;
        let image = scene.push(1, &[size]);
        let layer = &image.layers[0];
        let path = blob_path(&layer.digest);
        let (length, etag) = (size.to_string(), format!("\"{}\"", layer.digest));
        let assert_head = |response: &Response, what: &str| {
            assert_eq!(response.status, 200, "{what}");
            assert_eq!(response.header("content-length"), length, "{what}");
            assert_eq!(response.header("accept-ranges"), "bytes", "{what}");
            assert_eq!(response.header("etag"), etag, "{what}");
            assert_eq!(response.header("docker-content-digest"), layer.digest.to_string());
            assert_eq!(response.header("content-type"), "application/octet-stream", "{what}");
            assert!(!response.has_header("content-encoding"), "{what}");
            assert!(!response.has_header("transfer-encoding"), "{what}");
        };
        let cold_head = scene.larder.head(&path).await;
        assert_head(&cold_head, "HEAD, cold");
        assert_eq!(cold_head.bytes().await.unwrap().len(), 0);
        // Nobody has asked for its content yet.
        assert_eq!(scene.upstream.n_fetches(&layer.digest), 0);

        let cold = scene.larder.get(&path).await;
        assert_head(&cold, "GET, cold");
        assert_eq!(cold.outcome(), "miss");
        cold.expect_body(&layer.bytes).await.unwrap();

        let warm = scene.larder.get(&path).await;
        assert_head(&warm, "GET, warm");
        assert_eq!(warm.outcome(), "hit");
        warm.expect_body(&layer.bytes).await.unwrap();
        let warm_head = scene.larder.head(&path).await;
        assert_head(&warm_head, "HEAD, warm");
        assert_eq!(warm_head.outcome(), "hit");
    }
}

#[tokio::test]
async fn a_blob_is_sent_as_it_is_whatever_encoding_is_accepted() {
    let scene = Scene::new().await;
    let image = scene.push(2, &[2 << 20]);
    let layer = &image.layers[0];
    for _ in ["cold", "warm"] {
        let request = scene.blob(&layer.digest).header("accept-encoding", "gzip, zstd, br");
        let response = request.send().await;
        assert!(!response.has_header("content-encoding"));
        response.expect_body(&layer.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn one_range_is_answered_with_those_bytes() {
    const SIZE: usize = 3 << 20;
    let scene = Scene::new().await;
    let image = scene.push(3, &[SIZE]);
    let layer = &image.layers[0];
    let last = SIZE - 1;
    let table = [
        ("bytes=0-0", 0, 0),
        ("bytes=0-99", 0, 99),
        ("bytes=1000000-1999999", 1_000_000, 1_999_999),
        ("bytes=1000000-", 1_000_000, last),
        ("bytes=0-", 0, last),
        ("bytes=-1", last, last),
        ("bytes=-1000000", SIZE - 1_000_000, last),
        // Cut to what there is.
        ("bytes=3000000-99999999", 3_000_000, last),
        ("bytes=-99999999", 0, last),
    ];
    for state in ["cold", "warm"] {
        for (range, start, end) in table {
            let response = scene.blob(&layer.digest).header("range", range).send().await;
            assert_eq!(response.status, 206, "{state} {range}");
            let expected = format!("bytes {start}-{end}/{SIZE}");
            assert_eq!(response.header("content-range"), expected, "{state} {range}");
            let length = (end - start + 1).to_string();
            assert_eq!(response.header("content-length"), length, "{state} {range}");
            let sent = response.expect_body(&layer.bytes[start..=end]).await;
            assert!(sent.is_ok(), "{state} {range}: {sent:?}");
        }
        scene.get_blob(&layer.digest).await.expect_body(&layer.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn a_range_that_holds_nothing_is_refused_with_the_length() {
    const SIZE: usize = 2 << 20;
    let scene = Scene::new().await;
    let image = scene.push(4, &[SIZE]);
    let layer = &image.layers[0];
    for state in ["cold", "warm"] {
        for range in [format!("bytes={SIZE}-"), "bytes=99999999-".to_owned(), "bytes=-0".to_owned()]
        {
            let response = scene.blob(&layer.digest).header("range", &range).send().await;
            assert_eq!(response.status, 416, "{state} {range}");
            let expected = format!("bytes */{SIZE}");
            assert_eq!(response.header("content-range"), expected, "{state} {range}");
        }
        scene.get_blob(&layer.digest).await.expect_body(&layer.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn a_range_that_is_none_is_ignored() {
    let scene = Scene::new().await;
    let image = scene.push(5, &[2 << 20]);
    let layer = &image.layers[0];
    for range in ["bytes=5-2", "bytes=a-b", "bytes=", "items=0-5", "0-5"] {
        let response = scene.blob(&layer.digest).header("range", range).send().await;
        assert_eq!(response.status, 200, "{range}");
        response.expect_body(&layer.bytes).await.unwrap();
    }
}

#[tokio::test]
async fn several_ranges_are_answered_as_parts() {
    let scene = Scene::new().await;
    let image = scene.push(6, &[2 << 20]);
    let layer = &image.layers[0];
    for state in ["cold", "warm"] {
        let request = scene.blob(&layer.digest).header("range", "bytes=0-9,1000000-1000009,-10");
        let response = request.send().await;
        assert_eq!(response.status, 206, "{state}");
        let kind = response.header("content-type").to_owned();
        let boundary = kind.strip_prefix("multipart/byteranges; boundary=").unwrap();
        let length: usize = response.header("content-length").parse().unwrap();
        let body = response.bytes().await.unwrap();
        assert_eq!(body.len(), length, "{state}");
        let parts = parts_of(&body, boundary.trim_matches('"'));
        let expected = [(0, 9), (1_000_000, 1_000_009), ((2 << 20) - 10, (2 << 20) - 1)].map(
            |(start, end): (usize, usize)| {
                (format!("bytes {start}-{end}/{}", 2 << 20), layer.bytes[start..=end].to_vec())
            },
        );
        assert_eq!(parts, expected, "{state}");
    }
}

#[tokio::test]
async fn a_condition_on_what_the_client_has_is_heeded() {
    let scene = Scene::new().await;
    let image = scene.push(7, &[2 << 20]);
    let layer = &image.layers[0];
    scene.expect_blob(&layer.digest, &layer.bytes, "miss").await;
    let etag = format!("\"{}\"", layer.digest);
    let with = async |headers: &[(&str, &str)]| {
        let request = scene.blob(&layer.digest);
        let headers = headers.iter();
        headers.fold(request, |request, (name, value)| request.header(name, value)).send().await
    };
    let unchanged = with(&[("if-none-match", &etag)]).await;
    assert_eq!((unchanged.status, unchanged.header("etag")), (304, &*etag));
    assert_eq!(with(&[("if-none-match", "\"other\"")]).await.status, 200);
    // A part of what the client has the rest of; or everything, if it has something else.
    let range = ("range", "bytes=0-9");
    assert_eq!(with(&[range, ("if-range", &etag)]).await.status, 206);
    assert_eq!(with(&[range, ("if-range", "\"other\"")]).await.status, 200);

    scene.get_manifest("1").await.bytes().await.unwrap();
    let etag = format!("\"{}\"", image.digest());
    let request = scene.larder.request(&manifest_path("1")).header("if-none-match", &etag);
    assert_eq!(request.send().await.status, 304);
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_missing() {
    let scene = Scene::new().await;
    scene.push(8, &[100]);
    let missing = Digest::sha256_of(b"missing");
    let in_other = manifest_path("1").replace(REPOSITORY, "team/other");
    let table = [
        (manifest_path("missing"), "MANIFEST_UNKNOWN"),
        (manifest_path(&missing.to_string()), "MANIFEST_UNKNOWN"),
        (blob_path(&missing), "BLOB_UNKNOWN"),
        (in_other, "MANIFEST_UNKNOWN"),
        (format!("/v2/{HOST}/team/other/tags/list"), "NAME_UNKNOWN"),
    ];
    for (path, code) in table {
        assert_eq!(scene.larder.head(&path).await.status, 404, "{path}");
        let response = scene.larder.get(&path).await;
        assert_eq!(response.status, 404, "{path}");
        assert_eq!(response.header("content-type"), "application/json", "{path}");
        assert_eq!(response.error_code().await, code, "{path}");
    }
}

#[tokio::test]
async fn what_cannot_be_a_name_is_refused_without_asking_upstream() {
    let scene = Scene::new().await;
    let table = [
        (blob_path_with("sha256:12"), 400, "DIGEST_INVALID"),
        (blob_path_with("md5:d41d8cd98f00b204e9800998ecf8427e"), 400, "DIGEST_INVALID"),
        (blob_path_with("latest"), 400, "DIGEST_INVALID"),
        (manifest_path("sha256:12"), 400, "DIGEST_INVALID"),
        (format!("/v2/{HOST}/Team/App/manifests/1"), 400, "NAME_INVALID"),
        (format!("/v2/{HOST}/team..app/manifests/1"), 400, "NAME_INVALID"),
        ("/v2/unknown.test/team/app/manifests/1".to_owned(), 404, "NAME_UNKNOWN"),
        ("/v2/team/app/manifests/1?ns=unknown.test".to_owned(), 404, "NAME_UNKNOWN"),
    ];
    for (path, status, code) in table {
        let response = scene.larder.get(&path).await;
        assert_eq!(response.status, status, "{path}");
        assert_eq!(response.error_code().await, code, "{path}");
    }
    assert_eq!(scene.upstream.requests().len(), 0);
}

#[tokio::test]
async fn what_would_write_is_refused() {
    let scene = Scene::new().await;
    let image = scene.push(9, &[100]);
    let blob = blob_path(&image.layers[0].digest);
    let uploads = format!("/v2/{HOST}/{REPOSITORY}/blobs/uploads/");
    let table = [
        ("POST", uploads.clone()),
        ("PATCH", format!("{uploads}1234")),
        ("PUT", format!("{uploads}1234")),
        ("PUT", manifest_path("1")),
        ("DELETE", manifest_path("1")),
        ("DELETE", blob),
    ];
    for (method, path) in table {
        let request = http::request(method, &scene.larder.url(&path)).body("content");
        let response = request.send().await;
        assert_eq!(response.status, 405, "{method} {path}");
        assert_eq!(response.error_code().await, "UNSUPPORTED", "{method} {path}");
    }
    assert_eq!(scene.upstream.requests().len(), 0);
}

#[tokio::test]
async fn an_image_is_found_by_every_way_to_address_it() {
    let scene = Scene::with("alias = [\"team-registry\"]\n").await;
    let image = scene.push(10, &[100]);
    let digest = &image.layers[0].digest;
    let names = [
        (format!("{HOST}/{REPOSITORY}"), String::new()),
        (format!("team-registry/{REPOSITORY}"), String::new()),
        (REPOSITORY.to_owned(), format!("?ns={HOST}")),
    ];
    for (name, query) in names {
        let manifest = scene.larder.get(&format!("/v2/{name}/manifests/1{query}")).await;
        assert_eq!(manifest.status, 200, "{name}{query}");
        manifest.expect_body(&image.manifest.bytes).await.unwrap();
        let blob = scene.larder.get(&format!("/v2/{name}/blobs/{digest}{query}")).await;
        blob.expect_body(&image.layers[0].bytes).await.unwrap();
    }
    // All ways lead to one store.
    assert_eq!(scene.upstream.n_fetches(digest), 1);
}

#[tokio::test]
async fn who_names_no_upstream_means_docker_hub_and_its_library() {
    let upstream = Upstream::start().await;
    let (official, other) = (Image::random(11, &[100]), Image::random(12, &[100]));
    upstream.push("library/alpine", "3", &official);
    upstream.push("grafana/grafana", "3", &other);
    let larder = Larder::with_upstream("docker.io", &upstream.url()).await;
    let table = [
        ("/v2/library/alpine/manifests/3", &official),
        ("/v2/docker.io/library/alpine/manifests/3", &official),
        ("/v2/docker.io/alpine/manifests/3", &official),
        ("/v2/index.docker.io/alpine/manifests/3", &official),
        ("/v2/alpine/manifests/3", &official),
        ("/v2/library/alpine/manifests/3?ns=docker.io", &official),
        ("/v2/grafana/grafana/manifests/3", &other),
        ("/v2/docker.io/grafana/grafana/manifests/3", &other),
    ];
    for (path, image) in table {
        let response = larder.get(path).await;
        assert_eq!(response.status, 200, "{path}");
        response.expect_body(&image.manifest.bytes).await.unwrap();
    }
    // Nothing is redirected, and the name is resolved before upstream is asked.
    let is_short = |path: &str| path.starts_with("/v2/alpine/");
    assert_eq!(upstream.count(|request| is_short(&request.path)), 0);
}

#[tokio::test]
async fn several_accept_lines_reach_upstream_as_one_wish() {
    let scene = Scene::new().await;
    let image = scene.push(13, &[100]);
    let request = scene
        .larder
        .request(&manifest_path("1"))
        .header("accept", "application/vnd.docker.distribution.manifest.v2+json")
        .header("accept", "application/vnd.oci.image.manifest.v1+json");
    request.send().await.expect_body(&image.manifest.bytes).await.unwrap();
    for request in scene.upstream.requests() {
        let accepted: Vec<&str> = request
            .headers
            .iter()
            .filter(|(name, _)| name == "accept")
            .map(|(_, value)| value.as_str())
            .collect();
        assert!(accepted.join(",").contains(&image.manifest.media_type), "{request:?}");
    }
}

#[tokio::test]
async fn tags_are_listed_as_upstream_lists_them() {
    let scene = Scene::new().await;
    let image = scene.push(14, &[100]);
    for tag in ["2", "3", "4"] {
        scene.upstream.push(REPOSITORY, tag, &image);
    }
    let path = format!("/v2/{HOST}/{REPOSITORY}/tags/list");
    let all = scene.larder.get(&path).await.json().await;
    assert_eq!(all["tags"], serde_json::json!(["1", "2", "3", "4"]));

    // Page by page, along the links, which lead back to where the client asked.
    let (mut tags, mut next) = (Vec::new(), Some(format!("{path}?n=3")));
    while let Some(path) = next {
        let page = scene.larder.get(&path).await;
        let link = page.header("link").to_owned();
        let body = page.json().await;
        tags.extend(body["tags"].as_array().unwrap().clone());
        next = link.strip_prefix('<').and_then(|it| it.split_once('>')).map(|(to, _)| {
            assert!(to.starts_with(&path.split('?').next().unwrap().to_owned()), "{to}");
            to.to_owned()
        });
    }
    assert_eq!(tags, ["1", "2", "3", "4"]);
}

#[tokio::test]
async fn an_image_is_served_offline_from_what_is_stored() {
    let scene = Scene::new().await;
    let image = scene.push(15, &[100]);
    scene.get_manifest("1").await.expect_body(&image.manifest.bytes).await.unwrap();
    scene.expect_blob(&image.layers[0].digest, &image.layers[0].bytes, "miss").await;
    scene.upstream.fault(On::path(""), larder_testkit::Fault::Status(500));
    scene.upstream.forget_requests();
    let larder = scene.larder.kill().config_first("offline = true").start().await;
    larder.get(&manifest_path("1")).await.expect_body(&image.manifest.bytes).await.unwrap();
    let blob = larder.get(&blob_path(&image.layers[0].digest)).await;
    blob.expect_body(&image.layers[0].bytes).await.unwrap();
    assert_eq!(larder.get(&manifest_path("missing")).await.status, 404);
    assert_eq!(scene.upstream.requests().len(), 0);
}

fn blob_path_with(digest: &str) -> String {
    format!("/v2/{HOST}/{REPOSITORY}/blobs/{digest}")
}

/// The `Content-Range` and the bytes of each part.
fn parts_of(body: &[u8], boundary: &str) -> Vec<(String, Vec<u8>)> {
    let delimiter = format!("--{boundary}");
    let mut positions = Vec::new();
    for position in 0..body.len() {
        if body[position..].starts_with(delimiter.as_bytes()) {
            positions.push(position);
        }
    }
    assert!(body[*positions.last().unwrap()..].starts_with(format!("{delimiter}--").as_bytes()));
    let parts = positions.windows(2).map(|pair| {
        let part = &body[pair[0] + delimiter.len() + 2..pair[1] - 2];
        let end = part.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(part[..end].to_ascii_lowercase()).unwrap();
        let range = head.lines().find_map(|line| line.strip_prefix("content-range: ")).unwrap();
        (range.to_owned(), part[end + 4..].to_vec())
    });
    parts.collect()
}
