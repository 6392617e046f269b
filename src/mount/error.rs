//! Why mounting or unmounting failed, and what the user can do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::holders::Holder;

/// A result whose error is [`MountError`].
pub type Result<T, E = MountError> = std::result::Result<T, E>;

/// Why a mount could not be made, served or removed.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The mountpoint is a file, or something else that nothing can be mounted on.
    #[error("{} is not a directory", path.display())]
    NotADirectory {
        /// The mountpoint.
        path: PathBuf,
    },
    /// The mountpoint is missing and could not be made.
    #[error("cannot create the mountpoint {}: {source}", path.display())]
    CannotCreate {
        /// The mountpoint.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The mountpoint holds files, which a mount would hide.
    #[error("the mountpoint {} is not empty: it contains {example:?}", path.display())]
    NotEmpty {
        /// The mountpoint.
        path: PathBuf,
        /// One of the names found in it.
        example: std::ffi::OsString,
    },
    /// Something is mounted there already.
    #[error("{} is already a mountpoint ({fs_type})", path.display())]
    AlreadyMounted {
        /// The mountpoint.
        path: PathBuf,
        /// What kind of filesystem is there.
        fs_type: String,
    },
    /// A FUSE mount is there whose daemon is gone ("transport endpoint is not connected").
    #[error("{} is a dead mount ({fs_type}): its daemon is gone", path.display())]
    DeadMount {
        /// The mountpoint.
        path: PathBuf,
        /// What kind of filesystem it was.
        fs_type: String,
    },
    /// There is no `/dev/fuse`.
    #[error("this system has no /dev/fuse")]
    NoDevice,
    /// `/dev/fuse` may not be opened.
    #[error("opening /dev/fuse is not permitted")]
    DeviceDenied,
    /// The setuid helper that mounts for plain users is not installed.
    #[error("fusermount3 is not installed, and only it can mount for a plain user")]
    NoFusermount,
    /// `allow_other` from a plain user, without the administrator's consent.
    #[error("--allow-other is not permitted to plain users on this system")]
    AllowOtherDenied,
    /// An option that only root may give.
    #[error("the mount option {option} is reserved to root")]
    RootOnly {
        /// Its name.
        option: String,
    },
    /// The user may not mount on that directory.
    #[error("mounting on {} is not permitted: {message}", path.display())]
    MountpointDenied {
        /// The mountpoint.
        path: PathBuf,
        /// What the helper said.
        message: String,
    },
    /// The kernel refuses any mount from here (EPERM).
    #[error("mounting is not permitted here")]
    NotPermitted,
    /// A security policy refuses this mount (EACCES).
    #[error("a security policy denies mounting on {}", path.display())]
    PolicyDenied {
        /// The mountpoint.
        path: PathBuf,
    },
    /// The kernel or the helper refuses for another reason.
    #[error("cannot mount on {}: {message}", path.display())]
    Refused {
        /// The mountpoint.
        path: PathBuf,
        /// What was said.
        message: String,
    },
    /// Nothing of ours is mounted there.
    #[error("{} is not a mountpoint of musherfs{}", path.display(), other(found.as_deref()))]
    NotOurs {
        /// The path that was given.
        path: PathBuf,
        /// The type of the filesystem that is mounted there instead.
        found: Option<String>,
    },
    /// Another filesystem is mounted over ours, so that the path does not lead to it.
    #[error("another filesystem ({fs_type}) is mounted over {}", path.display())]
    Covered {
        /// The mountpoint.
        path: PathBuf,
        /// What kind of filesystem covers it.
        fs_type: String,
    },
    /// No mount of this user there whose daemon could be replaced.
    #[error("{}", match path {
        Some(path) => format!("nothing of yours is kept mounted on {}", path.display()),
        None => "nothing of yours is kept mounted".to_owned(),
    })]
    NotKept {
        /// The path that was given.
        path: Option<PathBuf>,
    },
    /// Unmounting is not permitted to this user.
    #[error("unmounting {} is not permitted: {message}", path.display())]
    UnmountDenied {
        /// The mountpoint.
        path: PathBuf,
        /// What was said, and who owns the mount.
        message: String,
    },
    /// The mount is in use.
    #[error("{} is in use{}", path.display(), by(holders))]
    Busy {
        /// The mountpoint.
        path: PathBuf,
        /// Who uses it; not everything can be seen by a plain user.
        holders: Vec<Holder>,
    },
    /// The background process reported why it could not mount.
    #[error("{}", .0.message)]
    Daemon(Failure),
    /// The background process ended without a word.
    #[error("the background process ended before the mount was ready ({status})")]
    DaemonDied {
        /// How it ended.
        status: String,
    },
    /// The mount was not ready, or did not answer, in time.
    #[error("{what} did not answer within {} s", patience.as_secs())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// For how long.
        patience: Duration,
    },
    /// The kernel ended the session with an error, or a request crashed.
    #[error("serving {} failed: {source}", path.display())]
    Session {
        /// The mountpoint.
        path: PathBuf,
        /// What the session said.
        source: io::Error,
    },
    /// A file that mounting needs.
    #[error("cannot access {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A failure as it travels from the background process to the waiting one, which prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What failed and why.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// What the command exits with.
    pub exit_code: u8,
}

impl From<&MountError> for Failure {
    fn from(error: &MountError) -> Self {
        match error {
            MountError::Daemon(failure) => failure.clone(),
            _ => Self {
                message: error.to_string(),
                hint: error.hint(),
                exit_code: error.exit_code(),
            },
        }
    }
}

impl MountError {
    pub(super) fn io(path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io {
            path: path.as_ref().to_owned(),
            source: source.into(),
        }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotADirectory { .. } => "name a directory to mount on".to_owned(),
            Self::CannotCreate { path, .. } => format!(
                "run `sudo install -d -o \"$USER\" {}`, or mount on a directory of yours",
                path.display()
            ),
            Self::NotEmpty { .. } => {
                "name an empty directory, or move these files away: a mount would hide them"
                    .to_owned()
            }
            Self::AlreadyMounted { path, fs_type } if fs_type == super::FS_TYPE => format!(
                "it is mounted already; `musherfs umount {}` removes it",
                path.display()
            ),
            Self::AlreadyMounted { .. } => {
                "name another directory, or unmount what is there".to_owned()
            }
            Self::DeadMount { path, fs_type } if fs_type == super::FS_TYPE => {
                format!("clear it with `musherfs umount {}`", path.display())
            }
            Self::DeadMount { path, .. } => {
                format!("clear it with `fusermount3 -uz {}`", path.display())
            }
            Self::NoDevice => "load the module with `sudo modprobe fuse`; \
                a container needs `--device /dev/fuse --cap-add SYS_ADMIN`"
                .to_owned(),
            Self::DeviceDenied => "it should have mode 0666: `sudo chmod 0666 /dev/fuse`; \
                a container needs `--device /dev/fuse`"
                .to_owned(),
            Self::NoFusermount => {
                "install the package fuse3 (`apt-get install fuse3`), or mount as root".to_owned()
            }
            Self::AllowOtherDenied => "mount without --allow-other, or add a line \
                `user_allow_other` to /etc/fuse.conf"
                .to_owned(),
            Self::RootOnly { .. } => "mount as root, or leave the option out".to_owned(),
            Self::MountpointDenied { .. } => {
                "a plain user can mount only on a directory that is theirs to write".to_owned()
            }
            Self::NotPermitted => {
                "inside a container, add `--cap-add SYS_ADMIN --device /dev/fuse` \
                and, where AppArmor is active, `--security-opt apparmor=unconfined`"
                    .to_owned()
            }
            Self::PolicyDenied { .. } => "AppArmor lets fusermount3 mount only below $HOME, /mnt, \
                /media, /tmp and a few others: mount there, or extend \
                /etc/apparmor.d/local/fusermount3"
                .to_owned(),
            Self::Covered { .. } => "unmount what covers it first".to_owned(),
            Self::NotKept { .. } => "mounts with --foreground or --demo have no keeper: \
                unmount them, and mount with the new program"
                .to_owned(),
            Self::UnmountDenied { .. } => {
                "unmount as the user who mounted it, or as root".to_owned()
            }
            Self::Busy { path, .. } => format!(
                "end these processes or leave the directory; `musherfs umount --lazy {}` detaches it \
                 now and frees it when they are done",
                path.display()
            ),
            Self::Daemon(failure) => return failure.hint.clone(),
            Self::DaemonDied { .. } => "run it with --foreground -v to see why".to_owned(),
            Self::TimedOut { .. } => {
                "run it with --foreground -v to see what it waits for".to_owned()
            }
            Self::Refused { .. }
            | Self::NotOurs { .. }
            | Self::Session { .. }
            | Self::Io { .. } => return None,
        })
    }

    /// What the command exits with: 4 for a mountpoint or option that cannot be used, 5 for a
    /// deadline, 6 for a system that does not let us, else 1.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::NotADirectory { .. }
            | Self::CannotCreate { .. }
            | Self::NotEmpty { .. }
            | Self::AlreadyMounted { .. }
            | Self::DeadMount { .. }
            | Self::AllowOtherDenied
            | Self::RootOnly { .. }
            | Self::MountpointDenied { .. } => 4,
            Self::TimedOut { .. } => 5,
            Self::NoDevice
            | Self::DeviceDenied
            | Self::NoFusermount
            | Self::NotPermitted
            | Self::PolicyDenied { .. }
            | Self::Refused { .. }
            | Self::UnmountDenied { .. }
            | Self::Busy { .. }
            | Self::DaemonDied { .. } => 6,
            Self::Daemon(failure) => failure.exit_code,
            Self::NotOurs { .. }
            | Self::NotKept { .. }
            | Self::Covered { .. }
            | Self::Session { .. }
            | Self::Io { .. } => 1,
        }
    }
}

fn other(found: Option<&str>) -> String {
    found
        .map(|fs_type| format!(": {fs_type} is mounted there"))
        .unwrap_or_default()
}

fn by(holders: &[Holder]) -> String {
    if holders.is_empty() {
        return String::new();
    }
    let all: Vec<_> = holders.iter().map(ToString::to_string).collect();
    format!(" by {}", all.join(", "))
}
