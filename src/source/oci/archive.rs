//! Tar layers, the last resort: `oras push` makes one of each directory that it is given.
//!
//! A tar hides its files from whoever wants one of them, so all of it is fetched, checked and kept
//! in memory, within [`MAX_PACKED`] and [`MAX_UNPACKED`], and its files are named by the digests of
//! their content like all others. Only regular files and hard links to them are taken; what cannot
//! be a file's path here is left to [`crate::manifest`] to refuse. Nothing is ever written to a path
//! of the archive's choosing.

use std::collections::HashMap;
use std::io::Read as _;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use flate2::read::MultiGzDecoder;
use lru::LruCache;
use tar::EntryType;

use crate::digest::Digest;
use crate::manifest::MAX_ENTRIES;
use crate::sync::lock;

/// Largest tar layer, as it is in the registry.
pub const MAX_PACKED: u64 = 64 << 20;
/// Largest tar, decompressed; all those of a version together as well.
pub const MAX_UNPACKED: u64 = 128 << 20;
/// Most memory that archives take which are kept for the next reader: those of the largest version,
/// and what is known about their files.
const MAX_KEPT: usize = 192 << 20;

/// A file in an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedFile {
    /// The path, as the archive has it, without `./` in front.
    pub path: String,
    /// The digest of the content.
    pub digest: Digest,
    range: Range<usize>,
}

impl PackedFile {
    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.range.len() as u64
    }
}

/// A decompressed archive.
#[derive(Debug)]
pub struct Archive {
    bytes: Vec<u8>,
    /// Sorted by path.
    files: Vec<PackedFile>,
    /// Where in the list above a file with this content is.
    by_digest: HashMap<Digest, usize>,
}

impl Archive {
    /// Reads a tar, compressed with gzip or not.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn read(packed: Vec<u8>) -> Result<Self, String> {
        Self::read_within(packed, MAX_UNPACKED)
    }

    fn read_within(packed: Vec<u8>, limit: u64) -> Result<Self, String> {
        let broken = |error: std::io::Error| format!("a damaged archive: {error}");
        let mut bytes = if packed.starts_with(b"\x1f\x8b") {
            let mut bytes = Vec::new();
            let mut decoder = MultiGzDecoder::new(&*packed).take(limit + 1);
            decoder.read_to_end(&mut bytes).map_err(broken)?;
            bytes
        } else {
            packed
        };
        if bytes.len() as u64 > limit {
            return Err(format!("an archive of more than {limit} bytes"));
        }
        // It grew by doubling, and is kept for long.
        bytes.shrink_to_fit();
        // The last entry of a path counts, as for tar.
        let mut files: HashMap<String, (Digest, Range<usize>)> = HashMap::new();
        let mut archive = tar::Archive::new(&*bytes);
        for (seen, entry) in archive.entries().map_err(broken)?.enumerate() {
            if seen >= MAX_ENTRIES {
                return Err(format!("an archive of more than {MAX_ENTRIES} entries"));
            }
            let entry = entry.map_err(broken)?;
            let Some(path) = path_of(&entry.path_bytes()) else {
                continue;
            };
            match entry.header().entry_type() {
                EntryType::Regular | EntryType::Continuous => {
                    let content = place_of(&entry, bytes.len()).ok_or("a damaged archive")?;
                    let digest = Digest::of(&bytes[content.clone()]);
                    files.insert(path, (digest, content));
                }
                EntryType::Link => {
                    let target = entry.link_name_bytes();
                    let target = target.and_then(|target| path_of(&target));
                    if let Some(file) = target.and_then(|target| files.get(&target).cloned()) {
                        files.insert(path, file);
                    }
                }
                _ => {}
            }
        }
        let mut files: Vec<_> = files
            .into_iter()
            .map(|(path, (digest, range))| PackedFile {
                path,
                digest,
                range,
            })
            .collect();
        files.sort_by(|a, b| a.path.cmp(&b.path));
        let places = files.iter().enumerate();
        let by_digest = places.map(|(at, file)| (file.digest, at)).collect();
        Ok(Self {
            bytes,
            files,
            by_digest,
        })
    }

    /// All files.
    pub fn files(&self) -> &[PackedFile] {
        &self.files
    }

    /// The content with this digest.
    pub fn content(&self, digest: Digest) -> Option<&[u8]> {
        let file = self.files.get(*self.by_digest.get(&digest)?)?;
        self.bytes.get(file.range.clone())
    }

    /// Whether some file's content has this digest.
    pub fn has(&self, digest: Digest) -> bool {
        self.by_digest.contains_key(&digest)
    }

    /// Its size in bytes, decompressed.
    pub fn unpacked(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// How many bytes of memory it takes, about.
    pub fn memory(&self) -> usize {
        let rows = size_of::<PackedFile>() + 2 * size_of::<(Digest, usize)>();
        let paths: usize = self.files.iter().map(|file| file.path.len()).sum();
        self.bytes.capacity() + self.files.len() * rows + paths
    }
}

/// Archives that were read, the last used ones: as many as `MAX_KEPT` holds, and always the last,
/// so that those of one version are never unpacked once a file. One is read at a time: each may take
/// all of a core, and as much memory as those that are kept.
#[derive(Debug)]
pub struct Archives {
    kept: Mutex<Kept>,
    reading: Mutex<()>,
}

#[derive(Debug)]
struct Kept {
    archives: LruCache<Digest, Arc<Archive>>,
    memory: usize,
}

impl Default for Archives {
    fn default() -> Self {
        let kept = Kept {
            archives: LruCache::unbounded(),
            memory: 0,
        };
        Self {
            kept: Mutex::new(kept),
            reading: Mutex::new(()),
        }
    }
}

impl Archives {
    /// Consistent after every statement but for the sum, which may only be too large then.
    fn lock(&self) -> MutexGuard<'_, Kept> {
        lock(&self.kept)
    }

    /// The archive with this digest.
    pub fn get(&self, digest: Digest) -> Option<Arc<Archive>> {
        self.lock().archives.get(&digest).cloned()
    }

    /// Whether a kept archive with this digest has the `content`.
    pub fn has(&self, digest: Digest, content: Digest) -> bool {
        let kept = self.lock();
        let archive = kept.archives.peek(&digest);
        archive.is_some_and(|archive| archive.has(content))
    }

    /// The archive with this digest, which is read and kept if it is not there, in the place of
    /// others if need be. Blocks as long as that takes, also for others that are being read.
    ///
    /// # Errors
    ///
    /// Those of `read`.
    pub fn get_or_read<E>(
        &self,
        digest: Digest,
        read: impl FnOnce() -> Result<Archive, E>,
    ) -> Result<Arc<Archive>, E> {
        if let Some(archive) = self.get(digest) {
            return Ok(archive);
        }
        let _reading = lock(&self.reading);
        // Whoever read before may have read this one.
        if let Some(archive) = self.get(digest) {
            return Ok(archive);
        }
        let archive = Arc::new(read()?);
        self.keep_within(digest, Arc::clone(&archive), MAX_KEPT);
        Ok(archive)
    }

    fn keep_within(&self, digest: Digest, archive: Arc<Archive>, limit: usize) {
        let mut kept = self.lock();
        kept.memory += archive.memory();
        if let Some((_, old)) = kept.archives.push(digest, archive) {
            kept.memory -= old.memory();
        }
        while kept.memory > limit && kept.archives.len() > 1 {
            let Some((_, old)) = kept.archives.pop_lru() else {
                break;
            };
            kept.memory -= old.memory();
        }
    }
}

/// Where in the tar the content of `entry` is.
fn place_of(entry: &tar::Entry<'_, &[u8]>, whole: usize) -> Option<Range<usize>> {
    let start = usize::try_from(entry.raw_file_position()).ok()?;
    let end = start.checked_add(usize::try_from(entry.size()).ok()?)?;
    (end <= whole).then_some(start..end)
}

/// `None` for what cannot be a path at all; whether it may be one is decided elsewhere.
fn path_of(bytes: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(bytes).ok()?;
    let mut path = path;
    while let Some(rest) = path.strip_prefix("./") {
        path = rest.trim_start_matches('/');
    }
    (!path.is_empty() && path != ".").then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn entry(builder: &mut tar::Builder<Vec<u8>>, kind: EntryType, path: &str, content: &[u8]) {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        if matches!(kind, EntryType::Link | EntryType::Symlink) {
            header.set_size(0);
            header
                .set_link_name(std::str::from_utf8(content).unwrap())
                .unwrap();
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, &b""[..]).unwrap();
        } else {
            header.set_size(content.len() as u64);
            // Not `set_path`, which refuses what a hostile archive has.
            header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
            header.set_cksum();
            builder.append(&header, content).unwrap();
        }
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn files_are_found_by_the_digest_of_their_content() {
        let mut builder = tar::Builder::new(Vec::new());
        entry(&mut builder, EntryType::Directory, "./skills/", b"");
        entry(&mut builder, EntryType::Regular, "./skills/a.md", b"old");
        entry(&mut builder, EntryType::Regular, "skills/a.md", b"hello");
        entry(
            &mut builder,
            EntryType::Link,
            "skills/b.md",
            b"./skills/a.md",
        );
        entry(
            &mut builder,
            EntryType::Symlink,
            "skills/c.md",
            b"/etc/passwd",
        );
        entry(&mut builder, EntryType::Regular, "../../etc/passwd", b"x");
        entry(&mut builder, EntryType::Regular, "empty", b"");
        let tar = builder.into_inner().unwrap();
        for packed in [gzip(&tar), tar] {
            let archive = Archive::read(packed).unwrap();
            let paths: Vec<_> = archive.files().iter().map(|f| f.path.as_str()).collect();
            assert_eq!(
                paths,
                ["../../etc/passwd", "empty", "skills/a.md", "skills/b.md"]
            );
            assert_eq!(archive.content(Digest::of(b"hello")), Some(&b"hello"[..]));
            assert_eq!(archive.content(Digest::of(b"")), Some(&b""[..]));
            assert_eq!(archive.content(Digest::of(b"old")), None);
            assert_eq!(archive.files()[2].size(), 5);
            assert!(archive.has(Digest::of(b"hello")) && !archive.has(Digest::of(b"old")));
        }
    }

    #[test]
    fn archives_are_kept_by_the_memory_they_take_and_the_last_one_always() {
        let archive = |content: &[u8]| {
            let mut builder = tar::Builder::new(Vec::new());
            entry(&mut builder, EntryType::Regular, "a", content);
            Arc::new(Archive::read(builder.into_inner().unwrap()).unwrap())
        };
        let names: Vec<_> = (0..6_u8).map(|n| Digest::of(&[n])).collect();
        let kept = Archives::default();
        let limit = 5 * archive(b"x").memory();
        let there = || {
            names
                .iter()
                .map(|name| kept.get(*name).is_some())
                .collect::<Vec<_>>()
        };
        for name in &names[..5] {
            kept.keep_within(*name, archive(b"x"), limit);
            // A second time takes no room.
            kept.keep_within(*name, archive(b"x"), limit);
        }
        assert_eq!(there(), [true, true, true, true, true, false]);
        kept.get(names[0]).unwrap();
        kept.keep_within(names[5], archive(b"x"), limit);
        assert_eq!(there(), [true, false, true, true, true, true]);
        assert!(kept.has(names[5], Digest::of(b"x")) && !kept.has(names[5], Digest::of(b"y")));
        kept.keep_within(names[1], archive(&vec![b'x'; 2 * limit]), limit);
        assert_eq!(there(), [false, true, false, false, false, false]);
    }

    #[test]
    fn what_is_kept_takes_no_more_memory_than_its_content() {
        let mut builder = tar::Builder::new(Vec::new());
        entry(&mut builder, EntryType::Regular, "a", &[b'a'; 70_000]);
        let tar = builder.into_inner().unwrap();
        let mut roomy = Vec::with_capacity(2 * tar.len());
        roomy.extend_from_slice(&tar);
        for packed in [gzip(&tar), roomy] {
            let archive = Archive::read(packed).unwrap();
            assert!(archive.bytes.capacity() < tar.len() + tar.len() / 10);
        }
    }

    #[test]
    fn however_many_want_an_archive_one_reads_it_and_one_is_read_at_a_time() {
        let archives = Archives::default();
        let (under_way, reads) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let start = Barrier::new(16);
        std::thread::scope(|scope| {
            for n in 0..16_u8 {
                let (archives, start) = (&archives, &start);
                let (under_way, reads) = (&under_way, &reads);
                scope.spawn(move || {
                    start.wait();
                    let read = || {
                        reads.fetch_add(1, Ordering::SeqCst);
                        assert_eq!(under_way.fetch_add(1, Ordering::SeqCst), 0);
                        // Time for the others to come.
                        for _ in 0..100 {
                            std::thread::yield_now();
                        }
                        under_way.fetch_sub(1, Ordering::SeqCst);
                        Archive::read(tar::Builder::new(Vec::new()).into_inner().unwrap())
                    };
                    archives.get_or_read(Digest::of(&[n % 4]), read).unwrap();
                });
            }
        });
        assert_eq!(reads.into_inner(), 4);
    }

    #[test]
    fn bombs_and_rubbish_are_refused() {
        let bomb = gzip(&vec![0; 1 << 20]);
        let problem = Archive::read_within(bomb, 1 << 10).unwrap_err();
        assert!(problem.contains("more than 1024 bytes"), "{problem}");
        assert!(Archive::read(b"\x1f\x8bnot gzip".to_vec()).is_err());
        assert!(Archive::read(vec![b'x'; 4096]).is_err());
        let mut builder = tar::Builder::new(Vec::new());
        entry(&mut builder, EntryType::Regular, "a", &[b'a'; 2000]);
        let mut cut = builder.into_inner().unwrap();
        cut.truncate(1024);
        assert!(Archive::read(cut).is_err());
    }
}
