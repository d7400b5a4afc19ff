//! `larder check-config`

use std::io::{self, Write as _};

use clap::ArgMatches;
use larder_registry::config::{Config, Mistake, Place};
use serde_json::{Value, json};

use crate::cli::CheckConfig;
use crate::failure::Failure;

/// The version of what `--json` prints.
const VERSION: u32 = 1;

pub(crate) fn run(command: &CheckConfig, matches: &ArgMatches) -> Result<(), Failure> {
    let read = command.settings.read(matches);
    match read {
        Ok(config) if command.json => print(&right(&config).to_string()),
        Ok(config) => print(&format!("ok: {} upstreams", config.upstreams.len())),
        Err(Failure::Configuration(mistakes)) if command.json => {
            print(&wrong(&mistakes).to_string())?;
            Err(Failure::Said(2))
        }
        Err(failure) => Err(failure),
    }
}

fn print(line: &str) -> Result<(), Failure> {
    writeln!(io::stdout(), "{line}").map_err(Failure::writing)
}

/// `{"version": 1, "ok": true, "upstreams": [HOST, …], "mistakes": []}`
fn right(config: &Config) -> Value {
    let hosts = config.upstreams.iter().map(|upstream| upstream.host.as_str());
    let hosts: Vec<&str> = hosts.collect();
    json!({"version": VERSION, "ok": true, "upstreams": hosts, "mistakes": []})
}

/// `{"version": 1, "ok": false, "mistakes": [{"file", "line" or "origin", "key", "what",
/// "advice"}, …]}`
fn wrong(mistakes: &[Mistake]) -> Value {
    let mistake = |mistake: &Mistake| {
        let mut value = json!({
            "key": mistake.key,
            "what": mistake.what,
            "advice": mistake.advice,
        });
        match &mistake.place {
            Place::File { name, line } => {
                value["file"] = json!(name);
                value["line"] = json!(line);
            }
            Place::Given(origin) => value["origin"] = json!(origin),
        }
        value
    };
    let mistakes: Vec<Value> = mistakes.iter().map(mistake).collect();
    json!({"version": VERSION, "ok": false, "mistakes": mistakes})
}
