//! What is happening, on stderr: one line per event, as text or JSON.

use std::fmt;
use std::io::{self, IsTerminal as _};
use std::str::FromStr;

use tracing::Subscriber;
use tracing::dispatcher::SetGlobalDefaultError;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How an event is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people; in colour on a terminal.
    #[default]
    Text,
    /// One JSON object per line: `timestamp` (UTC, RFC 3339), `level`, `target`, `message` and the
    /// event's own fields; `spans` lists what it happened in.
    Json,
}

/// Which events are written: a level (`info`), or levels by part of the program
/// (`info,larder_store=debug`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(String);

/// Why a text is no [`Filter`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a log level; write error, warn, info, debug or trace, or levels for parts such as info,hyper=debug"
)]
pub struct ParseFilterError(String);

/// Why logging did not begin.
#[derive(Debug, thiserror::Error)]
#[error("beginning to log")]
pub struct InitError(#[from] SetGlobalDefaultError);

const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];

impl Default for Filter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Filter {
    type Err = ParseFilterError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseFilterError(text.to_owned());
        let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
        // A bare word that is no level would be read as the name of a part, and silence the rest.
        let is_clear = |directive: &str| match directive.rsplit_once('=') {
            Some((_, level)) => is_level(level),
            None => is_level(directive),
        };
        if !text.split(',').all(is_clear) || EnvFilter::builder().parse(text).is_err() {
            return Err(wrong());
        }
        Ok(Self(text.to_owned()))
    }
}

/// Begins to log, for the whole process.
///
/// # Errors
///
/// Something in this process logs already.
pub fn init(format: Format, filter: &Filter) -> Result<(), InitError> {
    let colours = io::stderr().is_terminal();
    tracing::dispatcher::set_global_default(dispatch(format, filter, colours, io::stderr))?;
    Ok(())
}

fn dispatch<W>(format: Format, filter: &Filter, colours: bool, writer: W) -> tracing::Dispatch
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(&filter.0))
        .with_ansi(colours)
        .with_writer(writer);
    match format {
        Format::Text => boxed(builder.finish()),
        Format::Json => boxed(builder.json().flatten_event(true).with_current_span(false).finish()),
    }
}

fn boxed(subscriber: impl Subscriber + Send + Sync) -> tracing::Dispatch {
    tracing::Dispatch::new(subscriber)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[test]
    fn a_word_that_is_no_level_is_refused() {
        for text in ["info", "WARN", "off", "info,hyper=debug", "larder_store=trace"] {
            assert!(text.parse::<Filter>().is_ok(), "{text}");
        }
        for text in ["", "inof", "info,hyper", "hyper=loud", "info,,warn", "[x"] {
            assert!(text.parse::<Filter>().is_err(), "{text}");
        }
    }

    #[test]
    fn json_lines_have_the_message_and_fields_at_the_top() {
        let line = logged(Format::Json, || tracing::info!(size_bytes = 3, "fetched it"));
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(event["message"], "fetched it");
        assert_eq!(event["size_bytes"], 3);
        assert_eq!(event["level"], "INFO");
    }

    #[test]
    fn text_lines_read_alone() {
        let line = logged(Format::Text, || tracing::warn!("disk full"));
        assert!(line.contains("WARN") && line.contains("disk full"), "{line}");
        assert!(!line.contains('\u{1b}'), "{line}");
    }

    #[test]
    fn what_the_filter_leaves_out_is_not_written() {
        assert_eq!(logged(Format::Text, || tracing::debug!("detail")), "");
    }

    /// What `act` logs at level info.
    fn logged(format: Format, act: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let dispatch = dispatch(format, &Filter::default(), false, move || writer.clone());
        tracing::dispatcher::with_default(&dispatch, act);
        String::from_utf8(written.0.lock().clone()).unwrap()
    }

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
}
