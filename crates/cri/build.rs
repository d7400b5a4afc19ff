//! Compiles the vendored description of the CRI, without `protoc`.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["runtime/v1/api.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .build_transport(false)
        // The server's half is for the tests' fake runtime.
        .server_mod_attribute(".", "#[cfg(test)]")
        // Holds secrets; ours says so in its own words.
        .skip_debug(["AuthConfig"])
        .compile_fds(files)?;
    Ok(())
}
