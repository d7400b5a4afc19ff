//! Which of an index's images are wanted.

use std::fmt;
use std::str::FromStr;

use crate::manifest::{Descriptor, Platform};

/// A platform as people write it: `linux/amd64`, `linux/arm/v7`. Without a variant all are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlatformName {
    os: String,
    architecture: String,
    variant: Option<String>,
}

/// Which platforms are wanted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Platforms {
    /// All that there are.
    All,
    /// Some: at least one.
    Some(Vec<PlatformName>),
}

/// Why a text is no platform.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a platform; write OS/ARCHITECTURE as in linux/amd64, or all")]
pub struct ParsePlatformError(String);

impl PlatformName {
    /// That of this program.
    pub fn own() -> Self {
        // As Go names them.
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: None }
    }

    fn matches(&self, platform: &Platform) -> bool {
        self.os == platform.os
            && self.architecture == platform.architecture
            && (self.variant.is_none() || self.variant == platform.variant)
    }
}

impl Platforms {
    /// Reads `all`, or platforms; none at all is [`PlatformName::own`].
    ///
    /// # Errors
    ///
    /// One of them is no platform.
    pub fn parse(texts: &[String]) -> Result<Self, ParsePlatformError> {
        match texts {
            [] => Ok(Self::Some(vec![PlatformName::own()])),
            [one] if one == "all" => Ok(Self::All),
            texts => {
                texts.iter().map(|text| text.parse()).collect::<Result<_, _>>().map(Self::Some)
            }
        }
    }

    /// Whether an entry of an index is wanted. One that names no platform is for every one.
    pub fn want(&self, entry: &Descriptor) -> bool {
        match (self, &entry.platform) {
            (Self::All, _) | (_, None) => true,
            (Self::Some(names), Some(platform)) => names.iter().any(|name| name.matches(platform)),
        }
    }
}

impl FromStr for PlatformName {
    type Err = ParsePlatformError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_word = |part: &&str| {
            let is_good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            !part.is_empty() && part.chars().all(is_good)
        };
        let parts: Vec<&str> = text.split('/').filter(is_word).collect();
        let (os, architecture, variant) = match (text.matches('/').count(), parts[..].first_chunk())
        {
            (1 | 2, Some([os, architecture])) => (os, architecture, parts.get(2)),
            _ => return Err(ParsePlatformError(text.to_owned())),
        };
        if parts.len() != text.matches('/').count() + 1 {
            return Err(ParsePlatformError(text.to_owned()));
        }
        Ok(Self {
            os: (*os).to_owned(),
            architecture: (*architecture).to_owned(),
            variant: variant.map(|it| (*it).to_owned()),
        })
    }
}

impl fmt::Display for PlatformName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { os, architecture, variant } = self;
        write!(f, "{os}/{architecture}")?;
        variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

impl fmt::Display for Platforms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("all"),
            Self::Some(names) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                f.write_str(&names.join(", "))
            }
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { os, architecture, variant } = self;
        write!(f, "{os}/{architecture}")?;
        variant.as_ref().map_or(Ok(()), |variant| write!(f, "/{variant}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Digest;

    #[test]
    fn a_platform_without_variant_means_all_of_them() {
        let want = |texts: &[&str], platform: &str| {
            let texts: Vec<String> = texts.iter().map(ToString::to_string).collect();
            Platforms::parse(&texts).unwrap().want(&entry(platform))
        };
        assert!(want(&["linux/amd64"], "linux/amd64") && !want(&["linux/amd64"], "linux/arm64"));
        assert!(want(&["linux/arm"], "linux/arm/v7") && want(&["linux/arm/v7"], "linux/arm/v7"));
        assert!(
            !want(&["linux/arm/v6"], "linux/arm/v7") && !want(&["linux/amd64"], "windows/amd64")
        );
        assert!(want(&["linux/amd64", "linux/arm64"], "linux/arm64") && want(&["all"], "a/b"));
    }

    #[test]
    fn what_is_no_platform_says_so() {
        for text in ["", "amd64", "linux/", "/amd64", "linux/amd64/", "a/b/c/d", "linux/amd 64"] {
            let error = Platforms::parse(&[text.to_owned()]).unwrap_err();
            assert!(error.to_string().contains(&format!("`{text}`")), "{text}");
        }
        assert_eq!("linux/arm/v7".parse::<PlatformName>().unwrap().to_string(), "linux/arm/v7");
    }

    fn entry(platform: &str) -> Descriptor {
        let mut parts = platform.split('/').map(ToOwned::to_owned);
        let (os, architecture) = (parts.next().unwrap(), parts.next().unwrap());
        Descriptor {
            digest: Digest::sha256_of(b""),
            size: 0,
            media_type: String::new(),
            platform: Some(Platform { os, architecture, variant: parts.next() }),
        }
    }
}
