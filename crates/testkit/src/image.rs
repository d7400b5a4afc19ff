//! Images made in memory.

mod archive;

use bytes::Bytes;
use larder_core::{Digest, media};
use serde_json::{Value, json};

use crate::random;
use archive::{gzip, tar};

/// The media type of an OCI layer.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const OCI_PLAIN_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// Some bytes, what they are, and what they are called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// The SHA-256 digest of the bytes.
    pub digest: Digest,
    /// As a descriptor of this content says.
    pub media_type: String,
    /// The content.
    pub bytes: Bytes,
}

impl Content {
    /// Names `bytes`.
    pub fn new(media_type: &str, bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        Self { digest: Digest::sha256_of(&bytes), media_type: media_type.to_owned(), bytes }
    }

    fn json(media_type: &str, value: &Value) -> Self {
        Self::new(media_type, value.to_string())
    }

    fn descriptor(&self) -> Value {
        json!({ "mediaType": self.media_type, "digest": self.digest, "size": self.bytes.len() })
    }
}

/// An image, an index or an artifact, with everything it refers to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The manifest that a tag would name.
    pub manifest: Content,
    /// The images of an index, in its order. Empty for an image or artifact.
    pub images: Vec<Image>,
    /// The configuration of an image or artifact.
    pub config: Option<Content>,
    /// The layers of an image or artifact, the lowest first.
    pub layers: Vec<Content>,
    /// Files in the layers, for those made by [`Builder::unpackable`]: path and content.
    pub files: Vec<(String, Bytes)>,
    platform: (String, String),
}

/// What an image is to be made of.
#[derive(Clone, Debug)]
pub struct Builder {
    seed: u64,
    sizes: Vec<usize>,
    platform: (String, String),
    is_docker: bool,
    is_unpackable: bool,
}

impl Image {
    /// Begins an OCI image for linux/amd64 without layers. All its bytes depend on `seed`.
    pub fn from_seed(seed: u64) -> Builder {
        Builder {
            seed,
            sizes: Vec::new(),
            platform: ("linux".to_owned(), "amd64".to_owned()),
            is_docker: false,
            is_unpackable: false,
        }
    }

    /// An image with layers of random bytes of these sizes.
    pub fn random(seed: u64, sizes: &[usize]) -> Self {
        Self::from_seed(seed).layers(sizes).build()
    }

    /// An OCI index, or a Docker manifest list if the first image is Docker's.
    pub fn index(images: Vec<Self>) -> Self {
        let is_docker =
            images.first().is_some_and(|image| image.manifest.media_type == media::DOCKER_MANIFEST);
        let media_type = if is_docker { media::DOCKER_LIST } else { media::OCI_INDEX };
        let entries = images.iter().map(|image| {
            let mut entry = image.manifest.descriptor();
            let (os, architecture) = &image.platform;
            entry["platform"] = json!({ "os": os, "architecture": architecture });
            entry
        });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media_type,
            "manifests": entries.collect::<Vec<_>>(),
        });
        let platform = (String::new(), String::new());
        let manifest = Content::json(media_type, &index);
        Self { manifest, images, config: None, layers: Vec::new(), files: Vec::new(), platform }
    }

    /// An OCI artifact of `artifact_type` with one layer, `payload`; about `subject` if given.
    pub fn artifact(artifact_type: &str, payload: &[u8], subject: Option<&Self>) -> Self {
        let config = Content::new(OCI_EMPTY, "{}");
        let layer = Content::new("application/octet-stream", payload.to_vec());
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        if let Some(subject) = subject {
            manifest["subject"] = subject.manifest.descriptor();
        }
        Self::of_one_layer(&manifest, config, layer, ("", ""))
    }

    /// An OCI image for this machine's architecture, with one layer, that starts `entrypoint` as `user`
    /// (`USER:GROUP`). A file is its path, without a slash before it, its content and its mode.
    pub fn of_files(files: &[(&str, &[u8], u32)], entrypoint: &[&str], user: &str) -> Self {
        let archive = tar(files);
        let layer = Content::new(OCI_PLAIN_LAYER, archive);
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        let config = json!({
            "os": "linux",
            "architecture": architecture,
            "config": { "Entrypoint": entrypoint, "User": user },
            "rootfs": { "type": "layers", "diff_ids": [layer.digest] },
        });
        let config = Content::json(OCI_CONFIG, &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_MANIFEST,
            "config": config.descriptor(),
            "layers": [layer.descriptor()],
        });
        Self::of_one_layer(&manifest, config, layer, ("linux", architecture))
    }

    fn of_one_layer(
        manifest: &Value,
        config: Content,
        layer: Content,
        (os, architecture): (&str, &str),
    ) -> Self {
        Self {
            manifest: Content::json(media::OCI_MANIFEST, manifest),
            images: Vec::new(),
            config: Some(config),
            layers: vec![layer],
            files: Vec::new(),
            platform: (os.to_owned(), architecture.to_owned()),
        }
    }

    /// An archive of the image as an OCI layout, in which it is called `name`
    /// (`HOST/REPOSITORY:TAG`).
    pub fn layout(&self, name: &str) -> Vec<u8> {
        let mut entry = self.manifest.descriptor();
        entry["annotations"] = json!({ "io.containerd.image.name": name });
        let index = json!({
            "schemaVersion": 2,
            "mediaType": media::OCI_INDEX,
            "manifests": [entry],
        });
        let index = index.to_string();
        let mut contents = vec![
            ("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice()),
            ("index.json".to_owned(), index.as_bytes()),
        ];
        let named: Vec<&Content> = self.blobs().chain([&self.manifest]).collect();
        for content in named {
            let (algorithm, hex) = (content.digest.algorithm(), content.digest.hex());
            contents.push((format!("blobs/{algorithm}/{hex}"), &content.bytes));
        }
        let files: Vec<(&str, &[u8], u32)> =
            contents.iter().map(|(path, bytes)| (path.as_str(), *bytes, 0o644)).collect();
        tar(&files)
    }

    /// What the manifest is called.
    pub fn digest(&self) -> &Digest {
        &self.manifest.digest
    }

    /// Its own configuration and layers, not those of an index's images.
    pub fn blobs(&self) -> impl Iterator<Item = &Content> {
        self.config.iter().chain(&self.layers)
    }
}

impl Builder {
    /// Adds layers. A size is the number of random bytes: the layer's own size, or for
    /// [`Self::unpackable`] that of the one file in it.
    #[must_use]
    pub fn layers(mut self, sizes: &[usize]) -> Self {
        self.sizes.extend(sizes);
        self
    }

    /// Makes the image for `os` and `architecture`.
    #[must_use]
    pub fn platform(mut self, os: &str, architecture: &str) -> Self {
        self.platform = (os.to_owned(), architecture.to_owned());
        self
    }

    /// Uses Docker's media types (schema 2).
    #[must_use]
    pub fn docker(mut self) -> Self {
        self.is_docker = true;
        self
    }

    /// Makes layers that a runtime can unpack: gzipped tar, each with one file
    /// `data/layer<n>.bin`.
    #[must_use]
    pub fn unpackable(mut self) -> Self {
        self.is_unpackable = true;
        self
    }

    /// Makes the image.
    pub fn build(self) -> Image {
        let (manifest_type, config_type, layer_type) = match self.is_docker {
            false => (media::OCI_MANIFEST, OCI_CONFIG, OCI_LAYER),
            true => (media::DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER),
        };
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        let mut files = Vec::new();
        for (n, size) in self.sizes.iter().enumerate() {
            let content = random::bytes(self.seed.wrapping_mul(1000).wrapping_add(n as u64), *size);
            let packed = if self.is_unpackable {
                let path = format!("data/layer{n}.bin");
                let archive = tar(&[(&path, &content, 0o644)]);
                diff_ids.push(Digest::sha256_of(&archive));
                files.push((path, content));
                gzip(&archive)
            } else {
                diff_ids.push(Digest::sha256_of(&content));
                content
            };
            layers.push(Content::new(layer_type, packed));
        }
        let (os, architecture) = &self.platform;
        let config = json!({
            "os": os,
            "architecture": architecture,
            "author": format!("seed {}", self.seed),
            "config": { "Cmd": ["/data/layer0.bin"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = Content::json(config_type, &config);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": manifest_type,
            "config": config.descriptor(),
            "layers": layers.iter().map(Content::descriptor).collect::<Vec<_>>(),
        });
        Image {
            manifest: Content::json(manifest_type, &manifest),
            images: Vec::new(),
            config: Some(config),
            layers,
            files,
            platform: self.platform,
        }
    }
}

#[cfg(test)]
mod tests {
    use larder_core::manifest::Manifest;

    use super::*;

    #[test]
    fn a_manifest_names_exactly_the_blobs_of_its_image() {
        let docker = Image::from_seed(3).layers(&[5, 6]).docker().unpackable().build();
        for image in [Image::random(1, &[10, 20, 0]), docker] {
            let manifest = Manifest::parse(&image.manifest.bytes).unwrap();
            let named = manifest.blobs.iter().map(|blob| (blob.digest.clone(), blob.size as usize));
            let made = image.blobs().map(|blob| (blob.digest.clone(), blob.bytes.len()));
            assert!(named.eq(made));
        }
    }

    #[test]
    fn an_index_names_its_images_with_their_platforms() {
        let image = |architecture| {
            Image::from_seed(1).layers(&[10]).platform("linux", architecture).build()
        };
        let index = Image::index(vec![image("amd64"), image("arm64")]);
        let manifest = Manifest::parse(&index.manifest.bytes).unwrap();
        let platform = |n: usize| manifest.manifests[n].platform.clone().unwrap().architecture;
        assert_eq!((platform(0).as_str(), platform(1).as_str()), ("amd64", "arm64"));
        assert_eq!(manifest.manifests[1].digest, *index.images[1].digest());
        assert_ne!(index.images[0].digest(), index.images[1].digest());
    }

    #[test]
    fn an_artifact_says_what_it_is_about() {
        let image = Image::random(1, &[10]);
        let artifact = Image::artifact("application/x-sbom", b"parts", Some(&image));
        let manifest = Manifest::parse(&artifact.manifest.bytes).unwrap();
        assert_eq!(manifest.subject.unwrap().digest, *image.digest());
    }
}
