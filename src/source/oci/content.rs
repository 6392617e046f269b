//! Files' bytes: blobs, or pieces of archives.
//!
//! A file of an archive has no blob of its own. Which archives a version has is known from when its
//! manifest was read, or found out again when the registry lacks a blob: another process may have
//! put the list of files into the cache.

use std::sync::Arc;
use std::time::Duration;

use super::OciSource;
use super::archive::Archive;
use super::model::MAX_BLOB;
use super::reference::Repository;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Entry, Manifest};
use crate::source::http::Lane;
use crate::source::{Deadline, Sink};
use crate::sync::lock;

/// How long an archive may take, whatever the deadlines of those who wait for it are: the largest
/// at 2 Mbit/s. One that stops coming ends sooner.
const ARCHIVE_PATIENCE: Duration = Duration::from_secs(300);

impl OciSource {
    /// Writes the content of `file` into `sink`, from `repository`.
    pub(super) async fn content(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        let what = format!("{}/{}", manifest.id(), file.path());
        if file.size() > MAX_BLOB {
            let reason = format!("it has more than {MAX_BLOB} bytes");
            return Err(self.malformed(&what, reason));
        }
        let digest = file.digest();
        let is_packed = |image: Digest| {
            let packed = lock(&self.inner.packed).get(&image).cloned();
            let archives = &self.inner.archives;
            packed
                .is_some_and(|packed| packed.iter().any(|(layer, _)| archives.has(*layer, digest)))
        };
        let image = manifest.info().oci_digest.as_deref();
        let image: Option<Digest> = image.and_then(|image| image.parse().ok());
        if image.is_some_and(is_packed) {
            let unpacked = self.unpack(repository, manifest, file, &what, sink, deadline);
            if unpacked.await? {
                return Ok(());
            }
        }
        let asked = self
            .client()
            .blob(
                Lane::Content,
                repository,
                digest,
                file.size(),
                &what,
                sink,
                deadline,
            )
            .await;
        match asked {
            Err(absent @ Error::NotFound { .. }) if self.client().is_mirror() => Err(absent),
            Err(absent @ Error::NotFound { .. }) => {
                let unpacked = self.unpack(repository, manifest, file, &what, sink, deadline);
                match unpacked.await {
                    Ok(true) => Ok(()),
                    Ok(false) | Err(Error::NotFound { .. }) => Err(self.missing(absent, &what)),
                    Err(error) => Err(error),
                }
            }
            answer => answer,
        }
    }

    /// An archive, from memory or fetched whole.
    pub(super) async fn archive(
        &self,
        repository: &Repository,
        digest: Digest,
        size: u64,
        what: &str,
        deadline: Deadline,
    ) -> Result<Arc<Archive>> {
        if let Some(archive) = self.inner.archives.get(digest) {
            return Ok(archive);
        }
        let start = || {
            let (inner, repository) = (Arc::clone(&self.inner), repository.clone());
            let (what, name) = (what.to_owned(), self.name.clone());
            async move {
                let mut arriving = inner.arrivals.collect();
                inner
                    .client
                    .blob(
                        Lane::Archives,
                        &repository,
                        digest,
                        size,
                        &what,
                        &mut arriving,
                        Deadline::after(ARCHIVE_PATIENCE),
                    )
                    .await?;
                let packed = arriving.into_bytes();
                let _unpacking = inner.arrivals.unpack();
                let reader = Arc::clone(&inner);
                let read = move || {
                    let archives = &reader.archives;
                    archives.get_or_read(digest, || Archive::read(packed))
                };
                tokio::task::spawn_blocking(read)
                    .await
                    .map_err(|error| Error::Internal(format!("an archive was lost: {error}")))?
                    .map_err(|reason| Error::Malformed {
                        what,
                        origin: name,
                        reason,
                    })
            }
        };
        let flight = async {
            let key = (repository.clone(), digest);
            let landed = self.archive_flights.run(key, start).await;
            landed.map_err(|lost| Error::Internal(lost.to_string()))?
        };
        deadline
            .run(what, flight)
            .await
            .map_err(|error| self.missing(error, what))
    }

    /// Writes a file into `sink` that is in an archive of the manifest, if there is one.
    async fn unpack(
        &self,
        repository: &Repository,
        manifest: &Manifest,
        file: Entry<'_>,
        what: &str,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<bool> {
        let named = manifest.info().oci_digest.as_deref();
        let Some(image) = named.and_then(|digest| digest.parse::<Digest>().ok()) else {
            return Ok(false);
        };
        let known = lock(&self.inner.packed).get(&image).cloned();
        let packed = match known {
            Some(packed) => packed,
            None => {
                // Of another session: the cache knows the files, but not what they are in.
                let fetched = self
                    .fetch(repository, &image.to_string(), what, deadline)
                    .await?;
                self.files(repository, &fetched, what, deadline).await?;
                let known = lock(&self.inner.packed).get(&image).cloned();
                known.unwrap_or_default()
            }
        };
        for (layer, size) in packed.iter() {
            let archive = self
                .archive(repository, *layer, *size, what, deadline)
                .await?;
            if let Some(content) = archive.content(file.digest()) {
                sink.restart();
                sink.write(content)?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}
