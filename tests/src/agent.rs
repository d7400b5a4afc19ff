//! The program as the agent of a node.

use std::path::PathBuf;
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::http::{self, Response};
use crate::larder;
use crate::metrics;
use crate::process::{Ended, Process, Stream};
use crate::scratch::Scratch;

/// A running `larder agent`, with folders of its own instead of the machine's.
#[derive(Debug)]
pub struct Agent {
    process: Process,
    /// `127.0.0.1:PORT`, where runtimes ask.
    pub host: String,
    admin: String,
    settings: Settings,
}

/// How to start it.
#[derive(Debug)]
pub struct Settings {
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
    scratch: Scratch,
}

impl Agent {
    /// Begins settings.
    pub fn settings() -> Settings {
        Settings { arguments: Vec::new(), variables: Vec::new(), scratch: Scratch::new() }
    }

    /// `http://127.0.0.1:PORT` followed by `path`.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    /// GETs `path`, which includes `/v2/`.
    pub async fn get(&self, path: &str) -> Response {
        http::get(&self.url(path)).send().await
    }

    /// GETs `path` on the admin address.
    pub async fn admin(&self, path: &str) -> Response {
        http::get(&format!("http://{}{path}", self.admin)).send().await
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

    /// Returns once `n` replicas of the cache are there for it.
    ///
    /// # Panics
    ///
    /// After [`larder_testkit::PATIENCE`].
    pub async fn knows(&self, n: usize) {
        self.counts("larder_agent_replicas_up", &[], |it| it as usize == n).await;
    }

    /// Returns once it has counted what is wanted: what its worker counts, it shows a little later.
    ///
    /// # Panics
    ///
    /// After [`larder_testkit::PATIENCE`].
    pub async fn counts(&self, name: &str, labels: &[(&str, &str)], is: impl Fn(f64) -> bool) {
        let counted = async {
            while !is(self.metric(name, labels).await) {
                tokio::task::yield_now().await;
            }
        };
        larder_testkit::patiently(&format!("{name} is as wanted"), counted).await;
    }

    /// Runs `larder agent WORD` beside it, with its settings and these arguments, to its end.
    pub async fn run(&self, word: &str, arguments: &[&str]) -> Ended {
        let mut command = self.settings.command(&[word], &self.host);
        command.args(arguments);
        Process::start(&format!("larder agent {word}"), &mut command).wait().await
    }

    /// The process that was started.
    pub fn supervisor(&self) -> Pid {
        self.process.pid()
    }

    /// The process that answers; `None` while there is none.
    pub fn worker(&self) -> Option<Pid> {
        let pid = self.process.pid().as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
        Pid::from_raw(children.split_whitespace().next()?.parse().ok()?)
    }

    /// Sends `signal` to both processes.
    ///
    /// # Panics
    ///
    /// If there are not two.
    pub fn signal_both(&self, signal: Signal) {
        let worker = self.worker().expect("there is a worker");
        kill_process(self.supervisor(), signal).unwrap();
        kill_process(worker, signal).unwrap();
    }

    /// Kills it as `kill -9` does; what it leaves can be started again.
    pub fn kill(mut self) -> Settings {
        self.process.kill();
        self.settings
    }

    /// Asks it to stop, by SIGTERM, and waits until it has ended.
    pub async fn stop(mut self) -> (Ended, Settings) {
        self.process.signal(Signal::TERM);
        (self.process.wait().await, self.settings)
    }

    /// How it was started.
    pub fn its_settings(&self) -> &Settings {
        &self.settings
    }
}

impl Settings {
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

    /// Adds a cache.
    #[must_use]
    pub fn cache(self, url: &str) -> Self {
        self.arguments(&["--cache", url])
    }

    /// Writes the configuration file (TOML). A running agent reads it again.
    pub fn write_config(&self, text: &str) -> PathBuf {
        let path = self.scratch.join("agent.toml");
        let new = self.scratch.write("agent.toml.new", text);
        std::fs::rename(new, &path).unwrap();
        path
    }

    /// Uses a configuration file with this text.
    #[must_use]
    pub fn config(self, text: &str) -> Self {
        let path = self.write_config(text);
        self.arguments(&["--config", path.to_str().unwrap()])
    }

    /// Has it write containerd's mirrors below this folder.
    #[must_use]
    pub fn certs_dir(self, path: &std::path::Path) -> Self {
        self.arguments(&["--certs-dir", path.to_str().unwrap()])
    }

    /// Begins anew with the state that there is.
    #[must_use]
    pub fn without_arguments(self) -> Self {
        Self { arguments: Vec::new(), ..self }
    }

    /// The folder with its state.
    pub fn state(&self) -> PathBuf {
        self.scratch.join("state")
    }

    /// The folder for files of the test.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Starts it and waits until it says that it serves.
    ///
    /// # Panics
    ///
    /// If it ends instead.
    pub async fn start(self) -> Agent {
        let process = Process::start("larder agent", &mut self.command(&[], "127.0.0.1:0"));
        let host = process.announcement(Stream::Stdout, "listening on http://").await;
        let admin = process.announcement(Stream::Stdout, "admin on http://").await;
        Agent { process, host, admin, settings: self }
    }

    /// Runs `larder agent` with these words before its settings, to its end.
    pub async fn run(&self, words: &[&str]) -> Ended {
        let name = format!("larder agent {}", words.join(" "));
        Process::start(&name, &mut self.command(words, "127.0.0.1:0")).wait().await
    }

    fn command(&self, words: &[&str], listen: &str) -> Command {
        let mut command = larder::bare_command(&self.scratch);
        command.arg("agent").args(words);
        command.args(["--listen", listen, "--admin", "127.0.0.1:0"]);
        command.arg("--state").arg(self.state());
        // Unless the test says where, nothing of the machine is touched.
        if !self.arguments.iter().any(|it| it == "--certs-dir") {
            command.arg("--certs-dir").arg(self.scratch.join("certs.d"));
        }
        command.args(&self.arguments);
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }
}
