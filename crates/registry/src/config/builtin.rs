//! The upstreams that are known without configuration.

use super::Upstream;

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
    HOSTS.iter().map(|host| Upstream::new(host.parse().expect("the table has hosts")))
}
