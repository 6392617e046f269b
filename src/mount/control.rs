//! The control socket: what a running mount says about itself.
//!
//! HTTP over a Unix socket in a directory that only this user may enter, one socket a daemon, named
//! by its process id. Never through the mount: asking must work when the network hangs, and a
//! process that waits in a mount cannot be killed.
//!
//! | request | answer |
//! |---|---|
//! | `GET /v1/status` | a [`Status`] as JSON |

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use crate::metrics::Metrics;
use crate::paths::ensure_private_dir;
use crate::source::Source as _;
use crate::source::breaker::{BreakerState, Guarded};

/// Below the runtime directory.
const FOLDER: &str = "musherfs";

/// Longest answer that is read.
const MAX_ANSWER: u64 = 4 << 20;

/// How long a daemon may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a running mount says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The daemon's process id.
    pub pid: u32,
    /// The program's version.
    pub version: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The registry's URL.
    pub registry: String,
    /// Seconds since it was mounted.
    pub uptime_seconds: u64,
    /// The sources in the order they are asked, and whether they are asked at the moment.
    pub sources: Vec<SourceStatus>,
    /// The counters by name.
    pub counters: BTreeMap<String, u64>,
}

/// One source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Its kind and URL.
    pub name: String,
    /// `up`, `down` (skipped for a moment) or `probing`.
    pub state: String,
}

/// What the socket answers from.
pub struct Control {
    mountpoint: PathBuf,
    registry: String,
    sources: Vec<Arc<Guarded>>,
    metrics: Arc<Metrics>,
    since: SystemTime,
}

impl Control {
    /// For a mount that was made just now.
    pub fn new(
        mountpoint: &Path,
        registry: String,
        sources: Vec<Arc<Guarded>>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        Arc::new(Self {
            mountpoint: mountpoint.to_owned(),
            registry,
            sources,
            metrics,
            since: SystemTime::now(),
        })
    }

    fn status(&self) -> Status {
        let state = |source: &Guarded| match source.state() {
            BreakerState::Closed => "up",
            BreakerState::Open { .. } => "down",
            BreakerState::Probing => "probing",
        };
        let counters = self.metrics.snapshot().into_iter();
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mountpoint: self.mountpoint.clone(),
            registry: self.registry.clone(),
            uptime_seconds: self.since.elapsed().map_or(0, |age| age.as_secs()),
            sources: self
                .sources
                .iter()
                .map(|source| SourceStatus {
                    name: source.name().to_owned(),
                    state: state(source).to_owned(),
                })
                .collect(),
            counters: counters
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }
}

/// A socket that is there, and is removed on drop.
pub struct Listening {
    listener: UnixListener,
    router: Router,
    _file: SocketFile,
}

struct SocketFile(PathBuf);

impl Drop for SocketFile {
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
    let path = dir.join(format!("{}.sock", std::process::id()));
    // Left behind by an earlier process with our number.
    let _ = std::fs::remove_file(&path);
    let failed = |error: io::Error| crate::error::Error::io(&path, error);
    let listener = UnixListener::bind(&path).map_err(failed)?;
    let file = SocketFile(path.clone());
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let router = Router::new()
        .route(
            "/v1/status",
            get(|State(control): State<Arc<Control>>| async move { Json(control.status()) }),
        )
        .with_state(control);
    Ok(Listening {
        listener,
        router,
        _file: file,
    })
}

impl Listening {
    /// Answers until the future is dropped.
    pub async fn serve(self) {
        if let Err(error) = axum::serve(self.listener, self.router).await {
            tracing::warn!(%error, "the control socket failed");
        }
    }
}

/// What all of this user's running mounts say, those that do not answer within a second left out.
///
/// Sockets of processes that are gone are removed.
///
/// # Errors
///
/// When the directory cannot be read; a missing one has no mounts.
pub async fn all(runtime_dir: &Path) -> io::Result<Vec<Status>> {
    let dir = runtime_dir.join(FOLDER);
    let owner = rustix::process::geteuid().as_raw();
    let entries = match std::fs::symlink_metadata(&dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
        // A directory that others can write to could hold anybody's socket.
        Ok(meta) if !meta.is_dir() || meta.uid() != owner || meta.mode() & 0o077 != 0 => {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{} is not private to this user", dir.display()),
            ));
        }
        Ok(_) => std::fs::read_dir(&dir)?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "sock")
        {
            match tokio::time::timeout(PATIENCE, ask(&path)).await {
                Ok(Ok(status)) => all.push(status),
                Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    let _ = std::fs::remove_file(&path);
                }
                Ok(Err(error)) => tracing::warn!(socket = %path.display(), %error, "no answer"),
                Err(_) => tracing::warn!(socket = %path.display(), "no answer within a second"),
            }
        }
    }
    all.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
    Ok(all)
}

/// One request, one answer: too little to bring in an HTTP client that speaks Unix sockets.
async fn ask(socket: &Path) -> io::Result<Status> {
    let mut stream = UnixStream::connect(socket).await?;
    stream
        .write_all(b"GET /v1/status HTTP/1.0\r\nHost: localhost\r\n\r\n")
        .await?;
    let mut answer = Vec::new();
    stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
    let malformed = || {
        io::Error::new(
            io::ErrorKind::InvalidData,
            "not an answer of a control socket",
        )
    };
    let end = answer
        .windows(4)
        .position(|window| window == b"\r\n\r\n")
        .ok_or_else(malformed)?;
    serde_json::from_slice(&answer[end + 4..]).map_err(|_| malformed())
}
