//! An OCI image layout in a tar archive, as `larder export`, skopeo, containerd, Podman and Docker
//! write it.
//!
//! Nothing is unpacked: where each blob lies in the file is enough. What its bytes are is checked by
//! whoever takes them.
//!
//! Source: OCI image-spec 1.1, `image-layout.md`.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use larder_core::Digest;
use larder_core::layout::{Listed, Part, parse_index};

/// The most files in an archive: each has some 100 bytes of memory.
const MAX_FILES: usize = 1 << 20;

/// The longest index, in bytes.
const MAX_INDEX: u64 = 16 << 20;

/// An archive that has been looked through.
#[derive(Debug)]
pub(crate) struct Archive {
    file: Arc<File>,
    /// Where each blob begins, and how long it is.
    blobs: HashMap<Digest, (u64, u64)>,
    /// What its index lists.
    pub(crate) images: Vec<Listed>,
}

impl Archive {
    /// Looks through an archive.
    pub(crate) fn open(file: File) -> anyhow::Result<Self> {
        check_magic(&file)?;
        let file = Arc::new(file);
        let mut archive = tar::Archive::new(&*file);
        let (mut blobs, mut index, mut is_docker) = (HashMap::new(), None, false);
        for (n, entry) in archive.entries_with_seek().context("it is no tar archive")?.enumerate() {
            ensure!(n < MAX_FILES, "it has more than {MAX_FILES} files");
            let mut entry = entry.context("it is no tar archive, or damaged")?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path().context("a file's name cannot be read")?;
            match Part::at(&path.to_string_lossy()) {
                Part::Index => {
                    ensure!(entry.size() <= MAX_INDEX, "its index.json is longer than 16 MiB");
                    let mut text = Vec::new();
                    entry.read_to_end(&mut text).context("reading its index.json")?;
                    index = Some(text);
                }
                Part::Blob(digest) => {
                    blobs.insert(digest, (entry.raw_file_position(), entry.size()));
                }
                Part::DockerManifest => is_docker = true,
                Part::Other => {}
            }
        }
        let Some(index) = index else {
            match is_docker {
                true => bail!(
                    "it is an archive of an old `docker save`; \
                     `skopeo copy docker-archive:FILE oci-archive:OTHER` makes an OCI archive of it"
                ),
                false => bail!("it has no index.json, so it is no OCI archive"),
            }
        };
        Ok(Self { images: parse_index(&index)?, file, blobs })
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.blobs.contains_key(digest)
    }

    /// The file that a blob lies in, where it begins, and how long it is.
    pub(crate) fn find(&self, digest: &Digest) -> Option<(Arc<File>, u64, u64)> {
        let (start, len) = self.blobs.get(digest)?;
        Some((Arc::clone(&self.file), *start, *len))
    }

    /// The bytes of a blob that is at most `max` long.
    pub(crate) fn small(&self, digest: &Digest, max: u64) -> anyhow::Result<Option<Vec<u8>>> {
        let Some((file, start, len)) = self.find(digest) else { return Ok(None) };
        ensure!(len <= max, "{digest} is longer than a manifest may be");
        let mut bytes = vec![0; usize::try_from(len)?];
        file.read_exact_at(&mut bytes, start).with_context(|| format!("reading {digest}"))?;
        Ok(Some(bytes))
    }
}

/// Says of what kind a file is that is no tar archive though people think so.
fn check_magic(file: &File) -> anyhow::Result<()> {
    let mut magic = [0; 4];
    let n = file.read_at(&mut magic, 0)?;
    match &magic[..n] {
        [0x1f, 0x8b, ..] => bail!("it is compressed; `gunzip` it first"),
        [0x28, 0xb5, 0x2f, 0xfd] => bail!("it is compressed; `unzstd` it first"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Seek as _, Write as _};

    use super::*;

    #[test]
    fn what_is_no_archive_says_what_it_is() {
        let error = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file.rewind().unwrap();
            format!("{:#}", Archive::open(file).unwrap_err())
        };
        assert!(error(&[0x1f, 0x8b, 8, 0]).contains("gunzip"));
        assert!(error(b"hello").contains("no"), "{}", error(b"hello"));
        assert!(error(b"").contains("no index.json"));
        assert!(error(&[7; 2048]).contains("no tar archive"));
    }
}
