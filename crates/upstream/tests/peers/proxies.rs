//! Upstreams behind a proxy.

use larder_upstream::{Settings, Url};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};

use crate::fake::*;

#[tokio::test]
async fn an_http_proxy_is_asked_for_the_whole_address() {
    let proxy = Fake::start(|_| ok("{}")).await;
    let url = Url::parse("http://registry.invalid:5000").unwrap();
    let mut proxy_url = proxy.url.clone();
    proxy_url.set_username("u").unwrap();
    proxy_url.set_password(Some("p")).unwrap();
    let client = client_of(Settings { proxy: Some(proxy_url), ..settings(&[&url]) });
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
    assert_eq!(proxy.log(), ["GET http://registry.invalid:5000/v2/team/app/manifests/v1"]);
    assert_eq!(proxy.seen()[0].header("proxy-authorization"), "Basic dTpw");
}

#[tokio::test]
async fn a_socks_proxy_resolves_the_name() {
    let fake = Fake::start(|_| ok("{}")).await;
    let target = fake.url.socket_addrs(|| None).unwrap()[0];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let proxy = Url::parse(&format!("socks5h://{}", listener.local_addr().unwrap())).unwrap();
    let server = tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let name = accept_socks(&mut client).await;
        let mut upstream = TcpStream::connect(target).await.unwrap();
        let _ = copy_bidirectional(&mut client, &mut upstream).await;
        name
    });
    let url = Url::parse("http://registry.invalid:5000").unwrap();
    let client = client_of(Settings { proxy: Some(proxy), ..settings(&[&url]) });
    client.manifest(&repository(), &tag(), &all()).await.unwrap();
    drop(client);
    assert_eq!(server.await.unwrap(), "registry.invalid");
}

/// Answers the handshake of RFC 1928; the name that is to be connected to.
async fn accept_socks(stream: &mut TcpStream) -> String {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).await.unwrap();
    let mut methods = vec![0; usize::from(greeting[1])];
    stream.read_exact(&mut methods).await.unwrap();
    stream.write_all(&[5, 0]).await.unwrap();
    let mut head = [0; 5];
    stream.read_exact(&mut head).await.unwrap();
    assert_eq!(head[3], 3, "the address is no name");
    let mut name = vec![0; usize::from(head[4]) + 2];
    stream.read_exact(&mut name).await.unwrap();
    stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    name.truncate(name.len() - 2);
    String::from_utf8(name).unwrap()
}
