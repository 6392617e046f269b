//! Blobs: verified once, kept open, fetched when missing or bad.
//!
//! ```text
//! open descriptor or memory ──► cached file, hashed ──► other tools' leftovers, hashed ──► sources
//!        read_now                    read_now (small)                     read
//! ```
//!
//! A cached file is hashed when it is first used and again whenever its fingerprint differs: other
//! tools write blobs in place, and disks decay. `kept.rs` has those that are at hand,
//! `obtain.rs` gets the others.
//!
//! A blob that could not be had is answered from memory for [`FAILURE_MEMORY`]: the kernel asks a
//! failed READ twice, and the second must not wait as long as the first. The sources are asked in
//! order, each within its share of the time; one that serves wrong bytes counts as failed.

mod obtain;

use std::fs::File;
use std::io::Read as _;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use lru::LruCache;
use tokio::time::Instant;
use tracing::debug;

pub use super::kept::MOST_OPEN;
use super::kept::{Fingerprint, Kept, Verified, hash};
use super::{Loaded, Store};
use crate::cache::Cache;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Entry, distinct_digests};
use crate::metrics::Counter;
use crate::single_flight::SingleFlight;
use crate::source::Deadline;
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

    /// As [`Store::is_worth_a_pull`], on a thread that may be kept busy.
    pub(crate) async fn found_worth_a_pull(
        self: &Arc<Self>,
        loaded: &Arc<Loaded>,
        most: u64,
    ) -> bool {
        let (store, loaded) = (Arc::clone(self), Arc::clone(loaded));
        tokio::task::spawn_blocking(move || store.is_worth_a_pull(&loaded, most))
            .await
            .unwrap_or(false)
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

    /// Caches content that came in bulk; what does not match the manifest is dropped. Hashes and
    /// writes all of it: not for a thread that serves others.
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
