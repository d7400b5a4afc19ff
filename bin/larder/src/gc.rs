//! `larder gc`

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::time::Duration;

use larder_api_types::Answer;
use larder_api_types::gc::{Collect, Collected, Gone, Reason};
use larder_core::size::human_size;

use crate::cli::Gc;
use crate::failure::Failure;
use crate::server::block_on;

pub(crate) fn run(command: &Gc) -> Result<(), Failure> {
    let server = command.server.open()?;
    let asked = Collect { dry_run: command.dry_run };
    let collected: Collected = block_on(async { Ok(server.post("/gc", &asked).await?) })?;
    let text = match command.json {
        true => {
            let text = serde_json::to_string(&Answer::new(collected));
            format!("{}\n", text.expect("our types have text for keys"))
        }
        false => told(&collected),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::writing)
}

fn told(collected: &Collected) -> String {
    let mut text = String::new();
    for gone in &collected.gone {
        let Gone { digest, bytes, repository, reason } = gone;
        let from = repository.as_deref().unwrap_or("no repository");
        let _ = writeln!(text, "{digest}  {:>10}  {from}: {}", human_size(*bytes), why(reason));
    }
    let left_out = collected.n_blobs - collected.gone.len() as u64;
    if collected.dry_run && left_out > 0 {
        let _ = writeln!(text, "and {left_out} more");
    }
    let verb = if collected.dry_run { "would remove" } else { "removed" };
    let size = human_size(collected.bytes);
    let _ = writeln!(text, "{verb} {} blobs of {size}", collected.n_blobs);
    text
}

fn why(reason: &Reason) -> String {
    match reason {
        Reason::Unused { ttl_seconds } => {
            let ttl = humantime::format_duration(Duration::from_secs(*ttl_seconds));
            format!("unused for more than {ttl}")
        }
        Reason::Superseded => "no tag names it any more, and nobody uses it".to_owned(),
        Reason::Quota => "its upstream has more than its quota".to_owned(),
        Reason::Budget => "first in the order, and the budget is full".to_owned(),
        Reason::Part { of } => format!("only {of} needs it, which goes"),
        Reason::Beginning => "a beginning that nobody has gone on with".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use larder_core::Digest;

    use super::*;

    #[test]
    fn each_that_would_go_has_a_line_with_the_reason() {
        let gone = Gone {
            digest: Digest::sha256_of(b""),
            bytes: 4096,
            repository: Some("a.io/b".to_owned()),
            reason: Reason::Unused { ttl_seconds: 86_400 },
        };
        let collected = Collected { dry_run: true, n_blobs: 3, bytes: 12_288, gone: vec![gone] };
        let text = told(&collected);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines[0].ends_with("4.00 KiB  a.io/b: unused for more than 1day"), "{text}");
        assert_eq!(lines[1..], ["and 2 more", "would remove 3 blobs of 12.0 KiB"]);
    }
}
