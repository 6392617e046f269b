//! Blobs: written piece by piece, named by their hash, never modified.
//!
//! A blob appears under its name only when the hash of everything written is that name. A disk that
//! is full, read-only or broken is no reason to fail a reader: what does not fit goes on in memory,
//! and the reader gets its bytes from there.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};

use bytes::Bytes;

use super::Cache;
use super::dir::Dir;
use super::temp::{Positioned, Temp, same_file};
use crate::digest::{Digest, Hasher};
use crate::error::{Error, Result};

/// Where blobs are, below the root.
pub(super) const BLOBS: &str = "blobs/sha256";

/// The directory and the name of a blob.
pub(super) fn place_of(digest: Digest) -> (String, String) {
    let hex = digest.hex();
    (format!("{BLOBS}/{}", &hex[..2]), hex)
}

/// The path of a blob below [`BLOBS`], as all tools write it and as mush 4.2.0 does.
pub(super) fn names_of(digest: Digest) -> (String, String) {
    let hex = digest.hex();
    (format!("{}/{hex}", &hex[..2]), hex)
}

/// The verified bytes of one blob.
#[derive(Debug)]
pub enum Blob {
    /// In a file, to be read by position. It stays readable when its name is taken away; it may
    /// never have got one, if the cache could not be written at the last moment.
    File(File),
    /// In memory, because the cache cannot be written.
    Memory(Bytes),
}

/// Takes the bytes of one blob. Dropped unfinished, it leaves nothing behind.
pub struct BlobWriter {
    cache: Cache,
    limit: u64,
    written: u64,
    hasher: Hasher,
    place: Place,
}

enum Place {
    /// Nothing came yet, so nothing was created.
    Nowhere,
    Disk(Temp),
    Memory(Vec<u8>),
}

impl BlobWriter {
    pub(super) fn new(cache: Cache, limit: u64) -> Self {
        Self {
            cache,
            limit,
            written: 0,
            hasher: Hasher::new(),
            place: Place::Nowhere,
        }
    }

    /// Appends `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] beyond the limit; `bytes` are not taken then. [`Error::Io`] only if the
    /// disk fails so badly that what it took cannot be read back; start again then.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.written.saturating_add(bytes.len() as u64);
        if written > self.limit {
            return Err(Error::Malformed {
                what: "a file's content".to_owned(),
                origin: "the source".to_owned(),
                reason: format!("more than the expected {} bytes", self.limit),
            });
        }
        if matches!(self.place, Place::Nowhere) {
            self.place = self.cache.start(self.limit);
        }
        if let Place::Disk(temp) = &mut self.place
            && let Err(error) = temp.file().write_all(bytes)
        {
            self.cache.trouble(&error);
            let mut taken = Vec::new();
            let io = |error| Error::io(self.cache.root(), error);
            Positioned(temp.file(), 0)
                .take(self.written)
                .read_to_end(&mut taken)
                .map_err(io)?;
            if taken.len() as u64 != self.written {
                return Err(io(error));
            }
            self.place = Place::Memory(taken);
        }
        if let Place::Memory(buffer) = &mut self.place {
            buffer.extend_from_slice(bytes);
        }
        self.hasher.update(bytes);
        self.written = written;
        Ok(())
    }

    /// Forgets everything written, before another attempt.
    pub fn restart(&mut self) {
        self.written = 0;
        self.hasher = Hasher::new();
        let emptied = match &mut self.place {
            Place::Disk(temp) => temp.empty().and_then(|()| temp.file().rewind()),
            Place::Memory(buffer) => {
                buffer.clear();
                Ok(())
            }
            Place::Nowhere => Ok(()),
        };
        if emptied.is_err() {
            self.place = Place::Nowhere;
        }
    }

    /// How many bytes were written since the start or the last [`BlobWriter::restart`].
    pub fn written(&self) -> u64 {
        self.written
    }

    /// The digest of the bytes written so far.
    pub fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// Gives the blob its place in the cache.
    ///
    /// A good blob that is already there stays as it is; a bad one is replaced.
    ///
    /// # Errors
    ///
    /// [`Error::WrongBytes`] if the bytes are not those of `expected`; nothing of them is left.
    pub fn finish(self, expected: Digest) -> Result<Blob> {
        let actual = self.digest();
        if actual != expected {
            return Err(Error::WrongBytes {
                what: "a file's content".to_owned(),
                expected,
                origin: "the source".to_owned(),
            });
        }
        let place = match self.place {
            Place::Nowhere => self.cache.start(0),
            place => place,
        };
        match place {
            Place::Disk(temp) => self.cache.keep(temp, expected, self.written),
            Place::Memory(buffer) => Ok(Blob::Memory(buffer.into())),
            Place::Nowhere => Ok(Blob::Memory(Bytes::new())),
        }
    }
}

impl Cache {
    fn start(&self, size: u64) -> Place {
        match self.room(size) {
            Ok(temp) => Place::Disk(temp),
            Err(error) => {
                self.trouble(&error);
                Place::Memory(Vec::new())
            }
        }
    }

    /// Places a verified file, or one that is as good as it.
    fn keep(&self, mut temp: Temp, digest: Digest, size: u64) -> Result<Blob> {
        if let Some(file) = self.good_blob(digest, size) {
            return Ok(Blob::File(file));
        }
        // What was reserved and did not come.
        temp.cut(size)
            .map_err(|error| Error::io(self.root(), error))?;
        let (path, name) = place_of(digest);
        if let Err(error) = temp.place(self, &path, &name) {
            self.trouble(&error);
        } else if let Ok(root) = Dir::open_root(self.root())
            && let Ok(file) = root.open_file(&format!("{path}/{name}"))
            && same_file(&file, temp.file()).unwrap_or(false)
        {
            // For reading only. Not somebody else's file that came there meanwhile: nobody has
            // verified that one.
            return Ok(Blob::File(file));
        }
        temp.into_nameless()
            .map(Blob::File)
            .map_err(|error| Error::io(self.root(), error))
    }

    /// The blob that has its place already, if its bytes are right.
    fn good_blob(&self, digest: Digest, size: u64) -> Option<File> {
        let (path, name) = place_of(digest);
        let root = Dir::open_root(self.root()).ok()?;
        let file = root.open_file(&format!("{path}/{name}")).ok()?;
        if file.metadata().ok()?.len() != size {
            return None;
        }
        (hash(&file).ok()? == digest).then_some(file)
    }
}

/// The digest of a file's content, whatever its cursor points at.
pub(super) fn hash(file: &File) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut reader = Positioned(file, 0);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
