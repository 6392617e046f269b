//! Unmounting: our own mount from within, or any mount of ours by its path.
//!
//! umount(2) knows only paths, and what a path leads to may have changed. So a mount is looked up
//! by its number, the path is followed once more to see that it still leads there, and only then
//! unmounted. A lazy unmount goes through the descriptor of that very mount, which leaves no
//! moment in between; a plain one must go by path, since such a descriptor would keep it busy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use super::device::{self, Mounted};
use super::error::{MountError, Result};
use super::holders::{self, Holder};
use super::mountinfo::{Device, Located, Mount, MountTable, proc_path};
use super::touch;

/// How long a busy mount may take to prove that it is alive.
const PROBE: Duration = Duration::from_secs(2);

/// How long a mount may take to say that it is dead: that needs nobody's answer. One that is alive and
/// waits for its next daemon says nothing for as long, and that daemon waits for us.
const LAST_WORD: Duration = Duration::from_millis(200);

/// How often to try again while nobody is seen to use a busy mount, and how long to wait before.
const GLANCES: (u32, Duration) = (10, Duration::from_millis(50));

/// How hard to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// Only if nobody uses it.
    Plain,
    /// Takes it away from the tree now; who uses it may go on until they are done.
    Lazy,
    /// Fails every request that waits, and takes it away: for a daemon that does not answer.
    Force,
}

/// What unmounting came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unmounted {
    /// It is gone, or was gone already.
    Gone,
    /// It is out of the tree, but these were using it when it went.
    Detached(Vec<Holder>),
}

impl Mounted {
    /// Unmounts this mount, wherever it was moved to, and nothing else.
    ///
    /// # Errors
    ///
    /// [`MountError::Busy`] from [`How::Plain`]; [`MountError::Covered`] when another filesystem
    /// is mounted over it; [`MountError::UnmountDenied`].
    pub fn unmount(&self, how: How) -> Result<()> {
        if !self.is_connected() {
            return Ok(());
        }
        let table = read_table()?;
        let Some(mount) = self.row(&table) else {
            return Ok(());
        };
        match remove(mount, &table, how) {
            // Somebody else was faster.
            Err(MountError::NotOurs { .. }) if !self.is_current() => Ok(()),
            result => result,
        }
    }

    /// Unmounts this mount, lazily if it is in use.
    ///
    /// # Errors
    ///
    /// As [`Mounted::unmount`], without [`MountError::Busy`].
    pub fn unmount_or_detach(&self) -> Result<Unmounted> {
        match self.unmount(How::Plain) {
            Ok(()) => Ok(Unmounted::Gone),
            Err(MountError::Busy { holders, .. }) => {
                self.unmount(How::Lazy)?;
                Ok(Unmounted::Detached(holders))
            }
            Err(error) => Err(error),
        }
    }
}

/// Unmounts the mount of ours whose mountpoint is `dir`, living, stuck or dead, and returns its
/// path.
///
/// A dead mount is removed even if processes still hold files of it: they can do nothing with
/// them any more.
///
/// # Errors
///
/// [`MountError::NotOurs`] when nothing or something else is mounted there; [`MountError::Busy`]
/// with those who use it, from [`How::Plain`].
pub fn unmount_command(dir: &Path, how: How) -> Result<PathBuf> {
    let located = Located::find(dir).map_err(|e| MountError::io(dir, e))?;
    let table = read_table()?;
    let not_ours = |found: Option<&Mount>| MountError::NotOurs {
        path: dir.to_owned(),
        found: found.map(|mount| mount.fs_type.clone()),
    };
    let mount = match located.mounted_here(&table) {
        Some(mount) if mount.is_musherfs() => mount,
        other => return Err(not_ours(other)),
    };
    drop(located);
    match remove(mount, &table, how) {
        Err(MountError::Busy { .. }) if touch::is_dead(&mount.mountpoint, PROBE) => {
            remove(mount, &table, How::Lazy)?;
        }
        result => result?,
    }
    Ok(mount.mountpoint.clone())
}

fn read_table() -> Result<MountTable> {
    MountTable::read().map_err(|e| MountError::io("/proc/self/mountinfo", e))
}

/// Removes the mount of row `mount`, if its path still leads to it.
///
/// Who only had a look at it (an indexer, somebody's df) is gone in a moment, and keeps it busy
/// without being seen among those who use it: then it is tried again.
fn remove(mount: &Mount, table: &MountTable, how: How) -> Result<()> {
    for _ in 0..GLANCES.0 {
        match remove_now(mount, table, how) {
            Err(MountError::Busy { holders, .. }) if holders.is_empty() => {
                std::thread::sleep(GLANCES.1);
            }
            result => return result,
        }
    }
    remove_now(mount, table, how)
}

fn remove_now(mount: &Mount, table: &MountTable, how: How) -> Result<()> {
    let path = &mount.mountpoint;
    let located = Located::find(path).map_err(|e| MountError::io(path, e))?;
    if located.mount != mount.id.id {
        return Err(match located.mounted_here(table) {
            Some(other) if mount.id.id == other.parent => MountError::Covered {
                path: path.clone(),
                fs_type: other.fs_type.clone(),
            },
            other => MountError::NotOurs {
                path: path.clone(),
                found: other.map(|mount| mount.fs_type.clone()),
            },
        });
    }
    if how == How::Force {
        // The owner may do this without root, where fusectl is mounted; MNT_FORCE below does the
        // same, but only for root.
        let _ = fs::write(abort_file(mount.id.device), "1");
    }
    let result = match how {
        How::Plain => {
            drop(located);
            rustix::mount::unmount(path, UnmountFlags::NOFOLLOW)
        }
        How::Lazy => rustix::mount::unmount(proc_path(&located.fd), UnmountFlags::DETACH),
        How::Force => rustix::mount::unmount(
            proc_path(&located.fd),
            UnmountFlags::FORCE | UnmountFlags::DETACH,
        ),
    };
    match result {
        Ok(()) => Ok(()),
        Err(Errno::BUSY) => Err(busy(mount)),
        Err(Errno::PERM) => remove_as_user(mount, how),
        // Unmounted by somebody else between the look and the call.
        Err(Errno::INVAL) => Err(MountError::NotOurs {
            path: path.clone(),
            found: None,
        }),
        Err(errno) => Err(MountError::io(path, errno)),
    }
}

fn remove_as_user(mount: &Mount, how: How) -> Result<()> {
    let path = &mount.mountpoint;
    match device::unmount_as_user(path, how != How::Plain)? {
        Ok(()) => Ok(()),
        Err(message) if message.contains("busy") => Err(busy(mount)),
        Err(message) => Err(MountError::UnmountDenied {
            path: path.clone(),
            message: match mount.user_id() {
                Some(user) => format!("it was mounted by user {user} ({message})"),
                None => message,
            },
        }),
    }
}

/// Where the kernel takes commands about a connection, if the administrator mounted fusectl.
fn abort_file(device: Device) -> PathBuf {
    format!("/sys/fs/fuse/connections/{}/abort", device.minor).into()
}

fn busy(mount: &Mount) -> MountError {
    MountError::Busy {
        path: mount.mountpoint.clone(),
        holders: holders::of(mount),
    }
}

/// Removes what a daemon that had to be killed left behind on `dir`: only a mount of ours, and
/// only a dead one.
pub(super) fn clear_dead(dir: &Path, patience: Duration) -> io::Result<bool> {
    let located = Located::find(dir)?;
    let table = MountTable::read()?;
    let Some(mount) = located.mounted_here(&table).filter(|m| m.is_musherfs()) else {
        return Ok(false);
    };
    drop(located);
    let is_dead = touch::is_dead(dir, patience);
    if is_dead {
        remove(mount, &table, How::Lazy).map_err(io::Error::other)?;
    }
    Ok(is_dead)
}

/// Unmounts what is mounted on `dir` if it is a mount of ours that nobody serves or keeps any more;
/// whether it was. One that only has no daemon at this moment is left alone.
///
/// # Errors
///
/// When it could not be removed.
pub fn unmount_dead(dir: &Path) -> Result<bool> {
    clear_dead(dir, LAST_WORD).map_err(|error| MountError::io(dir, error))
}
