//! Makes caches of `RegistryCache` resources, and keeps them as they are to be.
//!
//! ```text
//! watches ─▶ reconcile ── facts ─▶ render ─▶ apply ─▶ the API server
//!              │                                └─ conflict: what belongs to others stays theirs
//!              ├── certificates, volumes, replica, status: decisions
//!              └── removal: a cache that is deleted
//! lease ── one of several controllers acts
//! nodes ── new nodes wait for their agent
//! webhook ── the API server asks before it takes a cache
//! ```
//!
//! - [`Settings`]: what it is told;
//! - [`run()`]: until it is to stop.
//!
//! Invariants:
//! - what is rendered depends on the resource and on facts alone, so a turn that finds all of it in
//!   place changes nothing;
//! - fields and objects of others are left alone, and named in the status;
//! - replicas are started again only for what cannot be changed while they run;
//! - nothing is removed before nodes have been told to ask elsewhere;
//! - no secret is in a ConfigMap, an annotation, an event, a condition, or the log.

mod apply;
mod cert_manager;
mod certificates;
mod conflict;
mod context;
mod credentials;
mod facts;
mod lease;
mod metrics;
mod names;
mod nodes;
mod reconcile;
mod removal;
mod render;
mod replica;
mod run;
mod secrets;
mod settings;
mod status;
mod storage;
mod usage;
mod volumes;
mod webhook;

pub use kube::Client;
pub use removal::remove_all;
pub use render::check::{ConfigCheck, Mistake};
pub use run::run;
pub use settings::{Settings, WITHDRAWAL};
pub use webhook::Webhook;
