//! Buffers for reading files, used again instead of allocated for each read.
//!
//! A fresh 256 KiB allocation costs page faults and zeroing that take longer than copying the bytes
//! from the page cache. A buffer goes back to its pool when the last `Bytes` made of it is dropped.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

/// The size of one buffer in bytes, which measured best for one stream.
pub(crate) const BUFFER: usize = 256 << 10;

/// The size of the buffers that are given out when many are in use. They measured nearly as well,
/// and hundreds of streams then need no more memory than a few dozen.
const SMALL_BUFFER: usize = 64 << 10;

/// How many buffers of full size may be in use: 16 MiB. Streams beyond that get small ones, so that
/// 256 of them, each with one buffer in flight, have 28 MiB together.
const MAX_LARGE: usize = 64;

/// How many unused buffers are kept: 8 MiB, enough for the streams that are active at one moment.
const MAX_IDLE: usize = 32;

/// A pool of buffers of [`BUFFER`] bytes each. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers {
    large: Arc<Large>,
}

/// The buffers of full size.
#[derive(Debug, Default)]
struct Large {
    idle: Mutex<Vec<Box<[u8]>>>,
    n_in_use: AtomicUsize,
}

/// A buffer of which the first `len` bytes have been filled.
pub(crate) struct Buffer {
    bytes: Box<[u8]>,
    len: usize,
    home: Buffers,
}

impl Buffers {
    /// A buffer of `wanted` bytes where that is little, else of [`BUFFER`] bytes, or of
    /// [`SMALL_BUFFER`] when many are in use.
    pub(crate) fn take(&self, wanted: u64) -> Buffer {
        let bytes = match usize::try_from(wanted) {
            Ok(wanted) if wanted <= SMALL_BUFFER => vec![0; wanted].into_boxed_slice(),
            _ => self.large.take().unwrap_or_else(|| vec![0; SMALL_BUFFER].into_boxed_slice()),
        };
        Buffer { bytes, len: 0, home: self.clone() }
    }
}

impl Large {
    /// A buffer of full size; `None` if as many as may be are in use.
    fn take(&self) -> Option<Box<[u8]>> {
        // Two who ask at once may both be refused the last one, which costs them nothing.
        if self.n_in_use.fetch_add(1, Ordering::Relaxed) >= MAX_LARGE {
            self.n_in_use.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let idle = self.idle.lock().pop();
        Some(idle.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice()))
    }

    fn give_back(&self, bytes: Box<[u8]>) {
        self.n_in_use.fetch_sub(1, Ordering::Relaxed);
        let mut idle = self.idle.lock();
        if idle.len() < MAX_IDLE {
            idle.push(bytes);
        }
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
        if self.bytes.len() == BUFFER {
            self.home.large.give_back(std::mem::take(&mut self.bytes));
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
        assert_eq!((part.as_ref(), buffers.large.idle.lock().len()), (&b"bc"[..], 0));
        drop(part);
        assert_eq!(buffers.large.idle.lock().len(), 1);
    }

    #[test]
    fn a_small_read_gets_a_small_buffer() {
        let mut buffer = Buffers::default().take(100);
        assert_eq!(buffer.room(1000).len(), 100);
    }

    #[test]
    fn those_who_come_when_many_are_in_use_get_small_buffers() {
        let buffers = Buffers::default();
        let mut large: Vec<Buffer> = (0..MAX_LARGE).map(|_| buffers.take(u64::MAX)).collect();
        assert!(large.iter_mut().all(|buffer| buffer.room(u64::MAX).len() == BUFFER));
        assert_eq!(buffers.take(u64::MAX).room(u64::MAX).len(), SMALL_BUFFER);
        large.pop();
        assert_eq!(buffers.take(u64::MAX).room(u64::MAX).len(), BUFFER);
    }
}
