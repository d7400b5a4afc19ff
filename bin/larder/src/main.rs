//! `larder`: parse, start, exit code.
//!
//! Exit codes: 0 done, 1 failed, 2 usage or configuration.

mod agent;
mod archive;
mod bench;
mod check;
mod check_config;
mod cli;
mod controller;
mod du;
mod export;
mod failure;
mod gc;
mod import;
mod import_gardener;
mod ls;
mod pin;
mod progress;
mod rebuild_index;
mod serve;
mod server;
mod settings;
mod verify;
mod warm;

use std::io::{self, Write as _};
use std::process::ExitCode;

use clap::{ArgMatches, CommandFactory as _, FromArgMatches as _};

use crate::cli::{Cli, Command};
use crate::failure::Failure;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let matches = Cli::command().get_matches();
    match run(&matches) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let cli = Cli::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
    let (_, matches) = matches.subcommand().expect("clap requires a command");
    match cli.command {
        Command::Serve(command) => serve::run(&command, matches),
        Command::Agent(command) => agent::run(&command),
        Command::Controller(command) => controller::run(&command),
        Command::Check(command) => check::run(&command, matches),
        Command::CheckConfig(command) => check_config::run(&command, matches),
        Command::Ls(command) => ls::run(&command),
        Command::Du(command) => du::run(&command),
        Command::Gc(command) => gc::run(&command),
        Command::Pin(command) => pin::pin(&command),
        Command::Unpin(command) => pin::unpin(&command),
        Command::Warm(command) => warm::run(&command),
        Command::Export(command) => export::run(&command),
        Command::Import(command) => import::run(&command),
        Command::Verify(command) => verify::run(&command),
        Command::RebuildIndex(command) => rebuild_index::run(&command),
        Command::ImportGardener(command) => import_gardener::run(&command),
        Command::Crds => import_gardener::print_definitions(),
        Command::Bench(args) => bench::run(args),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "larder", &mut script);
            io::stdout().write_all(&script).map_err(Failure::writing)
        }
    }
}
