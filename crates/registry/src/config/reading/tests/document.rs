//! What the document says of the configuration, beside what is read.

use super::*;

const DOCUMENT: &str = include_str!("../../../../../../docs/configuration.md");

#[test]
fn every_key_is_in_the_document() {
    for (header, key) in known_keys() {
        let in_heading = DOCUMENT.contains(&format!("\n### `{key}`\n"));
        let in_table = DOCUMENT.contains(&format!("\n| `{key}` "));
        assert!(in_heading || in_table, "{header} {key}");
    }
}

#[test]
fn every_example_of_the_document_is_a_configuration() {
    let examples = examples();
    assert!(examples.len() > 20, "{examples:?}");
    for example in examples {
        if let Err(mistakes) = read_in_etc(example) {
            panic!("{mistakes:?} in {example}");
        }
    }
}

#[test]
fn the_documents_complete_example_has_every_key_that_has_an_effect() {
    let (_, end) = DOCUMENT.split_once("\n## A complete example\n").unwrap();
    let example = *examples_in(end).first().unwrap();
    for (header, key) in known_keys() {
        if key == "public_url" {
            continue;
        }
        let is_there = ["\n", "[", "{ ", ", "].iter().any(|before| {
            [" =", "]", "."].iter().any(|after| example.contains(&format!("{before}{key}{after}")))
        });
        assert!(is_there || example.starts_with(&format!("{key} =")), "{header} {key}");
    }
}

/// All keys, each with the table that it is in, as the reader itself lists them.
fn known_keys() -> Vec<(&'static str, String)> {
    let tables = ["", "[s3]\n", "[upstreams.\"x.io\"]\n", "[upstreams.\"x.io\".credentials]\n"];
    let keys_of = |header: &'static str| {
        let mistakes = mistakes(&format!("{header}unlike_any_other = 1"));
        let (_, known) = mistakes[0].split_once("known here are ").unwrap();
        known.split(", ").map(|key| (header, key.to_owned())).collect::<Vec<_>>()
    };
    tables.into_iter().flat_map(keys_of).collect()
}

fn examples() -> Vec<&'static str> {
    examples_in(DOCUMENT)
}

fn examples_in(document: &str) -> Vec<&str> {
    let blocks = document.split("\n```toml\n").skip(1);
    blocks.map(|block| block.split_once("\n```").unwrap().0).collect()
}

/// Reads an example, which names files as they are on a server.
fn read_in_etc(text: &str) -> Result<Config, Vec<Mistake>> {
    let login = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"dTpw"}}}"#;
    let file = |name: &str| FILES[&PathBuf::from(name)].clone();
    let files = BTreeMap::from([
        (PathBuf::from("/etc/larder/tls.crt"), file("cert.pem")),
        (PathBuf::from("/etc/larder/tls.key"), file("key.pem")),
        (PathBuf::from("/etc/larder/ca.pem"), file("cert.pem")),
        (PathBuf::from("/etc/larder/client.crt"), file("cert.pem")),
        (PathBuf::from("/etc/larder/client.key"), file("key.pem")),
        (PathBuf::from("/etc/larder/password"), file("password")),
        (PathBuf::from("/etc/larder/admin-token"), file("token")),
        (PathBuf::from("/etc/larder/aws-credentials"), file("aws")),
        (PathBuf::from("/etc/larder/config.json"), login.to_owned()),
    ]);
    let (overrides, default_data) = (Overrides::default(), PathBuf::from("/default"));
    parse(text, "example", &Environment { overrides, default_data, files: &files })
}
