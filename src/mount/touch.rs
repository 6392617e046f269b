//! Touching a mount, from another process than the one that serves it.
//!
//! The kernel learns from the first answer that a request is not implemented and never sends it
//! again. [`warm_up`] makes it send each of them once right after mounting, before anything can
//! go wrong. All waiting here is bounded: it happens in a helper thread that is given up on.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::error::{MountError, Result};
use super::mountinfo::{Device, MountId};
use crate::config;

/// A file that every mount has and does not list.
pub const PROBE_FILE: &str = ".musherfs";

/// The hidden subcommand that a serving process starts to have its own mount touched: followed by
/// the mountpoint, it must call [`warm_up`].
pub const SUBCOMMAND: &str = "__touch";

/// The hidden subcommand that [`ask_elsewhere`] starts: followed by the mountpoint, it must exit
/// with [`probe`]'s code.
pub const PROBE_SUBCOMMAND: &str = "__probe";

/// The exit code of a probe that found a dead mount.
const DEAD: u8 = 3;

/// KiB that the kernel reads ahead; INIT cannot ask for more than the default 128.
const READ_AHEAD_KB: &str = "1024";

/// Runs `work` in a thread and waits no longer than `patience`; `None` if that was too short.
///
/// The thread is left behind then, and with it whatever it waits for.
pub(super) fn bounded<T: Send + 'static>(
    patience: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .name("bounded".to_owned())
        .spawn(move || sender.send(work()))
        .ok()?;
    receiver.recv_timeout(patience).ok()
}

/// Whether the daemon of the FUSE mount at `path` is gone. A mount that does not answer within
/// `patience` is stuck, not dead.
pub fn is_dead(path: &Path, patience: Duration) -> bool {
    let path = path.to_owned();
    // statfs(2) is never answered from a cache.
    let answer = bounded(patience, move || rustix::fs::statfs(&path).err());
    matches!(answer, Some(Some(Errno::NOTCONN | Errno::CONNABORTED)))
}

/// Whether a mount answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Liveness {
    /// It does.
    Alive,
    /// Its daemon is gone.
    Dead,
    /// It did not answer in time.
    Stuck,
}

/// Asks a mount for a statfs(2) and returns the exit code that tells [`ask_elsewhere`] the answer.
pub fn probe(dir: &Path) -> u8 {
    match rustix::fs::statfs(dir) {
        Err(Errno::NOTCONN | Errno::CONNABORTED) => DEAD,
        // Any other answer is one.
        _ => 0,
    }
}

/// Has another process ask the mount on `dir` whether it answers: `program` is usually
/// [`this_program`] and gets the arguments [`PROBE_SUBCOMMAND`] and `dir`.
///
/// A process that waits for a mount cannot end before it is answered. So this one must not wait:
/// what takes longer than `patience` is left behind. A mount that cannot be asked counts as stuck.
pub fn ask_elsewhere(mut program: Command, dir: &Path, patience: Duration) -> Liveness {
    let started = program
        .arg(PROBE_SUBCOMMAND)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = started else {
        return Liveness::Stuck;
    };
    let end = Instant::now() + patience;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.code() == Some(DEAD.into()) => return Liveness::Dead,
            Ok(Some(status)) if status.success() => return Liveness::Alive,
            Ok(None) if Instant::now() < end => std::thread::sleep(Duration::from_millis(3)),
            Ok(Some(_)) => return Liveness::Stuck,
            _ => {
                let _ = child.kill();
                std::thread::spawn(move || child.wait());
                return Liveness::Stuck;
            }
        }
    }
}

/// Waits until a stat of `dir` is answered by the filesystem `id`.
///
/// # Errors
///
/// [`MountError::TimedOut`], or the error that the mount answers.
pub fn wait_until_answered(dir: &Path, id: MountId, patience: Duration) -> Result<()> {
    let path = dir.to_owned();
    let answer = bounded(patience, move || fs::metadata(path)).ok_or(MountError::TimedOut {
        what: format!("the mount on {}", dir.display()),
        patience,
    })?;
    let metadata = answer.map_err(|e| MountError::io(dir, e))?;
    let device = Device {
        major: rustix::fs::major(metadata.dev()),
        minor: rustix::fs::minor(metadata.dev()),
    };
    if device == id.device {
        Ok(())
    } else {
        Err(MountError::Refused {
            path: dir.to_owned(),
            message: "the new mount was removed or covered at once".to_owned(),
        })
    }
}

/// Makes the kernel send every request once that our mounts answer with "not implemented": open,
/// flush, opendir, lseek, and the two for extended attributes.
///
/// Must not run in the process that serves the mount.
///
/// # Errors
///
/// When the probe file or the root cannot be read. The other answers are the kernel's business.
pub fn warm_up(dir: &Path) -> io::Result<()> {
    let path = dir.join(PROBE_FILE);
    let mut file = File::open(&path)?;
    io::copy(&mut (&mut file).take(64), &mut io::sink())?;
    let _ = rustix::fs::seek(&file, SeekFrom::Data(0));
    let mut value = [0_u8; 16];
    let _ = rustix::fs::getxattr(&path, "user.musher.state", &mut value[..]);
    let _ = rustix::fs::listxattr(&path, &mut value[..]);
    drop(file);
    // Opened only: listing it would ask the registry.
    File::open(dir)?;
    Ok(())
}

/// [`warm_up`] within `patience`; whether it succeeded.
pub fn warm_up_within(dir: &Path, patience: Duration) -> bool {
    let dir = dir.to_owned();
    matches!(bounded(patience, move || warm_up(&dir)), Some(Ok(())))
}

/// This program, to be started again as another process: still the same one after its file was
/// replaced. It has few [arenas](config::ARENAS).
pub fn this_program() -> Command {
    let mut command = Command::new("/proc/self/exe");
    std::os::unix::process::CommandExt::arg0(&mut command, "musherfs");
    if !config::has_arenas() {
        command.env(config::ARENAS.0, config::ARENAS.1);
    }
    command
}

/// Has another process warm up the mount on `dir`: `program` is usually [`this_program`] and gets
/// the arguments [`SUBCOMMAND`] and `dir`. Blocks until that process has ended; one that takes
/// longer than `patience` is killed, which ends it when what it waits for in the mount is answered.
/// So whenever this returns, the mount has answered, or is gone.
///
/// # Errors
///
/// When the process cannot be started, fails, or is killed. The mount works without, but a
/// request of a kind that the kernel has not learned yet would wait for a daemon that has died.
pub fn warm_up_elsewhere(mut program: Command, dir: &Path, patience: Duration) -> io::Result<()> {
    let mut child = program
        .arg(SUBCOMMAND)
        .arg(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let end = Instant::now() + patience;
    loop {
        if let Some(status) = child.try_wait()? {
            return if status.success() {
                Ok(())
            } else {
                Err(io::Error::other(format!("touching the mount: {status}")))
            };
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Err(io::ErrorKind::TimedOut.into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Lets the kernel read 1 MiB ahead in this filesystem instead of 128 KiB.
///
/// # Errors
///
/// When it may not be changed: only root may. Nothing else is lost then.
pub fn raise_readahead(id: MountId) -> io::Result<()> {
    let path = format!("/sys/class/bdi/{}/read_ahead_kb", id.device);
    fs::write(path, READ_AHEAD_KB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_too_long_is_given_up_on() {
        let (release, waits) = mpsc::channel::<()>();
        let answer = bounded(Duration::from_millis(20), move || waits.recv());
        assert!(answer.is_none());
        drop(release);
        assert_eq!(bounded(Duration::from_secs(60), || 7), Some(7));
    }

    #[test]
    fn a_living_filesystem_is_not_dead() {
        assert!(!is_dead(Path::new("/proc"), Duration::from_secs(60)));
        assert!(!is_dead(
            Path::new("/proc/nothing"),
            Duration::from_secs(60)
        ));
    }
}
