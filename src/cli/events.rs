//! `musherfs events`: the moves of names, as they are noticed.

use super::failure::{Exit, Failure};
use super::output;
use super::shared::runtime;
use crate::error::Error;
use crate::mount::control::{events, follow::Follower};
use crate::paths::Directories;

/// Print a line of JSON whenever a name moves to another version
///
/// Of all names that somebody has opened in the running mounts, those that are made later included.
/// A daemon that is replaced, by an upgrade or after a crash, is a short pause; what moves meanwhile
/// is not told. Ends when the last mount does.
/// The same moves are written to files, which programs can watch with inotify: --folder says where.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs events
  musherfs events | jq -r 'select(.event == \"moved\") | .bundle + \" is now \" + .to'
  inotifywait -m -r -e close_write \"$(musherfs events --folder)\"

The file NAMESPACE/BUNDLE in the folder holds the name that moved last and its version.")]
pub(super) struct Args {
    /// Print the directory of the files and end
    #[arg(long)]
    folder: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let directories = Directories::from_env()?;
    if args.folder {
        let folder = events::folder(&directories.runtime);
        return output::line(&folder.display().to_string());
    }
    runtime()?.block_on(async {
        let failed = |error| Error::io(&directories.runtime, error);
        let mut follower = Follower::start(&directories.runtime)
            .await
            .map_err(failed)?
            .ok_or_else(|| {
                Failure::text(Exit::General, "there is no running mount")
                    .with_hint(Some("`musherfs status` lists the mounts"))
            })?;
        while let Some(line) = follower.next_line().await.map_err(failed)? {
            output::line(&line)?;
        }
        tracing::info!("the last mount is gone");
        Ok(())
    })
}
