//! The process that serves a mount, from the first descriptor to the last answer.
//!
//! ```text
//! Client ──► Fs ──► Fuse ──► mount and serve ──► ready ──► stay
//!                                   └► control socket, periodic work, invalidation threads
//! ```
//!
//! Where a [`keeper`](super::keeper) has the mount, it is served but not made here, and perhaps not by
//! the first daemon that does so.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tracing::{debug, info, warn};

use super::background::Supervisor;
use super::control::{self, Control, SetLog, events, metrics};
use super::fdstore::Store;
use super::keeper::{Given, Orders};
use super::touch::{self, this_program};
use super::{Ending, Failure, MountError, MountOptions, MountPoint, Mounted, StopSignals};
use super::{invalidate, mount_and_serve, resume, serve, service};
use super::{stay, stay_kept, stay_stored};
use crate::care::keeper::Keeper;
use crate::client::Client;
use crate::config::value::MetricsAddress;
use crate::fs::{self, Fs};
use crate::fuse::{Fuse, Handshake};
use crate::store::journal::Journal;

/// How long a mount may take to be warmed up by another process.
const WARM_UP: Duration = Duration::from_secs(10);

/// How often an address is tried that somebody else has.
const BIND_AGAIN: Duration = Duration::from_millis(200);

/// A mount that is about to be made.
pub struct Plan {
    /// Where to mount.
    pub dir: PathBuf,
    /// How.
    pub options: MountOptions,
    /// Whether the directory says that nothing is mounted when nothing is.
    pub marker: bool,
    /// What to serve.
    pub client: Client,
    /// Looks after the cache meanwhile.
    pub keeper: Keeper,
    /// The registry as users know it, without credentials.
    pub registry: String,
    /// Whether extended attributes are answered.
    pub user_xattr: bool,
    /// How many threads answer the kernel, 2 to 4.
    pub threads: usize,
    /// Where the control socket goes; `None` for none.
    pub runtime_dir: Option<PathBuf>,
    /// How the log's level is changed at run time.
    pub set_log: Option<SetLog>,
    /// Where the numbers for monitoring are to be had.
    pub metrics: Option<MetricsAddress>,
    /// Whether a mount whose numbers cannot be served is a mistake: a setting is that of all mounts, and
    /// the address is that of one.
    pub needs_metrics: bool,
}

/// Mounts and serves until the mount is gone or a signal ends it.
///
/// `supervisor` is told of the outcome as soon as the mount is served; one that is a keeper mounts by
/// itself. Without one the process is in the foreground, and has another process touch the mount.
///
/// # Errors
///
/// Why it could not be mounted or served; the supervisor has been told then, too.
pub async fn run(plan: Plan, supervisor: Option<Supervisor>) -> super::Result<Ending> {
    let listen = |in_background| {
        StopSignals::listen(in_background).map_err(|source| MountError::io("the process", source))
    };
    match supervisor {
        None => {
            let signals = listen(false)?;
            let mut started = start(plan, Origin::New).await?;
            let announce = started.announcement();
            warm_up_elsewhere(this_program(), started.mounted.dir(), WARM_UP, announce);
            started.stay(signals).await
        }
        Some(Supervisor::Starter(starter)) => {
            let started = match listen(true) {
                Ok(signals) => start(plan, Origin::New).await.map(|it| (it, signals)),
                Err(error) => Err(error),
            };
            match started {
                Ok((started, signals)) => match starter.ready(&started.mounted) {
                    Ok(()) => {
                        info!(dir = %started.mounted.dir().display(), started.registry, "mounted");
                        started.stay(signals).await
                    }
                    Err(error) => {
                        warn!(%error, "whoever started this is gone: unmounting");
                        let _ = started.mounted.unmount_or_detach();
                        Ok(Ending::Unmounted)
                    }
                },
                Err(error) => {
                    // If the starter is gone, nobody is there to be told.
                    let _ = starter.failed(Failure::from(&error));
                    Err(error)
                }
            }
        }
        Some(Supervisor::ServiceManager(mut store)) => {
            // A hangup is for programs at a terminal.
            let mut signals = listen(true)?;
            let given = store.given(&plan.dir);
            let is_new = given.is_none();
            let agreed_before = given.as_ref().and_then(|given| given.handshake);
            let origin = given.map_or(Origin::New, Origin::Given);
            let mut started = start(plan, origin).await?;
            let announce = started.announcement();
            if is_new {
                let kept = match started.handshake {
                    Some(handshake) => store.keep(&started.mounted, handshake),
                    None => Err(io::Error::other("nothing was agreed on")),
                };
                if let Err(error) = kept {
                    warn!(%error, "the service manager does not keep the mount");
                }
                warm_up_elsewhere(this_program(), started.mounted.dir(), WARM_UP, announce);
            } else {
                announce();
            }
            let handshake = agreed_before.or(started.handshake);
            let may_retire = handshake.is_some_and(|handshake| handshake.can_resend());
            started.stay_stored(&mut signals, &store, may_retire).await
        }
        Some(Supervisor::Keeper(ward)) => {
            let mut signals = listen(true)?;
            let waiting = tokio::task::spawn_blocking(move || ward.wait());
            let given = waiting.await.map_err(io::Error::other).flatten();
            let keeper = |source| MountError::io("the keeper", source);
            let Some((keeper_waits, given)) = given.map_err(keeper)? else {
                return Ok(Ending::Retired);
            };
            let first = given.handshake.is_none();
            match start(plan, Origin::Given(given)).await {
                Ok(started) => {
                    info!(dir = %started.mounted.dir().display(), started.registry, "serving");
                    let handshake = started.handshake.filter(|_| first);
                    match keeper_waits.ready(handshake) {
                        Ok(orders) => started.stay_kept(&mut signals, orders).await,
                        Err(error) => {
                            if first {
                                warn!(%error, "nobody knows of this mount: unmounting");
                                let _ = started.mounted.unmount_or_detach();
                            }
                            Err(keeper(error))
                        }
                    }
                }
                Err(error) => {
                    let _ = keeper_waits.failed(Failure::from(&error));
                    Err(error)
                }
            }
        }
    }
}

/// Where the mount comes from.
enum Origin {
    /// It is to be made.
    New,
    /// Somebody else made it and holds it.
    Given(Given),
}

struct Started {
    registry: String,
    mounted: Mounted,
    serving: super::Serving,
    handshake: Option<Handshake>,
    tasks: Vec<JoinHandle<()>>,
    _journal: LastWords,
}

/// Writes down what could not be written before, when a daemon ends in whatever way it is told to.
struct LastWords(Arc<Journal>);

impl Drop for LastWords {
    fn drop(&mut self) {
        self.0.flush();
    }
}

async fn start(plan: Plan, origin: Origin) -> super::Result<Started> {
    let point = match &origin {
        Origin::New => {
            let point = MountPoint::prepare(&plan.dir)?;
            if plan.marker {
                point.mark()?;
            }
            Some(point)
        }
        Origin::Given(_) => None,
    };
    let goes_on = matches!(&origin, Origin::Given(given) if given.handshake.is_some());
    raise_descriptor_limit();
    // Before mounting: an address that cannot be had is a mistake, not a reason to go without. But
    // who goes on with a mount waits for a predecessor that still has the address.
    let endpoint = match &plan.metrics {
        Some(address) if !goes_on => {
            let bound = metrics::Endpoint::bind(address).await;
            if plan.needs_metrics {
                Some(bound.map_err(|error| MountError::io(address.to_string(), error))?)
            } else {
                bound.ok()
            }
        }
        _ => None,
    };
    let Client {
        resolver,
        store,
        journal,
        sources,
        metrics,
    } = plan.client;
    let last_words = LastWords(Arc::clone(&journal));
    let fs = Fs::new(fs::Settings {
        resolver,
        store,
        journal,
        user_xattr: plan.user_xattr,
        metrics,
    });
    let (kernel, requests) = mpsc::unbounded_channel();
    fs.set_kernel(kernel);
    let owner = (
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let edge = Fuse::new(Arc::clone(&fs), Handle::current(), owner);
    let handshake = edge.handshake();
    let (options, threads) = (plan.options, plan.threads);
    let successor = Arc::clone(&fs);
    let serving = tokio::task::spawn_blocking(move || match (origin, point) {
        (Origin::Given(given), _) => {
            let mounted = given.mounted;
            let serving = match given.handshake {
                None => serve(&mounted, edge, threads)?,
                Some(handshake) => {
                    successor.inherit();
                    resume::resume(&mounted, edge, threads, &handshake, given.placeholder)?
                }
            };
            Ok((mounted, serving))
        }
        (Origin::New, Some(point)) => {
            let served = mount_and_serve(&point, &options, edge, threads)?;
            point.keep();
            Ok(served)
        }
        (Origin::New, None) => Err(MountError::io("the mountpoint", io::ErrorKind::NotFound)),
    });
    let (mounted, serving) = serving
        .await
        .unwrap_or_else(|lost| Err(MountError::io("a task", io::Error::other(lost))))?;
    if let Err(error) = invalidate::spawn(this_program, &mounted, requests) {
        warn!(%error, "no helper for invalidation: symlinks that move are seen late");
    }
    if let Err(error) = touch::raise_readahead(mounted.id()) {
        debug!(%error, "the kernel reads 128 KiB ahead");
    }
    let control = Control::new(
        mounted.dir(),
        mounted.id(),
        plan.registry.clone(),
        sources,
        Arc::clone(&fs),
        plan.set_log,
    );
    let socket = plan.runtime_dir.as_deref().and_then(|dir| {
        control::listen(dir, Arc::clone(&control))
            .inspect_err(|error| warn!(%error, "no control socket: `musherfs status` will not see this mount"))
            .ok()
    });
    let mut tasks = vec![tokio::spawn(plan.keeper.run())];
    if let Some(dir) = plan.runtime_dir {
        tasks.push(tokio::spawn(events::announce(fs.moves(), dir)));
    }
    tasks.push(tokio::spawn(fs.tick()));
    tasks.extend(socket.map(|socket| tokio::spawn(socket.serve())));
    tasks.extend(
        plan.metrics
            .map(|address| tokio::spawn(serve_numbers(address, endpoint, control))),
    );
    Ok(Started {
        registry: plan.registry,
        mounted,
        serving,
        handshake: handshake.get().copied(),
        tasks,
        _journal: last_words,
    })
}

impl Started {
    /// What is to be done as soon as the mount can be used, for whoever waits for that.
    fn announcement(&mut self) -> impl FnOnce() + Send + 'static {
        let dir = self.mounted.dir().to_owned();
        let registry = std::mem::take(&mut self.registry);
        move || {
            info!(dir = %dir.display(), registry, "mounted");
            service::ready(&dir);
        }
    }

    async fn stay(self, mut signals: StopSignals) -> super::Result<Ending> {
        let ending = stay(self.mounted, &self.serving, &mut signals).await;
        service::stopping();
        end(self.tasks).await;
        ending
    }

    async fn stay_stored(
        self,
        signals: &mut StopSignals,
        store: &Store,
        may_retire: bool,
    ) -> super::Result<Ending> {
        let ending = stay_stored(self.mounted, &self.serving, signals, may_retire).await;
        if !matches!(
            ending,
            Ok(Ending::Retired) | Err(MountError::Session { .. })
        ) {
            service::stopping();
            store.clear();
        }
        end(self.tasks).await;
        ending
    }

    async fn stay_kept(self, signals: &mut StopSignals, orders: Orders) -> super::Result<Ending> {
        let ending = stay_kept(self.mounted, &self.serving, signals, orders).await;
        end(self.tasks).await;
        ending
    }
}

/// Serves the numbers for monitoring on `address`, as soon as it can be had if it is not yet.
async fn serve_numbers(
    address: MetricsAddress,
    endpoint: Option<metrics::Endpoint>,
    control: Arc<Control>,
) {
    let mut complained = false;
    let mut bound = endpoint;
    let endpoint = loop {
        if let Some(endpoint) = bound {
            break endpoint;
        }
        bound = match metrics::Endpoint::bind(&address).await {
            Ok(endpoint) => Some(endpoint),
            Err(error) => {
                if !std::mem::replace(&mut complained, true) {
                    warn!(%address, %error, "the numbers are not served yet");
                }
                tokio::time::sleep(BIND_AGAIN).await;
                None
            }
        };
    };
    if let Some(address) = endpoint.address() {
        info!(%address, "numbers are served");
    }
    endpoint.serve(control).await;
}

/// Ends tasks and waits until they are dropped: the socket's file goes with its task.
async fn end(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        task.abort();
        let _ = task.await;
    }
}

/// Has another process teach the kernel what need not be asked: a thread of ours that waits in our
/// own mount would survive `kill -9`. `done` is called when that process no longer uses the mount,
/// so that whoever waits for what it says (a service manager, too) can also unmount. A mount that
/// answers late is ready late; one that never answers is never ready, and whoever waits gives up.
fn warm_up_elsewhere(
    program: Command,
    dir: &Path,
    patience: Duration,
    done: impl FnOnce() + Send + 'static,
) {
    let dir = dir.to_owned();
    let warming_up = move || {
        if let Err(error) = touch::warm_up_elsewhere(program, &dir, patience) {
            warn!(%error, "the mount could not be warmed up; it works, with more requests");
        }
        done();
    };
    // Not a task of the runtime, whose end would wait for a mount that does not answer.
    let started = thread::Builder::new()
        .name("warm-up".to_owned())
        .spawn(warming_up);
    if let Err(error) = started {
        warn!(%error, "nobody warms the mount up, or says that it is ready");
    }
}

/// 512 blobs stay open, and 64 requests of each kind to each source: the usual soft limit of 1024 is
/// too low.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum.map(|most| most.min(65_536)).or(Some(65_536)),
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, wanted) {
        debug!(%error, "the limit of open files stays as it is");
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// Long enough on any machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn a_mount_is_announced_when_whoever_touched_it_is_gone_in_time_or_late() {
        let dir = tempfile::tempdir().unwrap();
        let ended = dir.path().join("ended");
        for (script, patience) in [
            // It does what it should, fails, and does not end by itself.
            ("touch \"$2/ended\"", PATIENCE),
            ("touch \"$2/ended\"; exit 1", PATIENCE),
            (
                "touch \"$2/ended\"; exec sleep 1000",
                Duration::from_secs(1),
            ),
        ] {
            let (announce, announced) = mpsc::channel();
            let mut program = Command::new("sh");
            program.args(["-c", script, "sh"]);
            warm_up_elsewhere(program, dir.path(), patience, move || {
                announce.send(()).unwrap();
            });
            announced.recv_timeout(PATIENCE).unwrap();
            std::fs::remove_file(&ended).unwrap();
        }
    }
}
