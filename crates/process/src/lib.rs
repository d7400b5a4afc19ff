//! How a process of ours starts, is reached, reports and stops.
//!
//! Nothing here knows what the process is for: names, metrics and routes are passed in.
//!
//! - [`logs`]: what is happening, on stderr;
//! - [`shutdown`]: the first signal asks to stop, the second insists;
//! - [`health`]: whether the process can do its work;
//! - [`metrics`]: what is counted, and the process's own figures;
//! - [`admin`]: the address that people and Kubernetes ask for all of these;
//! - [`tls`]: certificates, exchanged while the process runs;
//! - [`files`]: how many of them may be open;
//! - [`listener`]: the loop that accepts connections, bounds them and lets them end.

pub mod admin;
pub mod files;
pub mod health;
pub mod listener;
pub mod logs;
pub mod metrics;
pub mod shutdown;
mod start;
pub mod tls;

pub use health::{Component, Health};
pub use metrics::Metrics;
pub use start::{Announce, Start};
