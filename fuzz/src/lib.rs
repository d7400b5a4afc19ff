//! x
pub fn names(_: &[u8]) {}
pub fn digests(_: &[u8]) {}
pub fn routes(_: &[u8]) {}
pub fn addresses(_: &[u8]) {}
pub fn ranges(_: &[u8]) {}
pub fn accept(_: &[u8]) {}
pub fn challenges(_: &[u8]) {}
pub fn links(_: &[u8]) {}
pub fn docker_config(_: &[u8]) {}
pub fn tokens(_: &[u8]) {}
pub fn manifests(_: &[u8]) {}
pub fn referrers(_: &[u8]) {}
pub fn configuration(_: &[u8]) {}
pub fn sizes(_: &[u8]) {}
pub fn store(_: &[u8]) {}
