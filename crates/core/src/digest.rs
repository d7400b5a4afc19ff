//! What content is called: `sha256:<64 hex digits>` or `sha512:<128 hex digits>`.
//!
//! Source: OCI image-spec, `descriptor.md`, "Digests" and "Registered algorithms".

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// The name of some bytes: a registered algorithm and the hash of the bytes under it.
///
/// A value of this type is well formed; whether bytes match it is for a [`Hasher`] to say.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// SHA-256, the algorithm everyone must support.
    Sha256([u8; 32]),
    /// SHA-512. Boxed, as it is rare and would double the size of every digest.
    Sha512(Box<[u8; 64]>),
}

/// Why a text is not a digest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// There is no `:`.
    #[error("a digest is written ALGORITHM:HEX")]
    Shape,
    /// The algorithm is not one that this program can verify.
    #[error("only sha256 and sha512 digests are supported")]
    Algorithm,
    /// The hash has the wrong number of digits, or something that is no lower-case hex digit.
    #[error("the hash of this algorithm is {expected} lower-case hex digits")]
    Hex {
        /// How many digits the algorithm has.
        expected: usize,
    },
}

impl Digest {
    /// The digest of `bytes` under SHA-256.
    pub fn sha256_of(bytes: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// The algorithm's registered name: `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The hash in lower-case hex: 64 or 128 digits.
    pub fn hex(&self) -> String {
        let mut text = String::with_capacity(self.hash().len() * 2);
        push_hex(&mut text, self.hash());
        text
    }

    /// A hasher that starts empty and uses this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(sha2::Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Box::new(sha2::Sha512::new())),
        }
    }

    fn hash(&self) -> &[u8] {
        match self {
            Self::Sha256(hash) => hash,
            Self::Sha512(hash) => &hash[..],
        }
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (algorithm, hex) = text.split_once(':').ok_or(ParseDigestError::Shape)?;
        match algorithm {
            "sha256" => parse_hex(hex).map(Self::Sha256),
            "sha512" => parse_hex(hex).map(|hash| Self::Sha512(Box::new(hash))),
            _ => Err(ParseDigestError::Algorithm),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::with_capacity(8 + self.hash().len() * 2);
        text.push_str(self.algorithm());
        text.push(':');
        push_hex(&mut text, self.hash());
        f.write_str(&text)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl serde::Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> serde::Deserialize<'de> for Digest {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A hash being computed.
///
/// It can be cloned in mid-stream, so that several readers can each verify their own end of a body
/// whose beginning they share.
#[derive(Clone)]
pub enum Hasher {
    /// SHA-256 so far.
    Sha256(sha2::Sha256),
    /// SHA-512 so far. Boxed, because its state is large and it is rare.
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// Adds `bytes` to what has been hashed.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(state) => state.update(bytes),
            Self::Sha512(state) => state.update(bytes),
        }
    }

    /// The digest of all bytes that were added.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(state) => Digest::Sha256(state.finalize().into()),
            Self::Sha512(state) => Digest::Sha512(Box::new(state.finalize().into())),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hasher")
    }
}

const HEX: &[u8; 16] = b"0123456789abcdef";

fn push_hex(text: &mut String, bytes: &[u8]) {
    for byte in bytes {
        text.push(HEX[usize::from(byte >> 4)] as char);
        text.push(HEX[usize::from(byte & 15)] as char);
    }
}

fn parse_hex<const N: usize>(hex: &str) -> Result<[u8; N], ParseDigestError> {
    let wrong = ParseDigestError::Hex { expected: N * 2 };
    let digits = hex.as_bytes();
    if digits.len() != N * 2 {
        return Err(wrong);
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        match (hex_value(pair[0]), hex_value(pair[1])) {
            (Some(high), Some(low)) => *byte = high << 4 | low,
            _ => return Err(wrong),
        }
    }
    Ok(bytes)
}

fn hex_value(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `printf 'hello\n' | sha256sum`
    const HELLO: &str = "sha256:5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03";

    #[test]
    fn a_hasher_names_bytes_as_sha256sum_does() {
        let mut hasher = HELLO.parse::<Digest>().unwrap().hasher();
        hasher.update(b"hel");
        hasher.update(b"lo\n");
        assert_eq!(hasher.finish().to_string(), HELLO);
    }

    #[test]
    fn a_hasher_of_sha512_gives_sha512() {
        let name = format!("sha512:{}", "0".repeat(128));
        let digest = name.parse::<Digest>().unwrap().hasher().finish();
        assert!(digest.to_string().starts_with("sha512:cf83e1357eefb8bd"), "{digest}");
    }

    #[test]
    fn what_is_not_a_digest_is_refused_with_what_is_wrong() {
        let parse = |text: &str| text.parse::<Digest>().unwrap_err();
        assert_eq!(parse("latest"), ParseDigestError::Shape);
        assert_eq!(parse("md5:00"), ParseDigestError::Algorithm);
        assert_eq!(parse("sha256:00"), ParseDigestError::Hex { expected: 64 });
        assert_eq!(parse(&HELLO.to_uppercase()), ParseDigestError::Algorithm);
        assert_eq!(parse(&HELLO.replace('b', "B")), ParseDigestError::Hex { expected: 64 });
    }

    proptest! {
        #[test]
        fn any_text_is_refused_or_printed_back_unchanged(text in "(sha256|sha512|x)?:?[0-9a-g]{0,130}") {
            if let Ok(digest) = text.parse::<Digest>() {
                prop_assert_eq!(digest.to_string(), text);
            }
        }

        #[test]
        fn every_hash_survives_being_written_down(hash: [u8; 32]) {
            let digest = Digest::Sha256(hash);
            prop_assert_eq!(digest.to_string().parse::<Digest>().unwrap(), digest);
        }
    }
}
