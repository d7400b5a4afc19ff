//! A stored blob that shrinks while it is served.

use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::larder::{Larder, Setup};
use super::peers::Registry;
use super::report::{Findings, Target, Unit};
use super::{Bench, MIB};

/// Larger than everything that sockets hold between a server and a client that does not read.
const SIZE: u64 = 64 * MIB;

/// When the client has read so much, the file is cut.
const CUT_AFTER: u64 = MIB;

/// What this section does.
pub(crate) fn what(_: &Bench) -> String {
    "A stored 64 MiB blob is cut to half its length on disk while a client downloads it.".to_owned()
}

/// Looks at what that does to this request, to others, and to later ones.
///
/// # Errors
///
/// A program does not start, or the stored file is not found.
pub(crate) fn measure(bench: &Bench) -> anyhow::Result<Findings> {
    super::progress("truncate");
    let cut = bench.images().add_random(4, SIZE)?;
    let other = bench.images().add_random(5, SIZE)?;
    let registry = Registry::start(bench, None)?;
    let data = bench.directory()?;
    let larder = Larder::start(bench, &Setup::new(registry.address(), data.path().to_owned()))?;
    for blob in [&cut, &other] {
        larder.blob(&blob.digest).verify(&blob.digest)?;
    }
    let file = file_of(data.path(), &cut.digest.hex())?;

    let mut read = 0;
    let get = larder.blob(&cut.digest);
    let mut other_ended_well = false;
    let mut hasher = super::content::empty_hasher();
    let ended = get.download(|bytes| {
        let before = read;
        read += bytes.len() as u64;
        hasher.update(bytes);
        if before < CUT_AFTER && CUT_AFTER <= read {
            OpenOptions::new().write(true).open(&file)?.set_len(SIZE / 2)?;
            other_ended_well = larder.blob(&other.digest).verify(&other.digest).is_ok();
        }
        Ok(())
    });
    // A body may end well if all of it was under way before the cut, or came from the upstream.
    let deceived = ended.is_ok() && hasher.finish() != cut.digest;
    let ending = match &ended {
        Ok(_) => "whole".to_owned(),
        Err(error) => format!("cut off ({error:#})"),
    };

    let mut findings = Findings::default();
    let yes = Target::Exactly(1.0);
    let mut holds = |what: &str, holds: bool| {
        findings.target(what, Unit::Count, f64::from(u8::from(holds)), yes);
    };
    holds("no wrong body ends as if it were right", !deceived);
    holds("another download meanwhile is right", other_ended_well);
    holds("the process lives", larder.runs());
    holds("the next request for the blob is right", get.verify(&cut.digest).is_ok());
    findings.note(format!("1 is yes. The request under way was {ending}."));
    Ok(findings)
}

/// The file below `directory` whose path names the hash `hex`.
fn file_of(directory: &Path, hex: &str) -> anyhow::Result<PathBuf> {
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).context("looking for a stored blob")? {
            let path = entry?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.to_string_lossy().contains(hex) {
                return Ok(path);
            }
        }
    }
    anyhow::bail!("no file of the store is named after {hex}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_file_is_found_by_its_hash() {
        let store = tempfile::tempdir().unwrap();
        fs::create_dir_all(store.path().join("a/b")).unwrap();
        fs::write(store.path().join("a/b/abcdef"), "x").unwrap();
        assert_eq!(file_of(store.path(), "abcd").unwrap(), store.path().join("a/b/abcdef"));
        assert!(file_of(store.path(), "0123").is_err());
    }
}
