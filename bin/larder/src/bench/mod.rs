//! `larder bench`: larder beside docker-registry and nginx, measured in one run on one machine.
//!
//! Everything is started here, on loopback, on free ports, in a directory of its own, and ended
//! and removed afterwards: docker-registry as the upstream and as a peer, nginx, forwarders that
//! count and delay, and `larder serve` from this very program.
//!
//! ```text
//! section ──▶ peers, larder, forwarder   (what is measured)
//!    ├──────▶ client, crowd, load        (what measures)
//!    └──────▶ Findings ──▶ Report        (what is said)
//! ```
//!
//! - each section is a module with one `measure`: [`coalesce`], [`cold`], [`wan`], [`warm`]
//!   (plain and TLS), [`agent`], [`streams`], [`manifests`], [`slowdisk`], [`truncate`], [`outage`],
//!   [`index`], [`million`], [`eviction`];
//! - this module knows the order, the options, and what they share: [`Bench`].

mod agent;
mod buffer;
mod client;
mod coalesce;
mod cold;
mod content;
mod crowd;
mod dialogue;
mod eviction;
mod forwarder;
mod http;
mod index;
mod larder;
mod load;
mod machine;
mod manifests;
mod million;
mod origin;
mod outage;
mod pace;
mod peers;
mod poller;
mod proc;
mod program;
mod report;
mod rounds;
mod slowdisk;
mod stats;
mod streams;
mod tls;
mod truncate;
mod wan;
mod warm;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail};
use clap::ValueEnum;
use tempfile::TempDir;

use content::Images;
use peers::Peer;
use proc::Work;
use program::{Program, Programs};
use report::{Findings, Report, Section};

use crate::failure::Failure;

/// What is measured, and where the report goes.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Take few rounds and small sizes: under two minutes, to see that everything works
    #[arg(long)]
    quick: bool,

    /// Print JSON instead of Markdown
    #[arg(long)]
    json: bool,

    /// Measure only these
    #[arg(long, value_name = "NAME", num_args = 1.., value_delimiter = ',')]
    only: Vec<Name>,

    /// Also write what is printed to this file
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Where to make the working directory, which takes up to 8 GiB [default: the system's
    /// directory for temporary files]
    #[arg(long, value_name = "DIR")]
    work: Option<PathBuf>,

    /// Measure this larder instead of the one that runs the bench
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// The sections, in the order they are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Name {
    /// Many clients at once on a cold blob
    Coalesce,
    /// The first pull, over loopback and over slower links
    Cold,
    /// The first pull over a long way, with parallel connections
    Wan,
    /// A stored blob
    Warm,
    /// A stored blob over TLS
    Tls,
    /// A stored blob through the agent of a node
    Agent,
    /// 256 streams at once
    Streams,
    /// Small manifests: how many, and how fast at half of that
    Manifests,
    /// Manifests while a large blob is read from a slow disk
    Slowdisk,
    /// A stored blob that shrinks while it is served
    Truncate,
    /// An upstream that does not answer any more
    Outage,
    /// The start with 100,000 blobs
    Index,
    /// The start with a million blobs, and making room while they are read
    Million,
    /// Which blobs go when the budget is full
    Eviction,
}

impl Name {
    /// The programs that it needs.
    fn peers(self) -> &'static [Peer] {
        match self {
            Self::Warm | Self::Tls => &[Peer::Registry, Peer::Nginx],
            Self::Index | Self::Million | Self::Eviction => &[],
            _ => &[Peer::Registry],
        }
    }
}

/// Runs the bench: prints progress to stderr, and the report to stdout.
///
/// An interrupt ends every program that was started and removes what was made; a second one ends
/// the bench at once.
///
/// # Errors
///
/// A peer is not installed (the error names its Debian package), a section could not be measured
/// (the report was printed and says why), or the report cannot be written. A target that was not
/// met is no error.
pub(crate) fn run(args: Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    Ok(runtime.context("starting a thread")?.block_on(until_interrupted(args))?)
}

async fn until_interrupted(args: Args) -> anyhow::Result<()> {
    let programs = Programs::default();
    let bench = {
        let programs = programs.clone();
        tokio::task::spawn_blocking(move || measure_all(&args, programs))
    };
    tokio::pin!(bench);
    tokio::select! {
        done = &mut bench => return done.context("running the bench")?,
        interrupt = tokio::signal::ctrl_c() => interrupt.context("waiting for an interrupt")?,
    }
    programs.end();
    progress("interrupted; cleaning up");
    tokio::select! {
        _ = &mut bench => bail!("interrupted"),
        _ = tokio::signal::ctrl_c() => std::process::exit(1),
    }
}

fn measure_all(args: &Args, programs: Programs) -> anyhow::Result<()> {
    let all = Name::value_variants().iter().copied();
    let wanted = all.filter(|name| args.only.is_empty() || args.only.contains(name));
    let wanted: Vec<Name> = wanted.collect();
    peers::require(&wanted.iter().flat_map(|name| name.peers()).copied().collect())?;
    let bench = Bench::new(args, programs)?;
    let mut report = Report::new(args.quick, machine::Machine::this());
    for name in wanted {
        let section = measure(&bench, name);
        if !args.json {
            progress(&section.to_markdown());
        }
        report.sections.push(section);
        if bench.programs.have_ended() {
            bail!("interrupted");
        }
    }
    let text = if args.json { report.to_json() } else { report.to_markdown() };
    if let Some(out) = &args.out {
        std::fs::write(out, &text).with_context(|| format!("writing {}", out.display()))?;
    }
    std::io::stdout().write_all(text.as_bytes()).context("printing the report")?;
    match report.is_whole() {
        true => Ok(()),
        false => bail!("not everything could be measured; the report says why"),
    }
}

fn measure(bench: &Bench, name: Name) -> Section {
    let started = Instant::now();
    let work = Work::now();
    let (what, findings): (String, anyhow::Result<Findings>) = match name {
        Name::Coalesce => (coalesce::what(bench), coalesce::measure(bench)),
        Name::Cold => (cold::what(bench), cold::measure(bench)),
        Name::Wan => (wan::what(bench), wan::measure(bench)),
        Name::Warm => (warm::what(bench), warm::measure_plain(bench)),
        Name::Tls => (warm::what_tls(bench), warm::measure_tls(bench)),
        Name::Agent => (agent::what(bench), agent::measure(bench)),
        Name::Streams => (streams::what(bench), streams::measure(bench)),
        Name::Manifests => (manifests::what(bench), manifests::measure(bench)),
        Name::Slowdisk => (slowdisk::what(bench), slowdisk::measure(bench)),
        Name::Truncate => (truncate::what(bench), truncate::measure(bench)),
        Name::Outage => (outage::what(bench), outage::measure(bench)),
        Name::Index => (index::what(bench), index::measure(bench)),
        Name::Million => (million::what(bench), million::measure(bench)),
        Name::Eviction => (eviction::what(bench), eviction::measure(bench)),
    };
    let name = name.to_possible_value().map(|value| value.get_name().to_owned());
    let mut section = Section::new(name.unwrap_or_default(), what, findings);
    section.seconds = started.elapsed().as_secs_f64();
    section.other_cores = work.other_cores_since();
    section
}

/// What all sections share.
#[derive(Debug)]
pub(crate) struct Bench {
    quick: bool,
    larder: PathBuf,
    programs: Programs,
    images: Images,
    /// Last, so that it is removed when nothing uses it any more.
    work: TempDir,
}

impl Bench {
    fn new(args: &Args, programs: Programs) -> anyhow::Result<Self> {
        let larder = match &args.program {
            Some(file) => file.clone(),
            None => std::env::current_exe().context("finding this program")?,
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix("larder-bench-");
        let work = match &args.work {
            Some(directory) => builder.tempdir_in(directory),
            None => builder.tempdir(),
        };
        let work = work.context("making the working directory")?;
        let images = Images::new(work.path().join("registry"));
        Ok(Self { quick: args.quick, larder, programs, images, work })
    }

    /// `full`, or `quick` in a quick run.
    pub(crate) fn scaled<T>(&self, full: T, quick: T) -> T {
        if self.quick { quick } else { full }
    }

    /// The images that peers serve.
    pub(crate) fn images(&self) -> &Images {
        &self.images
    }

    /// The larder that is measured.
    pub(crate) fn larder(&self) -> &Path {
        &self.larder
    }

    /// A path in the working directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.work.path().join(name)
    }

    /// An empty directory, removed when it is dropped.
    ///
    /// # Errors
    ///
    /// The disk refused.
    pub(crate) fn directory(&self) -> anyhow::Result<TempDir> {
        TempDir::new_in(self.work.path()).context("making a directory")
    }

    /// Starts a program that logs into the working directory.
    ///
    /// # Errors
    ///
    /// It cannot be run, or the bench was interrupted.
    pub(crate) fn start(
        &self,
        name: &'static str,
        command: &mut Command,
    ) -> anyhow::Result<Program> {
        self.programs.start(name, command, self.work.path())
    }
}

/// Tells whoever waits, on stderr.
pub(crate) fn progress(text: &str) {
    // Whoever closed stderr does not want to know.
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Bytes in a MiB.
pub(crate) const MIB: u64 = 1 << 20;

/// Bytes in a GiB, to divide by.
pub(crate) const GIB: f64 = (1u64 << 30) as f64;
