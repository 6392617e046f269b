//! `musherfs status`: what the running mounts of this user say.

use super::failure::Failure;
use super::output::{self, Align, Table};
use super::shared::runtime;
use crate::error::Error;
use crate::mount::control::{self, Status};
use crate::paths::Directories;

/// Show the running mounts
///
/// Asks their daemons over a socket, never through the mount, so it answers when the network hangs.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs status
  musherfs status --json")]
pub(super) struct Args {
    /// Print JSON, with all counters
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let directories = Directories::from_env()?;
    let asking = control::all(&directories.runtime);
    let all = runtime()?
        .block_on(asking)
        .map_err(|error| Error::io(&directories.runtime, error))?;
    if args.json {
        return output::json(&all);
    }
    table(&all).print()
}

fn table(all: &[Status]) -> Table {
    let mut table = Table::new([
        ("MOUNTPOINT", Align::Left),
        ("REGISTRY", Align::Left),
        ("STATE", Align::Left),
        ("PID", Align::Right),
        ("UPTIME", Align::Right),
    ]);
    for status in all {
        let states: Vec<&str> = status
            .sources
            .iter()
            .map(|source| source.state.as_str())
            .collect();
        table.row([
            status.mountpoint.display().to_string(),
            status.registry.clone(),
            match states.as_slice() {
                [] => "offline".to_owned(),
                states => states.join(","),
            },
            status.pid.to_string(),
            uptime(status.uptime_seconds),
        ]);
    }
    table
}

/// The two largest units.
fn uptime(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m {}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h {}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d {}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}
