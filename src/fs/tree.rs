//! What a directory lists and what an entry looks like.
//!
//! Listings are walked by cookies that stay good while a listing changes: in a version the index in
//! its table, elsewhere the entry's inode number, by which the entries are sorted. So a reader that
//! continues after a change misses and repeats nothing that was there all along.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::inode;
use crate::store::Loaded;

/// As good as for ever: content that is addressed by its hash does not change. A year, because the
/// kernel adds it to its clock.
pub const FOREVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// The time of everything immutable: 1980-01-02T00:00:00Z. No registry tells a time on every route;
/// before 1980 zip tools refuse; and the day after the epoch of FAT is 1980 in every time zone.
pub fn epoch() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(315_619_200)
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory, mode 0555.
    Directory,
    /// A regular file, mode 0444.
    File,
    /// A symlink, mode 0777.
    Symlink,
}

/// A node's attributes; owner, permissions and link counts follow from its kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// The inode number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Bytes: a file's content, a symlink's target; 0 for a directory.
    pub size: u64,
    /// Modification time, which is all times.
    pub mtime: SystemTime,
}

impl Attr {
    /// A directory.
    pub fn directory(ino: u64, mtime: SystemTime) -> Self {
        Self {
            ino,
            kind: Kind::Directory,
            size: 0,
            mtime,
        }
    }

    /// The entry at `index` of a version whose root has the number `root`.
    pub fn entry(loaded: &Loaded, root: u64, index: u32) -> Option<Self> {
        let entry = loaded.manifest.entry(index)?;
        let ino = inode::entry(root, index);
        if entry.is_dir() {
            return Some(Self::directory(ino, epoch()));
        }
        entry.is_file().then(|| Self {
            ino,
            kind: Kind::File,
            size: entry.size(),
            mtime: epoch(),
        })
    }
}

/// One line of a listing.
#[derive(Debug, Clone)]
pub struct Line<'a> {
    /// The name.
    pub name: &'a str,
    /// The inode number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
    /// Where to continue after this line.
    pub cookie: u64,
    /// The attributes, and how long they and the entry hold. `None` where they are not known
    /// without a request: whoever wants them will look the name up.
    pub attr: Option<(Attr, Duration)>,
}

/// An entry of a mutable directory: what stays the same as long as the directory lists it.
#[derive(Debug, Clone)]
pub struct Listed {
    /// The name.
    pub name: Box<str>,
    /// The inode number.
    pub ino: u64,
    /// What it is.
    pub kind: Kind,
}

/// The entries of a mutable directory, made once for all who list it meanwhile.
pub type Entries = Arc<[Listed]>;

/// Tells what [`Line::attr`] of an entry is at the moment that it is listed.
pub type Attrs = Box<dyn Fn(&Listed) -> Option<(Attr, Duration)> + Send>;

/// A directory that is being listed.
pub enum Directory {
    /// In a version: its manifest, its root's number and the directory's index.
    InVersion(Arc<Loaded>, u64, u32),
    /// The root or a namespace: its own number, its entries as [`sorted`] has them, and what is
    /// known of them.
    Mutable(u64, Entries, Attrs),
}

/// Puts the entries of a mutable directory in the order in which they are listed.
pub fn sorted(mut entries: Vec<Listed>) -> Entries {
    entries.sort_unstable_by_key(|entry| entry.ino);
    entries.dedup_by_key(|entry| entry.ino);
    entries.into()
}

/// Cookies of `.` and `..`; those of entries are larger.
const DOT: u64 = 1;
const DOT_DOT: u64 = 2;

impl Directory {
    /// Hands the lines after the cookie `after` (0: all) to `add`, until it says that it is full.
    pub fn list(&self, after: u64, mut add: impl FnMut(Line<'_>) -> bool) {
        let (ino, parent) = match self {
            Self::InVersion(loaded, root, dir) => {
                let parent = match dir {
                    // The kernel knows the real parent of a version's root; nothing reads this.
                    0 => inode::ROOT,
                    _ => inode::entry(*root, loaded.manifest.parent(*dir)),
                };
                (inode::entry(*root, *dir), parent)
            }
            Self::Mutable(ino, ..) => (*ino, inode::ROOT),
        };
        for (name, ino, cookie) in [(".", ino, DOT), ("..", parent, DOT_DOT)] {
            let line = Line {
                name,
                ino,
                kind: Kind::Directory,
                cookie,
                attr: None,
            };
            if after < cookie && add(line) {
                return;
            }
        }
        match self {
            Self::InVersion(loaded, root, dir) => {
                let next = u32::try_from(after.saturating_sub(DOT_DOT) + 1).unwrap_or(u32::MAX);
                for entry in loaded.manifest.children(*dir, next) {
                    let Some(attr) = Attr::entry(loaded, *root, entry.index()) else {
                        continue;
                    };
                    let full = add(Line {
                        name: entry.name(),
                        ino: attr.ino,
                        kind: attr.kind,
                        cookie: u64::from(entry.index()) + DOT_DOT,
                        attr: Some((attr, FOREVER)),
                    });
                    if full {
                        return;
                    }
                }
            }
            Self::Mutable(_, entries, attrs) => {
                let from = entries.partition_point(|entry| entry.ino <= after);
                for entry in &entries[from..] {
                    let attr = attrs(entry);
                    let full = add(Line {
                        name: &entry.name,
                        // A pack that was packed again has another one than when it was listed.
                        ino: attr.map_or(entry.ino, |(attr, _)| attr.ino),
                        kind: entry.kind,
                        cookie: entry.ino,
                        attr,
                    });
                    if full {
                        return;
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_continues_after_any_line_also_when_it_has_changed() {
        let listed = |numbers: &[u64]| {
            let entries = numbers.iter().map(|&ino| Listed {
                name: ino.to_string().into(),
                ino,
                kind: Kind::Directory,
            });
            Directory::Mutable(100, sorted(entries.collect()), Box::new(|_| None))
        };
        let names = |directory: &Directory, after: u64| {
            let mut names = Vec::new();
            directory.list(after, |line| {
                names.push((line.name.to_owned(), line.cookie));
                names.len() == 3
            });
            names
        };
        let first = names(&listed(&[700, 500, 600]), 0);
        let texts =
            |lines: &[(String, u64)]| lines.iter().map(|line| line.0.clone()).collect::<Vec<_>>();
        assert_eq!(texts(&first), [".", "..", "500"]);
        // 500 has gone and 550 has come meanwhile.
        assert_eq!(
            texts(&names(&listed(&[550, 600, 700]), first[2].1)),
            ["550", "600", "700"]
        );
        assert_eq!(texts(&names(&listed(&[500]), first[0].1)), ["..", "500"]);
        assert!(names(&listed(&[500]), 500).is_empty());
    }
}
