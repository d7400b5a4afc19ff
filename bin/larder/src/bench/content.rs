//! Images for the bench, laid down as docker-registry keeps them.
//!
//! Writing its files directly saves pushing gigabytes, and lets several docker-registries and
//! nginx serve the very same bytes, which are then once in the page cache.
//!
//! Source: distribution 2.8, `registry/storage/paths.go`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Context;
use larder_core::{Digest, digest::Hasher, media};

/// How much is made at a time, in bytes; a multiple of 8.
const CHUNK: usize = 1 << 20;

/// A blob in an [`Images`].
#[derive(Clone, Debug)]
pub(crate) struct Blob {
    /// What it is called.
    pub(crate) digest: Digest,
    /// How many bytes it has.
    pub(crate) size: u64,
}

/// A manifest in an [`Images`].
#[derive(Clone, Debug)]
pub(crate) struct TaggedManifest {
    /// What it is called.
    pub(crate) digest: Digest,
    /// Its tag.
    pub(crate) tag: &'static str,
    /// Its bytes.
    pub(crate) bytes: Vec<u8>,
}

/// One repository in the storage directory of a docker-registry.
#[derive(Debug)]
pub(crate) struct Images {
    root: PathBuf,
}

/// The repository that everything is in.
pub(crate) const REPOSITORY: &str = "bench/image";

impl Images {
    /// An empty repository below `root`, which is a docker-registry's `rootdirectory`.
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// The storage directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Makes a blob of `size` bytes that no compression shrinks; other seeds give other blobs.
    ///
    /// # Errors
    ///
    /// The disk refused.
    pub(crate) fn add_random(&self, seed: u64, size: u64) -> anyhow::Result<Blob> {
        fs::create_dir_all(&self.root)?;
        let staged = self.root.join(format!("staged-{seed}"));
        let mut file = fs::File::create(&staged).context("making a blob")?;
        let mut hasher = empty_hasher();
        let mut noise = Noise::new(seed);
        let mut chunk = vec![0; CHUNK];
        let mut left = size;
        while left > 0 {
            let n = left.min(CHUNK as u64) as usize;
            noise.fill(&mut chunk);
            hasher.update(&chunk[..n]);
            file.write_all(&chunk[..n]).context("making a blob")?;
            left -= n as u64;
        }
        let digest = hasher.finish();
        let data = self.data(&digest);
        make_parent(&data)?;
        fs::rename(&staged, &data).context("making a blob")?;
        self.link("_layers", &digest)?;
        Ok(Blob { digest, size })
    }

    /// Makes an image manifest of exactly `size` bytes, tagged `tag`.
    ///
    /// # Errors
    ///
    /// The disk refused.
    pub(crate) fn add_manifest(
        &self,
        tag: &'static str,
        size: usize,
    ) -> anyhow::Result<TaggedManifest> {
        let config = self.add_random(size as u64 ^ 0xC0F1, 512)?;
        let layer = self.add_random(size as u64 ^ 0x1A7E, 1024)?;
        let bytes = manifest(&config, &[layer], size);
        let digest = Digest::sha256_of(&bytes);
        let data = self.data(&digest);
        make_parent(&data)?;
        fs::write(&data, &bytes).context("making a manifest")?;
        self.link("_manifests/revisions", &digest)?;
        self.link(&format!("_manifests/tags/{tag}/index"), &digest)?;
        let current = self.in_repository(&format!("_manifests/tags/{tag}/current/link"));
        make_parent(&current)?;
        fs::write(current, digest.to_string()).context("tagging a manifest")?;
        Ok(TaggedManifest { digest, tag, bytes })
    }

    /// Where the bytes of `digest` are, below [`Images::root`].
    pub(crate) fn data_path(digest: &Digest) -> String {
        let hex = digest.hex();
        format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2])
    }

    fn data(&self, digest: &Digest) -> PathBuf {
        self.root.join(Self::data_path(digest))
    }

    fn in_repository(&self, path: &str) -> PathBuf {
        self.root.join("docker/registry/v2/repositories").join(REPOSITORY).join(path)
    }

    /// Says that the repository has `digest`, as a thing of this `kind`.
    fn link(&self, kind: &str, digest: &Digest) -> anyhow::Result<()> {
        let link = self.in_repository(&format!("{kind}/sha256/{}/link", digest.hex()));
        make_parent(&link)?;
        fs::write(link, digest.to_string()).context("linking a blob")
    }
}

/// An OCI image manifest, padded by an annotation to `size` bytes, or longer if it must be.
pub(crate) fn manifest(config: &Blob, layers: &[Blob], size: usize) -> Vec<u8> {
    let descriptor = |blob: &Blob, media_type: &str| {
        serde_json::json!({
            "mediaType": media_type, "digest": blob.digest, "size": blob.size,
        })
    };
    let layers: Vec<_> =
        layers.iter().map(|it| descriptor(it, "application/vnd.oci.image.layer.v1.tar")).collect();
    let padded = |padding: usize| {
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
            "layers": layers,
            "annotations": { "padding": "x".repeat(padding) },
        });
        manifest.to_string().into_bytes()
    };
    let bare = padded(0).len();
    padded(size.saturating_sub(bare))
}

/// A SHA-256 of nothing so far.
pub(crate) fn empty_hasher() -> Hasher {
    Digest::sha256_of(&[]).hasher()
}

fn make_parent(path: &Path) -> anyhow::Result<()> {
    let parent = path.parent().context("a file has a directory")?;
    fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))
}

/// Numbers without pattern, quickly: SplitMix64.
struct Noise {
    state: u64,
}

impl Noise {
    fn new(seed: u64) -> Self {
        // Neighbouring seeds must not give the same numbers one step apart.
        Self { state: seed.wrapping_mul(0xD1B5_4A32_D192_ED03) }
    }

    fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_exact_mut(8) {
            self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (self.state ^ (self.state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            word.copy_from_slice(&(mixed ^ (mixed >> 31)).to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_lies_where_docker_registry_looks_and_hashes_to_its_name() {
        let root = tempfile::tempdir().unwrap();
        let images = Images::new(root.path().to_owned());
        let blob = images.add_random(7, 3_000_001).unwrap();
        let bytes = fs::read(root.path().join(Images::data_path(&blob.digest))).unwrap();
        assert_eq!(bytes.len(), 3_000_001);
        assert_eq!(Digest::sha256_of(&bytes), blob.digest);
    }

    #[test]
    fn other_seeds_give_other_blobs() {
        let root = tempfile::tempdir().unwrap();
        let images = Images::new(root.path().to_owned());
        let digest = |seed| images.add_random(seed, 4096).unwrap().digest;
        assert_ne!(digest(1), digest(2));
        assert_eq!(digest(1), digest(1));
    }

    #[test]
    fn a_manifest_has_the_size_that_was_asked_for_and_parses() {
        let root = tempfile::tempdir().unwrap();
        let made = Images::new(root.path().to_owned()).add_manifest("1", 2048).unwrap();
        assert_eq!(made.bytes.len(), 2048);
        let parsed = larder_core::manifest::Manifest::parse(&made.bytes).unwrap();
        assert_eq!(parsed.blobs.len(), 2);
    }
}
