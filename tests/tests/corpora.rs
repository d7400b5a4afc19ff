//! The seeds of the fuzz targets, as ordinary tests: what a fuzzer once found stays found.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::path::Path;

#[test]
fn every_fuzz_target_takes_every_seed() {
    let corpus = Path::new("../fuzz/corpus");
    for (name, target) in larder_fuzz::TARGETS {
        let seeds = fs::read_dir(corpus.join(name)).unwrap();
        let seeds: Vec<_> = seeds.map(|seed| seed.unwrap().path()).collect();
        assert!(!seeds.is_empty(), "{name}");
        for seed in seeds {
            target(&fs::read(seed).unwrap());
        }
    }
}
