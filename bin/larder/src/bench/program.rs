//! Programs that the bench starts, and ends.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

/// How long a program may take to serve. Ours loads an index, docker-registry starts in 0.1 s.
const START_WITHIN: Duration = Duration::from_secs(30);

/// How long a program may take to end after SIGTERM, before it is killed.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// How often a condition is looked at. Start-up times are measured with this grain.
const LOOK_EVERY: Duration = Duration::from_millis(1);

/// Every program that runs for the bench, so that an interrupt can end them all.
#[derive(Clone, Debug, Default)]
pub(crate) struct Programs {
    started: Arc<Mutex<Started>>,
}

#[derive(Debug, Default)]
struct Started {
    pids: BTreeSet<u32>,
    /// How many there were, so that each has logs of its own.
    count: usize,
    ended: bool,
}

/// A running program. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Program {
    name: &'static str,
    child: Child,
    output: PathBuf,
    errors: PathBuf,
    programs: Programs,
}

impl Programs {
    /// Starts `command`. What it prints goes to `NAME-N.out` and `NAME-N.err` in `logs`.
    ///
    /// # Errors
    ///
    /// The program cannot be run, or the bench was interrupted.
    pub(crate) fn start(
        &self,
        name: &'static str,
        command: &mut Command,
        logs: &Path,
    ) -> anyhow::Result<Program> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.count += 1;
        let log = |kind| logs.join(format!("{name}-{}.{kind}", started.count));
        let (output, errors) = (log("out"), log("err"));
        if started.ended {
            bail!("interrupted");
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(File::create(&output).context("creating a log")?)
            .stderr(File::create(&errors).context("creating a log")?)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        started.pids.insert(child.id());
        Ok(Program { name, child, output, errors, programs: self.clone() })
    }

    /// Kills every running program and starts no more. Whoever waits for one of them fails.
    pub(crate) fn end(&self) {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        started.ended = true;
        for pid in &started.pids {
            signal(*pid, Signal::KILL);
        }
    }

    /// Whether [`Programs::end`] was called.
    pub(crate) fn have_ended(&self) -> bool {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).ended
    }

    /// Forgets `pid`. Must come before the process is reaped: its number may be given to another
    /// one from then on.
    fn forget(&self, pid: u32) {
        self.started.lock().unwrap_or_else(PoisonError::into_inner).pids.remove(&pid);
    }
}

impl Program {
    /// The process's number.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether the process has not ended.
    pub(crate) fn runs(&self) -> bool {
        // A process that ended and was not reaped yet is a zombie, and has no memory left.
        super::proc::anonymous_bytes(self.pid()).is_ok()
    }

    /// Waits until the program prints a line that begins with `prefix`, and returns the rest of it.
    ///
    /// # Errors
    ///
    /// The program ended, or printed no such line in 30 s; its last words are in the error.
    pub(crate) fn line(&self, prefix: &str) -> anyhow::Result<String> {
        self.until(&format!("print {prefix:?}"), || {
            let printed = std::fs::read_to_string(&self.output).ok()?;
            let whole_lines = &printed[..=printed.rfind('\n')?];
            whole_lines.lines().find_map(|line| line.strip_prefix(prefix)).map(str::to_owned)
        })
    }

    /// Waits until something accepts connections on `address`.
    ///
    /// # Errors
    ///
    /// The program ended, or nothing accepted in 30 s; its last words are in the error.
    pub(crate) fn accepts(&self, address: SocketAddr) -> anyhow::Result<()> {
        self.until(&format!("listen on {address}"), || TcpStream::connect(address).ok().map(drop))
    }

    /// Waits until `look` finds what it looks for.
    ///
    /// # Errors
    ///
    /// The program ended, or 30 s passed; `what` and the program's last words are in the error.
    pub(crate) fn until<T>(
        &self,
        what: &str,
        mut look: impl FnMut() -> Option<T>,
    ) -> anyhow::Result<T> {
        let deadline = Instant::now() + START_WITHIN;
        loop {
            // Asked before looking, so that what the program did last is still seen.
            let ended = !self.runs();
            if let Some(found) = look() {
                return Ok(found);
            }
            if ended || Instant::now() > deadline {
                bail!("{} did not {what}: {}", self.name, self.last_words());
            }
            std::thread::sleep(LOOK_EVERY);
        }
    }

    /// The end of what the program printed as errors.
    pub(crate) fn last_words(&self) -> String {
        let text = std::fs::read_to_string(&self.errors).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// Asks the program to end (SIGTERM) and waits for that; kills it after 20 s.
    pub(crate) fn stop(mut self) {
        signal(self.pid(), Signal::TERM);
        let deadline = Instant::now() + STOP_WITHIN;
        while self.runs() && Instant::now() < deadline {
            std::thread::sleep(LOOK_EVERY);
        }
        self.kill();
    }

    fn kill(&mut self) {
        self.programs.forget(self.child.id());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.kill();
    }
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// An address on loopback that nobody listens on at this moment, for programs that cannot choose
/// a free port themselves.
///
/// # Errors
///
/// No port is free.
pub(crate) fn free_address() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    Ok(listener.local_addr()?)
}

/// Where the program `name` is: in `PATH`, or where Debian keeps daemons, which a user's `PATH`
/// leaves out.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(name))
        .find(|file| file.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_found_once_it_is_whole() {
        let logs = tempfile::tempdir().unwrap();
        let mut echo = Command::new("sh");
        echo.args(["-c", "echo other; echo listening on http://127.0.0.1:1; exec sleep 60"]);
        let program = Programs::default().start("echo", &mut echo, logs.path()).unwrap();
        assert_eq!(program.line("listening on ").unwrap(), "http://127.0.0.1:1");
    }

    #[test]
    fn a_program_that_fails_is_reported_with_its_last_words() {
        let logs = tempfile::tempdir().unwrap();
        let mut failing = Command::new("sh");
        failing.args(["-c", "echo no such key >&2; exit 2"]);
        let program = Programs::default().start("failing", &mut failing, logs.path()).unwrap();
        let error = program.line("listening").unwrap_err().to_string();
        assert_eq!(error, "failing did not print \"listening\": no such key");
    }

    #[test]
    fn after_an_interrupt_all_programs_are_dead_and_none_is_started() {
        let logs = tempfile::tempdir().unwrap();
        let programs = Programs::default();
        let start = || programs.start("sleep", Command::new("sleep").arg("60"), logs.path());
        let sleep = start().unwrap();
        programs.end();
        assert!(sleep.until("end", || (!sleep.runs()).then_some(())).is_ok());
        assert!(start().is_err());
    }
}
