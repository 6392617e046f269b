//! `musherfs umount`.

use std::path::PathBuf;

use super::failure::Failure;
use super::mount::DEFAULT_MOUNTPOINT;
use crate::error::Error;
use crate::mount::{How, unmount_command, unmount_dead};

/// Unmount
///
/// Says which processes hold the mount if it is busy. Never contacts the daemon, so it works when
/// that hangs or is gone.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  musherfs umount
  musherfs umount --lazy ~/bundles      others may finish what they read
  musherfs umount --force ~/bundles     the daemon hangs, or is gone")]
pub(super) struct Args {
    /// Where it is mounted
    #[arg(default_value = DEFAULT_MOUNTPOINT)]
    pub(super) mountpoint: PathBuf,

    /// Take it out of the directory tree now, and end when the last process leaves
    #[arg(short, long, conflicts_with = "force")]
    pub(super) lazy: bool,

    /// End it now: readers get errors
    #[arg(short, long)]
    pub(super) force: bool,

    /// Only if nobody serves it any more and nobody ever will; nothing mounted is no error. For
    /// service managers, to clear up after a service
    #[arg(long, conflicts_with_all = ["lazy", "force"])]
    pub(super) dead: bool,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let mountpoint = std::path::absolute(&args.mountpoint)
        .map_err(|error| Error::io(&args.mountpoint, error))?;
    // Whoever started this may stand in the mount; this process need not.
    rustix::process::chdir("/").map_err(|error| Error::io("/", error.into()))?;
    if args.dead {
        if unmount_dead(&mountpoint)? {
            tracing::info!("cleared {}", mountpoint.display());
        }
        return Ok(());
    }
    let how = match (args.lazy, args.force) {
        (_, true) => How::Force,
        (true, _) => How::Lazy,
        _ => How::Plain,
    };
    let dir = unmount_command(&mountpoint, how)?;
    tracing::info!("unmounted {}", dir.display());
    Ok(())
}
