//! `larder verify`

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use larder_api_types::Answer;
use larder_api_types::verify::{Bad, Fault, Query, Repair, Start, State, Verification};
use larder_core::size::human_size;
use tokio::runtime;

use crate::cli::Verify;
use crate::failure::Failure;
use crate::progress::Progress;
use crate::server::{Server, block_on};

/// How often a server is asked how far it is: as often as a person looks.
const PERIOD: Duration = Duration::from_millis(500);

pub(crate) fn run(command: &Verify) -> Result<(), Failure> {
    let mut said =
        Said { told: Ok(()), is_silent: command.json, progress: Progress::new("verified") };
    let verified = match &command.data {
        Some(data) => offline(data, &mut said)?,
        None => {
            let server = command.server.open()?;
            block_on(async { Ok(online(&server, command.repair, &mut said).await?) })?
        }
    };
    let Said { told, progress, .. } = said;
    drop(progress);
    told.map_err(Failure::writing)?;
    let text = match command.json {
        true => {
            serde_json::to_string(&Answer::new(&verified)).expect("our types have text for keys")
        }
        false => summary(&verified),
    };
    writeln!(io::stdout(), "{text}").map_err(Failure::writing)?;
    match verified.state {
        State::Failed => Err(anyhow!(verified.failure.unwrap_or_default()).into()),
        State::Cancelled => Err(anyhow!("it was ended before everything had been read").into()),
        _ if verified.n_bad + verified.n_unread > 0 => Err(Failure::Said(1)),
        _ => Ok(()),
    }
}

/// What has been said while it goes on.
struct Said {
    told: io::Result<()>,
    is_silent: bool,
    progress: Progress,
}

impl Said {
    fn bad(&mut self, bad: &[Bad]) {
        if self.is_silent || self.told.is_err() {
            return;
        }
        let lines: String = bad.iter().map(|bad| format!("{}\n", line(bad))).collect();
        let write = || io::stdout().write_all(lines.as_bytes());
        self.told = self.progress.aside(write);
    }
}

fn offline(data: &Path, said: &mut Said) -> Result<Verification, Failure> {
    let runtime = runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("starting threads")?;
    let mut n_said = 0;
    let told = |it: &Verification| {
        said.bad(&it.bad[n_said..]);
        n_said = it.bad.len();
        said.progress.show(it.bytes, Some(it.total_bytes));
    };
    let verified = runtime.block_on(larder_registry::verify_offline(data.to_owned(), told));
    Ok(verified.map_err(anyhow::Error::new)?)
}

async fn online(server: &Server, repair: bool, said: &mut Said) -> anyhow::Result<Verification> {
    let begun: Verification = server.post("/verify", &Start { repair }).await?;
    let mut all = Vec::new();
    loop {
        let now: Verification = server.get("/verify", &Query { after: all.len() }).await?;
        if now.id != begun.id {
            return Err(anyhow!("another verification has begun meanwhile"));
        }
        // One that is being repaired is told when that has ended.
        let is_over = now.state != State::Running;
        let is_told = |bad: &&Bad| is_over || bad.repair != Repair::Pending;
        let told: Vec<Bad> = now.bad.iter().take_while(is_told).cloned().collect();
        said.bad(&told);
        all.extend(told);
        said.progress.show(now.bytes, Some(now.total_bytes));
        if is_over {
            return Ok(Verification { bad: all, ..now });
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// `corrupt sha256:5891… fetched again`
fn line(bad: &Bad) -> String {
    let fault = match bad.fault {
        Fault::Corrupt => "corrupt",
        Fault::Missing => "missing",
    };
    let repair = match (bad.repair, &bad.reason) {
        (Repair::Done, _) => " fetched again".to_owned(),
        (Repair::Failed, Some(reason)) => format!(" could not be fetched again: {reason}"),
        (Repair::Failed | Repair::Pending, _) => " was not fetched again".to_owned(),
        (Repair::Later, _) => String::new(),
    };
    format!("{fault} {}{repair}", bad.digest)
}

fn summary(it: &Verification) -> String {
    let mut text =
        format!("verified {} blobs of {}: {} bad", it.blobs, human_size(it.bytes), it.n_bad);
    if it.repair && it.n_bad > 0 {
        text.push_str(&format!(", {} fetched again", it.n_repaired));
    }
    if it.n_unread > 0 {
        text.push_str(&format!(", {} could not be read", it.n_unread));
    }
    if it.n_bad > it.bad.len() as u64 {
        text.push_str(&format!("; only the first {} are listed", it.bad.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use larder_core::Digest;

    use super::*;

    #[test]
    fn a_bad_blob_is_a_line_with_what_was_done_about_it() {
        let digest = Digest::sha256_of(b"");
        let bad = |fault, repair, reason: Option<&str>| {
            let reason = reason.map(str::to_owned);
            line(&Bad { digest: digest.clone(), fault, repair, reason })
        };
        assert_eq!(bad(Fault::Corrupt, Repair::Later, None), format!("corrupt {digest}"));
        let said = bad(Fault::Missing, Repair::Done, None);
        assert_eq!(said, format!("missing {digest} fetched again"));
        let said = bad(Fault::Corrupt, Repair::Failed, Some("a.io/b: not found"));
        assert_eq!(said, format!("corrupt {digest} could not be fetched again: a.io/b: not found"));
    }

    #[test]
    fn the_summary_tells_everything_that_was_not_well() {
        let mut it = Verification {
            id: 1,
            state: State::Done,
            repair: false,
            started_at: UNIX_EPOCH,
            ended_at: None,
            blobs: 3,
            total_blobs: 3,
            bytes: 2048,
            total_bytes: 2048,
            n_bad: 0,
            n_repaired: 0,
            n_unread: 0,
            bad: Vec::new(),
            failure: None,
        };
        assert_eq!(summary(&it), "verified 3 blobs of 2.00 KiB: 0 bad");
        it.repair = true;
        it.n_bad = 2;
        it.n_repaired = 1;
        it.n_unread = 1;
        let expected = "verified 3 blobs of 2.00 KiB: 2 bad, 1 fetched again, 1 could not be read; \
                        only the first 0 are listed";
        assert_eq!(summary(&it), expected);
    }
}
