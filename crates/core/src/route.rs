//! Which operation of the distribution protocol a path names.
//!
//! Repository names have any number of components and may contain words like `blobs`, so a path is
//! read from the right.
//!
//! Source: OCI distribution-spec 1.1, "Endpoints".

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

/// An operation on `/v2/`, with the name as the client wrote it (host or alias included).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route<'a> {
    /// `/v2/`: is this a registry?
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// `/v2/<name>/manifests/<reference>`
    Manifest {
        /// Everything before `/manifests/`.
        name: Cow<'a, str>,
        /// A tag or digest, not yet parsed.
        reference: Cow<'a, str>,
    },
    /// `/v2/<name>/blobs/<digest>`
    Blob {
        /// Everything before `/blobs/`.
        name: Cow<'a, str>,
        /// A digest, not yet parsed.
        digest: Cow<'a, str>,
    },
    /// `/v2/<name>/tags/list`
    Tags {
        /// Everything before `/tags/list`.
        name: Cow<'a, str>,
    },
    /// `/v2/<name>/referrers/<digest>`
    Referrers {
        /// Everything before `/referrers/`.
        name: Cow<'a, str>,
        /// A digest, not yet parsed.
        digest: Cow<'a, str>,
    },
    /// `/v2/<name>/blobs/uploads/[…]`, which only writers use.
    Upload,
}

impl<'a> Route<'a> {
    /// Reads the path of a request (no query). `None`: not an operation of the protocol.
    pub fn parse(path: &'a str) -> Option<Self> {
        let rest = path.strip_prefix("/v2")?;
        if rest.is_empty() || rest == "/" {
            return Some(Self::Base);
        }
        let rest = rest.strip_prefix('/')?;
        if rest == "_catalog" {
            return Some(Self::Catalog);
        }
        if rest.ends_with("/blobs/uploads") || rest.contains("/blobs/uploads/") {
            return Some(Self::Upload);
        }
        if let Some(name) = rest.strip_suffix("/tags/list") {
            return Some(Self::Tags { name: decode(name)? });
        }
        let (before, last) = rest.rsplit_once('/')?;
        let (name, kind) = before.rsplit_once('/')?;
        let (name, last) = (decode(name)?, decode(last)?);
        match kind {
            "manifests" => Some(Self::Manifest { name, reference: last }),
            "blobs" => Some(Self::Blob { name, digest: last }),
            "referrers" => Some(Self::Referrers { name, digest: last }),
            _ => None,
        }
    }
}

/// Undoes percent encoding. `None` if the bytes are not UTF-8.
fn decode(text: &str) -> Option<Cow<'_, str>> {
    percent_decode_str(text).decode_utf8().ok()
}

/// The value of `key` in a query string, percent-decoded. The first one counts.
pub fn query_value<'a>(query: Option<&'a str>, key: &str) -> Option<Cow<'a, str>> {
    query?
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .find(|(name, _)| *name == key)
        .and_then(|(_, value)| decode(value))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_path_is_read_from_the_right() {
        let show = |path: &str| match Route::parse(path) {
            Some(Route::Manifest { name, reference }) => format!("manifest {name} {reference}"),
            Some(Route::Blob { name, digest }) => format!("blob {name} {digest}"),
            Some(Route::Tags { name }) => format!("tags {name}"),
            Some(Route::Referrers { name, digest }) => format!("referrers {name} {digest}"),
            other => format!("{other:?}"),
        };
        assert_eq!(show("/v2"), "Some(Base)");
        assert_eq!(show("/v2/"), "Some(Base)");
        assert_eq!(show("/v2/_catalog"), "Some(Catalog)");
        assert_eq!(show("/v2/a/manifests/1"), "manifest a 1");
        assert_eq!(show("/v2/docker.io/library/a/manifests/1"), "manifest docker.io/library/a 1");
        assert_eq!(show("/v2/a/blobs/manifests/1"), "manifest a/blobs 1");
        assert_eq!(show("/v2/a/manifests/blobs/sha256:00"), "blob a/manifests sha256:00");
        assert_eq!(show("/v2/a/b/tags/list"), "tags a/b");
        assert_eq!(show("/v2/a/referrers/sha256:00"), "referrers a sha256:00");
        assert_eq!(show("/v2/a/blobs/sha256%3A00"), "blob a sha256:00");
        assert_eq!(show("/v2/%5B::1%5D:5000/a/blobs/x"), "blob [::1]:5000/a x");
        assert_eq!(show("/v2/a/blobs/uploads/"), "Some(Upload)");
        assert_eq!(show("/v2/a/blobs/uploads/1234"), "Some(Upload)");
        for path in ["/", "/v1/a", "/v2x", "/v2/a", "/v2/manifests/1", "/v2/a/other/1"] {
            assert_eq!(show(path), "None", "{path}");
        }
    }

    #[test]
    fn a_query_value_is_decoded() {
        assert_eq!(query_value(Some("x=1&ns=127.0.0.1%3A5001"), "ns").unwrap(), "127.0.0.1:5001");
        assert_eq!(query_value(Some("nsx=1"), "ns"), None);
        assert_eq!(query_value(None, "ns"), None);
    }

    proptest! {
        #[test]
        fn no_path_makes_the_parser_panic(path in "(/v2)?(/|manifests|blobs|tags/list|%[0-9a-f]{2}|\\PC){0,20}") {
            let _ = Route::parse(&path);
        }
    }
}
