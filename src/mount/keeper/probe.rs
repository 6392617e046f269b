//! Whether a mount answers, found out by a process that may get stuck.
//!
//! statfs(2) is never answered from a cache. Whoever waits for its answer cannot be killed, and
//! keeps all that it holds, so neither daemon nor keeper asks: then the last descriptor of a mount
//! that nobody serves would never be closed, and its readers never be released.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use super::child::Program;

/// The hidden subcommand: followed by the mountpoint, it must call [`ask`].
pub const SUBCOMMAND: &str = "__statfs";

/// Asks the filesystem on `dir` once; returns when it answers.
///
/// # Errors
///
/// What the filesystem or the kernel says.
pub fn ask(dir: &OsStr) -> io::Result<()> {
    super::super::background::be_known();
    rustix::fs::statfs(dir)?;
    Ok(())
}

/// Asks now and then.
#[derive(Debug)]
pub(super) struct Probe {
    interval: Duration,
    next: Instant,
    running: Option<(Child, Instant)>,
}

impl Probe {
    pub(super) fn new(interval: Duration) -> Self {
        Self {
            interval,
            next: Instant::now() + interval,
            running: None,
        }
    }

    /// When to look again.
    pub(super) fn due(&self) -> Instant {
        self.next
    }

    /// Whether it is time to look. Whoever is told so has had this turn, whatever comes of it: the
    /// next one is an interval away.
    pub(super) fn takes_turn(&mut self, now: Instant) -> bool {
        let is_due = now >= self.next;
        if is_due {
            self.next = now + self.interval;
        }
        is_due
    }

    /// Whether the mount on `dir` has not answered for `limit`. Starts a process if none is under
    /// way, and never waits.
    pub(super) fn is_stuck(&mut self, program: &Program, dir: &Path, limit: Duration) -> bool {
        let now = Instant::now();
        if let Some((child, since)) = &mut self.running {
            match child.try_wait() {
                Ok(None) => {
                    // It is not killed: it could not die, and ends with the answer.
                    return now.duration_since(*since) >= limit;
                }
                Ok(Some(_)) | Err(_) => self.running = None,
            }
        }
        let mut command = program.command();
        command
            .arg(SUBCOMMAND)
            .arg(dir)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        match command.spawn() {
            Ok(child) => self.running = Some((child, now)),
            Err(error) => tracing::debug!(%error, "cannot ask whether the mount answers"),
        }
        // Its end is noticed in good time, not only when the next one is due.
        false
    }

    /// Another daemon answers now: whoever waits gets as long again.
    pub(super) fn restart(&mut self) {
        let now = Instant::now();
        self.next = now + self.interval;
        if let Some((child, since)) = &mut self.running {
            match child.try_wait() {
                Ok(None) => *since = now,
                Ok(Some(_)) | Err(_) => self.running = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_is_taken_once() {
        let interval = Duration::from_secs(10);
        let mut probe = Probe::new(interval);
        let due = probe.due();
        assert!(!probe.takes_turn(due - Duration::from_secs(1)));
        assert_eq!(probe.due(), due);
        assert!(probe.takes_turn(due));
        assert!(!probe.takes_turn(due));
        assert_eq!(probe.due(), due + interval);
    }
}
