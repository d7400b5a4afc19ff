//! The files of this repository that tests read.

use std::path::PathBuf;

/// The place of a file or folder, given as from the root.
///
/// Found at run time, as Cargo runs tests in the folder of their package: clones that share what is
/// built would look in each other's, if that was compiled in.
///
/// # Panics
///
/// If there is no such folder any more.
pub fn path(of: &str) -> PathBuf {
    let package = std::env::current_dir().expect("a folder");
    package.parent().expect("the repository's").join(of)
}
