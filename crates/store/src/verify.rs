//! Reading what is stored again, to see whether it is still what it was.
//!
//! ```text
//! file ── pieces, with rests between ──▶ hash ── right ──▶ the index notes when
//!                                          └── wrong ──▶ out of the index and all caches
//!                                                        └─▶ a copy under quarantine/, the file cut
//! ```
//!
//! Whoever is in the midst of reading a blob that is found to be bad meets the end of its file, and
//! aborts what it sends: once [`Store::verify`] has returned, nobody reads a byte of it any more.
//!
//! Reading leaves the page cache as it was: what others have in it stays, and what was read from disk
//! goes again. What is in the cache is what clients get, so it is that which is verified then.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use larder_core::Digest;
use rustix::fs::Advice;
use rustix::io::{Errno, ReadWriteFlags};
use tracing::warn;

use crate::index::Unverified;
use crate::layout::Layout;
use crate::work::{blocking, finish};
use crate::{Store, StoreError};

/// How much is read at once.
const PIECE: usize = 1 << 20;

/// How many bad blobs are kept to look at; the oldest goes when there are more.
const MAX_QUARANTINED: usize = 16;

/// The largest bad blob that is kept: with all the others 1 GiB, which no budget counts.
const MAX_QUARANTINED_BYTES: u64 = 64 << 20;

/// How fast blobs are read.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The most bytes in a second; `None`: as many as there are, without rests.
    per_second: Option<NonZeroU64>,
}

/// What reading a blob again came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is what it was.
    Right,
    /// It is not, and is not stored any more.
    Bad(Fault),
    /// It was evicted or stored anew meanwhile.
    Gone,
}

/// What is wrong with a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Its bytes are others, more or fewer, or the disk has lost them.
    Corrupt,
    /// Its file is not there.
    Missing,
}

impl Pace {
    /// As fast as it goes.
    pub const UNBOUNDED: Self = Self { per_second: None };

    /// At most `n` bytes in a second, and at most half the time: a disk that is busy with others is
    /// left to them.
    pub const fn per_second(n: NonZeroU64) -> Self {
        Self { per_second: Some(n) }
    }

    /// How long to rest after `n` bytes that took so long.
    fn rest(self, n: usize, took: Duration) -> Duration {
        let Some(per_second) = self.per_second else { return Duration::ZERO };
        let nanos = n as u128 * 1_000_000_000 / u128::from(per_second.get());
        let due = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        due.saturating_sub(took).max(took)
    }
}

impl Store {
    /// How many blobs are stored, and their bytes.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn count(&self) -> Result<(u64, u64), StoreError> {
        Ok(self.index().count().await?)
    }

    /// At most `limit` stored blobs after `place`, where 0 is before all of them.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn stored_after(
        &self,
        place: i64,
        limit: u32,
    ) -> Result<Vec<Unverified>, StoreError> {
        Ok(self.index().stored_after(place, limit).await?)
    }

    /// At most `limit` blobs that were last verified or stored before `time`, those first that have
    /// waited longest.
    ///
    /// # Errors
    ///
    /// The index can't say.
    pub async fn unverified_since(
        &self,
        time: SystemTime,
        limit: u32,
    ) -> Result<Vec<Unverified>, StoreError> {
        Ok(self.index().unverified_since(time, limit).await?)
    }

    /// Reads a blob again. One that is not what it was is taken out of the store, and a copy of it
    /// kept under `quarantine/`, if it is not too large.
    ///
    /// # Errors
    ///
    /// The blob cannot be read now, or the index not be changed; nothing is known about it.
    pub async fn verify(&self, blob: &Unverified, pace: Pace) -> Result<Verdict, StoreError> {
        let path = self.layout().blob(&blob.digest);
        let opened = blocking(move || open(&path)).await;
        let (file, metadata) = match opened {
            Ok(opened) => opened,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return self.condemn(blob, None).await;
            }
            Err(error) => return Err(StoreError::io("opening a blob to verify it", error)),
        };
        let is_right = metadata.len() == blob.size
            && match hash(file, blob.digest.clone(), pace).await {
                Ok(actual) => actual == blob.digest,
                Err(error) if has_lost_bytes(&error) => {
                    warn!(blob.digest = %blob.digest, %error, "reading {}", blob.digest);
                    false
                }
                Err(error) => return Err(StoreError::io("reading a blob to verify it", error)),
            };
        match is_right {
            true => {
                self.index().set_verified(blob, SystemTime::now()).await?;
                Ok(Verdict::Right)
            }
            false => self.condemn(blob, Some(Identity::of(&metadata))).await,
        }
    }

    /// Takes a bad blob out, if its file is still the one that was found to be bad; `None`: there was
    /// no file.
    async fn condemn(
        &self,
        blob: &Unverified,
        bad: Option<Identity>,
    ) -> Result<Verdict, StoreError> {
        let (store, digest) = (self.clone(), blob.digest.clone());
        let condemn = async move {
            let name = store.lock(&digest).await;
            let path = store.layout().blob(&digest);
            let now = blocking(move || identity(&path)).await;
            let now = now.map_err(|error| StoreError::io("looking at a bad blob", error))?;
            if now != bad {
                return Ok(Verdict::Gone);
            }
            let Some((file, _)) = store.take_out(&digest).await? else {
                return Ok(Verdict::Gone);
            };
            drop(name);
            let fault = if bad.is_some() { Fault::Corrupt } else { Fault::Missing };
            warn!(blob.digest = %digest, "the stored blob {digest} is {}; it is not served any more", fault.as_str());
            if bad.is_some() {
                let layout = store.layout().clone();
                blocking(move || {
                    let file = file.into_inner();
                    quarantine(&layout, &digest, file.path());
                    cut(file.path());
                })
                .await;
            }
            Ok(Verdict::Bad(fault))
        };
        finish(self.tasks(), condemn).await
    }
}

impl Fault {
    /// The word for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Corrupt => "corrupt",
            Self::Missing => "missing",
        }
    }
}

/// Tells a file from all others that are there at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

/// Which file is at a path, if there is one.
fn identity(path: &Path) -> io::Result<Option<Identity>> {
    match path.metadata() {
        Ok(metadata) => Ok(Some(Identity::of(&metadata))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether an error says that the disk does not have the bytes any more, and not that they cannot be
/// read now.
fn has_lost_bytes(error: &io::Error) -> bool {
    let lost = [Errno::IO, Errno::BADMSG, Errno::UCLEAN];
    Errno::from_io_error(error).is_some_and(|errno| lost.contains(&errno))
}

fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    // What is read ahead could not be told from what others have in the page cache.
    let _ = rustix::fs::fadvise(&file, 0, None, Advice::Random);
    Ok((file, metadata))
}

/// The digest, by the same algorithm, of what is in a file.
async fn hash(file: File, digest: Digest, pace: Pace) -> io::Result<Digest> {
    let (mut work, mut at) = ((file, digest.hasher(), vec![0; PIECE]), 0);
    loop {
        let begun = Instant::now();
        let (back, read) = blocking(move || {
            let (file, hasher, buffer) = &mut work;
            let read = read_piece(file, at, buffer);
            if let Ok(n) = read {
                hasher.update(&buffer[..n]);
            }
            (work, read)
        })
        .await;
        work = back;
        match read? {
            0 => return Ok(work.1.finish()),
            n => {
                at += n as u64;
                tokio::time::sleep(pace.rest(n, begun.elapsed())).await;
            }
        }
    }
}

/// Reads some bytes, and leaves the page cache as it was.
fn read_piece(file: &File, at: u64, buffer: &mut [u8]) -> io::Result<usize> {
    let cached =
        rustix::io::preadv2(file, &mut [IoSliceMut::new(buffer)], at, ReadWriteFlags::NOWAIT);
    if let Ok(n) = cached {
        return Ok(n);
    }
    let n = file.read_at(buffer, at)?;
    if let Some(len) = NonZeroU64::new(n as u64) {
        // That they stay would be no harm but to others.
        let _ = rustix::fs::fadvise(file, at, Some(len), Advice::DontNeed);
    }
    Ok(n)
}

/// Keeps a copy of a bad file to look at. Blocks.
pub(crate) fn quarantine(layout: &Layout, digest: &Digest, path: &Path) {
    if let Err(error) = try_quarantine(layout, digest, path) {
        warn!(blob.digest = %digest, %error, "keeping a copy of the bad blob {digest}");
    }
}

fn try_quarantine(layout: &Layout, digest: &Digest, path: &Path) -> io::Result<()> {
    if path.metadata()?.len() > MAX_QUARANTINED_BYTES {
        return Err(io::Error::other("it is larger than 64 MiB"));
    }
    std::fs::create_dir_all(layout.quarantine())?;
    let mut kept = Vec::new();
    for entry in std::fs::read_dir(layout.quarantine())? {
        let path = entry?.path();
        kept.push((path.metadata()?.modified()?, path));
    }
    kept.sort();
    let n_too_many = (kept.len() + 1).saturating_sub(MAX_QUARANTINED);
    for (_, path) in &kept[..n_too_many] {
        std::fs::remove_file(path)?;
    }
    std::fs::copy(path, layout.quarantined(digest))?;
    Ok(())
}

/// Ends a file for everybody who has it open. Blocks.
fn cut(path: &Path) {
    let cut = OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(0));
    if let Err(error) = cut {
        warn!(%error, "cutting a bad blob at {}; who reads it may go on", path.display());
    }
}

impl Layout {
    /// Where copies of bad blobs are kept.
    fn quarantine(&self) -> PathBuf {
        self.root().join("quarantine")
    }

    fn quarantined(&self, digest: &Digest) -> PathBuf {
        self.quarantine().join(format!("{}-{}", digest.algorithm(), digest.hex()))
    }
}

#[cfg(test)]
mod tests {
    use larder_core::name::Named;

    use super::*;
    use crate::Settings;

    #[tokio::test]
    async fn a_blob_that_was_stored_anew_while_its_file_was_read_stays() {
        let directory = tempfile::tempdir().unwrap();
        let settings = Settings::new(directory.path().to_owned());
        let store = Store::open(settings).await.unwrap();
        let named = Named { host: "a.io".parse().unwrap(), repository: "b".parse().unwrap() };
        let digest = Digest::sha256_of(b"");
        store.stage(&digest).await.unwrap().commit(None, &named).await.unwrap();
        let blob = store.stored_after(0, 1).await.unwrap().remove(0);
        // The file that was read, or its absence, is not what is there now.
        for bad in [Some(Identity { device: 0, inode: 0 }), None] {
            assert_eq!(store.condemn(&blob, bad).await.unwrap(), Verdict::Gone);
            assert!(store.blob(&digest).await.unwrap().is_some());
        }
        let now = identity(&store.layout().blob(&digest)).unwrap();
        let bad = Verdict::Bad(Fault::Corrupt);
        assert_eq!(store.condemn(&blob, now).await.unwrap(), bad);
        assert!(store.blob(&digest).await.unwrap().is_none());
        // And now it is evicted.
        assert_eq!(store.condemn(&blob, None).await.unwrap(), Verdict::Gone);
    }

    #[test]
    fn at_most_half_the_time_is_spent_and_no_more_is_read_than_was_said() {
        let pace = Pace::per_second(NonZeroU64::new(1000).unwrap());
        let rest = |n, took| pace.rest(n, Duration::from_millis(took)).as_millis();
        assert_eq!(rest(1000, 100), 900);
        assert_eq!(rest(1000, 700), 700);
        assert_eq!(rest(10, 5), 5);
        assert_eq!(Pace::UNBOUNDED.rest(1 << 20, Duration::from_secs(1)), Duration::ZERO);
    }

    #[test]
    fn a_disk_that_has_lost_bytes_is_told_from_a_process_that_has_no_files_left() {
        let is_lost = |errno: Errno| has_lost_bytes(&errno.into());
        assert!(is_lost(Errno::IO) && is_lost(Errno::BADMSG));
        assert!(!is_lost(Errno::MFILE) && !is_lost(Errno::ACCESS));
    }
}
