//! Writing to a registry's directory: publishing and sweeping.
//!
//! What is created is for its owner alone, since bundles may be private; what exists keeps its mode.
//! Every file appears whole: it is written under `temp/`, made durable, and then linked or renamed
//! to its place. The order of `storage`'s header (blobs, manifest) is kept here.

use std::collections::HashSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tracing::warn;
use uuid::Uuid;

use super::{Storage, Stored, StoredAsset, entries};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::publish::{Publication, PublishError};
use crate::reference::VersionRef;

/// More new blobs than this are flushed by one `syncfs` instead of one `fsync` each.
const SYNC_EACH: usize = 32;

/// What [`Storage::sweep`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Blobs that no version names.
    pub blobs: u64,
    /// Their size in bytes.
    pub bytes: u64,
}

impl Storage {
    /// Publishes a version: all of it, or nothing that anybody could see.
    ///
    /// Returns once it is on disk. `actor` is recorded as the publisher.
    ///
    /// # Errors
    ///
    /// [`PublishError::VersionExists`] if the version was published before, by whomever; a rule of
    /// [`Publication::check`]; [`PublishError::Storage`].
    pub fn publish(
        &self,
        publication: &Publication,
        actor: &str,
    ) -> Result<VersionRef, PublishError> {
        publication.check()?;
        let reference = &publication.reference;
        let manifest = self.manifest_path(reference);
        let exists = || PublishError::VersionExists(reference.clone());
        // Only to spare the work: the link below decides.
        if manifest.exists() {
            return Err(exists());
        }
        let _publishing = self.lock(File::lock_shared)?;

        let mut blobs = Vec::new();
        for asset in &publication.assets {
            let digest = Digest::of(&asset.bytes);
            if self.write_blob(digest, &asset.bytes)? {
                blobs.push(self.blob_path(digest));
            }
        }
        self.sync_blobs(&blobs)?;

        let mut json = serde_json::to_vec_pretty(&stored(publication, actor))
            .map_err(|error| Error::Internal(error.to_string()))?;
        json.push(b'\n');
        let dir = self.bundle_dir(&reference.bundle);
        create_dir_all(&dir)?;
        let temporary = self.write_temporary(&json)?;
        let linked = link_new(&temporary, &manifest);
        // Already gone if it was renamed.
        let _ = std::fs::remove_file(&temporary);
        match linked {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(exists()),
            Err(source) => return Err(Error::io(&manifest, source).into()),
        }
        // Up to the root: the namespace may be new too.
        for dir in dir.ancestors().take(3) {
            self.sync_dir(dir)?;
        }
        Ok(reference.clone())
    }

    /// Whether this version is published already with the very same content and description, by
    /// whomever and whenever.
    pub fn holds(&self, publication: &Publication) -> bool {
        self.version(&publication.reference).is_some_and(|listed| {
            let there = &listed.release.stored;
            let ours = Stored {
                created_at: there.created_at,
                published_by: there.published_by.clone(),
                ..stored(publication, "")
            };
            ours == *there
        })
    }

    /// Removes blobs that no version names: what unfinished publishes left behind.
    ///
    /// Does nothing while somebody publishes, and nothing as long as a manifest is damaged or names a
    /// blob in a way that is not understood: its blobs would look unused.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn sweep(&self) -> Result<Swept> {
        let mut swept = Swept::default();
        let Some(_alone) = self.try_lock()? else {
            return Ok(swept);
        };
        let listing = self.list()?;
        if !listing.damaged.is_empty() {
            return Ok(swept);
        }
        let mut used: HashSet<Digest> = HashSet::new();
        for listed in &listing.versions {
            for asset in &listed.release.stored.assets {
                // Whoever writes manifests may spell them in any way that readers understand.
                let Ok(digest) = asset.content_sha256.parse() else {
                    warn!(
                        version = %listed.release.reference,
                        path = ?asset.logical_path,
                        "a manifest names a blob by what is no SHA-256; nothing is swept"
                    );
                    return Ok(swept);
                };
                used.insert(digest);
            }
        }
        let blobs = self.root().join("blobs/sha256");
        for shard in entries(&blobs)? {
            let shard = blobs.join(shard);
            for name in entries(&shard)? {
                let path = shard.join(&name);
                if let Ok(digest) = name.parse::<Digest>()
                    && !used.contains(&digest)
                    && let Ok(metadata) = path.symlink_metadata()
                    && std::fs::remove_file(&path).is_ok()
                {
                    swept.blobs += 1;
                    swept.bytes += metadata.len();
                }
            }
        }
        Ok(swept)
    }

    /// Removes unfinished writes, unless somebody may still finish them. Best effort.
    pub(super) fn sweep_temporaries(&self) {
        let temp = self.root().join("temp");
        // Not even the lock file is created where there is nothing to do.
        let Ok(names) = entries(&temp) else { return };
        if names.is_empty() {
            return;
        }
        if let Ok(Some(_alone)) = self.try_lock() {
            for name in names {
                let _ = std::fs::remove_file(temp.join(name));
            }
        }
    }

    /// Replaces the file at `path` as a whole.
    pub(in crate::registry) fn replace(&self, path: &Path, bytes: &[u8]) -> Result<()> {
        let temporary = self.write_temporary(bytes)?;
        std::fs::rename(&temporary, path).map_err(|source| Error::io(path, source))?;
        path.parent().map_or(Ok(()), |dir| self.sync_dir(dir))
    }

    /// Waits until nobody publishes or changes anything; held until dropped.
    pub(in crate::registry) fn lock_alone(&self) -> Result<File> {
        self.lock(File::lock)
    }

    fn lock(&self, how: impl Fn(&File) -> io::Result<()>) -> Result<File> {
        let (file, path) = self.lock_file()?;
        how(&file).map_err(|source| Error::io(path, source))?;
        Ok(file)
    }

    fn try_lock(&self) -> Result<Option<File>> {
        let (file, path) = self.lock_file()?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(std::fs::TryLockError::WouldBlock) => Ok(None),
            Err(std::fs::TryLockError::Error(source)) => Err(Error::io(path, source)),
        }
    }

    fn lock_file(&self) -> Result<(File, PathBuf)> {
        let path = self.root().join(".lock");
        match OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
        {
            Ok(file) => Ok((file, path)),
            Err(source) => Err(Error::io(path, source)),
        }
    }

    /// Returns whether the blob was not there, or was damaged, and is written now.
    fn write_blob(&self, digest: Digest, bytes: &[u8]) -> Result<bool> {
        if self.blob(digest).is_ok() {
            return Ok(false);
        }
        let path = self.blob_path(digest);
        if let Some(shard) = path.parent() {
            create_dir_all(shard)?;
        }
        // Flushed together with the others: nothing names the blob before that.
        let temporary = self.write_file(bytes, false)?;
        std::fs::rename(&temporary, &path).map_err(|source| Error::io(&path, source))?;
        Ok(true)
    }

    fn write_temporary(&self, bytes: &[u8]) -> Result<PathBuf> {
        self.write_file(bytes, self.durable)
    }

    fn write_file(&self, bytes: &[u8], sync: bool) -> Result<PathBuf> {
        let temp = self.root().join("temp");
        create_dir_all(&temp)?;
        let path = temp.join(format!("{}.tmp", Uuid::new_v4()));
        let write = || {
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .open(&path)?;
            file.write_all(bytes)?;
            if sync {
                file.sync_all()?;
            }
            Ok(())
        };
        match write() {
            Ok(()) => Ok(path),
            Err(source) => {
                let _ = std::fs::remove_file(&path);
                Err(Error::io(path, source))
            }
        }
    }

    fn sync_blobs(&self, blobs: &[PathBuf]) -> Result<()> {
        if !self.durable || blobs.is_empty() {
            return Ok(());
        }
        #[cfg(target_os = "linux")]
        if blobs.len() > SYNC_EACH {
            let root = open(self.root())?;
            return rustix::fs::syncfs(&root).map_err(|error| Error::io(self.root(), error.into()));
        }
        for path in blobs {
            open(path)?
                .sync_all()
                .map_err(|source| Error::io(path, source))?;
            if let Some(shard) = path.parent() {
                self.sync_dir(shard)?;
            }
        }
        self.sync_dir(&self.root().join("blobs/sha256"))
    }

    fn sync_dir(&self, dir: &Path) -> Result<()> {
        if !self.durable {
            return Ok(());
        }
        open(dir)?
            .sync_all()
            .map_err(|source| Error::io(dir, source))
    }
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|source| Error::io(path, source))
}

/// Creates what is missing of a registry's root, for its owner alone: some of what is in it may be
/// private. Whoever shares it opens the root to others; what is below it follows the umask.
pub(super) fn create_root(dir: &Path) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| Error::io(dir, source))
}

/// Creates what is missing of `dir`, below the root.
pub(super) fn create_dir_all(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|source| Error::io(dir, source))
}

/// Gives `from` the name `to` unless it is taken.
fn link_new(from: &Path, to: &Path) -> io::Result<()> {
    match std::fs::hard_link(from, to) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            // A file system without hard links.
            use rustix::fs::{CWD, RenameFlags, renameat_with};
            renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE).map_err(|_| error)
        }
        result => result,
    }
}

/// The publish manifest. Ids follow from names, so they are the same in every registry.
fn stored(publication: &Publication, actor: &str) -> Stored {
    let id = |name: String| {
        let name = format!("musher:{name}");
        Uuid::new_v5(&Uuid::NAMESPACE_URL, name.as_bytes()).to_string()
    };
    let reference = &publication.reference;
    Stored {
        namespace: reference.bundle.namespace.to_string(),
        bundle_slug: reference.bundle.slug.to_string(),
        version: reference.version.to_string(),
        bundle_id: id(reference.bundle.to_string()),
        version_id: id(reference.to_string()),
        name: publication.name.clone(),
        description: publication.description.clone(),
        visibility: publication.visibility.as_str().to_owned(),
        readme_format: publication.readme.as_ref().map(|_| "markdown".to_owned()),
        readme_content: publication.readme.clone(),
        license: publication.license.clone(),
        keywords: publication.keywords.clone(),
        repository: publication.repository.clone(),
        homepage: publication.homepage.clone(),
        annotations: publication.annotations.clone(),
        created_at: Timestamp::now(),
        published_by: Some(actor.to_owned()),
        assets: publication
            .assets
            .iter()
            .map(|asset| StoredAsset {
                asset_id: id(format!("{reference}/{}", asset.path)),
                logical_path: asset.path.to_string(),
                asset_type: asset.asset_type.clone(),
                content_sha256: Digest::of(&asset.bytes).hex(),
                size_bytes: asset.bytes.len() as u64,
                media_type: asset.media_type.clone(),
            })
            .collect(),
    }
}
