//! What a manifest refers to.
//!
//! Manifests are kept and served byte for byte; this reads only the few fields that decide who may
//! pull what, and accepts every manifest whose shape is sound, whatever artifact it describes.
//!
//! Source: OCI image-spec 1.1, `manifest.md` and `image-index.md`; Docker image manifest v2,
//! schema 2.

use serde::Deserialize;

use crate::digest::Digest;
use crate::media;

/// The largest manifest that is read, in bytes. The distribution specification asks registries to
/// take at least 4 MiB, and clients stop there.
pub const MAX_MANIFEST: usize = 4 << 20;

/// The most references that one manifest may hold: a layer limit is 127, an index of every
/// platform a few dozen; 4 MiB would have room for some 30,000.
pub(crate) const MAX_CHILDREN: usize = 10_000;

/// One reference to content.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Descriptor {
    /// What the content is called.
    pub digest: Digest,
    /// How many bytes it has.
    pub size: u64,
    /// Its media type.
    #[serde(rename = "mediaType")]
    pub media_type: String,
    /// The platform that an index chose it for.
    #[serde(default)]
    pub platform: Option<Platform>,
}

impl Descriptor {
    /// Whether it is one that registries need not have, by its media type.
    ///
    /// Source: OCI image-spec 1.1, `layer.md`, "Non-Distributable Layers"; Docker's foreign layers.
    pub fn is_foreign(&self) -> bool {
        self.media_type.contains(".nondistributable.") || self.media_type.contains(".foreign.")
    }
}

/// The platform that an entry of an index is for.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Platform {
    /// As Go names it: `amd64`, `arm64`, `ppc64le`.
    pub architecture: String,
    /// As Go names it: `linux`, `windows`.
    pub os: String,
    /// Such as `v7` of `arm`.
    #[serde(default)]
    pub variant: Option<String>,
}

/// The references of one manifest or index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The media type written in the manifest itself; OCI allows to leave it out.
    pub media_type: Option<String>,
    /// The blobs of an image: its configuration, then its layers. Empty for an index.
    pub blobs: Vec<Descriptor>,
    /// The manifests of an index. Empty for an image.
    pub manifests: Vec<Descriptor>,
    /// What this manifest is about (a signature's image, say).
    pub subject: Option<Descriptor>,
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ParseManifestError {
    /// Not JSON, or a field has the wrong type.
    #[error("not a manifest")]
    Json(#[from] serde_json::Error),
    /// Schema 1, which has no descriptors.
    #[error("manifest schema {0} is not supported; only schema 2 and OCI manifests are")]
    Schema(u64),
    /// More references than any image has.
    #[error("the manifest has more than 10,000 references")]
    TooManyReferences,
}

#[derive(Deserialize)]
struct Fields {
    #[serde(rename = "schemaVersion")]
    schema_version: u64,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: Vec<Descriptor>,
    #[serde(default)]
    manifests: Vec<Descriptor>,
    /// The blobs of the artifact manifest that OCI 1.1 had before its release; ORAS 1.0 wrote them.
    #[serde(default)]
    blobs: Vec<Descriptor>,
    subject: Option<Descriptor>,
}

#[derive(Deserialize)]
struct Schema {
    #[serde(rename = "schemaVersion")]
    schema_version: u64,
}

impl Manifest {
    /// Reads the references of `bytes`.
    ///
    /// # Errors
    ///
    /// The bytes are not a manifest that we could serve the content of; [`ParseManifestError`]
    /// says why. They can still be passed on to the client who asked.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseManifestError> {
        let fields: Fields = serde_json::from_slice(bytes)?;
        require_schema_2(fields.schema_version)?;
        let mut blobs: Vec<Descriptor> = fields.config.into_iter().collect();
        blobs.extend(fields.layers);
        blobs.extend(fields.blobs);
        if blobs.len() + fields.manifests.len() > MAX_CHILDREN {
            return Err(ParseManifestError::TooManyReferences);
        }
        Ok(Self {
            media_type: fields.media_type,
            blobs,
            manifests: fields.manifests,
            subject: fields.subject,
        })
    }

    /// Makes sure that `bytes` say that they are a manifest of schema 2.
    pub(crate) fn check_schema(bytes: &[u8]) -> Result<(), ParseManifestError> {
        let schema: Schema = serde_json::from_slice(bytes)?;
        require_schema_2(schema.schema_version)
    }

    /// The media type to serve the manifest under when upstream named none: the one it names
    /// itself, else the OCI type of its shape.
    pub fn media_type_or_guess(&self) -> &str {
        match &self.media_type {
            Some(media_type) => media_type,
            None if self.manifests.is_empty() => media::OCI_MANIFEST,
            None => media::OCI_INDEX,
        }
    }

    /// Everything that a registry has beside this manifest, or would not have taken it: all that it
    /// refers to, but for its subject and what is elsewhere. Of those no registry has checked that whoever
    /// pushed the manifest has them.
    pub fn children(&self) -> impl Iterator<Item = &Descriptor> {
        let blobs = self.blobs.iter().filter(|blob| !blob.is_foreign());
        blobs.chain(&self.manifests)
    }
}

fn require_schema_2(version: u64) -> Result<(), ParseManifestError> {
    match version {
        2 => Ok(()),
        other => Err(ParseManifestError::Schema(other)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DIGEST: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn an_image_refers_to_its_configuration_and_layers() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{0},"layers":[{0},{0}],"subject":{0},"annotations":{{"a":"b"}}}}"#,
            descriptor()
        );
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!((manifest.blobs.len(), manifest.manifests.len()), (3, 0));
        assert!(manifest.subject.is_some());
        assert_eq!(manifest.media_type_or_guess(), media::OCI_MANIFEST);
    }

    #[test]
    fn what_is_elsewhere_is_nothing_that_the_registry_vouches_for() {
        let elsewhere = [
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ];
        for media_type in elsewhere {
            let foreign = descriptor().replace("x/y", media_type);
            let text = format!(r#"{{"schemaVersion":2,"layers":[{foreign},{}]}}"#, descriptor());
            let manifest = Manifest::parse(text.as_bytes()).unwrap();
            let children: Vec<&Descriptor> = manifest.children().collect();
            assert_eq!((manifest.blobs.len(), children), (2, vec![&manifest.blobs[1]]));
        }
    }

    #[test]
    fn an_index_refers_to_manifests() {
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, descriptor());
        let manifest = Manifest::parse(text.as_bytes()).unwrap();
        assert_eq!((manifest.blobs.len(), manifest.manifests.len()), (0, 1));
        assert_eq!(manifest.media_type_or_guess(), media::OCI_INDEX);
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_the_reason() {
        let parse = |text: &str| Manifest::parse(text.as_bytes()).unwrap_err();
        assert!(matches!(parse("<html>"), ParseManifestError::Json(_)));
        assert!(matches!(parse(r#"{"schemaVersion":1}"#), ParseManifestError::Schema(1)));
        let bad = r#"{"schemaVersion":2,"layers":[{"digest":"sha256:0","size":1,"mediaType":""}]}"#;
        assert!(matches!(parse(bad), ParseManifestError::Json(_)));
        let many = vec![descriptor(); 10_001].join(",");
        let many = format!(r#"{{"schemaVersion":2,"manifests":[{many}]}}"#);
        assert!(matches!(parse(&many), ParseManifestError::TooManyReferences));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = Manifest::parse(&bytes);
        }
    }

    fn descriptor() -> String {
        format!(r#"{{"digest":"{DIGEST}","size":6,"mediaType":"x/y"}}"#)
    }
}
