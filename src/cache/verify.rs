//! Hashing everything: what is on disk under a name that it does not deserve.
//!
//! Nothing is changed here. Whoever finds a bad file fetches it again or takes it away.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;

use super::blob::{BLOBS, hash, place_of};
use super::clean::bundle_of;
use super::clean::marks::{places, references};
use super::dir::Dir;
use super::scan::BlobFile;
use super::{Cache, CachedManifest, MANIFEST_TTL, MAX_MANIFEST, read_json};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::{HostId, VersionRef};

/// Hashing is bound by one core each up to about here; beyond it, by the disk.
const MOST_THREADS: usize = 4;

/// A file that is not what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bad {
    /// A blob with other bytes.
    Blob {
        /// Where it lies, and what it should be.
        blob: BlobFile,
        /// What it is; `None` if it cannot be read.
        actual: Option<Digest>,
    },
    /// An entry that no tool's rules can read.
    Entry {
        /// Its path below the root.
        path: String,
        /// Whose it is, if its directories are names.
        place: Option<(HostId, VersionRef)>,
    },
}

impl Bad {
    /// The path below the root.
    pub fn path(&self) -> String {
        match self {
            Self::Entry { path, .. } => path.clone(),
            Self::Blob { blob, .. } => {
                let (dir, name) = place_of(blob.digest);
                let dir = if blob.is_flat { BLOBS.to_owned() } else { dir };
                format!("{dir}/{name}")
            }
        }
    }

    /// What is wrong.
    pub fn reason(&self) -> String {
        match self {
            Self::Entry { .. } => "not readable as a manifest of any tool".to_owned(),
            Self::Blob {
                actual: Some(actual),
                ..
            } => format!("its bytes are {actual}"),
            Self::Blob { actual: None, .. } => "it cannot be read".to_owned(),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Verified {
    /// How many blobs were hashed.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many entries were read.
    pub entries: u64,
    /// The bad files, by path.
    pub bad: Vec<Bad>,
}

/// An entry as it lies on disk, in whatever dialect.
#[derive(Debug)]
pub struct OnDisk {
    /// Whose it is, as its directory is spelt.
    pub host: HostId,
    /// What it is the manifest of.
    pub version: VersionRef,
    /// What it says; `None` if it cannot be used.
    pub cached: Option<CachedManifest>,
    /// When a registry last confirmed it, or when the file was written where nobody noted that.
    pub written_at: Option<Timestamp>,
}

impl Cache {
    /// Hashes every blob and reads every entry. `progress` is told of each blob's bytes, from
    /// several threads.
    ///
    /// A file that goes away meanwhile is not bad.
    pub fn verify(&self, progress: &(dyn Fn(u64) + Sync)) -> Verified {
        let mut found = Verified::default();
        let Ok(root) = Dir::open_root(self.root()) else {
            return found;
        };
        for place in places(&root) {
            let Ok(dir) = root.open(&place.dir) else {
                continue;
            };
            if dir.stat(&place.file()).is_err() {
                continue;
            }
            found.entries += 1;
            let is_good = read_json(&dir, &place.file(), MAX_MANIFEST)
                .and_then(|json| references(&json))
                .is_some();
            if !is_good && dir.stat(&place.file()).is_ok() {
                let owner = bundle_of(&place).and_then(|(host, bundle)| {
                    let version = place.stem.parse().ok()?;
                    Some((host, VersionRef { bundle, version }))
                });
                found.bad.push(Bad::Entry {
                    path: place.path(),
                    place: owner,
                });
            }
        }
        let mut blobs = Vec::new();
        self.for_each_blob(|blob| blobs.push(blob));
        found.blobs = blobs.len() as u64;
        found.bytes = blobs.iter().map(|blob| blob.size).sum();
        found.bad.extend(bad_blobs(&root, &blobs, progress));
        found.bad.sort_by_key(Bad::path);
        found
    }

    /// Every entry with what it says.
    pub fn on_disk(&self) -> Vec<OnDisk> {
        let mut all = Vec::new();
        for entry in self.entries() {
            let cached = self.read_manifest_at(&entry.host, &entry.version);
            let confirmed = cached.as_ref().and_then(|cached| cached.fetched_at);
            let written_at = confirmed.or_else(|| self.written_at(&entry.host, &entry.version));
            all.push(OnDisk {
                host: entry.host,
                version: entry.version,
                cached,
                written_at,
            });
        }
        all
    }

    fn written_at(&self, host: &HostId, version: &VersionRef) -> Option<Timestamp> {
        let dir = self
            .open_dir(&super::manifest_dir(host, &version.bundle))
            .ok()?;
        let stat = dir.stat(&format!("{}.json", version.version)).ok()?;
        Timestamp::from_second(stat.st_mtime).ok()
    }

    /// All digests that the entries of `host` name, under every spelling.
    pub fn named_by(&self, host: &HostId) -> HashSet<Digest> {
        let mut named = HashSet::new();
        let Ok(root) = Dir::open_root(self.root()) else {
            return named;
        };
        let hosts: Vec<HostId> = super::spellings(host).collect();
        for place in places(&root) {
            let own = hosts.iter().any(|host| host.as_str() == place.host());
            if own
                && let Ok(dir) = root.open(&place.dir)
                && let Some(json) = read_json(&dir, &place.file(), MAX_MANIFEST)
            {
                named.extend(references(&json).unwrap_or_default());
            }
        }
        named
    }

    /// Writes a foreign entry again in the shape that every tool reads, no fresher than it was.
    /// Whether it was written: not if it is in that shape already, cannot be read, has no date, or
    /// is a local pack.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if it cannot be written.
    pub fn rewrite_foreign(&self, host: &HostId, version: &VersionRef) -> Result<bool> {
        if host.is_local() {
            return Ok(false);
        }
        let Some(cached) = self.read_manifest_at(host, version) else {
            return Ok(false);
        };
        let Some(fetched_at) = cached.fetched_at.filter(|_| !cached.is_superset) else {
            return Ok(false);
        };
        // The shape has one life for all; another one is kept by shifting the date.
        let life = cached.ttl.unwrap_or(MANIFEST_TTL).min(MANIFEST_TTL);
        let shift = MANIFEST_TTL.saturating_sub(life);
        let fetched_at = fetched_at
            .checked_sub(shift)
            .map_err(|error| Error::Internal(error.to_string()))?;
        self.write_manifest(host, &cached.manifest, fetched_at)?;
        Ok(true)
    }
}

fn bad_blobs(root: &Dir, blobs: &[BlobFile], progress: &(dyn Fn(u64) + Sync)) -> Vec<Bad> {
    let next = AtomicUsize::new(0);
    let bad = Mutex::new(Vec::new());
    let work = || {
        while let Some(blob) = blobs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let verdict = check(root, *blob);
            progress(blob.size);
            if let Some(verdict) = verdict
                && let Ok(mut bad) = bad.lock()
            {
                bad.push(verdict);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 1..threads.min(MOST_THREADS) {
            scope.spawn(work);
        }
        work();
    });
    bad.into_inner().unwrap_or_default()
}

fn check(root: &Dir, blob: BlobFile) -> Option<Bad> {
    let path = Bad::Blob { blob, actual: None }.path();
    let actual = match root.open_file(&path) {
        Ok(file) => hash(&file).ok(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(_) => None,
    };
    (actual != Some(blob.digest)).then_some(Bad::Blob { blob, actual })
}
