//! Directories below the cache's root, reached without following a link.
//!
//! The root may be a symbolic link: its owner chose it. Nothing below may be one: another program
//! that can write there could make a read leave the cache, or a write land elsewhere. So every path
//! is resolved by the kernel with `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`, or component by component
//! where the kernel (or a container's filter) lacks `openat2`; and files are moved between directory
//! descriptors, never between paths.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode};
use rustix::io::Errno;

/// What new directories may be accessed by: the owner.
const DIRECTORY_MODE: Mode = Mode::RWXU;

/// An open directory at or below the root.
#[derive(Debug)]
pub(super) struct Dir(OwnedFd);

/// A name in a directory, and what it names.
#[derive(Debug, Clone)]
pub(super) struct Name {
    /// Names that are no UTF-8 are none of the cache's, and are not listed.
    pub(super) text: String,
    /// `None` where only a stat could tell.
    kind: Option<FileType>,
}

impl Name {
    /// What the name names in `dir`, links not followed.
    pub(super) fn kind(&self, dir: &Dir) -> io::Result<FileType> {
        match self.kind {
            Some(kind) => Ok(kind),
            None => Ok(FileType::from_raw_mode(dir.stat(&self.text)?.st_mode)),
        }
    }
}

impl Dir {
    /// Opens the root itself, which may be a link.
    pub(super) fn open_root(root: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self(rustix::fs::open(root, flags, Mode::empty())?))
    }

    /// Opens the root, which is created if it is missing.
    pub(super) fn create_root(root: &Path) -> io::Result<Self> {
        match Self::open_root(root) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                use std::os::unix::fs::DirBuilderExt as _;
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(root)?;
                Self::open_root(root)
            }
            other => other,
        }
    }

    /// Opens the directory at `path`, relative to this one.
    pub(super) fn open(&self, path: &str) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        Ok(Self(self.open_beneath(path, flags, Mode::empty())?))
    }

    /// Opens the directory at `path`, creating what is missing of it. The second value tells
    /// whether the last component was created.
    pub(super) fn create(&self, path: &str) -> io::Result<(Self, bool)> {
        match self.open(path) {
            Ok(dir) => return Ok((dir, false)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let mut dir = Self(self.0.try_clone()?);
        let mut created = false;
        for component in path.split('/') {
            created = match rustix::fs::mkdirat(&dir.0, component, DIRECTORY_MODE) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(errno) => return Err(errno.into()),
            };
            dir = dir.open(component)?;
        }
        Ok((dir, created))
    }

    /// Opens the regular file at `path` for reading.
    ///
    /// Anything else there is [`io::ErrorKind::InvalidInput`]; a FIFO is not waited for.
    pub(super) fn open_file(&self, path: &str) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(self.open_beneath(path, flags, Mode::empty())?);
        if file.metadata()?.is_file() {
            Ok(file)
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ))
        }
    }

    /// Creates the file `name`, which must not exist, for reading and writing.
    pub(super) fn create_file(&self, name: &str, mode: RawMode) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
        let file = self.open_beneath(name, flags, Mode::from_raw_mode(mode))?;
        Ok(File::from(file))
    }

    /// Moves the file `name` to `target` in `dir`, replacing what is there.
    pub(super) fn rename(&self, name: &str, dir: &Self, target: &str) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.0, name, &dir.0, target)?)
    }

    /// Removes the file `name`; one that is already gone is fine.
    pub(super) fn remove_file(&self, name: &str) -> io::Result<()> {
        match rustix::fs::unlinkat(&self.0, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Removes the directory `name` if it is empty.
    pub(super) fn remove_empty(&self, name: &str) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.0, name, AtFlags::REMOVEDIR)?)
    }

    /// What this directory is.
    pub(super) fn own_stat(&self) -> io::Result<rustix::fs::Stat> {
        Ok(rustix::fs::fstat(&self.0)?)
    }

    /// What `name` is, links not followed.
    pub(super) fn stat(&self, name: &str) -> io::Result<rustix::fs::Stat> {
        Ok(rustix::fs::statat(
            &self.0,
            name,
            AtFlags::SYMLINK_NOFOLLOW,
        )?)
    }

    /// All names in the directory but those that start with a dot, in no particular order.
    pub(super) fn names(&self) -> io::Result<Vec<Name>> {
        let mut names = Vec::new();
        for entry in rustix::fs::Dir::read_from(&self.0)? {
            let entry = entry?;
            if let Ok(text) = entry.file_name().to_str()
                && !text.starts_with('.')
            {
                let kind = Some(entry.file_type()).filter(|kind| *kind != FileType::Unknown);
                names.push(Name {
                    text: text.to_owned(),
                    kind,
                });
            }
        }
        Ok(names)
    }

    /// The names of all directories in this one.
    pub(super) fn directories(&self) -> io::Result<impl Iterator<Item = String>> {
        self.of_kind(FileType::Directory)
    }

    /// The names of all regular files in this directory.
    pub(super) fn files(&self) -> io::Result<impl Iterator<Item = String>> {
        self.of_kind(FileType::RegularFile)
    }

    fn of_kind(&self, wanted: FileType) -> io::Result<impl Iterator<Item = String>> {
        let names = self.names()?;
        Ok(names.into_iter().filter_map(move |name| {
            let kind = name.kind.or_else(|| {
                let stat = self.stat(&name.text).ok()?;
                Some(FileType::from_raw_mode(stat.st_mode))
            });
            (kind == Some(wanted)).then_some(name.text)
        }))
    }

    #[cfg(target_os = "linux")]
    fn open_beneath(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        use rustix::fs::ResolveFlags;

        /// A rename anywhere on the path makes the kernel give up (`EAGAIN`).
        const ATTEMPTS: usize = 8;
        for _ in 0..ATTEMPTS {
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            let all = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.0, path, all, mode, resolve) {
                Ok(fd) => return Ok(fd),
                Err(Errno::AGAIN) => {}
                // Old kernels, and seccomp filters older than the call.
                Err(Errno::NOSYS | Errno::PERM) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        self.open_by_components(path, flags, mode)
    }

    #[cfg(not(target_os = "linux"))]
    fn open_beneath(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        self.open_by_components(path, flags, mode)
    }

    /// What [`Dir::open_beneath`] does where one system call cannot.
    fn open_by_components(&self, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(Errno::XDEV.into());
        }
        let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let (parents, name) = path.rsplit_once('/').unwrap_or(("", path));
        let mut parent: Option<OwnedFd> = None;
        for component in parents.split('/').filter(|component| !component.is_empty()) {
            let at = parent.as_ref().unwrap_or(&self.0);
            let as_directory = OFlags::RDONLY | OFlags::DIRECTORY | nofollow;
            parent = Some(rustix::fs::openat(
                at,
                component,
                as_directory,
                Mode::empty(),
            )?);
        }
        let at = parent.as_ref().unwrap_or(&self.0);
        Ok(rustix::fs::openat(at, name, flags | nofollow, mode)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_and_ways_out_are_refused_by_both_ways_of_opening() {
        let temp = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("a/b")).unwrap();
        std::fs::write(temp.path().join("a/b/file"), "x").unwrap();
        std::fs::write(outside.path().join("file"), "secret").unwrap();
        symlink(outside.path(), temp.path().join("link")).unwrap();
        symlink(outside.path().join("file"), temp.path().join("a/file")).unwrap();
        symlink("b", temp.path().join("a/inside")).unwrap();
        let root = Dir::open_root(temp.path()).unwrap();
        let flags = OFlags::RDONLY;
        let none = Mode::empty();
        for (path, allowed) in [
            ("a/b/file", true),
            ("link/file", false),
            ("a/file", false),
            ("a/inside/file", false),
            ("a/../../file", false),
            ("../file", false),
            ("/etc/passwd", false),
            ("a/none", false),
        ] {
            assert_eq!(
                root.open_beneath(path, flags, none).is_ok(),
                allowed,
                "{path}"
            );
            let slow = root.open_by_components(path, flags, none);
            assert_eq!(slow.is_ok(), allowed, "{path}");
        }
    }

    #[test]
    fn a_link_to_the_root_is_followed() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("real")).unwrap();
        symlink("real", temp.path().join("root")).unwrap();
        let root = Dir::create_root(&temp.path().join("root")).unwrap();
        root.create("x/y").unwrap();
        assert!(temp.path().join("real/x/y").is_dir());
    }

    #[test]
    fn a_fifo_in_place_of_a_file_is_refused_without_waiting() {
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::open_root(temp.path()).unwrap();
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(&root.0, "fifo", FileType::Fifo, mode, 0).unwrap();
        assert!(root.open_file("fifo").is_err());
    }

    #[test]
    fn new_directories_belong_to_the_owner_alone() {
        use std::os::unix::fs::PermissionsExt as _;
        let temp = tempfile::tempdir().unwrap();
        let root = Dir::create_root(&temp.path().join("deep/root")).unwrap();
        let (_, created) = root.create("a/b").unwrap();
        assert!(created);
        assert!(!root.create("a/b").unwrap().1);
        for path in ["deep", "deep/root", "deep/root/a", "deep/root/a/b"] {
            let mode = temp.path().join(path).metadata().unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o700, "{path}");
        }
    }
}
