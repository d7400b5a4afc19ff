//! The memory that clients read into.

use std::ops::{Deref, DerefMut};

/// What one read may bring, in bytes. It fits into the second-level cache of a core.
pub(crate) const SIZE: usize = 256 << 10;

/// The size of a page of memory.
const PAGE: usize = 4096;

/// [`SIZE`] bytes that begin with a page, as the large buffers of Go's clients do.
///
/// `malloc` would begin them 16 bytes into one, which is where the copies of some processors are
/// slowest: each server would be measured with a client that cannot keep up.
pub(crate) struct Buffer {
    /// A page more than what is used of it.
    allocated: Vec<u8>,
    start: usize,
}

impl Buffer {
    /// A buffer of zeros.
    pub(crate) fn new() -> Self {
        let allocated = vec![0; SIZE + PAGE];
        let start = allocated.as_ptr().addr().wrapping_neg() % PAGE;
        Self { allocated, start }
    }
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.allocated[self.start..][..SIZE]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.allocated[self.start..][..SIZE]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_begins_with_a_page() {
        let mut buffer = Buffer::new();
        assert_eq!((buffer.as_ptr().addr() % PAGE, buffer.len()), (0, SIZE));
        buffer[SIZE - 1] = 1;
    }
}
