//! A log file that does not grow without end, written by several processes at once.
//!
//! ```text
//! musherfs.log      up to 5 MiB, appended to by every mount of the user
//! musherfs.log.1    the one before
//! ```
//!
//! A line is one `write` to a file opened for appending, so lines do not mix. Whoever finds the
//! file full renames it, under a lock; the others notice that the name means another file, and
//! follow.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// How large the file may become. Two of these hold some hundred thousand lines.
pub(super) const LIMIT: u64 = 5 << 20;

/// The end of the log file.
#[derive(Debug)]
pub(super) struct RotatingFile {
    path: PathBuf,
    limit: u64,
    file: File,
}

impl RotatingFile {
    /// Opens the file for appending, readable by its owner alone.
    pub(super) fn open(path: &Path, limit: u64) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            limit,
            file: open(path)?,
        })
    }

    /// Makes `file` the one that has the name, and that has room.
    fn follow(&mut self) -> io::Result<()> {
        if !self.is_current()? {
            self.file = open(&self.path)?;
        }
        if self.file.metadata()?.len() < self.limit {
            return Ok(());
        }
        // The lock is on the full file: whoever gets it second finds that the name has moved on.
        self.file.lock()?;
        let renamed = match self.is_current() {
            Ok(true) => fs::rename(&self.path, self.previous()),
            other => other.map(drop),
        };
        let next = renamed.and_then(|()| open(&self.path));
        // Others may wait for it; closing would unlock it as well.
        self.file.unlock()?;
        self.file = next?;
        Ok(())
    }

    fn is_current(&self) -> io::Result<bool> {
        let own = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(named) => Ok((named.dev(), named.ino()) == (own.dev(), own.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn previous(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".1");
        name.into()
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

impl Write for RotatingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A file that cannot be rotated (the directory is gone) is still written to.
        let _ = self.follow();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_kept_once_and_a_new_one_begun() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        let old = scratch.path().join("log.1");
        let mut log = RotatingFile::open(&path, 10).unwrap();
        log.write_all(b"one\n").unwrap();
        log.write_all(b"two two\n").unwrap();
        assert!(!old.exists());
        log.write_all(b"three\n").unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "one\ntwo two\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\n");
        log.write_all(b"four four\n").unwrap();
        log.write_all(b"five\n").unwrap();
        assert_eq!(fs::read_to_string(&old).unwrap(), "three\nfour four\n");
        assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 2);
    }

    #[test]
    fn writers_follow_a_file_that_another_one_rotated_or_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        let mut first = RotatingFile::open(&path, 10).unwrap();
        let mut second = RotatingFile::open(&path, 10).unwrap();
        first.write_all(b"0123456789\n").unwrap();
        first.write_all(b"first\n").unwrap();
        second.write_all(b"second\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "first\nsecond\n");
        fs::remove_file(&path).unwrap();
        second.write_all(b"again\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "again\n");
    }

    #[test]
    fn no_line_is_lost_or_torn_when_many_write_and_rotate() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("log");
        // Two files of this size hold all lines, so that a lost one is a mistake.
        let limit = 200 * 12;
        std::thread::scope(|scope| {
            for writer in 0..4 {
                let path = &path;
                scope.spawn(move || {
                    let mut log = RotatingFile::open(path, limit).unwrap();
                    for line in 0..75 {
                        let text = format!("line {writer} {line:04}\n");
                        log.write_all(text.as_bytes()).unwrap();
                    }
                });
            }
        });
        let text = fs::read_to_string(scratch.path().join("log.1")).unwrap()
            + &fs::read_to_string(&path).unwrap();
        let mut lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 300);
        assert!(lines.iter().all(|line| line.len() == 11), "{text}");
        lines.sort_unstable();
        lines.dedup();
        assert_eq!(lines.len(), 300);
    }
}
