//! `/upstreams`: where content comes from, and how each is doing.

use serde::{Deserialize, Serialize};

/// `GET /upstreams`: all upstreams, built-in ones included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstreams {
    /// Hosts by name, then wildcards.
    pub upstreams: Vec<Upstream>,
}

/// `PUT /upstreams/HOST`: what was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// The upstream.
    pub upstream: Upstream,
    /// What was tested before it was made.
    pub steps: Vec<Step>,
}

/// One test of an upstream, as `larder check` makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// What was tested: `configuration`, `dns`, `tcp`, `proxy`, `tls`, `registry`, `token`.
    pub check: String,
    /// The address that was tested.
    pub url: Option<String>,
    /// How it ended.
    pub outcome: StepOutcome,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// What was found, or what is wrong.
    pub what: String,
    /// What to do about it.
    pub advice: Option<String>,
}

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepOutcome {
    /// It works.
    Passed,
    /// It does not.
    Failed,
    /// It does not apply, or an earlier one failed.
    Skipped,
}

/// Who says that there is an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It is known without anybody saying so.
    BuiltIn,
    /// It was made through this API, and can be changed and removed by it.
    Api,
    /// It stands in the configuration.
    Configuration,
}

/// Who may read what is stored of an upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Everyone who reaches the cache.
    Shared,
    /// Whoever the upstream lets read it.
    Caller,
}

/// One upstream. Credentials and proxies are not told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The host, or the pattern of hosts, as image names have it.
    pub host: String,
    /// Who says so.
    pub origin: Origin,
    /// Other names for it in paths.
    pub alias: Vec<String>,
    /// Where it is asked, in this order; empty for a pattern, whose hosts are asked by their names.
    pub urls: Vec<String>,
    /// How long a tag's answer counts, such as `1m`.
    pub freshness: String,
    /// How long a client that could have a stored answer waits for upstream, such as `2s`.
    pub deadline: String,
    /// Who may read what is stored.
    pub access: Access,
    /// Whether it is asked with a credential of ours.
    pub has_credentials: bool,
    /// For people.
    pub description: Option<String>,
    /// Its hosts that have been asked for since the start: one, or some of those that a pattern
    /// stands for.
    pub hosts: Vec<Host>,
}

/// How one registry is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Host {
    /// The host.
    pub host: String,
    /// What it has been like lately.
    pub standing: Standing,
}

/// What an upstream has been like lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// Its last sign was an answer, or nothing has been asked yet.
    Well,
    /// Its last sign was a failure or a missed deadline: stored answers are given without waiting.
    Suspect,
    /// It has asked for fewer requests, and is left alone for a while.
    LeftAlone,
}
