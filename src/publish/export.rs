//! Versions from the cache or a registry into an image layout, and back.
//!
//! What is exported is verified once more on its way, file by file. Its manifest is the one that the
//! registry has, if the registry can be asked for it: then digest, annotations and signatures are
//! those of the origin. Otherwise it is made again from the version's table; config and layers are
//! the same either way.
//!
//! What is imported becomes what a mount would have cached: manifests of the registry that is in
//! use, blobs, and the aliases that the cache does not know. A version that the cache knows with
//! other content is not replaced.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use jiff::Timestamp;
use tracing::{debug, warn};

use super::artifact::Artifact;
use super::layout::LayoutWriter;
use super::oci::{Found, Remote, record};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::State;
use crate::reference::VersionRef;
use crate::source::Deadline;
use crate::source::layout::LayoutSource;
use crate::source::oci::model::{BUNDLE_STATE, IMAGE_MANIFEST, ImageManifest};
use crate::source::oci::reference::{StateTag, tag_of};
use crate::store::{Loaded, Store};

/// How many files are fetched at the same time.
const AT_ONCE: usize = 16;
/// How much of a file is copied at a time.
const PIECE: u32 = 1 << 20;

/// A version's manifest and config as its registry has them.
#[derive(Debug, Clone)]
pub struct Original {
    /// The manifest.
    pub manifest: Bytes,
    /// The config.
    pub config: Bytes,
}

/// Who may have [`Original`]s.
pub enum Origin<'a> {
    /// A registry.
    Remote(&'a Remote),
    /// Another layout.
    Layout(&'a LayoutSource),
    /// Nobody: offline, or a registry with an API only.
    Nobody,
}

/// What was exported or imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The version.
    pub reference: VersionRef,
    /// The digest of its manifest, if it has one there.
    pub digest: Option<Digest>,
    /// Whether the manifest is another one than the registry's.
    pub rebuilt: bool,
    /// How many files it has.
    pub files: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

impl Origin<'_> {
    /// The manifest and config of a version, if its files are its layers.
    async fn original(&self, loaded: &Loaded, deadline: Deadline) -> Option<Original> {
        let manifest = &loaded.manifest;
        let wanted: Digest = manifest.info().oci_digest.as_deref()?.parse().ok()?;
        let found = match self {
            Self::Nobody => return None,
            Self::Layout(layout) => layout.image(manifest.id(), deadline).await,
            Self::Remote(remote) => Self::ask(remote, manifest.id(), wanted).await,
        };
        let (bytes, config) = found
            .inspect_err(|error| debug!(version = %manifest.id(), %error, "no original manifest"))
            .ok()?;
        // Files that are in an archive there are files of their own here.
        let image = ImageManifest::parse(&bytes).ok()?;
        let layers: Option<HashSet<Digest>> =
            image.layers.iter().map(|layer| layer.sha256()).collect();
        let files: HashSet<Digest> = manifest.files().map(|file| file.digest()).collect();
        let is_same = Digest::of(&bytes) == wanted && layers? == files;
        is_same.then_some(Original {
            manifest: bytes,
            config,
        })
    }

    async fn ask(remote: &Remote, id: &VersionRef, wanted: Digest) -> Result<(Bytes, Bytes)> {
        let repository = remote
            .repository(&id.bundle)
            .map_err(|error| Error::Config(error.to_string()))?;
        let found = remote.manifest(&repository, &wanted.to_string()).await?;
        let found = found.ok_or_else(|| Error::not_found(id))?;
        let image = ImageManifest::parse(&found.bytes).map_err(|reason| Error::Malformed {
            what: id.to_string(),
            origin: remote.name().to_owned(),
            reason,
        })?;
        let config = image.config.sha256().ok_or_else(|| Error::not_found(id))?;
        Ok((found.bytes, remote.blob(&repository, config).await?))
    }
}

/// Writes a version and its content, to be named by the index when `writer` is committed.
/// `aliases` are written too; `progress` hears of each file's size.
///
/// # Errors
///
/// Those of reading the version, and of `writer`.
pub async fn export(
    store: &Arc<Store>,
    loaded: &Arc<Loaded>,
    aliases: &[&str],
    origin: &Origin<'_>,
    writer: &mut LayoutWriter,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Moved> {
    let manifest = &loaded.manifest;
    let id = manifest.id();
    if manifest.files().next().is_none() {
        return Err(Error::Config(format!("{id} has no file to export")));
    }
    fetch_all(store, loaded, progress, |index, digest, size| {
        // Looked at before fetching: a copy that broke off continues.
        (!writer.has(digest, size)).then_some(index)
    })
    .await?;
    let mut seen = HashSet::new();
    for file in manifest.files() {
        let (digest, size) = (file.digest(), file.size());
        if !seen.insert(digest) || writer.has(digest, size) {
            continue;
        }
        let mut pending = writer.begin(digest)?;
        let mut offset = 0;
        while offset < size {
            let deadline = Deadline::after(store.policy().content_timeout);
            let read = store.read(loaded, file.index(), offset, PIECE, deadline);
            let bytes = read.await?;
            if bytes.is_empty() {
                break;
            }
            pending.write(&bytes)?;
            offset += bytes.len() as u64;
        }
        writer.finish(pending)?;
    }
    let made = Artifact::of_manifest(manifest);
    let promised = manifest.info().oci_digest.as_deref();
    let promised: Option<Digest> = promised.and_then(|digest| digest.parse().ok());
    let original = if promised == Some(made.digest()) {
        None
    } else {
        let deadline = Deadline::after(store.policy().metadata_timeout);
        origin.original(loaded, deadline).await
    };
    let (image, config) = match original {
        Some(original) => (original.manifest, original.config),
        None => (made.manifest().clone(), made.config().clone()),
    };
    let digest = Digest::of(&image);
    let tag = tag_of(&id.version);
    writer.blob(Digest::of(&config), &config)?;
    writer.manifest(&id.bundle, &tag, &image, None)?;
    for alias in aliases {
        writer.manifest(&id.bundle, alias, &image, None)?;
    }
    if loaded.is_yanked() {
        write_yank(id, &image, writer)?;
    }
    Ok(Moved {
        reference: id.clone(),
        digest: Some(digest),
        rebuilt: promised.is_some_and(|promised| promised != digest),
        files: manifest.files().count() as u64,
        bytes: manifest.content_size(),
    })
}

/// Records that a version is yanked, as a registry would: without it, the layout would offer it.
fn write_yank(id: &VersionRef, image: &Bytes, writer: &mut LayoutWriter) -> Result<()> {
    let version = Found {
        bytes: image.clone(),
        digest: Digest::of(image),
        media_type: IMAGE_MANIFEST.to_owned(),
    };
    let tag = StateTag {
        state: State::Yanked,
        sequence: 1,
        version: id.version.clone(),
    };
    // Without a time, so that exporting again writes the same.
    let record = record(&version, State::Yanked, None, "musherfs export", None)?;
    writer.blob(Digest::of(b"{}"), b"{}")?;
    writer.manifest(&id.bundle, &tag.to_string(), &record, Some(BUNDLE_STATE))
}

/// Takes a version of `layout` into the cache of `store`, whose only source the layout should be.
///
/// # Errors
///
/// Those of [`Store::fetch`], [`Error::Contradiction`] among them for a version that is cached with
/// other content, and those of [`Store::fetch_file`].
pub async fn import(
    store: &Arc<Store>,
    version: &VersionRef,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Moved> {
    if !version.version.fits_cache() {
        return Err(Error::Config(format!(
            "{version} has no place in the cache: its version ends in \".meta\""
        )));
    }
    // What is cached is what the version is: looking at it makes the store remember that.
    let _ = store.held_on_disk(version);
    let deadline = Deadline::after(store.policy().metadata_timeout);
    let loaded = store.fetch(version, deadline).await?;
    fetch_all(store, &loaded, progress, |index, _, _| Some(index)).await?;
    let manifest = &loaded.manifest;
    for file in manifest.files() {
        // The store serves from memory where no disk takes a blob; that is no import.
        if store.cache().blob_size(file.digest()) != Some(file.size()) {
            return Err(Error::Config(format!(
                "{version}/{} could not be written to {}",
                file.path(),
                store.cache().root().display()
            )));
        }
    }
    let digest = manifest.info().oci_digest.as_deref();
    Ok(Moved {
        reference: version.clone(),
        digest: digest.and_then(|digest| digest.parse().ok()),
        rebuilt: false,
        files: manifest.files().count() as u64,
        bytes: manifest.content_size(),
    })
}

/// Notes the layout's aliases for offline use, except those that the cache knows: what the registry
/// said last is worth more.
///
/// # Errors
///
/// Those of [`LayoutSource::aliases`].
pub async fn import_aliases(
    store: &Arc<Store>,
    layout: &LayoutSource,
    imported: &HashSet<VersionRef>,
) -> Result<()> {
    let deadline = Deadline::after(store.policy().metadata_timeout);
    let cache = store.cache();
    for (alias, version) in layout.aliases(deadline).await? {
        let VersionRef { bundle, version } = &version;
        let id = VersionRef {
            bundle: bundle.clone(),
            version: version.clone(),
        };
        if !imported.contains(&id) || cache.read_ref(store.host(), bundle, &alias).is_some() {
            continue;
        }
        let now = Timestamp::now();
        if let Err(error) = cache.write_ref(store.host(), bundle, &alias, version, now) {
            warn!(%bundle, alias, %error, "the alias is not cached");
        }
    }
    Ok(())
}

/// Fetches those of a version's distinct blobs that `wanted` picks, several at a time.
async fn fetch_all(
    store: &Arc<Store>,
    loaded: &Arc<Loaded>,
    progress: &(dyn Fn(u64) + Sync),
    wanted: impl Fn(u32, Digest, u64) -> Option<u32>,
) -> Result<()> {
    let mut seen = HashSet::new();
    let files: Vec<(Option<u32>, u64)> = loaded
        .manifest
        .files()
        .map(|file| {
            let is_new = seen.insert(file.digest());
            let index = is_new.then(|| wanted(file.index(), file.digest(), file.size()));
            (index.flatten(), file.size())
        })
        .collect();
    let mut fetching = stream::iter(files)
        .map(|(index, size)| async move {
            if let Some(index) = index {
                let deadline = Deadline::after(store.policy().content_timeout);
                store.fetch_file(loaded, index, deadline).await?;
            }
            Ok::<u64, Error>(size)
        })
        .buffer_unordered(AT_ONCE);
    while let Some(done) = fetching.next().await {
        progress(done?);
    }
    Ok(())
}
