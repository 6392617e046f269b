//! What a service manager is told, if one started this process with `Type=notify`.
//!
//! ```text
//!  daemon ── READY=1, STOPPING=1 ──────────► service manager
//!    └─starts─► watcher: statfs of the mount ── WATCHDOG=1 ──►
//! ```
//!
//! The watchdog is fed by another process than the daemon, and only after the mount has answered a
//! statfs(2), which no cache answers: a daemon that runs but does not serve is not fed, and a thread
//! of the daemon that waited in its own mount could not be killed. Without a service manager nothing
//! here does anything.

use std::io;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Signal, set_parent_process_death_signal};
use sd_notify::NotifyState;
use tracing::{debug, warn};

use super::touch;

/// The hidden subcommand of the watcher: followed by the mountpoint and milliseconds.
pub const SUBCOMMAND: &str = "__watch";

/// What statfs(2) says about FUSE.
const FUSE_SUPER_MAGIC: i64 = 0x6573_5546;

/// Pause before a watcher that ended is started again.
const PAUSE: Duration = Duration::from_secs(1);

/// Tells that the mount serves, and starts the watcher if the service has a watchdog.
pub fn ready(dir: &Path) {
    tell(&[
        NotifyState::Ready,
        NotifyState::Status(&format!("serving {}", dir.display())),
    ]);
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let dir = dir.to_owned();
    // A thread of its own that never ends: the watcher dies with the thread that started it.
    let started = thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            loop {
                match start_watcher(&dir, limit).and_then(|mut watcher| watcher.wait()) {
                    Ok(status) => debug!(%status, "the watcher ended"),
                    Err(error) => warn!(%error, "the watcher cannot be started"),
                }
                thread::sleep(PAUSE);
            }
        });
    if let Err(error) = started {
        warn!(%error, "nobody feeds the watchdog");
    }
}

/// Tells that the mount is being removed.
pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        warn!(%error, "the service manager cannot be told");
    }
}

fn start_watcher(dir: &Path, limit: Duration) -> io::Result<Child> {
    touch::this_program()
        .arg(SUBCOMMAND)
        .arg(dir)
        .arg((limit / 3).as_millis().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}

/// The watcher: feeds the watchdog every `interval`, as long as the mount on `dir` answers.
///
/// # Errors
///
/// When the mount is gone or dead, or the service manager is.
pub fn watch(dir: &Path, interval: Duration) -> io::Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    loop {
        // May wait for as long as the mount is stuck: then nobody feeds the watchdog.
        if rustix::fs::statfs(dir)?.f_type != FUSE_SUPER_MAGIC {
            return Err(io::Error::other("nothing is mounted there"));
        }
        sd_notify::notify(&[NotifyState::Watchdog])?;
        thread::sleep(interval);
    }
}
