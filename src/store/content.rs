//! Blobs: verified once, kept open, fetched when missing or bad.
//!
//! ```text
//! open descriptor or memory ──► cached file, hashed ──► other tools' leftovers, hashed ──► sources
//!        read_now                    read_now (small)                     read
//! ```
//!
//! A cached file is hashed when it is first used and again whenever its fingerprint differs: other
//! tools write blobs in place, and disks decay. `kept.rs` has those that are at hand.
//!
//! A blob that could not be had is answered from memory for [`FAILURE_MEMORY`]: the kernel asks a
//! failed READ twice, and the second must not wait as long as the first. The sources are asked in
//! order, each within its share of the time; one that serves wrong bytes counts as failed.

use std::fs::File;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use lru::LruCache;
use tokio::time::Instant;
use tracing::{debug, warn};

pub use super::kept::MOST_OPEN;
use super::kept::{Fingerprint, Kept, Verified, hash};
use super::{Loaded, Store};
use crate::cache::{Blob, BlobWriter, Cache};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Entry, distinct_digests};
use crate::metrics::Counter;
use crate::reference::LogicalPath;
use crate::single_flight::SingleFlight;
use crate::source::{Deadline, Sink, Source};
use crate::sync::lock;

/// How long a failed fetch is answered from memory.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(2);

/// Files up to this size are hashed by whoever asks first, in one read that also is the answer;
/// larger ones (half a millisecond a MiB) in a task.
const HASH_INLINE: u64 = 1 << 20;

/// What a blob is expected to be. With its size, because a manifest that lies about one must not
/// spoil the file for those that do not.
type Expected = (Digest, u64);

/// What the store knows about blobs.
pub(super) struct Content {
    kept: Kept,
    /// Which source the blobs fetched in this session came from; the last few thousand.
    origins: Mutex<LruCache<Digest, Arc<str>>>,
    flights: SingleFlight<Expected, Result<Verified>>,
    failures: Mutex<LruCache<Expected, (Instant, Error)>>,
}

impl Default for Content {
    fn default() -> Self {
        const ORIGINS: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");
        // Only the last moment counts; more failures than this in that time are asked again.
        const FAILURES: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
        Self {
            kept: Kept::default(),
            origins: Mutex::new(LruCache::new(ORIGINS)),
            flights: SingleFlight::default(),
            failures: Mutex::new(LruCache::new(FAILURES)),
        }
    }
}

impl Content {
    fn remember_failure(&self, blob: Expected, error: &Error) {
        lock(&self.failures).put(blob, (Instant::now(), error.clone()));
    }

    fn recent_failure(&self, blob: &Expected) -> Option<Error> {
        let failures = lock(&self.failures);
        let (at, error) = failures.peek(blob)?;
        (at.elapsed() < FAILURE_MEMORY).then(|| error.clone())
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

    fn expected(&self) -> Expected {
        (self.digest, self.size)
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

/// The cached file is not what its name says. It is still the same file as long as its fingerprint
/// is this one.
#[derive(Clone, Copy)]
struct BadFile(Option<Fingerprint>);

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
        self.tell_read(wanted.digest);
        if let Some(verified) = self.content.kept.opened(&wanted.digest) {
            if verified.read(wanted.size, offset, size, buffer).is_ok() {
                self.note_read(loaded, index);
                return Some(Ok(()));
            }
            if wanted.size > HASH_INLINE {
                return None;
            }
            if let Some(verified) = self.recheck(&wanted, &verified)
                && verified.read(wanted.size, offset, size, buffer).is_ok()
            {
                self.note_read(loaded, index);
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
                let read = verified.read(wanted.size, offset, size, buffer);
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
            self.content.kept.forget(&wanted.digest);
        }
        good.map(|(fingerprint, file)| {
            self.content
                .kept
                .keep_file(wanted.digest, file, fingerprint)
        })
    }

    fn was_hashed(&self, digest: &Digest, file: &File) -> bool {
        Fingerprint::of(file).is_ok_and(|now| self.content.kept.was_hashed(digest, now))
    }

    /// Hashes a small cached file while reading it whole into `buffer`.
    ///
    /// `Err(Some(_))`: it was hashed before and is unchanged, so it was not read. `Err(None)`: bad,
    /// or too large.
    fn verify_inline(
        &self,
        wanted: &Wanted,
        file: File,
        buffer: &mut Vec<u8>,
    ) -> Result<(), Option<Verified>> {
        let fingerprint = Fingerprint::of(&file).map_err(|_| None)?;
        if self.content.kept.was_hashed(&wanted.digest, fingerprint) {
            return Err(Some(self.content.kept.keep_file(
                wanted.digest,
                file,
                fingerprint,
            )));
        }
        // A file of another size needs no reading, and one that has changed only now is too large
        // to be hashed here. Whoever fetches it anew reports it.
        if fingerprint.size != wanted.size || wanted.size > HASH_INLINE {
            return Err(None);
        }
        buffer.reserve_exact(usize::try_from(wanted.size).unwrap_or(0));
        let read = (&file).take(wanted.size).read_to_end(buffer).is_ok();
        if read && Digest::of(buffer) == wanted.digest {
            self.metrics.count(Counter::Verified);
            self.content
                .kept
                .keep_file(wanted.digest, file, fingerprint);
            return Ok(());
        }
        buffer.clear();
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
        self.tell_read(wanted.digest);
        let _waiting = match self.cache.blob_size(wanted.digest) {
            None => self.note_cold(loaded, index),
            Some(_) => None,
        };
        // Again if it changed: another tool may touch or damage the file at any moment.
        for _ in 0..3 {
            let verified = self.obtain(&wanted, deadline).await?;
            let mut buffer = Vec::new();
            if verified
                .read(wanted.size, offset, size, &mut buffer)
                .is_ok()
            {
                self.note_read(loaded, index);
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

    /// Fetches a file again, whatever the cache has, and replaces a cached blob that is bad.
    ///
    /// # Errors
    ///
    /// What the last source said. The cached blob stays as it is then.
    pub async fn refetch_file(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        index: u32,
        deadline: Deadline,
    ) -> Result<()> {
        let wanted = Wanted::new(loaded, file_entry(loaded, index)?);
        let work = async {
            let _lock = self.locks.acquire(wanted.digest, deadline).await;
            self.fetch_blob(&wanted, deadline).await
        };
        deadline.run(wanted.what(), work).await.map(drop)
    }

    fn tell_read(&self, digest: Digest) {
        if let Some(observer) = self.observer.get() {
            observer.blob_read(digest);
        }
    }

    /// Closes blobs that were removed from the disk to make room: as long as they are open, they
    /// take the room.
    pub fn close_blobs(&self, digests: &[Digest]) {
        for digest in digests {
            self.content.kept.forget(digest);
        }
    }

    /// Closes every blob that has lost its name, whoever took it.
    pub fn close_nameless(&self) {
        self.content.kept.forget_nameless();
    }

    /// Whether the file's blob is cached, verified or not.
    pub fn is_cached(&self, digest: Digest) -> bool {
        self.content.kept.opened(&digest).is_some() || self.cache.blob_size(digest).is_some()
    }

    /// Whether a version is better fetched in one answer than file by file: all of it is no more
    /// than `most` bytes, and more than half of them are not cached. The rest would be fetched a
    /// second time. Looks at every distinct blob.
    pub(crate) fn is_worth_a_pull(&self, loaded: &Loaded, most: u64) -> bool {
        let mut digests = distinct_digests(&loaded.manifest);
        let (mut all, mut missing) = (0_u64, 0_u64);
        for file in loaded.manifest.files() {
            if digests.remove(&file.digest()) {
                all = all.saturating_add(file.size());
                if all > most {
                    return false;
                }
                if !self.is_cached(file.digest()) {
                    missing += file.size();
                }
            }
        }
        missing > all / 2
    }

    /// Where the blob came from: a source of this session, or `cache`.
    pub fn blob_origin(&self, digest: Digest) -> Arc<str> {
        let fetched = lock(&self.content.origins).get(&digest).cloned();
        fetched.unwrap_or_else(|| "cache".into())
    }

    /// When the blob's bytes were last compared with its digest in this session.
    pub fn verified_at(&self, digest: Digest) -> Option<SystemTime> {
        self.content.kept.verified_at(&digest)
    }

    async fn obtain(self: &Arc<Self>, wanted: &Wanted, deadline: Deadline) -> Result<Verified> {
        if let Some(verified) = self.content.kept.opened(&wanted.digest) {
            return Ok(verified);
        }
        if let Some(error) = self.content.recent_failure(&wanted.expected()) {
            return Err(error);
        }
        let blob = wanted.expected();
        let start = || {
            let (store, wanted) = (Arc::clone(self), wanted.clone());
            async move { store.obtain_now(wanted).await }
        };
        let flights = &self.content.flights;
        let answer = deadline
            .join(flights, &blob, wanted.what(), &self.metrics, start)
            .await;
        if let Err(error @ Error::Timeout { .. }) = &answer {
            // The download's own budget may end a moment after its reader's.
            self.content.remember_failure(blob, error);
        }
        answer
    }

    async fn obtain_now(self: Arc<Self>, wanted: Wanted) -> Result<Verified> {
        let deadline = Deadline::after(self.policy.content_timeout);
        let cached = match self.verify_cached(&wanted, None).await {
            Ok(Some(verified)) => return Ok(verified),
            cached => cached.err(),
        };
        let work = async {
            self.await_pull(&wanted.loaded, deadline).await;
            // Whoever holds the lock may be stopped: then there is time left to do without.
            let lock = self.locks.acquire(wanted.digest, deadline.share(2)).await;
            // Another process, or a pull, may have been quicker.
            if let Ok(Some(verified)) = self.verify_cached(&wanted, cached).await {
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
                Some(_) if error.is_outage() => Error::WrongBytes {
                    what: wanted.what(),
                    expected: wanted.digest,
                    origin: format!("the cache (and it cannot be fetched again: {error})"),
                },
                _ => error,
            });
        if let Err(error) = &answer {
            self.content.remember_failure(wanted.expected(), error);
        }
        answer
    }

    /// Hashes what is on disk, if anything is: the blob, or another tool's copy of the file. A file
    /// that was found bad before and is still the same is not looked at again.
    async fn verify_cached(
        self: &Arc<Self>,
        wanted: &Wanted,
        before: Option<BadFile>,
    ) -> Result<Option<Verified>, BadFile> {
        // Hashing takes a thread that may be kept busy. To find that there is nothing to hash takes
        // microseconds, and waking a thread for it many times that: most blobs that are fetched have
        // never been here.
        if self.cache.open_blob(wanted.digest).is_none() && self.copy_of(wanted).is_none() {
            return Ok(None);
        }
        let (store, wanted) = (Arc::clone(self), wanted.clone());
        let work = tokio::task::spawn_blocking(move || {
            let Some(file) = store.cache.open_blob(wanted.digest) else {
                return Ok(store.adopt_copy(&wanted));
            };
            let bad = BadFile(Fingerprint::of(&file).ok());
            if before.is_some_and(|before| before.0 == bad.0) {
                return Err(bad);
            }
            if let Some(fingerprint) = store.hash_file(&wanted, &file) {
                return Ok(Some(store.content.kept.keep_file(
                    wanted.digest,
                    file,
                    fingerprint,
                )));
            }
            store.report_bad(&wanted);
            store.adopt_copy(&wanted).map(Some).ok_or(bad)
        });
        work.await.unwrap_or(Ok(None))
    }

    /// The fingerprint of `file` if it has the wanted bytes.
    fn hash_file(&self, wanted: &Wanted, file: &File) -> Option<Fingerprint> {
        let fingerprint = Fingerprint::of(file).ok()?;
        if fingerprint.size != wanted.size {
            return None;
        }
        if self.content.kept.was_hashed(&wanted.digest, fingerprint) {
            return Some(fingerprint);
        }
        self.metrics.count(Counter::Verified);
        (hash(file).ok()? == wanted.digest).then_some(fingerprint)
    }

    /// The file that another tool extracted, if there is one.
    fn copy_of(&self, wanted: &Wanted) -> Option<File> {
        let manifest = &wanted.loaded.manifest;
        let path: LogicalPath = manifest.entry(wanted.index)?.path().parse().ok()?;
        self.cache.legacy_copy(manifest.id(), &path)
    }

    /// Takes a file that another tool extracted as the blob, if its bytes are right.
    fn adopt_copy(&self, wanted: &Wanted) -> Option<Verified> {
        let copy = self.copy_of(wanted)?;
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
            Blob::Memory(bytes) => self.content.kept.keep_memory(digest, bytes),
            Blob::File(file) => {
                let fingerprint =
                    Fingerprint::of(&file).map_err(|error| Error::io(self.cache.root(), error))?;
                self.content.kept.keep_file(digest, file, fingerprint)
            }
        })
    }

    /// Asks the sources in order; a source with the wrong bytes counts as failed.
    async fn fetch_blob(self: &Arc<Self>, wanted: &Wanted, deadline: Deadline) -> Result<Verified> {
        let mut failure = Error::Offline {
            what: wanted.what(),
        };
        for (asked, source) in self.sources.iter().enumerate() {
            let share = deadline.share(self.sources.len() - asked);
            let fetching = self.fetch_from(source, wanted, share);
            match share.run(wanted.what(), fetching).await {
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
        if failure.is_absence() {
            // The manifest lists it, so it is the answer that makes no sense; and ENOENT from a READ
            // has the kernel ask again and again.
            failure = Error::Malformed {
                what: wanted.what(),
                origin: "the registry".into(),
                reason: "it lists the file, and has no content for it".into(),
            };
        }
        Err(failure)
    }

    async fn fetch_from(
        self: &Arc<Self>,
        source: &Arc<dyn Source>,
        wanted: &Wanted,
        deadline: Deadline,
    ) -> Result<Verified> {
        let manifest = &wanted.loaded.manifest;
        let entry = file_entry(&wanted.loaded, wanted.index)?;
        let mut download = Download {
            writer: self.cache.blob_writer(wanted.size),
            overflowed: false,
        };
        let asked = source.blob(manifest, entry, &mut download, deadline).await;
        let (what, expected) = (wanted.what(), wanted.digest);
        let wrong = Error::WrongBytes {
            what: what.clone(),
            expected,
            origin: source.name().to_owned(),
        };
        if download.overflowed {
            return Err(wrong);
        }
        asked?;
        let writer = download.writer;
        if writer.written() != wanted.size {
            return Err(wrong);
        }
        // A blob that is there meanwhile is hashed before it is replaced.
        let store = Arc::clone(self);
        let placing = tokio::task::spawn_blocking(move || {
            let blob = writer.finish(expected).map_err(|error| match error {
                Error::WrongBytes { .. } => wrong,
                other => other,
            })?;
            store.keep_blob(expected, blob)
        });
        placing
            .await
            .map_err(|lost| Error::Internal(format!("{what}: {lost}")))?
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
struct Download {
    writer: BlobWriter,
    /// Whether more came than the manifest says there is.
    overflowed: bool,
}

impl Sink for Download {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.writer.write(bytes);
        self.overflowed |= matches!(written, Err(Error::Malformed { .. }));
        written
    }

    fn restart(&mut self) {
        self.overflowed = false;
        self.writer.restart();
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
