//! Child processes, which end when the test does.

#![allow(clippy::unwrap_used, reason = "in a harness, what cannot go on is a failed test")]

use std::io::{BufRead as _, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::process::{Pid, Signal, kill_process};
use tokio::sync::watch;

use crate::patiently;

/// How much of a child's output a failing test prints.
const N_LINES_SHOWN: usize = 200;

/// A running child. Dropping it kills it; if the test is failing, what it said is printed first.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    status: Option<ExitStatus>,
    output: Arc<Output>,
}

/// What a child has said so far.
#[derive(Debug, Default)]
struct Output {
    lines: Mutex<Vec<(Stream, String)>>,
    /// How many streams have ended; both have when the child is gone.
    n_ended: watch::Sender<usize>,
    changes: watch::Sender<u64>,
}

/// Where a child said something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// How a child ended that was waited for.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// All it said on standard output.
    pub stdout: String,
    /// All it said on standard error.
    pub stderr: String,
}

impl Ended {
    /// Standard output, if the child succeeded.
    ///
    /// # Errors
    ///
    /// What it said on standard error.
    pub fn ok(self) -> Result<String, String> {
        if self.code == Some(0) { Ok(self.stdout) } else { Err(self.stderr) }
    }

    /// Standard output, if the child succeeded.
    ///
    /// # Panics
    ///
    /// If it didn't, with all it said.
    pub fn expect(self, what: &str) -> String {
        let Self { code, stdout, stderr } = &self;
        assert_eq!(*code, Some(0), "{what}\nstdout:\n{stdout}\nstderr:\n{stderr}");
        self.stdout
    }
}

impl Process {
    /// Starts a child that is called `name` in messages.
    ///
    /// # Panics
    ///
    /// If it cannot be started.
    pub fn start(name: &str, command: &mut Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("starting {name} ({command:?}): {error}"),
        };
        let output = Arc::new(Output::default());
        collect(&output, Stream::Stdout, child.stdout.take().unwrap());
        collect(&output, Stream::Stderr, child.stderr.take().unwrap());
        Self { name: name.to_owned(), child, status: None, output }
    }

    /// Its process id.
    pub fn pid(&self) -> Pid {
        Pid::from_child(&self.child)
    }

    /// The lines it has written so far to `stream`.
    pub fn lines(&self, stream: Stream) -> Vec<String> {
        let lines = self.output.lines.lock().unwrap();
        lines.iter().filter(|(it, _)| *it == stream).map(|(_, line)| line.clone()).collect()
    }

    /// Returns what `find` makes of the lines of `stream`, once it makes something of them.
    ///
    /// # Panics
    ///
    /// If the child ends before, or after [`crate::PATIENCE`].
    pub async fn find<T>(
        &self,
        stream: Stream,
        what: &str,
        find: impl Fn(&[String]) -> Option<T>,
    ) -> T {
        let mut changes = self.output.changes.subscribe();
        let mut n_ended = self.output.n_ended.subscribe();
        let found = async {
            loop {
                // Asked before looking, so that the last lines of a child that ended are seen.
                let is_ended = *n_ended.borrow_and_update() == 2;
                if let Some(found) = find(&self.lines(stream)) {
                    return found;
                }
                assert!(!is_ended, "{} ended before this happened: {what}", self.name);
                tokio::select! {
                    changed = changes.changed() => changed.unwrap(),
                    ended = n_ended.changed() => ended.unwrap(),
                }
            }
        };
        patiently(&format!("{}: {what}", self.name), found).await
    }

    /// Returns what follows `prefix` in the first line of `stream` that begins with it.
    ///
    /// # Panics
    ///
    /// As [`Self::find`].
    pub async fn announcement(&self, stream: Stream, prefix: &str) -> String {
        let announced = |lines: &[String]| {
            lines.iter().find_map(|line| line.strip_prefix(prefix).map(str::to_owned))
        };
        self.find(stream, &format!("it says {prefix:?}"), announced).await
    }

    /// Sends `signal`.
    ///
    /// # Panics
    ///
    /// If the child has been waited for already.
    pub fn signal(&self, signal: Signal) {
        assert!(self.status.is_none(), "{} has ended", self.name);
        // Not waited for yet, so the number cannot have been given to another process.
        kill_process(self.pid(), signal).unwrap();
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    ///
    /// After [`crate::PATIENCE`].
    pub async fn wait(&mut self) -> Ended {
        let what = format!("{} ends", self.name);
        patiently(&what, self.ended()).await
    }

    /// Waits until it has ended, without bound.
    pub async fn ended(&mut self) -> Ended {
        let mut n_ended = self.output.n_ended.subscribe();
        n_ended.wait_for(|n| *n == 2).await.expect("the sender lives as long as the child");
        let status = self.reap();
        let text = |stream| self.lines(stream).iter().map(|line| format!("{line}\n")).collect();
        let (stdout, stderr) = (text(Stream::Stdout), text(Stream::Stderr));
        Ended { code: status.code(), stdout, stderr }
    }

    /// Kills it, as `kill -9` does, and waits until it is gone.
    pub fn kill(&mut self) {
        if self.status.is_none() {
            // It may have ended by itself.
            let _ = self.child.kill();
            self.reap();
        }
    }

    /// Sends `signal` and waits until it is gone, however long that takes.
    pub fn stop(&mut self, signal: Signal) {
        if self.status.is_none() {
            // It may have ended by itself.
            let _ = kill_process(self.pid(), signal);
            self.reap();
        }
    }

    fn reap(&mut self) -> ExitStatus {
        let status = self.status.unwrap_or_else(|| self.child.wait().unwrap());
        self.status = Some(status);
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            let lines = self.output.lines.lock().unwrap();
            let first = lines.len().saturating_sub(N_LINES_SHOWN);
            let shown: Vec<&str> = lines[first..].iter().map(|(_, line)| line.as_str()).collect();
            let status = self.status;
            write_out(&format!("--- {} ({status:?})\n{}\n---\n", self.name, shown.join("\n")));
        }
    }
}

#[expect(clippy::print_stderr, reason = "the test runner shows it with the failure")]
fn write_out(text: &str) {
    eprint!("{text}");
}

/// Reads a stream to its end, on a thread of its own.
fn collect(output: &Arc<Output>, stream: Stream, from: impl Read + Send + 'static) {
    let output = output.clone();
    thread::spawn(move || {
        // Not `lines()`: a peer may write what is not UTF-8.
        let mut from = BufReader::new(from);
        let mut line = Vec::new();
        while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            output.lines.lock().unwrap().push((stream, text));
            output.changes.send_modify(|n| *n += 1);
            line.clear();
        }
        output.n_ended.send_modify(|n| *n += 1);
    });
}

/// Runs a command to its end.
///
/// # Panics
///
/// If it cannot be started, or takes longer than [`crate::PATIENCE`].
pub async fn run(command: &mut Command) -> Ended {
    let name = command.get_program().to_string_lossy().into_owned();
    Process::start(&name, command).wait().await
}

/// Runs a command to its end, which whoever calls this has to bound. Dropping the future kills it.
///
/// # Panics
///
/// If it cannot be started.
pub async fn run_unbounded(command: &mut Command) -> Ended {
    let name = command.get_program().to_string_lossy().into_owned();
    Process::start(&name, command).ended().await
}

/// A command for a peer's program.
///
/// # Panics
///
/// If it is not installed, with the name of its Debian package.
pub fn peer(program: &str, package: &str) -> Command {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    let found = folders.map(|folder| folder.join(program)).find(|path| path.is_file());
    match found {
        Some(path) => Command::new(path),
        None => panic!("{program} is missing: install Debian's {package} (make test-deps)"),
    }
}
