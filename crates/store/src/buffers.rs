//! Buffers for reading files, used again instead of allocated for each read.
//!
//! A fresh 256 KiB allocation costs page faults and zeroing that take longer than copying the bytes
//! from the page cache. A buffer goes back to its pool when the last `Bytes` made of it is dropped.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

/// The size of one buffer in bytes. 256 KiB measured best for one stream, and keeps 256 streams,
/// each with one buffer in flight, at 64 MiB.
pub(crate) const BUFFER: usize = 256 << 10;

/// How many unused buffers are kept: 8 MiB, enough for the streams that are active at one moment.
const MAX_IDLE: usize = 32;

/// A pool of buffers of [`BUFFER`] bytes each. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers {
    idle: Arc<Mutex<Vec<Box<[u8]>>>>,
}

/// A buffer of which the first `len` bytes have been filled.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    home: Buffers,
}

impl Buffers {
    /// A buffer of at least `wanted` bytes where that is less than [`BUFFER`], else of that.
    pub(crate) fn take(&self, wanted: u64) -> Buffer {
        let pooled = wanted > BUFFER as u64 / 4;
        let bytes = match pooled.then(|| self.idle.lock().pop()).flatten() {
            Some(bytes) => bytes,
            None if pooled => vec![0; BUFFER].into_boxed_slice(),
            None => vec![0; usize::try_from(wanted).unwrap_or(BUFFER)].into_boxed_slice(),
        };
        Buffer { bytes, len: 0, home: self.clone() }
    }
}

impl Buffer {
    /// Room for at most `wanted` bytes.
    pub(crate) fn room(&mut self, wanted: u64) -> &mut [u8] {
        let end = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.bytes.len());
        &mut self.bytes[..end]
    }

    /// The first `len` bytes, which were filled.
    pub(crate) fn filled(mut self, len: usize) -> Bytes {
        self.len = len;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len() != BUFFER {
            return;
        }
        let mut idle = self.home.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(std::mem::take(&mut self.bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back_when_its_bytes_are_dropped() {
        let buffers = Buffers::default();
        let mut buffer = buffers.take(u64::MAX);
        buffer.room(u64::MAX)[..3].copy_from_slice(b"abc");
        let bytes = buffer.filled(3);
        let part = bytes.slice(1..);
        drop(bytes);
        assert_eq!((part.as_ref(), buffers.idle.lock().len()), (&b"bc"[..], 0));
        drop(part);
        assert_eq!(buffers.idle.lock().len(), 1);
    }

    #[test]
    fn a_small_read_gets_a_small_buffer() {
        let mut buffer = Buffers::default().take(100);
        assert_eq!(buffer.room(1000).len(), 100);
    }
}
