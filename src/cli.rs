//! The command line: what can be typed, and nothing else.
//!
//! One file a subcommand. Each turns its arguments into settings, calls the layer that does the
//! work, and prints. What all of them keep:
//!
//! * data goes to stdout, everything else to stderr;
//! * an error says what failed and why, then `hint:` and what to do about it ([`failure`]);
//! * a reader that goes away (`| head`) ends the program quietly;
//! * exit codes are those of the other Musher tools ([`failure::Exit`]).

mod bugreport;
mod cache;
mod completions;
mod doctor;
mod events;
mod export;
pub mod failure;
mod groups;
mod import;
mod load;
mod lock;
mod log;
pub mod logging;
mod ls;
mod man;
mod mount;
mod oci;
mod output;
mod pin;
mod progress;
mod publish;
mod registry;
mod resolve;
mod shared;
mod status;
mod umount;
mod upgrade;
mod why;
mod yank;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::error::{ContextKind, ErrorKind};
use clap::{ArgAction, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config;
use failure::{Exit, Failure};
use logging::Verbosity;

/// Mounts Musher bundles as read-only files.
///
/// A mount shows every bundle as NAMESPACE/BUNDLE@VERSION/PATH. Nothing is downloaded before it is
/// read, every file is verified before it is shown, and what was read once stays readable offline,
/// from the cache that all Musher tools share.
#[derive(Parser)]
#[command(
    name = "musherfs",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_long_help = TOP_HELP,
    max_term_width = 100
)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Say more: -v for what is done, -vv for why, -vvv for everything; RUST_LOG wins over it
    #[arg(
        short,
        long,
        global = true,
        action = ArgAction::Count,
        conflicts_with = "quiet",
        display_order = 900
    )]
    verbose: u8,

    /// Say only what went wrong
    #[arg(short, long, global = true, display_order = 901)]
    quiet: bool,
}

const TOP_HELP: &str = "\
Examples:
  musherfs mount --demo ~/bundles       sample bundles, to try it out without a registry
  musherfs mount                        on /mnt/musher, in the background
  cat /mnt/musher/acme/code-review/prompts/review.md
  musherfs umount

If something is wrong:
  musherfs why PATH                     what it is, where its bytes came from, or why it failed
  musherfs doctor                       what keeps mounts from working, and what to do
  musherfs status                       the running mounts

Environment:
  MUSHER_API_KEY                        the API key; also found where `musher login` puts it
  MUSHER_API_URL                        the registry
  MUSHER_CACHE_HOME, MUSHER_CONFIG_HOME, MUSHER_DATA_HOME, MUSHER_STATE_HOME,
  MUSHER_RUNTIME_DIR, MUSHER_HOME       directories, shared with the other Musher tools
  HTTPS_PROXY, HTTP_PROXY, NO_PROXY     proxies
  RUST_LOG                              what is logged, such as musherfs=debug

Files:
  ~/.config/musher/config.yaml          settings; those of a mount are below `mount:`
  ~/.cache/musher                       the cache

Exit status:
  0 success, 1 failure, 2 authentication, 3 network, 4 configuration, 5 timeout,
  6 execution, 64 wrong usage";

#[derive(Subcommand)]
enum Command {
    Mount(mount::Args),
    Umount(umount::Args),
    Upgrade(upgrade::Args),
    Ls(ls::Args),
    Resolve(resolve::Args),
    Load(load::Args),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    Pins(pin::PinsArgs),
    Lock(lock::Args),
    Status(status::Args),
    Why(why::Args),
    Doctor(doctor::Args),
    Bugreport(bugreport::Args),
    Events(events::Args),
    Log(log::Args),
    Cache(cache::Args),
    Export(export::Args),
    Import(import::Args),
    Publish(publish::Args),
    Yank(yank::YankArgs),
    Unyank(yank::UnyankArgs),
    Registry(registry::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Runs the program with the arguments of this process. What it returns is the exit code.
pub fn main() -> ExitCode {
    let outcome = run(&config::command_line());
    logging::release(
        outcome
            .as_ref()
            .map_or_else(|failure| &*failure.message, |()| ""),
    );
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(arguments: &[OsString]) -> Result<(), Failure> {
    if let Some(outcome) = mount::called_by_machine(arguments) {
        return outcome;
    }
    if let [_, first, rest @ ..] = arguments
        && first == completions::SUBCOMMAND
    {
        completions::complete(rest);
        return Ok(());
    }
    let parsed = groups::grouped(Cli::command())
        .try_get_matches_from(arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches));
    let cli = match parsed {
        Ok(cli) => cli,
        Err(error) => return from_clap(error),
    };
    let verbosity = Verbosity::new(cli.verbose, cli.quiet);
    match cli.command {
        Command::Mount(args) => mount::run(mount::Plan::new(args, verbosity)?),
        Command::Umount(args) => {
            logging::init_command(verbosity)?;
            umount::run(&args)
        }
        Command::Upgrade(args) => {
            logging::init_command(verbosity)?;
            upgrade::run(&args)
        }
        Command::Ls(args) => {
            logging::init_command(verbosity)?;
            ls::run(&args)
        }
        Command::Resolve(args) => {
            logging::init_command(verbosity)?;
            resolve::run(&args)
        }
        Command::Load(args) => {
            logging::init_command(verbosity)?;
            load::run(&args)
        }
        Command::Pin(args) => {
            logging::init_command(verbosity)?;
            pin::pin(&args)
        }
        Command::Unpin(args) => {
            logging::init_command(verbosity)?;
            pin::unpin(&args)
        }
        Command::Pins(args) => {
            logging::init_command(verbosity)?;
            pin::pins(&args)
        }
        Command::Lock(args) => {
            logging::init_command(verbosity)?;
            lock::run(&args)
        }
        Command::Status(args) => {
            logging::init_command(verbosity)?;
            status::run(&args)
        }
        Command::Why(args) => {
            logging::init_command(verbosity)?;
            why::run(&args)
        }
        Command::Doctor(args) => {
            logging::init_command(verbosity)?;
            doctor::run(&args)
        }
        Command::Bugreport(args) => {
            logging::init_command(verbosity)?;
            bugreport::run(&args)
        }
        Command::Events(args) => {
            logging::init_command(verbosity)?;
            events::run(&args)
        }
        Command::Log(args) => {
            logging::init_command(verbosity)?;
            log::run(&args)
        }
        Command::Cache(args) => {
            logging::init_command(verbosity)?;
            cache::run(&args)
        }
        Command::Export(args) => {
            logging::init_command(verbosity)?;
            export::run(&args)
        }
        Command::Import(args) => {
            logging::init_command(verbosity)?;
            import::run(&args)
        }
        Command::Publish(args) => {
            logging::init_command(verbosity)?;
            publish::run(&args)
        }
        Command::Yank(args) => {
            logging::init_command(verbosity)?;
            yank::yank(&args)
        }
        Command::Unyank(args) => {
            logging::init_command(verbosity)?;
            yank::unyank(&args)
        }
        Command::Registry(args) => {
            logging::init_command(args.verbosity(verbosity))?;
            registry::run(args)
        }
        Command::Completions(args) => completions::run(&args, &mut Cli::command()),
        Command::Man(args) => man::run(&args, Cli::command()),
    }
}

/// `--help` and `--version` arrive as errors too.
fn from_clap(mut error: clap::Error) -> Result<(), Failure> {
    if error.kind() == ErrorKind::UnknownArgument && error.get(ContextKind::SuggestedArg).is_none()
    {
        // Without an option that is alike, clap offers to take the word for a name or a path.
        error.remove(ContextKind::Suggested);
    }
    match error.print() {
        Err(error) => Err(error.into()),
        Ok(()) if error.use_stderr() => Err(Failure::printed(Exit::Usage)),
        Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
