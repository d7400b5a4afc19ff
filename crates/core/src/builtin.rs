//! A tiny image that every cache has, whatever its upstreams: what an agent pulls to see whether the
//! whole way from a runtime to the cache works.

use std::collections::HashMap;
use std::sync::LazyLock;

use serde_json::{Value, json};

use crate::Digest;
use crate::media;

/// The registry that the image is of. Nobody can have this name (RFC 6761), so that it can only come
/// from a cache.
pub const HOST: &str = "self-test.larder.invalid";

/// The repository, which has every tag.
pub const REPOSITORY: &str = "self-test";

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// The platforms that a cache runs on.
const ARCHITECTURES: [&str; 3] = ["amd64", "arm64", "ppc64le"];

/// Some content of the image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its digest.
    pub digest: Digest,
    /// What it is.
    pub media_type: &'static str,
    /// All of it; at most some KiB.
    pub bytes: Vec<u8>,
}

impl Content {
    fn new(media_type: &'static str, bytes: impl Into<Vec<u8>>) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::sha256_of(&bytes), media_type, bytes }
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest.to_string(), "size": self.bytes.len()})
    }
}

struct Image {
    index: Digest,
    contents: HashMap<Digest, Content>,
}

static IMAGE: LazyLock<Image> = LazyLock::new(image);

/// What its tags name.
pub fn index() -> &'static Content {
    &IMAGE.contents[&IMAGE.index]
}

/// What is called `digest`: the index, a manifest, a configuration or the layer.
pub fn content(digest: &Digest) -> Option<&'static Content> {
    IMAGE.contents.get(digest)
}

/// The layer.
pub fn layer() -> &'static Content {
    let layer = IMAGE.contents.values().find(|content| content.media_type == LAYER);
    layer.expect("the image has one")
}

fn image() -> Image {
    let layer = Content::new(LAYER, tar("larder", b"This image came through Larder.\n"));
    let mut contents = vec![layer.clone()];
    let mut entries = Vec::new();
    for architecture in ARCHITECTURES {
        let config = json!({
            "architecture": architecture,
            "os": "linux",
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": [layer.digest.to_string()]},
        });
        let config = Content::new(CONFIG, config.to_string());
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        let manifest = Content::new(media::OCI_MANIFEST, manifest.to_string());
        let mut entry = manifest.descriptor();
        entry["platform"] = json!({"os": "linux", "architecture": architecture});
        entries.push(entry);
        contents.extend([config, manifest]);
    }
    let index = json!({"schemaVersion": 2, "mediaType": media::OCI_INDEX, "manifests": entries});
    let index = Content::new(media::OCI_INDEX, index.to_string());
    let name = index.digest.clone();
    contents.push(index);
    let contents = contents.into_iter().map(|content| (content.digest.clone(), content));
    Image { index: name, contents: contents.collect() }
}

/// An archive of one file of less than 512 bytes, readable by everybody.
///
/// Source: POSIX.1-2017, pax, "ustar Interchange Format".
fn tar(name: &str, text: &[u8]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, field: &[u8]| header[at..at + field.len()].copy_from_slice(field);
    put(0, name.as_bytes());
    put(100, b"0000444\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", text.len()).as_bytes());
    put(136, b"00000000000\0");
    // The sum is taken with spaces in its own place.
    put(148, b"        ");
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut archive = header.to_vec();
    archive.extend_from_slice(text);
    // The file's last block is filled, and two empty ones are the end.
    archive.resize(4 * BLOCK, 0);
    archive
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    #[test]
    fn everything_that_the_index_leads_to_is_there() {
        let index = Manifest::parse(&index().bytes).unwrap();
        let mut n_layers = 0;
        for entry in index.children() {
            let manifest = content(&entry.digest).unwrap();
            assert_eq!(manifest.bytes.len() as u64, entry.size);
            for part in Manifest::parse(&manifest.bytes).unwrap().children() {
                assert_eq!(content(&part.digest).unwrap().bytes.len() as u64, part.size);
                n_layers += usize::from(part.digest == layer().digest);
            }
        }
        assert_eq!(n_layers, ARCHITECTURES.len());
    }
}
