//! Larder's custom resources, and the objects of others that become them.
//!
//! - [`cache`]: [`RegistryCache`], one cache for many upstreams;
//! - [`gardener`]: what Gardener's registry-cache and registry-mirror extensions are configured with;
//! - [`manifest`]: YAML, as it is in files;
//! - [`quantity`]: amounts, as Kubernetes writes them;
//! - [`connect`]: the way to an API server.
//!
//! What a resource may not be is said in its schema, so that the API server refuses it.

pub mod cache;
mod client;
pub mod gardener;
pub mod manifest;
pub mod quantity;

pub use cache::{RegistryCache, RegistryCacheSpec, RegistryCacheStatus};
pub use client::{ConnectError, connect};

/// The group of all of them.
pub const GROUP: &str = "larder.dev";
