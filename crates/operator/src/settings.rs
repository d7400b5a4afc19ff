//! What the controller is told.

use std::time::Duration;

use crate::render::check::ConfigCheck;

/// How long agents have to stop asking a cache that is to go: they hear of it at once, and write a
/// file or two.
pub const WITHDRAWAL: Duration = Duration::from_secs(10);

/// What the controller is told.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The namespace whose caches it looks after.
    pub namespace: String,
    /// The image that replicas run: its own.
    pub image: String,
    /// Secrets of that namespace by which the image is pulled.
    pub pull_secrets: Vec<String>,
    /// Whether nodes are freed of `larder.dev/not-ready` once their agent is ready.
    pub frees_nodes: bool,
    /// What it calls itself among controllers.
    pub identity: String,
    /// How long agents have to stop asking a cache that is to go.
    pub withdrawal: Duration,
    /// How long a new authority is told about before it signs, if not as long as usual.
    pub settling: Option<Duration>,
    /// What `larder serve` says to a configuration.
    pub check: ConfigCheck,
}
