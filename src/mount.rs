//! Mounting: a kernel mount is obtained, held and served, as three separate things.
//!
//! ```text
//!  MountPoint::prepare ──► mount ──► Mounted ──► serve ──► Serving
//!     a fit directory     obtain      hold      answer      │
//!                                      │                    │
//!                       Mounted::unmount ◄── stay: signals, an outside umount
//! ```
//!
//! [`mount`] returns a descriptor of `/dev/fuse` that belongs to a mounted filesystem. Whoever
//! holds it ([`Mounted`]) keeps the mount alive; [`serve`] answers requests from a duplicate and
//! never unmounts. So a mount is held by a [`keeper`] or the service manager ([`fdstore`]), which
//! outlive the process that serves; the next one goes on ([`mod@resume`]).
//!
//! What the rest relies on:
//!
//! * Nothing here touches the filesystem it mounts, except [`touch`] and [`keeper::probe`], nor waits
//!   for the kernel on its account, except [`invalidate`], and these run in other processes than the
//!   serving and the holding one: a thread that waits for its own mount survives `kill -9`.
//! * Only our own mount is unmounted, known by its connection, device and mount number; never
//!   what somebody else has mounted on the path meanwhile.
//! * In the background ([`background`]), success is reported only after the mount has answered.

use serde::{Deserialize, Serialize};

pub mod background;
pub mod control;
pub mod daemon;
pub mod demo;
mod device;
mod error;
pub mod fdstore;
pub mod helper;
mod holders;
pub mod invalidate;
pub mod keeper;
pub mod locate;
pub mod mountinfo;
mod point;
pub mod resume;
pub mod service;
mod session;
pub mod touch;
mod unmount;
pub mod upgrade;

pub use device::{Mounted, mount};
pub use error::{Failure, MountError, Result};
pub use holders::Holder;
pub use mountinfo::{FS_TYPE, MountId};
pub use point::{MARKER, MountPoint, is_marked};
pub use session::{
    Ending, Serving, StopSignals, mount_and_serve, serve, stay, stay_kept, stay_stored,
};
pub use unmount::{How, Unmounted, unmount_command, unmount_dead};

/// How to mount. Every mount is `ro,nosuid,nodev,default_permissions` besides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountOptions {
    /// What `mount` and `df` show as the device: `musherfs` or a registry's URL.
    pub source: String,
    /// Whether other users than the mounting one may enter. A plain user may ask for it only if
    /// `/etc/fuse.conf` has `user_allow_other`.
    pub allow_other: bool,
    /// Whether the kernel refuses to execute or map files of this mount as programs.
    pub noexec: bool,
    /// SELinux options such as `("context", "system_u:object_r:container_file_t:s0")`, handed to
    /// the kernel as they are; only root may give them.
    pub labels: Vec<(String, String)>,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self {
            source: "musherfs".to_owned(),
            allow_other: false,
            noexec: false,
            labels: Vec::new(),
        }
    }
}
