//! `musherfs umount`.

use std::path::PathBuf;

use super::failure::Failure;
use super::mount::DEFAULT_MOUNTPOINT;
use crate::error::Error;

/// Unmount
///
/// Says which processes hold the mount if it is busy. Never contacts the daemon, so it works when
/// that hangs or is gone.
#[derive(clap::Args)]
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
}

// WIRE: crate::mount's unmount_command; a busy mount's holders are in its error.
pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let Args {
        mountpoint: _,
        lazy: _,
        force: _,
    } = args;
    Err(Error::Internal("umount is not wired yet".into()).into())
}
