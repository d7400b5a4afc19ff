//! What a process asks of the kernel, in which order.

use std::collections::HashMap;
use std::process::Command;

use rustix::process::Pid;

use crate::process::{Process, Stream, peer};

/// The calls that tell of files changing and bytes being sent.
const CALLS: &str = "openat,write,pwrite64,writev,pwritev,pwritev2,sendto,sendmsg,sendfile,splice,\
    copy_file_range,rename,renameat,renameat2,linkat,fsync,fdatasync,sync_file_range,syncfs";

/// strace, attached to a process.
#[derive(Debug)]
pub struct Strace(Process);

/// One call that has returned.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Its name.
    pub name: String,
    /// Its arguments: paths, and file descriptors with the paths or addresses they stand for.
    pub arguments: String,
    /// What it returned.
    pub result: i64,
    /// When it was begun, and when it returned, as positions in the order of all these moments.
    pub order: (usize, usize),
    /// When it returned, in seconds since 1970.
    pub time: f64,
}

impl Call {
    /// Whether this returned before `later` was begun.
    pub fn is_before(&self, later: &Self) -> bool {
        self.order.1 < later.order.0
    }

    /// Whether this writes to a file, or sends, successfully.
    pub fn is_write(&self) -> bool {
        self.result > 0
            && ["write", "pwrite", "send", "splice", "copy_file_range"]
                .iter()
                .any(|name| self.name.starts_with(name))
    }

    /// Whether this makes what was written to a file or directory survive a loss of power.
    pub fn is_sync(&self) -> bool {
        self.result == 0 && matches!(self.name.as_str(), "fsync" | "fdatasync")
    }

    /// Whether this names a file, successfully.
    pub fn is_rename(&self) -> bool {
        self.result == 0 && (self.name.starts_with("rename") || self.name == "linkat")
    }
}

impl Strace {
    /// Attaches to a process and all its threads, and returns when it has.
    ///
    /// # Panics
    ///
    /// If strace is not installed or may not attach.
    pub async fn attach(pid: Pid) -> Self {
        let mut command: Command = peer("strace", "strace");
        let pid = pid.as_raw_nonzero().to_string();
        command.args(["-f", "-yy", "-ttt", "-s", "0", "-e", &format!("trace={CALLS}")]);
        // Calls go to standard output; among its own messages, some would be torn apart.
        command.args(["-o", "|cat", "-p", &pid]);
        let process = Process::start("strace", &mut command);
        let is_attached =
            |lines: &[String]| lines.iter().any(|line| line.contains(" attached")).then_some(());
        process.find(Stream::Stderr, "it attaches", is_attached).await;
        Self(process)
    }

    /// Returns what `find` makes of the calls so far, once it makes something of them.
    ///
    /// # Panics
    ///
    /// If the process ends before, or after [`larder_testkit::PATIENCE`].
    pub async fn find<T>(&self, what: &str, find: impl Fn(&[Call]) -> Option<T>) -> T {
        self.0.find(Stream::Stdout, what, |lines| find(&parse(lines))).await
    }
}

/// Reads strace's lines: `7 1795243463.9 write(3</a>, ""..., 8) = 8` of thread 7, and the two halves
/// of calls that others come between.
fn parse(lines: &[String]) -> Vec<Call> {
    let mut unfinished: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for (position, line) in lines.iter().enumerate() {
        let Some((thread, time, text)) = split_line(line) else {
            continue;
        };
        if let Some(beginning) = text.strip_suffix(" <unfinished ...>") {
            unfinished.insert(thread, (position, beginning));
            continue;
        }
        let (begun, whole) = match text.strip_prefix("<... ") {
            Some(rest) => {
                let Some((begun, beginning)) = unfinished.remove(thread) else {
                    continue;
                };
                let end = rest.split_once(" resumed>").map_or("", |(_, end)| end);
                (begun, format!("{beginning}{end}"))
            }
            None => (position, text.to_owned()),
        };
        calls.extend(parse_call(&whole, (begun, position), time));
    }
    calls
}

/// The thread, the time and the rest.
fn split_line(line: &str) -> Option<(&str, f64, &str)> {
    let (thread, rest) = line.split_once(' ')?;
    let (time, text) = rest.trim_start().split_once(' ')?;
    Some((thread, time.parse().ok()?, text))
}

fn parse_call(text: &str, order: (usize, usize), time: f64) -> Option<Call> {
    let (name, rest) = text.split_once('(')?;
    let (arguments, result) = rest.rsplit_once(" = ")?;
    let result = result.split(' ').next()?.parse().ok()?;
    let arguments = arguments.trim_end().trim_end_matches(')').to_owned();
    Some(Call { name: name.to_owned(), arguments, result, order, time })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_others_come_between_are_put_together() {
        let lines = [
            "7 1.0 fdatasync(3</data/a> <unfinished ...>",
            "8 2.0 write(4<TCP:[127.0.0.1:1->127.0.0.1:2]>, \"\"..., 8) = 8",
            "7 3.5 <... fdatasync resumed>) = 0",
            "8 4.0 openat(AT_FDCWD, \"/x\", O_RDONLY) = -1 ENOENT (No such file)",
            "7 5.0 +++ killed by SIGKILL +++",
        ];
        let calls = parse(&lines.map(str::to_owned));
        let summary: Vec<_> =
            calls.iter().map(|call| (call.name.as_str(), call.result, call.order)).collect();
        assert_eq!(
            summary,
            [("write", 8, (1, 1)), ("fdatasync", 0, (0, 2)), ("openat", -1, (3, 3))]
        );
        assert_eq!((calls[1].arguments.as_str(), calls[1].time), ("3</data/a>", 3.5));
        assert!(!calls[1].is_before(&calls[0]) && calls[1].is_before(&calls[2]));
    }
}
