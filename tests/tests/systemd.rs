//! The agent as a unit of a real systemd, installed as its documentation says.

#![allow(clippy::unwrap_used, reason = "these are tests")]

use std::fs;
use std::process::Command;

use larder_testkit::patiently;
use larder_testkit::process::{Process, Stream};
use larder_tests::larder;
use larder_tests::repository;
use larder_tests::suite::are_all_wanted;
use larder_tests::systemd::Systemd;

const UNIT: &str = "larder-agent";

/// Where runtimes are pointed to the agent.
const ENTRY: &str = "/etc/containerd/certs.d/_default/hosts.toml";

/// What somebody else has written there.
const THEIRS: &str = "[host.\"http://127.0.0.1:1\"]\n  capabilities = [\"pull\"]\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_unit_is_active_when_runtimes_are_served_and_a_hung_agent_is_replaced() {
    if !are_all_wanted("it needs a root folder with systemd") {
        return;
    }
    let systemd = Systemd::boot().await;
    let _cache = start_cache(&systemd).await;
    let unit = repository::path("deploy/systemd/larder-agent.service");
    systemd.install(&unit, "/etc/systemd/system/larder-agent.service");
    let config = "[[caches]]\nurl = \"http://127.0.0.1:5000\"\n";
    fs::write(systemd.path("/etc/larder/agent.toml"), config).unwrap();
    let entry = systemd.path(ENTRY);
    fs::create_dir_all(entry.parent().unwrap()).unwrap();
    fs::write(&entry, THEIRS).unwrap();
    let text = || fs::read_to_string(&entry).unwrap_or_default();
    let is_ours = || text().contains("127.0.0.1:5050");

    // It returns when the unit is active, and whatever is ordered after it begins then.
    let enabled = systemd.systemctl(&["enable", "--now", UNIT]).await;
    let log = systemd.log(UNIT).await;
    enabled.expect(&log);
    assert!(is_ours(), "runtimes are pointed here\n{log}");
    assert_eq!(systemd.property(UNIT, "ActiveState").await, "active");
    assert_eq!(systemd.property(UNIT, "UnitFileState").await, "enabled");

    // A supervisor that hangs is found out by nobody else.
    let first = systemd.property(UNIT, "MainPID").await;
    let stop = ["kill", "--kill-whom=main", "--signal=STOP", UNIT];
    systemd.systemctl(&stop).await.expect("it is stopped");
    let replaced = async {
        while systemd.property(UNIT, "NRestarts").await == "0"
            || systemd.property(UNIT, "ActiveState").await != "active"
        {}
    };
    patiently("it is replaced", replaced).await;
    assert_ne!(systemd.property(UNIT, "MainPID").await, first);
    assert!(is_ours(), "runtimes are pointed to the new one");
    let log = systemd.log(UNIT).await;
    assert!(log.contains("Watchdog timeout"), "{log}");

    systemd.systemctl(&["disable", "--now", UNIT]).await.expect("it ends");
    assert_eq!(systemd.property(UNIT, "ActiveState").await, "inactive");
    assert_eq!(systemd.property(UNIT, "Result").await, "success");
    assert_eq!(text(), THEIRS);
}

/// A cache that the agent finds on loopback.
async fn start_cache(systemd: &Systemd) -> Process {
    let mut command = Command::new(larder::program());
    command.args(["serve", "--listen", "127.0.0.1:5000", "--admin", "127.0.0.1:5001"]);
    command.args(["--data", "/run/cache"]);
    let cache = systemd.machine().start("cache", &command);
    cache.announcement(Stream::Stdout, "listening on http://").await;
    cache
}
