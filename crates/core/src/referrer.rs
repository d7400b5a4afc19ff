//! What refers to an image: its signatures, its bills of materials, its indexes for lazy pulling.
//!
//! A descriptor in a list of referrers is kept as it came, whatever fields it has; only what it is
//! found by is read.
//!
//! Source: OCI distribution-spec 1.1, "Listing Referrers" and "Referrers Tag Schema"; OCI image-spec
//! 1.1, `manifest.md` (`subject`, `artifactType`).

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::digest::Digest;
use crate::manifest::{MAX_CHILDREN, Manifest, ParseManifestError};
use crate::media;
use crate::name::Tag;

/// One manifest that names another one as its subject.
#[derive(Clone, Debug, PartialEq)]
pub struct Referrer {
    /// What it is called.
    pub digest: Digest,
    /// What it is: `artifactType`. Empty if nobody says.
    pub artifact_type: String,
    /// Its descriptor, with every field that its author gave it.
    descriptor: Map<String, Value>,
}

/// The fields of a manifest that go into its descriptor.
#[derive(Deserialize)]
struct Described {
    #[serde(rename = "artifactType", default)]
    artifact_type: Option<String>,
    config: Option<Config>,
    annotations: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct Config {
    #[serde(rename = "mediaType")]
    media_type: String,
}

#[derive(Deserialize)]
struct List {
    manifests: Option<Vec<Map<String, Value>>>,
}

impl Referrer {
    /// Describes the manifest `bytes`, which has that digest and media type and is known to refer
    /// to something.
    ///
    /// # Errors
    ///
    /// The bytes are no manifest.
    pub fn describe(
        digest: &Digest,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Self, ParseManifestError> {
        let described: Described = serde_json::from_slice(bytes)?;
        let artifact_type = described
            .artifact_type
            .filter(|text| !text.is_empty())
            .or_else(|| described.config.map(|config| config.media_type))
            .unwrap_or_default();
        let mut descriptor = Map::new();
        descriptor.insert("mediaType".to_owned(), json!(media_type));
        descriptor.insert("digest".to_owned(), json!(digest.to_string()));
        descriptor.insert("size".to_owned(), json!(bytes.len()));
        if !artifact_type.is_empty() {
            descriptor.insert("artifactType".to_owned(), json!(artifact_type));
        }
        if let Some(annotations) = described.annotations.filter(|all| !all.is_empty()) {
            descriptor.insert("annotations".to_owned(), Value::Object(annotations));
        }
        Ok(Self { digest: digest.clone(), artifact_type, descriptor })
    }

    /// Whether a request for referrers of type `wanted` asks for this one.
    pub fn is_of_type(&self, wanted: &str) -> bool {
        self.artifact_type == wanted
    }

    /// How many bytes its descriptor takes in a list.
    pub fn encoded_len(&self) -> usize {
        serde_json::to_string(&self.descriptor).map_or(0, |text| text.len())
    }

    fn from_descriptor(descriptor: Map<String, Value>) -> Option<Self> {
        let text = |key: &str| descriptor.get(key).and_then(Value::as_str);
        let digest = text("digest")?.parse().ok()?;
        let artifact_type = text("artifactType").unwrap_or_default().to_owned();
        Some(Self { digest, artifact_type, descriptor })
    }
}

/// Reads a list of referrers: an image index. Entries without a digest are left out.
///
/// # Errors
///
/// The bytes are no index, or it is longer than a manifest may be.
pub fn parse_list(bytes: &[u8]) -> Result<Vec<Referrer>, ParseManifestError> {
    // What is no index of schema 2 is refused for the same reasons as any manifest.
    Manifest::check_schema(bytes)?;
    let list: List = serde_json::from_slice(bytes)?;
    let descriptors = list.manifests.unwrap_or_default();
    if descriptors.len() > MAX_CHILDREN {
        return Err(ParseManifestError::TooManyReferences);
    }
    Ok(descriptors.into_iter().filter_map(Referrer::from_descriptor).collect())
}

/// The list as it is answered: an image index.
pub fn write_list<'a>(referrers: impl IntoIterator<Item = &'a Referrer>) -> Vec<u8> {
    let manifests: Vec<_> = referrers.into_iter().map(|it| &it.descriptor).collect();
    let list = json!({
        "schemaVersion": 2,
        "mediaType": media::OCI_INDEX,
        "manifests": manifests,
    });
    list.to_string().into_bytes()
}

/// `first`, and behind them those of `second` that are not among them.
pub fn merge(mut first: Vec<Referrer>, second: Vec<Referrer>) -> Vec<Referrer> {
    for referrer in second {
        if first.iter().all(|known| known.digest != referrer.digest) {
            first.push(referrer);
        }
    }
    first
}

/// The tag under which the referrers of `subject` are listed in a registry without the API.
///
/// Source: OCI distribution-spec 1.1, "Referrers Tag Schema".
pub fn fallback_tag(subject: &Digest) -> Option<Tag> {
    let text = subject.to_string();
    let (algorithm, hex) = text.split_once(':')?;
    let short = |text: &str, n| text.chars().take(n).collect::<String>();
    format!("{}-{}", short(algorithm, 32), short(hex, 64)).parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_manifest_is_described_by_its_artifact_type_or_that_of_its_configuration() {
        let describe = |text: &str| {
            let digest = Digest::sha256_of(text.as_bytes());
            let referrer = Referrer::describe(&digest, "x/m", text.as_bytes()).unwrap();
            String::from_utf8(write_list([&referrer])).unwrap()
        };
        let own = describe(
            r#"{"artifactType":"a/sig","config":{"mediaType":"c"},"annotations":{"k":"v"}}"#,
        );
        assert!(own.contains(r#""artifactType":"a/sig""#), "{own}");
        assert!(own.contains(r#""annotations":{"k":"v"}"#), "{own}");
        let of_config = describe(r#"{"config":{"mediaType":"c/d"}}"#);
        assert!(of_config.contains(r#""artifactType":"c/d""#), "{of_config}");
        assert!(!of_config.contains("annotations"), "{of_config}");
        assert!(!describe("{}").contains("artifactType"));
    }

    #[test]
    fn a_list_keeps_fields_that_nobody_here_knows() {
        let digest = Digest::sha256_of(b"a");
        let text = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{digest}","future":[1]}},{{"size":1}}]}}"#
        );
        let list = parse_list(text.as_bytes()).unwrap();
        assert_eq!(list.len(), 1);
        assert!(String::from_utf8(write_list(&list)).unwrap().contains(r#""future":[1]"#));
        assert_eq!(parse_list(br#"{"schemaVersion":2,"manifests":null}"#).unwrap(), []);
        assert!(parse_list(b"<html>").is_err());
        assert!(parse_list(br#"{"schemaVersion":1}"#).is_err());
    }

    #[test]
    fn lists_are_joined_without_doubles() {
        let referrer = |text: &str| {
            let digest = Digest::sha256_of(text.as_bytes());
            Referrer::describe(&digest, "x/y", b"{}").unwrap()
        };
        let [a, b, c] = ["a", "b", "c"].map(referrer);
        let joined = merge(vec![a.clone(), b.clone()], vec![b.clone(), c.clone()]);
        assert_eq!(joined, [a, b, c]);
    }

    #[test]
    fn the_fallback_tag_is_the_digest_with_a_dash() {
        let sha256 = Digest::sha256_of(b"");
        let tag = fallback_tag(&sha256).unwrap();
        assert_eq!(tag.to_string(), sha256.to_string().replace(':', "-"));
        let sha512: Digest = format!("sha512:{}", "ab".repeat(64)).parse().unwrap();
        assert_eq!(
            fallback_tag(&sha512).unwrap().to_string(),
            format!("sha512-{}", "ab".repeat(32))
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes: Vec<u8>) {
            let _ = parse_list(&bytes);
            let _ = Referrer::describe(&Digest::sha256_of(b""), "", &bytes);
        }
    }
}
