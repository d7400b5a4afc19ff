//! The real thing: Debian's `docker-registry` (distribution 2.8) with passwords.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use futures_util::StreamExt as _;
use larder_core::media::OCI_MANIFEST;
use larder_core::{Digest, Reference};
use larder_upstream::{Client, Credentials, Error, Settings, Url};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fake::*;

/// `htpasswd -B` of the user `user` with the password `hunter2`.
const HTPASSWD: &str = "user:$2b$05$qpY45PJoNZIzbLmW6KEbx.hP81NjOuoDU1ebdyEJqFrtZLTStBOOK\n";
const USER: &str = "Basic dXNlcjpodW50ZXIy";
const BLOB: &[u8] = b"hello\n";

#[tokio::test]
async fn an_image_of_a_real_registry_can_be_read() {
    let registry = Registry::start();
    let manifest = registry.push_image("v1").await;
    let client = registry.client("hunter2");
    let by_digest = Reference::Digest(Digest::sha256_of(manifest.as_bytes()));

    client.ping().await.unwrap();
    let head = client.head_manifest(&repository(), &tag(), &all()).await.unwrap();
    assert_eq!(head.digest, Some(Digest::sha256_of(manifest.as_bytes())));
    assert_eq!(head.media_type.as_deref(), Some(OCI_MANIFEST));
    assert_eq!(head.length, Some(manifest.len() as u64));
    for reference in [tag(), by_digest] {
        let raw = client.manifest(&repository(), &reference, &all()).await.unwrap();
        assert_eq!(raw.bytes, manifest);
    }
    assert_eq!(client.head_blob(&repository(), &digest()).await.unwrap(), Some(6));
    for (range, expected) in
        [(None, "hello\n"), (Some((1, Some(3))), "ell"), (Some((2, None)), "llo\n")]
    {
        let mut blob = client.blob(&repository(), &digest(), range).await.unwrap();
        assert_eq!((blob.length, blob.remaining), (Some(6), Some(expected.len() as u64)));
        let mut text = Vec::new();
        while let Some(piece) = blob.body.next().await {
            text.extend_from_slice(&piece.unwrap());
        }
        assert_eq!(text, expected.as_bytes());
    }
    let beyond = client.blob(&repository(), &digest(), Some((6, None))).await;
    assert!(matches!(beyond, Err(Error::Range)), "{beyond:?}");
}

#[tokio::test]
async fn the_tags_of_a_real_registry_can_be_listed() {
    let registry = Registry::start();
    for tag in ["a", "b", "c"] {
        registry.push_image(tag).await;
    }
    // 2.8 has no pages: it sends all of them, in any order.
    let page = registry.client("hunter2").tags(&repository(), Some(2), None).await.unwrap();
    let tags: BTreeSet<_> = page.tags.iter().map(String::as_str).collect();
    assert_eq!((tags, page.next), (BTreeSet::from(["a", "b", "c"]), None));
}

#[tokio::test]
async fn a_real_registry_says_what_is_missing_and_who_is_unknown() {
    let registry = Registry::start();
    let client = registry.client("hunter2");
    let missing = client.manifest(&repository(), &tag(), &all()).await;
    assert!(matches!(missing, Err(Error::NotFound)), "{missing:?}");
    let missing = client.head_blob(&repository(), &digest()).await;
    assert!(matches!(missing, Err(Error::NotFound)), "{missing:?}");
    let missing = client.tags(&repository(), None, None).await;
    assert!(matches!(missing, Err(Error::NotFound)), "{missing:?}");

    let refused = registry.client("wrong").ping().await;
    assert!(matches!(refused, Err(Error::CredentialRefused(_))), "{refused:?}");
    let denied = client_of(settings(&[&registry.url])).ping().await;
    assert!(matches!(denied, Err(Error::Denied)), "{denied:?}");
}

/// A process with a port and a folder of its own, until it is dropped.
struct Registry {
    url: Url,
    process: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at("htpasswd"), HTPASSWD).unwrap();
        let config = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}}}\n\
             auth: {{htpasswd: {{realm: larder, path: {}}}}}\n",
            at("storage").display(),
            at("htpasswd").display(),
        );
        std::fs::write(at("config.yml"), config).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(at("config.yml"))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("docker-registry is needed: install the Debian package `docker-registry`");
        let log = BufReader::new(process.stderr.take().unwrap());
        let (tell, told) = mpsc::channel();
        // Reads to the end, as the process would block on a full pipe.
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let _ = tell.send(rest.split('"').next().unwrap().to_owned());
                }
            }
        });
        let address = told.recv_timeout(Duration::from_secs(60)).expect("it starts to listen");
        let url = Url::parse(&format!("http://{address}")).unwrap();
        Self { url, process, _dir: dir }
    }

    fn client(&self, password: &str) -> Client {
        let credentials =
            Credentials::Basic { username: "user".to_owned(), password: password.into() };
        client_of(Settings { credentials, ..settings(&[&self.url]) })
    }

    /// Pushes an image whose configuration and only layer are [`BLOB`]; its manifest.
    async fn push_image(&self, tag: &str) -> String {
        let upload = self.request("POST", "/v2/team/app/blobs/uploads/", "", b"").await;
        let location = upload.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
        let location = Url::parse(location).unwrap();
        let target =
            format!("{}?{}&digest={}", location.path(), location.query().unwrap(), digest());
        let put = self.request("PUT", &target, "application/octet-stream", BLOB).await;
        assert!(put.starts_with("HTTP/1.1 201"), "{put}");
        let blob =
            |kind: &str| format!(r#"{{"mediaType":"{kind}","size":6,"digest":"{}"}}"#, digest());
        let manifest = format!(
            r#"{{"schemaVersion":2,"mediaType":"{OCI_MANIFEST}","config":{},"layers":[{}]}}"#,
            blob("application/vnd.oci.image.config.v1+json"),
            blob("application/vnd.oci.image.layer.v1.tar"),
        );
        let path = format!("/v2/team/app/manifests/{tag}");
        let put = self.request("PUT", &path, OCI_MANIFEST, manifest.as_bytes()).await;
        assert!(put.starts_with("HTTP/1.1 201"), "{put}");
        manifest
    }

    /// One request on a connection of its own; the answer as text.
    async fn request(&self, method: &str, target: &str, media_type: &str, body: &[u8]) -> String {
        let address = self.url.socket_addrs(|| None).unwrap()[0];
        let mut stream = TcpStream::connect(address).await.unwrap();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: {address}\r\nauthorization: {USER}\r\n\
             content-type: {media_type}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            body.len()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(body).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.replace('\r', "")
    }
}
