//! Buffers for reading files, used again instead of allocated for each read.
//!
//! A fresh 256 KiB allocation costs page faults and zeroing that take longer than copying the bytes
//! from the page cache. A buffer goes back to its pool when the last `Bytes` made of it is dropped.
//!
//! Where in its page a buffer begins decides how fast it is copied. The fast copy of current AMD
//! processors (`rep movsb`, which both the kernel and glibc use) falls back to a few bytes at a time
//! if the target lies 1 to 63 bytes behind the source, counted within a page: measured, 6.4 instead
//! of 10 GB/s from the page cache into a buffer 16 bytes into its page, which is where `malloc` puts
//! large ones, and 3.4 instead of 60 GB/s into a record of TLS, which lies 5 bytes behind that.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use parking_lot::Mutex;

/// The size of a page of memory, which is also what files are cached by.
const PAGE: usize = 4096;

/// Where in its page a buffer begins: far from where pages of files (0) and allocations (16, or a
/// little more with a header in front) begin, whichever way it is copied.
const PLACE: usize = PAGE / 2;

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
    idle: Mutex<Vec<Placed>>,
    n_in_use: AtomicUsize,
}

/// Bytes that begin at [`PLACE`] of a page.
#[derive(Debug, Default)]
struct Placed {
    /// A page more than what is used of it.
    allocated: Box<[u8]>,
    start: usize,
    len: usize,
}

/// A buffer of which the first `len` bytes have been filled.
pub(crate) struct Buffer {
    bytes: Placed,
    len: usize,
    home: Buffers,
}

impl Placed {
    fn new(len: usize) -> Self {
        let allocated = vec![0; len + PAGE].into_boxed_slice();
        let start = PLACE.wrapping_sub(allocated.as_ptr().addr()) % PAGE;
        Self { allocated, start, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.allocated[self.start..][..self.len]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.allocated[self.start..][..self.len]
    }
}

impl Buffers {
    /// A buffer of `wanted` bytes where that is little, else of [`BUFFER`] bytes, or of
    /// [`SMALL_BUFFER`] when many are in use.
    pub(crate) fn take(&self, wanted: u64) -> Buffer {
        let bytes = match usize::try_from(wanted) {
            Ok(wanted) if wanted <= SMALL_BUFFER => Placed::new(wanted),
            _ => self.large.take().unwrap_or_else(|| Placed::new(SMALL_BUFFER)),
        };
        Buffer { bytes, len: 0, home: self.clone() }
    }
}

impl Large {
    /// A buffer of full size; `None` if as many as may be are in use.
    fn take(&self) -> Option<Placed> {
        // Two who ask at once may both be refused the last one, which costs them nothing.
        if self.n_in_use.fetch_add(1, Ordering::Relaxed) >= MAX_LARGE {
            self.n_in_use.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let idle = self.idle.lock().pop();
        Some(idle.unwrap_or_else(|| Placed::new(BUFFER)))
    }

    fn give_back(&self, bytes: Placed) {
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
        let end = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.bytes.len);
        &mut self.bytes.bytes_mut()[..end]
    }

    /// The first `len` bytes, which were filled.
    pub(crate) fn filled(mut self, len: usize) -> Bytes {
        self.len = len;
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes.bytes()[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.bytes.len == BUFFER {
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
    fn every_buffer_begins_in_the_middle_of_a_page() {
        let buffers = Buffers::default();
        for wanted in [1, 100, 5000, SMALL_BUFFER as u64, u64::MAX] {
            let mut buffer = buffers.take(wanted);
            let room = buffer.room(wanted);
            assert_eq!(room.as_ptr().addr() % PAGE, PLACE, "{wanted}");
            assert_eq!(room.len() as u64, wanted.min(BUFFER as u64));
        }
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
