//! Speaks the container runtime interface (CRI) with the runtime of a node, over its unix socket.
//!
//! ```text
//! Client::connect("/run/containerd/containerd.sock") ──▶ version, pull_image, list_images,
//!                                                        image_status, remove_image
//! ```
//!
//! Only what deals with images is here: pods and containers are the kubelet's. The code generated
//! from the protocol's description (`proto/`) stays inside; callers see [`Client`], [`Image`],
//! [`Auth`], [`Version`] and [`Error`].
//!
//! Every call has a deadline. A connection that was lost is made again by the next call.

mod auth;
mod client;
mod error;
mod image;

pub use auth::Auth;
pub use client::{Client, Version};
pub use error::Error;
pub use image::Image;

/// Generated from `proto/runtime/v1/api.proto`.
#[allow(
    missing_docs,
    unreachable_pub,
    dead_code,
    unused_qualifications,
    clippy::all,
    clippy::missing_errors_doc,
    clippy::unwrap_used,
    rustdoc::all,
    reason = "generated"
)]
mod v1 {
    tonic::include_proto!("runtime.v1");
}
