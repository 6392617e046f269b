//! `musherfs upgrade`.

use std::path::PathBuf;

use super::failure::Failure;
use crate::error::Error;
use crate::mount::upgrade;
use crate::paths::Directories;

const HELP: &str = "\
Examples:
  musherfs upgrade                      all mounts of this user
  musherfs upgrade /mnt/musher

The new program is checked first: if it does not get ready within five seconds, or cannot read the
settings, the former one goes on. Needs Linux 6.9 or later. Mounts in the foreground belong to their
service manager: restart its service.";

/// Have this version serve what is mounted, without unmounting
///
/// To be run after another version was installed. Readers notice nothing but a short pause.
#[derive(clap::Args)]
#[command(after_long_help = HELP)]
pub(super) struct Args {
    /// Where it is mounted; all mounts of this user if not given
    mountpoint: Option<PathBuf>,

    /// Another program than this one
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

pub(super) fn run(args: &Args) -> Result<(), Failure> {
    let directories = Directories::from_env()?;
    let program = match &args.program {
        Some(path) => std::path::absolute(path).map_err(|error| Error::io(path, error))?,
        None => upgrade::installed_program().map_err(|error| Error::io("/proc/self/exe", error))?,
    };
    let mountpoint = match &args.mountpoint {
        // The parent only: the mount itself may be stuck.
        Some(path) => Some(resolved(path)?),
        None => None,
    };
    let outcomes = upgrade::upgrade(&directories.runtime, mountpoint.as_deref(), &program)?;
    let mut worst = None;
    for outcome in outcomes {
        let dir = PathBuf::from(&outcome.kept.dir);
        match outcome.result {
            Ok(done) => tracing::info!(
                "{} is served by {} (before: {}), process {}",
                dir.display(),
                done.to,
                done.from,
                done.pid
            ),
            Err(failure) => {
                let message = format!("{} is not upgraded: {}", dir.display(), failure.message);
                let told = Failure::text(failure.exit_code, message).with_hint(failure.hint);
                if let Some(earlier) = worst.replace(told) {
                    tracing::error!("{}", earlier.message);
                }
            }
        }
    }
    worst.map_or(Ok(()), Err)
}

/// Absolute, and without symlinks above the last component.
fn resolved(path: &std::path::Path) -> Result<PathBuf, Failure> {
    let absolute = std::path::absolute(path).map_err(|error| Error::io(path, error))?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else {
        return Ok(absolute);
    };
    let parent = parent
        .canonicalize()
        .map_err(|error| Error::io(parent, error))?;
    Ok(parent.join(name))
}
