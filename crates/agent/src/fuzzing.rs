//! What the fuzz target does with the editors of other people's files, which are private here. A
//! property that does not hold is a panic.

use std::path::Path;

use crate::mirrors::{self, EDITORS};

/// A letter for the runtime, and a file of its: an edit only adds, and is done once. Anything may be
/// checked.
pub fn mirrors(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = mirrors::check_containerd(Some(&text), Path::new("/etc/containerd/certs.d"));
    let mut characters = text.chars();
    let Some(letter) = characters.next() else { return };
    let (_, edit) = EDITORS[letter as usize % EDITORS.len()];
    let before = characters.as_str();
    let Some(after) = edit(before) else { return };
    assert!(
        before.trim().is_empty() || is_within(before, &after),
        "{before:?} is not in {after:?}"
    );
    assert!(edit(&after).is_none_or(|again| again == after), "{after:?} is edited again");
}

/// Whether `one` is left when some characters are taken out of `other`.
fn is_within(one: &str, other: &str) -> bool {
    let mut rest = other.chars();
    one.chars().all(|wanted| rest.any(|it| it == wanted))
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_seed_is_taken() {
        let seeds: Vec<_> = std::fs::read_dir("../../fuzz/corpus/mirrors").unwrap().collect();
        assert!(!seeds.is_empty());
        for seed in seeds {
            super::mirrors(&std::fs::read(seed.unwrap().path()).unwrap());
        }
    }
}
