//! `larder du`

use std::fmt::Write as _;
use std::io::{self, Write as _};

use larder_api_types::Answer;
use larder_api_types::gc::Usage;
use larder_core::size::human_size;

use crate::cli::Du;
use crate::failure::Failure;
use crate::server::block_on;

pub(crate) fn run(command: &Du) -> Result<(), Failure> {
    let server = command.server.open()?;
    let usage: Usage = block_on(async { Ok(server.get("/usage", &()).await?) })?;
    let text = match command.json {
        true => {
            let text = serde_json::to_string(&Answer::new(usage));
            format!("{}\n", text.expect("our types have text for keys"))
        }
        false => told(&usage),
    };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::writing)
}

fn told(usage: &Usage) -> String {
    let mut text = String::from("      SIZE  UPSTREAM\n");
    for upstream in &usage.upstreams {
        let of = upstream.quota.map(|quota| format!("  (quota {})", human_size(quota)));
        let (size, of) = (human_size(upstream.bytes), of.unwrap_or_default());
        let _ = writeln!(text, "{size:>10}  {}{of}", upstream.host);
    }
    text += "\n      SIZE      SHARED  REPOSITORY\n";
    for it in &usage.repositories {
        let (size, shared) = (human_size(it.bytes), human_size(it.shared_bytes));
        let _ = writeln!(text, "{size:>10}  {shared:>10}  {}", it.repository);
    }
    let budget = usage.budget.map(|budget| format!(" of {}", human_size(budget)));
    let _ = writeln!(text, "\n{}{} in all", human_size(usage.bytes), budget.unwrap_or_default());
    text
}

#[cfg(test)]
mod tests {
    use larder_api_types::gc::{OfRepository, OfUpstream};

    use super::*;

    #[test]
    fn upstreams_and_repositories_are_told_with_their_bounds() {
        let usage = Usage {
            bytes: 2048,
            budget: Some(4096),
            upstreams: vec![OfUpstream { host: "a.io".into(), bytes: 2048, quota: Some(3072) }],
            repositories: vec![OfRepository {
                repository: "a.io/b".into(),
                bytes: 2048,
                shared_bytes: 1024,
            }],
        };
        let text = told(&usage);
        assert!(text.contains("  2.00 KiB  a.io  (quota 3.00 KiB)\n"), "{text}");
        assert!(text.contains("  2.00 KiB    1.00 KiB  a.io/b\n"), "{text}");
        assert!(text.ends_with("\n2.00 KiB of 4.00 KiB in all\n"), "{text}");
    }
}
