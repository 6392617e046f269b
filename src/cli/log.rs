//! `musherfs log`: how much a running mount logs.

use std::path::PathBuf;

use super::failure::{Exit, Failure};
use super::logging::Verbosity;
use super::shared::runtime;
use crate::error::Error;
use crate::mount::control::client;
use crate::paths::Directories;

/// Change how much the running mounts log
///
/// Lasts until the daemon ends: another one that goes on with its mount, after an upgrade or a crash,
/// logs as the mount was told to when it was made. Where the log is: `journalctl -t musherfs`, or
/// ~/.local/state/musher/musherfs/musherfs.log where there is neither a journal nor a syslog.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs log debug
  musherfs log info /mnt/musher")]
pub(super) struct Args {
    /// How much
    #[arg(value_parser = Verbosity::words())]
    level: String,

    /// Only the mount on this directory
    mountpoint: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let directories = Directories::from_env()?;
    let failed = |error| Error::io(&directories.runtime, error);
    let wanted = args.mountpoint.as_deref().map(std::path::absolute);
    let wanted = wanted.transpose().map_err(failed)?;
    let changed = runtime()?.block_on(async {
        let mut changed = 0;
        for socket in client::sockets(&directories.runtime).map_err(failed)? {
            // Whoever does not answer is gone, or stuck and logs nothing.
            let Ok(status) = socket.status().await else {
                continue;
            };
            if wanted.as_ref().is_none_or(|dir| *dir == status.mountpoint) {
                let dir = &status.mountpoint;
                let set = socket.log(&args.level).await;
                set.map_err(|error| Error::io(dir, error))?;
                tracing::info!("{} logs {}", dir.display(), args.level);
                changed += 1;
            }
        }
        Ok::<_, Failure>(changed)
    })?;
    if changed == 0 {
        return Err(Failure::text(Exit::General, "there is no such mount")
            .with_hint(Some("`musherfs status` lists the mounts")));
    }
    Ok(())
}
