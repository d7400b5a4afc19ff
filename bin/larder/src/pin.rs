//! `larder pin`, `larder unpin`, and what is pinned

use std::io::{self, Write as _};

use larder_api_types::Answer;
use larder_api_types::pins::{Change, Pins};

use crate::cli::{Ls, Pin};
use crate::failure::Failure;
use crate::server::block_on;

pub(crate) fn pin(command: &Pin) -> Result<(), Failure> {
    let server = command.server.open()?;
    block_on(async {
        for pattern in &command.patterns {
            let _: Change = server.post("/pins", &Change { pattern: pattern.clone() }).await?;
        }
        Ok(())
    })
}

pub(crate) fn unpin(command: &Pin) -> Result<(), Failure> {
    let server = command.server.open()?;
    block_on(async {
        for pattern in &command.patterns {
            let _: Change = server.delete("/pins", &Change { pattern: pattern.clone() }).await?;
        }
        Ok(())
    })
}

/// `larder ls --pinned`
pub(crate) fn list(command: &Ls) -> Result<(), Failure> {
    let server = command.server.open()?;
    let pins: Pins = block_on(async { Ok(server.get("/pins", &()).await?) })?;
    let text = match command.json {
        true => {
            let text = serde_json::to_string(&Answer::new(pins));
            format!("{}\n", text.expect("our types have text for keys"))
        }
        false => {
            let line = |pin: &larder_api_types::pins::Pin| match pin.is_configured {
                true => format!("{}  (configuration)\n", pin.pattern),
                false => format!("{}\n", pin.pattern),
            };
            pins.pins.iter().map(line).collect()
        }
    };
    io::stdout().write_all(text.as_bytes()).map_err(Failure::writing)
}
