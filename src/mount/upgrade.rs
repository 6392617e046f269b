//! Having another program serve the mounts that are kept, without anybody noticing.
//!
//! The keeper of a mount starts the new program, which reads its settings and opens cache and
//! journal; only when it is prepared does the former daemon end, and what that had under way is asked
//! for again. A program that is not prepared in time changes nothing.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::error::{Failure, MountError, Result};
pub use super::keeper::{Kept, Upgraded};
use super::keeper::{ask_door, find};

/// How long a keeper may take: it waits for the new daemon twice, and for the end of the old one.
const PATIENCE: Duration = Duration::from_secs(30);

/// A mount that was asked to be served by another program.
#[derive(Debug)]
pub struct Outcome {
    /// The mount as it was before.
    pub kept: Kept,
    /// What came of it. After a failure the former daemon, or one like it, serves.
    pub result: Result<Upgraded, Failure>,
}

/// The file of the program that runs now, by the name it is installed under.
///
/// # Errors
///
/// When `/proc` is not mounted, or the file is gone.
pub fn installed_program() -> io::Result<PathBuf> {
    let path = std::fs::read_link("/proc/self/exe")?;
    if path.exists() {
        return Ok(path);
    }
    // Replaced since this process began: the name that is left is what is installed now.
    let text = path.to_string_lossy();
    let name = text.strip_suffix(" (deleted)").map(PathBuf::from);
    name.filter(|name| name.exists())
        .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "the program's file is gone"))
}

/// Has `program` serve the mount on `dir`, or all of this user's mounts.
///
/// # Errors
///
/// [`MountError::NotKept`] when there is no such mount; each mount's own failure is in its outcome.
pub fn upgrade(runtime_dir: &Path, dir: Option<&Path>, program: &Path) -> Result<Vec<Outcome>> {
    let kept = find(runtime_dir).map_err(|error| MountError::io(runtime_dir, error))?;
    let wanted = |kept: &Kept| dir.is_none_or(|dir| dir == Path::new(&kept.dir));
    let mut outcomes = Vec::new();
    for (socket, kept) in kept.into_iter().filter(|(_, kept)| wanted(kept)) {
        let request = super::keeper::Request::Upgrade {
            program: program.into(),
        };
        let result = ask_door(&socket, &request, PATIENCE).unwrap_or_else(|error| {
            Err(Failure {
                message: format!("the mount's keeper does not answer: {error}"),
                hint: None,
                exit_code: 5,
            })
        });
        outcomes.push(Outcome { kept, result });
    }
    if outcomes.is_empty() {
        return Err(MountError::NotKept {
            path: dir.map(Path::to_owned),
        });
    }
    Ok(outcomes)
}
