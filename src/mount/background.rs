//! The daemon in the background, and the process that starts it and waits.
//!
//! ```text
//!  musherfs mount ──starts──► itself again: detach, mount, serve
//!        │                         │
//!        │ ◄──── one line of JSON: ready with its mount, or the failure
//!        │
//!        └─ touches the mount, sees it answer, only then exits 0
//! ```
//!
//! In the daemon, in this order: [`Starter::take_over`], the listening for signals, mounting and
//! serving, [`Starter::ready`] or [`Starter::failed`].
//!
//! The program starts itself again instead of forking: a fork copies one thread of many and
//! whatever locks the others hold. The report travels over a socket that is the daemon's standard
//! input until it has taken it away, since any other descriptor would need unsafe code to pass.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use super::device::Mounted;
use super::error::{Failure, MountError, Result};
use super::fdstore::Store;
use super::keeper::{self, Ward};
use super::mountinfo::{MountId, MountTable};
use super::{touch, unmount};

/// How long [`start`] waits by default for the mount to be ready. Mounting asks nobody, so this
/// is for a machine that is very busy.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How long a daemon that is not wanted any more may take to unmount before it is killed.
const FAREWELL: Duration = Duration::from_secs(5);

/// The longest report that is read.
const REPORT_LIMIT: u64 = 64 * 1024;

/// What the daemon tells its starter, once.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Report {
    Ready(MountId),
    Failed(Failure),
}

/// A daemon that serves, its mount seen to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Started {
    /// The daemon's process id.
    pub pid: u32,
    /// Where it is mounted, absolute.
    pub dir: PathBuf,
    /// Which mount it is.
    pub id: MountId,
    /// Whether the kernel was taught by [`touch::warm_up`] what need not be asked.
    pub warmed_up: bool,
}

/// Starts `program` (usually [`touch::this_program`]) with `args`, which must lead it to
/// [`Starter::take_over`], and waits until its mount has answered.
///
/// The daemon writes to this process's standard error until it is ready.
///
/// # Errors
///
/// [`MountError::Daemon`] with the daemon's own failure, [`MountError::DaemonDied`], or
/// [`MountError::TimedOut`] after `patience`. The daemon is ended then, and what it may have left
/// mounted is removed.
pub fn start<A: AsRef<OsStr>>(
    program: Command,
    args: impl IntoIterator<Item = A>,
    patience: Duration,
) -> Result<Started> {
    start_with(program, args, patience, b"")
}

/// Like [`start`], for a [`keeper`], which wants to be told its plan.
///
/// # Errors
///
/// As [`start`].
pub fn start_keeper<A: AsRef<OsStr>>(
    program: Command,
    args: impl IntoIterator<Item = A>,
    plan: &keeper::Plan,
    patience: Duration,
) -> Result<Started> {
    let mut line = serde_json::to_vec(plan).map_err(|e| MountError::io("the plan", e))?;
    line.push(b'\n');
    start_with(program, args, patience, &line)
}

fn start_with<A: AsRef<OsStr>>(
    mut program: Command,
    args: impl IntoIterator<Item = A>,
    patience: Duration,
    first_words: &[u8],
) -> Result<Started> {
    let end = Instant::now() + patience;
    let (mut ours, theirs) = UnixStream::pair().map_err(|e| MountError::io("a socket pair", e))?;
    // Few enough for the socket to take without a reader.
    ours.write_all(first_words)
        .map_err(|e| MountError::io("a socket pair", e))?;
    program
        .args(args)
        .stdin(OwnedFd::from(theirs))
        .stdout(Stdio::null());
    let child = program
        .spawn()
        .map_err(|e| MountError::io(program.get_program(), e))?;
    // The command holds the daemon's end too: without this, its death would go unnoticed.
    drop(program);
    let mut daemon = Daemon { child: Some(child) };

    let id = match daemon.report(ours, end, patience)? {
        Report::Failed(failure) => return Err(MountError::Daemon(failure)),
        Report::Ready(id) => id,
    };
    // Not from the report: a path need not be UTF-8.
    let table = MountTable::read().map_err(|e| MountError::io("/proc/self/mountinfo", e))?;
    let dir = match table.by_id(id.id) {
        Some(mount) if mount.id == id => mount.mountpoint.clone(),
        _ => {
            return Err(MountError::DaemonDied {
                status: "its mount was removed at once".to_owned(),
            });
        }
    };
    let left = |end: Instant| end.saturating_duration_since(Instant::now());
    let warmed_up = touch::warm_up_within(&dir, left(end) / 2);
    if let Err(error) = touch::wait_until_answered(&dir, id, left(end)) {
        daemon.end();
        // Whoever waits in a mount whose daemon is gone is released, and nobody else is harmed:
        // only a dead mount of ours is removed.
        let _ = unmount::clear_dead(&dir, FAREWELL);
        return Err(error);
    }
    Ok(Started {
        pid: daemon.release(),
        dir,
        id,
        warmed_up,
    })
}

/// The started process: ended on drop unless it was released.
#[derive(Debug)]
struct Daemon {
    child: Option<Child>,
}

impl Daemon {
    fn report(&mut self, socket: UnixStream, end: Instant, patience: Duration) -> Result<Report> {
        let mut line = Vec::new();
        let read = read_line(&socket, end, &mut line);
        let timed_out = || MountError::TimedOut {
            what: "the background process".to_owned(),
            patience,
        };
        match read {
            Err(error) if is_timeout(&error) => return Err(timed_out()),
            // A reset is an end too: the daemon died with something unread.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
                return Err(MountError::io("the background process", error));
            }
            _ => {}
        }
        serde_json::from_slice(&line).map_err(|_| {
            let status = self
                .wait(FAREWELL)
                .map_or("it closed its report".to_owned(), |s| s.to_string());
            MountError::DaemonDied { status }
        })
    }

    fn wait(&mut self, patience: Duration) -> Option<std::process::ExitStatus> {
        let child = self.child.as_mut()?;
        let end = Instant::now() + patience;
        loop {
            match child.try_wait() {
                Ok(Some(status)) => {
                    self.child = None;
                    return Some(status);
                }
                Ok(None) if Instant::now() < end => {
                    std::thread::sleep(Duration::from_millis(5));
                }
                _ => return None,
            }
        }
    }

    /// Asks it to unmount and end, then makes it.
    fn end(&mut self) {
        let Some(child) = self.child.as_ref() else {
            return;
        };
        if let Some(pid) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM);
        }
        if self.wait(FAREWELL).is_none()
            && let Some(mut child) = self.child.take()
        {
            let _ = child.kill();
            self.child = Some(child);
            // It does not end while it waits in a filesystem that hangs, and nobody else has to.
            self.wait(FAREWELL);
            self.child = None;
        }
    }

    fn release(mut self) -> u32 {
        self.child.take().map_or(0, |child| child.id())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.end();
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
    )
}

/// Reads up to a newline or the end, however slowly it comes, until `end`.
pub(super) fn read_line(socket: &UnixStream, end: Instant, line: &mut Vec<u8>) -> io::Result<()> {
    struct Until<'s>(&'s UnixStream, Instant);
    impl Read for Until<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let left = self.1.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.0.set_read_timeout(Some(left))?;
            self.0.read(buffer)
        }
    }
    let mut reader = BufReader::new(Until(socket, end)).take(REPORT_LIMIT);
    reader.read_until(b'\n', line)?;
    Ok(())
}

/// The daemon's view of the process that started it and waits for a word.
#[derive(Debug)]
pub struct Starter(UnixStream);

/// Who has started this daemon and is not a person.
#[derive(Debug)]
pub enum Supervisor {
    /// Somebody who waits for one word.
    Starter(Starter),
    /// Somebody who has the mount.
    Keeper(Ward),
    /// The service manager, which has the mount if one was made before.
    ServiceManager(Store),
}

impl Supervisor {
    /// To be called first thing in the daemon, before any thread.
    ///
    /// # Errors
    ///
    /// When it was started by neither of them.
    pub fn take_over() -> io::Result<Self> {
        be_known();
        match rustix::net::sockopt::socket_type(rustix::stdio::stdin())? {
            rustix::net::SocketType::SEQPACKET => Ward::take_over().map(Self::Keeper),
            _ => Starter::take_over().map(Self::Starter),
        }
    }

    /// Hands a failure over, to whomever it concerns; a supervisor that is gone does not care.
    pub fn failed(self, failure: Failure) {
        let _ = match self {
            Self::Starter(starter) => starter.failed(failure),
            Self::Keeper(ward) => ward.failed(failure),
            Self::ServiceManager(_) => Ok(()),
        };
    }
}

impl Starter {
    /// To be called first thing in the daemon, before any thread: leaves the terminal's session
    /// and takes the socket from the standard input, which is `/dev/null` from then on.
    ///
    /// # Errors
    ///
    /// When the process was not started by [`start`]: its standard input is no socket.
    pub fn take_over() -> io::Result<Self> {
        be_known();
        let stdin = rustix::stdio::stdin();
        let kind = rustix::net::sockopt::socket_type(stdin)?;
        if kind != rustix::net::SocketType::STREAM {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let socket = UnixStream::from(stdin.try_clone_to_owned()?);
        rustix::stdio::dup2_stdin(null()?.as_fd())?;
        // Fails only for the leader of a process group, which a started child is not; and a
        // daemon that stays in a session still serves.
        let _ = rustix::process::setsid();
        Ok(Self(socket))
    }

    /// What [`start_keeper`] has sent.
    ///
    /// # Errors
    ///
    /// When nothing comes soon that can be understood.
    pub fn plan(&self) -> io::Result<keeper::Plan> {
        let mut line = Vec::new();
        read_line(&self.0, Instant::now() + PATIENCE, &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }

    /// Tells that `mounted` is served, and lets go of what the starter's shell waits for: the
    /// standard error becomes `/dev/null` and the working directory `/`.
    ///
    /// # Errors
    ///
    /// When the starter is gone: nobody wants the mount any more, so unmount and end.
    pub fn ready(mut self, mounted: &Mounted) -> io::Result<()> {
        rustix::process::chdir("/")?;
        self.send(&Report::Ready(mounted.id()))?;
        let null = null()?;
        rustix::stdio::dup2_stdout(null.as_fd())?;
        rustix::stdio::dup2_stderr(null.as_fd())?;
        Ok(())
    }

    /// Hands a failure to the starter, which prints it and exits with its code.
    ///
    /// # Errors
    ///
    /// When the starter is gone.
    pub fn failed(mut self, failure: Failure) -> io::Result<()> {
        self.send(&Report::Failed(failure))
    }

    fn send(&mut self, report: &Report) -> io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        self.0.write_all(&line)
    }
}

/// Gives this process its name in lists of processes: one that is started from a descriptor is known
/// by that descriptor's number.
pub(super) fn be_known() {
    let _ = rustix::thread::set_name(c"musherfs");
}

pub(super) fn null() -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .open(Path::new("/dev/null"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, patience: Duration) -> Result<Started> {
        start(Command::new("/bin/sh"), ["-c", script], patience)
    }

    #[test]
    fn a_failure_reaches_the_starter_with_its_hint_and_code() {
        // The daemon's standard input is the socket, so it can be written to.
        let error = shell(
            r#"echo '{"failed":{"message":"no luck","hint":"try again","exit_code":4}}' >&0"#,
            PATIENCE,
        )
        .unwrap_err();
        assert_eq!(error.to_string(), "no luck");
        assert_eq!(error.hint().as_deref(), Some("try again"));
        assert_eq!(error.exit_code(), 4);
    }

    #[test]
    fn a_daemon_that_dies_silently_is_an_error() {
        let error = shell("exit 7", PATIENCE).unwrap_err();
        assert!(
            matches!(&error, MountError::DaemonDied { status } if status.contains('7')),
            "{error:?}"
        );
        assert_eq!(error.exit_code(), 6);
    }

    #[test]
    fn a_daemon_that_says_nothing_is_ended() {
        let error = shell("exec sleep 1000", Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, MountError::TimedOut { .. }), "{error:?}");
        assert_eq!(error.exit_code(), 5);
    }

    #[test]
    fn a_report_that_trickles_in_does_not_extend_the_wait() {
        let error = shell(
            "while :; do printf x >&0; sleep 0.01; done",
            Duration::from_millis(200),
        )
        .unwrap_err();
        assert!(matches!(error, MountError::TimedOut { .. }), "{error:?}");
    }
}
