//! A registry's directory: what is on disk, and how it is read.
//!
//! ```text
//! DIR/blobs/sha256/<2>/<64>                          content, named by its digest
//! DIR/bundles/<ns>/<slug>/<version>.json             the publish manifest, frozen
//! DIR/bundles/<ns>/<slug>/<version>.state.json       only once the state changed: see `lifecycle`
//! DIR/bundles/<ns>/<slug>/tags.json                  {"stable": "1.2.0"}
//! DIR/temp/<uuid>.tmp                                unfinished writes
//! DIR/.lock                                          see below
//! ```
//!
//! The directory is the truth: nothing is indexed, so a serving process sees at once what another
//! one publishes. Parsed manifests are kept in memory under their file's identity (device, inode,
//! size, times), so a replaced file is read again.
//!
//! **A version exists when its manifest does.** Blobs are written before it, under their digests;
//! then the manifest appears by a hard link, which fails if the name is taken. So a publisher that
//! is killed at any point leaves either the whole version or none of it, and of two that race
//! exactly one wins. What an unfinished one left behind is invisible, and swept: publishers hold
//! `.lock` shared, whoever sweeps or changes a state holds it alone.
//!
//! **Damage stays where it is.** A manifest or state file that cannot be understood hides its own
//! version, is reported as [`Damage`], and never another version. Blobs are hashed on every read.

mod write;

pub use write::Swept;

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};

use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::lifecycle::StateRecord;
use super::oci::image_of;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::publish::artifact::Artifact;
use crate::reference::{BundleId, Namespace, Slug, Version, VersionRef};
use crate::sync::lock;

/// How many parsed manifests are kept in memory.
const KEPT_MANIFESTS: NonZeroUsize = NonZeroUsize::new(256).expect("256 is not zero");

/// One file of a version, as its publish manifest lists it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredAsset {
    /// A UUID that follows from the version and the path.
    #[serde(default)]
    pub asset_id: String,
    /// The path. Valid if this program published it; a planted manifest may say anything.
    pub logical_path: String,
    /// The asset's type.
    #[serde(default)]
    pub asset_type: String,
    /// The digest of the content: 64 lower hex.
    pub content_sha256: String,
    /// The size of the content in bytes.
    pub size_bytes: u64,
    /// The media type, if the publisher gave one.
    #[serde(default)]
    pub media_type: Option<String>,
}

/// A publish manifest: what `<version>.json` says. Frozen.
///
/// Only `namespace`, `bundle_slug`, `version` and `assets` are required.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// Who publishes.
    pub namespace: String,
    /// The bundle.
    pub bundle_slug: String,
    /// The version.
    pub version: String,
    /// A UUID that follows from the bundle's name.
    #[serde(default)]
    pub bundle_id: String,
    /// A UUID that follows from the version's name.
    #[serde(default)]
    pub version_id: String,
    /// The display name.
    #[serde(default)]
    pub name: String,
    /// What the bundle is for.
    #[serde(default)]
    pub description: Option<String>,
    /// `public`, or anything else for private.
    #[serde(default)]
    pub visibility: String,
    /// The readme's text.
    #[serde(default)]
    pub readme_content: Option<String>,
    /// `markdown` where there is a readme.
    #[serde(default)]
    pub readme_format: Option<String>,
    /// An SPDX identifier.
    #[serde(default)]
    pub license: Option<String>,
    /// Words to find it by.
    #[serde(default)]
    pub keywords: Vec<String>,
    /// Where its sources are.
    #[serde(default)]
    pub repository: Option<String>,
    /// Where it is presented.
    #[serde(default)]
    pub homepage: Option<String>,
    /// The publisher's own metadata.
    #[serde(default)]
    pub annotations: BTreeMap<String, String>,
    /// When it was published.
    #[serde(default)]
    pub created_at: Timestamp,
    /// Who published it.
    #[serde(default)]
    pub published_by: Option<String>,
    /// Its files.
    pub assets: Vec<StoredAsset>,
}

/// A version as it is on disk.
#[derive(Debug)]
pub struct Release {
    /// Which version.
    pub reference: VersionRef,
    /// Its publish manifest.
    pub stored: Stored,
    image: OnceLock<Artifact>,
    digests: OnceLock<HashSet<Digest>>,
}

impl Release {
    /// Whether everybody may read it. What is not plainly public is private.
    pub fn is_public(&self) -> bool {
        self.stored.visibility == "public"
    }

    /// The version as an OCI artifact.
    pub fn image(&self) -> &Artifact {
        self.image.get_or_init(|| image_of(&self.stored))
    }

    /// The sum of all files' sizes, in bytes.
    pub fn size(&self) -> u64 {
        self.stored
            .assets
            .iter()
            .map(|asset| asset.size_bytes)
            .fold(0, u64::saturating_add)
    }

    /// Whether one of the version's files has this digest.
    pub fn has_blob(&self, digest: Digest) -> bool {
        self.digests
            .get_or_init(|| {
                let digests = self.stored.assets.iter();
                digests
                    .filter_map(|asset| asset.content_sha256.parse().ok())
                    .collect()
            })
            .contains(&digest)
    }
}

/// A version and its state.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The version.
    pub release: Arc<Release>,
    /// Published or yanked, and how it came to be so.
    pub state: StateRecord,
}

/// A file that hides the version it belongs to.
#[derive(Debug, Clone)]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What is in a registry, or in one of its bundles.
#[derive(Debug, Clone, Default)]
pub struct Listing {
    /// The versions, by bundle and then newest first.
    pub versions: Vec<Listed>,
    /// The files that could not be understood.
    pub damaged: Vec<Damage>,
}

/// What identifies a file's content without reading it.
type Stamp = (u64, u64, u64, i64, i64);

/// A registry's directory. Shared by threads; several processes may use one directory.
#[derive(Debug)]
pub struct Storage {
    root: PathBuf,
    durable: bool,
    // Held only to look up or insert, never while a file is read.
    manifests: Mutex<lru::LruCache<PathBuf, (Stamp, Arc<Release>)>>,
    reported: Mutex<HashSet<PathBuf>>,
}

impl Storage {
    /// Opens the registry in `root`, creating it if missing, and sweeps unfinished writes if nobody
    /// is publishing.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the directory cannot be created.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        if !root.is_dir() {
            write::create_root(&root)?;
        }
        for dir in ["blobs/sha256", "bundles"] {
            let dir = root.join(dir);
            // One that cannot be written to can still be served.
            if !dir.is_dir() {
                write::create_dir_all(&dir)?;
            }
        }
        let storage = Self {
            root,
            durable: true,
            manifests: Mutex::new(lru::LruCache::new(KEPT_MANIFESTS)),
            reported: Mutex::default(),
        };
        storage.sweep_temporaries();
        Ok(storage)
    }

    /// Publishes without waiting for the disk: for registries that need not survive a power cut,
    /// such as a demonstration's or a test's.
    pub fn without_sync(mut self) -> Self {
        self.durable = false;
        self
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// All namespaces with a bundle, in order.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn namespaces(&self) -> Result<Vec<Namespace>> {
        names(&self.root.join("bundles"))
    }

    /// All bundles of a namespace, in order; none if it does not exist.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn bundles(&self, namespace: &Namespace) -> Result<Vec<Slug>> {
        names(&self.root.join("bundles").join(namespace.as_str()))
    }

    /// All versions of a bundle, newest first; none if it does not exist.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the directory cannot be read; a damaged file is no error.
    pub fn versions(&self, bundle: &BundleId) -> Result<Listing> {
        let dir = self.bundle_dir(bundle);
        let mut versions = Vec::new();
        for name in entries(&dir)? {
            let version = name
                .strip_suffix(".json")
                .filter(|stem| !stem.ends_with(".state"))
                .and_then(|stem| stem.parse::<Version>().ok());
            versions.extend(version);
        }
        versions.sort_unstable_by(|a, b| b.cmp(a));
        let mut listing = Listing::default();
        for version in versions {
            let reference = VersionRef {
                bundle: bundle.clone(),
                version,
            };
            match self.listed(&reference) {
                Ok(Some(listed)) => listing.versions.push(listed),
                Ok(None) => {}
                Err(damage) => {
                    self.report(&damage);
                    listing.damaged.push(damage);
                }
            }
        }
        Ok(listing)
    }

    /// One version; `None` if it does not exist or is damaged.
    pub fn version(&self, reference: &VersionRef) -> Option<Listed> {
        self.listed(reference).unwrap_or_else(|damage| {
            self.report(&damage);
            None
        })
    }

    /// Everything in the registry.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn list(&self) -> Result<Listing> {
        let mut all = Listing::default();
        for namespace in self.namespaces()? {
            for slug in self.bundles(&namespace)? {
                let namespace = namespace.clone();
                let listing = self.versions(&BundleId { namespace, slug })?;
                all.versions.extend(listing.versions);
                all.damaged.extend(listing.damaged);
            }
        }
        Ok(all)
    }

    /// A blob's bytes.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::WrongBytes`] if the file was damaged, [`Error::Io`].
    pub fn blob(&self, digest: Digest) -> Result<Bytes> {
        let path = self.blob_path(digest);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Error::not_found(format!("blob {digest}")));
            }
            Err(source) => return Err(Error::io(path, source)),
        };
        if Digest::of(&bytes) == digest {
            Ok(bytes.into())
        } else {
            Err(Error::WrongBytes {
                what: path.display().to_string(),
                expected: digest,
                origin: "the registry's directory".to_owned(),
            })
        }
    }

    /// The tags of a bundle and the versions they point at; none if the file is damaged.
    pub fn tags(&self, bundle: &BundleId) -> BTreeMap<String, Version> {
        let path = self.bundle_dir(bundle).join("tags.json");
        let Ok(json) = std::fs::read(&path) else {
            return BTreeMap::new();
        };
        match serde_json::from_slice::<BTreeMap<String, String>>(&json) {
            Ok(tags) => tags
                .into_iter()
                .filter_map(|(tag, version)| Some((tag, version.parse().ok()?)))
                .collect(),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "tags ignored");
                BTreeMap::new()
            }
        }
    }

    /// Logs damage once a file, however often it is come across.
    fn report(&self, damage: &Damage) {
        let mut reported = lock(&self.reported);
        if reported.insert(damage.path.clone()) {
            tracing::warn!(path = %damage.path.display(), reason = damage.reason, "version hidden");
        }
    }

    fn listed(&self, reference: &VersionRef) -> Result<Option<Listed>, Damage> {
        let Some(release) = self.release(reference)? else {
            return Ok(None);
        };
        let state = self.read_state(&release)?;
        Ok(Some(Listed { release, state }))
    }

    fn release(&self, reference: &VersionRef) -> Result<Option<Arc<Release>>, Damage> {
        let path = self.manifest_path(reference);
        let damage = |reason: String| Damage {
            path: path.clone(),
            reason,
        };
        let stamp = match std::fs::metadata(&path) {
            Ok(metadata) => stamp(&metadata),
            Err(error) if is_absence(&error) => return Ok(None),
            Err(error) => return Err(damage(error.to_string())),
        };
        if let Some((known, release)) = self.manifests().get(&path)
            && *known == stamp
        {
            return Ok(Some(Arc::clone(release)));
        }
        let json = std::fs::read(&path).map_err(|error| damage(error.to_string()))?;
        let stored: Stored =
            serde_json::from_slice(&json).map_err(|error| damage(error.to_string()))?;
        let named = (&*stored.namespace, &*stored.bundle_slug, &*stored.version);
        let BundleId { namespace, slug } = &reference.bundle;
        if named
            != (
                namespace.as_str(),
                slug.as_str(),
                reference.version.as_str(),
            )
        {
            return Err(damage(format!(
                "it is about {}/{}@{}",
                named.0, named.1, named.2
            )));
        }
        let release = Arc::new(Release {
            reference: reference.clone(),
            stored,
            image: OnceLock::new(),
            digests: OnceLock::new(),
        });
        self.manifests().put(path, (stamp, Arc::clone(&release)));
        Ok(Some(release))
    }

    fn manifests(
        &self,
    ) -> std::sync::MutexGuard<'_, lru::LruCache<PathBuf, (Stamp, Arc<Release>)>> {
        lock(&self.manifests)
    }

    pub(super) fn bundle_dir(&self, bundle: &BundleId) -> PathBuf {
        self.root
            .join("bundles")
            .join(bundle.namespace.as_str())
            .join(bundle.slug.as_str())
    }

    pub(super) fn manifest_path(&self, reference: &VersionRef) -> PathBuf {
        self.bundle_dir(&reference.bundle)
            .join(format!("{}.json", reference.version))
    }

    pub(super) fn state_path(&self, reference: &VersionRef) -> PathBuf {
        self.bundle_dir(&reference.bundle)
            .join(format!("{}.state.json", reference.version))
    }

    pub(super) fn blob_path(&self, digest: Digest) -> PathBuf {
        let hex = digest.hex();
        self.root.join("blobs/sha256").join(&hex[..2]).join(&hex)
    }
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    (
        metadata.dev(),
        metadata.ino(),
        metadata.size(),
        metadata.mtime() * 1_000_000_000 + metadata.mtime_nsec(),
        metadata.ctime() * 1_000_000_000 + metadata.ctime_nsec(),
    )
}

/// `NotADirectory` too: a file lies where a bundle's directory would be.
pub(super) fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

/// The names in a directory that are text; none if it does not exist.
fn entries(dir: &Path) -> Result<Vec<String>> {
    let fail = |source| Error::io(dir, source);
    let reader = match std::fs::read_dir(dir) {
        Ok(reader) => reader,
        Err(error) if is_absence(&error) => return Ok(Vec::new()),
        Err(error) => return Err(fail(error)),
    };
    let mut names = Vec::new();
    for entry in reader {
        names.extend(entry.map_err(fail)?.file_name().into_string().ok());
    }
    Ok(names)
}

fn names<T: std::str::FromStr + Ord>(dir: &Path) -> Result<Vec<T>> {
    let mut names: Vec<T> = entries(dir)?
        .iter()
        .filter_map(|name| name.parse().ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests;
