//! What is mounted where, from `/proc/self/mountinfo`.
//!
//! Reading the table never touches a mounted filesystem, so it works while a daemon is stuck or
//! dead. A path is told to be a mountpoint without touching the filesystem there either: a
//! descriptor opened with `O_PATH` sends no request, and its `fdinfo` names the mount it is on.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

/// The filesystem type of our mounts, as the kernel shows it.
pub const FS_TYPE: &str = "fuse.musherfs";

/// The device number of a mounted filesystem. For FUSE, `minor` names the connection too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Device {
    /// 0 for filesystems without a disk.
    pub major: u32,
    /// Reused by the kernel once the filesystem is gone.
    pub minor: u32,
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for Device {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(Self {
            major: major.parse().map_err(drop)?,
            minor: minor.parse().map_err(drop)?,
        })
    }
}

/// Which mount is meant, whatever its path is now.
///
/// The kernel reuses both numbers, so they name our mount only as long as its connection lives:
/// see [`super::Mounted::is_current`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct MountId {
    /// The mount's number in this mount namespace.
    pub id: u64,
    /// The filesystem that it shows.
    pub device: Device,
}

/// One row of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Number and device.
    pub id: MountId,
    /// The number of the mount that this one is mounted on.
    pub parent: u64,
    /// The directory of the filesystem that is shown; `/` unless it is a bind mount.
    pub root: PathBuf,
    /// Where it is mounted, as seen from this process's root.
    pub mountpoint: PathBuf,
    /// Whether mounts below it appear in copies of it in other mount namespaces, as those of
    /// containers.
    pub shared: bool,
    /// Such as `ext4` or [`FS_TYPE`].
    pub fs_type: String,
    /// The `fsname=` of a FUSE mount.
    pub source: OsString,
    /// The options of the filesystem, such as `user_id=0`.
    pub super_options: String,
}

impl Mount {
    /// Whether it is one of our mounts, of whichever daemon.
    pub fn is_musherfs(&self) -> bool {
        self.fs_type == FS_TYPE
    }

    /// The user who mounted it, where FUSE tells.
    pub fn user_id(&self) -> Option<u32> {
        self.super_options
            .split(',')
            .find_map(|option| option.strip_prefix("user_id="))?
            .parse()
            .ok()
    }
}

/// All mounts of this process's mount namespace, in the order they cover each other.
#[derive(Debug, Clone, Default)]
pub struct MountTable(Vec<Mount>);

impl MountTable {
    /// Reads the table as it is now.
    ///
    /// # Errors
    ///
    /// Only if `/proc` is not mounted.
    pub fn read() -> io::Result<Self> {
        fs::read("/proc/self/mountinfo").map(|bytes| Self::parse(&bytes))
    }

    /// Reads the table from text; rows that cannot be understood are left out.
    pub fn parse(bytes: &[u8]) -> Self {
        Self(bytes.split(|byte| *byte == b'\n').filter_map(row).collect())
    }

    /// All rows.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Mount> {
        self.0.iter()
    }

    /// The mount that `path`, absolute and without symlinks, lies in: the topmost there.
    pub fn covering(&self, path: &Path) -> Option<&Mount> {
        let topmost = |above: &Path| self.0.iter().rfind(|mount| mount.mountpoint == above);
        path.ancestors().find_map(topmost)
    }

    /// The mount with this number.
    pub fn by_id(&self, id: u64) -> Option<&Mount> {
        self.0.iter().find(|mount| mount.id.id == id)
    }

    /// This very mount, wherever it is now. Tells of a stranger only once the connection of the one
    /// that is meant has ended, as the numbers are reused.
    pub fn find(&self, id: MountId) -> Option<&Mount> {
        self.by_id(id.id).filter(|mount| mount.id == id)
    }

    /// The mounts that are mounted on top of `id` or below it.
    pub fn children(&self, id: u64) -> impl Iterator<Item = &Mount> {
        self.0
            .iter()
            .filter(move |mount| mount.parent == id && mount.id.id != id)
    }
}

fn row(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let mut next = || fields.next();
    let text = |bytes: &[u8]| std::str::from_utf8(bytes).ok().map(str::to_owned);

    let id = text(next()?)?.parse().ok()?;
    let parent = text(next()?)?.parse().ok()?;
    let device = text(next()?)?.parse().ok()?;
    let root = PathBuf::from(unescape(next()?));
    let mountpoint = PathBuf::from(unescape(next()?));
    next()?; // the options of this mount
    let mut shared = false;
    // Any number of propagation fields.
    loop {
        match next()? {
            b"-" => break,
            field => shared |= field.starts_with(b"shared:"),
        }
    }
    let fs_type = unescape(next()?).into_string().ok()?;
    let source = unescape(next()?);
    let super_options = text(next().unwrap_or_default())?;
    Some(Mount {
        id: MountId { id, device },
        parent,
        root,
        mountpoint,
        shared,
        fs_type,
        source,
        super_options,
    })
}

/// Undoes the kernel's `\ooo`.
fn unescape(bytes: &[u8]) -> OsString {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&first, tail)) = rest.split_first() {
        match octal(rest) {
            Some(byte) => {
                out.push(byte);
                rest = &rest[4..];
            }
            None => {
                out.push(first);
                rest = tail;
            }
        }
    }
    OsString::from_vec(out)
}

fn octal(bytes: &[u8]) -> Option<u8> {
    let [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] = bytes else {
        return None;
    };
    Some(((a - b'0') << 6) | ((b - b'0') << 3) | (c - b'0'))
}

/// A path, resolved without a request to the filesystem it leads to.
#[derive(Debug)]
pub(super) struct Located {
    /// Without symlinks, `.` and `..`.
    pub(super) path: PathBuf,
    /// The mount that it is on; its mountpoint equals `path` if `path` is the mount's root.
    pub(super) mount: u64,
    /// Keeps that mount busy: to be dropped before it is unmounted, unless lazily.
    pub(super) fd: OwnedFd,
}

impl Located {
    /// Follows `path` to the mount on top of it.
    ///
    /// Directories *above* the last component are searched as always, so a path that leads
    /// through a stuck filesystem waits for it.
    pub(super) fn find(path: &Path) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let fd = rustix::fs::open(path, flags, Mode::empty())?;
        Ok(Self {
            path: fs::read_link(proc_path(&fd))?,
            mount: mount_of(&fd)?,
            fd,
        })
    }

    /// The row of this mount, if `path` is its mountpoint.
    pub(super) fn mounted_here<'t>(&self, table: &'t MountTable) -> Option<&'t Mount> {
        table
            .by_id(self.mount)
            .filter(|mount| mount.mountpoint == self.path)
    }
}

/// The path of a descriptor: it leads to the very file or mount that was opened.
pub(super) fn proc_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

fn mount_of(fd: impl AsFd) -> io::Result<u64> {
    fdinfo("/proc/self".as_ref(), fd.as_fd().as_raw_fd(), "mnt_id:")
        .ok_or_else(|| io::Error::other("/proc/self/fdinfo has no mnt_id"))
}

/// The number of our connection, from a kernel that shows it (6.16).
pub(super) fn connection_of(fd: impl AsFd) -> Option<u64> {
    fdinfo(
        "/proc/self".as_ref(),
        fd.as_fd().as_raw_fd(),
        "fuse_connection:",
    )
}

/// A number that the kernel tells about an open descriptor of some process.
pub(super) fn fdinfo(process: &Path, fd: i32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(process.join("fdinfo").join(fd.to_string())).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(key))?
        .trim()
        .parse()
        .ok()
}

/// Whether `/dev/fuse` behind this descriptor is still connected to a mounted filesystem, or to
/// one that is about to be.
pub(super) fn is_connected(fd: &File) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::new(fd, PollFlags::empty())];
    let now = Timespec::default();
    match poll(&mut fds, Some(&now)) {
        Ok(_) => !fds[0].revents().contains(PollFlags::ERR),
        // Out of memory at worst: what is not known to be gone is treated as there.
        Err(_) => true,
    }
}

/// Whether `path` is `prefix` or below it, bytewise.
pub(super) fn is_below(path: &OsStr, prefix: &Path) -> bool {
    let prefix = prefix.as_os_str().as_bytes();
    match path.as_bytes().strip_prefix(prefix) {
        Some(rest) => rest.is_empty() || rest.starts_with(b"/") || prefix == b"/",
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &[u8] = b"\
21 1 253:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n\
40 21 0:55 / /mnt/musher ro,nosuid,nodev,relatime shared:7 master:1 - fuse.musherfs musherfs ro,user_id=1000,group_id=1000,default_permissions\n\
41 21 0:56 /sub /mnt/with\\040space\\011tab\\134back\\012line\\043 ro - fuse.other https://a\\040b rw\n\
garbage\n\
42 21 nonsense / /x rw - ext4 x rw\n\
43 40 0:57 / /mnt/musher/below rw - tmpfs none rw\n\
44 21 0:58 / /mnt/caf\xc3\xa9\xff rw - tmpfs  \n";

    #[test]
    fn rows_are_read_with_any_number_of_propagation_fields() {
        let table = MountTable::parse(TABLE);
        let ids: Vec<_> = table.iter().map(|mount| mount.id.id).collect();
        assert_eq!(ids, [21, 40, 41, 43, 44]);

        let ours = table.by_id(40).unwrap();
        assert!(ours.is_musherfs());
        assert_eq!(ours.id.device.to_string(), "0:55");
        assert_eq!(ours.mountpoint, Path::new("/mnt/musher"));
        assert_eq!(ours.user_id(), Some(1000));
        assert_eq!(ours.source, "musherfs");
        assert!(!table.by_id(21).unwrap().is_musherfs());
    }

    #[test]
    fn paths_are_unescaped_and_need_not_be_utf8() {
        let table = MountTable::parse(TABLE);
        let odd = table.by_id(41).unwrap();
        assert_eq!(
            odd.mountpoint,
            Path::new("/mnt/with space\ttab\\back\nline#")
        );
        assert_eq!(odd.root, Path::new("/sub"));
        assert_eq!(odd.source, "https://a b");
        assert_eq!(
            table.by_id(44).unwrap().mountpoint.as_os_str().as_bytes(),
            b"/mnt/caf\xc3\xa9\xff"
        );
        assert_eq!(unescape(b"\\9ab\\04"), "\\9ab\\04");
    }

    #[test]
    fn what_is_mounted_below_is_found() {
        let table = MountTable::parse(TABLE);
        let below: Vec<_> = table.children(40).map(|m| m.mountpoint.clone()).collect();
        assert_eq!(below, [Path::new("/mnt/musher/below")]);
    }

    #[test]
    fn a_path_is_located_on_its_mount() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(".", &link).unwrap();
        let table = MountTable::read().unwrap();

        let located = Located::find(&link).unwrap();
        assert_eq!(located.path, fs::canonicalize(dir.path()).unwrap());
        assert!(table.by_id(located.mount).is_some());
        assert!(located.mounted_here(&table).is_none());

        let proc = Located::find(Path::new("/proc")).unwrap();
        assert_eq!(proc.mounted_here(&table).unwrap().fs_type, "proc");
    }

    #[test]
    fn a_prefix_is_whole_components() {
        let prefix = Path::new("/mnt/a");
        assert!(is_below("/mnt/a".as_ref(), prefix));
        assert!(is_below("/mnt/a/b (deleted)".as_ref(), prefix));
        assert!(!is_below("/mnt/ab".as_ref(), prefix));
    }
}
