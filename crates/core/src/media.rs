//! Media types of manifests, and what a client accepts.

use std::fmt;

/// An OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image manifest, or an artifact's.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// A Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// A Docker image manifest, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";

/// What is asked of an upstream for a tag: everything that a client of ours may understand. Schema
/// 1 is left out: registries convert to it on the fly, so its digest names nothing that is stored.
pub const ALL_MANIFESTS: [&str; 4] = [OCI_INDEX, DOCKER_LIST, OCI_MANIFEST, DOCKER_MANIFEST];

/// The media types that a client accepts.
///
/// Quality values are not weighed (registries don't, either), but `q=0` is heeded.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Accept {
    anything: bool,
    /// One bit per entry of [`ALL_MANIFESTS`].
    known: u8,
    /// Other types, lower case, sorted, without duplicates.
    others: Vec<String>,
}

/// The most types of one request that are looked at; no client sends more than a dozen.
const MAX_TYPES: usize = 32;

impl Accept {
    /// What a request accepts, given the values of all its `Accept` header lines. No line at all
    /// means anything.
    pub fn from_lines<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let mut accept = Self { anything: false, known: 0, others: Vec::new() };
        let mut n_types = 0;
        for item in lines.into_iter().flat_map(|line| line.split(',')).take(MAX_TYPES) {
            let mut parts = item.split(';').map(str::trim);
            let Some(media_type) = parts.next().filter(|text| !text.is_empty()) else {
                continue;
            };
            n_types += 1;
            if parts.any(is_quality_zero) {
                continue;
            }
            accept.add(media_type);
        }
        accept.anything |= n_types == 0;
        accept.others.sort_unstable();
        accept.others.dedup();
        accept
    }

    /// Accepts every manifest that is known here, and nothing else.
    pub fn all_manifests() -> Self {
        Self { anything: false, known: (1 << ALL_MANIFESTS.len()) - 1, others: Vec::new() }
    }

    fn add(&mut self, media_type: &str) {
        if media_type == "*/*" || media_type.eq_ignore_ascii_case("application/*") {
            self.anything = true;
            return;
        }
        match ALL_MANIFESTS.iter().position(|known| known.eq_ignore_ascii_case(media_type)) {
            Some(bit) => self.known |= 1 << bit,
            None => self.others.push(media_type.to_ascii_lowercase()),
        }
    }

    /// Whether a client that said this can be given a manifest of `media_type`.
    pub fn accepts(&self, media_type: &str) -> bool {
        self.anything
            || match ALL_MANIFESTS.iter().position(|known| *known == media_type) {
                Some(bit) => self.known & (1 << bit) != 0,
                None => self.others.iter().any(|other| other.eq_ignore_ascii_case(media_type)),
            }
    }
}

/// As the value of one `Accept` header, in an order that is the same for equal sets.
impl fmt::Display for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let known = ALL_MANIFESTS.iter().enumerate();
        let known = known.filter(|(bit, _)| self.known & (1 << bit) != 0).map(|(_, text)| *text);
        let others = self.others.iter().map(String::as_str);
        let anything = self.anything.then_some("*/*");
        for (n, text) in known.chain(others).chain(anything).enumerate() {
            f.write_str(if n == 0 { "" } else { ", " })?;
            f.write_str(text)?;
        }
        Ok(())
    }
}

fn is_quality_zero(parameter: &str) -> bool {
    parameter
        .strip_prefix("q=")
        .is_some_and(|value| value.trim().parse::<f32>().is_ok_and(|quality| quality == 0.0))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn several_header_lines_are_one_list() {
        let lines = [OCI_INDEX, "application/vnd.docker.distribution.manifest.v2+json;q=0.5, x/y"];
        let accept = Accept::from_lines(lines);
        assert!(
            accept.accepts(OCI_INDEX) && accept.accepts(DOCKER_MANIFEST) && accept.accepts("x/y")
        );
        assert!(!accept.accepts(OCI_MANIFEST) && !accept.accepts("x/z"));
        assert_eq!(accept.to_string(), format!("{OCI_INDEX}, {DOCKER_MANIFEST}, x/y"));
    }

    #[test]
    fn no_header_and_a_wildcard_mean_anything() {
        for lines in [&[][..], &[""], &["*/*"], &["text/html, */*;q=0.1"], &["Application/*"]] {
            assert!(Accept::from_lines(lines.iter().copied()).accepts(OCI_INDEX), "{lines:?}");
        }
        assert!(!Accept::from_lines(["*/*;q=0"]).accepts(OCI_INDEX));
    }

    #[test]
    fn the_order_in_which_types_are_named_does_not_matter() {
        let one = Accept::from_lines(["b/b, a/a", OCI_INDEX, DOCKER_LIST]);
        let other = Accept::from_lines([DOCKER_LIST, OCI_INDEX, "a/a,b/b,a/a"]);
        assert_eq!(one, other);
        assert_eq!(one.to_string(), other.to_string());
    }

    proptest! {
        #[test]
        fn what_is_read_of_any_header_is_written_as_what_is_read_alike(
            line in "((application|text|\\*)/(\\*|json|\\PC{1,5})|;q=0(\\.5)?|,| |\\PC){0,60}"
        ) {
            let accept = Accept::from_lines([line.as_str()]);
            let written = accept.to_string();
            if !written.is_empty() {
                prop_assert_eq!(Accept::from_lines([written.as_str()]), accept);
            }
        }
    }
}
