//! `larder check-config`, and commands that cannot be meant.

use std::fs;
use std::process::{Command, Output};

use tempfile::TempDir;

/// One mistake of each kind that people make most.
const WRONG: &str = r#"listen = ["127.0.0.1:5000", "localhost:5002"]
data = "/var/lib/larder"
budgett = "100GB"
default_upstream = "dokcer.io"

[upstreams."docker.io"]
urls = ["https://mirror.example.org/v2/"]
alias = "docker.io"
credentials = { username = "me", password = "hunter2", token = "hunter3" }

[upstreams."ghcr.io"]
freshness = "60"
access = "callers"
quota = "10 gigs"

[upstreams."registry.local:5000"]
urls = "http://registry.local:5000"
credentials = { username = "me", password = "hunter2" }
tls_cert = "x"
"#;

const SAID: &str = r#"larder.toml:1: listen[1]: `localhost:5002` is not an IP address with a port; write it as in 127.0.0.1:5002
larder.toml:3: budgett: there is no such key; write budget
larder.toml:4: default_upstream: `dokcer.io` is no upstream and no alias of one; write one that is, or add [upstreams."dokcer.io"]
larder.toml:7: upstreams."docker.io".urls[0]: `https://mirror.example.org/v2/` has more than a host and port; write https://mirror.example.org
larder.toml:8: upstreams."docker.io".alias: `docker.io` reads as a host; write a word without dot and colon, such as hub
larder.toml:9: upstreams."docker.io".credentials.token: there is no such key; known here are username, password, password_file, docker_config
larder.toml:12: upstreams."ghcr.io".freshness: `60` is not a duration; write it with its unit, as in 60s
larder.toml:13: upstreams."ghcr.io".access: `callers` is no kind of access; write "shared" or "caller"
larder.toml:14: upstreams."ghcr.io".quota: `10 gigs` is not an amount of bytes; write bytes as in 100GB
larder.toml:18: upstreams."registry.local:5000".credentials: would be sent to http://registry.local:5000/ for anyone to read; write an https URL, or insecure_skip_verify = true if that is acceptable
larder.toml:19: upstreams."registry.local:5000".tls_cert: there is no such key; known here are urls, alias, credentials, access, access_memory, access_grace, freshness, tags, addresses, read_timeout, max_requests, max_rate, deadline, serve_deleted, proxy, ca, client_cert, client_key, insecure_skip_verify, quota, ttl, repositories, parallel, allow, deny, description
--listen: `5000` is not an IP address with a port; write it as in 127.0.0.1:5000
LARDER_BUDGET: `much` is not an amount of bytes; write bytes as in 100GB, or 1% to 100% of the disk
"#;

#[test]
fn every_mistake_is_said_with_its_place_and_what_to_do() {
    let directory = directory_with(WRONG);
    let output = larder(&directory)
        .args(["check-config", "--config", "larder.toml", "--listen", "5000"])
        .env("LARDER_BUDGET", "much")
        .output()
        .unwrap();
    assert_eq!(text(&output.stderr), SAID);
    assert_eq!(text(&output.stdout), "");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn serve_refuses_what_check_config_refuses() {
    let directory = directory_with("ttl = \"1\"");
    let output = run(&directory, &["serve", "--config", "larder.toml"]);
    let said = text(&output.stderr);
    assert!(said.starts_with("larder.toml:1: ttl: `1` is not a duration"), "{said}");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_configuration_without_mistakes_is_ok() {
    let directory = directory_with("[upstreams.\"registry.local:5000\"]\nalias = \"local\"\n");
    let output = run(&directory, &["check-config", "--config", "larder.toml"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("ok: 14 upstreams\n", Some(0)));
    let output = run(&directory, &["check-config"]);
    assert_eq!((text(&output.stdout), output.status.code()), ("ok: 13 upstreams\n", Some(0)));
}

#[test]
fn json_has_a_version_and_the_same_exit_codes() {
    let directory = directory_with("ttl = \"1\"");
    let output = run(&directory, &["check-config", "--config", "larder.toml", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["version"], &said["ok"]), (&1.into(), &false.into()));
    assert_eq!(
        (&said["mistakes"][0]["line"], &said["mistakes"][0]["key"]),
        (&1.into(), &"ttl".into())
    );
    assert_eq!((text(&output.stderr), output.status.code()), ("", Some(2)));
    let output = run(&directory, &["check-config", "--json"]);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&said["ok"], said["upstreams"].as_array().unwrap().len()), (&true.into(), 13));
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = directory_with("");
    let output = run(&directory, &["check-config", "--config", "absent.toml"]);
    let said = text(&output.stderr);
    assert_eq!(
        said,
        "error: reading the configuration absent.toml: No such file or directory (os error 2)\n"
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn what_cannot_be_meant_is_exit_code_2() {
    let directory = directory_with("");
    for arguments in [
        &[][..],
        &["sevre"],
        &["serve", "--listne", "x"],
        &["serve", "--log-level", "inof"],
        &["serve", "--log-format", "xml"],
        &["serve", "argument"],
        &["completion", "dos"],
    ] {
        let output = run(&directory, arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(!output.stderr.is_empty() && output.stdout.is_empty(), "{arguments:?}");
    }
    let output = run(&directory, &["serve", "--log-level", "inof"]);
    assert!(text(&output.stderr).contains("`inof` is not a log level; write error, warn"));
}

#[test]
fn help_says_what_each_flag_is_for_and_its_default() {
    let directory = directory_with("");
    let output = run(&directory, &["serve", "--help"]);
    let help = text(&output.stdout);
    for words in ["--listen <ADDRESS[=HOST]>", "[default: 127.0.0.1:5000]", "[env: LARDER_TLS_KEY]"]
    {
        assert!(help.contains(words), "{words} in {help}");
    }
    assert!(help.lines().all(|line| line.chars().count() <= 100), "{help}");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn completion_is_for_the_shell_that_was_named() {
    let directory = directory_with("");
    let output = run(&directory, &["completion", "bash"]);
    assert!(text(&output.stdout).contains("_larder()") && output.status.success());
}

/// A directory with the configuration `larder.toml`.
fn directory_with(configuration: &str) -> TempDir {
    let directory = TempDir::new().expect("a temporary directory can be made");
    fs::write(directory.path().join("larder.toml"), configuration)
        .expect("the directory can be written to");
    directory
}

fn run(directory: &TempDir, arguments: &[&str]) -> Output {
    larder(directory).args(arguments).output().expect("the program can be started")
}

/// The program, with nothing around it that could change what it does.
fn larder(directory: &TempDir) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.current_dir(directory.path()).env_clear();
    command
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("the program writes UTF-8")
}
