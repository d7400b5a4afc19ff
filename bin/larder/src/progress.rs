//! How far something is that takes long, on stderr.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use larder_core::size::human_size;

/// How long a person looks at nothing before being told what is going on.
const PATIENCE: Duration = Duration::from_secs(2);

/// How often a line is written where there is no terminal to draw on.
const PERIOD: Duration = Duration::from_secs(30);

/// Bytes of a known or unknown total: a bar on a terminal, and lines elsewhere.
#[derive(Debug)]
pub(crate) struct Progress {
    what: &'static str,
    bar: Option<ProgressBar>,
    /// When to say something next.
    next: Instant,
}

impl Progress {
    /// `what` is done to the bytes, as in `verified`.
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, bar: None, next: Instant::now() + PATIENCE }
    }

    /// So many bytes of `total` are done.
    pub(crate) fn show(&mut self, bytes: u64, total: Option<u64>) {
        if let Some(bar) = &self.bar {
            bar.set_position(bytes);
            return;
        }
        if Instant::now() < self.next {
            return;
        }
        if io::stderr().is_terminal() {
            let bar = bar(total);
            bar.set_message(self.what);
            bar.set_position(bytes);
            self.bar = Some(bar);
            return;
        }
        let total = total.map(|total| format!(" of {}", human_size(total))).unwrap_or_default();
        // There is nobody to tell if stderr is closed.
        let _ = writeln!(io::stderr(), "{}{total} {} so far", human_size(bytes), self.what);
        self.next = Instant::now() + PERIOD;
    }

    /// Does what writes to the terminal without the bar in its way.
    pub(crate) fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: Option<u64>) -> ProgressBar {
    let (bar, template) = match total {
        Some(total) => (
            ProgressBar::new(total),
            "{msg} {wide_bar} {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} to go",
        ),
        None => {
            (ProgressBar::no_length(), "{msg} {spinner} {binary_bytes}, {binary_bytes_per_sec}")
        }
    };
    bar.set_draw_target(ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template(template).expect("the templates are right");
    bar.with_style(style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_bars_can_be_made() {
        for total in [None, Some(1)] {
            bar(total).set_draw_target(ProgressDrawTarget::hidden());
        }
    }
}
