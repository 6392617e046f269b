//! What must be remembered across restarts, and must not be lost with the cache.
//!
//! The shared cache belongs to every Musher tool, any of which may empty it. Here, under the state
//! directory, is what only this program knows: the digest of each version's table when it was first
//! seen (a version that later answers differently raises the alarm), the salts of colliding inode
//! tags, which versions their registry has removed, and the mutable names that inode numbers were given
//! for, so that another process can go on serving the numbers that the kernel holds.
//!
//! Of names, only so many are remembered: whoever asks for ever new ranges of a bundle finds something
//! behind each of them.
//!
//! One JSON line a fact, appended with a single `write(2)`, so that several processes can share a
//! file; each reads what the others appended before it adds a fact of its own. A line that cannot be
//! read is skipped. When most lines are repeats the file is written anew on opening, by a process that
//! has it alone: nobody appends to a file that is being replaced. Nor does anybody wait for that, since
//! whoever replaces the file may be stopped in the middle, and those who ask here serve the kernel: what
//! cannot be written at once is believed at once and written later. The same goes for a disk that is
//! full: it is tried again once in a while, when somebody asks here, and at [`Journal::flush`].

use std::collections::{HashMap, HashSet};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use crate::digest::Digest;
use crate::sync::lock;

/// Longest line that is believed.
const MAX_LINE: u64 = 16 * 1024;

/// Most names that are remembered.
pub const MOST_NAMES: usize = 65_536;

/// How often the lock of a file is tried that another process has alone, which it has for some
/// milliseconds.
const TRIES_TO_SHARE: usize = 3;

/// How often, a millisecond apart, the file is tried to be had alone. Others have it while they append
/// a line.
const TRIES_TO_HAVE: usize = 500;

/// How long a file that could not be written is left alone.
const RETRY: Duration = Duration::from_secs(1);

/// One fact. Keys are opaque to the journal: `host/ns/slug@version` and `ns[/slug@selector]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fact {
    /// The table that a version had when it was first seen.
    Table { version: String, table: Digest },
    /// How often a version's inode tag had to be re-salted.
    Salt { version: String, salt: u32 },
    /// A mutable name that an inode number was given for.
    Name { name: String },
    /// Whether the registry has removed a version that it had.
    Removal { version: String, removed: bool },
}

impl Fact {
    /// Whether `newer` says something else about the same thing.
    fn is_outdone_by(&self, newer: &Self) -> bool {
        match (self, newer) {
            (Self::Salt { version, .. }, Self::Salt { version: newer, .. })
            | (Self::Removal { version, .. }, Self::Removal { version: newer, .. }) => {
                version == newer
            }
            _ => false,
        }
    }
}

#[derive(Default)]
struct Known {
    tables: HashMap<String, Digest>,
    salts: HashMap<String, u32>,
    names: HashSet<String>,
    removed: HashSet<String>,
}

impl Known {
    /// Whether a fact would change anything.
    fn is_news(&self, fact: &Fact) -> bool {
        match fact {
            Fact::Table { version, .. } => !self.tables.contains_key(version),
            Fact::Salt { version, salt } => self.salts.get(version) != Some(salt),
            Fact::Name { name } => self.names.len() < MOST_NAMES && !self.names.contains(name),
            Fact::Removal { version, removed } => self.removed.contains(version) != *removed,
        }
    }

    /// Takes a fact in. The first table of a version stays.
    fn learn(&mut self, fact: Fact) {
        match fact {
            Fact::Table { version, table } => {
                self.tables.entry(version).or_insert(table);
            }
            Fact::Salt { version, salt } => {
                self.salts.insert(version, salt);
            }
            Fact::Name { name } => {
                if self.names.len() < MOST_NAMES {
                    self.names.insert(name);
                }
            }
            Fact::Removal { version, removed } => {
                if removed {
                    self.removed.insert(version);
                } else {
                    self.removed.remove(&version);
                }
            }
        }
    }

    /// Takes back a fact that was learnt as news.
    fn unlearn(&mut self, fact: &Fact) {
        match fact {
            Fact::Table { version, .. } => {
                self.tables.remove(version);
            }
            Fact::Salt { version, .. } => {
                self.salts.remove(version);
            }
            Fact::Name { name } => {
                self.names.remove(name);
            }
            Fact::Removal { version, removed } => {
                if *removed {
                    self.removed.remove(version);
                } else {
                    self.removed.insert(version.clone());
                }
            }
        }
    }

    fn facts(&self) -> impl Iterator<Item = Fact> {
        let tables = self.tables.iter().map(|(version, &table)| Fact::Table {
            version: version.clone(),
            table,
        });
        let salts = self.salts.iter().map(|(version, &salt)| Fact::Salt {
            version: version.clone(),
            salt,
        });
        let names = self
            .names
            .iter()
            .map(|name| Fact::Name { name: name.clone() });
        let removed = self.removed.iter().map(|version| Fact::Removal {
            version: version.clone(),
            removed: true,
        });
        tables.chain(salts).chain(names).chain(removed)
    }
}

struct Inner {
    known: Known,
    /// `None` when there is no file, or it cannot be opened at the moment.
    file: Option<File>,
    /// Empty if there is to be no file: facts then live as long as the process.
    path: PathBuf,
    /// Since something could not be written: when that is tried again.
    retry_at: Option<Instant>,
    /// How much of the file has been read.
    read_to: u64,
    /// What is believed and has not been written, oldest first.
    unwritten: Vec<Fact>,
    /// How many facts of others have been read.
    of_others: u64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.flush();
    }
}

/// The journal of one registry, shared by all mounts of one user.
pub struct Journal(Mutex<Inner>);

impl Journal {
    /// A journal that forgets with the process.
    pub fn in_memory() -> Self {
        Self(Mutex::new(Inner {
            known: Known::default(),
            file: None,
            path: PathBuf::new(),
            retry_at: None,
            read_to: 0,
            unwritten: Vec::new(),
            of_others: 0,
        }))
    }

    /// Opens or creates the journal at `path`, with directories for nobody else.
    ///
    /// A journal that cannot be opened is a warning, not an error: a mount without memory is
    /// better than none, and it may be opened later.
    pub fn open(path: &Path) -> Self {
        let mut journal = Self::in_memory();
        let inner = journal.0.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.path = path.to_owned();
        match Self::open_file(path) {
            Ok(file) => {
                inner.file = Some(file);
                let lines = inner.catch_up(None);
                if lines > 2 * inner.known.facts().count() + 1000 && inner.hold_alone() {
                    if let Err(error) = inner.rewrite() {
                        warn!(path = %path.display(), %error, "cannot compact the journal");
                    }
                    inner.release();
                }
            }
            Err(error) => inner.fail(&error),
        }
        journal
    }

    fn open_file(path: &Path) -> io::Result<File> {
        if let Some(dir) = path.parent() {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(dir)?;
        }
        OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(path)
    }

    /// Every statement leaves the journal usable, so a poisoned lock still is.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.0)
    }

    /// Remembers the table of `version`, unless another one is known already.
    ///
    /// # Errors
    ///
    /// The table that is known.
    pub fn remember_table(&self, version: &str, table: Digest) -> Result<(), Digest> {
        let mut inner = self.lock();
        inner.add(Fact::Table {
            version: version.to_owned(),
            table,
        });
        match inner.known.tables.get(version) {
            Some(&known) if known != table => Err(known),
            _ => Ok(()),
        }
    }

    /// How often the tag of `version` has been re-salted.
    pub fn salt(&self, version: &str) -> u32 {
        self.lock().known.salts.get(version).copied().unwrap_or(0)
    }

    /// Remembers that the tag of `version` is re-salted `salt` times.
    pub fn remember_salt(&self, version: &str, salt: u32) {
        self.lock().add(Fact::Salt {
            version: version.to_owned(),
            salt,
        });
    }

    /// Remembers that an inode number was given to `name`, if there is room; whether it is
    /// remembered.
    pub fn remember_name(&self, name: &str) -> bool {
        let mut inner = self.lock();
        if !inner.known.names.contains(name) && inner.known.names.len() < MOST_NAMES {
            inner.add(Fact::Name {
                name: name.to_owned(),
            });
        }
        inner.known.names.contains(name)
    }

    /// Remembers whether the registry has removed `version`; whether that is news.
    pub fn remember_removal(&self, version: &str, removed: bool) -> bool {
        let mut inner = self.lock();
        let is_news = inner.known.removed.contains(version) != removed;
        if is_news {
            inner.add(Fact::Removal {
                version: version.to_owned(),
                removed,
            });
        }
        is_news
    }

    /// Whether the registry has removed `version`.
    pub fn is_removed(&self, version: &str) -> bool {
        self.lock().known.removed.contains(version)
    }

    /// All names that inode numbers were given to, by any process so far.
    pub fn names(&self) -> Vec<String> {
        let mut inner = self.lock();
        inner.look();
        inner.known.names.iter().cloned().collect()
    }

    /// All versions whose tables are known, to any process so far.
    pub fn versions(&self) -> Vec<String> {
        let mut inner = self.lock();
        inner.look();
        inner.known.tables.keys().cloned().collect()
    }

    /// Writes what could not be written before, if that is possible now. For now and then, and before
    /// the process ends.
    pub fn flush(&self) {
        self.lock().flush();
    }

    /// How many facts other processes have added so far: as long as it stays the same, there is
    /// nothing in [`Journal::names`] and [`Journal::versions`] that this process has not added.
    pub fn of_others(&self) -> u64 {
        let mut inner = self.lock();
        inner.look();
        inner.of_others
    }
}

impl Inner {
    /// Appends `fact` if it is news, also to what other processes have appended meanwhile. If another
    /// process has the file alone, or it cannot be written, it is appended later.
    fn add(&mut self, fact: Fact) {
        if self.hold_shared() {
            self.write_rest();
            self.append(fact);
            self.release();
        } else {
            self.put_off(fact);
        }
    }

    /// Believes `fact`, and keeps it for later if it is news.
    fn put_off(&mut self, fact: Fact) {
        if !self.known.is_news(&fact) {
            return;
        }
        // These change; only the last one is of use.
        if matches!(fact, Fact::Salt { .. } | Fact::Removal { .. }) {
            self.unwritten.retain(|older| !older.is_outdone_by(&fact));
        }
        self.known.learn(fact.clone());
        self.unwritten.push(fact);
    }

    /// Notes that the file cannot be written at the moment.
    fn fail(&mut self, error: &io::Error) {
        if self.retry_at.is_none() {
            warn!(path = %self.path.display(), %error, "cannot write the journal; going on without, and trying again");
        }
        self.retry_at = Some(Instant::now() + RETRY);
    }

    /// Whether the file is left alone for a moment.
    fn is_paused(&self) -> bool {
        self.retry_at.is_some_and(|at| at > Instant::now())
    }

    /// Appends what could not be before, however short a time ago that was.
    fn flush(&mut self) {
        if !self.unwritten.is_empty() {
            self.retry_at = self.retry_at.map(|_| Instant::now());
            self.look();
        }
    }

    /// Reads what other processes have appended, and appends what could not be before.
    fn look(&mut self) {
        if self.hold_shared() {
            self.write_rest();
            self.release();
        }
    }

    fn hold_shared(&mut self) -> bool {
        if self.is_paused() {
            return false;
        }
        if self.file.is_none() && !self.path.as_os_str().is_empty() {
            self.reopen();
            if self.file.is_none() {
                return false;
            }
        }
        self.hold(File::try_lock_shared, TRIES_TO_SHARE, thread::yield_now)
    }

    /// Not for whoever must not wait.
    fn hold_alone(&mut self) -> bool {
        let wait = || thread::sleep(Duration::from_millis(1));
        self.hold(File::try_lock, TRIES_TO_HAVE, wait)
    }

    /// Locks the file that is there now, as another process may just have replaced the one that is
    /// open; `false` if somebody else has it. A file that cannot be locked is used without.
    fn hold(
        &mut self,
        lock: impl Fn(&File) -> Result<(), TryLockError>,
        tries: usize,
        wait: impl Fn(),
    ) -> bool {
        for _ in 0..tries {
            let Some(file) = &self.file else { return true };
            let locked = lock(file);
            if file.metadata().is_ok_and(|meta| meta.nlink() == 0) {
                self.reopen();
            } else if matches!(locked, Err(TryLockError::WouldBlock)) {
                wait();
            } else {
                return true;
            }
        }
        false
    }

    /// Opens the file that has replaced the one that is open.
    fn reopen(&mut self) {
        match Journal::open_file(&self.path) {
            Ok(file) => self.file = Some(file),
            Err(error) => {
                self.file = None;
                self.fail(&error);
            }
        }
        self.read_to = 0;
        if self.file.is_some() {
            // What has been removed and is back is not in a file without repeats.
            self.known.removed.clear();
        }
    }

    fn release(&self) {
        if let Some(file) = &self.file {
            // The lock goes with the file, at the latest.
            let _ = file.unlock();
        }
    }

    /// Reads what is new in the file, then appends what was believed without it: of two tables of a
    /// version the one in the file is first.
    fn write_rest(&mut self) {
        let rest = std::mem::take(&mut self.unwritten);
        for fact in rest.iter().rev() {
            self.known.unlearn(fact);
        }
        self.catch_up(None);
        for fact in rest {
            self.append(fact);
        }
    }

    fn append(&mut self, fact: Fact) {
        if self.is_paused() {
            // Nor is anything read: what others have written comes before what is put off.
            return self.put_off(fact);
        }
        self.catch_up(None);
        if !self.known.is_news(&fact) {
            return;
        }
        if let Some(file) = &mut self.file {
            let mut line = Vec::new();
            if self.retry_at.is_some() {
                // The last line may have been written in part.
                line.push(b'\n');
            }
            let result = serde_json::to_writer(&mut line, &fact)
                .map_err(io::Error::from)
                .and_then(|()| {
                    line.push(b'\n');
                    file.write_all(&line)
                });
            if let Err(error) = result {
                self.fail(&error);
                return self.put_off(fact);
            }
            if self.retry_at.take().is_some() {
                info!(path = %self.path.display(), "the journal can be written again");
            }
            // Of two processes that add a table at once, the one whose line comes first is first.
            self.catch_up(Some(&fact));
        }
        self.known.learn(fact);
    }

    /// Reads what was appended since the last time, by others but for `own`; returns the number of
    /// lines.
    fn catch_up(&mut self, own: Option<&Fact>) -> usize {
        let Self {
            known,
            file,
            read_to,
            of_others,
            ..
        } = self;
        let Some(file) = file else { return 0 };
        if file.metadata().is_ok_and(|meta| meta.len() == *read_to)
            || file.seek(SeekFrom::Start(*read_to)).is_err()
        {
            return 0;
        }
        let mut reader = BufReader::new(file);
        let mut lines = 0;
        let mut line = Vec::new();
        loop {
            line.clear();
            match (&mut reader).take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(length)
                    if length > 0 && (line.ends_with(b"\n") || length as u64 == MAX_LINE) =>
                {
                    *read_to += length as u64;
                    lines += 1;
                    if let Ok(fact) = serde_json::from_slice(&line) {
                        *of_others += u64::from(known.is_news(&fact) && own != Some(&fact));
                        known.learn(fact);
                    }
                }
                // The end, or a line that another process has not finished yet.
                _ => return lines,
            }
        }
    }

    /// Replaces the file, which nobody else holds, by one without repeats.
    fn rewrite(&mut self) -> io::Result<()> {
        self.catch_up(None);
        let dir = self.path.parent().unwrap_or(Path::new("."));
        let mut temporary = tempfile::NamedTempFile::new_in(dir)?;
        for fact in self.known.facts() {
            serde_json::to_writer(&mut temporary, &fact)?;
            temporary.write_all(b"\n")?;
        }
        // Others append to it from the moment that it is there.
        let length = temporary.as_file().metadata()?.len();
        temporary.persist(&self.path).map_err(|error| error.error)?;
        self.file = Some(Journal::open_file(&self.path)?);
        self.read_to = length;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn the_first_table_of_a_version_stays_across_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state/host.jsonl");
        let journal = Journal::open(&path);
        assert_eq!(journal.remember_table("h/a/b@1.0.0", table("1")), Ok(()));
        assert_eq!(
            journal.remember_table("h/a/b@1.0.0", table("2")),
            Err(table("1"))
        );
        journal.remember_salt("h/a/b@1.0.0", 2);
        journal.remember_name("a/b@latest");
        drop(journal);
        let journal = Journal::open(&path);
        assert_eq!(
            journal.remember_table("h/a/b@1.0.0", table("2")),
            Err(table("1"))
        );
        assert_eq!(journal.salt("h/a/b@1.0.0"), 2);
        assert_eq!(journal.names(), ["a/b@latest"]);
    }

    #[test]
    fn two_processes_see_each_others_facts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.jsonl");
        let (one, other) = (Journal::open(&path), Journal::open(&path));
        assert_eq!(one.remember_table("v", table("1")), Ok(()));
        assert_eq!(other.remember_table("v", table("2")), Err(table("1")));
    }

    #[test]
    fn damaged_lines_are_skipped() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.jsonl");
        Journal::open(&path).remember_name("good");
        let mut bytes = fs::read(&path).unwrap();
        bytes.splice(0..0, b"\xff\n{\"odd\":1}\nnull\n".iter().copied());
        bytes.extend_from_slice(&vec![b'x'; 40_000]);
        bytes.push(b'\n');
        fs::write(&path, bytes).unwrap();
        let journal = Journal::open(&path);
        assert_eq!(journal.names(), ["good"]);
        journal.remember_name("later");
        assert_eq!(Journal::open(&path).names().len(), 2);
    }

    #[test]
    fn what_a_full_disk_does_not_take_is_written_when_there_is_room() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.jsonl");
        let journal = Journal::open(&path);
        let mut options = OpenOptions::new();
        let full = options.read(true).append(true).open("/dev/full").unwrap();
        let file = journal.lock().file.replace(full);
        assert!(journal.remember_name("a"));
        assert_eq!(journal.remember_table("v", table("1")), Ok(()));
        for removed in [true, false, true] {
            assert!(journal.remember_removal("v", removed));
        }
        assert_eq!(journal.lock().unwritten.len(), 3, "the last state counts");
        // A part of a line, as a disk leaves it that fills up.
        fs::write(&path, "{\"name\":{\"na").unwrap();
        journal.lock().file = file;
        while !journal.lock().unwritten.is_empty() {
            assert!(journal.remember_name("a"));
            assert_eq!(journal.names(), ["a"]);
            thread::yield_now();
        }
        let later = Journal::open(&path);
        assert_eq!(later.names(), ["a"]);
        assert!(later.is_removed("v"));
        assert_eq!(later.remember_table("v", table("2")), Err(table("1")));
    }

    #[test]
    fn a_journal_that_could_not_be_opened_is_opened_later() {
        let dir = tempfile::tempdir().unwrap();
        let obstacle = dir.path().join("state");
        fs::write(&obstacle, "").unwrap();
        let path = obstacle.join("host.jsonl");
        let journal = Journal::open(&path);
        assert!(journal.remember_name("a"));
        fs::remove_file(&obstacle).unwrap();
        drop(journal);
        assert_eq!(Journal::open(&path).names(), ["a"]);
    }

    #[test]
    fn without_a_place_it_works_for_the_session() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let journal = Journal::open(&file.join("below/host.jsonl"));
        assert_eq!(journal.remember_table("v", table("1")), Ok(()));
        assert_eq!(journal.remember_table("v", table("2")), Err(table("1")));
    }
}
