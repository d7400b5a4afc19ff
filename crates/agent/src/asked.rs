//! What a runtime asks for.

use http::header::{
    ACCEPT, AUTHORIZATION, CONTENT_RANGE, HeaderMap, HeaderName, RANGE, USER_AGENT,
};
use http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE};
use http::{Method, StatusCode};
use larder_core::Digest;
use larder_core::address::{Asked as Address, Directory, HostPattern};
use larder_core::name::Named;
use larder_core::range::{ByteRange, parse_content_range};
use larder_core::route::{Route, query_value};

/// What is passed on to a replica. Nothing else is: what is not known here is not needed there.
const PASSED: [HeaderName; 8] = [
    ACCEPT,
    RANGE,
    IF_MATCH,
    IF_NONE_MATCH,
    IF_MODIFIED_SINCE,
    IF_UNMODIFIED_SINCE,
    IF_RANGE,
    USER_AGENT,
];

/// The upstream of a request that names none: dockerd's mirror of Docker Hub says nothing.
const DEFAULT_UPSTREAM: &str = "docker.io";

/// A request that is for a replica.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    /// Begins with `v2/`.
    pub(crate) path: String,
    pub(crate) query: Option<String>,
    /// Those that are passed on to everybody.
    pub(crate) headers: HeaderMap,
    /// Also the client's credential.
    pub(crate) secret: HeaderMap,
    pub(crate) what: What,
}

/// What it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// A blob.
    Blob(Digest),
    /// A manifest by its digest.
    Manifest(Digest),
    /// A manifest by tag, or something about the repository of this name.
    Other {
        /// Whether it is a manifest.
        is_manifest: bool,
    },
}

/// What a request is, if not for a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Not {
    /// `/v2/`: is this a registry?
    Base,
    /// For a registry that can be written to.
    Supported,
    /// For no registry.
    Found,
}

impl Asked {
    /// Reads the head of a request.
    ///
    /// # Errors
    ///
    /// [`Not`]: no replica has to be asked.
    pub(crate) fn read(request: &http::request::Parts) -> Result<Self, Not> {
        let method = request.method.clone();
        if method != Method::GET && method != Method::HEAD {
            return Err(Not::Supported);
        }
        let what = match Route::parse(request.uri.path()).ok_or(Not::Found)? {
            Route::Base => return Err(Not::Base),
            Route::Upload => return Err(Not::Supported),
            Route::Blob { digest, .. } => What::Blob(digest.parse().map_err(|_| Not::Found)?),
            Route::Manifest { reference, .. } => match reference.parse() {
                Ok(digest) => What::Manifest(digest),
                Err(_) => What::Other { is_manifest: true },
            },
            Route::Catalog | Route::Tags { .. } | Route::Referrers { .. } => {
                What::Other { is_manifest: false }
            }
        };
        let mut headers = HeaderMap::new();
        for name in PASSED {
            for value in request.headers.get_all(&name) {
                headers.append(name.clone(), value.clone());
            }
        }
        let mut secret = headers.clone();
        if let Some(value) = request.headers.get(AUTHORIZATION) {
            secret.insert(AUTHORIZATION, value.clone());
        }
        let path = request.uri.path().trim_start_matches('/').to_owned();
        let query = request.uri.query().map(str::to_owned);
        Ok(Self { method, path, query, headers, secret, what })
    }

    /// What decides who owns it: the digest, or otherwise the repository, so that one replica asks
    /// upstream about all its tags.
    pub(crate) fn key(&self) -> Digest {
        match &self.what {
            What::Blob(digest) | What::Manifest(digest) => digest.clone(),
            What::Other { .. } => {
                let named = self.named().map(|it| it.to_string());
                Digest::sha256_of(named.as_ref().unwrap_or(&self.path).as_bytes())
            }
        }
    }

    /// The upstream's host and the repository there. `None`: it names none.
    pub(crate) fn named(&self) -> Option<Named> {
        let path = format!("/{}", self.path);
        let name = match Route::parse(&path)? {
            Route::Manifest { name, .. }
            | Route::Blob { name, .. }
            | Route::Tags { name }
            | Route::Referrers { name, .. } => name,
            Route::Base | Route::Catalog | Route::Upload => return None,
        };
        let ns = query_value(self.query.as_deref(), "ns");
        let asked =
            Address { name: &name, ns: ns.as_deref(), default_upstream: Some(DEFAULT_UPSTREAM) };
        let mut anywhere = Directory::default();
        let every: HostPattern = "*".parse().ok()?;
        anywhere.add(0, &every, &[]);
        anywhere.resolve(asked).ok().map(|address| address.name)
    }

    /// Whether it is for a manifest.
    pub(crate) fn is_for_manifest(&self) -> bool {
        matches!(self.what, What::Manifest(_) | What::Other { is_manifest: true })
    }

    /// The digest that all bytes of a whole answer must have.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        match &self.what {
            What::Blob(digest) | What::Manifest(digest) => Some(digest),
            What::Other { .. } => None,
        }
    }
}

/// Which bytes of a blob an answer with this head has, if that can be told.
pub(crate) fn part(
    status: StatusCode,
    headers: &HeaderMap,
    length: Option<u64>,
) -> Option<ByteRange> {
    let last = length?.checked_sub(1)?;
    match status {
        StatusCode::OK => Some(ByteRange { start: 0, last }),
        StatusCode::PARTIAL_CONTENT => {
            let value = headers.get(CONTENT_RANGE)?.to_str().ok()?;
            let (range, _) = parse_content_range(value)?;
            (Some(range.len()) == length).then_some(range)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOB: &str = "sha256:2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";

    #[test]
    fn every_way_to_name_an_image_is_understood() {
        let named = |uri: &str| read("GET", uri).unwrap().named().unwrap().to_string();
        assert_eq!(named("/v2/library/redis/manifests/7?ns=docker.io"), "docker.io/library/redis");
        assert_eq!(named("/v2/a/manifests/7?ns=127.0.0.1%3A5001"), "127.0.0.1:5001/a");
        assert_eq!(named("/v2/docker.io/redis/manifests/7"), "docker.io/library/redis");
        assert_eq!(named("/v2/library/redis/tags/list"), "docker.io/library/redis");
        assert_eq!(named("/v2/quay.io/a/b/referrers/sha256:00"), "quay.io/a/b");
    }

    #[test]
    fn what_names_a_digest_is_kept_by_it_and_the_rest_by_repository() {
        let key = |uri: &str| read("GET", uri).unwrap().key();
        let blob: Digest = BLOB.parse().unwrap();
        assert_eq!(key(&format!("/v2/a/blobs/{BLOB}?ns=x.io")), blob);
        assert_eq!(key(&format!("/v2/a/manifests/{BLOB}?ns=y.io")), blob);
        assert_eq!(key("/v2/a/manifests/1?ns=x.io"), key("/v2/x.io/a/manifests/2"));
        assert_ne!(key("/v2/a/manifests/1?ns=x.io"), key("/v2/a/manifests/1?ns=y.io"));
    }

    #[test]
    fn what_no_replica_can_answer_is_not_for_one() {
        assert_eq!(read("GET", "/v2/").unwrap_err(), Not::Base);
        assert_eq!(read("POST", "/v2/a/blobs/uploads/").unwrap_err(), Not::Supported);
        assert_eq!(read("PUT", "/v2/a/manifests/1").unwrap_err(), Not::Supported);
        assert_eq!(read("GET", "/metrics").unwrap_err(), Not::Found);
        assert_eq!(read("GET", "/v2/a/blobs/sha256:12").unwrap_err(), Not::Found);
    }

    #[test]
    fn a_credential_is_kept_apart_and_cookies_are_not_kept() {
        let (parts, ()) = http::Request::get("/v2/a/manifests/1")
            .header("authorization", "Basic hunter2")
            .header("cookie", "hunter2")
            .header("accept", "a")
            .header("accept", "b")
            .body(())
            .unwrap()
            .into_parts();
        let asked = Asked::read(&parts).unwrap();
        assert!(!format!("{:?}", asked.headers).contains("hunter2"));
        assert_eq!(asked.headers.get_all("accept").iter().count(), 2);
        assert!(asked.secret.contains_key("authorization") && !asked.secret.contains_key("cookie"));
    }

    #[test]
    fn an_answer_is_a_known_part_only_if_its_head_agrees_with_itself() {
        let part = |status: u16, range: &str, length| {
            let mut headers = HeaderMap::new();
            if !range.is_empty() {
                headers.insert(CONTENT_RANGE, range.parse().unwrap());
            }
            let range = part(StatusCode::from_u16(status).unwrap(), &headers, length)?;
            Some((range.start, range.last))
        };
        assert_eq!(part(200, "", Some(10)), Some((0, 9)));
        assert_eq!(part(206, "bytes 5-9/10", Some(5)), Some((5, 9)));
        for (status, range, length) in [
            (200, "", None),
            (200, "", Some(0)),
            (206, "", Some(5)),
            (206, "bytes 5-9/10", Some(4)),
            (404, "", Some(10)),
        ] {
            assert_eq!(part(status, range, length), None, "{status} {range} {length:?}");
        }
    }

    proptest! {
        #[test]
        fn no_request_makes_the_reader_panic(uri in "/v2(/[a-z.:%0-9]{0,12}){0,6}(\\?(ns=)?[a-z.:%0-9&=]{0,12})?") {
            if let Ok(uri) = uri.parse::<http::Uri>()
                && let Ok(asked) = read("GET", &uri.to_string())
            {
                let _ = (asked.key(), asked.named());
            }
        }
    }

    fn read(method: &str, uri: &str) -> Result<Asked, Not> {
        let request = http::Request::builder().method(method).uri(uri).body(()).unwrap();
        Asked::read(&request.into_parts().0)
    }
}
