//! The upstreams that are known without configuration.

use super::{Origin, Upstream};

/// Public registries that anonymous people read from.
const HOSTS: [&str; 13] = [
    "docker.io",
    "ghcr.io",
    "quay.io",
    "registry.k8s.io",
    "gcr.io",
    "*.gcr.io",
    "*.pkg.dev",
    "public.ecr.aws",
    "mcr.microsoft.com",
    "registry.gitlab.com",
    "nvcr.io",
    "registry.access.redhat.com",
    "lscr.io",
];

/// The known upstreams, each with the defaults.
pub(super) fn upstreams() -> impl Iterator<Item = Upstream> {
    let host = |host: &&str| host.parse().expect("the table has hosts");
    HOSTS.iter().map(host).map(|host| Upstream { origin: Origin::BuiltIn, ..Upstream::new(host) })
}
