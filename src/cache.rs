//! The cache that all Musher tools share: manifests, refs and blobs on disk.
//!
//! ```text
//! <root>/CACHEDIR.TAG
//! <root>/blobs/sha256/2c/2cf24d…                       content, named by its digest
//! <root>/manifests/<host>/<ns>/<slug>/1.2.0.json       what a version contains
//! <root>/manifests/<host>/<ns>/<slug>/1.2.0.meta.json  its sidecar: how old that knowledge is
//! <root>/refs/<host>/<ns>/<slug>/latest.json           what a moving name stands for
//! <root>/temp/<uuid>.tmp                               on the way in
//! ```
//!
//! The Python and TypeScript SDKs, musher-cli and mush read and write here too, each in its own
//! dialect, without locks and without asking. So:
//!
//! * **Everything is read**, by tolerant rules. Whatever is damaged, foreign or half there is a miss,
//!   never an error; a damaged sidecar only makes its manifest stale.
//! * **One shape is written** that each of the others reads as its own; see `dialect.rs`.
//! * **Anything may vanish at any moment**, the root included. It is created again by the next
//!   write, and whoever reads a blob keeps it open instead of opening it by name twice.
//! * **Nothing is trusted.** Blobs are handed out unverified, to be hashed by the caller before the
//!   first byte is served. No link below the root is followed, for reading or writing.
//! * **A file appears only by rename**, complete. Existing modes are never loosened.
//! * A cache that cannot be written is no error to a reader: see [`Blob::Memory`].
//!
//! All calls block on the disk, never on the network; on another process only for a moment, for the
//! ledger of a limited cache.

mod blob;
pub mod clean;
mod dialect;
mod dir;
mod entry;
mod key;
mod scan;
mod temp;
pub mod verify;

pub use blob::{Blob, BlobWriter};
pub use entry::{CachedManifest, CachedRef};
pub use key::key_of;
pub use scan::{BlobFile, EntryPlace, Usage};
pub use temp::Gate;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Document, Manifest, State};
pub use crate::reference::HostId;
use crate::reference::{BundleId, LogicalPath, MAX_VERSION, Namespace, Slug, Version, VersionRef};
use dir::Dir;
use entry::Age;

/// How long a manifest's state is served before the registry is asked again: as in all tools.
pub const MANIFEST_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How long a moving name is served before the registry is asked again: as in all tools.
pub const REF_TTL: Duration = Duration::from_secs(300);

/// A larger JSON file is damaged, or hostile.
const MAX_MANIFEST: u64 = 64 * 1024 * 1024;
/// Largest entry that is read by whoever must not wait: some milliseconds.
const QUICK: u64 = 1024 * 1024;

/// How much may be done for a manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// What a thread may do that serves others.
    Quick,
    /// Whatever is needed.
    Any,
}

/// There may be an entry, but it is large, or lacks sizes, which only hashing all its blobs tells. A
/// thread that serves others leaves it to one that need not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slow;

/// Sidecars and refs have some hundred bytes.
const MAX_SMALL: u64 = 64 * 1024;

const MANIFESTS: &str = "manifests";
const REFS: &str = "refs";

/// The shared cache below one root. Cheap to clone; clones are the same cache.
#[derive(Debug, Clone)]
pub struct Cache {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: PathBuf,
    /// Whether the root was put in order since it was last seen to be new.
    prepared: AtomicBool,
    /// Whether the log knows that the cache cannot be written.
    warned: AtomicBool,
    /// Who decides whether the cache may grow; nobody, if it has no limit.
    gate: OnceLock<Arc<dyn Gate>>,
    /// Where the last blob was found, kept open: opening the root again for every blob was a tenth
    /// of the time that a first read took.
    blobs: Mutex<Option<Arc<Dir>>>,
    /// How many directories were listed.
    scans: AtomicU64,
}

impl Cache {
    /// The cache below `root`. Touches nothing: the root is created by the first write.
    pub fn new(root: PathBuf) -> Self {
        Self {
            shared: Arc::new(Shared {
                root,
                prepared: AtomicBool::new(false),
                warned: AtomicBool::new(false),
                gate: OnceLock::new(),
                blobs: Mutex::default(),
                scans: AtomicU64::new(0),
            }),
        }
    }

    /// Has `gate` decide, from now on, whether this cache may grow. Only the first one counts.
    pub fn set_gate(&self, gate: Arc<dyn Gate>) {
        let _ = self.shared.gate.set(gate);
    }

    /// Where the cache is.
    pub fn root(&self) -> &Path {
        &self.shared.root
    }

    /// How many directories of manifests were listed so far: what questions about what there is cost.
    pub fn scans(&self) -> u64 {
        self.shared.scans.load(Ordering::Relaxed)
    }

    fn count_scan(&self) {
        self.shared.scans.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads the manifest of `version`, in any tool's dialect and under any spelling of `host`.
    ///
    /// `None` if there is none that can be used, for whatever reason. May take seconds: see [`Slow`].
    pub fn read_manifest(&self, host: &HostId, version: &VersionRef) -> Option<CachedManifest> {
        self.look_for_manifest(host, version, Effort::Any)
            .unwrap_or(None)
    }

    /// As [`Cache::read_manifest`], if no more than `effort` allows is needed.
    ///
    /// # Errors
    ///
    /// [`Slow`] if it is.
    pub fn look_for_manifest(
        &self,
        host: &HostId,
        version: &VersionRef,
        effort: Effort,
    ) -> Result<Option<CachedManifest>, Slow> {
        if !version.version.fits_cache() {
            return Ok(None);
        }
        for spelling in spellings(host) {
            let entry = self.read_entry(&spelling, host, version, effort)?;
            if entry.is_some() {
                return Ok(entry);
            }
        }
        Ok(None)
    }

    /// As [`Cache::read_manifest`], under this spelling of the host only.
    fn read_manifest_at(&self, host: &HostId, version: &VersionRef) -> Option<CachedManifest> {
        self.read_entry(host, host, version, Effort::Any)
            .unwrap_or(None)
    }

    fn read_entry(
        &self,
        spelling: &HostId,
        host: &HostId,
        version: &VersionRef,
        effort: Effort,
    ) -> Result<Option<CachedManifest>, Slow> {
        let Ok(dir) = self.open_dir(&manifest_dir(spelling, &version.bundle)) else {
            return Ok(None);
        };
        let name = &version.version;
        let file = format!("{name}.json");
        if effort == Effort::Quick
            && dir
                .open_file(&file)
                .and_then(|file| file.metadata())
                .is_ok_and(|metadata| metadata.len() > QUICK)
        {
            return Err(Slow);
        }
        let Some(json) = read_json(&dir, &file, MAX_MANIFEST) else {
            return Ok(None);
        };
        let age = match read_json(&dir, &format!("{name}.meta.json"), MAX_SMALL) {
            Some(sidecar) => Age::parse(&sidecar, host.is_local()),
            None => Age::UNKNOWN,
        };
        let (manifest, is_superset) = match dialect::read_superset(&json, version) {
            Some(manifest) => (manifest, age.is_superset),
            None => match self.read_foreign(&json, version, effort)? {
                Some(manifest) => (manifest, false),
                None => return Ok(None),
            },
        };
        Ok(Some(CachedManifest {
            manifest,
            fetched_at: age.fetched_at,
            ttl: age.ttl,
            is_superset,
        }))
    }

    fn read_foreign(
        &self,
        json: &[u8],
        version: &VersionRef,
        effort: Effort,
    ) -> Result<Option<Manifest>, Slow> {
        let miss = |error: &dyn std::error::Error| {
            tracing::debug!(%version, %error, "a cached manifest cannot be used");
        };
        // Where JSON is skipped it is not decoded, and some tools put anything there.
        if let Err(error) = std::str::from_utf8(json) {
            miss(&error);
            return Ok(None);
        }
        let mut document = match Document::parse(json) {
            Ok(document) => document,
            Err(error) => {
                miss(&error);
                return Ok(None);
            }
        };
        if effort == Effort::Quick && document.lacks_sizes() {
            return Err(Slow);
        }
        document.fill_sizes(|digest| self.verified_size(digest));
        let manifest = match document.into_manifest(version.clone()) {
            Ok(manifest) => manifest,
            Err(error) => {
                miss(&error);
                return Ok(None);
            }
        };
        if let Some(state) = dialect::read_state(json).flatten()
            && state != manifest.info().state.as_str()
        {
            tracing::warn!(%version, state, "a cached manifest has an unknown state: taken for published");
        }
        Ok(Some(manifest))
    }

    /// Writes the manifest, as confirmed at `fetched_at`, and its sidecar last.
    ///
    /// Does nothing, successfully, for what must not be there: locally packed bundles belong to
    /// musher-cli, a version that ends in `.meta` would pass for a sidecar, and entries over 64 MiB
    /// would be refused by their readers.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the cache cannot be written. The log has been told; a caller that can do
    /// without the entry may ignore it.
    pub fn write_manifest(
        &self,
        host: &HostId,
        manifest: &Manifest,
        fetched_at: Timestamp,
    ) -> Result<()> {
        let VersionRef { bundle, version } = manifest.id();
        if host.is_local() || !version.fits_cache() {
            return Ok(());
        }
        let dir = manifest_dir(host, bundle);
        let written = self.put(&dir, &format!("{version}.json"), |out| {
            dialect::write_manifest(out, manifest)
        })?;
        if written {
            self.put(&dir, &format!("{version}.meta.json"), |out| {
                dialect::write_sidecar(out, manifest, fetched_at)
            })?;
        }
        Ok(())
    }

    /// Removes the manifest of `version` and its sidecar, under every spelling of `host`. Blobs
    /// stay: other versions may share them.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if one is there and cannot be removed.
    pub fn remove_manifest(&self, host: &HostId, version: &VersionRef) -> Result<()> {
        if !version.version.fits_cache() {
            return Ok(());
        }
        for spelling in spellings(host) {
            let path = manifest_dir(&spelling, &version.bundle);
            let Ok(dir) = self.open_dir(&path) else {
                continue;
            };
            for suffix in ["json", "meta.json"] {
                let name = format!("{}.{suffix}", version.version);
                dir.remove_file(&name)
                    .map_err(|error| Error::io(self.root().join(&path).join(&name), error))?;
            }
        }
        Ok(())
    }

    /// Reads what `alias` of `bundle` (`latest`, a tag, a range) last stood for.
    pub fn read_ref(&self, host: &HostId, bundle: &BundleId, alias: &str) -> Option<CachedRef> {
        if !is_safe_alias(alias) {
            return None;
        }
        let read = |spelling: HostId, name: &str| {
            let dir = self.open_dir(&ref_dir(&spelling, bundle)).ok()?;
            read_json(&dir, name, MAX_SMALL)
        };
        let dated = spellings(host).find_map(|spelling| {
            let json = read(spelling, &format!("{alias}.json"))?;
            CachedRef::parse(&json, host.is_local())
        });
        // mush 4.2.0 writes the bare version into `latest`, and no date.
        dated.or_else(|| {
            spellings(host)
                .filter(|_| alias == "latest")
                .find_map(|spelling| {
                    let text = String::from_utf8(read(spelling, alias)?).ok()?;
                    Some(CachedRef::undated(text.trim().parse().ok()?))
                })
        })
    }

    /// Notes that `alias` of `bundle` stands for `version` since `fetched_at`.
    ///
    /// Does nothing, successfully, for what must not be there: an alias that is no file name, a
    /// locally packed bundle, a version that [`Cache::write_manifest`] would skip.
    ///
    /// # Errors
    ///
    /// As [`Cache::write_manifest`].
    pub fn write_ref(
        &self,
        host: &HostId,
        bundle: &BundleId,
        alias: &str,
        version: &Version,
        fetched_at: Timestamp,
    ) -> Result<()> {
        if host.is_local() || !is_safe_alias(alias) || !version.fits_cache() {
            return Ok(());
        }
        self.put(&ref_dir(host, bundle), &format!("{alias}.json"), |out| {
            dialect::write_ref(out, version, fetched_at)
        })
        .map(drop)
    }

    /// Opens a blob, to be read by position. Its bytes are **not verified**.
    pub fn open_blob(&self, digest: Digest) -> Option<File> {
        let (prefixed, flat) = blob::names_of(digest);
        let kept = self.kept_blobs().clone();
        if let Some(file) = kept.and_then(|blobs| blobs.open_file(&prefixed).ok()) {
            return Some(file);
        }
        // Not there, or the cache was removed and made anew: only the root's name tells.
        let root = Dir::open_root(self.root()).ok()?;
        let blobs = root.open(blob::BLOBS).ok()?;
        let file = blobs
            .open_file(&prefixed)
            // Where mush 4.2.0 puts it.
            .or_else(|_| blobs.open_file(&flat))
            .ok()?;
        *self.kept_blobs() = Some(Arc::new(blobs));
        Some(file)
    }

    fn kept_blobs(&self) -> MutexGuard<'_, Option<Arc<Dir>>> {
        // Consistent whoever panicked with it: it is replaced as a whole.
        let blobs = self.shared.blobs.lock();
        blobs.unwrap_or_else(PoisonError::into_inner)
    }

    /// Opens mush 4.2.0's unpacked copy of a file. Its bytes are **not verified**, and it may be
    /// another registry's: that view is not split by host.
    pub fn legacy_copy(&self, version: &VersionRef, path: &LogicalPath) -> Option<File> {
        let VersionRef { bundle, version } = version;
        let root = Dir::open_root(self.root()).ok()?;
        root.open_file(&format!("bundles/{bundle}/{version}/assets/{path}"))
            .ok()
    }

    /// The size of a blob in bytes, if it is there.
    pub fn blob_size(&self, digest: Digest) -> Option<u64> {
        Some(self.open_blob(digest)?.metadata().ok()?.len())
    }

    /// The size of a blob whose bytes are those that its name says. Hashes the whole blob: for
    /// manifests that do not tell sizes, and would be wrong for ever if they took a damaged one's.
    pub fn verified_size(&self, digest: Digest) -> Option<u64> {
        let file = self.open_blob(digest)?;
        let size = file.metadata().ok()?.len();
        (blob::hash(&file).ok()? == digest).then_some(size)
    }

    /// Starts a blob of at most `limit` bytes. Nothing is created before the first byte comes.
    pub fn blob_writer(&self, limit: u64) -> BlobWriter {
        BlobWriter::new(self.clone(), limit)
    }

    /// The registries that have manifests here, as their directories are spelt;
    /// [`HostId::local`] among them if bundles were packed on this machine.
    pub fn hosts(&self) -> Vec<HostId> {
        let mut hosts: Vec<HostId> = self.directories(MANIFESTS);
        hosts.sort();
        hosts
    }

    /// The namespaces that have a directory under any spelling of `host`, sorted.
    pub fn namespaces(&self, host: &HostId) -> Vec<Namespace> {
        let found: BTreeSet<Namespace> = spellings(host)
            .flat_map(|spelling| self.directories(&format!("{MANIFESTS}/{spelling}")))
            .collect();
        found.into_iter().collect()
    }

    /// The bundles of `namespace` that have at least one manifest, sorted.
    pub fn bundles(&self, host: &HostId, namespace: &Namespace) -> Vec<Slug> {
        let bundles = self.bundles_with_versions(host, namespace);
        bundles.map(|(bundle, _)| bundle.slug).collect()
    }

    /// As [`Cache::bundles`], with their versions, oldest first. A bundle costs one scan, when it is
    /// its turn.
    pub fn bundles_with_versions(
        &self,
        host: &HostId,
        namespace: &Namespace,
    ) -> impl Iterator<Item = (BundleId, Vec<Version>)> {
        let found: BTreeSet<Slug> = spellings(host)
            .flat_map(|spelling| self.directories(&format!("{MANIFESTS}/{spelling}/{namespace}")))
            .collect();
        found.into_iter().filter_map(move |slug| {
            let bundle = BundleId {
                namespace: namespace.clone(),
                slug,
            };
            let versions = self.versions(host, &bundle);
            (!versions.is_empty()).then_some((bundle, versions))
        })
    }

    /// Whether a bundle of `namespace` has a manifest.
    pub fn holds(&self, host: &HostId, namespace: &Namespace) -> bool {
        self.bundles_with_versions(host, namespace).next().is_some()
    }

    /// The versions of `bundle` that have a manifest, oldest first. Whether it can be read is not
    /// looked at.
    pub fn versions(&self, host: &HostId, bundle: &BundleId) -> Vec<Version> {
        self.count_scan();
        let found: BTreeSet<Version> = spellings(host)
            .filter_map(|spelling| self.open_dir(&manifest_dir(&spelling, bundle)).ok())
            .filter_map(|dir| list_versions(&dir).ok())
            .flatten()
            .collect();
        found.into_iter().collect()
    }

    /// As [`Cache::versions`], with the state that each entry had when it was fetched; without
    /// entries that are damaged before that point.
    pub fn versions_with_state(&self, host: &HostId, bundle: &BundleId) -> Vec<(Version, State)> {
        let state = |version: Version| {
            let id = VersionRef {
                bundle: bundle.clone(),
                version,
            };
            self.state(host, &id).map(|state| (id.version, state))
        };
        self.versions(host, bundle)
            .into_iter()
            .filter_map(state)
            .collect()
    }

    /// The state that the entry of `version` had when it was fetched; `None` without an entry, or if
    /// it is damaged before that point.
    pub fn state(&self, host: &HostId, version: &VersionRef) -> Option<State> {
        spellings(host).find_map(|spelling| {
            let dir = self
                .open_dir(&manifest_dir(&spelling, &version.bundle))
                .ok()?;
            let file = dir.open_file(&format!("{}.json", version.version)).ok()?;
            let entry = io::BufReader::new(file.take(MAX_MANIFEST));
            Some(match dialect::read_state(entry)?.as_deref() {
                Some("yanked") => State::Yanked,
                _ => State::Published,
            })
        })
    }

    fn open_dir(&self, path: &str) -> io::Result<Dir> {
        Dir::open_root(self.root())?.open(path)
    }

    fn directories<T: std::str::FromStr>(&self, path: &str) -> Vec<T> {
        self.count_scan();
        let names = self
            .open_dir(path)
            .and_then(|dir| dir.directories().map(Vec::from_iter));
        let names = names.unwrap_or_default();
        names.iter().filter_map(|name| name.parse().ok()).collect()
    }

    /// Writes a JSON file by way of a temporary one; `false` if it would be too large to be read.
    fn put(
        &self,
        dir: &str,
        name: &str,
        write: impl Fn(&mut dyn Write) -> io::Result<()>,
    ) -> Result<bool> {
        let attempt = || -> io::Result<bool> {
            let mut temp = match self.shared.gate.get() {
                None => self.temp()?,
                // Written twice: the gate must know the size before the first byte.
                Some(_) => {
                    let mut size = Counted(0);
                    write(&mut size)?;
                    self.room(size.0)?
                }
            };
            let mut out =
                io::BufWriter::with_capacity(64 * 1024, Bounded(temp.file(), MAX_MANIFEST));
            let written = write(&mut out).and_then(|()| out.flush());
            let was_full = out.get_ref().1 == 0;
            // What is still buffered then is not wanted.
            drop(out.into_parts());
            match written {
                Err(_) if was_full => return Ok(false),
                other => other?,
            }
            temp.place(self, dir, name)?;
            Ok(true)
        };
        attempt().map_err(|error| {
            self.trouble(&error);
            Error::io(self.root().join(dir).join(name), error)
        })
    }

    /// Tells the log, once, that the cache cannot be written. Whoever is waited for in vain is told of
    /// by the gate.
    fn trouble(&self, error: &io::Error) {
        if error.kind() != io::ErrorKind::TimedOut
            && !self.shared.warned.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(
                root = %self.root().display(),
                %error,
                "the cache cannot be written: content is served without being kept"
            );
        }
    }
}

/// Counts what it is given.
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Fails before more than so many bytes are written; 0 is left then.
struct Bounded<W>(W, u64);

impl<W: Write> Write for Bounded<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.1.checked_sub(bytes.len() as u64) {
            Some(left) if left > 0 => {
                let written = self.0.write(bytes)?;
                self.1 -= written as u64;
                Ok(written)
            }
            _ => {
                self.1 = 0;
                Err(io::ErrorKind::FileTooLarge.into())
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// The directories in which a registry's entries may be, the right one first.
fn spellings(host: &HostId) -> impl Iterator<Item = HostId> {
    std::iter::once(host.clone()).chain(host.legacy_spellings())
}

fn manifest_dir(host: &HostId, bundle: &BundleId) -> String {
    format!("{MANIFESTS}/{host}/{bundle}")
}

fn ref_dir(host: &HostId, bundle: &BundleId) -> String {
    format!("{REFS}/{host}/{bundle}")
}

/// Whether an alias can be part of a file name: ranges such as `>=1, <3` can.
fn is_safe_alias(alias: &str) -> bool {
    (1..=MAX_VERSION).contains(&alias.len())
        && !alias.starts_with('.')
        && !alias.contains(['/', '\\'])
        && !alias.contains(char::is_control)
}

/// The versions that have a manifest in `dir`: no sidecar, and no temporary file of the Python SDK.
fn list_versions(dir: &Dir) -> io::Result<Vec<Version>> {
    Ok(dir
        .files()?
        .filter_map(|name| name.strip_suffix(".json")?.parse().ok())
        .filter(Version::fits_cache)
        .collect())
}

/// The bytes of a file of at most `limit` bytes; `None` for anything else that may be there.
fn read_json(dir: &Dir, name: &str, limit: u64) -> Option<Vec<u8>> {
    let file = dir.open_file(name).ok()?;
    let size = file.metadata().ok()?.len();
    if size > limit {
        return None;
    }
    let mut json = Vec::with_capacity(usize::try_from(size).ok()? + 1);
    // It may grow while it is read: not every tool renames.
    file.take(limit + 1).read_to_end(&mut json).ok()?;
    (json.len() as u64 <= limit).then_some(json)
}
