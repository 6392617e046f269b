//! What can happen to a file of the cache.

use std::fs::{self, File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, chown, symlink};
use std::path::Path;

use crate::support::fuse::cannot_run;
use crate::support::prove::Random;

/// Changes one byte, in place.
pub(crate) fn flip(path: &Path, position: usize, random: &mut Random) {
    change(path, position, 1 + random.below(255));
}

/// Changes one byte so that a digit mostly stays a digit, and a letter a letter.
pub(crate) fn slip(path: &Path, position: usize, random: &mut Random) {
    change(path, position, 1 + random.below(7));
}

fn change(path: &Path, position: usize, by: u64) {
    let by = u8::try_from(by).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position as u64).unwrap();
    file.write_all_at(&[byte[0] ^ by], position as u64).unwrap();
}

/// Something that happens to a file as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Harm {
    Empty,
    Half,
    LastByteMissing,
    Longer,
    /// Two files change places.
    Swap,
    /// A link to a file with the right content.
    LinkToTheSame,
    /// A link to another file of the cache.
    LinkToAnother,
    LinkToNothing,
    Directory,
    /// It belongs to somebody else.
    Owner,
    Gone,
}

impl Harm {
    const ALL: [Self; 11] = [
        Self::Empty,
        Self::Half,
        Self::LastByteMissing,
        Self::Longer,
        Self::Swap,
        Self::LinkToTheSame,
        Self::LinkToAnother,
        Self::LinkToNothing,
        Self::Directory,
        Self::Owner,
        Self::Gone,
    ];

    /// All that can be done here, which is everything for root; says so if something cannot.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = Self::ALL.to_vec();
        if Self::skipped() > 0 {
            cannot_run("only root can give files away: nothing is tried with those of others");
            all.retain(|harm| *harm != Self::Owner);
        }
        all
    }

    /// How many of them are left out here.
    pub(crate) fn skipped() -> usize {
        usize::from(!rustix::process::geteuid().is_root())
    }

    /// Does it to the file at `path`; `other` is another one like it.
    pub(crate) fn apply(self, path: &Path, other: &Path) {
        let mut content = Vec::new();
        File::open(path).unwrap().read_to_end(&mut content).unwrap();
        let shorten = |length: usize| {
            let file = OpenOptions::new().write(true).open(path).unwrap();
            file.set_len(length as u64).unwrap();
        };
        let aside = path.with_extension("aside");
        match self {
            Self::Empty => shorten(0),
            Self::Half => shorten(content.len() / 2),
            Self::LastByteMissing => shorten(content.len() - 1),
            Self::Longer => shorten(content.len() + 10),
            Self::Swap => {
                fs::rename(path, &aside).unwrap();
                fs::rename(other, path).unwrap();
                fs::rename(&aside, other).unwrap();
            }
            Self::LinkToTheSame => {
                // As good as the original, and still not followed.
                fs::rename(path, &aside).unwrap();
                symlink(&aside, path).unwrap();
            }
            Self::LinkToAnother => {
                fs::remove_file(path).unwrap();
                symlink(other, path).unwrap();
            }
            Self::LinkToNothing => {
                fs::remove_file(path).unwrap();
                symlink("nothing", path).unwrap();
            }
            Self::Directory => {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            }
            Self::Owner => chown(path, Some(65_534), Some(65_534)).unwrap(),
            Self::Gone => fs::remove_file(path).unwrap(),
        }
    }
}

/// What a cache has of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    Right,
    Wrong,
    /// No file: a link in its place is not followed, and a directory is nothing either.
    Nothing,
}

impl Left {
    pub(crate) fn of(path: &Path, content: &[u8]) -> Self {
        match fs::symlink_metadata(path) {
            Ok(meta) if meta.is_file() && fs::read(path).unwrap() == content => Self::Right,
            Ok(meta) if meta.is_file() => Self::Wrong,
            _ => Self::Nothing,
        }
    }

    /// What a reader of it gets while the source is down.
    pub(crate) fn errno(self) -> Option<i32> {
        match self {
            Self::Right => None,
            Self::Wrong => Some(libc::EIO),
            Self::Nothing => Some(libc::EHOSTUNREACH),
        }
    }

    /// Whether the cause that is given is the true one: the source's failure, and the cache's where it
    /// has wrong bytes.
    pub(crate) fn is_said_by(self, cause: &str) -> bool {
        let blames_cache = cause.contains("the cache (and it cannot be fetched again: ");
        cause.contains(" is unreachable: ") && blames_cache == (self == Self::Wrong)
    }
}
