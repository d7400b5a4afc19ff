//! One node's way to the cache: a registry endpoint on loopback, and what makes the runtimes ask it.
//!
//! ```text
//! larder agent (supervisor) ── owns the socket and the mirror entries
//!    │  ▲ a line every 100 ms
//!    ▼  │
//! worker ── endpoint ── asked ── forward ── pour ──▶ replicas ── replica ──▶ the cache
//!                                             └────▶ direct ──────────────▶ the upstream
//! ```
//!
//! - [`settings`], [`source`], [`kubernetes`], `known`: where the cache is, said by whom, and kept on
//!   the host;
//! - `place`, `replica`, `replicas`: who of them is there, and whom a request is for;
//! - `endpoint`, `asked`, `forward`, `pour`, `direct`, `answer`: one request;
//! - [`worker`], `beat`, [`supervisor`]: two processes, so that one that hangs is replaced;
//! - [`self_test`]: whether all of the way works;
//! - [`mirrors`]: other programs' files, edited and put back.
//!
//! Invariants:
//! - before the first byte of a body, whatever goes wrong is a 503 within a third of a second of
//!   having become known, and the runtime goes on to the upstream with its own secret;
//! - a slow upstream is waited for as long as the cache is there;
//! - a client's credential is never sent where others can read it;
//! - what was in other programs' files can always be put back, byte for byte.

mod answer;
mod asked;
mod beat;
mod counts;
mod direct;
mod endpoint;
mod file;
mod forward;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod known;
pub mod kubernetes;
mod metrics;
pub mod mirrors;
mod notify;
mod place;
mod pour;
mod replica;
mod replicas;
pub mod self_test;
pub mod settings;
pub mod source;
pub mod supervisor;
pub mod worker;

pub use beat::Inherited;
pub use place::Place;
pub use settings::{Mistake, Overrides, Settings};
