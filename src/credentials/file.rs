//! A key in a file: read anew each time, and only if the file is its owner's alone.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Mode, OFlags};

use super::ApiKey;
use crate::error::{Error, Result};

/// Longest file that is read. Keys have some dozens of characters.
const MAX_FILE: u64 = 16 * 1024;

/// What a file that cannot be used means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnProblem {
    /// The user named the file: say so.
    Fail,
    /// It is a place where a key might have been: warn once, and look elsewhere. Absence is no
    /// reason for a warning.
    Ignore,
}

/// A file that may hold a key.
#[derive(Debug)]
pub(super) struct KeyFile {
    path: PathBuf,
    on_problem: OnProblem,
    /// Set with the first warning, cleared when the file is fine again.
    warned: AtomicBool,
}

impl KeyFile {
    pub(super) fn new(path: PathBuf, on_problem: OnProblem) -> Self {
        Self {
            path,
            on_problem,
            warned: AtomicBool::new(false),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the user named the file.
    pub(super) fn is_named(&self) -> bool {
        self.on_problem == OnProblem::Fail
    }

    /// Why a file that is there gives no key.
    pub(super) fn problem(&self) -> Option<String> {
        match read_key(&self.path) {
            Ok(_) | Err(Problem::Missing(_) | Problem::Empty) => None,
            Err(problem) => Some(format!("{}: {problem}", self.path.display())),
        }
    }

    /// The key in the file; `None` if the chain should look elsewhere.
    pub(super) fn read(&self) -> Result<Option<ApiKey>> {
        match read_key(&self.path) {
            Ok(key) => {
                self.warned.store(false, Ordering::Relaxed);
                Ok(Some(key))
            }
            Err(Problem::Missing(_) | Problem::Empty) if self.on_problem == OnProblem::Ignore => {
                Ok(None)
            }
            Err(problem) => {
                let text = format!(
                    "the API key file {} is not used: {problem}",
                    self.path.display()
                );
                if self.on_problem == OnProblem::Fail {
                    return Err(Error::Config(text));
                }
                if !self.warned.swap(true, Ordering::Relaxed) {
                    tracing::warn!("{text}");
                }
                Ok(None)
            }
        }
    }
}

/// Why a file gives no key.
#[derive(Debug, thiserror::Error)]
enum Problem {
    #[error("{0}")]
    Missing(io::Error),
    #[error("{0}")]
    Unreadable(#[from] io::Error),
    #[error("it is not a regular file")]
    NotAFile,
    #[error("others can read it (mode {0:04o}); run `chmod 600` on it")]
    Open(u32),
    #[error("it is too large for a key")]
    TooLarge,
    #[error("it is empty")]
    Empty,
    #[error("it is not text")]
    NotText,
    #[error(transparent)]
    NotAKey(Error),
}

/// What is checked is what is read: the descriptor is asked, not the path. Symbolic links are
/// followed, as secrets in containers are links; the mode is that of the file behind.
fn read_key(path: &Path) -> Result<ApiKey, Problem> {
    // Not blocking: opening a FIFO would otherwise wait for a writer for ever.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let descriptor: OwnedFd = rustix::fs::open(path, flags, Mode::empty()).map_err(|errno| {
        let error = io::Error::from(errno);
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Problem::Missing(error),
            _ => Problem::Unreadable(error),
        }
    })?;
    let file = File::from(descriptor);
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(Problem::NotAFile);
    }
    let mode = metadata.permissions().mode() & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Problem::Open(mode));
    }
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(Problem::TooLarge);
    }
    let text = std::str::from_utf8(&bytes).map_err(|_| Problem::NotText)?;
    if text.trim().is_empty() {
        return Err(Problem::Empty);
    }
    ApiKey::new(text).map_err(Problem::NotAKey)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn file(path: &Path, bytes: &[u8]) {
        fs::write(path, bytes).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_without_waiting() {
        let scratch = tempfile::tempdir().unwrap();
        assert!(matches!(read_key(scratch.path()), Err(Problem::NotAFile)));
        let fifo = scratch.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            Mode::RUSR | Mode::WUSR,
            0,
        )
        .unwrap();
        assert!(matches!(read_key(&fifo), Err(Problem::NotAFile)));
    }

    #[test]
    fn a_link_is_followed_and_the_mode_is_that_of_the_file() {
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("target");
        let link = scratch.path().join("link");
        std::os::unix::fs::symlink(&target, &link).unwrap();
        file(&target, b"key\n");
        assert_eq!(read_key(&link).unwrap().expose(), "key");
        fs::set_permissions(&target, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read_key(&link), Err(Problem::Open(0o644))));
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("key");
        file(&path, b"\xff\xfe");
        assert!(matches!(read_key(&path), Err(Problem::NotText)));
        file(&path, b"one\ntwo\n");
        assert!(matches!(read_key(&path), Err(Problem::NotAKey(_))));
        file(&path, &vec![b'x'; 1 << 20]);
        assert!(matches!(read_key(&path), Err(Problem::TooLarge)));
    }
}
