//! What the repository checks about itself.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use larder_tests::scratch::files_below;
use serde_json::Value;

/// Who may name whom, tests aside. A crate of ours that is not listed may name no other.
///
/// Services stand on adapters, adapters on `core`; neighbours never name each other.
const ARROWS: &[(&str, &[&str])] = &[
    (
        "larder",
        &[
            "larder-agent",
            "larder-api-types",
            "larder-core",
            "larder-k8s",
            "larder-operator",
            "larder-process",
            "larder-registry",
            "larder-simulation",
        ],
    ),
    (
        "larder-agent",
        &["larder-core", "larder-cri", "larder-k8s", "larder-process", "larder-upstream"],
    ),
    (
        "larder-registry",
        &["larder-api-types", "larder-core", "larder-process", "larder-store", "larder-upstream"],
    ),
    ("larder-operator", &["larder-core", "larder-k8s", "larder-process"]),
    ("larder-api-types", &["larder-core"]),
    ("larder-store", &["larder-core"]),
    ("larder-upstream", &["larder-core"]),
    ("larder-cri", &["larder-core"]),
    ("larder-k8s", &[]),
    ("larder-simulation", &["larder-core"]),
    ("larder-testkit", &["larder-core"]),
    // Whole-program tests know the program by its command line and its addresses.
    ("larder-tests", &["larder-core", "larder-cri", "larder-testkit"]),
];

/// What only tests may name.
const FOR_TESTS_ONLY: &[&str] = &["larder-testkit", "larder-tests"];

#[test]
fn crates_name_only_the_crates_below_them() {
    let packages = packages();
    let names: BTreeSet<&str> = packages.iter().map(|package| text(package, "name")).collect();
    for package in &packages {
        let from = text(package, "name");
        let allowed = ARROWS.iter().find(|(it, _)| *it == from).map_or(&[][..], |(_, to)| to);
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = text(dependency, "name");
            let is_for_its_tests = dependency["kind"] == "dev";
            assert!(
                !names.contains(to) || is_for_its_tests || allowed.contains(&to),
                "{from} must not depend on {to}: see ARROWS here"
            );
        }
    }
}

#[test]
fn what_is_for_tests_is_named_by_tests_only() {
    for package in packages() {
        let from = text(&package, "name");
        for dependency in package["dependencies"].as_array().unwrap() {
            let to = text(dependency, "name");
            assert!(
                !FOR_TESTS_ONLY.contains(&to)
                    || dependency["kind"] == "dev"
                    || FOR_TESTS_ONLY.contains(&from),
                "{from} may depend on {to} for its tests only"
            );
        }
    }
}

#[test]
fn every_source_file_is_part_of_its_crate() {
    let (mut reached, mut found) = (BTreeSet::new(), BTreeSet::new());
    for package in packages() {
        for target in package["targets"].as_array().unwrap() {
            let root = Path::new(text(target, "src_path"));
            reach(root, root.parent().unwrap(), &mut reached);
        }
        let folder = Path::new(text(&package, "manifest_path")).parent().unwrap();
        for part in ["src", "tests", "benches", "examples"] {
            found.extend(files_below(&folder.join(part)));
        }
    }
    found.retain(|path| path.extension().is_some_and(|it| it == "rs"));
    let orphans: Vec<&PathBuf> = found.difference(&reached).collect();
    assert!(orphans.is_empty(), "no `mod` names these: {orphans:#?}");
}

/// Adds `file`, whose submodules are files below `folder`, and what its `mod` lines lead to.
fn reach(file: &Path, folder: &Path, reached: &mut BTreeSet<PathBuf>) {
    if !reached.insert(file.to_owned()) {
        return;
    }
    let source = fs::read_to_string(file).unwrap();
    for line in source.lines() {
        let line = line.trim_start();
        let line = line.strip_prefix("pub ").or(line.strip_prefix("pub(crate) ")).unwrap_or(line);
        let Some(name) = line.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';')) else {
            continue;
        };
        let below = folder.join(name);
        for path in [folder.join(format!("{name}.rs")), below.join("mod.rs")] {
            if path.exists() {
                reach(&path, &below, reached);
            }
        }
    }
}

/// The packages of this workspace, as Cargo sees them.
fn packages() -> Vec<Value> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version=1"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).unwrap();
    metadata["packages"].as_array().unwrap().clone()
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap()
}
