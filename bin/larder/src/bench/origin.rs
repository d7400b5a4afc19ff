//! An upstream that makes up its content: many tiny blobs, and manifests that name them.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use anyhow::Context;
use larder_core::{Digest, media};

use super::content::{Blob, manifest};
use super::http;

/// Bytes of each blob.
const BLOB: usize = 64;

/// How many blobs one manifest names; it has about 750 KB then.
const PER_MANIFEST: usize = 5000;

/// A running origin. It ends with the process; its threads wait for connections until then.
#[derive(Debug)]
pub(crate) struct Origin {
    address: SocketAddr,
    content: Arc<Content>,
}

#[derive(Debug)]
struct Content {
    blobs: Vec<Blob>,
    /// Which blob has this digest.
    number_of: HashMap<String, usize>,
    /// The manifests, by tag and by digest.
    manifests: HashMap<String, Arc<Vec<u8>>>,
    n_manifests: usize,
}

impl Origin {
    /// An origin with `n_blobs` blobs.
    ///
    /// # Errors
    ///
    /// No port is free.
    pub(crate) fn start(n_blobs: usize) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").context("binding the origin")?;
        let address = listener.local_addr()?;
        let content = Arc::new(Content::make(n_blobs));
        {
            let content = Arc::clone(&content);
            std::thread::spawn(move || accept(&listener, &content));
        }
        Ok(Self { address, content })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its blobs.
    pub(crate) fn blobs(&self) -> &[Blob] {
        &self.content.blobs
    }

    /// The tags of its manifests, which name all blobs.
    pub(crate) fn tags(&self) -> impl Iterator<Item = String> {
        (0..self.content.n_manifests).map(tag)
    }
}

fn tag(number: usize) -> String {
    format!("part-{number}")
}

/// The bytes of blob `number`.
fn bytes_of(number: usize) -> [u8; BLOB] {
    let mut bytes = [b'.'; BLOB];
    bytes[..8].copy_from_slice(&(number as u64).to_be_bytes());
    bytes
}

impl Content {
    fn make(n_blobs: usize) -> Self {
        let blob =
            |number| Blob { digest: Digest::sha256_of(&bytes_of(number)), size: BLOB as u64 };
        let blobs: Vec<Blob> = (0..n_blobs).map(blob).collect();
        let number_of =
            blobs.iter().enumerate().map(|(number, it)| (it.digest.to_string(), number)).collect();
        let mut manifests = HashMap::new();
        let parts = blobs.chunks(PER_MANIFEST);
        let n_manifests = parts.len();
        for (number, part) in parts.enumerate() {
            let bytes = Arc::new(manifest(&part[0], part, 0));
            manifests.insert(Digest::sha256_of(&bytes).to_string(), Arc::clone(&bytes));
            manifests.insert(tag(number), bytes);
        }
        Self { blobs, number_of, manifests, n_manifests }
    }

    /// The content that a path names, with its media type.
    fn find(&self, path: &str) -> Option<(Vec<u8>, &'static str)> {
        let name = path.split('?').next()?.rsplit('/').next()?;
        if let Some(number) = self.number_of.get(name) {
            return Some((bytes_of(*number).to_vec(), "application/octet-stream"));
        }
        let manifest = self.manifests.get(name)?;
        Some((manifest.to_vec(), media::OCI_MANIFEST))
    }

    fn answer(&self, request: &str) -> Vec<u8> {
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if path == "/v2/" {
            return b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}".to_vec();
        }
        let Some((body, media_type)) = self.find(path) else {
            return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_vec();
        };
        let digest = Digest::sha256_of(&body);
        let head = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n\
             Docker-Content-Digest: {digest}\r\n\r\n",
            body.len()
        );
        let mut answer = head.into_bytes();
        if method == "GET" {
            answer.extend(body);
        }
        answer
    }
}

fn accept(listener: &TcpListener, content: &Arc<Content>) {
    while let Ok((stream, _)) = listener.accept() {
        let content = Arc::clone(content);
        // A connection that breaks is the client's business.
        std::thread::spawn(move || serve(stream, &content).ok());
    }
}

fn serve(mut stream: TcpStream, content: &Content) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        let n = stream.read(&mut buffer)?;
        if n == 0 {
            return Ok(());
        }
        received.extend_from_slice(&buffer[..n]);
        while let Some(length) = http::head_length(&received) {
            let request: Vec<u8> = received.drain(..length).collect();
            stream.write_all(&content.answer(&String::from_utf8_lossy(&request)))?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::client::Target;

    #[test]
    fn every_blob_is_served_and_named_by_a_manifest() {
        let origin = Origin::start(3).unwrap();
        let get = |path: &str| Target::plain(origin.address(), path.to_owned()).body().unwrap();
        let tags: Vec<String> = origin.tags().collect();
        let manifest = get(&format!("/v2/x/manifests/{}", tags[0]));
        let parsed = larder_core::manifest::Manifest::parse(&manifest).unwrap();
        assert_eq!(parsed.blobs.len(), 1 + 3);
        for blob in &parsed.blobs {
            let bytes = get(&format!("/v2/x/blobs/{}?ns=y", blob.digest));
            assert_eq!(Digest::sha256_of(&bytes), blob.digest);
        }
    }
}
