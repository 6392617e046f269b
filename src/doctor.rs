//! What keeps a mount from working on this machine, and what to do about it.
//!
//! ```text
//! Probe ──► machine · mounts · disk          from files and /proc, at once
//!       ├─► registry                         DNS, TCP, TLS, an answer, its clock, the key
//!       └─► oci                              the same of OCI registries, and of mirrors
//! ```
//!
//! Everything that is looked at comes from the [`Probe`], so that tests can look at a machine that is
//! broken in any way. Two promises:
//!
//! * It ends within its patience, whatever hangs. A mount is asked only from another process, which
//!   is left behind if it does not come back; a registry only as long as patience lasts.
//! * A key is looked for and tried, but never part of a finding.

pub mod bugreport;
mod disk;
mod machine;
mod mounts;
mod oci;
mod registry;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::config::Config;
use crate::credentials::KeyChain;
use crate::credentials::docker::LoginFiles;
use crate::mount::mountinfo::MountTable;
use crate::mount::touch::Liveness;
use crate::paths::Directories;

/// How long a registry may take by default. With everything else, the answer is there in a second.
pub const PATIENCE: Duration = Duration::from_millis(700);

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Nothing is wrong, but some should know it.
    Info,
    /// It works, but not as well as it could, or not for everybody.
    Warn,
    /// Something does not work.
    Fail,
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ok => "ok",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        })
    }
}

/// What is concerned, which decides about the exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Area {
    /// This machine.
    Machine,
    /// The way to a registry.
    Network,
    /// The key.
    Key,
    /// A setting.
    Configuration,
    /// Something that took too long.
    Time,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at: a fixed word for programs.
    pub id: &'static str,
    /// How bad it is.
    pub level: Level,
    /// What was found.
    pub message: String,
    /// What to do about it, or where it matters.
    pub remedy: Option<String>,
    /// What is concerned.
    #[serde(skip)]
    pub area: Area,
}

impl Finding {
    fn ok(id: &'static str, message: impl Into<String>) -> Self {
        Self {
            id,
            level: Level::Ok,
            message: message.into(),
            remedy: None,
            area: Area::Machine,
        }
    }

    fn info(id: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Info,
            ..Self::warn(id, message, remedy)
        }
    }

    fn warn(id: &'static str, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            remedy: Some(remedy.into()),
            ..Self::ok(id, message)
        }
    }

    fn fail(
        id: &'static str,
        area: Area,
        message: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Fail,
            area,
            ..Self::warn(id, message, remedy)
        }
    }

    /// A daemon that does not answer on its socket.
    pub fn silent_daemon(pid: u32, problem: &str) -> Self {
        Self::fail(
            "daemon",
            Area::Time,
            format!("process {pid} does not answer on its socket: {problem}"),
            format!(
                "it is stopped or stuck: `musherfs umount --force` its mount, or `kill -CONT {pid}`"
            ),
        )
    }

    /// A daemon of another version than this program.
    pub fn other_version(dir: &Path, version: &str) -> Self {
        Self::warn(
            "daemon",
            format!(
                "{} is served by musherfs {version}; this is {}",
                dir.display(),
                env!("CARGO_PKG_VERSION")
            ),
            "`musherfs upgrade` replaces it without interruption",
        )
    }

    /// A mount that nobody new can reach: it was unmounted while it was in use. That is as it should
    /// be where another one has taken its place (`is_replaced`).
    pub fn detached(dir: &Path, pid: u32, is_replaced: bool) -> Self {
        const ID: &str = "detached-mount";
        let dir = dir.display();
        let message = format!(
            "a mount on {dir} is detached: process {pid} serves it to those who used it when it \
             was unmounted, and nobody else can reach it"
        );
        let ends = "it ends when they are done";
        if is_replaced {
            return Self::info(ID, message, ends);
        }
        Self::warn(
            ID,
            message,
            format!("`musherfs mount {dir}` mounts it again; {ends}"),
        )
    }

    /// What the daemon of a mount says of one of its sources: it may have another key than whoever
    /// asks.
    pub fn notice(dir: &Path, source: &str, notice: &str) -> Self {
        Self::warn(
            "daemon",
            format!("the mount on {}: {source}: {notice}", dir.display()),
            "put a good key where the mount looks for it (its --api-key-file, or where `musher login` \
             does), or mount again with one",
        )
    }

    /// A setting that cannot be used at all, so that hardly anything else can be looked at.
    pub fn bad_setting(message: impl Into<String>) -> Self {
        let remedy = "correct it; until then every command fails with this";
        Self::fail("config", Area::Configuration, message, remedy)
    }
}

/// How much room a filesystem has, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// For a plain user.
    pub free: u64,
    /// In all.
    pub total: u64,
}

/// Asks a mount whether it answers, within a time.
pub type Ask = Arc<dyn Fn(&Path, Duration) -> Liveness + Send + Sync>;

/// The machine that is looked at.
pub struct Probe {
    /// What stands for `/`: where devices, `/etc`, `/proc` and `/sys` are looked for.
    pub root: PathBuf,
    /// Whether root asks.
    pub is_root: bool,
    /// Where things are.
    pub directories: Directories,
    /// The settings.
    pub config: Config,
    /// Where the key is looked for.
    pub keys: KeyChain,
    /// Where the logins of OCI registries are looked for.
    pub logins: LoginFiles,
    /// Where a mount is to be made.
    pub mountpoint: PathBuf,
    /// What is mounted.
    pub table: MountTable,
    /// The variables that name proxies, without passwords.
    pub proxies: Vec<(&'static str, String)>,
    /// Tells how much room there is.
    pub space: fn(&Path) -> io::Result<Space>,
    /// Asks mounts.
    pub ask: Ask,
    /// How long a registry may take.
    pub patience: Duration,
}

impl Probe {
    /// A path of the machine, which must be absolute.
    fn at(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// The first line of a file of the machine; `None` if there is none.
    fn line(&self, path: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.at(path)).ok()?;
        Some(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Looks at everything.
    pub async fn run(self) -> Vec<Finding> {
        let probe = Arc::new(self);
        let local = Arc::clone(&probe);
        let local = tokio::task::spawn_blocking(move || {
            let mut findings = machine::check(&local);
            findings.extend(mounts::check(&local));
            findings.extend(disk::check(&local));
            findings
        });
        let (local, registry) = tokio::join!(local, registry::check(&probe));
        let mut findings = local.unwrap_or_else(|lost| {
            vec![Finding::fail(
                "doctor",
                Area::Machine,
                format!("looking at this machine failed: {lost}"),
                "please report it with `musherfs bugreport`",
            )]
        });
        findings.extend(registry);
        findings
    }
}

/// How much room the filesystem of `path` has.
///
/// # Errors
///
/// What the kernel says.
pub fn space(path: &Path) -> io::Result<Space> {
    let found = rustix::fs::statvfs(path)?;
    Ok(Space {
        free: found.f_bavail.saturating_mul(found.f_frsize),
        total: found.f_blocks.saturating_mul(found.f_frsize),
    })
}

/// The worst finding; the first of several.
pub fn worst(findings: &[Finding]) -> Option<&Finding> {
    let level = findings.iter().map(|finding| finding.level).max()?;
    findings.iter().find(|finding| finding.level == level)
}
