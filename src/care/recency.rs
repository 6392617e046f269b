//! When which blob was last read, across processes and restarts, and without a trace in the cache.
//!
//! The blobs' own access times would not do: other tools' clean-ups and back-ups read them, and most
//! disks are mounted `relatime`. So readings are noted in memory, the last one of each blob, and
//! appended every few seconds to one file a cache:
//!
//! ```text
//! <state>/recency/<cache>      32 bytes of digest, 8 bytes of milliseconds since 1970; repeated
//! ```
//!
//! The last record of a blob counts. When most are repeats the file is written anew. What the
//! kernel answers from its page cache is not seen here, nor need it be.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use super::{key_of, lock_file, private_file, replace};
use crate::digest::Digest;
use crate::sync::lock;

const RECORD: usize = 40;

/// A file with fewer records than this is left as it is.
const FEW: usize = 16 * 1024;

/// The readings of one cache.
#[derive(Debug)]
pub struct Recency {
    path: PathBuf,
    pending: Mutex<HashMap<Digest, u64>>,
}

impl Recency {
    /// The readings of the cache at `root`.
    pub fn new(state: &Path, root: &Path) -> Self {
        Self {
            path: state.join("recency").join(key_of(root)),
            pending: Mutex::default(),
        }
    }

    /// Notes that a blob is being read.
    pub fn note(&self, digest: Digest) {
        self.pending().insert(digest, now());
    }

    fn pending(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, u64>> {
        lock(&self.pending)
    }

    /// Appends what was noted since the last time.
    ///
    /// # Errors
    ///
    /// When the file cannot be written; what was noted stays noted.
    pub fn flush(&self) -> io::Result<()> {
        if self.pending().is_empty() {
            return Ok(());
        }
        let _lock = lock_file(&self.path.with_extension("lock"))?;
        let mut records = Vec::new();
        let flushed: Vec<(Digest, u64)> = self.pending().drain().collect();
        for (digest, at) in &flushed {
            records.extend_from_slice(digest.as_bytes());
            records.extend_from_slice(&at.to_le_bytes());
        }
        let appended = self.append(&records);
        if appended.is_err() {
            let mut pending = self.pending();
            for (digest, at) in flushed {
                pending.entry(digest).or_insert(at);
            }
        }
        appended
    }

    fn append(&self, records: &[u8]) -> io::Result<()> {
        let mut file = private_file(&self.path, OpenOptions::new().append(true))?;
        let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
        // A record that was cut off by a full disk is filled up, and names a blob that is nowhere.
        let torn = length % RECORD;
        if torn > 0 {
            file.write_all(&vec![0; RECORD - torn])?;
        }
        file.write_all(records)?;
        if length / RECORD > FEW {
            let known = self.read();
            if length / RECORD > 2 * known.len() {
                self.rewrite(&known).map_err(io::Error::other)?;
            }
        }
        Ok(())
    }

    fn rewrite(&self, known: &HashMap<Digest, u64>) -> crate::error::Result<()> {
        let mut records = Vec::with_capacity(known.len() * RECORD);
        for (digest, at) in known {
            records.extend_from_slice(digest.as_bytes());
            records.extend_from_slice(&at.to_le_bytes());
        }
        replace(&self.path, &records)
    }

    fn read(&self) -> HashMap<Digest, u64> {
        let mut known = HashMap::new();
        let Ok(file) = File::open(&self.path) else {
            return known;
        };
        // Piece by piece: most records are repeats, and whatever a thread has ever needed at once its
        // allocator keeps.
        let mut records = BufReader::new(file);
        let mut record = [0; RECORD];
        while records.read_exact(&mut record).is_ok() {
            let (digest, at) = record.split_at(32);
            if let (Ok(digest), Ok(at)) = (digest.try_into(), at.try_into()) {
                known.insert(Digest::from_bytes(digest), u64::from_le_bytes(at));
            }
        }
        known
    }

    /// The last reading of each blob that anybody noted, in milliseconds since 1970.
    pub fn last_read(&self) -> HashMap<Digest, u64> {
        let mut known = self.read();
        known.extend(self.pending().iter().map(|(digest, at)| (*digest, *at)));
        known
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn readings_are_shared_and_survive_a_torn_record() {
        let state = tempfile::tempdir().unwrap();
        let root = Path::new("/somewhere/cache");
        let (one, other) = (
            Recency::new(state.path(), root),
            Recency::new(state.path(), root),
        );
        one.note(Digest::of(b"a"));
        one.flush().unwrap();
        OpenOptions::new()
            .append(true)
            .open(&one.path)
            .unwrap()
            .write_all(b"torn")
            .unwrap();
        other.note(Digest::of(b"b"));
        other.flush().unwrap();
        let known = one.last_read();
        assert!(known.contains_key(&Digest::of(b"a")));
        assert!(known.contains_key(&Digest::of(b"b")));
    }

    #[test]
    fn a_file_of_repeats_is_written_anew() {
        let state = tempfile::tempdir().unwrap();
        let recency = Recency::new(state.path(), Path::new("/somewhere/cache"));
        fs::create_dir_all(recency.path.parent().unwrap()).unwrap();
        let mut record = Digest::of(b"a").as_bytes().to_vec();
        record.extend_from_slice(&7u64.to_le_bytes());
        fs::write(&recency.path, record.repeat(FEW + 1)).unwrap();
        recency.note(Digest::of(b"b"));
        recency.flush().unwrap();
        assert_eq!(fs::metadata(&recency.path).unwrap().len(), 80);
        assert_eq!(recency.last_read()[&Digest::of(b"a")], 7);
    }
}
