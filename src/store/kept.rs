//! Verified blobs that are kept at hand, and how they are read.
//!
//! The descriptors of the last [`MOST_OPEN`] blobs stay open, so that a reader survives somebody
//! else's clean-up. What an open file's name says was true when it was hashed; whether it still is,
//! its fingerprint (device, inode, size, mtime, ctime) tells, which is looked at *after* every read:
//! nothing that was written before the read can have escaped then.

use std::fs::File;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use lru::LruCache;
use rustix::io::{Errno, ReadWriteFlags};

use crate::digest::{Digest, Hasher};
use crate::sync::lock;

/// How many blobs stay open after they were read.
pub const MOST_OPEN: usize = 512;

/// How many bytes of blobs that no disk would take stay in memory.
const MOST_MEMORY: usize = 64 << 20;

/// How many files' fingerprints are remembered: about 10 MiB. Others are hashed again.
const MOST_HASHED: usize = 65_536;

/// Files over this size do not stay in the page cache below the mount.
const LARGE: u64 = 1 << 20;

/// What changes when somebody writes to a file or replaces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Fingerprint {
    device: u64,
    inode: u64,
    pub(super) size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Fingerprint {
    pub(super) fn of(file: &File) -> io::Result<Self> {
        let meta = file.metadata()?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime: (meta.mtime(), meta.mtime_nsec()),
            ctime: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// A verified blob.
#[derive(Clone)]
pub(super) enum Verified {
    File(Arc<(File, Fingerprint)>),
    Memory(Bytes),
}

/// Blobs that no disk would take.
struct InMemory {
    blobs: LruCache<Digest, Bytes>,
    bytes: usize,
}

/// The blobs at hand.
pub(super) struct Kept {
    open: Mutex<LruCache<Digest, Arc<(File, Fingerprint)>>>,
    memory: Mutex<InMemory>,
    /// The fingerprints of the files that were hashed in this session, open or not, and when.
    hashed: Mutex<LruCache<Digest, (Fingerprint, SystemTime)>>,
}

impl Default for Kept {
    fn default() -> Self {
        const OPEN: NonZeroUsize = NonZeroUsize::new(MOST_OPEN).expect("not zero");
        Self {
            open: Mutex::new(LruCache::new(OPEN)),
            memory: Mutex::new(InMemory {
                blobs: LruCache::unbounded(),
                bytes: 0,
            }),
            // Not told its bound, because it would allocate all of it at once.
            hashed: Mutex::new(LruCache::unbounded()),
        }
    }
}

impl Kept {
    pub(super) fn opened(&self, digest: &Digest) -> Option<Verified> {
        if let Some(open) = lock(&self.open).get(digest) {
            return Some(Verified::File(Arc::clone(open)));
        }
        let bytes = lock(&self.memory).blobs.get(digest)?.clone();
        Some(Verified::Memory(bytes))
    }

    /// Whether the file with this fingerprint was hashed in this session, and was right.
    pub(super) fn was_hashed(&self, digest: &Digest, fingerprint: Fingerprint) -> bool {
        let mut hashed = lock(&self.hashed);
        hashed
            .get(digest)
            .is_some_and(|(known, _)| *known == fingerprint)
    }

    /// When the file with these bytes was last compared with its digest in this session.
    pub(super) fn verified_at(&self, digest: &Digest) -> Option<SystemTime> {
        lock(&self.hashed).peek(digest).map(|(_, since)| *since)
    }

    pub(super) fn keep_file(
        &self,
        digest: Digest,
        file: File,
        fingerprint: Fingerprint,
    ) -> Verified {
        let open = Arc::new((file, fingerprint));
        {
            let mut hashed = lock(&self.hashed);
            // Unchanged since it was hashed: verified then, not now.
            let since = match hashed.peek(&digest) {
                Some((known, since)) if *known == fingerprint => *since,
                _ => SystemTime::now(),
            };
            hashed.put(digest, (fingerprint, since));
            if hashed.len() > MOST_HASHED {
                hashed.pop_lru();
            }
        }
        lock(&self.open).put(digest, Arc::clone(&open));
        Verified::File(open)
    }

    pub(super) fn keep_memory(&self, digest: Digest, bytes: Bytes) -> Verified {
        let mut memory = lock(&self.memory);
        memory.bytes += bytes.len();
        if let Some((_, old)) = memory.blobs.push(digest, bytes.clone()) {
            memory.bytes -= old.len();
        }
        while memory.bytes > MOST_MEMORY && memory.blobs.len() > 1 {
            let Some((_, old)) = memory.blobs.pop_lru() else {
                break;
            };
            memory.bytes -= old.len();
        }
        Verified::Memory(bytes)
    }

    /// Closes every file that has lost its name.
    pub(super) fn forget_nameless(&self) {
        let nameless = |file: &File| file.metadata().is_ok_and(|meta| meta.nlink() == 0);
        let mut open = lock(&self.open);
        let gone: Vec<Digest> = open
            .iter()
            .filter(|(_, open)| nameless(&open.0))
            .map(|(digest, _)| *digest)
            .collect();
        for digest in &gone {
            open.pop(digest);
        }
    }

    pub(super) fn forget(&self, digest: &Digest) {
        lock(&self.open).pop(digest);
        lock(&self.hashed).pop(digest);
    }
}

impl Verified {
    /// Reads up to `size` bytes at `offset`, of `whole`, into `buffer`; an error means that the blob
    /// is no longer what was verified.
    pub(super) fn read(
        &self,
        whole: u64,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
    ) -> io::Result<()> {
        buffer.clear();
        let end = offset.saturating_add(u64::from(size)).min(whole);
        let length = usize::try_from(end.saturating_sub(offset)).unwrap_or(0);
        match self {
            Self::Memory(bytes) if bytes.len() as u64 != whole => {
                return Err(io::Error::other("the blob has another size"));
            }
            Self::Memory(bytes) => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                buffer.extend_from_slice(&bytes[start..(start + length).min(bytes.len())]);
            }
            Self::File(open) => {
                let (file, fingerprint) = &**open;
                if fingerprint.size != whole {
                    return Err(io::Error::other("the blob has another size"));
                }
                buffer.resize(length, 0);
                let mut done = 0;
                while done < length {
                    match read_some(file, whole, offset + done as u64, &mut buffer[done..]) {
                        Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                        Ok(read) => done += read,
                        Err(Errno::INTR) => {}
                        Err(error) => return Err(error.into()),
                    }
                }
                // After the read: nothing that was written before it can have escaped.
                if Fingerprint::of(file)? != *fingerprint {
                    return Err(io::Error::other("the file was modified"));
                }
            }
        }
        Ok(())
    }
}

/// One `pread`. A file over 1 MiB should not fill the page cache twice, once here and once above
/// the mount, so it is read without staying where the kernel (6.14 and later) can do that.
fn read_some(file: &File, whole: u64, offset: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    const DONT_CACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
    static UNSUPPORTED: AtomicBool = AtomicBool::new(false);
    if whole > LARGE && !UNSUPPORTED.load(Ordering::Relaxed) {
        let mut slices = [io::IoSliceMut::new(buffer)];
        match rustix::io::preadv2(file, &mut slices, offset, DONT_CACHE) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                UNSUPPORTED.store(true, Ordering::Relaxed)
            }
            answer => return answer,
        }
    }
    rustix::io::pread(file, buffer, offset)
}

/// The digest of a file's content, wherever its cursor is.
pub(super) fn hash(file: &File) -> io::Result<Digest> {
    let mut hasher = Hasher::new();
    let mut chunk = vec![0; 256 << 10];
    let mut offset = 0;
    loop {
        match rustix::io::pread(file, &mut chunk, offset) {
            Ok(0) => return Ok(hasher.finish()),
            Ok(read) => {
                hasher.update(&chunk[..read]);
                offset += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
