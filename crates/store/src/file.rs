//! Reading files without blocking whoever else is served.

use std::fs::File;
use std::io::{self, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};

use crate::buffers::{Buffer, Buffers};
use crate::work::{Slow, blocking};

/// A file that many can read at once, each at its own place. Cheap to clone.
///
/// Bytes in the page cache are copied at once; others are fetched by a thread that may block, so a
/// slow disk delays only those who read from it, and a broken one fails only them.
#[derive(Clone, Debug)]
pub struct SharedFile {
    file: Arc<Slow<File>>,
    buffers: Buffers,
}

impl SharedFile {
    pub(crate) fn new(file: Arc<Slow<File>>, buffers: Buffers) -> Self {
        Self { file, buffers }
    }

    /// The length of the file now.
    pub(crate) fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Reads from byte `offset` on: at least 1 byte and at most `wanted` (which is at least 1) or
    /// 256 KiB, whichever is less.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends at or before `offset`, else what the operating system says.
    /// The file is not what it was stored as: the body that is being sent must be aborted.
    pub async fn read(&self, offset: u64, wanted: u64) -> io::Result<Bytes> {
        let mut buffer = self.buffers.take(wanted);
        match read_cached(&self.file, buffer.room(wanted), offset) {
            Ok(0) => Err(too_short()),
            Ok(n) => Ok(buffer.filled(n)),
            // Not in the page cache, or not to be asked that way here: what really is wrong, if
            // anything, the disk will say.
            Err(_) => self.read_from_disk(buffer, offset, wanted).await,
        }
    }

    async fn read_from_disk(
        &self,
        mut buffer: Buffer,
        offset: u64,
        wanted: u64,
    ) -> io::Result<Bytes> {
        let file = Arc::clone(&self.file);
        let read = move || match file.read_at(buffer.room(wanted), offset)? {
            0 => Err(too_short()),
            n => Ok(buffer.filled(n)),
        };
        blocking(read).await
    }
}

/// Copies what is in the page cache; `AGAIN` if that is nothing.
fn read_cached(file: &File, room: &mut [u8], offset: u64) -> Result<usize, Errno> {
    rustix::io::preadv2(file, &mut [IoSliceMut::new(room)], offset, ReadWriteFlags::NOWAIT)
}

fn too_short() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the stored file is shorter than it was")
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use crate::work::Ending;

    use super::*;

    #[tokio::test]
    async fn any_part_of_a_file_can_be_read() {
        let file = shared(b"0123456789");
        assert_eq!(file.read(0, 4).await.unwrap(), &b"0123"[..]);
        assert_eq!(file.read(8, 100).await.unwrap(), &b"89"[..]);
    }

    #[tokio::test]
    async fn a_file_that_ends_early_is_an_error() {
        let error = shared(b"0123456789").read(10, 1).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    fn shared(bytes: &[u8]) -> SharedFile {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        let file = Slow::new(file, &Ending::default());
        SharedFile::new(Arc::new(file), Buffers::default())
    }
}
