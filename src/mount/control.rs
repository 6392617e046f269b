//! The control socket: what a running mount says about itself, and the little it can be told.
//!
//! HTTP over a Unix socket in a directory that only this user may enter, one socket a daemon, named
//! by its process id; nobody but this user and root is answered. Never through the mount: asking must work when the network hangs, and a
//! process that waits in a mount cannot be killed. Every answer comes from memory, or at most from
//! the cache's disk; none waits for a source.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | a [`Status`] as JSON |
//! | `GET /v1/why?path=…` | a [`Why`] as JSON about a path within the mount |
//! | `POST /v1/log?level=…` | logs more or less from now on |
//! | `GET /v1/events` | [`Event`]s, one JSON object a line, until the client leaves |

pub mod client;
pub mod events;
pub mod follow;
pub mod metrics;
pub mod process;
pub mod status;
pub mod unserved;
pub mod why;

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::net::unix::SocketAddr;
use tokio::net::{UnixListener, UnixStream};
use tracing::warn;

use super::mountinfo::MountId;
use crate::client::Breakers;
use crate::fs::Fs;
use crate::paths::ensure_private_dir;
use crate::sync::lock;

pub use events::Event;
pub use status::{SourceStatus, Status};
pub use why::Why;

/// Below the runtime directory.
pub(super) const FOLDER: &str = "musherfs";

/// The runtime directory of the system service, which people who run commands do not have in
/// their environment.
pub const SYSTEM_RUNTIME_DIR: &str = "/run/musher";

/// Logs as much as a word (`error` to `trace`) says from now on.
pub type SetLog = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What the socket answers from.
pub struct Control {
    mountpoint: PathBuf,
    mount: MountId,
    registry: String,
    sources: Breakers,
    fs: Arc<Fs>,
    since: Timestamp,
    set_log: Option<SetLog>,
    log_level: Mutex<Option<String>>,
}

impl Control {
    /// For a mount that was made just now. Without `set_log` the log stays as it is.
    pub fn new(
        mountpoint: &Path,
        mount: MountId,
        registry: String,
        sources: Breakers,
        fs: Arc<Fs>,
        set_log: Option<SetLog>,
    ) -> Arc<Self> {
        Arc::new(Self {
            mountpoint: mountpoint.to_owned(),
            mount,
            registry,
            sources,
            fs,
            since: Timestamp::now(),
            set_log,
            log_level: Mutex::default(),
        })
    }

    fn set_log(&self, level: &str) -> Result<(), String> {
        let set_log = self.set_log.as_ref();
        set_log.ok_or("this log cannot be changed")?(level)?;
        tracing::info!(level, "the log's level was changed");
        let mut current = lock(&self.log_level);
        *current = Some(level.to_owned());
        Ok(())
    }
}

/// A socket that is there, and is removed on drop.
pub struct Listening {
    listener: UnixListener,
    router: Router,
    /// The socket, and the record of what is served.
    _files: [OwnFile; 2],
}

/// A file of this process, which goes with it.
struct OwnFile(PathBuf);

impl Drop for OwnFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Opens this process's socket below `runtime_dir`.
///
/// # Errors
///
/// When the directory belongs to somebody else or is open to others, or the socket cannot be made.
pub fn listen(runtime_dir: &Path, control: Arc<Control>) -> crate::error::Result<Listening> {
    let dir = runtime_dir.join(FOLDER);
    ensure_private_dir(&dir)?;
    let pid = std::process::id();
    let path = dir.join(format!("{pid}.sock"));
    // Left behind by an earlier process with our number.
    let _ = std::fs::remove_file(&path);
    let failed = |error: io::Error| crate::error::Error::io(&path, error);
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let record = unserved::record_path(&dir, pid);
    let files = [OwnFile(path.clone()), OwnFile(record.clone())];
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    // It is for the time when this process is gone; until then the socket says all of it.
    if let Err(error) = unserved::write(&record, &control.mountpoint, control.mount) {
        warn!(path = %record.display(), %error, "a mount that nobody serves will not be found");
    }
    let router = Router::new()
        .route(
            "/v1/status",
            get(|State(control): State<Arc<Control>>| async move { Json(control.status()) }),
        )
        .route("/v1/why", get(why))
        .route("/v1/log", post(log))
        .route(
            "/v1/events",
            get(|State(control): State<Arc<Control>>| async move { events::stream(&control.fs) }),
        )
        .with_state(control);
    Ok(Listening {
        listener,
        router,
        _files: files,
    })
}

impl Listening {
    /// Answers until the future is dropped.
    pub async fn serve(self) {
        if let Err(error) = axum::serve(Own(self.listener), self.router).await {
            warn!(%error, "the control socket failed");
        }
    }
}

/// A socket that nobody but this user and root is answered at: the kernel tells who asks.
struct Own(UnixListener);

impl axum::serve::Listener for Own {
    type Io = UnixStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (UnixStream, SocketAddr) {
        let me = rustix::process::geteuid().as_raw();
        loop {
            // The listener's own waits for better times when there are no descriptors left.
            let (stream, address) = axum::serve::Listener::accept(&mut self.0).await;
            match stream.peer_cred() {
                Ok(asking) if [0, me].contains(&asking.uid()) => return (stream, address),
                asking => warn!(
                    ?asking,
                    "somebody else at the control socket was turned away"
                ),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

#[derive(Deserialize)]
struct WhyQuery {
    path: String,
}

async fn why(State(control): State<Arc<Control>>, Query(query): Query<WhyQuery>) -> Response {
    // It may read the cache's disk.
    let explaining = tokio::task::spawn_blocking(move || Why::of(&control.fs, &query.path));
    match explaining.await {
        Ok(why) => Json(why).into_response(),
        Err(lost) => (StatusCode::INTERNAL_SERVER_ERROR, lost.to_string()).into_response(),
    }
}

#[derive(Deserialize)]
struct LogQuery {
    level: String,
}

async fn log(State(control): State<Arc<Control>>, Query(query): Query<LogQuery>) -> Response {
    match control.set_log(&query.level) {
        Ok(()) => StatusCode::NO_CONTENT.into_response(),
        Err(problem) => (StatusCode::BAD_REQUEST, problem).into_response(),
    }
}
