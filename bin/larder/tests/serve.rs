//! `larder serve` as a process: what it says, what it answers, how it ends.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use tempfile::TempDir;

#[test]
fn it_says_where_it_serves_and_then_serves() {
    let data = TempDir::new().unwrap();
    let mut serving = Serving::begin(&["--listen", "127.0.0.1:0,127.0.0.1:0=ghcr.io"], data.path());
    assert_eq!(serving.listening.len(), 2);
    for address in serving.listening.clone() {
        assert!(get(&address, "/v2/").starts_with("HTTP/1.1 200"));
    }
    let answer = get(&serving.admin, "/readyz");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("\"ready\":true"), "{answer}");
    assert!(get(&serving.admin, "/healthz").starts_with("HTTP/1.1 200"));
    let answer = get(&serving.admin, "/metrics");
    assert!(answer.contains("\nlarder_build_info{version="), "{answer}");
    assert!(answer.contains("\nprocess_resident_memory_bytes "), "{answer}");
    serving.signal("TERM");
    assert_eq!(serving.child.wait().unwrap().code(), Some(0));
    assert!(TcpStream::connect(&serving.listening[0]).is_err());
}

#[test]
fn a_second_process_cannot_have_the_same_store() {
    let data = TempDir::new().unwrap();
    let _first = Serving::begin(&[], data.path());
    let output = larder(&[], data.path()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.lines().any(|line| line.starts_with("error: ")), "{said}");
    assert_eq!((output.status.code(), output.stdout.is_empty()), (Some(1), true), "{said}");
}

#[test]
fn an_address_that_is_taken_is_said_before_the_store_is_opened() {
    let data = TempDir::new().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let store = data.path().join("store");
    let output = larder(&["--admin", &address], &store).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    let wanted = format!("error: listening on {address}: Address already in use (os error 98)\n");
    assert!(said.ends_with(&wanted), "{said}");
    assert_eq!(output.status.code(), Some(1));
    assert!(!store.exists());
}

#[test]
fn a_second_signal_ends_at_once() {
    let data = TempDir::new().unwrap();
    // An upstream that takes the connection and never answers keeps a request from ending.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let upstream = format!("127.0.0.1:9=http://{}", silent.local_addr().unwrap());
    let mut serving = Serving::begin(&["--upstream", &upstream], data.path());
    let mut client = TcpStream::connect(&serving.listening[0]).unwrap();
    client.write_all(b"GET /v2/127.0.0.1:9/a/manifests/1 HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
    let _asked = silent.accept().unwrap();
    serving.signal("INT");
    // The port closes when stopping has begun.
    while TcpStream::connect(&serving.listening[0]).is_ok() {
        std::thread::yield_now();
    }
    assert!(get(&serving.admin, "/readyz").starts_with("HTTP/1.1 503"));
    serving.signal("INT");
    assert_eq!(serving.child.wait().unwrap().code(), Some(1));
}

#[test]
fn json_logs_are_one_object_per_line() {
    let data = TempDir::new().unwrap();
    let mut command = larder(&["--log-format", "json"], data.path());
    let mut child = command.stderr(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut String::new()).unwrap();
    signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    let lines = String::from_utf8(output.stderr).unwrap();
    assert!(!lines.is_empty());
    for line in lines.lines() {
        let event: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(event["message"].is_string() && event["level"].is_string(), "{line}");
    }
    assert_eq!(output.status.code(), Some(0));
}

/// A process that serves, ended with the test.
struct Serving {
    child: Child,
    /// Kept open: the process may say more.
    _stdout: BufReader<ChildStdout>,
    listening: Vec<String>,
    admin: String,
}

impl Serving {
    fn begin(arguments: &[&str], data: &Path) -> Self {
        let mut command = larder(arguments, data);
        let stderr = fs::File::create(data.join("stderr")).expect("the directory is there");
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(stderr)
            .spawn()
            .expect("the program can be started");
        let mut stdout = BufReader::new(child.stdout.take().expect("it is a pipe"));
        let mut listening = Vec::new();
        let admin = loop {
            let mut line = String::new();
            let n_bytes = stdout.read_line(&mut line).expect("the program writes UTF-8");
            assert!(n_bytes > 0, "{:?}", fs::read_to_string(data.join("stderr")));
            let line = line.trim_end();
            if let Some(address) = line.strip_prefix("admin on http://") {
                break address.to_owned();
            }
            let address = line.strip_prefix("listening on http://");
            listening.push(address.unwrap_or_else(|| panic!("{line}")).to_owned());
        };
        Self { child, _stdout: stdout, listening, admin }
    }

    fn signal(&self, name: &str) {
        signal(&self.child, name);
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signal(child: &Child, name: &str) {
    let mut kill = Command::new("kill");
    let status = kill.args(["-s", name, &child.id().to_string()]).status();
    assert!(status.expect("there is a kill").success());
}

/// `larder serve` on free ports, with nothing around it that could change what it does.
fn larder(arguments: &[&str], data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_larder"));
    command.env_clear().arg("serve").arg("--data").arg(data).args(arguments);
    for (flag, value) in [("--listen", "127.0.0.1:0"), ("--admin", "127.0.0.1:0")] {
        if !arguments.contains(&flag) {
            command.args([flag, value]);
        }
    }
    command
}

fn get(address: &str, path: &str) -> String {
    let mut socket = TcpStream::connect(address).expect("the process listens");
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    socket.write_all(request.as_bytes()).expect("the process reads");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("the process answers");
    answer
}
