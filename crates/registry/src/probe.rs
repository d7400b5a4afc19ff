//! Tests one upstream of a configuration, as `serve` would ask it.

use std::time::Duration;

use larder_core::ImageName;
use larder_core::address::{AddressError, Directory};
use larder_core::name::{Host, ParseReferenceError, ParseRepositoryError, Repository};
use larder_upstream::Settings;

pub use larder_upstream::probe::{Check, Found, Image, Outcome, Progress, Step};

use crate::config::{self, Config};
use crate::upstream::client_settings;

/// An upstream that can be tested.
#[derive(Clone, Debug)]
pub struct Subject {
    name: String,
    settings: Settings,
}

/// Why a text is no image of an upstream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseImageError {
    /// What comes before the tag or digest.
    #[error(transparent)]
    Repository(#[from] ParseRepositoryError),
    /// The tag or digest.
    #[error(transparent)]
    Reference(#[from] ParseReferenceError),
}

impl Subject {
    /// The upstream that `config` knows as `name`: a host, one that a wildcard stands for, or an
    /// alias.
    ///
    /// # Errors
    ///
    /// [`AddressError::UnknownUpstream`]
    pub fn find(config: &Config, name: &str) -> Result<Self, AddressError> {
        let mut directory = Directory::default();
        for (n, upstream) in config.upstreams.iter().enumerate() {
            directory.add(n, &upstream.host, &upstream.alias);
        }
        let found = directory.find(name);
        let (n, host) = found.ok_or_else(|| AddressError::UnknownUpstream(name.to_owned()))?;
        let settings = client_settings(&config.upstreams[n], &host);
        Ok(Self { name: name.to_owned(), settings })
    }

    /// One upstream; `None` if it stands for several hosts.
    pub(crate) fn of(upstream: &config::Upstream) -> Option<Self> {
        let host = upstream.host.exact()?;
        Some(Self { name: host.to_string(), settings: client_settings(upstream, host) })
    }

    /// The upstream's host.
    pub fn host(&self) -> &Host {
        &self.settings.host
    }

    /// Reads `NAME`, `NAME:TAG` or `NAME@DIGEST`; the upstream may come first, as in image names,
    /// and without a tag it is `latest`. With both a tag and a digest the digest counts.
    ///
    /// # Errors
    ///
    /// [`ParseImageError`]
    pub fn image(&self, text: &str) -> Result<Image, ParseImageError> {
        let text = match text.split_once('/') {
            Some((first, rest)) if first == self.name || first == self.host().as_str() => rest,
            _ => text,
        };
        let ImageName { name, reference } = text.parse()?;
        let repository = name.parse::<Repository>()?.at(self.host());
        Ok(Image { repository, reference })
    }

    /// Tests it: see [`larder_upstream::probe::probe`].
    pub async fn probe(
        self,
        image: Option<&Image>,
        limit: Duration,
        watch: &mut (dyn FnMut(Progress<'_>) + Send),
    ) -> Vec<Step> {
        larder_upstream::probe::probe(self.settings, image, limit, watch).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Disk, Environment, Overrides, parse};

    #[test]
    fn an_upstream_goes_by_its_host_an_alias_or_a_host_of_a_wildcard() {
        let config = config("[upstreams.\"docker.io\"]\nalias = \"hub\"");
        let urls = |name: &str| {
            let subject = Subject::find(&config, name).unwrap();
            subject.settings.urls.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(urls("hub"), "https://registry-1.docker.io/");
        assert_eq!(urls("index.docker.io"), "https://registry-1.docker.io/");
        assert_eq!(urls("eu.gcr.io"), "https://eu.gcr.io/");
        let unknown = Subject::find(&config, "nowhere.io").unwrap_err();
        assert_eq!(unknown, AddressError::UnknownUpstream("nowhere.io".to_owned()));
    }

    #[test]
    fn an_image_is_written_as_people_write_it() {
        let config = config("[upstreams.\"docker.io\"]\nalias = \"hub\"");
        let subject = Subject::find(&config, "hub").unwrap();
        let read = |text: &str| {
            let Image { repository, reference } = subject.image(text).unwrap();
            format!("{repository} {reference}")
        };
        let digest = format!("sha256:{}", "0".repeat(64));
        assert_eq!(read("alpine"), "library/alpine latest");
        assert_eq!(read("hub/grafana/grafana:11"), "grafana/grafana 11");
        assert_eq!(read("docker.io/library/alpine:3.20"), "library/alpine 3.20");
        assert_eq!(read(&format!("a/b:1@{digest}")), format!("a/b {digest}"));
        for text in ["", "A", "a:", "a@1", "a:b/c", "a@sha256:0"] {
            assert!(subject.image(text).is_err(), "{text}");
        }
    }

    fn config(text: &str) -> Config {
        let (overrides, default_data) = (Overrides::default(), "/d".into());
        parse(text, "f.toml", &Environment { overrides, default_data, files: &Disk }).unwrap()
    }
}
