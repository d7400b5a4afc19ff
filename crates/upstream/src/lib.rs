//! The OCI distribution protocol, as a client.
//!
//! A [`Client`] asks one upstream for manifests, blobs and tags, and hides what lies between: token
//! services, redirects to storage, several addresses of one registry, retries. It asks with the
//! configured credential, or on behalf of a [`Caller`] with theirs.
//!
//! ```text
//! client ── verbs: what is asked, what a good answer is
//!   └─ exchange ── how much at a time; tries again, at the next address; lets it rest
//!        └─ auth ── answers challenges, remembers tokens
//!             └─ transport ── one request after the other along redirects
//! ```
//!
//! A [`Replica`] is another process of this cache, asked for blobs over the same transport.
//!
//! Invariants:
//! - a credential goes to the configured addresses' own origins and to the token service they name
//!   (a caller's to the addresses alone), and nowhere else; never unencrypted, unless the configured address itself is `http`;
//! - a request is repeated only before the first byte of its body was handed out;
//! - the bytes of a manifest that was asked for by digest have that digest. Blobs are not verified
//!   here: whoever stores or passes them on hashes them anyhow.
//!
//! This crate stores nothing and decides nothing about freshness: that is `registry`'s.

mod auth;
mod body;
mod breaker;
mod caller;
mod challenge;
mod client;
mod client_certificate;
mod credentials;
mod docker_config;
mod error;
mod exchange;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod header;
mod heard;
mod limits;
mod link;
pub mod probe;
mod reach;
mod replica;
mod secret;
mod settings;
mod tls;
mod token;
mod transport;

pub use body::Body;
pub use caller::{Caller, UnreadableCaller};
pub use client::{Blob, Client, ManifestHead, RawManifest, TagPage};
pub use client_certificate::ClientCertificate;
pub use credentials::{Credentials, CredentialsError, CredentialsProblem};
pub use docker_config::ParseDockerConfigError;
pub use error::{Cause, Error, SetupError};
pub use heard::Heard;
pub use reach::Reach;
pub use replica::{Passed, Replica, ReplicaSettings, X_LARDER_PEER};
pub use secret::Secret;
pub use settings::{MAX_URLS, Settings};
pub use url::Url;

/// Is told what goes on between a [`Client`] and its upstream. Called often, from any thread: it
/// must be quick and not block.
pub trait Observer: Send + Sync {
    /// A request was answered with `code`, or not at all. Every request counts: those to token
    /// services, along redirects, and retries. `method` is `GET`, `HEAD` or `POST`.
    fn request(&self, method: &'static str, code: Option<u16>);

    /// `n` bytes of a body were received.
    fn bytes(&self, n: u64);

    /// The upstream says that it will answer `remaining` more pulls (Docker Hub's
    /// `ratelimit-remaining`).
    fn quota(&self, remaining: u64);
}
