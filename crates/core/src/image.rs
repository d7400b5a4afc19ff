//! Images as people name them: `docker.io/library/alpine:3.20`.

use std::fmt;
use std::str::FromStr;

use crate::digest::Digest;
use crate::name::{DOCKER_HUB, ParseReferenceError, Reference};

/// `NAME`, `NAME:TAG`, `NAME@DIGEST` or `NAME:TAG@DIGEST`. The name may begin with a registry's host
/// or with an alias; which it is, only who knows the upstreams can say.
///
/// Without a tag `latest` is meant; with a tag and a digest the digest counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageName {
    /// What comes before tag and digest.
    pub name: String,
    /// Which one of the repository is meant.
    pub reference: Reference,
}

/// The upstream of an image whose name begins with none.
pub const DEFAULT_UPSTREAM: &str = DOCKER_HUB;

impl FromStr for ImageName {
    type Err = ParseReferenceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (text, digest) = match text.split_once('@') {
            Some((text, digest)) => (text, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash is that of a port.
        let last = text.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match text[last..].find(':') {
            Some(colon) => (&text[..last + colon], &text[last + colon + 1..]),
            None => (text, "latest"),
        };
        let tag = tag.parse()?;
        let reference = match digest {
            Some(digest) => {
                let digest: Digest = digest.parse().map_err(ParseReferenceError::Digest)?;
                Reference::Digest(digest)
            }
            None => Reference::Tag(tag),
        };
        Ok(Self { name: name.to_owned(), reference })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}:{tag}", self.name),
            Reference::Digest(digest) => write!(f, "{}@{digest}", self.name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_ends_where_tag_or_digest_begin() {
        let digest = Digest::sha256_of(b"");
        let cases = [
            ("alpine", "alpine:latest"),
            ("docker.io/library/alpine:3.20", "docker.io/library/alpine:3.20"),
            ("localhost:5000/app", "localhost:5000/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
        ];
        for (text, whole) in cases {
            assert_eq!(text.parse::<ImageName>().unwrap().to_string(), whole);
        }
        let both = format!("hub/app:1@{digest}");
        assert_eq!(both.parse::<ImageName>().unwrap().to_string(), format!("hub/app@{digest}"));
        let two_tags = format!("app:1:2@{digest}");
        for text in ["app:", "app@", "app@sha256:12", "app:a b", "app:1:2", two_tags.as_str()] {
            assert!(text.parse::<ImageName>().is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(name in "[a-z]{1,5}(:[0-9]{1,4}/[a-z]{1,5})?", tag in "[a-z0-9]{1,8}") {
            let image: ImageName = format!("{name}:{tag}").parse().unwrap();
            prop_assert_eq!(image.to_string().parse::<ImageName>().unwrap(), image);
        }
    }
}
