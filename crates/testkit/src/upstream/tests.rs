//! The registry, asked byte by byte.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::*;
use crate::Gate;

/// An answer as far as it came.
struct Reply {
    status: u16,
    head: String,
    body: Vec<u8>,
    error: Option<std::io::ErrorKind>,
}

#[tokio::test]
async fn what_was_pushed_can_be_had_by_tag_and_by_digest() {
    let (upstream, image) = upstream_with_image().await;
    let by_tag = get(&upstream, "/v2/team/app/manifests/1", "").await;
    let by_digest = get(&upstream, &format!("/v2/team/app/manifests/{}", image.digest()), "").await;
    assert_eq!(by_tag.body, image.manifest.bytes);
    assert_eq!(by_digest.body, image.manifest.bytes);
    assert!(by_tag.head.contains(&format!("docker-content-digest: {}", image.digest())));
    assert_eq!(get(&upstream, "/v2/team/app/manifests/2", "").await.status, 404);
    assert_eq!(get(&upstream, &path(&image), "").await.body, image.layers[0].bytes);
}

#[tokio::test]
async fn a_range_is_answered_with_those_bytes() {
    let (upstream, image) = upstream_with_image().await;
    let part = get(&upstream, &path(&image), "Range: bytes=10-19\r\n").await;
    assert_eq!((part.status, &part.body[..]), (206, &image.layers[0].bytes[10..20]));
    let beyond = get(&upstream, &path(&image), "Range: bytes=100000-\r\n").await;
    assert_eq!(beyond.status, 416);
}

#[tokio::test]
async fn a_cut_body_ends_exactly_where_it_was_cut() {
    let (upstream, image) = upstream_with_image().await;
    upstream.fault(On::blobs().times(1), Fault::CutAfter(70_000));
    let reply = get(&upstream, &path(&image), "").await;
    assert_eq!(reply.body, image.layers[0].bytes[..70_000]);
    assert!(reply.head.contains("content-length: 100000"));
    let again = get(&upstream, &path(&image), "").await;
    assert_eq!(again.body.len(), 100_000);
    let requests = upstream.requests();
    assert_eq!((requests[0].n_sent, requests[0].is_whole), (70_000, false));
    assert_eq!((requests[1].n_sent, requests[1].is_whole), (100_000, true));
    assert_eq!(upstream.n_fetches(&image.layers[0].digest), 2);
}

#[tokio::test]
async fn a_fault_can_begin_late_and_end_early() {
    let (upstream, image) = upstream_with_image().await;
    upstream.fault(On::blobs().sparing(1).times(2), Fault::Status(503));
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(get(&upstream, &path(&image), "").await.status);
    }
    assert_eq!(statuses, [200, 503, 503, 200]);
}

#[tokio::test]
async fn a_dribbling_body_comes_whole_and_slowly() {
    let (upstream, image) = upstream_with_image().await;
    let pause = std::time::Duration::from_millis(20);
    upstream.fault(On::blobs(), Fault::Dribble(10_000, pause));
    let begun = std::time::Instant::now();
    assert_eq!(get(&upstream, &path(&image), "").await.body, image.layers[0].bytes);
    assert!(begun.elapsed() >= 10 * pause);
}

#[tokio::test]
async fn a_reset_body_ends_in_an_error() {
    let (upstream, image) = upstream_with_image().await;
    upstream.fault(On::blobs(), Fault::ResetAfter(10));
    let reply = get(&upstream, &path(&image), "").await;
    assert_eq!(reply.error, Some(std::io::ErrorKind::ConnectionReset));
}

#[tokio::test]
async fn lengths_can_be_wrong_in_every_direction() {
    let (upstream, image) = upstream_with_image().await;
    let fetch = async |fault: Fault| {
        upstream.heal();
        upstream.fault(On::blobs(), fault);
        let reply = get(&upstream, &path(&image), "").await;
        let announced = reply.head.lines().find_map(|line| line.strip_prefix("content-length: "));
        (announced.map(str::to_owned), reply.body.len())
    };
    assert_eq!(fetch(Fault::Misannounce(5)).await, (Some("100005".to_owned()), 100_000));
    assert_eq!(fetch(Fault::Misannounce(-5)).await, (Some("99995".to_owned()), 100_000));
    assert_eq!(fetch(Fault::Append(5)).await, (Some("100005".to_owned()), 100_005));
    let (announced, framed) = fetch(Fault::Chunked).await;
    assert!(announced.is_none() && framed > 100_000, "{framed}");
}

#[tokio::test]
async fn a_corrupt_byte_is_wrong_in_ranges_too() {
    let (upstream, image) = upstream_with_image().await;
    upstream.fault(On::blobs(), Fault::Corrupt(12));
    let part = get(&upstream, &path(&image), "Range: bytes=10-19\r\n").await;
    let good = &image.layers[0].bytes[10..20];
    assert_eq!((&part.body[..2], &part.body[3..]), (&good[..2], &good[3..]));
    assert_ne!(part.body[2], good[2]);
}

#[tokio::test]
async fn a_gate_in_the_body_lets_what_is_before_it_through() {
    let (upstream, image) = upstream_with_image().await;
    let gate = Gate::closed();
    upstream.fault(On::blobs(), Fault::WaitAfter(80_000, gate.clone()));
    let mut stream = ask(&upstream, &path(&image), "").await;
    let mut received = 0;
    while received < 80_000 {
        received += stream.read(&mut [0; 4096]).await.unwrap();
    }
    gate.reached(1).await;
    assert_eq!(upstream.bytes_sent(&image.layers[0].digest), 80_000);
    gate.open();
    let mut rest = Vec::new();
    patiently("the rest arrives", stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(upstream.bytes_sent(&image.layers[0].digest), 100_000);
}

#[tokio::test]
async fn storage_refuses_whoever_brings_a_credential() {
    let (upstream, image) = upstream_with_image().await;
    upstream.fault(On::blobs(), Fault::Redirect);
    let reply = get(&upstream, &path(&image), "").await;
    assert_eq!(reply.status, 307);
    let location = reply.head.lines().find_map(|line| line.strip_prefix("location: http://"));
    let (host, target) = location.unwrap().split_once('/').unwrap();
    let at_storage = async |headers: &str| {
        let stream = TcpStream::connect(host).await.unwrap();
        reply_of(send(stream, &format!("/{target}"), headers).await).await
    };
    assert_eq!(at_storage("").await.body, image.layers[0].bytes);
    assert_eq!(at_storage("Authorization: Basic eDp5\r\n").await.status, 400);
}

#[tokio::test]
async fn a_token_opens_only_the_repository_it_was_given_for() {
    let (upstream, image) = upstream_with_image().await;
    upstream.push("team/other", "1", &image);
    let (username, password) = ("ann".to_owned(), "s3cret".to_owned());
    upstream.require(Login::Bearer { username, password });
    let refused = get(&upstream, "/v2/team/app/manifests/1", "").await;
    assert_eq!(refused.status, 401);
    assert!(refused.head.contains("scope=\"repository:team/app:pull\""), "{}", refused.head);
    let asking = "/token?service=testkit&scope=repository%3Ateam/app%3Apull";
    assert_eq!(get(&upstream, asking, "").await.status, 401);
    // ann:s3cret
    let given = get(&upstream, asking, "Authorization: Basic YW5uOnMzY3JldA==\r\n").await;
    assert_eq!(given.status, 200);
    let with_token =
        async |path: &str| get(&upstream, path, "Authorization: Bearer token-1\r\n").await.status;
    assert_eq!(with_token("/v2/team/app/manifests/1").await, 200);
    assert_eq!(with_token("/v2/team/other/manifests/1").await, 401);
    upstream.revoke_tokens();
    assert_eq!(with_token("/v2/team/app/manifests/1").await, 401);
}

#[tokio::test]
async fn a_stopped_upstream_refuses_connections_until_it_is_resumed() {
    let (mut upstream, image) = upstream_with_image().await;
    let address = upstream.shared.registry;
    upstream.stop().await;
    let error = TcpStream::connect(address).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    upstream.resume().await;
    assert_eq!(get(&upstream, &path(&image), "").await.status, 200);
}

#[tokio::test]
async fn tags_come_in_pages_when_asked_for() {
    let (upstream, image) = upstream_with_image().await;
    upstream.push("team/app", "2", &image);
    let first = get(&upstream, "/v2/team/app/tags/list?n=1", "").await;
    assert_eq!(first.body, br#"{"name":"team/app","tags":["1"]}"#);
    assert!(first.head.contains("link: </v2/team/app/tags/list?n=1&last=1>; rel=\"next\""));
    let second = get(&upstream, "/v2/team/app/tags/list?n=1&last=1", "").await;
    assert_eq!(second.body, br#"{"name":"team/app","tags":["2"]}"#);
    assert!(!second.head.contains("link:"));
}

/// One image of one layer of 100,000 bytes.
async fn upstream_with_image() -> (Upstream, Image) {
    let upstream = Upstream::start().await;
    let image = Image::random(1, &[100_000]);
    upstream.push("team/app", "1", &image);
    (upstream, image)
}

/// Where the layer of `image` is.
fn path(image: &Image) -> String {
    format!("/v2/team/app/blobs/{}", image.layers[0].digest)
}

async fn get(upstream: &Upstream, path: &str, headers: &str) -> Reply {
    reply_of(ask(upstream, path, headers).await).await
}

async fn ask(upstream: &Upstream, path: &str, headers: &str) -> TcpStream {
    send(TcpStream::connect(upstream.shared.registry).await.unwrap(), path, headers).await
}

async fn send(mut stream: TcpStream, path: &str, headers: &str) -> TcpStream {
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn reply_of(mut stream: TcpStream) -> Reply {
    let mut bytes = Vec::new();
    let read = patiently("the answer arrives", stream.read_to_end(&mut bytes)).await;
    let error = read.err().map(|error| error.kind());
    let end = bytes.windows(4).position(|it| it == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
    let status = head.split(' ').nth(1).map_or(0, |text| text.parse().unwrap());
    Reply { status, head, body: bytes[end..].to_vec(), error }
}
