//! `musherfs cache`: the cache that all Musher tools of a user share.

use clap::Subcommand;
use serde::Serialize;

use super::failure::Failure;
use super::output;
use crate::cache::Cache;
use crate::paths::Directories;

/// Look into the cache that all Musher tools share
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print where the cache is and what it holds
    Info {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Print where the cache is, whether it exists or not
    Path,
}

/// The names are those of `musher cache info --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Info {
    location: String,
    total_size: u64,
    total_size_human: String,
    entries: u64,
    blobs: u64,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let directories = Directories::from_env()?;
    for warning in &directories.warnings {
        tracing::warn!("{warning}");
    }
    let location = directories.cache.display().to_string();
    match args.command {
        Command::Path => output::line(&location),
        Command::Info { json } => {
            let usage = Cache::new(directories.cache).usage();
            let info = Info {
                location,
                total_size: usage.total_bytes,
                total_size_human: output::size(usage.total_bytes),
                entries: usage.entries,
                blobs: usage.blobs,
            };
            if json {
                return output::json(&info);
            }
            output::line(&format!(
                "location  {}\nsize      {}\nentries   {}\nblobs     {}",
                info.location, info.total_size_human, info.entries, info.blobs
            ))
        }
    }
}
