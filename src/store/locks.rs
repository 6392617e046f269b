//! One download per digest across the processes of one user.
//!
//! An advisory `flock` on a file named after the digest, in a directory named after the cache,
//! under the state directory and never inside the cache, which other tools empty. The kernel drops
//! the locks of the dead. Locks are an optimisation: where they cannot be had, two processes fetch
//! the same blob, and both results are right.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::Duration;

use tracing::warn;

use crate::cache::key_of;
use crate::digest::Digest;
use crate::source::Deadline;
use crate::sync::{between, sleep};

/// First and longest pause between two attempts at a lock that somebody holds.
const PAUSES: (Duration, Duration) = (Duration::from_millis(4), Duration::from_millis(64));

/// The locks that belong to one cache.
pub struct Locks {
    dir: Option<PathBuf>,
    complained: Once,
}

/// A held lock; released, and its file removed, on drop.
#[derive(Debug)]
pub struct Held {
    path: PathBuf,
    file: File,
}

impl Drop for Held {
    fn drop(&mut self) {
        // Removed while still held: whoever opened the file before finds that it has no name any
        // more (see `attempt`) and starts over.
        let _ = fs::remove_file(&self.path);
        between();
        let _ = self.file.unlock();
    }
}

impl Locks {
    /// Locks below `state/locks/<the cache's key>/`; none at all without a state directory.
    pub fn new(state: Option<&Path>, cache_root: &Path) -> Self {
        Self {
            dir: state.map(|state| state.join("locks").join(key_of(cache_root))),
            complained: Once::new(),
        }
    }

    /// Waits for the lock of `digest`; `None` when the deadline passed or locks cannot be had.
    pub async fn acquire(&self, digest: Digest, deadline: Deadline) -> Option<Held> {
        let dir = self.dir.as_ref()?;
        let path = dir.join(digest.hex());
        let mut pause = PAUSES.0;
        loop {
            match attempt(&path) {
                Ok(Some(held)) => return Some(held),
                Ok(None) if deadline.is_over() => return None,
                Ok(None) => sleep(pause.min(deadline.remaining())).await,
                Err(error) => {
                    self.complained.call_once(|| {
                        warn!(path = %dir.display(), %error, "cannot lock; other processes may fetch the same blobs");
                    });
                    return None;
                }
            }
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Waits until nobody holds the lock of `digest`, or the deadline has passed. Costs one look
    /// where nobody does.
    pub async fn released(&self, digest: Digest, deadline: Deadline) {
        let Some(dir) = &self.dir else { return };
        let path = dir.join(digest.hex());
        let mut pause = PAUSES.0;
        while is_held(&path) && !deadline.is_over() {
            sleep(pause.min(deadline.remaining())).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

fn is_held(path: &Path) -> bool {
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NOFOLLOW);
    // Whoever tries to lock it in this very moment tries again.
    let file = options.open(path);
    between();
    file.is_ok_and(|file| {
        let locked = file.try_lock_shared();
        between();
        matches!(locked, Err(TryLockError::WouldBlock))
    })
}

/// Tries once; `None` if somebody else holds it.
fn attempt(path: &Path) -> io::Result<Option<Held>> {
    let open = || {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
    };
    let file = open().or_else(|error| match (error.kind(), path.parent()) {
        (io::ErrorKind::NotFound, Some(dir)) => {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)?;
            open()
        }
        _ => Err(error),
    })?;
    between();
    let locked = file.try_lock();
    between();
    match locked {
        // Its last holder removed it between our open and our lock.
        Ok(()) if file.metadata()?.nlink() == 0 => Ok(None),
        Ok(()) => Ok(Some(Held {
            path: path.to_owned(),
            file,
        })),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}
