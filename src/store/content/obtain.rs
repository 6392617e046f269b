//! Getting a blob that is not at hand: from the disk, from another tool's copy, or from a source.

use std::fs::File;
use std::sync::Arc;

use tracing::warn;

use super::{Wanted, file_entry};
use crate::cache::{Blob, BlobWriter};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::metrics::Counter;
use crate::reference::LogicalPath;
use crate::source::{Deadline, Sink, Source};
use crate::store::Store;
use crate::store::kept::{Fingerprint, Verified};
use crate::sync::lock;

/// The cached file is not what its name says. It is still the same file as long as its fingerprint
/// is this one.
#[derive(Clone, Copy)]
struct BadFile(Option<Fingerprint>);

impl Store {
    /// The blob, from wherever it can be had first, verified. All who want it at once share one
    /// attempt, also with other processes.
    pub(super) async fn obtain(
        self: &Arc<Self>,
        wanted: &Wanted,
        deadline: Deadline,
    ) -> Result<Verified> {
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

    fn report_bad(&self, wanted: &Wanted) {
        self.metrics.count(Counter::VerifyFailed);
        warn!(what = wanted.what(), blob = %wanted.digest, "the cached blob is damaged; fetching it again");
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

    /// Keeps a blob whose bytes are right at hand.
    pub(super) fn keep_blob(&self, digest: Digest, blob: Blob) -> Result<Verified> {
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
    pub(super) async fn fetch_blob(
        self: &Arc<Self>,
        wanted: &Wanted,
        deadline: Deadline,
    ) -> Result<Verified> {
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
