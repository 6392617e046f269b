//! Obtaining a mounted `/dev/fuse`, and holding it.
//!
//! Root opens the device and calls mount(2). A plain user gets both from the setuid helper
//! `fusermount3`, which sends the descriptor over a socket; the helper finds the socket as its
//! standard input, since passing any other descriptor to a child takes unsafe code.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::error::{MountError, Result};
use super::mountinfo::{self, FS_TYPE, Located, MountId, MountTable};
use super::{MountOptions, MountPoint};

const DEVICE: &str = "/dev/fuse";

/// Where the helper is, if not on `PATH` (a service may have none; NixOS has wrappers).
const HELPERS: [&str; 5] = [
    "fusermount3",
    "/usr/bin/fusermount3",
    "/bin/fusermount3",
    "/run/wrappers/bin/fusermount3",
    "fusermount",
];

/// A mount of ours, held: it lives as long as this value or a [`super::Serving`] does.
///
/// Dropping it does not unmount: when the last descriptor is closed the mount stays in the table,
/// dead, until someone unmounts it.
#[derive(Debug)]
pub struct Mounted {
    fd: File,
    dir: PathBuf,
    id: MountId,
}

impl Mounted {
    /// Takes over a mounted descriptor from a process that obtained or held it.
    pub fn from_parts(fd: OwnedFd, dir: PathBuf, id: MountId) -> Self {
        Self {
            fd: File::from(fd),
            dir,
            id,
        }
    }

    /// Where it was mounted. It may have been moved since.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Which mount it is.
    pub fn id(&self) -> MountId {
        self.id
    }

    pub(super) fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone().map(OwnedFd::from)
    }

    /// Whether the mount is still there, wherever it is now.
    ///
    /// The kernel reuses mount and device numbers as soon as they are free. While the connection
    /// lives its device number is taken, so nobody else's mount can have the same pair.
    pub fn is_current(&self) -> bool {
        mountinfo::is_connected(&self.fd)
            && MountTable::read().is_ok_and(|table| self.row(&table).is_some())
    }

    pub(super) fn is_connected(&self) -> bool {
        mountinfo::is_connected(&self.fd)
    }

    pub(super) fn row<'t>(&self, table: &'t MountTable) -> Option<&'t mountinfo::Mount> {
        table.find(self.id)
    }
}

/// The descriptor, to be handed to a process that goes on holding it.
impl AsFd for Mounted {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Mounts on `point` and returns the descriptor that requests will arrive on.
///
/// From then on readers wait until [`super::serve`] answers them.
///
/// # Errors
///
/// Every way in which the system may refuse has its variant and its hint; nothing is left mounted
/// then, unless somebody else mounted over it at the same moment.
pub fn mount(point: &MountPoint, options: &MountOptions) -> Result<Mounted> {
    let fd = if rustix::process::geteuid().is_root() {
        mount_as_root(point.path(), options)?
    } else {
        mount_as_user(point.path(), options)?
    };
    identify(fd, point.path())
}

fn mount_as_root(dir: &Path, options: &MountOptions) -> Result<OwnedFd> {
    let fd: OwnedFd = File::options()
        .read(true)
        .write(true)
        .open(DEVICE)
        .map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => MountError::NoDevice,
            io::ErrorKind::PermissionDenied => MountError::DeviceDenied,
            _ => match Errno::from_io_error(&source) {
                // The node is there, but not the driver behind it.
                Some(Errno::NODEV | Errno::NXIO) => MountError::NoDevice,
                _ => MountError::io(DEVICE, source),
            },
        })?
        .into();
    let mut flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    if options.noexec {
        flags |= MountFlags::NOEXEC;
    }
    let data = CString::new(kernel_options(&fd, options)).map_err(|_| MountError::Refused {
        path: dir.to_owned(),
        message: "a mount option contains a NUL byte".to_owned(),
    })?;
    rustix::mount::mount(
        options.source.as_str(),
        dir,
        FS_TYPE,
        flags,
        data.as_c_str(),
    )
    .map_err(|errno| match errno {
        Errno::PERM => MountError::NotPermitted,
        Errno::ACCESS => MountError::PolicyDenied {
            path: dir.to_owned(),
        },
        Errno::NODEV => MountError::NoDevice,
        // The kernel takes labels only where SELinux is on.
        Errno::INVAL if !options.labels.is_empty() => MountError::Refused {
            path: dir.to_owned(),
            message: format!(
                "{errno}; is SELinux enabled, as {}= needs?",
                options.labels[0].0
            ),
        },
        _ => MountError::Refused {
            path: dir.to_owned(),
            message: errno.to_string(),
        },
    })?;
    Ok(fd)
}

fn kernel_options(fd: &OwnedFd, options: &MountOptions) -> String {
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        fd.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    for (name, value) in &options.labels {
        // A label with categories has a comma in it: the kernel takes quotes for that.
        data.push_str(&format!(",{name}=\"{value}\""));
    }
    data
}

fn mount_as_user(dir: &Path, options: &MountOptions) -> Result<OwnedFd> {
    if let Some((option, _)) = options.labels.first() {
        return Err(MountError::RootOnly {
            option: option.clone(),
        });
    }
    let (ours, theirs) = UnixStream::pair().map_err(|e| MountError::io("a socket pair", e))?;
    let arguments = ["-o", &helper_options(options), "--"];
    let child = spawn_fusermount(theirs, |command| {
        command
            .args(arguments)
            .arg(dir)
            .env("_FUSE_COMMFD", "0")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
    })?;
    // Ends with the descriptor, or with the end of the socket when the helper has given up.
    let received = receive(&ours);
    let output = child
        .wait_with_output()
        .map_err(|e| MountError::io("fusermount3", e))?;
    match received {
        Ok(Some(fd)) => Ok(fd),
        Ok(None) => Err(helper_error(dir, &output.stderr)),
        Err(errno) => Err(MountError::io("fusermount3", errno)),
    }
}

fn helper_options(options: &MountOptions) -> String {
    let source = options.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut text = format!("ro,nosuid,nodev,default_permissions,subtype=musherfs,fsname={source}");
    if options.allow_other {
        text.push_str(",allow_other");
    }
    if options.noexec {
        text.push_str(",noexec");
    }
    text
}

/// Starts the helper with `stdin`. The command is dropped before returning, and with it our copy
/// of the descriptor, so that a reader of the other end sees the helper's end.
fn spawn_fusermount(
    stdin: UnixStream,
    configure: impl Fn(&mut Command),
) -> Result<std::process::Child> {
    let stdin = OwnedFd::from(stdin);
    for program in HELPERS {
        let mut command = Command::new(program);
        configure(&mut command);
        let copy = stdin
            .try_clone()
            .map_err(|e| MountError::io("a socket pair", e))?;
        // Its messages are told apart below: in no other language, please.
        command.env("LC_ALL", "C").stdin(copy);
        match command.spawn() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(MountError::io(program, error)),
            Ok(child) => return Ok(child),
        }
    }
    Err(MountError::NoFusermount)
}

/// Unmounts with the setuid helper, which checks that the mount is the user's own.
///
/// Returns what it said when it failed.
pub(super) fn unmount_as_user(dir: &Path, lazy: bool) -> Result<Result<(), String>> {
    let (unused, stdin) = UnixStream::pair().map_err(|e| MountError::io("a socket pair", e))?;
    drop(unused);
    let child = spawn_fusermount(stdin, |command| {
        command
            .arg(if lazy { "-uz" } else { "-u" })
            .arg("--")
            .arg(dir)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
    })?;
    let output = child
        .wait_with_output()
        .map_err(|e| MountError::io("fusermount3", e))?;
    if output.status.success() {
        return Ok(Ok(()));
    }
    Ok(Err(said(&output.stderr)))
}

fn receive(socket: &UnixStream) -> Result<Option<OwnedFd>, Errno> {
    let mut byte = [0_u8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    rustix::io::retry_on_intr(|| {
        recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut byte)],
            &mut control,
            flags,
        )
    })?;
    let fd = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .next();
    Ok(fd)
}

/// What the helper said, without its name.
fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let line = text.trim().lines().last().unwrap_or_default();
    line.split_once(": ")
        .filter(|(program, _)| program.contains("fusermount"))
        .map_or(line, |(_, rest)| rest)
        .to_owned()
}

fn helper_error(dir: &Path, stderr: &[u8]) -> MountError {
    let path = dir.to_owned();
    let message = said(stderr);
    let has = |part: &str| message.contains(part);
    if has("user_allow_other") {
        MountError::AllowOtherDenied
    } else if has("device not found") || has("No such device") {
        MountError::NoDevice
    } else if has("failed to open /dev/fuse") {
        MountError::DeviceDenied
    } else if has("no write access") || has("not owned by user") || has("bad mount point") {
        MountError::MountpointDenied { path, message }
    } else if has("Operation not permitted") {
        MountError::NotPermitted
    } else if has("Permission denied") {
        MountError::PolicyDenied { path }
    } else if message.is_empty() {
        MountError::Refused {
            path,
            message: "fusermount3 ended without a word".to_owned(),
        }
    } else {
        MountError::Refused { path, message }
    }
}

/// Finds the number of the mount that was just made.
fn identify(fd: OwnedFd, dir: &Path) -> Result<Mounted> {
    let located = Located::find(dir).map_err(|e| MountError::io(dir, e))?;
    let table = MountTable::read().map_err(|e| MountError::io("/proc/self/mountinfo", e))?;
    let connection = mountinfo::connection_of(&fd);
    let row = located.mounted_here(&table).filter(|mount| {
        mount.is_musherfs()
            && connection.is_none_or(|number| number == u64::from(mount.id.device.minor))
    });
    match row {
        Some(mount) => Ok(Mounted {
            fd: File::from(fd),
            dir: located.path.clone(),
            id: mount.id,
        }),
        // Somebody was faster: unmounted it again, or mounted over it. Closing the descriptor
        // leaves at worst a dead mount beneath theirs; theirs is not ours to remove.
        None => Err(MountError::Refused {
            path: dir.to_owned(),
            message: "the new mount was removed or covered at once".to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_helpers_messages_become_kinds() {
        let dir = Path::new("/mnt/x");
        let kind = |text: &str| helper_error(dir, text.as_bytes());
        assert!(matches!(
            kind(
                "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n"
            ),
            MountError::AllowOtherDenied
        ));
        assert!(matches!(
            kind("fusermount3: fuse device not found, try 'modprobe fuse' first\n"),
            MountError::NoDevice
        ));
        assert!(matches!(
            kind("fusermount3: failed to open /dev/fuse: Permission denied\n"),
            MountError::DeviceDenied
        ));
        assert!(matches!(
            kind("fusermount3: user has no write access to mountpoint /mnt/x\n"),
            MountError::MountpointDenied { .. }
        ));
        assert!(matches!(
            kind("fusermount3: mount failed: Operation not permitted\n"),
            MountError::NotPermitted
        ));
        assert!(matches!(
            kind("fusermount3: mount failed: Permission denied\n"),
            MountError::PolicyDenied { .. }
        ));
        assert!(matches!(
            kind("fusermount3: mounting over filesystem type 0x65735546 is forbidden\n"),
            MountError::Refused { message, .. }
                if message == "mounting over filesystem type 0x65735546 is forbidden"
        ));
        assert!(matches!(kind(""), MountError::Refused { .. }));
    }

    #[test]
    fn a_source_with_a_comma_stays_one_option() {
        let options = MountOptions {
            source: "https://a/b,c\\d".to_owned(),
            allow_other: true,
            noexec: true,
            ..MountOptions::default()
        };
        assert_eq!(
            helper_options(&options),
            "ro,nosuid,nodev,default_permissions,subtype=musherfs,fsname=https://a/b\\,c\\\\d,allow_other,noexec"
        );
    }

    #[test]
    fn a_label_reaches_the_kernel_in_quotes() {
        let options = MountOptions {
            labels: vec![("context".to_owned(), "u:r:t:s0:c1,c2".to_owned())],
            ..MountOptions::default()
        };
        let fd = OwnedFd::from(File::open("/dev/null").unwrap());
        let text = kernel_options(&fd, &options);
        assert!(
            text.ends_with(",default_permissions,context=\"u:r:t:s0:c1,c2\""),
            "{text}"
        );
        assert!(text.contains(",rootmode=40000,user_id="), "{text}");
    }
}
