//! Images that need no registry.

use std::fs;
use std::path::Path;
use std::process::Command;

use larder_testkit::Image;

use crate::larder;
use crate::process::{peer, run};
use crate::scratch::Scratch;

/// What the first container of every pod is made of.
pub(super) const PAUSE: &str = "larder.test/pause:1";

/// An image of Debian's busybox, which waits. `busybox sh`, `wget`, `httpd` and the like are in it
/// as `/bin/busybox`.
///
/// # Panics
///
/// If it is not installed.
pub fn busybox() -> Image {
    busybox_of("nobody")
}

/// The same, and no layer of it is in an image of another `owner`.
///
/// # Panics
///
/// If it is not installed.
pub fn busybox_of(owner: &str) -> Image {
    let command = peer("busybox", "busybox-static");
    let program = fs::read(command.get_program()).unwrap();
    let users = b"root:x:0:0::/:/bin/sh\n";
    Image::of_files(
        &[
            ("bin/busybox", &program, 0o755),
            ("etc/passwd", users, 0o644),
            ("etc/owner", owner.as_bytes(), 0o644),
        ],
        &["/bin/busybox", "sleep", "2147483647"],
        "0:0",
    )
}

/// An image of the program under test, as `deploy/Dockerfile` makes it of one that is static, here with
/// the libraries that it needs.
///
/// # Panics
///
/// If the program is not built.
pub async fn larder() -> Image {
    let scratch = Scratch::new();
    let stripped = scratch.join("larder");
    // What a debugger needs is most of it.
    let mut strip = peer("strip", "binutils");
    run(strip.arg("-o").arg(&stripped).arg(larder::program())).await.expect("strip");
    let libraries = run(Command::new("ldd").arg(&stripped)).await.expect("ldd");
    let mut files = vec![("larder".to_owned(), fs::read(stripped).unwrap())];
    for path in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let content = fs::read(Path::new(path)).unwrap();
        files.push((path.trim_start_matches('/').to_owned(), content));
    }
    let authorities = "etc/ssl/certs/ca-certificates.crt";
    files.push((authorities.to_owned(), fs::read(Path::new("/").join(authorities)).unwrap()));
    let files: Vec<(&str, &[u8], u32)> =
        files.iter().map(|(path, content)| (path.as_str(), content.as_slice(), 0o755)).collect();
    Image::of_files(&files, &["/larder"], "65532:65532")
}
