//! The program under test.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal};

use crate::http::{self, Request, Response};
use crate::metrics;
use crate::process::{Ended, Process, Stream};
use crate::scratch::Scratch;

/// A running `larder serve`.
#[derive(Debug)]
pub struct Larder {
    process: Process,
    /// `127.0.0.1:PORT`, where it answers registry clients.
    pub host: String,
    admin: String,
    /// How it was started; kept, as it holds the folder.
    settings: Settings,
}

/// How to start it.
#[derive(Debug)]
pub struct Settings {
    upstreams: Vec<String>,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    config: String,
    data: Option<PathBuf>,
    scratch: Scratch,
}

impl Larder {
    /// Begins settings with an empty data folder and no upstream.
    pub fn settings() -> Settings {
        Settings {
            upstreams: Vec::new(),
            arguments: Vec::new(),
            variables: Vec::new(),
            config: String::new(),
            data: None,
            scratch: Scratch::new(),
        }
    }

    /// Starts it with one upstream: `host`, which is at `url`.
    pub async fn with_upstream(host: &str, url: &str) -> Self {
        Self::settings().upstream(host, url).start().await
    }

    /// `HOST:PORT` of each address on which it answers registry clients, in the order they were
    /// given.
    pub fn hosts(&self) -> Vec<String> {
        let lines = self.process.lines(Stream::Stdout);
        lines
            .iter()
            .filter_map(|line| Some(line.strip_prefix("listening on http://")?.to_owned()))
            .collect()
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        self.process.pid()
    }

    /// The folder with its data.
    pub fn data(&self) -> PathBuf {
        self.settings.data()
    }

    /// `http://127.0.0.1:PORT` followed by `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    /// Begins a GET of `path`, which includes `/v2/`.
    pub fn request(&self, path: &str) -> Request {
        http::get(&self.url(path))
    }

    /// GETs `path`, which includes `/v2/`.
    pub async fn get(&self, path: &str) -> Response {
        self.request(path).send().await
    }

    /// HEADs `path`, which includes `/v2/`.
    pub async fn head(&self, path: &str) -> Response {
        http::head(&self.url(path)).send().await
    }

    /// GETs `path` on the admin address.
    pub async fn admin(&self, path: &str) -> Response {
        self.admin_request("GET", path).send().await
    }

    /// Begins a request for `path` on the admin address.
    pub fn admin_request(&self, method: &str, path: &str) -> Request {
        http::request(method, &format!("http://{}{path}", self.admin))
    }

    /// Runs a command that asks this one by its REST API, and waits until it has ended.
    pub async fn command(&self, arguments: &[&str]) -> Ended {
        let mut command = self.settings.bare_command();
        command.args(arguments).env("LARDER_SERVER", format!("http://{}", self.admin));
        Process::start(&format!("larder {}", arguments.join(" ")), &mut command).wait().await
    }

    /// The sum of the samples called `name` that have all of `labels`, now.
    ///
    /// # Panics
    ///
    /// If the metrics cannot be read.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.admin("/metrics").await.bytes().await.unwrap();
        metrics::sum(std::str::from_utf8(&text).unwrap(), name, labels)
    }

    /// Returns once a line of its log contains all of `parts`.
    ///
    /// # Panics
    ///
    /// If it ends before, or after [`larder_testkit::PATIENCE`].
    pub async fn logged(&self, parts: &[&str]) {
        let has_all = |line: &String| parts.iter().all(|part| line.contains(part));
        let logged = |lines: &[String]| lines.iter().any(has_all).then_some(());
        self.process.find(Stream::Stderr, &format!("it logs {parts:?}"), logged).await;
    }

    /// Kills it as `kill -9` does; what it leaves can be started again.
    pub fn kill(mut self) -> Settings {
        self.process.kill();
        self.settings
    }

    /// Asks it to stop, by SIGTERM, and does not wait.
    pub fn terminate(&self) {
        self.process.signal(Signal::TERM);
    }

    /// Asks it to read its configuration again, by SIGHUP, and does not wait.
    pub fn hang_up(&self) {
        self.process.signal(Signal::HUP);
    }

    /// Waits until it has ended.
    pub async fn wait(mut self) -> (Ended, Settings) {
        (self.process.wait().await, self.settings)
    }
}

impl Settings {
    /// Adds an upstream: `host`, which is at `url`.
    #[must_use]
    pub fn upstream(mut self, host: &str, url: &str) -> Self {
        self.upstreams.push(format!("{host}={url}"));
        self
    }

    /// Adds to the configuration file (TOML).
    #[must_use]
    pub fn config(mut self, text: &str) -> Self {
        self.config.push_str(text);
        self.config.push('\n');
        self
    }

    /// Adds to the beginning of the configuration file, where keys outside of tables are.
    #[must_use]
    pub fn config_first(mut self, text: &str) -> Self {
        self.config = format!("{text}\n{}", self.config);
        self
    }

    /// Adds a flag, or a flag and its value.
    #[must_use]
    pub fn arguments(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|&argument| argument.to_owned()));
        self
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Uses another process's data.
    #[must_use]
    pub fn data_of(mut self, other: &Larder) -> Self {
        self.data = Some(other.data());
        self
    }

    /// The folder with the data.
    pub fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| self.scratch.join("data"))
    }

    /// The folder that the data folder is in, for files of the test.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Starts it and waits until it says that it serves.
    ///
    /// # Panics
    ///
    /// If it ends instead.
    pub async fn start(self) -> Larder {
        let process = self.spawn();
        let listening = process.announcement(Stream::Stdout, "listening on http://").await;
        let admin = process.announcement(Stream::Stdout, "admin on http://").await;
        Larder { process, host: listening, admin, settings: self }
    }

    /// Starts it and does not wait; whoever kills it may do so before it serves.
    pub fn spawn(&self) -> Process {
        Process::start("larder serve", &mut self.command())
    }

    /// Starts it where it is expected to refuse, and waits until it has ended.
    pub async fn run(&self) -> Ended {
        self.spawn().wait().await
    }

    /// Runs a command of the program, with `--data`, on the data of one that does not run, and waits
    /// until it has ended.
    pub async fn offline(&self, arguments: &[&str]) -> Ended {
        let mut command = self.bare_command();
        command.args(arguments).arg("--data").arg(self.data());
        Process::start(&format!("larder {}", arguments.join(" ")), &mut command).wait().await
    }

    fn command(&self) -> Command {
        let mut command = self.bare_command();
        command.args(["serve", "--listen", "127.0.0.1:0", "--admin", "127.0.0.1:0", "--data"]);
        command.arg(self.data());
        for upstream in &self.upstreams {
            command.args(["--upstream", upstream]);
        }
        if !self.config.is_empty() {
            command.arg("--config").arg(self.scratch.write("larder.toml", &self.config));
        }
        command.args(&self.arguments);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    fn bare_command(&self) -> Command {
        bare_command(&self.scratch)
    }
}

/// The program with nothing of whoever runs the tests: no settings, no credentials, no proxies.
pub(crate) fn bare_command(scratch: &Scratch) -> Command {
    let mut command = Command::new(program());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("LARDER_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", scratch.folder("home"));
    for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "DOCKER_CONFIG"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command
}

/// Where the program is: `LARDER_BIN`, or what Cargo built beside these tests.
///
/// # Panics
///
/// If it is not there.
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("LARDER_BIN") {
        return PathBuf::from(path);
    }
    // target/<profile>/deps/<test>
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join("larder");
    assert!(program.exists(), "build it first: make test, or cargo build -p larder");
    program
}
