//! Blobs: verified once, kept open, fetched when missing or bad.
//!
//! ```text
//! open descriptor or memory ──► cached file, hashed ──► other tools' leftovers, hashed ──► sources
//!        read_now                    read_now (small)                     read
//! ```
//!
//! A cached file is hashed when it is first used and again whenever its fingerprint (device, inode,
//! size, mtime, ctime) differs: other tools write blobs in place, and disks decay. The descriptors
//! of the last [`MOST_OPEN`] blobs stay open, so that a reader survives somebody else's clean-up.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use lru::LruCache;
use rustix::io::{Errno, ReadWriteFlags};
use tracing::{debug, warn};

use super::{Failures, Loaded, Store, lock};
use crate::cache::{Blob, BlobWriter, Cache};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::manifest::{Entry, distinct_digests};
use crate::metrics::Counter;
use crate::reference::LogicalPath;
use crate::single_flight::SingleFlight;
use crate::source::{Deadline, Sink, Source};

/// How many blobs stay open after they were read.
pub const MOST_OPEN: usize = 512;

/// How many bytes of blobs that no disk would take stay in memory.
const MOST_MEMORY: usize = 64 << 20;

/// Files up to this size are hashed by whoever asks first, in one read that also is the answer;
/// larger ones (half a millisecond a MiB) in a task.
const HASH_INLINE: u64 = 1 << 20;

/// What changes when somebody writes to a file or replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fingerprint {
    device: u64,
    inode: u64,
    size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Fingerprint {
    fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// A verified blob.
#[derive(Clone)]
enum Verified {
    File(Arc<(File, Fingerprint)>),
    Memory(Bytes),
}

/// Blobs that no disk would take.
struct InMemory {
    blobs: LruCache<Digest, Bytes>,
    bytes: usize,
}

/// What the store knows about blobs.
pub(super) struct Content {
    open: Mutex<LruCache<Digest, Arc<(File, Fingerprint)>>>,
    memory: Mutex<InMemory>,
    /// The fingerprints of the files that were hashed in this session, open or not.
    hashed: Mutex<HashMap<Digest, Fingerprint>>,
    /// When blobs were found to have the right bytes; the last few thousand.
    verified: Mutex<LruCache<Digest, SystemTime>>,
    /// Which source the blobs fetched in this session came from; the last few thousand.
    origins: Mutex<LruCache<Digest, Arc<str>>>,
    flights: SingleFlight<Digest, Result<Verified>>,
    failures: Failures<Digest>,
}

impl Default for Content {
    fn default() -> Self {
        const OPEN: NonZeroUsize = NonZeroUsize::new(MOST_OPEN).expect("not zero");
        const ORIGINS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
        Self {
            open: Mutex::new(LruCache::new(OPEN)),
            memory: Mutex::new(InMemory {
                blobs: LruCache::unbounded(),
                bytes: 0,
            }),
            hashed: Mutex::default(),
            verified: Mutex::new(LruCache::new(ORIGINS)),
            origins: Mutex::new(LruCache::new(ORIGINS)),
            flights: SingleFlight::default(),
            failures: Failures::default(),
        }
    }
}

impl Content {
    fn opened(&self, digest: &Digest) -> Option<Verified> {
        if let Some(open) = lock(&self.open).get(digest) {
            return Some(Verified::File(Arc::clone(open)));
        }
        let bytes = lock(&self.memory).blobs.get(digest)?.clone();
        Some(Verified::Memory(bytes))
    }

    fn keep_file(&self, digest: Digest, file: File, fingerprint: Fingerprint) -> Verified {
        let open = Arc::new((file, fingerprint));
        // Unchanged since it was hashed: verified then, not now.
        if lock(&self.hashed).insert(digest, fingerprint) != Some(fingerprint) {
            lock(&self.verified).put(digest, SystemTime::now());
        }
        lock(&self.open).put(digest, Arc::clone(&open));
        Verified::File(open)
    }

    fn keep_memory(&self, digest: Digest, bytes: Bytes) -> Verified {
        lock(&self.verified).put(digest, SystemTime::now());
        let mut memory = lock(&self.memory);
        memory.bytes += bytes.len();
        if let Some((_, old)) = memory.blobs.push(digest, bytes.clone()) {
            memory.bytes -= old.len();
        }
        while memory.bytes > MOST_MEMORY && memory.blobs.len() > 1 {
            let Some((_, old)) = memory.blobs.pop_lru() else {
                break;
            };
            memory.bytes -= old.len();
        }
        Verified::Memory(bytes)
    }

    fn forget(&self, digest: &Digest) {
        lock(&self.open).pop(digest);
        lock(&self.hashed).remove(digest);
        lock(&self.verified).pop(digest);
    }
}

/// A file's digest and size, owned, for tasks.
#[derive(Clone)]
struct Wanted {
    loaded: Arc<Loaded>,
    index: u32,
    digest: Digest,
    size: u64,
}

impl Wanted {
    fn new(loaded: &Arc<Loaded>, entry: Entry<'_>) -> Self {
        Self {
            loaded: Arc::clone(loaded),
            index: entry.index(),
            digest: entry.digest(),
            size: entry.size(),
        }
    }

    /// As errors and logs name it.
    fn what(&self) -> String {
        let path = self
            .loaded
            .manifest
            .entry(self.index)
            .map_or("?", |entry| entry.path());
        format!("{}/{path}", self.loaded.manifest.id())
    }
}

/// The cached file is not what its name says.
struct BadFile;

impl Store {
    /// Reads up to `size` bytes at `offset` of the file at `index` into `buffer`, if that needs no
    /// waiting: the blob is open, or cached and small enough to be hashed at once.
    ///
    /// `buffer` is replaced, not appended to; at the end of the file it stays empty.
    pub fn read_now(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        index: u32,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
    ) -> Option<Result<()>> {
        buffer.clear();
        let entry = match file_entry(loaded, index) {
            Ok(entry) => entry,
            Err(error) => return Some(Err(error)),
        };
        if offset >= entry.size() {
            // Nothing to verify either: the size is the manifest's.
            return Some(Ok(()));
        }
        let wanted = Wanted::new(loaded, entry);
        if let Some(verified) = self.content.opened(&wanted.digest) {
            if read_verified(&verified, wanted.size, offset, size, buffer).is_ok() {
                return Some(Ok(()));
            }
            if wanted.size > HASH_INLINE {
                return None;
            }
            if let Some(verified) = self.recheck(&wanted, &verified)
                && read_verified(&verified, wanted.size, offset, size, buffer).is_ok()
            {
                return Some(Ok(()));
            }
        }
        let file = self.cache.open_blob(wanted.digest)?;
        if wanted.size > HASH_INLINE && !self.was_hashed(&wanted.digest, &file) {
            return None;
        }
        match self.verify_inline(&wanted, file, buffer) {
            Ok(()) => {
                slice(buffer, offset, size);
                self.note_read(loaded, index);
                Some(Ok(()))
            }
            Err(Some(verified)) => {
                let read = read_verified(&verified, wanted.size, offset, size, buffer);
                read.ok().map(|()| {
                    self.note_read(loaded, index);
                    Ok(())
                })
            }
            Err(None) => None,
        }
    }

    /// Hashes an open file again whose fingerprint has changed. Losing its name (a clean-up, a heal
    /// by rename) changes the ctime but not the bytes, and the descriptor goes on serving.
    fn recheck(&self, wanted: &Wanted, verified: &Verified) -> Option<Verified> {
        let Verified::File(open) = verified else {
            return Some(verified.clone());
        };
        let good = self.hash_file(wanted, &open.0).zip(open.0.try_clone().ok());
        if good.is_none() {
            self.content.forget(&wanted.digest);
        }
        good.map(|(fingerprint, file)| self.content.keep_file(wanted.digest, file, fingerprint))
    }

    fn was_hashed(&self, digest: &Digest, file: &File) -> bool {
        let now = Fingerprint::of(file).ok();
        now.is_some() && lock(&self.content.hashed).get(digest).copied() == now
    }

    /// Hashes a small cached file while reading it whole into `buffer`.
    ///
    /// `Err(Some(_))`: it was hashed before and is unchanged, so it was not read. `Err(None)`: bad.
    fn verify_inline(
        &self,
        wanted: &Wanted,
        file: File,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Option<Verified>> {
        let fingerprint = Fingerprint::of(&file).map_err(|_| None)?;
        if lock(&self.content.hashed).get(&wanted.digest) == Some(&fingerprint) {
            return Err(Some(self.content.keep_file(
                wanted.digest,
                file,
                fingerprint,
            )));
        }
        self.metrics.count(Counter::Verified);
        // A file of another size needs no reading.
        let read = fingerprint.size == wanted.size && {
            buffer.reserve_exact(usize::try_from(wanted.size).unwrap_or(0));
            (&file).take(wanted.size).read_to_end(buffer).is_ok()
        };
        if read && Digest::of(buffer) == wanted.digest {
            self.content.keep_file(wanted.digest, file, fingerprint);
            return Ok(());
        }
        buffer.clear();
        self.report_bad(wanted);
        Err(None)
    }

    fn report_bad(&self, wanted: &Wanted) {
        self.metrics.count(Counter::VerifyFailed);
        warn!(what = wanted.what(), blob = %wanted.digest, "the cached blob is damaged; fetching it again");
    }

    /// Reads like [`Store::read_now`], fetching the blob if need be.
    ///
    /// # Errors
    ///
    /// [`Error::WrongBytes`] when neither the cache nor any source has the right bytes, and
    /// otherwise what the last source said. A failure is answered from memory for two seconds.
    pub async fn read(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        index: u32,
        offset: u64,
        size: u32,
        deadline: Deadline,
    ) -> Result<Vec<u8>> {
        let wanted = Wanted::new(loaded, file_entry(loaded, index)?);
        if self.cache.blob_size(wanted.digest).is_none() {
            self.note_cold(loaded, index);
        }
        // Again if it changed: another tool may touch or damage the file at any moment.
        for _ in 0..3 {
            let verified = self.obtain(&wanted, deadline).await?;
            let mut buffer = Vec::new();
            if read_verified(&verified, wanted.size, offset, size, &mut buffer).is_ok() {
                return Ok(buffer);
            }
            debug!(
                what = wanted.what(),
                "the blob changed after it was verified"
            );
            let (store, wanted) = (Arc::clone(self), wanted.clone());
            let recheck =
                tokio::task::spawn_blocking(move || store.recheck(&wanted, &verified).is_some());
            let _ = recheck.await;
        }
        Err(Error::WrongBytes {
            what: wanted.what(),
            expected: wanted.digest,
            origin: "the cache, which is being changed,".to_owned(),
        })
    }

    /// Makes sure that a file is cached and verified, for read-ahead and loading.
    ///
    /// # Errors
    ///
    /// Those of [`Store::read`].
    pub async fn fetch_file(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        index: u32,
        deadline: Deadline,
    ) -> Result<()> {
        let wanted = Wanted::new(loaded, file_entry(loaded, index)?);
        self.obtain(&wanted, deadline).await.map(drop)
    }

    /// Whether the file's blob is cached, verified or not.
    pub fn is_cached(&self, digest: Digest) -> bool {
        self.content.opened(&digest).is_some() || self.cache.blob_size(digest).is_some()
    }

    /// How many bytes of a version's content are not cached. Looks at every distinct blob.
    pub(super) fn missing_bytes(&self, loaded: &Loaded) -> u64 {
        let mut digests = distinct_digests(&loaded.manifest);
        loaded
            .manifest
            .files()
            .filter(|file| digests.remove(&file.digest()) && !self.is_cached(file.digest()))
            .map(|file| file.size())
            .sum()
    }

    /// Where the blob came from: a source of this session, or `cache`.
    pub fn blob_origin(&self, digest: Digest) -> Arc<str> {
        let fetched = lock(&self.content.origins).get(&digest).cloned();
        fetched.unwrap_or_else(|| "cache".into())
    }

    /// When the blob's bytes were last compared with its digest in this session.
    pub fn verified_at(&self, digest: Digest) -> Option<SystemTime> {
        lock(&self.content.verified).peek(&digest).copied()
    }

    async fn obtain(self: &Arc<Self>, wanted: &Wanted, deadline: Deadline) -> Result<Verified> {
        if let Some(verified) = self.content.opened(&wanted.digest) {
            return Ok(verified);
        }
        loop {
            let started = !self.content.flights.is_running(&wanted.digest);
            if !started {
                self.metrics.count(Counter::Joined);
            }
            let flight = async {
                let start = || {
                    let (store, wanted) = (Arc::clone(self), wanted.clone());
                    async move { store.obtain_now(wanted).await }
                };
                let landed = self.content.flights.run(wanted.digest, start).await;
                landed.map_err(|lost| Error::Internal(lost.to_string()))?
            };
            match deadline.run(wanted.what(), flight).await {
                // Somebody else's budget ended, not ours.
                Err(Error::Timeout { .. }) if !started && !deadline.is_over() => {}
                answer => return answer,
            }
        }
    }

    async fn obtain_now(self: Arc<Self>, wanted: Wanted) -> Result<Verified> {
        if let Some(error) = self.content.failures.recent(&wanted.digest) {
            return Err(error);
        }
        let deadline = Deadline::after(self.policy.content_timeout);
        let cached = match self.verify_cached(&wanted).await {
            Ok(Some(verified)) => return Ok(verified),
            Ok(None) => Ok(()),
            Err(BadFile) => Err(BadFile),
        };
        let work = async {
            self.await_pull(&wanted.loaded, deadline).await;
            let lock = self.locks.acquire(wanted.digest, deadline).await;
            // Another process, or a pull, may have been quicker.
            if cached.is_ok()
                && let Ok(Some(verified)) = self.verify_cached(&wanted).await
            {
                return Ok(verified);
            }
            let fetched = self.fetch_blob(&wanted, deadline).await;
            drop(lock);
            fetched
        };
        let answer = deadline
            .run(wanted.what(), work)
            .await
            .map_err(|error| match cached {
                Err(BadFile) if error.is_outage() => Error::WrongBytes {
                    what: wanted.what(),
                    expected: wanted.digest,
                    origin: format!("the cache (and it cannot be fetched again: {error})"),
                },
                _ => error,
            });
        if let Err(error) = &answer {
            self.content.failures.remember(wanted.digest, error.clone());
        }
        answer
    }

    /// Hashes what is on disk, if anything is: the blob, or another tool's copy of the file.
    async fn verify_cached(self: &Arc<Self>, wanted: &Wanted) -> Result<Option<Verified>, BadFile> {
        let (store, wanted) = (Arc::clone(self), wanted.clone());
        let work = tokio::task::spawn_blocking(move || {
            let Some(file) = store.cache.open_blob(wanted.digest) else {
                return Ok(store.adopt_copy(&wanted));
            };
            if let Some(fingerprint) = store.hash_file(&wanted, &file) {
                return Ok(Some(store.content.keep_file(
                    wanted.digest,
                    file,
                    fingerprint,
                )));
            }
            store.report_bad(&wanted);
            store.adopt_copy(&wanted).map(Some).ok_or(BadFile)
        });
        work.await.unwrap_or(Ok(None))
    }

    /// The fingerprint of `file` if it has the wanted bytes.
    fn hash_file(&self, wanted: &Wanted, file: &File) -> Option<Fingerprint> {
        let fingerprint = Fingerprint::of(file).ok()?;
        if fingerprint.size != wanted.size {
            return None;
        }
        if lock(&self.content.hashed).get(&wanted.digest) == Some(&fingerprint) {
            return Some(fingerprint);
        }
        self.metrics.count(Counter::Verified);
        let mut hasher = Hasher::new();
        let mut chunk = vec![0; 256 << 10];
        let mut offset = 0;
        loop {
            match rustix::io::pread(file, &mut chunk, offset) {
                Ok(0) => break,
                Ok(read) => {
                    hasher.update(&chunk[..read]);
                    offset += read as u64;
                }
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        (hasher.finish() == wanted.digest).then_some(fingerprint)
    }

    /// Takes a file that another tool extracted as the blob, if its bytes are right.
    fn adopt_copy(&self, wanted: &Wanted) -> Option<Verified> {
        let manifest = &wanted.loaded.manifest;
        let path: LogicalPath = manifest.entry(wanted.index)?.path().parse().ok()?;
        let copy = self.cache.legacy_copy(manifest.id(), &path)?;
        self.hash_file(wanted, &copy)?;
        let mut writer = self.cache.blob_writer(wanted.size);
        let mut chunk = vec![0; 256 << 10];
        let mut offset = 0;
        while let Ok(read @ 1..) = rustix::io::pread(&copy, &mut chunk, offset) {
            writer.write(&chunk[..read]).ok()?;
            offset += read as u64;
        }
        self.keep_blob(wanted.digest, writer.finish(wanted.digest).ok()?)
            .ok()
    }

    fn keep_blob(&self, digest: Digest, blob: Blob) -> Result<Verified> {
        Ok(match blob {
            Blob::Memory(bytes) => self.content.keep_memory(digest, bytes),
            Blob::File(file) => {
                let fingerprint =
                    Fingerprint::of(&file).map_err(|error| Error::io(self.cache.root(), error))?;
                self.content.keep_file(digest, file, fingerprint)
            }
        })
    }

    /// Asks the sources in order; a source with the wrong bytes counts as failed.
    async fn fetch_blob(&self, wanted: &Wanted, deadline: Deadline) -> Result<Verified> {
        let mut failure = Error::Offline {
            what: wanted.what(),
        };
        for source in &self.sources {
            match self.fetch_from(source, wanted, deadline).await {
                Ok(verified) => {
                    let mut origins = lock(&self.content.origins);
                    origins.put(wanted.digest, source.name().into());
                    self.metrics.add(Counter::SourceBytes, wanted.size);
                    return Ok(verified);
                }
                Err(error) => {
                    if matches!(error, Error::WrongBytes { .. }) {
                        self.metrics.count(Counter::VerifyFailed);
                        warn!(what = wanted.what(), source = source.name(), %error, "a source served wrong bytes");
                    }
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    async fn fetch_from(
        &self,
        source: &Arc<dyn Source>,
        wanted: &Wanted,
        deadline: Deadline,
    ) -> Result<Verified> {
        let manifest = &wanted.loaded.manifest;
        let entry = file_entry(&wanted.loaded, wanted.index)?;
        let mut writer = self.cache.blob_writer(wanted.size);
        source.blob(manifest, entry, &mut writer, deadline).await?;
        let wrong = || Error::WrongBytes {
            what: wanted.what(),
            expected: wanted.digest,
            origin: source.name().to_owned(),
        };
        if writer.written() != wanted.size {
            return Err(wrong());
        }
        // Renaming into place is quick; the bytes were written as they came.
        let blob = writer.finish(wanted.digest).map_err(|error| match error {
            Error::WrongBytes { .. } => wrong(),
            other => other,
        })?;
        self.keep_blob(wanted.digest, blob)
    }

    /// Caches content that came in bulk; what does not match the manifest is dropped.
    pub(super) fn keep_pulled(
        &self,
        loaded: &Loaded,
        pulled: Vec<(String, Bytes)>,
        origin: &Arc<str>,
    ) -> usize {
        let mut kept = 0;
        for (path, bytes) in pulled {
            let Some(file) = loaded.manifest.find(&path).filter(Entry::is_file) else {
                continue;
            };
            if bytes.len() as u64 != file.size() || Digest::of(&bytes) != file.digest() {
                continue;
            }
            let mut writer = self.cache.blob_writer(file.size());
            let blob = writer
                .write(&bytes)
                .and_then(|()| writer.finish(file.digest()));
            if blob
                .and_then(|blob| self.keep_blob(file.digest(), blob))
                .is_ok()
            {
                kept += 1;
                self.metrics.add(Counter::SourceBytes, file.size());
                lock(&self.content.origins).put(file.digest(), Arc::clone(origin));
            }
        }
        kept
    }

    /// The cache that the store works on.
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }
}

/// What a source writes goes to a temporary file of the cache, or to memory.
impl Sink for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Self::write(self, bytes)
    }

    fn restart(&mut self) {
        Self::restart(self);
    }
}

fn file_entry(loaded: &Loaded, index: u32) -> Result<Entry<'_>> {
    let entry = loaded.manifest.entry(index).filter(Entry::is_file);
    entry.ok_or_else(|| Error::not_found(format_args!("file {index} of {}", loaded.manifest.id())))
}

/// Cuts `buffer`, a whole file, down to the wanted part.
fn slice(buffer: &mut Vec<u8>, offset: u64, size: u32) {
    let start = usize::try_from(offset)
        .unwrap_or(usize::MAX)
        .min(buffer.len());
    buffer.drain(..start);
    buffer.truncate(size as usize);
}

/// Reads from a verified blob; an error means that it is no longer what was verified.
fn read_verified(
    verified: &Verified,
    whole: u64,
    offset: u64,
    size: u32,
    buffer: &mut Vec<u8>,
) -> io::Result<()> {
    buffer.clear();
    let end = offset.saturating_add(u64::from(size)).min(whole);
    let length = usize::try_from(end.saturating_sub(offset)).unwrap_or(0);
    match verified {
        Verified::Memory(bytes) => {
            let start = usize::try_from(offset)
                .unwrap_or(usize::MAX)
                .min(bytes.len());
            buffer.extend_from_slice(&bytes[start..(start + length).min(bytes.len())]);
        }
        Verified::File(open) => {
            let (file, fingerprint) = &**open;
            buffer.resize(length, 0);
            let mut done = 0;
            while done < length {
                match read_some(file, whole, offset + done as u64, &mut buffer[done..]) {
                    Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Ok(read) => done += read,
                    Err(Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            // After the read: nothing that was written before it can have escaped.
            if Fingerprint::of(file)? != *fingerprint {
                return Err(io::Error::other("the file was modified"));
            }
        }
    }
    Ok(())
}

/// One `pread`. A file over 1 MiB should not fill the page cache twice, once here and once above
/// the mount, so it is read without staying where the kernel (6.14 and later) can do that.
fn read_some(file: &File, whole: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
    static UNSUPPORTED: AtomicBool = AtomicBool::new(false);
    if whole > HASH_INLINE && !UNSUPPORTED.load(Ordering::Relaxed) {
        let mut slices = [io::IoSliceMut::new(buffer)];
        match rustix::io::preadv2(file, &mut slices, offset, DONT_CACHE) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                UNSUPPORTED.store(true, Ordering::Relaxed)
            }
            answer => return answer,
        }
    }
    rustix::io::pread(file, buffer, offset)
}
