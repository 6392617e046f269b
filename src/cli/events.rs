//! `musherfs events`: the moves of names, as they are noticed.

use tokio::sync::mpsc;

use super::failure::{Exit, Failure};
use super::output;
use super::shared::runtime;
use crate::error::Error;
use crate::mount::control::{client, events};
use crate::paths::Directories;

/// Print a line of JSON whenever a name moves to another version
///
/// Of all names that somebody has opened in the running mounts. Ends when the last mount does.
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
        let sockets = client::sockets(&directories.runtime)
            .map_err(|error| Error::io(&directories.runtime, error))?;
        let (sender, mut lines) = mpsc::channel(16);
        for socket in sockets {
            if let Ok(mut events) = socket.events().await {
                let sender = sender.clone();
                tokio::spawn(async move {
                    while let Ok(Some(line)) = events.next_line().await {
                        if sender.send(line).await.is_err() {
                            return;
                        }
                    }
                });
            }
        }
        drop(sender);
        let mut seen = false;
        tracing::info!("waiting for names to move");
        while let Some(line) = lines.recv().await {
            seen = true;
            output::line(&line)?;
        }
        if seen {
            return Ok(());
        }
        Err(
            Failure::text(Exit::General, "there is no running mount any more")
                .with_hint(Some("`musherfs status` lists the mounts")),
        )
    })
}
