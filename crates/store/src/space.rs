//! What the disk has.

use std::io;
use std::path::Path;

/// The size in bytes of the volume that holds `directory`.
///
/// # Errors
///
/// What the operating system says; the directory is missing, most likely.
pub fn volume_size(directory: &Path) -> io::Result<u64> {
    Ok(Volume::of(directory)?.size)
}

/// A volume, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Volume {
    pub(crate) size: u64,
    /// What may still be written, by everybody who isn't root.
    pub(crate) free: u64,
    /// Files take whole ones of these.
    pub(crate) block: u64,
}

/// The part of a volume that is kept free for others, and for what is being fetched meanwhile: a
/// fiftieth, and no more than 1 GiB.
const MAX_RESERVE: u64 = 1 << 30;

impl Volume {
    pub(crate) fn of(directory: &Path) -> io::Result<Self> {
        let volume = rustix::fs::statvfs(directory)?;
        Ok(Self {
            size: volume.f_blocks.saturating_mul(volume.f_frsize),
            free: volume.f_bavail.saturating_mul(volume.f_frsize),
            block: volume.f_frsize.clamp(512, 1 << 20),
        })
    }

    /// What a file of `len` bytes takes.
    pub(crate) fn room(&self, len: u64) -> u64 {
        len.div_ceil(self.block).saturating_mul(self.block)
    }

    /// The most that a store of `used` bytes may hold: its budget, and never so much that the reserve
    /// is touched.
    pub(crate) fn limit(&self, used: u64, budget: Option<u64>) -> u64 {
        let reserve = (self.size / 50).min(MAX_RESERVE);
        let possible = used.saturating_add(self.free).saturating_sub(reserve);
        budget.map_or(possible, |budget| budget.min(possible))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_take_whole_blocks() {
        let volume = Volume { size: 0, free: 0, block: 4096 };
        assert_eq!([0, 1, 4096, 4097].map(|len| volume.room(len)), [0, 4096, 4096, 8192]);
    }

    #[test]
    fn the_reserve_stays_free_whatever_the_budget() {
        let volume = Volume { size: 1000, free: 100, block: 1 };
        assert_eq!(volume.limit(500, None), 580);
        assert_eq!(volume.limit(500, Some(550)), 550);
        assert_eq!(volume.limit(500, Some(900)), 580);
        // Others have filled the disk.
        assert_eq!(Volume { free: 0, ..volume }.limit(500, None), 480);
        let large = Volume { size: 1 << 50, free: 1 << 40, block: 1 };
        assert_eq!(large.limit(0, None), (1 << 40) - (1 << 30));
    }
}
