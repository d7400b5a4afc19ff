//! `larder import-gardener` and `larder crds`

use std::io::{self, Write as _};

use anyhow::Context as _;
use larder_k8s::gardener::{self, Objects};
use larder_k8s::manifest;
use larder_registry::config::{Disk, Files as _};

use crate::cli::ImportGardener;
use crate::failure::Failure;

pub(crate) fn run(command: &ImportGardener) -> Result<(), Failure> {
    let name = command.file.display();
    let read = || {
        let bytes = Disk.read(&command.file).with_context(|| format!("reading {name}"))?;
        let text = String::from_utf8(bytes).with_context(|| format!("reading {name}"))?;
        manifest::documents(&text).with_context(|| format!("reading {name}"))
    };
    let documents = read().map_err(Failure::Usage)?;
    let objects = match Objects::read(&documents) {
        Ok(objects) => objects,
        Err(mistakes) => {
            let lines: String = mistakes.iter().map(|it| format!("{name}: {it}\n")).collect();
            // There is nobody to tell if stderr is closed.
            let _ = io::stderr().write_all(lines.as_bytes());
            return Err(Failure::Said(2));
        }
    };
    let imported = gardener::import(&objects, &command.namespace);
    let documents: String = imported.caches.iter().map(manifest::document).collect();
    io::stdout().write_all(documents.as_bytes()).map_err(Failure::writing)?;
    for note in &imported.notes {
        let _ = writeln!(io::stderr(), "{note}");
    }
    Ok(())
}

/// Prints the definitions of our custom resources.
pub(crate) fn print_definitions() -> Result<(), Failure> {
    io::stdout().write_all(manifest::definitions().as_bytes()).map_err(Failure::writing)
}
