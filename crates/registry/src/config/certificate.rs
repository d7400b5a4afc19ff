//! A certificate and its key, which are configured as two files.

use std::path::PathBuf;

use larder_process::tls;

use super::files::Files;
use super::mistake::{Located, Mistakes, Wrong, wrong};
use super::upstream::{cannot_read, with_causes};
use super::value;

/// Where the PEM file of authorities is that `text` names, and what is in it: at least one.
pub(super) fn authorities(text: &str, files: &dyn Files) -> Result<(PathBuf, Vec<u8>), Wrong> {
    let path = value::path(text)?;
    let bytes = files.read(&path).map_err(|error| cannot_read(text, &error))?;
    tls::certificates(&path, &bytes).map_err(|error| wrong(with_causes(&error)))?;
    Ok((path, bytes))
}

/// Notes what is wrong with a certificate and its key, whose keys in the configuration are `names`:
/// one of them alone, files that cannot be read, or that do not belong together.
pub(super) fn check(
    cert: Option<&Located<PathBuf>>,
    key: Option<&Located<PathBuf>>,
    names: [&str; 2],
    files: &dyn Files,
    mistakes: &mut Mistakes,
) {
    let [cert_name, key_name] = names;
    let (cert, key) = match (cert, key) {
        (None, None) => return,
        (Some(cert), Some(key)) => (cert, key),
        (Some(cert), None) => {
            let alone = wrong("a certificate alone is no use");
            return mistakes.note(&cert.at, alone.advise(format!("set its key with `{key_name}`")));
        }
        (None, Some(key)) => {
            let alone = wrong("a key alone is no use");
            let advice = format!("set its certificate with `{cert_name}`");
            return mistakes.note(&key.at, alone.advise(advice));
        }
    };
    let mut read = |file: &Located<PathBuf>| {
        let path = &file.value;
        let bytes =
            files.read(path).map_err(|error| cannot_read(&path.display().to_string(), &error));
        mistakes.keep(file.at.clone(), bytes).map(|it| it.value)
    };
    let (Some(cert_pem), Some(key_pem)) = (read(cert), read(key)) else { return };
    if let Err(error) = tls::certificates(&cert.value, &cert_pem) {
        return mistakes.note(&cert.at, wrong(with_causes(&error)));
    }
    let names = tls::Files { cert: cert.value.clone(), key: key.value.clone() };
    if let Err(error) = tls::certified(&names, &cert_pem, &key_pem) {
        let at = match &error {
            tls::LoadError::Certificate { .. } | tls::LoadError::Mismatch { .. } => &cert.at,
            _ => &key.at,
        };
        mistakes.note(at, wrong(with_causes(&error)));
    }
}
