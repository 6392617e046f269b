//! Serving a mount, and knowing when to stop.

use std::io;
use std::thread;

use fuser::{Config, Filesystem, Notifier, Session, SessionACL};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Duration, timeout};
use tracing::{info, warn};

use super::device::{Mounted, mount};
use super::error::{MountError, Result};
use super::holders::Holder;
use super::keeper::{Order, Orders};
use super::unmount::{How, Unmounted};
use super::{MountOptions, MountPoint, fdstore};

/// How long those who still use a detached mount are served before the daemon ends: enough to
/// finish a read, short against what service managers wait before they kill.
const GRACE: Duration = Duration::from_secs(5);

/// A session that answers requests in its own threads.
///
/// It ends when the mount is gone: unmounted by whomever, or aborted. Dropping this neither
/// unmounts nor ends it.
#[derive(Debug)]
pub struct Serving {
    notifier: Notifier,
    ended: watch::Receiver<Option<Result<(), String>>>,
}

impl Serving {
    /// What tells the kernel to forget what it has cached.
    pub fn notifier(&self) -> Notifier {
        self.notifier.clone()
    }

    /// Waits until the session has ended.
    ///
    /// # Errors
    ///
    /// What went wrong, unless the mount was just unmounted or aborted: reading the device failed.
    pub async fn ended(&self) -> io::Result<()> {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(Ok(()))) => Ok(()),
            Ok(Some(Err(message))) => Err(io::Error::other(message.clone())),
            Ok(None) | Err(_) => Err(io::Error::other("the session's thread was lost")),
        }
    }
}

/// Starts to answer the requests of `mounted` from `filesystem`, which sees the kernel's INIT
/// before this returns.
///
/// Uses `threads` threads, two to four, that share one descriptor: a descriptor per thread
/// (`FUSE_DEV_IOC_CLONE`) would take the requests it has accepted along when a process dies.
/// Access is left to the kernel: `default_permissions`, and no `allow_other` unless asked for.
///
/// # Errors
///
/// [`MountError::Session`] if the handshake fails; the mount is still there then.
pub fn serve<F: Filesystem>(mounted: &Mounted, filesystem: F, threads: usize) -> Result<Serving> {
    let failed = |source| MountError::Session {
        path: mounted.dir().to_owned(),
        source,
    };
    let fd = mounted.duplicate().map_err(failed)?;
    let session = Session::from_fd(filesystem, fd, SessionACL::All, config(threads));
    run(session.map_err(failed)?).map_err(failed)
}

pub(super) fn config(threads: usize) -> Config {
    let mut config = Config::default();
    config.acl = SessionACL::All;
    config.n_threads = Some(threads.clamp(2, 4));
    config
}

/// Answers requests in threads from now on.
pub(super) fn run<F: Filesystem>(session: Session<F>) -> io::Result<Serving> {
    let notifier = session.notifier();
    let (sender, ended) = watch::channel(None);
    thread::Builder::new()
        .name("fuse-session".to_owned())
        .spawn(move || {
            let result = session.run().map_err(|error| error.to_string());
            sender.send_replace(Some(result));
        })?;
    Ok(Serving { notifier, ended })
}

/// [`mount`] and [`serve`], leaving nothing mounted when either fails.
///
/// # Errors
///
/// Those of the two.
pub fn mount_and_serve<F: Filesystem>(
    point: &MountPoint,
    options: &MountOptions,
    filesystem: F,
    threads: usize,
) -> Result<(Mounted, Serving)> {
    let mounted = mount(point, options)?;
    match serve(&mounted, filesystem, threads) {
        Ok(serving) => Ok((mounted, serving)),
        Err(error) => {
            if let Err(left) = mounted.unmount(How::Force) {
                warn!(%left, "a dead mount stays behind");
            }
            Err(error)
        }
    }
}

/// The signals that end a daemon. Create it before mounting: from then on such a signal no longer
/// kills the process, which would leave a dead mount behind.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    ignore_hangup: bool,
}

impl StopSignals {
    /// SIGTERM and SIGINT stop; SIGHUP stops too, unless the process is in the background, where
    /// it is ignored. Must be called within a Tokio runtime.
    ///
    /// # Errors
    ///
    /// When the handlers cannot be installed.
    pub fn listen(in_background: bool) -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            ignore_hangup: in_background,
        })
    }

    /// Waits for the next one and returns its name.
    pub async fn next(&mut self) -> &'static str {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                _ = self.hangup.recv() => if !self.ignore_hangup { return "SIGHUP" },
            }
        }
    }
}

/// Why a daemon came to its end; all of these are success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Somebody else unmounted it.
    UnmountedOutside,
    /// A signal came, and it is unmounted.
    Unmounted,
    /// A signal came while these were using it. The mount is out of the tree; what they still
    /// hold fails as soon as this process ends.
    Detached(Vec<Holder>),
    /// Somebody else serves the mount from now on.
    Retired,
}

/// Keeps a mount until it is unmounted from outside or a signal asks to stop; then unmounts it,
/// lazily if it is in use, after saying who uses it. The mount is gone when this returns, also
/// with most errors; a second signal ends the waiting for those who use it.
///
/// # Errors
///
/// [`MountError::Session`] if the session failed; else why the mount could not be removed.
pub async fn stay(
    mounted: Mounted,
    serving: &Serving,
    signals: &mut StopSignals,
) -> Result<Ending> {
    let dir = mounted.dir().to_owned();
    let signal = tokio::select! {
        ended = serving.ended() => {
            return match ended {
                Ok(()) => {
                    info!(dir = %dir.display(), "unmounted from outside");
                    Ok(Ending::UnmountedOutside)
                }
                Err(source) => {
                    warn!(dir = %dir.display(), %source, "the session failed: unmounting");
                    let _ = blocking(move || mounted.unmount(How::Lazy)).await;
                    Err(MountError::Session { path: dir, source })
                }
            };
        }
        signal = signals.next() => signal,
    };
    info!(dir = %dir.display(), signal, "stopping");
    stop(mounted, serving, signals).await
}

async fn stop(mounted: Mounted, serving: &Serving, signals: &mut StopSignals) -> Result<Ending> {
    let dir = mounted.dir().to_owned();
    match blocking(move || mounted.unmount_or_detach()).await? {
        Unmounted::Gone => {
            // The last requests are answered and the filesystem is told that it is over.
            let _ = timeout(GRACE, serving.ended()).await;
            Ok(Ending::Unmounted)
        }
        Unmounted::Detached(holders) => {
            for holder in &holders {
                warn!(dir = %dir.display(), %holder, "still in use: detached");
            }
            tokio::select! {
                _ = timeout(GRACE, serving.ended()) => {}
                _ = signals.next() => {}
            }
            Ok(Ending::Detached(holders))
        }
    }
}

/// Serves for a keeper until it says that somebody else does, or the mount is gone: who wants to
/// stop the daemon is referred to the keeper. When that is gone, the daemon is on its own, and goes
/// on as in [`stay`].
///
/// # Errors
///
/// [`MountError::Session`] if the session failed: the mount is still there, for the next daemon.
pub async fn stay_kept(
    mounted: Mounted,
    serving: &Serving,
    signals: &mut StopSignals,
    mut orders: Orders,
) -> Result<Ending> {
    let dir = mounted.dir().to_owned();
    loop {
        tokio::select! {
            ended = serving.ended() => return match ended {
                Ok(()) => Ok(Ending::UnmountedOutside),
                Err(source) => Err(MountError::Session { path: dir, source }),
            },
            order = orders.next() => match order {
                Some(Order::Retire) => {
                    info!(dir = %dir.display(), "another daemon takes over");
                    return Ok(Ending::Retired);
                }
                None => {
                    warn!(
                        dir = %dir.display(),
                        "the keeper is gone; going on, but the mount will not survive this process"
                    );
                    return stay(mounted, serving, signals).await;
                }
            },
            signal = signals.next() => if !orders.ask_to_stop(signal) {
                info!(dir = %dir.display(), signal, "the keeper is gone");
                return stop(mounted, serving, signals).await;
            },
        }
    }
}

/// Serves while the service manager has the mount: a signal unmounts it, unless it comes because the
/// service is being restarted and the kernel can repeat requests (`may_retire`).
///
/// # Errors
///
/// As [`stay`], but that the mount is still there after a session that failed.
pub async fn stay_stored(
    mounted: Mounted,
    serving: &Serving,
    signals: &mut StopSignals,
    may_retire: bool,
) -> Result<Ending> {
    let dir = mounted.dir().to_owned();
    let signal = tokio::select! {
        ended = serving.ended() => return match ended {
            Ok(()) => Ok(Ending::UnmountedOutside),
            Err(source) => Err(MountError::Session { path: dir, source }),
        },
        signal = signals.next() => signal,
    };
    if may_retire && blocking(|| Ok(fdstore::is_restarting())).await? {
        info!(dir = %dir.display(), signal, "the next daemon of this service takes over");
        return Ok(Ending::Retired);
    }
    info!(dir = %dir.display(), signal, "stopping");
    stop(mounted, serving, signals).await
}

/// Unmounting may wait for other processes and scans `/proc`: not on a runtime thread.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(MountError::io("a task", io::Error::other(error))))
}
