//! An OCI image layout on disk, as skopeo, oras and `musherfs export` write it.
//!
//! ```text
//! DIR/oci-layout                 {"imageLayoutVersion":"1.0.0"}
//! DIR/index.json                 what there is: descriptors of manifests, each with its name
//! DIR/blobs/sha256/<64 hex>      manifests, configs and files
//! ```
//!
//! The directory came on a stick, so nothing in it is trusted: below `DIR` no symbolic link is
//! followed and nothing but regular files is read, sizes are limited, and what was read counts only
//! once it hashes to its name. A manifest's name in the index is `namespace/bundle:tag`; what comes
//! before in it (a registry's host, a prefix) is skipped, and a name that is only a tag is completed
//! from the manifest itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::reference::BundleId;
use crate::source::oci::model::{Descriptor, ImageManifest, MAX_MANIFEST, REF_NAME, VERSION};
use crate::sync::lock;

/// Largest index, in bytes.
pub const MAX_INDEX: u64 = 64 << 20;
/// Most manifests of an index.
pub const MAX_MANIFESTS: usize = 100_000;
/// The layouts that are understood.
const LAYOUT_VERSION: &str = "1.";

#[derive(Deserialize)]
struct Marker {
    #[serde(rename = "imageLayoutVersion")]
    version: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

/// What the index says, by bundle: its tags and the manifests that they point at.
pub type Contents = BTreeMap<BundleId, BTreeMap<String, Descriptor>>;

/// What changes when the index is replaced or written to.
type Fingerprint = (u64, u64, i64, i64, u64);

/// A directory with an OCI image layout.
#[derive(Debug)]
pub struct Layout {
    path: PathBuf,
    /// The last index that was read.
    index: Mutex<Option<(Fingerprint, Arc<Contents>)>>,
}

impl Layout {
    /// Opens the layout in `path`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] if the directory cannot be read, [`Error::Config`] if it is no layout.
    pub fn open(path: &Path) -> Result<Self> {
        let path = std::path::absolute(path).map_err(|error| Error::io(path, error))?;
        let layout = Self {
            path,
            index: Mutex::default(),
        };
        let no_layout = |reason: String| {
            Error::Config(format!(
                "{} is no OCI image layout: {reason}",
                layout.path.display()
            ))
        };
        let marker = match layout.open_file(&["oci-layout"]) {
            Ok(file) => layout.read(file, &["oci-layout"], 4096)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && layout.path.is_dir() => {
                return Err(no_layout("it has no file oci-layout".into()));
            }
            Err(error) => return Err(layout.io(&["oci-layout"], error)),
        };
        let marker: Marker = serde_json::from_slice(&marker)
            .map_err(|error| no_layout(format!("its oci-layout: {error}")))?;
        if !marker.version.starts_with(LAYOUT_VERSION) {
            let version: String = marker.version.chars().take(40).collect();
            return Err(no_layout(format!("version {version:?} is not known")));
        }
        layout.contents()?;
        Ok(layout)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What there is now. Read again when the index has changed.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::Malformed`].
    pub fn contents(&self) -> Result<Arc<Contents>> {
        const NAME: [&str; 1] = ["index.json"];
        let file = self
            .open_file(&NAME)
            .map_err(|error| self.io(&NAME, error))?;
        let meta = file.metadata().map_err(|error| self.io(&NAME, error))?;
        let now = (
            meta.dev(),
            meta.ino(),
            meta.mtime(),
            meta.mtime_nsec(),
            meta.size(),
        );
        // Consistent after every statement, so a poisoned lock is still good.
        let mut known = lock(&self.index);
        if let Some((then, contents)) = &*known
            && *then == now
        {
            return Ok(Arc::clone(contents));
        }
        let json = self.read(file, &NAME, MAX_INDEX)?;
        let contents = Arc::new(self.parse(&json)?);
        *known = Some((now, Arc::clone(&contents)));
        Ok(contents)
    }

    fn parse(&self, json: &[u8]) -> Result<Contents> {
        let index: Index = serde_json::from_slice(json)
            .map_err(|error| self.malformed("index.json", error.to_string()))?;
        if index.manifests.len() > MAX_MANIFESTS {
            return Err(self.malformed("index.json", "it has too many manifests".into()));
        }
        let mut contents = Contents::new();
        for manifest in index.manifests {
            if let Some((bundle, tag)) = self.name(&manifest) {
                contents.entry(bundle).or_default().insert(tag, manifest);
            }
        }
        Ok(contents)
    }

    /// Which bundle and tag an entry of the index is; `None` for what is no bundle.
    fn name(&self, entry: &Descriptor) -> Option<(BundleId, String)> {
        let name = entry.annotation(REF_NAME)?;
        if let Some(found) = split_name(name) {
            return Some(found);
        }
        // Only a tag, as `skopeo copy … oci:DIR:1.2.0` writes it: the manifest knows the bundle.
        if name.contains(['/', ':']) {
            return None;
        }
        let manifest = self.manifest(entry).ok()?;
        let manifest = ImageManifest::parse(&manifest).ok()?;
        let bundle = manifest.annotation(REF_NAME)?.parse().ok()?;
        manifest.annotation(VERSION)?;
        Some((bundle, name.to_owned()))
    }

    /// The manifest that an entry of the index points at, verified.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the layout does not have it, [`Error::WrongBytes`],
    /// [`Error::Malformed`] for one that is too large, [`Error::Io`].
    pub fn manifest(&self, entry: &Descriptor) -> Result<Bytes> {
        self.small(entry, "a manifest")
    }

    /// A manifest or config, verified.
    ///
    /// # Errors
    ///
    /// Those of [`Layout::manifest`].
    pub fn small(&self, wanted: &Descriptor, what: &str) -> Result<Bytes> {
        let digest = wanted
            .sha256()
            .ok_or_else(|| self.malformed(what, "its digest is not SHA-256".into()))?;
        Ok(self.whole(digest, wanted.size, MAX_MANIFEST, what)?.into())
    }

    /// A whole blob of at most `limit` bytes, verified.
    ///
    /// # Errors
    ///
    /// Those of [`Layout::manifest`].
    pub fn whole(&self, digest: Digest, size: u64, limit: u64, what: &str) -> Result<Vec<u8>> {
        if size > limit {
            return Err(self.malformed(what, format!("more than {limit} bytes")));
        }
        let (file, found) = self.blob(digest)?;
        if found != size {
            return Err(self.malformed(what, format!("{found} bytes instead of {size}")));
        }
        let hex = digest.hex();
        let bytes = self.read(file, &["blobs", "sha256", &hex], size)?;
        if Digest::of(&bytes) != digest {
            return Err(Error::WrongBytes {
                what: what.to_owned(),
                expected: digest,
                origin: self.origin(),
            });
        }
        Ok(bytes)
    }

    /// Opens a blob; its size is that of the file. Nothing is verified.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the layout does not have it, [`Error::Io`].
    pub fn blob(&self, digest: Digest) -> Result<(File, u64)> {
        let hex = digest.hex();
        let place = ["blobs", "sha256", hex.as_str()];
        let file = self.open_file(&place).map_err(|error| {
            if error.kind() == io::ErrorKind::NotFound {
                Error::not_found(format!("blob {digest} in {}", self.path.display()))
            } else {
                self.io(&place, error)
            }
        })?;
        let size = file
            .metadata()
            .map_err(|error| self.io(&place, error))?
            .len();
        Ok((file, size))
    }

    /// How errors name the layout.
    pub fn origin(&self) -> String {
        format!("oci-layout:{}", self.path.display())
    }

    fn malformed(&self, what: &str, reason: String) -> Error {
        Error::Malformed {
            what: what.to_owned(),
            origin: self.origin(),
            reason,
        }
    }

    fn io(&self, place: &[&str], error: io::Error) -> Error {
        let mut path = self.path.clone();
        path.extend(place);
        Error::io(path, error)
    }

    /// Opens a regular file below the directory, following no link on the way.
    fn open_file(&self, place: &[&str]) -> io::Result<File> {
        let steps = OFlags::RDONLY | OFlags::CLOEXEC;
        // The directory itself is the user's word.
        let mut at = rustix::fs::open(&self.path, steps | OFlags::DIRECTORY, Mode::empty())?;
        let (name, directories) = place.split_last().ok_or(io::ErrorKind::NotFound)?;
        for directory in directories {
            let flags = steps | OFlags::DIRECTORY | OFlags::NOFOLLOW;
            at = rustix::fs::openat(&at, *directory, flags, Mode::empty())?;
        }
        // A FIFO in a file's place must not be waited for.
        let flags = steps | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let file = File::from(rustix::fs::openat(&at, *name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(file)
    }

    fn read(&self, file: File, place: &[&str], limit: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        file.take(limit.saturating_add(1))
            .read_to_end(&mut bytes)
            .map_err(|error| self.io(place, error))?;
        if bytes.len() as u64 > limit {
            return Err(self.malformed(&place.join("/"), format!("more than {limit} bytes")));
        }
        Ok(bytes)
    }
}

/// `[HOST[:PORT]/…/]namespace/bundle:tag`.
fn split_name(name: &str) -> Option<(BundleId, String)> {
    let (repository, tag) = name.rsplit_once(':')?;
    if tag.is_empty() || tag.contains('/') {
        return None;
    }
    let (rest, slug) = repository.rsplit_once('/')?;
    let namespace = rest.rsplit_once('/').map_or(rest, |(_, last)| last);
    let bundle = BundleId {
        namespace: namespace.parse().ok()?,
        slug: slug.parse().ok()?,
    };
    Some((bundle, tag.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_repositories_with_or_without_a_host() {
        for (name, bundle, tag) in [
            ("acme/kit:1.2.0", "acme/kit", "1.2.0"),
            ("localhost:5000/acme/kit:latest", "acme/kit", "latest"),
            ("ghcr.io/team/acme/kit:1.2.0_b", "acme/kit", "1.2.0_b"),
        ] {
            let (found, found_tag) = split_name(name).unwrap();
            assert_eq!(
                (found.to_string().as_str(), found_tag.as_str()),
                (bundle, tag)
            );
        }
        for bad in [
            "",
            "1.2.0",
            "kit:1.2.0",
            "acme/kit",
            "../kit:1",
            "acme/..:1",
            "localhost:5000/kit",
        ] {
            assert_eq!(split_name(bad), None, "{bad}");
        }
    }
}
