//! Stored images as one file: an OCI image layout in a tar archive, for sites that no upstream
//! reaches.
//!
//! ```text
//! oci-layout   index.json   blobs/sha256/…  manifests first, then what they refer to
//! ```
//!
//! Source: OCI image-spec 1.1, `image-layout.md`. Names are where containerd and Docker put them: the
//! whole name in `io.containerd.image.name`, the tag in `org.opencontainers.image.ref.name`.

use std::collections::{HashSet, VecDeque};
use std::io;

use bytes::Bytes;
use larder_core::manifest::Manifest;
use larder_core::media::OCI_INDEX;
use larder_core::name::Named;
use larder_core::platform::Platforms;
use larder_core::{Digest, Reference};
use larder_store::{Store, StoreError, StoredManifest};
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::sync::mpsc;

/// Blocks of a tar archive, in bytes.
const BLOCK: u64 = 512;

/// The most that belongs to one export: each entry has 600 bytes of memory until it is sent.
const MAX_ENTRIES: usize = 100_000;

/// The most referrers of one manifest that go along.
const MAX_REFERRERS: u32 = 100;

/// What is to be exported.
#[derive(Debug)]
pub(crate) struct Order {
    /// At least one.
    pub(crate) images: Vec<(Arc<Named>, Reference)>,
    pub(crate) platforms: Platforms,
    pub(crate) referrers: bool,
    /// What the other side has already.
    pub(crate) without: HashSet<Digest>,
}

/// An archive that can be sent.
#[derive(Debug)]
pub(crate) struct Export {
    entries: Vec<Entry>,
}

/// A file of the archive.
#[derive(Debug)]
struct Entry {
    header: Bytes,
    len: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Here(Bytes),
    Stored(Digest),
}

/// Why something cannot be exported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ExportError {
    #[error("{0} is not stored; fetch it first, with `larder warm {0}`")]
    Unknown(String),
    #[error(
        "{image} is not stored whole: {n_missing} of its blobs are missing, {first} among them; fetch them first, with `larder warm {image}`"
    )]
    Incomplete { image: String, n_missing: usize, first: Digest },
    #[error("{image} is there for none of the platforms {platforms}")]
    OtherPlatforms { image: String, platforms: Platforms },
    #[error("{0} cannot be read as a manifest")]
    Unreadable(Digest),
    #[error("these images are made of more than {MAX_ENTRIES} blobs; export fewer at a time")]
    TooMany,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Export {
    /// Finds what belongs to the images.
    pub(crate) async fn plan(store: &Store, order: &Order) -> Result<Self, ExportError> {
        let mut plan =
            Plan { store, order, seen: HashSet::new(), manifests: Vec::new(), blobs: Vec::new() };
        let mut index = Vec::new();
        for (named, reference) in &order.images {
            index.extend(plan.add_image(named, reference).await?);
        }
        let Plan { manifests, blobs, .. } = plan;
        let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index});
        let layout = json!({"imageLayoutVersion": "1.0.0"});
        let file = |name: &str, text: &Value| {
            Entry::of(name, Content::Here(text.to_string().into()), None)
        };
        let mut entries = vec![file("oci-layout", &layout), file("index.json", &index)];
        for manifest in manifests {
            let content = Content::Here(manifest.bytes.clone());
            entries.push(Entry::of(&path_of(&manifest.digest), content, None));
        }
        for (digest, len) in blobs {
            entries.push(Entry::of(&path_of(&digest), Content::Stored(digest), Some(len)));
        }
        Ok(Self { entries })
    }

    /// The length of the archive in bytes.
    pub(crate) fn len(&self) -> u64 {
        let entries = self.entries.iter();
        entries.map(|it| it.header.len() as u64 + it.len + padding(it.len)).sum::<u64>() + 2 * BLOCK
    }

    /// Sends the archive, or an error as its last part if something is not there any more. Ends
    /// early if nobody takes it.
    pub(crate) async fn send(self, store: Store, to: mpsc::Sender<io::Result<Bytes>>) {
        if let Err(Some(error)) = self.send_all(&store, &to).await {
            let _ = to.send(Err(error)).await;
        }
    }

    /// `Err(None)`: nobody takes it.
    async fn send_all(
        self,
        store: &Store,
        to: &mpsc::Sender<io::Result<Bytes>>,
    ) -> Result<(), Option<io::Error>> {
        let send = async |bytes: Bytes| to.send(Ok(bytes)).await.map_err(|_| None);
        for Entry { header, len, content } in self.entries {
            send(header).await?;
            match content {
                Content::Here(bytes) => send(bytes).await?,
                Content::Stored(digest) => {
                    let gone = || io::Error::other(format!("{digest} is not stored any more"));
                    let blob = store.blob(&digest).await.map_err(io::Error::other)?;
                    let blob = blob.filter(|blob| blob.len == len).ok_or_else(gone)?;
                    let mut at = 0;
                    while at < len {
                        let bytes = blob.file.read(at, len - at).await?;
                        at += bytes.len() as u64;
                        send(bytes).await?;
                    }
                }
            }
            send(zeros(padding(len))).await?;
        }
        send(zeros(2 * BLOCK)).await
    }
}

struct Plan<'p> {
    store: &'p Store,
    order: &'p Order,
    seen: HashSet<Digest>,
    manifests: Vec<Arc<StoredManifest>>,
    blobs: Vec<(Digest, u64)>,
}

impl Plan<'_> {
    /// Adds what an image is made of, and returns its entries for the index: itself, and what refers
    /// to it.
    async fn add_image(
        &mut self,
        named: &Arc<Named>,
        reference: &Reference,
    ) -> Result<Vec<Value>, ExportError> {
        let image = match reference {
            Reference::Tag(tag) => format!("{named}:{tag}"),
            Reference::Digest(digest) => format!("{named}@{digest}"),
        };
        let unknown = || ExportError::Unknown(image.clone());
        let digest = match reference {
            Reference::Digest(digest) => {
                let is_here = self.store.is_member(named, digest).await?;
                is_here.then(|| digest.clone()).ok_or_else(unknown)?
            }
            Reference::Tag(tag) => {
                let record = self.store.tag(named, tag, &Arc::from("")).await?;
                record.ok_or_else(unknown)?.digest.clone()
            }
        };
        let top = self.store.manifest(&digest).await?.ok_or_else(unknown)?;
        let (mut missing, mut queue, mut index) = (Vec::new(), VecDeque::new(), Vec::new());
        index.push(entry(&top, &image, reference));
        queue.push_back((top, true));
        while let Some((manifest, is_top)) = queue.pop_front() {
            let is_new = self.seen.insert(manifest.digest.clone());
            let parsed = Manifest::parse(&manifest.bytes)
                .map_err(|_| ExportError::Unreadable(manifest.digest.clone()))?;
            let wanted = parsed.manifests.iter().filter(|it| self.order.platforms.want(it));
            let (mut n_wanted, mut n_stored) = (0, 0);
            for child in wanted {
                n_wanted += 1;
                if let Some(child) = self.store.manifest(&child.digest).await? {
                    n_stored += 1;
                    queue.push_back((child, false));
                } else if self.order.platforms != Platforms::All {
                    missing.push(child.digest.clone());
                }
            }
            if is_top && !parsed.manifests.is_empty() && n_wanted.min(n_stored) == 0 {
                let platforms = self.order.platforms.clone();
                return Err(ExportError::OtherPlatforms { image, platforms });
            }
            for blob in &parsed.blobs {
                self.add_blob(&blob.digest, &mut missing).await?;
            }
            if self.order.referrers {
                let referrers =
                    self.store.referrers(named, &manifest.digest, MAX_REFERRERS).await?;
                for referrer in referrers.into_iter().filter(|it| !self.seen.contains(&it.digest)) {
                    let name = format!("{named}@{}", referrer.digest);
                    let reference = Reference::Digest(referrer.digest.clone());
                    index.push(entry(&referrer, &name, &reference));
                    queue.push_back((referrer, false));
                }
            }
            if is_new && !self.order.without.contains(&manifest.digest) {
                self.manifests.push(manifest);
            }
            if self.manifests.len() + self.blobs.len() > MAX_ENTRIES {
                return Err(ExportError::TooMany);
            }
        }
        match missing.first().cloned() {
            Some(first) => Err(ExportError::Incomplete { image, n_missing: missing.len(), first }),
            None => Ok(index),
        }
    }

    async fn add_blob(
        &mut self,
        digest: &Digest,
        missing: &mut Vec<Digest>,
    ) -> Result<(), ExportError> {
        if self.order.without.contains(digest) || !self.seen.insert(digest.clone()) {
            return Ok(());
        }
        match self.store.blob_record(digest).await? {
            Some(record) => self.blobs.push((digest.clone(), record.size)),
            None => missing.push(digest.clone()),
        }
        Ok(())
    }
}

impl Entry {
    /// `len` is that of what is stored.
    fn of(name: &str, content: Content, len: Option<u64>) -> Self {
        let len = match &content {
            Content::Here(bytes) => bytes.len() as u64,
            Content::Stored(_) => len.unwrap_or_default(),
        };
        Self { header: header(name, len), len, content }
    }
}

/// An image in the index of the archive.
fn entry(manifest: &StoredManifest, name: &str, reference: &Reference) -> Value {
    let mut annotations = json!({"io.containerd.image.name": name});
    if let Reference::Tag(tag) = reference {
        annotations["org.opencontainers.image.ref.name"] = tag.to_string().into();
    }
    json!({
        "mediaType": manifest.media_type,
        "digest": manifest.digest.to_string(),
        "size": manifest.bytes.len(),
        "annotations": annotations,
    })
}

fn path_of(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// What stands before the bytes of a file; names that are too long for one block have several.
fn header(name: &str, len: u64) -> Bytes {
    let mut header = tar::Header::new_gnu();
    header.set_size(len);
    header.set_mode(0o644);
    let mut archive = tar::Builder::new(Vec::new());
    archive.append_data(&mut header, name, io::empty()).expect("memory takes everything");
    archive.get_ref().clone().into()
}

/// How many bytes are missing to a whole block.
fn padding(len: u64) -> u64 {
    len.wrapping_neg() % BLOCK
}

fn zeros(n: u64) -> Bytes {
    static ZEROS: [u8; 2 * BLOCK as usize] = [0; 2 * BLOCK as usize];
    Bytes::from_static(&ZEROS[..n as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_begin_at_whole_blocks_whatever_their_names() {
        let sha512 = format!("sha512:{}", "ab".repeat(64));
        for digest in [Digest::sha256_of(b""), sha512.parse().unwrap()] {
            let header = header(&path_of(&digest), 7);
            assert_eq!(header.len() as u64 % BLOCK, 0, "{digest}");
            let archive = [&header[..], b"content", &zeros(padding(7)), &zeros(2 * BLOCK)].concat();
            let mut archive = tar::Archive::new(&archive[..]);
            let entry = archive.entries().unwrap().next().unwrap().unwrap();
            assert_eq!(entry.path().unwrap().to_str().unwrap(), path_of(&digest));
            assert_eq!(entry.size(), 7);
        }
        assert_eq!((padding(0), padding(1), padding(512), padding(513)), (0, 511, 0, 511));
    }
}
