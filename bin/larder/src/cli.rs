//! The commands and what each takes.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use larder_process::logs;

use crate::agent::Agent;
use crate::bench;
use crate::controller::Controller;
use crate::server;
use crate::settings::{Settings, Sources};

/// Keeps container images close to the nodes that run them.
#[derive(Debug, Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve images: those in the store, and those of upstreams on their way into it
    #[command(after_help = SERVE_HELP)]
    Serve(Serve),
    /// Answer the runtimes of this node from the cache, and have them ask here first
    #[command(after_help = AGENT_HELP)]
    Agent(Agent),
    /// Make caches of the RegistryCache resources of a Kubernetes cluster
    #[command(after_help = CONTROLLER_HELP)]
    Controller(Controller),
    /// Say what works and what does not between here and an upstream
    #[command(after_help = CHECK_HELP)]
    Check(Check),
    /// Say everything that is wrong with a configuration
    #[command(after_help = CHECK_CONFIG_HELP)]
    CheckConfig(CheckConfig),
    /// List the images that are stored
    #[command(after_help = LS_HELP)]
    Ls(Ls),
    /// Say what takes how much of the disk, by upstream and repository
    Du(Du),
    /// Remove what has to go: what has gone unused, what is beyond quotas and the budget
    #[command(after_help = GC_HELP)]
    Gc(Gc),
    /// Have images stay, whatever budget and times say
    #[command(after_help = PIN_HELP)]
    Pin(Pin),
    /// Take pins back
    Unpin(Pin),
    /// Fetch images before anybody asks for them
    #[command(after_help = WARM_HELP)]
    Warm(Warm),
    /// Write images to a file, for a site that no registry reaches
    #[command(after_help = EXPORT_HELP)]
    Export(Export),
    /// Take images from a file: an OCI archive
    #[command(after_help = IMPORT_HELP)]
    Import(Import),
    /// Read everything that is stored again, to see whether it is still what it was
    #[command(after_help = VERIFY_HELP)]
    Verify(Verify),
    /// Make the index of a store again from its blobs, when it is lost or damaged
    #[command(after_help = REBUILD_INDEX_HELP)]
    RebuildIndex(RebuildIndex),
    /// Make RegistryCache resources of what Gardener's registry cache is configured with
    #[command(after_help = IMPORT_GARDENER_HELP)]
    ImportGardener(ImportGardener),
    /// Print the definitions of the custom resources, for kubectl apply
    Crds,
    /// Measure larder beside docker-registry and nginx on this machine
    #[command(after_help = BENCH_HELP)]
    Bench(bench::Args),
    /// Print what a shell needs to complete commands
    Completion {
        /// The shell
        shell: Shell,
    },
}

const GC_HELP: &str = "\
A running server does this by itself. With --dry-run nothing is removed, and what would go is printed in
its order, each with the reason:

    larder gc --dry-run";

const PIN_HELP: &str = "\
An image is HOST/NAME (all of it), HOST/NAME:TAG or HOST/NAME@DIGEST, with * for any part of a name or tag:

    larder pin registry.k8s.io/pause 'docker.io/library/python:3.*'
    larder ls --pinned";

const WARM_HELP: &str = "\
    larder warm docker.io/library/python:3.13 ghcr.io/owner/app:v2 --platform linux/amd64,linux/arm64
    larder warm --file images.txt --referrers

Exits with 1 if one of them could not be fetched whole, and says which and why. A running server goes
on fetching when this command is interrupted.";

const EXPORT_HELP: &str = "\
What is not stored is fetched first, as by `larder warm`. Only what the other side does not have:

    there:  larder ls --digests > have.txt
    here:   larder export docker.io/library/python:3.13 -o python.tar --without have.txt
    there:  larder import python.tar

The file is an OCI archive, which skopeo, containerd, Podman and Docker can read, too.";

const IMPORT_HELP: &str = "\
Every blob is checked against its digest. The images are there by their own names:

    larder import python.tar
    skopeo copy docker-archive:app.tar oci-archive:app-oci.tar
    larder import app-oci.tar --as registry.example.com/team/app:1

A server whose configuration says `offline = true` serves them without asking anybody.";

const SERVE_HELP: &str = "\
Without any flag, Docker Hub and the other well-known registries are served on 127.0.0.1:5000:

    larder serve &
    crane pull 127.0.0.1:5000/docker.io/library/alpine:latest alpine.tar

Flags override variables, and variables override the file.
SIGTERM and SIGINT stop: what is being sent is finished first. A second one ends at once.";

const AGENT_HELP: &str = "\
Runs on each node, as root. Once the cache answers, containerd is told to ask here first:

    larder agent --cache http://10.0.0.1:5000

Whatever is wrong with the cache, pulls go on to the registries themselves. When the agent ends, all
files are as they were before. docs/agent.md says what it writes where.";

const CONTROLLER_HELP: &str = "\
Runs in the cluster, usually by the Helm chart; finds the API server by its pod or by KUBECONFIG:

    larder controller --namespace larder-system --image registry.example.com/larder:0.1.0

docs/kubernetes.md says what it makes of a resource, and what it does when that changes.";

const CHECK_HELP: &str = "\
Each address of the upstream is tested by itself, step by step: name, connection, proxy, TLS, registry,
credentials, and with an IMAGE its manifest and the first byte of a layer:

    larder check docker.io library/alpine:3.20
    larder check --config larder.toml registry.example.com team/app:1

Nothing is stored. Exits with 0 if everything works, with 1 if something does not, and says then what
to do about it.";

const CHECK_CONFIG_HELP: &str = "\
Prints `ok: N upstreams`, or one line for each mistake and exits with 2:

    larder.toml:12: upstreams.\"ghcr.io\".freshness: `60` is not a duration; write it with its
    unit, as in 60s

Flags and variables are checked too.";

const LS_HELP: &str = "\
A PATTERN is part of a name, or a whole name in which * stands for any part and ? for one letter:

    larder ls alpine
    larder ls 'ghcr.io/*:v1.*'

SIZE is what is stored; `3 MiB of 9 MiB` where some layers have not been pulled. Layers that images
share count for each of them.";

const VERIFY_HELP: &str = "\
Prints a line for each blob that is not what it should be, and exits with 1 if there was one. Such a
blob is out of the store then: it is fetched again when it is next asked for, or at once with --repair.

    larder verify --repair
    larder verify --data /var/lib/larder

A running server goes on verifying when this command is interrupted.";

const REBUILD_INDEX_HELP: &str = "\
Stop larder first. Every blob is read; a file that is not what its name says goes to quarantine/. The
old index stays beside the new one as index.sqlite.old.

Which repositories have what, and what tags named, is not in the blobs: upstream is asked for it (by
HEAD, nothing is downloaded again) when something is next wanted, so it must be reachable.";

const IMPORT_GARDENER_HELP: &str = "\
FILE is YAML with a RegistryConfig (v1alpha1 to v1alpha3), a MirrorConfig, or the Shoot that they stand in:

    larder import-gardener shoot.yaml | kubectl apply -f -

Gardener's own rules count; what they would refuse is named, and the exit code is 2. What there is to do
by hand is said on stderr.";

const BENCH_HELP: &str = "\
Everything is started on loopback, in a directory of its own, and ended and removed afterwards.
Needs docker-registry, and for `warm` and `tls` nginx (Debian: docker-registry, nginx-core). `slowdisk` needs
root, to make a disk slow. A target that is not met is said, and does not fail the command.";

#[derive(Args, Debug)]
pub(crate) struct Serve {
    #[command(flatten)]
    pub(crate) settings: Settings,

    /// How events are written to stderr
    #[arg(long, value_enum, value_name = "FORMAT", default_value = "text")]
    #[arg(env = "LARDER_LOG_FORMAT", hide_env_values = true)]
    pub(crate) log_format: LogFormat,

    /// Which events are written: error, warn, info, debug or trace, or levels for parts, such as
    /// info,larder_store=debug
    #[arg(long, value_name = "LEVEL", default_value_t)]
    #[arg(env = "LARDER_LOG", hide_env_values = true)]
    pub(crate) log_level: logs::Filter,
}

#[derive(Args, Debug)]
pub(crate) struct Check {
    /// The upstream: its host as in image names, or its alias
    #[arg(value_name = "HOST")]
    pub(crate) host: String,

    /// An image of it to ask for: NAME, NAME:TAG or NAME@DIGEST
    #[arg(value_name = "IMAGE")]
    pub(crate) image: Option<String>,

    #[command(flatten)]
    pub(crate) sources: Sources,

    /// The longest that one step may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=600))]
    pub(crate) timeout: u64,

    /// Print JSON to stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct CheckConfig {
    #[command(flatten)]
    pub(crate) settings: Settings,

    /// Print JSON to stdout, mistakes too
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Ls {
    /// Only images with such names
    #[arg(value_name = "PATTERN")]
    pub(crate) pattern: Option<String>,

    /// Also the single images of an index, one for each platform that was pulled
    #[arg(long)]
    pub(crate) all: bool,

    /// What is pinned instead of what is stored
    #[arg(long, conflicts_with_all = ["pattern", "all"])]
    pub(crate) pinned: bool,

    /// Only the digests of everything that is stored, one on a line
    #[arg(long, conflicts_with_all = ["pattern", "all", "pinned", "json"])]
    pub(crate) digests: bool,

    #[command(flatten)]
    pub(crate) server: server::Address,

    /// Print JSON to stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Du {
    #[command(flatten)]
    pub(crate) server: server::Address,

    /// Print JSON to stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Gc {
    /// Only say what would go, and why
    #[arg(long)]
    pub(crate) dry_run: bool,

    #[command(flatten)]
    pub(crate) server: server::Address,

    /// Print JSON to stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Pin {
    /// The images
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) patterns: Vec<String>,

    #[command(flatten)]
    pub(crate) server: server::Address,
}

#[derive(Args, Debug)]
pub(crate) struct Warm {
    /// The images, as in docker.io/library/alpine:3.20
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,

    /// A file that names images, one on a line
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Platforms, or `all` [default: that of the server]
    #[arg(long, value_name = "OS/ARCHITECTURE", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,

    /// Also what refers to the images: signatures, for example
    #[arg(long)]
    pub(crate) referrers: bool,

    #[command(flatten)]
    pub(crate) server: server::Address,

    /// Print JSON to stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Export {
    /// The images, as in docker.io/library/alpine:3.20
    #[arg(value_name = "IMAGE", required = true)]
    pub(crate) images: Vec<String>,

    /// The file to write; - is stdout
    #[arg(long, short, value_name = "FILE")]
    pub(crate) output: PathBuf,

    /// Platforms, or `all` [default: that of the server]
    #[arg(long, value_name = "OS/ARCHITECTURE", value_delimiter = ',')]
    pub(crate) platform: Vec<String>,

    /// Also what refers to the images: signatures, for example
    #[arg(long)]
    pub(crate) referrers: bool,

    /// A file with digests that the other side has already, one on a line
    #[arg(long, value_name = "FILE")]
    pub(crate) without: Option<PathBuf>,

    /// Fetch nothing: export what is stored
    #[arg(long)]
    pub(crate) stored: bool,

    #[command(flatten)]
    pub(crate) server: server::Address,
}

#[derive(Args, Debug)]
pub(crate) struct Import {
    /// The archive
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// What the one image in it is to be called
    #[arg(long, value_name = "IMAGE")]
    pub(crate) r#as: Option<String>,

    #[command(flatten)]
    pub(crate) server: server::Address,
}

#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// Fetch what is bad again at once
    #[arg(long, conflicts_with = "data")]
    pub(crate) repair: bool,

    /// The directory of a store that no larder has open, instead of a running server
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) data: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) server: server::Address,

    /// Print JSON to stdout
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct RebuildIndex {
    /// The directory of the store
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) data: PathBuf,
}

#[derive(Args, Debug)]
pub(crate) struct ImportGardener {
    /// The file
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// The namespace that the caches are to be in
    #[arg(long, value_name = "NAME", default_value = "larder")]
    pub(crate) namespace: String,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON object per line
    Json,
}

impl From<LogFormat> for logs::Format {
    fn from(format: LogFormat) -> Self {
        match format {
            LogFormat::Text => Self::Text,
            LogFormat::Json => Self::Json,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_commands_do_not_contradict_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_of_serve_has_a_variable() {
        let command = Cli::command();
        let serve = command.find_subcommand("serve").unwrap();
        for flag in serve.get_arguments().filter(|flag| flag.get_long() != Some("help")) {
            let variable = flag.get_env().map(|it| it.to_string_lossy().into_owned());
            assert!(variable.is_some_and(|it| it.starts_with("LARDER_")), "{}", flag.get_id());
        }
    }

    #[test]
    fn every_flag_and_variable_is_in_the_document() {
        let document = include_str!("../../../docs/configuration.md");
        let command = Cli::command();
        let names = ["serve", "agent", "controller", "check", "check-config"];
        let of_a_server = [
            "ls",
            "du",
            "gc",
            "pin",
            "unpin",
            "warm",
            "export",
            "import",
            "verify",
            "rebuild-index",
        ];
        for name in names.into_iter().chain(of_a_server) {
            let command = command.find_subcommand(name).unwrap();
            for argument in command.get_arguments() {
                if argument.is_hide_set() {
                    continue;
                }
                let Some(flag) = argument.get_long().filter(|it| *it != "help") else { continue };
                let is_there = [" ", "`"].map(|end| document.contains(&format!("`--{flag}{end}")));
                assert!(is_there.contains(&true), "{name} --{flag}");
                if let Some(variable) = argument.get_env() {
                    let variable = variable.to_string_lossy();
                    assert!(document.contains(&format!("| `{variable}` |")), "{variable}");
                }
            }
        }
    }
}
