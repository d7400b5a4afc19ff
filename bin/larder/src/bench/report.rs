//! What was measured, as Markdown that reads well as plain text, and as JSON.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};

use super::machine::Machine;
use super::stats::Summary;

/// The version of the JSON form.
const VERSION: u32 = 1;

/// Everything that one run measured.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    version: u32,
    /// Whether rounds and sizes were cut down.
    pub(crate) quick: bool,
    /// What it was measured on.
    pub(crate) machine: Machine,
    /// In the order they were measured.
    pub(crate) sections: Vec<Section>,
}

/// One question and its answer.
#[derive(Debug, Serialize)]
pub(crate) struct Section {
    /// As given to `--only`.
    pub(crate) name: String,
    /// What was done.
    pub(crate) what: String,
    /// How long that took.
    pub(crate) seconds: f64,
    /// Cores that other programs kept busy meanwhile. On a machine with few cores, even a half
    /// changes what is measured.
    pub(crate) other_cores: f64,
    #[serde(flatten)]
    findings: Findings,
    /// Why it could not be measured, or not whole.
    pub(crate) error: Option<String>,
}

/// What a section finds.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Findings {
    rows: Vec<Row>,
    targets: Vec<Check>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Row {
    what: String,
    unit: Unit,
    #[serde(flatten)]
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Check {
    what: String,
    unit: Unit,
    measured: f64,
    target: Target,
    met: bool,
}

/// What a number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    /// 10⁶ bytes per second.
    MegabytesPerSecond,
    /// Seconds.
    Seconds,
    /// Thousandths of a second.
    Milliseconds,
    /// Seconds of CPU time of the server, for each 2³⁰ bytes served.
    CpuSecondsPerGib,
    /// 2²⁰ bytes.
    Mebibytes,
    /// Requests per second.
    PerSecond,
    /// One measure as a multiple of another.
    Times,
    /// Things.
    Count,
}

/// What is wanted of a number.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    /// It or less.
    AtMost(f64),
    /// It or more.
    AtLeast(f64),
    /// Nothing else.
    Exactly(f64),
}

impl Report {
    /// A report without sections.
    pub(crate) fn new(quick: bool, machine: Machine) -> Self {
        Self { version: VERSION, quick, machine, sections: Vec::new() }
    }

    /// Whether every section could be measured.
    pub(crate) fn is_whole(&self) -> bool {
        self.sections.iter().all(|section| section.error.is_none())
    }

    /// The report as JSON.
    pub(crate) fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).expect("a report has only plain values");
        text.push('\n');
        text
    }

    /// The report as Markdown.
    pub(crate) fn to_markdown(&self) -> String {
        let mut text = String::from("# larder bench\n\n");
        let kind = if self.quick { "quick run: few rounds, small sizes" } else { "full run" };
        push_line(&mut text, &format!("{}, {kind}.", self.machine));
        push_line(&mut text, "");
        push_line(&mut text, METHOD);
        for section in &self.sections {
            section.push_to(&mut text);
        }
        let targets = || self.sections.iter().flat_map(|section| &section.findings.targets);
        let met = targets().filter(|target| target.met).count();
        push_line(&mut text, &format!("\n{met} of {} targets met.", targets().count()));
        text
    }
}

/// From so many cores on, other programs are worth a word.
const NOISE: f64 = 0.1;

const METHOD: &str = "\
Servers, clients and forwarders share this machine, over loopback. Contenders take turns within \
each round;\neach figure is the median of the rounds, beside the smallest and the largest. One \
client serves all: a raw\nsocket, HTTP/1.1, one buffer. CPU is the server's own (`utime + stime`), \
memory its anonymous pages (`RssAnon`).";

impl Section {
    /// A section that found `findings`, or why it could not; what was found before a failure is
    /// lost with it.
    pub(crate) fn new(name: String, what: String, findings: anyhow::Result<Findings>) -> Self {
        let error = findings.as_ref().err().map(|error| format!("{error:#}"));
        let findings = findings.unwrap_or_default();
        Self { name, what, seconds: 0.0, other_cores: 0.0, findings, error }
    }

    /// The section as Markdown.
    pub(crate) fn to_markdown(&self) -> String {
        let mut text = String::new();
        self.push_to(&mut text);
        text
    }

    fn push_to(&self, text: &mut String) {
        push_line(text, &format!("\n## {}\n\n{}", self.name, self.what));
        let findings = &self.findings;
        if !findings.rows.is_empty() {
            push_table(text, ["", "unit", "median", "min", "max", "rounds"], &findings.rows);
        }
        if !findings.targets.is_empty() {
            push_table(text, ["target", "unit", "measured", "wanted", ""], &findings.targets);
        }
        for note in &findings.notes {
            push_line(text, &format!("\n{note}"));
        }
        if self.other_cores >= NOISE {
            let cores = number(self.other_cores);
            push_line(text, &format!("\nOther programs kept {cores} cores busy meanwhile."));
        }
        if let Some(error) = &self.error {
            push_line(text, &format!("\n**Not measured:** {error}"));
        }
    }
}

impl Findings {
    /// Adds what was measured in each round, and returns the median. NaN if there were no rounds.
    pub(crate) fn row(&mut self, what: impl Into<String>, unit: Unit, samples: &[f64]) -> f64 {
        let nothing = Summary { rounds: 0, ..Summary::once(f64::NAN) };
        let summary = Summary::of(samples).unwrap_or(nothing);
        self.rows.push(Row { what: what.into(), unit, summary });
        summary.median
    }

    /// Compares a number with what is wanted of it.
    pub(crate) fn target(
        &mut self,
        what: impl Into<String>,
        unit: Unit,
        measured: f64,
        target: Target,
    ) {
        let met = target.is_met_by(measured);
        self.targets.push(Check { what: what.into(), unit, measured, target, met });
    }

    /// Adds a sentence on how it was measured, or what the figures don't say.
    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }
}

impl Target {
    fn is_met_by(self, measured: f64) -> bool {
        match self {
            Self::AtMost(most) => measured <= most,
            Self::AtLeast(least) => measured >= least,
            Self::Exactly(wanted) => measured == wanted,
        }
    }

    fn show(self) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", number(most)),
            Self::AtLeast(least) => format!("≥ {}", number(least)),
            Self::Exactly(wanted) => format!("= {}", number(wanted)),
        }
    }
}

impl Unit {
    fn symbol(self) -> &'static str {
        match self {
            Self::MegabytesPerSecond => "MB/s",
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::CpuSecondsPerGib => "CPU s/GiB",
            Self::Mebibytes => "MiB",
            Self::PerSecond => "1/s",
            Self::Times => "×",
            Self::Count => "",
        }
    }
}

impl Serialize for Unit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.symbol())
    }
}

/// Something that is a line of a table with `N` columns, text in the first two.
trait Line<const N: usize> {
    fn cells(&self) -> [String; N];
}

impl Line<6> for Row {
    fn cells(&self) -> [String; 6] {
        let Summary { median, min, max, rounds } = self.summary;
        let unit = self.unit.symbol().to_owned();
        [self.what.clone(), unit, number(median), number(min), number(max), rounds.to_string()]
    }
}

impl Line<5> for Check {
    fn cells(&self) -> [String; 5] {
        let met = if self.met { "met" } else { "**not met**" };
        let unit = self.unit.symbol().to_owned();
        [self.what.clone(), unit, number(self.measured), self.target.show(), met.to_owned()]
    }
}

fn push_table<const N: usize>(text: &mut String, head: [&str; N], lines: &[impl Line<N>]) {
    let lines: Vec<[String; N]> = lines.iter().map(Line::cells).collect();
    let width = |column: usize| {
        let cells = lines.iter().map(|line| line[column].chars().count());
        cells.chain([head[column].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    text.push('\n');
    push_cells(text, &widths, &head.map(str::to_owned));
    let rule = |column: usize| match column {
        0 | 1 => "-".repeat(widths[column]),
        _ => format!("{}:", "-".repeat(widths[column] - 1)),
    };
    push_cells(text, &widths, &std::array::from_fn::<String, N, _>(rule));
    for line in &lines {
        push_cells(text, &widths, line);
    }
}

fn push_cells<const N: usize>(text: &mut String, widths: &[usize; N], cells: &[String; N]) {
    for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        let written = match column {
            0 | 1 => write!(text, "| {cell:<width$} "),
            _ => write!(text, "| {cell:>width$} "),
        };
        written.expect("a string takes everything");
    }
    text.push_str("|\n");
}

fn push_line(text: &mut String, line: &str) {
    text.push_str(line);
    text.push('\n');
}

/// A number with three digits that matter, at least all those before the point, and a comma at
/// each thousand.
fn number(value: f64) -> String {
    if !value.is_finite() {
        return "—".to_owned();
    }
    let decimals = match value.abs() {
        _ if value.fract() == 0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    let text = format!("{value:.decimals$}");
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        let left = whole.len() - index;
        if index > 0 && left.is_multiple_of(3) && !grouped.ends_with('-') {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    if !fraction.is_empty() {
        grouped.push('.');
        grouped.push_str(fraction);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_matter() {
        let shown = [0.0123, 1.234, 12.34, 123.4, 1234.0, 138_444.4, 1e6, 64.0, f64::NAN];
        let expected = ["0.012", "1.23", "12.3", "123", "1,234", "138,444", "1,000,000", "64", "—"];
        assert_eq!(shown.map(number), expected.map(str::to_owned));
    }

    #[test]
    fn a_target_includes_its_bound() {
        assert!(Target::AtMost(5.0).is_met_by(5.0) && !Target::AtMost(5.0).is_met_by(5.1));
        assert!(Target::AtLeast(5.0).is_met_by(5.0) && !Target::AtLeast(5.0).is_met_by(4.9));
        assert!(Target::Exactly(1.0).is_met_by(1.0) && !Target::Exactly(1.0).is_met_by(2.0));
        assert!(!Target::AtMost(5.0).is_met_by(f64::NAN), "nothing measured meets nothing");
    }

    #[test]
    fn a_section_is_a_table_that_lines_up() {
        let mut findings = Findings::default();
        let median = findings.row("larder", Unit::MegabytesPerSecond, &[3500.0, 3400.0, 3600.0]);
        findings.target("÷ nginx", Unit::Times, median / 2500.0, Target::AtLeast(1.15));
        let section = Section::new("warm".into(), "One blob.".into(), Ok(findings));
        let expected = "
## warm

One blob.

|        | unit | median |   min |   max | rounds |
| ------ | ---- | -----: | ----: | ----: | -----: |
| larder | MB/s |  3,500 | 3,400 | 3,600 |      3 |

| target  | unit | measured | wanted |     |
| ------- | ---- | -------: | -----: | --: |
| ÷ nginx | ×    |     1.40 | ≥ 1.15 | met |
";
        assert_eq!(section.to_markdown(), expected);
    }

    #[test]
    fn what_failed_is_said_and_makes_the_report_incomplete() {
        let mut report = Report::new(true, Machine::default());
        let failed = Err(anyhow::anyhow!("no such program").context("starting nginx"));
        report.sections.push(Section::new("warm".into(), "One blob.".into(), failed));
        assert!(report.to_markdown().contains("**Not measured:** starting nginx: no such program"));
        assert!(!report.is_whole());
    }

    #[test]
    fn the_json_form_carries_its_version_and_the_verdict() {
        let mut findings = Findings::default();
        findings.target("memory", Unit::Mebibytes, 120.0, Target::AtMost(100.0));
        let mut report = Report::new(false, Machine::default());
        report.sections.push(Section::new("streams".into(), String::new(), Ok(findings)));
        let json: serde_json::Value = serde_json::from_str(&report.to_json()).unwrap();
        assert_eq!(json["version"], 1);
        let target = &json["sections"][0]["targets"][0];
        assert_eq!((&target["met"], &target["target"]["at_most"]), (&false.into(), &100.0.into()));
    }
}
