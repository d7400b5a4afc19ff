//! An OCI image layout: what its files are, and what its index lists.
//!
//! Source: OCI image-spec 1.1, `image-layout.md`.

use std::collections::HashMap;

use serde::Deserialize;

use crate::{Digest, Host, ImageName};

/// A file of a layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// `index.json`
    Index,
    /// `blobs/ALGORITHM/HEX`
    Blob(Digest),
    /// `manifest.json`, which Docker wrote before it knew layouts, and still writes beside them.
    DockerManifest,
    /// Something else, `oci-layout` for example.
    Other,
}

/// An entry of the index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// What the manifest is called.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// What people call the image, if that is said with the registry's host.
    pub name: Option<ImageName>,
}

/// Why bytes are not the index of a layout.
#[derive(Debug, thiserror::Error)]
pub enum ParseLayoutError {
    /// It is not JSON, or has not what an index has.
    #[error("index.json is no image index")]
    Json(#[from] serde_json::Error),
    /// There is nothing in it.
    #[error("index.json lists no image")]
    Empty,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: Digest,
    #[serde(rename = "mediaType")]
    media_type: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

impl Part {
    /// What the file at `path` is, which is relative to the layout. Only names that a layout has are
    /// known, so no path leads elsewhere.
    pub fn at(path: &str) -> Self {
        let path = path.strip_prefix("./").unwrap_or(path);
        match path.split('/').collect::<Vec<_>>()[..] {
            ["index.json"] => Self::Index,
            ["manifest.json"] => Self::DockerManifest,
            ["blobs", algorithm, hex] => {
                format!("{algorithm}:{hex}").parse().map_or(Self::Other, Self::Blob)
            }
            _ => Self::Other,
        }
    }
}

/// What an `index.json` lists: at least one image. Names are where containerd and Docker put them
/// (`io.containerd.image.name`), or where the specification does.
///
/// # Errors
///
/// [`ParseLayoutError`]
pub fn parse_index(bytes: &[u8]) -> Result<Vec<Listed>, ParseLayoutError> {
    let index: Index = serde_json::from_slice(bytes)?;
    if index.manifests.is_empty() {
        return Err(ParseLayoutError::Empty);
    }
    let listed = |it: Descriptor| {
        let name = |key: &str| whole_name(it.annotations.get(key)?);
        let name =
            name("io.containerd.image.name").or_else(|| name("org.opencontainers.image.ref.name"));
        Listed { digest: it.digest, media_type: it.media_type, name }
    };
    Ok(index.manifests.into_iter().map(listed).collect())
}

/// A name that says the registry, too; others mean something else everywhere.
fn whole_name(text: &str) -> Option<ImageName> {
    let image: ImageName = text.parse().ok()?;
    let (host, _) = image.name.split_once('/')?;
    Host::looks_like(host).then_some(image)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_of_the_layout_is_known_by_its_name() {
        let digest = Digest::sha256_of(b"");
        let blob = format!("blobs/sha256/{}", digest.hex());
        for path in [blob.clone(), format!("./{blob}")] {
            assert_eq!(Part::at(&path), Part::Blob(digest.clone()), "{path}");
        }
        assert_eq!(Part::at("./index.json"), Part::Index);
        for path in
            ["blobs/sha256/../../etc/passwd", "../index.json", "/index.json", "a/index.json", ""]
        {
            assert_eq!(Part::at(path), Part::Other, "{path}");
        }
    }

    #[test]
    fn an_image_has_the_name_that_says_the_registry() {
        let digest = Digest::sha256_of(b"");
        let name = |annotations: &str| {
            let entry =
                format!(r#"{{"digest":"{digest}","mediaType":"x/y","annotations":{annotations}}}"#);
            let index = format!(r#"{{"manifests":[{entry}]}}"#);
            parse_index(index.as_bytes()).unwrap().remove(0).name
        };
        let both = r#"{"io.containerd.image.name":"quay.io/a/b:1","org.opencontainers.image.ref.name":"1"}"#;
        assert_eq!(name(both).unwrap().to_string(), "quay.io/a/b:1");
        let one = r#"{"org.opencontainers.image.ref.name":"quay.io/a/b:1"}"#;
        assert_eq!(name(one).unwrap().to_string(), "quay.io/a/b:1");
        assert_eq!(name(r#"{"org.opencontainers.image.ref.name":"b:1"}"#), None);
        assert!(matches!(parse_index(br#"{"manifests":[]}"#), Err(ParseLayoutError::Empty)));
        assert!(matches!(parse_index(b"[]"), Err(ParseLayoutError::Json(_))));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>, path in "\\PC{0,40}") {
            let _ = parse_index(&bytes);
            let _ = Part::at(&path);
        }
    }
}
