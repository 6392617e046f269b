//! How a file gets into the cache: written under a name nobody looks at, then renamed.
//!
//! ```text
//! <root>/temp/<uuid>.tmp   ──rename──►   blobs/sha256/2c/2cf2…, manifests/…/1.2.0.json, …
//! ```
//!
//! `temp` is where the TypeScript SDK keeps its temporary files too: on the same file system as
//! everything else, and no tool's garbage collection looks for content there. But any tool may
//! remove it, or the whole root, at any moment; then it is created again, and what was already
//! written is copied over from the open file.
//!
//! A cache with a limit has a [`Gate`], which is asked before a file grows: the whole size is
//! allocated when the file is created, so that the disk itself keeps the books, and whoever adds up
//! the files sees at any moment what is taken or promised. A file being written is locked
//! (`flock`), which tells it from one that a killed process left behind.
//!
//! Nothing is synced to disk: what a power failure leaves behind is found out by its hash or its
//! JSON, and fetched again.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::Cache;
use super::dir::Dir;

/// Where temporary files are, below the root.
pub(super) const TEMP: &str = "temp";
/// What their names end with.
const SUFFIX: &str = ".tmp";
/// When a temporary file belongs to nobody any more.
const ABANDONED: Duration = Duration::from_secs(24 * 60 * 60);
/// How often a directory that vanishes is created again within one operation.
const ATTEMPTS: usize = 5;

const TAG: &str = "CACHEDIR.TAG";
/// Marks the root as a cache for backup tools.
const TAG_TEXT: &str = "\
Signature: 8a477f597d28d172789f06886806bc55
# This file is a cache directory tag created by musherfs, for all Musher tools.
# For information about cache directory tags, see https://bford.info/cachedir/
";

/// For the owner alone: the cache may hold private bundles.
pub(super) const FILE_MODE: u32 = 0o600;
const TAG_MODE: u32 = 0o644;

/// Decides whether a cache may grow.
pub trait Gate: Send + Sync + std::fmt::Debug {
    /// Calls `grow`, which takes up to `bytes` bytes of disk, if there is room for them, or after
    /// making some. While it runs no other process grows the same cache.
    ///
    /// # Errors
    ///
    /// [`io::ErrorKind::StorageFull`] if there is no room, [`io::ErrorKind::TimedOut`] if another
    /// process keeps this from being known; `grow` was not called then. Or the error of `grow`.
    fn grow(&self, bytes: u64, grow: &mut dyn FnMut() -> io::Result<()>) -> io::Result<()>;
}

/// What a file takes besides its bytes: the rest of its last block, and at times a new directory.
const OVERHEAD: u64 = 8192;

/// A file that has no place yet. Dropped, it is removed.
#[derive(Debug)]
pub(super) struct Temp {
    dir: Dir,
    name: String,
    file: File,
    mode: u32,
    placed: bool,
    /// How many bytes were allocated; 0 without a gate.
    reserved: u64,
}

impl Temp {
    fn create(cache: &Cache, mode: u32) -> io::Result<Self> {
        let mut attempt = 1;
        loop {
            let root = Dir::create_root(cache.root())?;
            let (dir, is_new) = root.create(TEMP)?;
            if is_new {
                // The first write ever, or somebody cleared the cache.
                cache.shared.prepared.store(false, Ordering::Relaxed);
            }
            let name = format!("{}{SUFFIX}", uuid::Uuid::new_v4());
            match dir.create_file(&name, mode) {
                Ok(file) => {
                    // Where files cannot be locked, age alone tells what is abandoned.
                    let _ = file.try_lock();
                    return Ok(Self {
                        dir,
                        name,
                        file,
                        mode,
                        placed: false,
                        reserved: 0,
                    });
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The file's content so far.
    pub(super) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// Takes `size` bytes of disk, without moving the cursor.
    fn reserve(&mut self, size: u64) -> io::Result<()> {
        if size > 0 {
            allocate(&self.file, size)?;
            self.reserved = size;
        }
        Ok(())
    }

    /// Empties the file; what was reserved stays reserved.
    pub(super) fn empty(&mut self) -> io::Result<()> {
        // Shortening would give the disk back to others. The old bytes are written over, and what
        // is left of them is cut off in the end.
        if self.reserved == 0 {
            self.file.set_len(0)?;
        }
        Ok(())
    }

    /// Gives back what was reserved and not used.
    pub(super) fn cut(&mut self, size: u64) -> io::Result<()> {
        if self.reserved > 0 && self.file.metadata()?.len() != size {
            self.file.set_len(size)?;
        }
        Ok(())
    }

    /// Gives up the name and keeps the content: it lives as long as the returned file.
    pub(super) fn into_nameless(self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Moves the file to `name` in the directory at `path`, replacing what is there. Afterwards
    /// [`Temp::file`] is the placed file.
    ///
    /// # Errors
    ///
    /// Nothing was moved; the content can still be had.
    pub(super) fn place(&mut self, cache: &Cache, path: &str, name: &str) -> io::Result<()> {
        let mut attempt = 1;
        loop {
            let root = Dir::create_root(cache.root())?;
            let dir = match path {
                "" => root,
                path => root.create(path)?.0,
            };
            match self.dir.rename(&self.name, &dir, name) {
                Ok(()) => {
                    self.placed = true;
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound && attempt < ATTEMPTS => {
                    attempt += 1;
                    if self.dir.stat(&self.name).is_err() {
                        *self = self.copy(cache)?;
                    }
                }
                // A directory that is in the way goes if it is empty: nobody's content is lost.
                Err(error)
                    if error.kind() == io::ErrorKind::IsADirectory
                        && attempt < ATTEMPTS
                        && dir.remove_empty(name).is_ok() =>
                {
                    attempt += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The same content under a new name, after somebody removed the old one.
    fn copy(&self, cache: &Cache) -> io::Result<Self> {
        let mut copy = Self::create(cache, self.mode)?;
        let mut from = Positioned(&self.file, 0);
        io::copy(&mut from, &mut copy.file)?;
        copy.reserved = self.reserved;
        Ok(copy)
    }
}

/// Takes disk for the whole of `file` at once, where the file system can; its length is `size`
/// afterwards.
fn allocate(file: &File, size: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::FallocateFlags;
        use rustix::io::Errno;
        match rustix::fs::fallocate(file, FallocateFlags::empty(), 0, size) {
            Ok(()) => return Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    // At least its length counts.
    file.set_len(size)
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.placed
            && let Err(error) = self.dir.remove_file(&self.name)
        {
            tracing::debug!(name = %self.name, %error, "cannot remove a temporary file");
        }
    }
}

/// Reads a file from the start, whatever its cursor points at.
pub(super) struct Positioned<'a>(pub(super) &'a File, pub(super) u64);

impl io::Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.0.read_at(buffer, self.1)?;
        self.1 += read as u64;
        Ok(read)
    }
}

impl Cache {
    /// Starts a file of `size` bytes, if the cache may grow that much.
    pub(super) fn room(&self, size: u64) -> io::Result<Temp> {
        let Some(gate) = self.shared.gate.get() else {
            return self.temp();
        };
        let mut room = None;
        gate.grow(size.saturating_add(OVERHEAD), &mut || {
            let mut temp = self.temp()?;
            temp.reserve(size)?;
            room = Some(temp);
            Ok(())
        })?;
        room.ok_or_else(|| io::ErrorKind::StorageFull.into())
    }

    /// Starts a file; on the first time, and after somebody cleared the cache, puts the root in
    /// order as well.
    pub(super) fn temp(&self) -> io::Result<Temp> {
        let temp = Temp::create(self, FILE_MODE)?;
        if !self.shared.prepared.swap(true, Ordering::Relaxed) {
            // Neither is needed for what is being written.
            if let Err(error) = self.tag_root().and_then(|()| sweep(&temp.dir)) {
                tracing::debug!(root = %self.root().display(), %error, "cannot tidy the cache");
            }
        }
        Ok(temp)
    }

    /// Writes CACHEDIR.TAG unless one with the right signature is there.
    fn tag_root(&self) -> io::Result<()> {
        use std::io::{Read as _, Write as _};

        let signature = TAG_TEXT.lines().next().unwrap_or_default().as_bytes();
        let mut found = Vec::new();
        let root = Dir::create_root(self.root())?;
        if let Ok(file) = root.open_file(TAG) {
            file.take(signature.len() as u64).read_to_end(&mut found)?;
        }
        if found == signature {
            return Ok(());
        }
        let mut temp = Temp::create(self, TAG_MODE)?;
        temp.file().write_all(TAG_TEXT.as_bytes())?;
        temp.place(self, "", TAG)
    }
}

/// Removes the temporary files that a killed process of this user left behind.
fn sweep(temp: &Dir) -> io::Result<()> {
    for (name, _) in abandoned(temp, ABANDONED)? {
        temp.remove_file(&name)?;
    }
    Ok(())
}

/// The temporary files of this user that nobody has written to for `age` and nobody has locked,
/// and their sizes.
pub(super) fn abandoned(temp: &Dir, age: Duration) -> io::Result<Vec<(String, u64)>> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let me = rustix::process::geteuid().as_raw();
    let mut found = Vec::new();
    for name in temp.files()? {
        let is_temp = name
            .strip_suffix(SUFFIX)
            .is_some_and(|stem| uuid::Uuid::try_parse(stem).is_ok());
        let Ok(stat) = temp.stat(&name) else { continue };
        let modified = Duration::from_secs(u64::try_from(stat.st_mtime).unwrap_or(0));
        if is_temp
            && stat.st_uid == me
            && now.saturating_sub(modified) > age
            && temp
                .open_file(&name)
                .is_ok_and(|file| file.try_lock_shared().is_ok())
        {
            found.push((name, u64::try_from(stat.st_size).unwrap_or(0)));
        }
    }
    Ok(found)
}

/// Whether two open files are the same one.
pub(super) fn same_file(a: &File, b: &File) -> io::Result<bool> {
    let (a, b) = (a.metadata()?, b.metadata()?);
    Ok((a.dev(), a.ino()) == (b.dev(), b.ino()))
}
