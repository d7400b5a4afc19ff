//! `larder check`

use std::io::{self, Write as _};
use std::pin::pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::ArgMatches;
use larder_registry::probe::{Image, Outcome, Progress, Step, Subject};
use serde_json::{Value, json};
use tokio::runtime;

use crate::cli::Check;
use crate::failure::Failure;

/// The version of what `--json` prints.
const VERSION: u32 = 1;

/// How long a person looks at nothing before being told what is going on.
const PATIENCE: Duration = Duration::from_secs(2);

pub(crate) fn run(command: &Check, matches: &ArgMatches) -> Result<(), Failure> {
    let config = command.sources.read(matches)?;
    let usage = |error: anyhow::Error| Failure::Usage(error);
    let subject = Subject::find(&config, &command.host).map_err(|it| usage(it.into()))?;
    let image = command.image.as_deref().map(|text| subject.image(text)).transpose();
    let image = image.map_err(|error| usage(error.into()))?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("starting to wait for the network")?;

    let host = subject.host().to_string();
    let mut said = Ok(());
    let mut tell = |step: &Step| {
        if !command.json && said.is_ok() {
            said = io::stdout().write_all(lines(step).as_bytes());
        }
    };
    let limit = Duration::from_secs(command.timeout);
    let steps = runtime.block_on(probe(subject, image.as_ref(), limit, &mut tell));
    // A name that is still being looked up would be waited for.
    runtime.shutdown_background();
    if command.json {
        said = writeln!(io::stdout(), "{}", report(&host, &steps));
    }
    said.map_err(Failure::writing)?;
    if is_well(&steps) { Ok(()) } else { Err(Failure::Said(1)) }
}

/// All steps; each is told when it ended. What takes long is said on stderr.
async fn probe(
    subject: Subject,
    image: Option<&Image>,
    limit: Duration,
    tell: &mut (dyn FnMut(&Step) + Send),
) -> Vec<Step> {
    let waiting_for = Mutex::new(String::new());
    let mut watch = |progress: Progress<'_>| match progress {
        Progress::Begun { check, url } => {
            let of = url.map(|url| format!(" of {url}")).unwrap_or_default();
            *waiting_for.lock().unwrap_or_else(PoisonError::into_inner) =
                format!("{}{of}", check.name());
        }
        Progress::Ended(step) => tell(step),
    };
    let begun = Instant::now();
    let mut steps = pin!(subject.probe(image, limit, &mut watch));
    loop {
        tokio::select! {
            steps = &mut steps => return steps,
            () = tokio::time::sleep(PATIENCE) => {
                let what = waiting_for.lock().unwrap_or_else(PoisonError::into_inner).clone();
                // There is nobody to tell if stderr is closed.
                let _ = writeln!(io::stderr(), "{} s: testing {what}", begun.elapsed().as_secs());
            }
        }
    }
}

fn is_well(steps: &[Step]) -> bool {
    steps.iter().all(|step| step.outcome != Outcome::Failed)
}

/// A step for people, behind the address where that begins:
/// `  ok      tcp             3 ms  connected to 127.0.0.1:5000`
fn lines(step: &Step) -> String {
    let mut lines = match (step.check, &step.url) {
        (larder_registry::probe::Check::Dns, Some(url)) => format!("{url}\n"),
        _ => String::new(),
    };
    let outcome = match step.outcome {
        Outcome::Passed => "ok",
        Outcome::Failed => "FAILED",
        Outcome::Skipped => "skipped",
    };
    let Step { ms, what, .. } = step;
    lines.push_str(&format!("  {outcome:<7} {:<13} {ms:>6} ms  {what}\n", step.check.name()));
    if let Some(advice) = &step.advice {
        lines.push_str(&format!("{:>35}{advice}\n", "→ "));
    }
    lines
}

/// `{"version": 1, "ok": true, "host": HOST, "steps": [{"check", "url", "outcome", "ms", "what",
/// "advice", "found"}, …]}`
fn report(host: &str, steps: &[Step]) -> Value {
    json!({"version": VERSION, "ok": is_well(steps), "host": host, "steps": steps})
}
