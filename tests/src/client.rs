//! Any real client, as a table of them needs it.

use std::collections::BTreeSet;
use std::time::Duration;

use larder_core::Digest;
use larder_testkit::Image;
use larder_testkit::blackhole::Blackhole;

use crate::containerd::Containerd;
use crate::copier::Copier;
use crate::docker::Docker;
use crate::larder::Larder;
use crate::podman::Podman;

/// Something that pulls images. What it has pulled it forgets at once, so that each pull is its
/// first.
#[derive(Debug)]
pub enum Client {
    /// By CRI, with the program as a mirror.
    Containerd(Containerd),
    /// With the host in the image's name.
    Docker(Docker),
    /// With the program as a mirror.
    Podman,
    /// The same, podman 5.
    NewerPodman,
    /// With the host in the image's name.
    Copier(Copier),
}

impl Client {
    /// Pulls tag `1` of `repository` from `host` through `larder`, and from nowhere else. Says what
    /// came, as [`Self::content_of`] does.
    ///
    /// # Errors
    ///
    /// What the client says; `Err(None)` if it had not ended within `limit`.
    pub async fn pull(
        &self,
        larder: &Larder,
        host: &str,
        repository: &str,
        limit: Duration,
    ) -> Result<BTreeSet<Digest>, Option<String>> {
        let pulling = self.pull_unbounded(larder, host, repository, limit);
        match tokio::time::timeout(limit, pulling).await {
            Ok(pulled) => pulled.map_err(Some),
            Err(_) => Err(None),
        }
    }

    async fn pull_unbounded(
        &self,
        larder: &Larder,
        host: &str,
        repository: &str,
        limit: Duration,
    ) -> Result<BTreeSet<Digest>, String> {
        // Where a client goes after a mirror that fails.
        let dead = Blackhole::refusing();
        let by_name = format!("{host}/{repository}:1");
        let by_path = format!("{}/{by_name}", larder.host);
        match self {
            Self::Containerd(containerd) => {
                containerd.mirror(host, &dead.url(), &larder.url(""));
                let pulled = containerd.pull_within(&by_name, limit).await;
                pulled.map_err(|error| error.to_string())?;
                let files = containerd.files(&by_name).await;
                containerd.cri().remove_image(&by_name).await.unwrap();
                Ok(files.into_values().collect())
            }
            Self::Docker(docker) => {
                docker.pull(&by_path).await?;
                let files = docker.files(&by_path).await;
                docker.remove(&by_path).await;
                Ok(files)
            }
            Self::Podman | Self::NewerPodman => {
                let mirror = format!("{}/{host}", larder.host);
                let podman = Podman::with_mirror(host, &dead.address().to_string(), &mirror);
                let podman = match self {
                    Self::NewerPodman => podman.newer(),
                    _ => podman,
                };
                podman.pull_unbounded(&by_name).await.ok()?;
                Ok(podman.files(&by_name).await.into_values().collect())
            }
            Self::Copier(copier) => copier.copy(&by_path).await,
        }
    }

    /// What a pull of `image` brings: the files of its layers for a client that unpacks them, its
    /// blobs and manifest otherwise.
    pub fn content_of(&self, image: &Image) -> BTreeSet<Digest> {
        match self {
            Self::Copier(_) => {
                image.blobs().chain([&image.manifest]).map(|it| it.digest.clone()).collect()
            }
            _ => image.files.iter().map(|(_, bytes)| Digest::sha256_of(bytes)).collect(),
        }
    }
}
