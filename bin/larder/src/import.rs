//! `larder import`

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use anyhow::{Context as _, anyhow, ensure};
use futures_util::stream;
use larder_api_types::blobs::{Membership, Taken};
use larder_core::layout::Listed;
use larder_core::manifest::{MAX_MANIFEST, Manifest};
use larder_core::size::human_size;
use larder_core::{Digest, ImageName, Reference};

use crate::archive::Archive;
use crate::cli::Import;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::server::{Server, block_on};

/// How much of a blob is read at once, in bytes.
const CHUNK: u64 = 256 << 10;

/// Indexes of indexes go this deep at most.
const MAX_DEPTH: u32 = 4;

pub(crate) fn run(command: &Import) -> Result<(), Failure> {
    let file = command.file.display().to_string();
    let opened = File::open(&command.file).map_err(anyhow::Error::new).and_then(Archive::open);
    let archive = opened.with_context(|| format!("reading {file}"))?;
    let images = images(&archive, command.r#as.as_deref())?;
    let server = command.server.open()?;
    block_on(async {
        let mut import = Importing {
            archive: &archive,
            server: &server,
            brought: BTreeSet::new(),
            missing: BTreeSet::new(),
            bytes: 0,
            progress: Progress::new("imported"),
        };
        for (name, listed) in images {
            import.missing.clear();
            import.image(&name, listed).await.with_context(|| name.to_string())?;
            let missing = import.missing.len();
            let line = match import.missing.first() {
                None => name.to_string(),
                Some(first) => {
                    format!(
                        "{name}: {missing} blobs are neither in the file nor stored, {first} among them"
                    )
                }
            };
            let said = import.progress.aside(|| match missing {
                0 => writeln!(io::stdout(), "{line}"),
                _ => writeln!(io::stderr(), "{line}"),
            });
            said.map_err(Failure::writing)?;
            if missing > 0 {
                return Err(Failure::Said(1));
            }
        }
        let Importing { bytes, brought, .. } = import;
        let said = writeln!(
            io::stdout(),
            "{} in {} blobs were not there before",
            human_size(bytes),
            brought.len()
        );
        said.map_err(Failure::writing)
    })
}

/// What is in the archive, by the names it is to have.
fn images<'a>(
    archive: &'a Archive,
    r#as: Option<&str>,
) -> Result<Vec<(ImageName, &'a Listed)>, Failure> {
    if let Some(name) = r#as {
        let name: ImageName = name.parse().with_context(|| format!("--as {name}"))?;
        let [listed] = &archive.images[..] else {
            let n = archive.images.len();
            return Err(Failure::Usage(anyhow!("--as names one image, and the file has {n}")));
        };
        return Ok(vec![(name, listed)]);
    }
    let named = archive.images.iter().map(|listed| {
        let name = listed.name.clone().with_context(|| {
            let digest = &listed.digest;
            format!("the file does not say what {digest} is called; --as HOST/NAME:TAG says it")
        })?;
        Ok((name, listed))
    });
    Ok(named.collect::<anyhow::Result<_>>()?)
}

struct Importing<'i> {
    archive: &'i Archive,
    server: &'i Server,
    /// What was not there before.
    brought: BTreeSet<Digest>,
    /// What is nowhere, of the image that is brought.
    missing: BTreeSet<Digest>,
    bytes: u64,
    progress: Progress,
}

impl Importing<'_> {
    async fn image(&mut self, image: &ImageName, listed: &Listed) -> anyhow::Result<()> {
        let tag = match &image.reference {
            Reference::Tag(tag) => Some(tag.to_string()),
            Reference::Digest(digest) => {
                ensure!(*digest == listed.digest, "the file has {} by that name", listed.digest);
                None
            }
        };
        let membership = Membership { repository: image.name.clone(), tag };
        let media_type = Some(listed.media_type.as_str());
        Box::pin(self.manifest(&listed.digest, media_type, &membership, MAX_DEPTH)).await
    }

    /// Brings what a manifest refers to, as far as it is in the archive, and then itself, so that
    /// nobody is given a manifest whose blobs are still on their way.
    async fn manifest(
        &mut self,
        digest: &Digest,
        media_type: Option<&str>,
        membership: &Membership,
        depth: u32,
    ) -> anyhow::Result<()> {
        let bytes = self.archive.small(digest, MAX_MANIFEST as u64)?;
        let Some(bytes) = bytes else {
            self.missing.insert(digest.clone());
            return Ok(());
        };
        let manifest = Manifest::parse(&bytes).with_context(|| digest.to_string())?;
        let below = Membership { repository: membership.repository.clone(), tag: None };
        for child in &manifest.manifests {
            if self.archive.has(&child.digest) {
                ensure!(depth > 0, "{digest}: indexes lie too deep in each other");
                let media_type = Some(child.media_type.as_str());
                Box::pin(self.manifest(&child.digest, media_type, &below, depth - 1)).await?;
            }
        }
        for blob in &manifest.blobs {
            if self.archive.has(&blob.digest) && !self.server.has_blob(&blob.digest).await? {
                self.blob(&blob.digest, &below).await?;
            }
        }
        let path = format!("/manifests/{digest}");
        let taken: Taken =
            self.server.put(&path, membership, media_type, bytes.into(), None).await?;
        self.missing.extend(taken.missing);
        Ok(())
    }

    async fn blob(&mut self, digest: &Digest, membership: &Membership) -> anyhow::Result<()> {
        let Some((file, start, len)) = self.archive.find(digest) else { return Ok(()) };
        let chunks = stream::unfold(0, move |at| {
            let file = Arc::clone(&file);
            async move {
                if at == len {
                    return None;
                }
                // Reading what was just opened hardly ever waits, and nobody else is served here.
                let mut chunk = vec![0; CHUNK.min(len - at) as usize];
                let read = file.read_exact_at(&mut chunk, start + at).map(|()| chunk);
                Some((read, at + CHUNK.min(len - at)))
            }
        });
        let body = reqwest::Body::wrap_stream(chunks);
        let path = format!("/blobs/{digest}");
        let _: Taken = self.server.put(&path, membership, None, body, Some(len)).await?;
        self.bytes += len;
        self.brought.insert(digest.clone());
        self.progress.show(self.bytes, None);
        Ok(())
    }
}
