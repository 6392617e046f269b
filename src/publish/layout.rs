//! Writing versions into an OCI image layout: a directory that travels where no network does.
//!
//! A blob appears by rename once it hashed to its name, the index last of all, so that a reader
//! never sees a version without its content and a copy that broke off can be continued. What the
//! directory has already is kept: exporting again adds. Exporters take turns at the index; other
//! tools' writers do not lock, so they should not run at the same time.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};
use crate::reference::BundleId;
use crate::source::layout::MAX_INDEX;
use crate::source::oci::model::{IMAGE_INDEX, IMAGE_MANIFEST, REF_NAME};

/// The content of `oci-layout`.
const MARKER: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// A directory that takes versions.
#[derive(Debug)]
pub struct LayoutWriter {
    path: PathBuf,
    blobs: PathBuf,
    entries: Vec<Value>,
    written: u64,
    written_bytes: u64,
}

/// A blob on its way into the directory; without a trace if it is dropped before its end.
pub struct Pending {
    file: File,
    temporary: PathBuf,
    place: PathBuf,
    expected: Digest,
    hasher: Hasher,
    size: u64,
}

impl LayoutWriter {
    /// Opens the layout in `path`, or makes one of a directory that is empty or missing.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a directory that has something else in it, [`Error::Io`].
    pub fn open(path: &Path) -> Result<Self> {
        let blobs = path.join("blobs").join("sha256");
        let marker = path.join("oci-layout");
        let entries = match path.read_dir() {
            Ok(mut entries) => entries.next().is_some(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(Error::io(path, error)),
        };
        if entries && !marker.is_file() {
            return Err(Error::Config(format!(
                "{} has something else in it than an OCI image layout; name an empty directory",
                path.display()
            )));
        }
        for dir in [path, &path.join("blobs"), &blobs] {
            // A link would have the export written somewhere else.
            if dir != path && dir.is_symlink() {
                return Err(Error::Config(format!(
                    "{} is a symbolic link",
                    dir.display()
                )));
            }
            std::fs::create_dir_all(dir).map_err(|error| Error::io(dir, error))?;
        }
        if !marker.exists() {
            replace(&marker, MARKER)?;
        }
        Ok(Self {
            path: path.to_owned(),
            blobs,
            entries: Vec::new(),
            written: 0,
            written_bytes: 0,
        })
    }

    /// How many blobs were written, and their size in bytes.
    pub fn written(&self) -> (u64, u64) {
        (self.written, self.written_bytes)
    }

    /// Whether the directory has the blob: a file of that name, of that size, with those bytes.
    pub fn has(&self, digest: Digest, size: u64) -> bool {
        let place = self.blobs.join(digest.hex());
        let is_file = place
            .symlink_metadata()
            .is_ok_and(|meta| meta.is_file() && meta.len() == size);
        is_file && hash_of(&place).is_ok_and(|found| found == digest)
    }

    /// Begins a blob, whose bytes should hash to `expected`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn begin(&self, expected: Digest) -> Result<Pending> {
        let temporary = self.blobs.join(format!(".{}.tmp", Uuid::new_v4()));
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&temporary)
            .map_err(|error| Error::io(&temporary, error))?;
        Ok(Pending {
            file,
            temporary,
            place: self.blobs.join(expected.hex()),
            expected,
            hasher: Hasher::new(),
            size: 0,
        })
    }

    /// Puts a blob that is complete in its place.
    ///
    /// # Errors
    ///
    /// [`Error::WrongBytes`] if it is not what it should be, [`Error::Io`].
    pub fn finish(&mut self, pending: Pending) -> Result<()> {
        let size = pending.size;
        pending.finish()?;
        self.written += 1;
        self.written_bytes += size;
        Ok(())
    }

    /// Writes a blob that is in memory, unless it is there.
    ///
    /// # Errors
    ///
    /// [`Error::WrongBytes`], [`Error::Io`].
    pub fn blob(&mut self, digest: Digest, bytes: &[u8]) -> Result<()> {
        if self.has(digest, bytes.len() as u64) {
            return Ok(());
        }
        let mut pending = self.begin(digest)?;
        pending.write(bytes)?;
        self.finish(pending)
    }

    /// Writes a manifest, whose blobs should be there, to be named `bundle:tag` by the index.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn manifest(
        &mut self,
        bundle: &BundleId,
        tag: &str,
        manifest: &Bytes,
        artifact_type: Option<&str>,
    ) -> Result<()> {
        let digest = Digest::of(manifest);
        self.blob(digest, manifest)?;
        let mut entry = json!({
            "mediaType": IMAGE_MANIFEST,
            "digest": digest,
            "size": manifest.len(),
            "annotations": { REF_NAME: format!("{bundle}:{tag}") },
        });
        if let Some(kind) = artifact_type {
            entry["artifactType"] = json!(kind);
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Adds to the index what was written. An entry of the same name is replaced, what else is in
    /// there stays as it is.
    ///
    /// # Errors
    ///
    /// [`Error::Io`]; [`Error::Malformed`] if there is an index that cannot be read, which then
    /// stays as it is.
    pub fn commit(self) -> Result<()> {
        let marker = self.path.join("oci-layout");
        let lock = File::open(&marker).map_err(|error| Error::io(&marker, error))?;
        lock.lock().map_err(|error| Error::io(&marker, error))?;
        let path = self.path.join("index.json");
        let malformed = |reason: String| Error::Malformed {
            what: "index.json".into(),
            origin: format!("oci-layout:{}", self.path.display()),
            reason,
        };
        let mut index: Value = match File::open(&path) {
            Ok(file) => {
                let mut json = Vec::new();
                file.take(MAX_INDEX)
                    .read_to_end(&mut json)
                    .map_err(|error| Error::io(&path, error))?;
                serde_json::from_slice(&json).map_err(|error| malformed(error.to_string()))?
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                json!({ "schemaVersion": 2, "mediaType": IMAGE_INDEX, "manifests": [] })
            }
            Err(error) => return Err(Error::io(&path, error)),
        };
        let manifests = index
            .get_mut("manifests")
            .and_then(Value::as_array_mut)
            .ok_or_else(|| malformed("it has no manifests".into()))?;
        let names: HashSet<Option<&str>> = self.entries.iter().map(name).collect();
        manifests.retain(|entry| name(entry).is_none() || !names.contains(&name(entry)));
        manifests.extend(self.entries.iter().cloned());
        // All blobs at once, before anything names them.
        rustix::fs::syncfs(&lock).map_err(|error| Error::io(&self.path, error.into()))?;
        replace(&path, index.to_string().as_bytes())
    }
}

fn name(entry: &Value) -> Option<&str> {
    entry.get("annotations")?.get(REF_NAME)?.as_str()
}

impl Pending {
    /// Appends `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Io`].
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|error| Error::io(&self.temporary, error))
    }

    fn finish(&self) -> Result<()> {
        let found = self.hasher.clone().finish();
        if found != self.expected {
            return Err(Error::WrongBytes {
                what: self.place.display().to_string(),
                expected: self.expected,
                origin: "what was to be exported".into(),
            });
        }
        std::fs::rename(&self.temporary, &self.place).map_err(|error| Error::io(&self.place, error))
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Gone if it was finished.
        let _ = std::fs::remove_file(&self.temporary);
    }
}

fn hash_of(path: &Path) -> io::Result<Digest> {
    let mut file = File::open(path)?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finish()),
            n => hasher.update(&buffer[..n]),
        }
    }
}

/// Replaces a file as a whole.
fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    let failed = |error| Error::io(path, error);
    let dir = path.parent().unwrap_or(Path::new("."));
    let temporary = dir.join(format!(".{}.tmp", Uuid::new_v4()));
    let written = File::create_new(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written.map_err(failed)
}
