//! What each fuzz target does with its bytes. A property that does not hold is a panic.
//!
//! The targets for parsers that are private to `larder-upstream` and `larder-agent` are in those crates,
//! in `fuzzing`.
//! Ordinary tests run every body over the seeds in `corpus/`.

mod damage;

use larder_core::address::{Asked, Directory, HostPattern};
use larder_core::layout::{Part, parse_index};
use larder_core::manifest::Manifest;
use larder_core::media::Accept;
use larder_core::name::{Host, Reference, Repository, Tag};
use larder_core::platform::Platforms;
use larder_core::range::{RangeHeader, RangeSpec, parse_content_range};
use larder_core::route::{Route, query_value};
use larder_core::size::{human_size, parse_size};
use larder_core::{Digest, ImageName, referrer};
use larder_registry::config::{Environment, Files, Overrides, parse};

pub use damage::store;
#[cfg(fuzzing)]
pub use larder_agent::fuzzing::mirrors;
#[cfg(fuzzing)]
pub use larder_upstream::fuzzing::{challenges, docker_config, links, tokens};

/// The bodies that are here, by the names of their targets.
pub const TARGETS: [(&str, fn(&[u8])); 12] = [
    ("names", names),
    ("digests", digests),
    ("routes", routes),
    ("addresses", addresses),
    ("ranges", ranges),
    ("accept", accept),
    ("manifests", manifests),
    ("layouts", layouts),
    ("referrers", referrers),
    ("configuration", configuration),
    ("sizes", sizes),
    ("store", store),
];

/// Hosts, repositories, tags, references: what is taken is printed as it would be taken again.
pub fn names(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    if let Ok(host) = text.parse::<Host>() {
        assert_eq!(host.as_str().parse::<Host>().as_ref(), Ok(&host));
    }
    if let Ok(pattern) = text.parse::<HostPattern>() {
        assert_eq!(pattern.as_str().parse::<HostPattern>().as_ref(), Ok(&pattern));
        if let Some(host) = pattern.exact() {
            assert!(pattern.matches(host));
        }
    }
    if let Ok(repository) = text.parse::<Repository>() {
        assert_eq!(repository.as_str(), text);
        assert!(!text.contains("..") && !text.starts_with('/'), "{text} leads out of its place");
        let hub: Host = "docker.io".parse().expect("it is a host");
        let named = repository.at(&hub);
        assert_eq!(named.clone().at(&hub), named);
    }
    if let Ok(tag) = text.parse::<Tag>() {
        assert_eq!(tag.as_str(), text);
    }
    if let Ok(reference) = text.parse::<Reference>() {
        assert_eq!(reference.to_string(), text);
    }
}

/// Layouts and images: what is called by a whole name is called so again, and no path leads elsewhere.
pub fn layouts(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    if let Part::Blob(digest) = Part::at(text) {
        let path = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        assert_eq!(text.strip_prefix("./").unwrap_or(text), path);
    }
    if let Ok(image) = text.parse::<ImageName>() {
        assert_eq!(image.to_string().parse().as_ref(), Ok(&image));
    }
    let _ = Platforms::parse(&[text.to_owned()]);
    let names = parse_index(bytes).into_iter().flatten().filter_map(|listed| listed.name);
    for name in names {
        assert!(name.name.contains('/'), "{name}");
    }
}

/// Digests: one way to write each.
pub fn digests(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
        let json = serde_json::to_string(&digest).expect("a digest is text");
        assert_eq!(serde_json::from_str::<Digest>(&json).ok(), Some(digest.clone()));
        assert_eq!(digest.hasher().finish().algorithm(), digest.algorithm());
    }
    let mut whole = Digest::sha256_of(b"").hasher();
    bytes.chunks(7).for_each(|chunk| whole.update(chunk));
    assert_eq!(whole.finish(), Digest::sha256_of(bytes));
}

/// Paths: what was read of one can be written as one that is read alike.
pub fn routes(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let _ = query_value(Some(query), "ns");
    let Some(route) = Route::parse(path) else { return };
    let again = match &route {
        Route::Base | Route::Catalog | Route::Upload => return,
        Route::Manifest { name, reference } => {
            format!("/v2/{}/manifests/{}", encoded(name), encoded(reference))
        }
        Route::Blob { name, digest } => format!("/v2/{}/blobs/{}", encoded(name), encoded(digest)),
        Route::Tags { name } => format!("/v2/{}/tags/list", encoded(name)),
        Route::Referrers { name, digest } => {
            format!("/v2/{}/referrers/{}", encoded(name), encoded(digest))
        }
    };
    assert_eq!(Route::parse(&again).as_ref(), Some(&route), "{again}");
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}

/// Requests: an address that was found names the same again. Lines: name, `ns`, default.
pub fn addresses(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    let mut lines = text.split('\n');
    let name = lines.next().unwrap_or_default();
    let ns = lines.next().filter(|line| !line.is_empty());
    let default_upstream = lines.next().filter(|line| !line.is_empty());
    let mut directory = Directory::default();
    let upstreams =
        [("docker.io", "hub"), ("[::1]:5000", "six"), ("*.gcr.io", ""), ("localhost", "")];
    for (entry, (host, alias)) in upstreams.into_iter().enumerate() {
        let aliases: Vec<String> =
            Some(alias.to_owned()).filter(|it| !it.is_empty()).into_iter().collect();
        directory.add(entry, &host.parse().expect("it is a host"), &aliases);
    }
    let Ok(found) = directory.resolve(Asked { name, ns, default_upstream }) else { return };
    let (host, repository) = (found.name.host.as_str(), found.name.repository.as_str());
    let again = Asked { name: repository, ns: Some(host), default_upstream: None };
    // Said twice it counts once, so a repository that begins like its host is another one.
    if !repository.starts_with(host) {
        assert_eq!(directory.resolve(again).as_ref(), Ok(&found));
    }
}

/// `Range` and `Content-Range`: no range leaves the content, and each can be written again.
pub fn ranges(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    if let RangeHeader::Ranges(specs) = RangeHeader::parse(text) {
        assert!(!specs.is_empty());
        for spec in &specs {
            for length in [0, 1, 10, 1 << 32, u64::MAX] {
                if let Some(range) = spec.within(length) {
                    assert!(range.start <= range.last && range.last < length);
                    assert!(range.len() <= length);
                }
            }
        }
        let written: Vec<String> = specs
            .iter()
            .map(|spec| match spec {
                RangeSpec::Closed(first, last) => format!("{first}-{last}"),
                RangeSpec::From(first) => format!("{first}-"),
                RangeSpec::Last(n) => format!("-{n}"),
            })
            .collect();
        let written = format!("bytes={}", written.join(","));
        assert_eq!(RangeHeader::parse(&written), RangeHeader::Ranges(specs));
    }
    if let Some((range, length)) = parse_content_range(text) {
        assert!(range.start <= range.last && length.is_none_or(|length| range.last < length));
        let length_text = length.map_or("*".to_owned(), |length| length.to_string());
        let written = format!("bytes {}-{}/{length_text}", range.start, range.last);
        assert_eq!(parse_content_range(&written), Some((range, length)));
    }
}

/// `Accept`: what was read is written as what is read alike.
pub fn accept(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    let accept = Accept::from_lines(text.split('\n'));
    let written = accept.to_string();
    if !written.is_empty() {
        assert_eq!(Accept::from_lines([written.as_str()]), accept, "{written}");
    }
}

/// Manifests and indexes.
pub fn manifests(bytes: &[u8]) {
    let Ok(manifest) = Manifest::parse(bytes) else { return };
    assert!(manifest.children().count() <= 10_000);
    assert!(manifest.media_type.is_some() || !manifest.media_type_or_guess().is_empty());
    for child in manifest.children() {
        assert_eq!(child.digest.to_string().parse().as_ref(), Ok(&child.digest));
    }
}

/// Lists of referrers, and manifests that are put into one.
pub fn referrers(bytes: &[u8]) {
    let digest = Digest::sha256_of(bytes);
    assert!(referrer::fallback_tag(&digest).is_some());
    if let Ok(described) = referrer::Referrer::describe(&digest, "x/y", bytes) {
        let list = referrer::write_list([&described]);
        let read = referrer::parse_list(&list).expect("what is written can be read");
        assert_eq!((read.len(), &read[0].digest), (1, &digest));
        assert!(read[0].is_of_type(&described.artifact_type));
    }
    if let Ok(list) = referrer::parse_list(bytes) {
        let read = referrer::parse_list(&referrer::write_list(&list));
        let digests = |list: &[referrer::Referrer]| -> Vec<Digest> {
            list.iter().map(|it| it.digest.clone()).collect()
        };
        assert_eq!(digests(&read.expect("what is written can be read")), digests(&list));
        let joined = referrer::merge(Vec::new(), list);
        for (n, one) in joined.iter().enumerate() {
            assert!(joined[..n].iter().all(|other| other.digest != one.digest));
        }
    }
}

/// The configuration: one that is taken keeps its promises, and each mistake is one line.
pub fn configuration(bytes: &[u8]) {
    let text = &*String::from_utf8_lossy(bytes);
    let (overrides, default_data) = (Overrides::default(), "/data".into());
    match parse(text, "f.toml", &Environment { overrides, default_data, files: &NoFiles }) {
        Ok(config) => {
            assert!(!config.listen.is_empty());
            for upstream in &config.upstreams {
                assert!(!upstream.deadline.is_zero() && upstream.urls.len() <= 8);
                assert!((1..=16).contains(&upstream.parallel));
                let has_hosts = upstream.host.exact().is_none();
                assert!(!has_hosts || (upstream.alias.is_empty() && upstream.urls.is_empty()));
            }
        }
        Err(mistakes) => {
            assert!(!mistakes.is_empty());
            for mistake in mistakes {
                let line = mistake.to_string();
                assert!(!line.contains('\n'), "{line:?}");
            }
        }
    }
}

/// A disk without files.
struct NoFiles;

impl Files for NoFiles {
    fn read(&self, _: &std::path::Path) -> std::io::Result<Vec<u8>> {
        Err(std::io::ErrorKind::NotFound.into())
    }
}

/// Amounts of bytes.
pub fn sizes(bytes: &[u8]) {
    if let Ok(size) = parse_size(&String::from_utf8_lossy(bytes)) {
        assert_eq!(parse_size(&size.to_string()), Ok(size));
        assert!(!human_size(size).is_empty());
    }
}
