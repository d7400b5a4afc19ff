//! The harness of the whole-program tests: the program and its real peers as child processes.
//!
//! ```text
//! test ── http ──▶ Larder ──▶ testkit::Upstream     faults that no real registry shows
//!   │                ▲    └─▶ DockerRegistry        Debian's docker-registry
//!   └── Containerd, Podman, Skopeo ─┘               real clients, with storage of their own
//! ```
//!
//! - [`larder`], [`agent`], [`controller`]: the program under test, known by its command line and its addresses only;
//! - [`docker_registry`], [`containerd`], [`docker`], [`podman`], [`skopeo`], [`copier`]: its peers;
//!   [`client`]: any of those that pull; [`suite`], [`root`]: those of newer Debians;
//! - [`kubernetes`]: a cluster, in namespaces of its own;
//! - [`systemd`]: one that the program is a unit of;
//! - [`scene`], [`replicas`]: the usual scenes;
//! - [`mod@line`]: a connection between two of them that can be broken;
//! - [`http`]: a client that sees what real ones hide, such as how a body ended;
//! - [`process`], [`scratch`], [`memory`]: children, folders and their ends.
//!
//! A peer that is not installed fails the test with the name of its Debian package. No test waits
//! for time to pass, uses a fixed port or shares a folder, so all of them may run at once. The
//! peers need root.

#![allow(clippy::unwrap_used, reason = "in a harness, what cannot go on is a failed test")]

pub mod agent;
pub mod client;
pub mod containerd;
pub mod controller;
pub mod copier;
pub mod docker;
pub mod docker_registry;
pub mod http;
pub mod kubernetes;
pub mod larder;
pub mod line;
pub mod memory;
pub mod metrics;
pub mod podman;
pub mod replicas;
pub mod repository;
pub mod root;
pub mod scene;
pub mod scratch;
pub mod skopeo;
pub mod strace;
pub mod suite;
pub mod systemd;

pub use agent::Agent;
pub use client::Client;
pub use containerd::{Containerd, Generation};
pub use controller::Controller;
pub use copier::Copier;
pub use docker::Docker;
pub use docker_registry::DockerRegistry;
pub use kubernetes::Cluster;
pub use larder::Larder;
pub use larder_testkit::process;
pub use podman::Podman;
pub use replicas::Replicas;
pub use scene::Scene;
pub use skopeo::Skopeo;
