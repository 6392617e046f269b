//! How a mount is doing, in numbers.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::SystemTime;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Control;
use super::process::Process;
use super::why::FailureReport;
use crate::metrics::Counter;
use crate::mount::mountinfo::{MountId, MountTable};
use crate::source::Source as _;
use crate::source::breaker::BreakerState;
use crate::sync::lock;

/// How many failures are told.
const FAILURES: usize = 10;

/// Whether anybody new can reach a mount that is served.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It is in the tree.
    #[default]
    Mounted,
    /// It was unmounted while it was in use: only who used it then still can, and is served until
    /// done.
    Detached,
}

/// What a running mount says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The daemon's process id.
    pub pid: u32,
    /// The program's version.
    pub version: String,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Which mount that is.
    pub mount: MountId,
    /// Whether it is still there. Daemons of older versions do not say.
    #[serde(default)]
    pub state: State,
    /// The registry's URL.
    pub registry: String,
    /// When it was mounted.
    pub since: Timestamp,
    /// Seconds since it was mounted.
    pub uptime_seconds: u64,
    /// What the daemon takes of the machine. Daemons of older versions do not say.
    #[serde(default)]
    pub process: Process,
    /// The level that the log was set to at run time.
    pub log_level: Option<String>,
    /// The sources in the order they are asked, and whether they are asked at the moment.
    pub sources: Vec<SourceStatus>,
    /// The cache that it reads and fills.
    pub cache: CacheStatus,
    /// How often readers had to wait.
    pub reads: Reads,
    /// The requests that wait for a source, the longest first.
    pub in_flight: Vec<Waiting>,
    /// The last failures, newest first.
    pub failures: Vec<FailureReport>,
    /// The counters by name.
    pub counters: BTreeMap<String, u64>,
}

/// One source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceStatus {
    /// Its kind and URL.
    pub name: String,
    /// `up`, `down` (skipped for a moment) or `probing`.
    pub state: String,
    /// How long it is skipped.
    pub retry_in_seconds: Option<f64>,
    /// Why it is skipped.
    pub error: Option<String>,
    /// What is to be known of it although it answers: that it refuses the daemon's key, say.
    #[serde(default)]
    pub notice: Option<String>,
}

/// The cache.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CacheStatus {
    /// Its root.
    pub location: PathBuf,
    /// Bytes of content, at most a minute old.
    pub bytes: u64,
    /// Blobs.
    pub blobs: u64,
}

/// Reads that reached the daemon; the kernel answers most without it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Reads {
    /// Answered from the cache.
    pub warm: u64,
    /// Waited for a source, or for a large file's check.
    pub cold: u64,
    /// The share of the warm ones; none without reads.
    pub hit_rate: Option<f64>,
    /// Callers that shared somebody else's download.
    pub joined: u64,
    /// Bytes answered.
    pub bytes: u64,
    /// Bytes fetched from sources.
    pub fetched_bytes: u64,
}

/// A request that waits.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Waiting {
    /// What was asked for, as the kernel calls it.
    pub operation: String,
    /// The path within the mount, as far as it is known.
    pub path: Option<String>,
    /// The inode number.
    pub ino: u64,
    /// The process that waits; 0 if it is in another process namespace.
    pub pid: u32,
    /// How long it has waited.
    pub age_seconds: f64,
}

impl Control {
    pub(super) fn status(&self) -> Status {
        let metrics = self.fs.metrics();
        let age = Timestamp::now().duration_since(self.since);
        let usage = self.fs.usage();
        let (warm, cold) = (
            metrics.get(Counter::ReadWarm),
            metrics.get(Counter::ReadCold),
        );
        let log_level = lock(&self.log_level);
        Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            mountpoint: self.mountpoint.clone(),
            mount: self.mount,
            state: self.state(),
            registry: self.registry.clone(),
            since: self.since,
            uptime_seconds: u64::try_from(age.as_secs()).unwrap_or(0),
            process: Process::current(),
            log_level: log_level.clone(),
            sources: self.sources(),
            cache: CacheStatus {
                location: self.fs.store().cache().root().to_owned(),
                bytes: usage.bytes,
                blobs: usage.files,
            },
            reads: Reads {
                warm,
                cold,
                hit_rate: rate(warm, cold),
                joined: metrics.get(Counter::Joined),
                bytes: metrics.get(Counter::ReadBytes),
                fetched_bytes: metrics.get(Counter::SourceBytes),
            },
            in_flight: self.waiting(),
            failures: self
                .fs
                .failures()
                .latest(FAILURES)
                .iter()
                .map(|failure| FailureReport::new(&self.fs, failure))
                .collect(),
            counters: metrics
                .snapshot()
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value))
                .collect(),
        }
    }

    /// Told by the daemon, since the tables of other processes may be of other mount namespaces. A
    /// table that cannot be read tells nothing, and nearly all mounts are mounted.
    pub(super) fn state(&self) -> State {
        match MountTable::read() {
            Ok(table) if table.find(self.mount).is_none() => State::Detached,
            _ => State::Mounted,
        }
    }

    fn sources(&self) -> Vec<SourceStatus> {
        let status = |source: &std::sync::Arc<crate::source::breaker::Guarded>| {
            let (state, retry_in) = match source.state() {
                BreakerState::Closed => ("up", None),
                BreakerState::Open { retry_in } => ("down", Some(retry_in.as_secs_f64())),
                BreakerState::Probing => ("probing", None),
            };
            SourceStatus {
                name: source.name().to_owned(),
                state: state.to_owned(),
                retry_in_seconds: retry_in,
                error: source.last_error().map(|error| error.to_string()),
                notice: source.notice(),
            }
        };
        self.sources.all().iter().map(status).collect()
    }

    fn waiting(&self) -> Vec<Waiting> {
        let list = self.fs.in_flight().list().into_iter();
        list.map(|one| Waiting {
            operation: one.operation.to_owned(),
            path: path_of(&self.fs, one.ino, one.name.as_deref()),
            ino: one.ino,
            pid: one.pid,
            age_seconds: one.since.elapsed().as_secs_f64(),
        })
        .collect()
    }
}

/// The path of an inode, or of a name in it.
pub(super) fn path_of(fs: &crate::fs::Fs, ino: u64, name: Option<&str>) -> Option<String> {
    let path = fs.path_of(ino)?;
    Some(match name {
        Some(name) => format!("{}/{name}", path.trim_end_matches('/')),
        None => path,
    })
}

pub(super) fn timestamp(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[allow(clippy::cast_precision_loss)] // A share of counters needs no 53 bits.
fn rate(warm: u64, cold: u64) -> Option<f64> {
    let all = warm + cold;
    (all > 0).then(|| warm as f64 / all as f64)
}
