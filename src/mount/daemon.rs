//! The process that serves a mount, from the first descriptor to the last answer.
//!
//! ```text
//! Client ──► Fs ──► Fuse ──► mount and serve ──► ready ──► stay
//!                                   └► control socket, periodic work, invalidation threads
//! ```

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use super::background::Starter;
use super::control::{self, Control, SetLog, events, metrics};
use super::{Ending, Failure, MountError, MountOptions, MountPoint, Mounted, StopSignals};
use super::{mount_and_serve, service, stay, touch};
use crate::care::keeper::Keeper;
use crate::client::Client;
use crate::fs::{self, Fs};
use crate::fuse::{self, Fuse};

/// How long a mount may take to be warmed up by another process.
const WARM_UP: Duration = Duration::from_secs(10);

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
    pub metrics: Option<metrics::Address>,
}

/// Mounts and serves until the mount is gone or a signal ends it.
///
/// `starter` is told of the outcome as soon as the mount is served; without one the process is in
/// the foreground, and has another process touch the mount.
///
/// # Errors
///
/// Why it could not be mounted or served; the starter has been told then, too.
pub async fn run(plan: Plan, starter: Option<Starter>) -> super::Result<Ending> {
    let in_background = starter.is_some();
    match start(plan, in_background).await {
        Ok(started) => started.serve(starter).await,
        Err(error) => {
            if let Some(starter) = starter {
                // If the starter is gone, nobody is there to be told.
                let _ = starter.failed(Failure::from(&error));
            }
            Err(error)
        }
    }
}

struct Started {
    registry: String,
    mounted: Mounted,
    serving: super::Serving,
    signals: StopSignals,
    fs: Arc<Fs>,
    control: Arc<Control>,
    socket: Option<control::Listening>,
    metrics: Option<metrics::Endpoint>,
    runtime_dir: Option<PathBuf>,
    keeper: Keeper,
}

async fn start(plan: Plan, in_background: bool) -> super::Result<Started> {
    let io_error = |source: io::Error| MountError::io("the process", source);
    let signals = StopSignals::listen(in_background).map_err(io_error)?;
    let point = MountPoint::prepare(&plan.dir)?;
    if plan.marker {
        point.mark()?;
    }
    raise_descriptor_limit();
    // Before mounting: an address that cannot be had is a mistake, not a reason to go without.
    let metrics_endpoint = match &plan.metrics {
        Some(address) => {
            let bound = metrics::Endpoint::bind(address).await;
            let bound = bound.map_err(|error| {
                MountError::io(address.to_string(), io::Error::other(error.to_string()))
            })?;
            Some(bound)
        }
        None => None,
    };
    let Client {
        resolver,
        store,
        journal,
        sources,
        metrics,
    } = plan.client;
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
    let (options, threads) = (plan.options, plan.threads);
    let mounting =
        tokio::task::spawn_blocking(move || mount_and_serve(&point, &options, edge, threads));
    let (mounted, serving) = mounting
        .await
        .unwrap_or_else(|lost| Err(MountError::io("a task", io::Error::other(lost))))?;
    if let Err(error) = fuse::spawn_invalidation(&serving.notifier(), requests) {
        warn!(%error, "no thread for invalidation: symlinks that move are seen late");
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
    if let Some(address) = metrics_endpoint
        .as_ref()
        .and_then(metrics::Endpoint::address)
    {
        info!(%address, "numbers are served");
    }
    Ok(Started {
        registry: plan.registry,
        mounted,
        serving,
        signals,
        fs,
        control,
        socket,
        metrics: metrics_endpoint,
        runtime_dir: plan.runtime_dir,
        keeper: plan.keeper,
    })
}

impl Started {
    async fn serve(mut self, starter: Option<Starter>) -> super::Result<Ending> {
        let dir = self.mounted.dir().to_owned();
        let registry = std::mem::take(&mut self.registry);
        let mounted = move || {
            info!(dir = %dir.display(), registry, "mounted");
            service::ready(&dir);
        };
        match starter {
            Some(starter) => {
                if let Err(error) = starter.ready(&self.mounted) {
                    warn!(%error, "whoever started this is gone: unmounting");
                    let _ = self.mounted.unmount_or_detach();
                    return Ok(Ending::Unmounted);
                }
                mounted();
            }
            None => warm_up_elsewhere(self.mounted.dir(), mounted),
        }
        let mut tasks = vec![tokio::spawn(self.keeper.run())];
        if let Some(dir) = self.runtime_dir {
            tasks.push(tokio::spawn(events::announce(self.fs.moves(), dir)));
        }
        tasks.push(tokio::spawn(self.fs.tick()));
        tasks.extend(self.socket.map(|socket| tokio::spawn(socket.serve())));
        let control = self.control;
        tasks.extend(
            self.metrics
                .map(|endpoint| tokio::spawn(endpoint.serve(control))),
        );
        let ending = stay(self.mounted, &self.serving, &mut self.signals).await;
        service::stopping();
        for task in tasks {
            task.abort();
            // Until it is dropped: the socket's file goes with it.
            let _ = task.await;
        }
        ending
    }
}

/// Has another process teach the kernel what need not be asked: a thread of ours that waits in our
/// own mount would survive `kill -9`. `done` is called when that process no longer uses the mount,
/// so that whoever waits for what it says (a service manager, too) can also unmount.
fn warm_up_elsewhere(dir: &Path, done: impl FnOnce() + Send + 'static) {
    let dir = dir.to_owned();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = touch::warm_up_elsewhere(touch::this_program(), &dir, WARM_UP) {
            warn!(%error, "the mount could not be warmed up; it works, with more requests");
            if error.kind() == io::ErrorKind::TimedOut {
                return;
            }
        }
        done();
    });
}

/// 512 blobs stay open, and 64 requests a source: the usual soft limit of 1024 is tight.
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
