//! Bytes that look random and are the same in every run.

use bytes::Bytes;

/// `size` bytes that depend on `seed` only and don't compress.
///
/// Made by SplitMix64 (Steele, Lea and Flood, 2014), which takes a quarter of a second for 1 GiB.
pub fn bytes(seed: u64, size: usize) -> Bytes {
    let mut numbers = Numbers::new(seed);
    let mut bytes = vec![0; size];
    for chunk in bytes.chunks_mut(8) {
        let number = numbers.next().to_le_bytes();
        chunk.copy_from_slice(&number[..chunk.len()]);
    }
    Bytes::from(bytes)
}

/// Numbers that look random and depend on the seed only.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// Begins the sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    #[expect(clippy::should_implement_trait, reason = "it never ends, so there is no None")]
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number, less than `end`.
    ///
    /// # Panics
    ///
    /// If `end` is 0.
    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_decides_every_byte() {
        assert_eq!(bytes(7, 100), bytes(7, 103).slice(..100));
        assert_ne!(bytes(7, 100), bytes(8, 100));
    }
}
