//! A keeper's socket: who asks for the mounts that are kept, and for upgrades.
//!
//! One line of JSON each way, over a Unix socket in a directory that only this user may enter. The
//! kernel tells who asks: somebody else than this user or root gets no answer.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::mount::control::client::private_files;
use crate::mount::{Failure, background};
use crate::paths::ensure_private_dir;

/// Below the runtime directory, beside the daemons' control sockets.
const FOLDER: &str = "musherfs";

/// What tells a keeper's socket from others there.
const EXTENSION: &str = "keeper";

/// How long a visitor may take to ask, from the first word to the last.
const ASKING: Duration = Duration::from_secs(1);

/// What can be asked. As between keeper and daemon, later versions only add.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Which mount is kept: answered with [`Kept`].
    Hello {},
    /// Have another program serve it: answered with [`super::Upgraded`].
    Upgrade { program: OsString },
}

/// A mount that is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Where.
    pub dir: OsString,
    /// The keeper's process id.
    pub keeper: u32,
    /// The daemon's, if one serves at this moment.
    pub daemon: Option<u32>,
    /// The daemon's version.
    pub version: String,
    /// How many daemons were replaced because they had died.
    pub restarts: u64,
}

/// The socket; its file goes with it.
#[derive(Debug)]
pub(super) struct Door {
    listener: UnixListener,
    path: PathBuf,
    /// Which file that is: device and number.
    file: (u64, u64),
}

impl Door {
    pub(super) fn open(runtime_dir: &Path) -> Result<Self, Error> {
        let dir = runtime_dir.join(FOLDER);
        ensure_private_dir(&dir)?;
        let path = dir.join(format!("{}.{EXTENSION}", std::process::id()));
        // Left behind by an earlier process with our number.
        let _ = fs::remove_file(&path);
        let failed = |error| Error::io(&path, error);
        let listener = UnixListener::bind(&path).map_err(failed)?;
        fs::set_permissions(&path, Permissions::from_mode(0o600)).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let file = identity(&path).map_err(failed)?;
        Ok(Self {
            listener,
            path,
            file,
        })
    }

    /// Whether who looks for it finds it. The directory goes at the end of a user's last session, and
    /// another takes its place in the next.
    pub(super) fn is_in_place(&self) -> bool {
        identity(&self.path).is_ok_and(|file| file == self.file)
    }

    /// Clears up after a daemon that had no time to: its control socket, and its word on what it
    /// served.
    pub(super) fn clear_after(&self, daemon: u32) {
        for kind in ["sock", "mount"] {
            let _ = fs::remove_file(self.path.with_file_name(format!("{daemon}.{kind}")));
        }
    }

    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Who waits at the door, if they may come in and ask for something that makes sense.
    pub(super) fn visitor(&self) -> Option<Visit> {
        let (stream, _) = self.listener.accept().ok()?;
        let visit = Visit::new(stream);
        visit
            .inspect_err(|error| tracing::warn!(%error, "a visitor was turned away"))
            .ok()
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        if self.is_in_place() {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Somebody who waits for an answer.
#[derive(Debug)]
pub(super) struct Visit {
    stream: UnixStream,
    pub(super) request: Request,
}

impl Visit {
    fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_write_timeout(Some(ASKING))?;
        let asking = rustix::net::sockopt::socket_peercred(&stream)?.uid;
        if !asking.is_root() && asking != rustix::process::geteuid() {
            return Err(io::ErrorKind::PermissionDenied.into());
        }
        let request = read_line(&stream, ASKING)?;
        Ok(Self { stream, request })
    }

    pub(super) fn answer(mut self, answer: &Result<impl Serialize, Failure>) {
        if let Err(error) = write_line(&mut self.stream, answer) {
            tracing::debug!(%error, "a visitor did not wait for the answer");
        }
    }
}

/// Asks the keeper behind `socket`, which may take `patience`.
///
/// # Errors
///
/// The inner one is the keeper's.
pub(crate) fn ask<T: DeserializeOwned>(
    socket: &Path,
    request: &Request,
    patience: Duration,
) -> io::Result<Result<T, Failure>> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_write_timeout(Some(ASKING))?;
    write_line(&mut stream, request)?;
    read_line(&stream, patience)
}

/// The sockets of this user's keepers, and what they keep. Those of the dead are removed.
///
/// # Errors
///
/// When the directory is there and cannot be read, or is not this user's alone.
pub fn find(runtime_dir: &Path) -> io::Result<Vec<(PathBuf, Kept)>> {
    let mut found = Vec::new();
    for (path, _) in private_files(&runtime_dir.join(FOLDER), EXTENSION)? {
        // A keeper that is starting a daemon answers when it has.
        match ask::<Kept>(&path, &Request::Hello {}, Duration::from_secs(10)) {
            Ok(Ok(kept)) => found.push((path, kept)),
            Ok(Err(failure)) => tracing::warn!(failure.message, "a keeper does not answer"),
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let _ = fs::remove_file(&path);
            }
            Err(error) => tracing::warn!(socket = %path.display(), %error, "no answer"),
        }
    }
    found.sort_by(|a, b| a.1.dir.cmp(&b.1.dir));
    Ok(found)
}

fn write_line(stream: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    stream.write_all(&line)
}

/// All of it within `patience`: nobody else is heard meanwhile.
fn read_line<T: DeserializeOwned>(stream: &UnixStream, patience: Duration) -> io::Result<T> {
    let mut line = Vec::new();
    background::read_line(stream, Instant::now() + patience, &mut line)?;
    if line.is_empty() {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use rustix::process::{Gid, Uid};

    use super::*;

    fn await_visitor(door: &Door) -> Option<Visit> {
        super::super::link::ready([door.descriptor()], None).unwrap();
        door.visitor()
    }

    #[test]
    fn a_visitor_who_trickles_is_turned_away() {
        let dir = tempfile::tempdir().unwrap();
        let door = Door::open(dir.path()).unwrap();
        let path = door.path.clone();
        let (release, released) = mpsc::channel::<()>();
        let visitor = std::thread::spawn(move || {
            let mut stream = UnixStream::connect(path).unwrap();
            let pause = Duration::from_millis(50);
            for _ in 0..200 {
                let is_over = released.recv_timeout(pause).is_ok();
                if is_over || stream.write_all(b" ").is_err() {
                    return true;
                }
            }
            false
        });
        assert!(await_visitor(&door).is_none());
        let _ = release.send(());
        assert!(visitor.join().unwrap(), "it was heard to the end");
    }

    #[test]
    fn another_user_is_turned_away() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let door = Door::open(dir.path()).unwrap();
        // Were they let in at all.
        let folder = door.path.parent().unwrap();
        for path in [dir.path(), folder, door.path.as_path()] {
            fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
        }
        for (user, is_welcome) in [(65534, false), (0, true)] {
            let path = door.path.clone();
            let visitor = std::thread::spawn(move || {
                // Of this thread only.
                let group = Some(Gid::from_raw(user));
                rustix::thread::set_thread_res_gid(group, group, group).unwrap();
                let user = Some(Uid::from_raw(user));
                rustix::thread::set_thread_res_uid(user, user, user).unwrap();
                let mut stream = UnixStream::connect(path).unwrap();
                // Who is turned away may be so before a word.
                let _ = write_line(&mut stream, &Request::Hello {});
                stream
            });
            let visit = await_visitor(&door);
            assert_eq!(visit.is_some(), is_welcome, "{user}");
            drop(visitor.join().unwrap());
        }
    }

    #[test]
    fn a_door_knows_whether_it_is_in_its_place_and_spares_another_there() {
        let dir = tempfile::tempdir().unwrap();
        let door = Door::open(dir.path()).unwrap();
        assert!(door.is_in_place());
        fs::rename(&door.path, dir.path().join("elsewhere")).unwrap();
        assert!(!door.is_in_place());
        let other = UnixListener::bind(&door.path).unwrap();
        assert!(!door.is_in_place());
        let path = door.path.clone();
        drop(door);
        assert!(path.exists());
        drop(other);
    }
}
