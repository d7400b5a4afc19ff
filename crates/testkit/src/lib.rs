//! For tests only: an upstream registry that misbehaves when told to, images made in memory, and
//! real services as child processes.
//!
//! ```text
//! test ── Image ──▶ Upstream (127.0.0.1, its own tasks) ◀── HTTP/1.1 ── what is tested
//!   └── Fault, Gate ──▶ ┘  └── requests(), sent() ──▶ assertions
//! ```
//!
//! - [`image`]: images, indexes and artifacts, from a seed;
//! - [`upstream`]: the registry, what it counts, and the ways in which it can fail;
//! - [`gate`]: a point where the upstream waits until a test lets it go on;
//! - [`blackhole`]: addresses that never answer;
//! - [`process`]: child processes; [`postgres`], [`rgw`]: a database and an S3 server as such.
//!
//! Nothing here waits for a time to pass, but for a body that is meant to be slow: a test opens a
//! [`gate::Gate`], or waits for a number of requests. Waits end after [`PATIENCE`] by a panic that says what did not happen. Mistakes of a
//! test panic too: they are found when the test is written.

pub mod blackhole;
pub mod gate;
pub mod image;
pub mod postgres;
pub mod process;
pub mod random;
pub mod rgw;
pub mod upstream;

pub use gate::Gate;
pub use image::{Content, Image};
pub use postgres::Postgres;
pub use rgw::Rgw;
pub use upstream::{Accounts, Fault, Login, On, Upstream};

/// How long a wait may take before it is taken for a failure. Long, because machines that run tests
/// are busy; nothing waits this long when all is well.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(60);

/// What `future` gives.
///
/// # Panics
///
/// After [`PATIENCE`], with `what`.
pub async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {PATIENCE:?}"),
    }
}
