//! Looking after a cache that programs share: loading, pinning, limiting, healing.
//!
//! | file | what it does |
//! |---|---|
//! | [`load`] | everything of a version at once, ahead of its readers |
//! | [`pins`] | versions that stay loaded |
//! | [`lockfile`] | versions that were written down, and nothing else |
//! | [`quota`] | a limit on what the cache takes of the disk |
//! | [`recency`] | when which blob was last read |
//! | [`lease`] | what running mounts need |
//! | [`heal`] | damaged and foreign files made good |
//! | [`keeper`] | what a mount does of all this while it runs |
//!
//! Everything that must be remembered is below the state directory, in files that are appended to or
//! replaced whole (the quota's ledger is written in place, by whoever has its lock): the cache itself
//! belongs to every Musher tool, any of which may empty it.

pub mod heal;
pub mod keeper;
pub mod lease;
pub mod load;
pub mod lockfile;
pub mod pins;
pub mod quota;
pub mod recency;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::cache::clean::Needed;
use crate::cache::{Cache, key_of};
use crate::error::{Error, Result};
use crate::sync;
use pins::Pins;

/// What must stay in `cache` whatever its age: what is pinned, and what running mounts serve.
///
/// # Errors
///
/// When the pins cannot be read: then nobody knows what must stay.
pub fn needed(state: &Path, cache: &Cache) -> Result<Needed> {
    let mut needed = Needed::default();
    for pin in Pins::new(state).list()? {
        for version in pin.kept() {
            needed.add(&pin.registry, &version);
        }
    }
    for lease in lease::running(state, cache.root()) {
        for (host, version) in &lease.versions {
            needed.add(host, version);
        }
    }
    Ok(needed)
}

/// How long another process may keep one of the locks here, each of which is for rewriting a file.
const PATIENCE: Duration = Duration::from_secs(10);

/// Opens a file that only serves as a lock, and waits for the lock, but not for ever: whoever has it may
/// be stopped.
fn lock_file(path: &Path) -> io::Result<File> {
    let file = private_file(path, OpenOptions::new().read(true).write(true))?;
    sync::lock_file(&file, PATIENCE)?;
    Ok(file)
}

/// Opens a file of the state directory, creating it and the directories it is in for the owner
/// alone.
fn private_file(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let options = options
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make_parent(path)?;
            options.open(path)
        }
        other => other,
    }
}

fn make_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(parent)
}

/// Replaces the file at `path`, which is for its owner alone, by one with this content.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    make_parent(path).map_err(|error| Error::io(path, error))?;
    replace_with_mode(path, content, 0o600)
}

/// Replaces a file; the umask applies to the mode.
fn replace_with_mode(path: &Path, content: &[u8], mode: u32) -> Result<()> {
    let attempt = || -> io::Result<()> {
        let dir = path.parent().unwrap_or(Path::new("/"));
        let mut temporary = tempfile::Builder::new()
            .permissions(fs::Permissions::from_mode(mode))
            .tempfile_in(dir)?;
        temporary.write_all(content)?;
        temporary.as_file().sync_all()?;
        temporary.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    attempt().map_err(|error| Error::io(path, error))
}

/// Reads what is written as text and validated on construction.
fn parsed<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    let text = String::deserialize(deserializer)?;
    text.parse().map_err(de::Error::custom)
}

fn parsed_all<'de, D: Deserializer<'de>, T>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: FromStr,
    T::Err: std::fmt::Display,
{
    let all = Vec::<String>::deserialize(deserializer)?;
    let all = all.iter().map(|text| text.parse());
    all.collect::<Result<_, _>>().map_err(de::Error::custom)
}
