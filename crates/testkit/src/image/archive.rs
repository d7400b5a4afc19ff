//! Layers as they are packed.

use std::io::Write as _;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;

/// An archive of files, each with its path, content and mode; always the same bytes.
pub(super) fn tar(files: &[(&str, &[u8], u32)]) -> Vec<u8> {
    let n_bytes = files.iter().map(|(_, content, _)| content.len() + 1024).sum::<usize>() + 4096;
    let mut archive = tar::Builder::new(Vec::with_capacity(n_bytes));
    for (path, content, mode) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(*mode);
        header.set_mtime(0);
        archive.append_data(&mut header, path, *content).expect("a vector takes what is written");
    }
    archive.into_inner().expect("a vector takes what is written")
}

pub(super) fn gzip(bytes: &[u8]) -> Bytes {
    let mut encoder = GzEncoder::new(Vec::with_capacity(bytes.len()), Compression::fast());
    encoder.write_all(bytes).expect("a vector takes what is written");
    Bytes::from(encoder.finish().expect("a vector takes what is written"))
}
