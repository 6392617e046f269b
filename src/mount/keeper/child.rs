//! A daemon as its keeper sees it: started, prepared, serving, ended.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open};
use serde::{Deserialize, Serialize};

use super::link::{Held, Link, NUMBERS, PROTOCOL, ToDaemon, ToKeeper, ready};
use crate::fuse::Handshake;
use crate::mount::{Failure, MountError, Mounted, Result};
use crate::paths;

/// Between two looks at something that happens at once.
const MOMENT: Duration = Duration::from_millis(1);

/// How a daemon is started.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Invocation {
    /// The arguments that lead the program to [`crate::mount::background::Supervisor::take_over`].
    pub arguments: Vec<OsString>,
    /// Where relative paths in the arguments begin. Never entered: it may be the mountpoint.
    pub directory: PathBuf,
}

/// The program's file, held open: what is started again is what was started before, whatever has
/// been installed at its path meanwhile.
#[derive(Debug)]
pub(super) struct Program {
    file: File,
    pub(super) path: PathBuf,
}

impl Program {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // Not blocking: a pipe would be waited for.
        let flags = OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// The program that this process runs.
    pub(super) fn running(path: &Path) -> io::Result<Self> {
        Ok(Self {
            file: File::open("/proc/self/exe")?,
            path: path.to_owned(),
        })
    }

    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        command.arg0(&self.path);
        command
    }
}

/// A daemon; killed on drop.
///
/// A thread that waits in the kernel, for a disk that hangs, cannot be killed, and a process has not
/// ended before its last thread has. So the end of a daemon is not waited for when it must be ended:
/// what counts is that it takes no more requests.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    /// Readable when it has ended.
    pidfd: OwnedFd,
    link: Link,
    /// The program's version.
    pub(super) version: String,
    /// Whether it knows what standing by is, and whether it does.
    can_stand_by: bool,
    stands_by: bool,
    /// Since when it serves.
    pub(super) since: Instant,
}

/// What happens while a daemon is waited for that ends the waiting.
pub(super) trait Interrupt {
    /// Readable when it is time to give up.
    fn descriptor(&self) -> BorrowedFd<'_>;
}

impl Daemon {
    /// Starts a daemon and waits until it is ready to serve.
    ///
    /// # Errors
    ///
    /// The daemon's own failure, or that it said nothing within `patience`, or that it died, or
    /// that something else came up. It is gone then.
    pub(super) fn prepare(
        program: &Program,
        invocation: &Invocation,
        patience: Duration,
        interrupt: &impl Interrupt,
    ) -> Result<Self> {
        let (link, theirs) = Link::pair().map_err(|e| MountError::io("a socket pair", e))?;
        let hello = ToDaemon::Hello {
            protocol: PROTOCOL,
            numbers: NUMBERS.to_owned(),
        };
        link.send(&hello, None)
            .map_err(|e| MountError::io("a socket pair", e))?;
        let mut command = program.command();
        command
            .args(&invocation.arguments)
            .env(paths::DIRECTORY, &invocation.directory)
            // Whoever enters a directory of the mount waits for the daemon that is to be started.
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null());
        let failed = |error| MountError::io(&program.path, error);
        let mut child = command.spawn().map_err(failed)?;
        // It holds the daemon's end: without this, the daemon's death would go unnoticed.
        drop(command);
        let pidfd = match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(errno) => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(failed(errno.into()));
            }
        };
        let mut daemon = Self {
            child,
            pidfd,
            link,
            version: String::new(),
            can_stand_by: false,
            stands_by: false,
            since: Instant::now(),
        };
        match daemon.hear(patience, interrupt)? {
            ToKeeper::Prepared { version, stands_by } => {
                daemon.version = version;
                daemon.can_stand_by = stands_by;
            }
            other => return Err(daemon.unexpected(other)),
        }
        Ok(daemon)
    }

    /// Hands it `mounted`, to be served once `former` has ended. If this process is killed from now on,
    /// that is still served. A daemon of an earlier version gets it only then.
    pub(super) fn stand_by(
        &mut self,
        mounted: &Mounted,
        handshake: Handshake,
        former: &Self,
    ) -> Result<()> {
        if self.can_stand_by {
            let held = ToDaemon::StandBy(Held::new(mounted, Some(handshake)));
            let sent = self
                .link
                .send(&ToDaemon::Former, Some(former.pidfd.as_fd()))
                .and_then(|()| self.link.send(&held, Some(mounted.as_fd())));
            sent.map_err(|e| MountError::io("the daemon", e))?;
            self.stands_by = true;
        }
        Ok(())
    }

    /// Lets it serve `mounted`, and waits until it does. What it agreed on with the kernel comes
    /// back when `handshake` was not there yet.
    pub(super) fn serve(
        &mut self,
        mounted: &Mounted,
        handshake: Option<Handshake>,
        patience: Duration,
        interrupt: &impl Interrupt,
    ) -> Result<Option<Handshake>> {
        let sent = if self.stands_by {
            self.link.send(&ToDaemon::Go, None)
        } else {
            let held = ToDaemon::Serve(Held::new(mounted, handshake));
            self.link.send(&held, Some(mounted.as_fd()))
        };
        sent.map_err(|e| MountError::io("the daemon", e))?;
        match self.hear(patience, interrupt)? {
            ToKeeper::Serving { handshake } => {
                self.since = Instant::now();
                Ok(handshake)
            }
            other => Err(self.unexpected(other)),
        }
    }

    fn hear(&mut self, patience: Duration, interrupt: &impl Interrupt) -> Result<ToKeeper> {
        let end = Instant::now() + patience;
        let waited = ready(
            [
                self.link.as_fd(),
                self.pidfd.as_fd(),
                interrupt.descriptor(),
            ],
            Some(end),
        );
        match waited.map_err(|e| MountError::io("the daemon", e))? {
            [true, _, _] => match self.message() {
                Some(message) => Ok(message),
                None => Err(self.died()),
            },
            [_, true, _] => Err(self.died()),
            [_, _, true] => Err(MountError::DaemonDied {
                status: "the mount is to end".to_owned(),
            }),
            _ => Err(MountError::TimedOut {
                what: "the background process".to_owned(),
                patience,
            }),
        }
    }

    /// The next message, if the daemon has one; `None` also if it has closed its end.
    pub(super) fn message(&self) -> Option<ToKeeper> {
        match ready([self.link.as_fd()], Some(Instant::now())) {
            Ok([true]) => self
                .link
                .receive()
                .ok()
                .flatten()
                .map(|(message, _)| message),
            _ => None,
        }
    }

    fn unexpected(&self, message: ToKeeper) -> MountError {
        MountError::Daemon(match message {
            ToKeeper::Failed(failure) => failure,
            other => Failure {
                message: format!("the background process said {other:?}"),
                hint: None,
                exit_code: 6,
            },
        })
    }

    fn died(&mut self) -> MountError {
        let status = self
            .wait(Duration::from_secs(1))
            .map_or("it closed its report".to_owned(), |s| s.to_string());
        MountError::DaemonDied { status }
    }

    /// Its process id.
    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable when the daemon has something to say; and when it is gone.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.link.as_fd(), self.pidfd.as_fd()]
    }

    /// How it ended, if it has.
    fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Waits for its end.
    pub(super) fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let _ = ready([self.pidfd.as_fd()], Some(Instant::now() + patience));
        self.status()
    }

    /// Has it end without unmounting, as [`Daemon::end`] does.
    pub(super) fn retire(mut self, patience: Duration) -> Option<HalfDead> {
        if self.link.send(&ToDaemon::Retire, None).is_ok() {
            self.wait(patience);
        }
        // What it had under way is asked for again.
        self.end()
    }

    /// Ends it in the way that cannot be refused. When this returns it takes no more requests.
    pub(super) fn end(mut self) -> Option<HalfDead> {
        self.kill();
        match self.status() {
            Some(_) => None,
            None => Some(HalfDead(self.child.id())),
        }
    }

    /// Makes it begin to end.
    pub(super) fn kill(&mut self) {
        if self.status().is_some() {
            return;
        }
        let _ = self.child.kill();
        let mut stuck = 0;
        // A thread that is to be killed never runs again. One that is in the kernel is done with
        // it at once, or waits there for something else than a request.
        while self.status().is_none() && stuck < 3 {
            let pid = self.child.id();
            let threads = threads(pid);
            let waits = |state: &u8| matches!(state, b'D' | b'Z' | b'X');
            stuck = if threads.iter().all(waits) {
                stuck + 1
            } else {
                0
            };
            std::thread::sleep(MOMENT);
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A daemon that takes no more requests, and ends when those are answered that it had taken.
#[derive(Debug)]
pub(super) struct HalfDead(u32);

impl HalfDead {
    /// Whether it has ended now.
    pub(super) fn has_ended(&self) -> bool {
        let pid = i32::try_from(self.0).ok().and_then(Pid::from_raw);
        let ended = rustix::process::waitpid(pid, WaitOptions::NOHANG);
        !matches!(ended, Ok(None))
    }
}

/// The states of a process's threads, as letters.
fn threads(pid: u32) -> Vec<u8> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task"));
    let entries = entries.into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let stat = std::fs::read(entry.path().join("stat")).ok()?;
            let name_end = stat.iter().rposition(|&byte| byte == b')')?;
            stat.get(name_end + 2).copied()
        })
        .collect()
}
