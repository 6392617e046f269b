//! A limit on what the cache takes of the disk, kept by all processes together.
//!
//! ```text
//! 0 ────────────── low ────── high ── max        what is taken, of the limit
//!   evict down to here ◄───── from here, between times
//!                        ◄───────────── from here, before anything is written
//! ```
//!
//! * **Reserved before written.** A file that comes is allocated in full when it is created, under a
//!   lock that all processes of this user share; the number in the locked file (the *ledger*) is
//!   what is taken at most. So the limit holds at every moment, files on their way in included.
//! * **The disk is right.** The ledger only ever grows; it is replaced by what is really there
//!   when it comes to the limit, and twice a minute while a mount runs, because other tools come and
//!   go as they like and killed processes leave files behind.
//! * **Least recently read goes first**, whatever its age; never what is pinned, nor the content of
//!   local packs, which no registry has. An evicted blob that is still open takes its room until it
//!   is closed, so it is closed.
//! * **A floor**: a twentieth of the disk stays free, whoever filled the rest.
//! * What does not fit is served without being kept, and so is what comes while somebody holds the
//!   ledger who does not let it go, a process that was stopped. No reader fails or waits for long.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tracing::{debug, warn};

use super::pins::Pins;
use super::recency::Recency;
use super::{key_of, private_file};
use crate::cache::{BlobFile, Cache, Gate};
use crate::digest::Digest;
use crate::reference::HostId;
use crate::sync::{self, Instant, Mutex, MutexGuard, lock};

/// What is evicted down to, and from where on between times, in hundredths of the limit.
const LOW: u64 = 80;
const HIGH: u64 = 92;

/// What stays free of the disk: one part of so many.
const FLOOR: u64 = 20;

/// A temporary file that nobody has locked or written to for so long is a killed process's.
const ABANDONED: Duration = Duration::from_secs(10 * 60);

/// How long another process may take with the ledger, which perhaps evicts from a large cache: what
/// readers who wait for a file can spare, and a command.
const PATIENCE: Duration = Duration::from_secs(2);
const LONG_PATIENCE: Duration = Duration::from_secs(60);

/// For how long nobody is waited for after one who took longer.
const IMPATIENCE: Duration = Duration::from_secs(30);

/// A disk hands out whole blocks.
const BLOCK: u64 = 4096;

/// Told which blobs were evicted, so that they can be closed.
type OnEvict = Box<dyn Fn(&[Digest]) + Send + Sync>;

/// The limit of one cache.
pub struct Quota {
    /// Without a gate: what is removed and added up here is not asked for.
    cache: Cache,
    max: u64,
    ledger: PathBuf,
    /// How long the others may keep the ledger.
    patience: Duration,
    /// Whose turn it is in this process, which waits for itself as long as it takes; and when another
    /// one last kept the ledger for too long.
    turn: Mutex<Option<Instant>>,
    /// Counts where the ledger cannot be had.
    alone: Mutex<Option<u64>>,
    recency: Arc<Recency>,
    pins: Pins,
    evicted: OnceLock<OnEvict>,
}

impl std::fmt::Debug for Quota {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Quota")
            .field("root", &self.cache.root())
            .field("max", &self.max)
            .finish_non_exhaustive()
    }
}

/// What the cache takes, locked against everybody who might change it.
enum Ledger<'a> {
    Shared(
        File,
        #[allow(dead_code, reason = "held")] MutexGuard<'a, Option<Instant>>,
    ),
    Alone(MutexGuard<'a, Option<u64>>),
}

impl Ledger<'_> {
    fn read(&self) -> Option<u64> {
        match self {
            Self::Alone(used) => **used,
            Self::Shared(file, _) => {
                let mut bytes = [0; 8];
                file.read_exact_at(&mut bytes, 0).ok()?;
                Some(u64::from_le_bytes(bytes))
            }
        }
    }

    fn write(&mut self, used: u64) -> io::Result<()> {
        match self {
            Self::Alone(known) => {
                **known = Some(used);
                Ok(())
            }
            Self::Shared(file, _) => file.write_all_at(&used.to_le_bytes(), 0),
        }
    }
}

impl Quota {
    /// A limit of `max` bytes on the cache at `root`.
    pub fn new(state: &Path, root: &Path, max: u64, recency: Arc<Recency>) -> Self {
        Self {
            cache: Cache::new(root.to_owned()),
            max,
            ledger: state.join("quota").join(key_of(root)),
            patience: PATIENCE,
            turn: Mutex::default(),
            alone: Mutex::default(),
            recency,
            pins: Pins::new(state),
            evicted: OnceLock::new(),
        }
    }

    /// The limit in bytes.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The same limit for a command, whose user rather waits than goes without.
    pub fn patient(self) -> Self {
        Self {
            patience: LONG_PATIENCE,
            ..self
        }
    }

    /// Sets who is told what was evicted; once.
    pub fn on_evict(&self, told: OnEvict) {
        let _ = self.evicted.set(told);
    }

    /// Waits for the ledger. Fails only where another process has it for too long; where it cannot be
    /// had at all, this process counts alone.
    fn lock(&self) -> io::Result<Ledger<'_>> {
        let mut stuck = lock(&self.turn);
        let is_stuck =
            |since: Instant| Instant::now().saturating_duration_since(since) < IMPATIENCE;
        let patience = match *stuck {
            Some(since) if is_stuck(since) => Duration::ZERO,
            _ => self.patience,
        };
        let alone = |error: io::Error| {
            let alone = lock(&self.alone);
            if alone.is_none() {
                warn!(path = %self.ledger.display(), %error, "the cache's limit is kept by this process alone");
            }
            Ledger::Alone(alone)
        };
        let file = match private_file(&self.ledger, OpenOptions::new().read(true).write(true)) {
            Ok(file) => file,
            Err(error) => return Ok(alone(error)),
        };
        match sync::lock_file(&file, patience) {
            Ok(()) => {
                *stuck = None;
                Ok(Ledger::Shared(file, stuck))
            }
            Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                if patience > Duration::ZERO {
                    *stuck = Some(Instant::now());
                    warn!(path = %self.ledger.display(), "another process keeps the cache's ledger locked; nothing is cached meanwhile");
                }
                Err(error)
            }
            Err(error) => Ok(alone(error)),
        }
    }

    /// Takes stock, and makes room if the cache has come near its limit. What it takes then; `None`
    /// where another process keeps the ledger.
    pub fn settle(&self) -> Option<u64> {
        let mut ledger = self.lock().ok()?;
        let mut used = self.cache.allocated();
        sync::between();
        if used > self.max / 100 * HIGH || self.lacks(0) > 0 {
            used = self.evict(used, self.low());
        }
        if let Err(error) = ledger.write(used) {
            debug!(%error, "the ledger cannot be written");
        }
        Some(used)
    }

    fn low(&self) -> u64 {
        self.max / 100 * LOW
    }

    /// How many bytes the disk lacks to have its floor after `bytes` more were taken.
    fn lacks(&self, bytes: u64) -> u64 {
        let mut root = self.cache.root();
        let disk = loop {
            match (rustix::fs::statvfs(root), root.parent()) {
                (Ok(disk), _) => break disk,
                (Err(_), Some(parent)) => root = parent,
                (Err(_), None) => return 0,
            }
        };
        let floor = disk.f_blocks.saturating_mul(disk.f_frsize) / FLOOR;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        floor.saturating_add(bytes).saturating_sub(free)
    }

    /// Removes what was least recently read until the cache takes at most `target` bytes and the
    /// disk has its floor; what it takes then.
    fn evict(&self, mut used: u64, target: u64) -> u64 {
        if self.cache.remove_abandoned(ABANDONED) > 0 {
            used = self.cache.allocated();
        }
        let spared = match self.spared() {
            Ok(spared) => spared,
            Err(error) => {
                warn!(%error, "nothing is evicted: nobody knows what is pinned");
                return used;
            }
        };
        let read = self.recency.last_read();
        let mut blobs: Vec<(u64, BlobFile)> = Vec::new();
        self.cache.for_each_blob(|blob| {
            if !spared.contains(&blob.digest) {
                let written = blob.modified.duration_since(UNIX_EPOCH).unwrap_or_default();
                let written = u64::try_from(written.as_millis()).unwrap_or(u64::MAX);
                let last = read.get(&blob.digest).copied().unwrap_or(written);
                blobs.push((last, blob));
            }
        });
        blobs.sort_by_key(|(last, blob)| (*last, blob.digest));
        let mut lacking = self.lacks(0);
        let mut evicted = Vec::new();
        for (_, blob) in blobs {
            if used <= target && lacking == 0 {
                break;
            }
            match self.cache.remove_blob(blob.digest, blob.is_flat) {
                Ok(_) => {
                    let freed = blob.size.next_multiple_of(BLOCK);
                    used = used.saturating_sub(freed);
                    lacking = lacking.saturating_sub(freed);
                    evicted.push(blob.digest);
                }
                Err(error) => debug!(%error, "not evicted"),
            }
        }
        if !evicted.is_empty() {
            debug!(blobs = evicted.len(), used, "evicted");
            if let Some(told) = self.evicted.get() {
                told(&evicted);
            }
        }
        used
    }

    /// What is never evicted.
    fn spared(&self) -> crate::error::Result<HashSet<Digest>> {
        let mut spared = self.cache.named_by(&HostId::local());
        for pin in self.pins.list()? {
            for version in pin.kept() {
                if let Some(cached) = self.cache.read_manifest(&pin.registry, &version) {
                    spared.extend(cached.manifest.files().map(|file| file.digest()));
                }
            }
        }
        Ok(spared)
    }
}

impl Quota {
    fn reserve(&self, bytes: u64, grow: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        let full = || {
            io::Error::new(
                io::ErrorKind::StorageFull,
                "the cache has come to its limit",
            )
        };
        if bytes > self.max {
            return Err(full());
        }
        let mut ledger = self.lock()?;
        let mut used = ledger.read().unwrap_or_else(|| self.cache.allocated());
        sync::between();
        let fits = |used: u64| used.saturating_add(bytes) <= self.max && self.lacks(bytes) == 0;
        if !fits(used) {
            used = self.cache.allocated();
            if !fits(used) {
                let lacking = self.lacks(bytes);
                let target = self.low().min(self.max - bytes);
                used = self.evict(used, target.min(used.saturating_sub(lacking)));
            }
            if !fits(used) {
                ledger.write(used)?;
                return Err(full());
            }
        }
        // Before the file is there: killed in between, the ledger says too much, never too little.
        ledger.write(used + bytes)?;
        sync::between();
        grow()
    }
}

impl Gate for Quota {
    fn grow(&self, bytes: u64, grow: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()> {
        // Downloads come here in tasks: whoever else is on this thread goes on elsewhere.
        match Handle::try_current().map(|runtime| runtime.runtime_flavor()) {
            Ok(RuntimeFlavor::MultiThread) => block_in_place(|| self.reserve(bytes, grow)),
            _ => self.reserve(bytes, grow),
        }
    }
}
