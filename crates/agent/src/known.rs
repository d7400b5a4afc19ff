//! The replicas that were known last, kept on the host: so that a node that starts while nobody can
//! say where the cache is finds it all the same.

use std::io;
use std::path::{Path, PathBuf};

use tracing::{info, warn};

use crate::file;
use crate::place::Place;

/// The file in the state directory: a JSON list of places.
const NAME: &str = "replicas.json";

/// The longest list that is read: some hundreds of places.
const MAX_BYTES: u64 = 1 << 20;

/// Where they are kept.
#[derive(Clone, Debug)]
pub(crate) struct LastKnown(PathBuf);

impl LastKnown {
    /// In the directory `state`, which need not be there yet.
    pub(crate) fn in_directory(state: &Path) -> Self {
        Self(state.join(NAME))
    }

    /// What was known last; nothing if nothing was, or if it cannot be read.
    pub(crate) async fn read(&self) -> Vec<Place> {
        let path = self.0.clone();
        let read = tokio::task::spawn_blocking(move || places_in(&path)).await;
        match read.unwrap_or_else(|error| Err(io::Error::other(error))) {
            Ok(places) => {
                info!(
                    "until somebody says where the cache is: {} replicas of before",
                    places.len()
                );
                places
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                warn!(error = &error as &dyn std::error::Error, "reading {}", self.0.display());
                Vec::new()
            }
        }
    }

    /// Keeps `places`, unless nothing has changed. Without any, the last ones are kept: an empty list
    /// helps nobody.
    pub(crate) async fn write(&self, places: Vec<Place>) {
        let path = self.0.clone();
        let write = move || {
            if places.is_empty() || places_in(&path).is_ok_and(|before| before == places) {
                return Ok(());
            }
            let text = serde_json::to_vec_pretty(&places).map_err(io::Error::other)?;
            if let Some(directory) = path.parent() {
                std::fs::create_dir_all(directory)?;
            }
            file::replace(&path, &text, file::Owner::Ours { mode: 0o644 })
        };
        let written = tokio::task::spawn_blocking(write).await;
        if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
            // The next start then has to wait until somebody says it.
            warn!(error = &error as &dyn std::error::Error, "keeping {}", self.0.display());
        }
    }
}

fn places_in(path: &Path) -> io::Result<Vec<Place>> {
    let bytes = file::read(path, MAX_BYTES)?;
    serde_json::from_slice(&bytes)
        .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_known_is_known_again_and_a_damaged_list_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let known = LastKnown::in_directory(&folder.path().join("state"));
        assert_eq!(known.read().await, []);
        let url = "https://cache.test:5000".parse().unwrap();
        let address = Some("10.0.0.1:5000".parse().unwrap());
        let (zone, ca) = (Some("a".to_owned()), Some("PEM".to_owned()));
        let hosts = vec!["docker.io".to_owned()];
        let urls = [("docker.io".to_owned(), "https://10.0.0.2".parse().unwrap())].into();
        let places = vec![Place { url, address, peer: None, zone, ca, hosts, urls }];
        known.write(places.clone()).await;
        known.write(Vec::new()).await;
        assert_eq!(known.read().await, places);
        std::fs::write(&known.0, "[{").unwrap();
        assert_eq!(known.read().await, []);
    }
}
