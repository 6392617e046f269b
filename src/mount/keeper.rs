//! The process that a mount lives in, while the daemons that serve it come and go.
//!
//! ```text
//!  musherfs mount ──starts──► keeper ──starts──► daemon     prepares: settings, cache, journal
//!                              │ mounts             │
//!                              │──── /dev/fuse ────►│       serves
//!                              │                    ✗       dies, however it dies
//!                              │──starts──► daemon  │
//!                              │──── /dev/fuse ────►│       goes on with the same connection
//! ```
//!
//! As long as somebody has the descriptor open the mount lives, and requests wait. So the keeper
//! holds it and does nothing else that could fail: one thread, no network, no runtime, no request is
//! ever answered here. What it promises:
//!
//! * A daemon that dies is replaced at once; if one after the other dies young, ever later, up to
//!   [`Timing::most_delay`]. One that does not answer statfs(2) is killed, and so replaced. Readers
//!   see a pause.
//! * A daemon is replaced by another program ([`super::upgrade`], SIGHUP) only when that one says
//!   that it is prepared; and if it then fails, the former one is started again.
//! * SIGTERM and SIGINT, here or to the daemon, unmount; a mount that cannot be removed is served on
//!   until the second one. When the mount is gone, so is the keeper.
//! * If the keeper itself is killed, the daemon goes on, and nobody replaces it. While one takes over
//!   from another, one of them does: the next has the descriptor before the former is to retire.
//!
//! No thread of the keeper ever waits in the mount: see [`probe`].

mod child;
mod door;
mod link;
pub mod probe;
mod succession;
mod ward;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::background::Starter;
use super::error::{Failure, MountError, Result};
use super::unmount::{self, How, Unmounted};
use super::{MountOptions, MountPoint, Mounted, mount};
use crate::fuse::Handshake;
pub use child::Invocation;
use child::{Daemon, HalfDead, Interrupt, Program};
use door::Door;
pub(crate) use door::Request;
pub(crate) use door::ask as ask_door;
pub use door::{Kept, find};
use link::ToKeeper;
pub(crate) use link::{Held, Link, NUMBERS};
use succession::{Daemons, Succession};
pub use ward::{Given, Order, Orders, Serving, Ward};

/// What a keeper is told by whoever starts it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Where to mount; a path need not be UTF-8.
    pub dir: std::ffi::OsString,
    /// How.
    pub options: MountOptions,
    /// Whether the directory says that nothing is mounted when nothing is.
    pub marker: bool,
    /// Where the program is installed: what an upgrade starts.
    pub program: PathBuf,
    /// How its daemons are started.
    pub invocation: Invocation,
    /// Where the keeper's socket goes; `None` for none, and no upgrades then.
    pub runtime_dir: Option<PathBuf>,
    /// How patient it is.
    pub timing: Timing,
}

/// How patient a keeper is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    /// How long a daemon may take to be prepared, or to serve, when nobody else serves.
    pub patience: Duration,
    /// How long another program's daemon may take while the former one serves.
    pub upgrade: Duration,
    /// How often the mount is asked whether it answers.
    pub probe: Duration,
    /// After how long without an answer the daemon is replaced.
    pub stuck: Duration,
    /// A daemon that has served for less died young.
    pub well: Duration,
    /// The longest pause between two attempts.
    pub most_delay: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            patience: Duration::from_secs(20),
            upgrade: Duration::from_secs(5),
            probe: Duration::from_secs(15),
            stuck: Duration::from_secs(30),
            well: Duration::from_millis(300),
            most_delay: Duration::from_secs(5),
        }
    }
}

/// So many daemons that die young, one after the other, are still replaced at once.
const AT_ONCE: u32 = 3;

/// The pause after the next one, which doubles from there.
const FIRST_DELAY: Duration = Duration::from_millis(20);

/// How long a daemon may take to end when it is told to, before it is killed.
const FAREWELL: Duration = Duration::from_secs(1);

/// How often daemons that are about to end are looked at.
const BURIAL: Duration = Duration::from_millis(100);

/// How long those who still use a detached mount are served.
const GRACE: Duration = Duration::from_secs(5);

/// How long a mount whose connection has ended may take to say so.
const DEAD: Duration = Duration::from_secs(2);

/// The signals that a keeper acts on, as a descriptor.
#[derive(Debug)]
pub struct Signals(SignalFd);

impl Signals {
    /// SIGTERM, SIGINT and SIGHUP no longer end the process. To be called before there are threads,
    /// which would be ended by them still.
    ///
    /// # Errors
    ///
    /// When there is no descriptor left.
    pub fn block() -> io::Result<Self> {
        let set: SigSet = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]
            .into_iter()
            .collect();
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags)?))
    }

    /// A daemon is started with its keeper's signals blocked. To be called before there are threads.
    pub(super) fn unblock() {
        let _ = SigSet::all().thread_unblock();
    }

    /// The next one that came.
    fn next(&self) -> Option<Signal> {
        let info = self.0.read_signal().ok().flatten()?;
        Signal::try_from(i32::try_from(info.ssi_signo).ok()?).ok()
    }
}

/// A signal ends the waiting for a daemon; it stays to be read.
impl Interrupt for Signals {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How an upgrade ended well.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    /// The new daemon's process id.
    pub pid: u32,
    /// The version that served before.
    pub from: String,
    /// The version that serves now.
    pub to: String,
}

/// Mounts, tells the starter, and keeps the mount until it is gone.
///
/// # Errors
///
/// Why it could not be mounted or served at first (the starter has been told), or why the mount
/// could not be removed in the end.
pub fn run(plan: Plan, starter: Starter, signals: Signals) -> Result<()> {
    // While there is nothing to wait for yet: it may have been started in what is to be mounted on.
    rustix::process::chdir("/").map_err(|error| MountError::io("/", error))?;
    match Keeper::start(plan, signals) {
        Ok(mut keeper) => match starter.ready(&keeper.turn.mounted) {
            Ok(()) => keeper.keep(),
            Err(error) => {
                warn!(%error, "whoever started this is gone: unmounting");
                keeper.insisted = true;
                keeper.stop("the starter's end").map(drop)
            }
        },
        Err(error) => {
            let _ = starter.failed(Failure::from(&error));
            Err(error)
        }
    }
}

struct Keeper {
    timing: Timing,
    invocation: Invocation,
    program: Program,
    installed: PathBuf,
    turn: Turn,
    /// While none serves, the next one is started at [`Keeper::due`].
    daemons: Succession<Turn>,
    due: Instant,
    /// How many daemons in a row have died young, or were never prepared.
    young: u32,
    restarts: u64,
    probe: probe::Probe,
    door: Option<Door>,
    runtime_dir: Option<PathBuf>,
    /// Whether the next word to stop is the last one, as the mount could not be removed before.
    insisted: bool,
}

fn open_door(runtime_dir: &Path) -> Option<Door> {
    let opened = Door::open(runtime_dir).inspect_err(
        |error| warn!(%error, "no socket: `musherfs upgrade` will not find this mount"),
    );
    opened.ok()
}

/// What daemons need to take turns at the mount.
struct Turn {
    mounted: Mounted,
    handshake: Handshake,
    signals: Signals,
    /// How long the next one may take to serve.
    patience: Duration,
}

impl Daemons for Turn {
    type Daemon = Daemon;
    type HalfDead = HalfDead;
    type Failure = MountError;

    fn stand_by(&self, daemon: &mut Daemon, former: &Daemon) -> Result<()> {
        daemon.stand_by(&self.mounted, self.handshake, former)
    }

    fn serve(&self, daemon: &mut Daemon) -> Result<()> {
        let handshake = Some(self.handshake);
        daemon.serve(&self.mounted, handshake, self.patience, &self.signals)?;
        Ok(())
    }

    fn retire(&self, daemon: Daemon) -> Option<HalfDead> {
        daemon.retire(FAREWELL)
    }

    fn end(&self, daemon: Daemon) -> Option<HalfDead> {
        daemon.end()
    }

    fn has_ended(&self, daemon: &HalfDead) -> bool {
        daemon.has_ended()
    }

    fn resend(&self) {
        if let Err(error) = super::resume::resend(&self.mounted) {
            warn!(%error, "requests cannot be repeated");
        }
    }
}

/// What a turn of the loop was about.
enum Event {
    Signal(Signal),
    Visitor,
    Daemon,
    Time,
}

impl Keeper {
    fn start(plan: Plan, signals: Signals) -> Result<Self> {
        let timing = plan.timing;
        let program = Program::running(&plan.program)
            .map_err(|error| MountError::io("/proc/self/exe", error))?;
        // First, so that wrong settings are found before anything is made. A daemon that is not wanted
        // after all is ended.
        let mut daemon = Daemon::prepare(&program, &plan.invocation, timing.patience, &signals)?;
        let point = MountPoint::prepare(Path::new(&plan.dir))?;
        if plan.marker {
            point.mark()?;
        }
        let mounted = mount(&point, &plan.options)?;
        let served = daemon
            .serve(&mounted, None, timing.patience, &signals)
            .and_then(|handshake| {
                handshake.ok_or_else(|| MountError::Session {
                    path: mounted.dir().to_owned(),
                    source: io::Error::other("the daemon does not tell what it agreed on"),
                })
            });
        let handshake = match served {
            Ok(handshake) => handshake,
            Err(error) => {
                daemon.kill();
                if let Err(left) = mounted.unmount(How::Force) {
                    warn!(%left, "a dead mount stays behind");
                }
                return Err(error);
            }
        };
        point.keep();
        let door = plan.runtime_dir.as_deref().and_then(open_door);
        info!(dir = %mounted.dir().display(), daemon = daemon.pid(), "mounted");
        Ok(Self {
            timing,
            invocation: plan.invocation,
            program,
            installed: plan.program,
            turn: Turn {
                mounted,
                handshake,
                signals,
                patience: timing.patience,
            },
            daemons: Succession::of(daemon),
            due: Instant::now(),
            young: 0,
            restarts: 0,
            probe: probe::Probe::new(timing.probe),
            door,
            runtime_dir: plan.runtime_dir,
            insisted: false,
        })
    }

    /// The loop: until the mount is gone.
    fn keep(mut self) -> Result<()> {
        loop {
            match self.wait()? {
                Event::Signal(Signal::SIGHUP) => {
                    let installed = self.installed.clone();
                    match self.upgrade(&installed) {
                        Ok(done) => info!(from = done.from, to = done.to, "upgraded"),
                        Err(failure) => warn!(failure.message, "not upgraded"),
                    }
                }
                Event::Signal(signal) => {
                    if self.stop(signal.as_str())? {
                        return Ok(());
                    }
                }
                Event::Visitor => self.receive_visitor(),
                Event::Daemon => {
                    if let Some(signal) = self.hear_daemon()
                        && self.stop(&signal)?
                    {
                        return Ok(());
                    }
                }
                Event::Time => {}
            }
            if self.daemons.serving().is_none() && Instant::now() >= self.due {
                if !self.turn.mounted.is_connected() {
                    info!(dir = %self.turn.mounted.dir().display(), "unmounted");
                    self.clear();
                    return Ok(());
                }
                self.restart();
            }
            self.look_after();
            self.daemons.bury(&self.turn);
        }
    }

    fn wait(&self) -> Result<Event> {
        let due = match self.daemons.serving() {
            Some(_) if !self.daemons.is_settled() => Instant::now() + BURIAL,
            Some(_) => self.probe.due(),
            None => self.due,
        };
        let signals = self.turn.signals.0.as_fd();
        let door = self.door.as_ref().map_or(signals, Door::descriptor);
        let [link, pidfd] = match self.daemons.serving() {
            Some(daemon) => daemon.descriptors(),
            None => [signals; 2],
        };
        let ready = link::ready([signals, door, link, pidfd], Some(due))
            .map_err(|error| MountError::io("poll", error))?;
        Ok(match ready {
            [true, ..] => self.turn.signals.next().map_or(Event::Time, Event::Signal),
            [_, true, ..] => Event::Visitor,
            [_, _, false, false] => Event::Time,
            _ => Event::Daemon,
        })
    }

    /// What the daemon says, if it says anything; and its end. Returns why it wants to stop.
    fn hear_daemon(&mut self) -> Option<String> {
        match self.daemons.serving()?.message() {
            Some(ToKeeper::Stop { signal }) => return Some(signal),
            Some(other) => {
                warn!(message = ?other, "an unexpected word from the daemon");
                return None;
            }
            None => {}
        }
        self.lose_daemon();
        None
    }

    /// Ends the daemon, if it has not ended, and has another one started.
    fn lose_daemon(&mut self) {
        let Some(daemon) = self.daemons.serving_mut() else {
            return;
        };
        // Whoever closes the conversation is about to end, and if not, is of no use any more.
        let status = daemon.wait(FAREWELL);
        let lived = daemon.since.elapsed();
        let pid = daemon.pid();
        self.daemons.dismiss(&self.turn);
        if let Some(door) = &self.door {
            door.clear_after(pid);
        }
        self.due = Instant::now();
        if self.turn.mounted.is_connected() {
            let delay = self.postpone(lived);
            let status = status.map_or("about to end".to_owned(), |s| s.to_string());
            warn!(pid, status, ?delay, "the daemon is gone; starting another");
        }
    }

    /// After a daemon that served for `lived`. Returns after how long the next one is started.
    fn postpone(&mut self, lived: Duration) -> Duration {
        self.young = if lived < self.timing.well {
            self.young.saturating_add(1)
        } else {
            0
        };
        let delay = match self.young {
            0..=AT_ONCE => Duration::ZERO,
            // Enough doublings for any delay.
            young => FIRST_DELAY * (1 << (young - AT_ONCE).min(16)),
        };
        let delay = delay.min(self.timing.most_delay);
        self.due = Instant::now() + delay;
        delay
    }

    fn restart(&mut self) {
        let timing = self.timing;
        self.turn.patience = timing.patience;
        let started = Daemon::prepare(
            &self.program,
            &self.invocation,
            timing.patience,
            &self.turn.signals,
        )
        .and_then(|daemon| {
            let pid = daemon.pid();
            self.daemons.follow(&self.turn, daemon)?;
            Ok(pid)
        });
        match started {
            Ok(pid) => {
                self.restarts += 1;
                info!(pid, "another daemon serves");
                self.probe.restart();
            }
            Err(error) => {
                let delay = self.postpone(Duration::ZERO);
                warn!(%error, ?delay, "cannot start a daemon; trying again");
            }
        }
    }

    /// Opens another door where this one is no longer found.
    fn mend_door(&mut self) {
        let is_lost = self.door.as_ref().is_some_and(|door| !door.is_in_place());
        // While nobody is logged in there is no place for one.
        let place = self.runtime_dir.as_deref();
        let place = place.filter(|dir| dir.parent().is_some_and(Path::is_dir));
        if let Some(dir) = place
            && (is_lost || self.door.is_none())
        {
            // First, so that it does not take the next one for its own.
            self.door = None;
            self.door = open_door(dir);
        }
    }

    /// Looks after the door, and replaces a daemon that does not answer.
    fn look_after(&mut self) {
        if !self.probe.takes_turn(Instant::now()) {
            return;
        }
        self.mend_door();
        let Some(daemon) = self.daemons.serving_mut() else {
            return;
        };
        // Out of the tree, but in use: there is no path to ask at.
        let Ok(table) = super::mountinfo::MountTable::read() else {
            return;
        };
        let Some(dir) = self
            .turn
            .mounted
            .row(&table)
            .map(|row| row.mountpoint.clone())
        else {
            return;
        };
        let limit = self.timing.stuck;
        if self.probe.is_stuck(&self.program, &dir, limit) {
            warn!(
                pid = daemon.pid(),
                ?limit,
                "the mount does not answer: killing the daemon"
            );
            daemon.kill();
            self.lose_daemon();
        }
    }

    /// Has the daemon of the program at `path` take over.
    fn upgrade(&mut self, path: &Path) -> Result<Upgraded, Failure> {
        let because = |message: String| Failure {
            message,
            hint: None,
            exit_code: 6,
        };
        if !self.turn.handshake.can_resend() {
            return Err(Failure {
                hint: Some("unmount, and mount with the new program".to_owned()),
                ..because(
                    "this kernel cannot hand requests over; Linux 6.9 or later can".to_owned(),
                )
            });
        }
        let program = Program::open(path)
            .map_err(|error| because(format!("cannot open {}: {error}", path.display())))?;
        let timing = self.timing;
        let signals = &self.turn.signals;
        let next = Daemon::prepare(&program, &self.invocation, timing.upgrade, signals)
            .map_err(|error| Failure::from(&error))?;
        let former = self.daemons.serving();
        let done = Upgraded {
            pid: next.pid(),
            from: former.map_or_else(String::new, |daemon| daemon.version.clone()),
            to: next.version.clone(),
        };
        // Should that fail, nobody may serve.
        self.due = Instant::now();
        self.turn.patience = timing.upgrade;
        self.daemons
            .follow(&self.turn, next)
            .map_err(|error| Failure::from(&error))?;
        self.program = program;
        self.installed = path.to_owned();
        self.young = 0;
        self.probe.restart();
        Ok(done)
    }

    fn receive_visitor(&mut self) {
        let Some(visit) = self.door.as_ref().and_then(Door::visitor) else {
            return;
        };
        match &visit.request {
            Request::Hello {} => {
                let kept = Kept {
                    dir: self.turn.mounted.dir().as_os_str().to_owned(),
                    keeper: std::process::id(),
                    daemon: self.daemons.serving().map(Daemon::pid),
                    version: self
                        .daemons
                        .serving()
                        .map_or_else(String::new, |daemon| daemon.version.clone()),
                    restarts: self.restarts,
                };
                visit.answer(&Ok::<_, Failure>(kept));
            }
            Request::Upgrade { program } => {
                let done = self.upgrade(&PathBuf::from(program));
                if let Err(failure) = &done {
                    warn!(failure.message, "not upgraded");
                }
                visit.answer(&done);
            }
        }
    }

    /// Unmounts, and has the daemon end; whether the keeper is to end, too.
    ///
    /// What cannot be unmounted (something is mounted over it, `fusermount3` is missing) is served on:
    /// without a daemon it would stay as well, dead. Whoever insists has it that way.
    fn stop(&mut self, signal: &str) -> Result<bool> {
        let dir = self.turn.mounted.dir().to_owned();
        info!(dir = %dir.display(), signal, "stopping");
        let gone = match self.turn.mounted.unmount_or_detach() {
            Ok(Unmounted::Gone) => true,
            Ok(Unmounted::Detached(holders)) => {
                for holder in &holders {
                    warn!(dir = %dir.display(), %holder, "still in use: detached");
                }
                false
            }
            Err(error) if self.insisted => {
                warn!(%error, "cannot unmount: it stays behind, dead");
                return Err(error);
            }
            Err(error) => {
                warn!(%error, "cannot unmount, so going on; another signal ends it all the same");
                self.insisted = true;
                return Ok(false);
            }
        };
        let end = Instant::now() + GRACE;
        if let Some(daemon) = self.daemons.serving_mut() {
            if gone {
                daemon.wait(GRACE);
            } else {
                // A second signal ends the waiting.
                let [_, pidfd] = daemon.descriptors();
                let _ = link::ready([pidfd, self.turn.signals.0.as_fd()], Some(end));
            }
        }
        Ok(true)
    }

    /// A connection that was aborted leaves its mount behind, dead.
    fn clear(&self) {
        let table = super::mountinfo::MountTable::read().unwrap_or_default();
        if let Some(row) = self.turn.mounted.row(&table)
            && let Err(error) = unmount::clear_dead(&row.mountpoint, DEAD)
        {
            warn!(%error, "a dead mount stays behind");
        }
    }
}
