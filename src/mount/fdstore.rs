//! A mount whose keeper is the service manager.
//!
//! ```text
//!  daemon ── FDSTORE: /dev/fuse, and what was agreed on ──► systemd
//!     ✗  dies, or the service is restarted
//!  daemon ◄── LISTEN_FDS: the same descriptors ──────────── systemd
//! ```
//!
//! systemd ends services by control group, so a process that keeps a mount would end with its daemon;
//! but it keeps descriptors for services (`FileDescriptorStoreMax=`), over restarts too. What it holds
//! is the device and a memory file with the rest, which goes first: a device that nobody can understand
//! would keep a mount alive that nobody can serve. What is incomplete all the same is given up, and what
//! it leaves mounted cleared away. `FDPOLL=0`, because systemd would otherwise be woken by every
//! request; so a device that is gone is taken back here.
//!
//! SIGTERM unmounts, unless systemd is about to start the service again: then the mount is left to
//! the next daemon. For that it is asked, since a service is not told what its end is for. A process
//! of the service that waits in the mount cannot be ended before the next daemon answers it: the unit
//! needs `KillMode=process`, or a restart would wait for that.

use std::fs::File;
use std::io::{self, IoSlice, Read as _, Seek as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::keeper::{Given, Held, NUMBERS};
use super::resume::Placeholder;
use super::{Mounted, touch, unmount};
use crate::config::service::ServiceManager;
use crate::fuse::Handshake;

/// What the descriptors are called in the store.
const DEVICE: &str = "musherfs-device";
const STATE: &str = "musherfs-state";

/// The most that is read of the state.
const LIMIT: u64 = 64 * 1024;

/// How long the service manager may take to say what it is about to do. On a busy machine that takes
/// seconds; the unit gives a daemon 20 s to end.
const PATIENCE: Duration = Duration::from_secs(8);

/// How long the service manager may take to let go of a device that it was told to.
const RELEASE: Duration = Duration::from_secs(5);

/// What is kept beside the device.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    /// How nodes are numbered. The kernel knows them by that, so a daemon that numbers them in another
    /// way cannot go on.
    #[serde(default = "first_numbers")]
    numbers: String,
    #[serde(flatten)]
    held: Held,
}

/// Those of the versions that did not write them down.
fn first_numbers() -> String {
    "musherfs-1".to_owned()
}

/// The service manager as a keeper.
#[derive(Debug)]
pub struct Store {
    manager: ServiceManager,
    /// What an earlier daemon has left.
    given: Option<Given>,
}

impl Store {
    /// Takes back what was kept. To be called first thing in the process, before any thread.
    ///
    /// # Errors
    ///
    /// When something was kept that cannot be taken: a kernel without `pidfd_getfd` (before 5.6).
    pub fn take_over(manager: ServiceManager) -> io::Result<Self> {
        let mut store = Self {
            manager,
            given: None,
        };
        let ourselves = pidfd_open(getpid(), PidfdFlags::empty())?;
        let mut device = None;
        let mut state = None;
        for (number, name) in &store.manager.kept {
            let place = match name.as_str() {
                DEVICE => &mut device,
                STATE => &mut state,
                _ => continue,
            };
            let fd = pidfd_getfd(&ourselves, *number, PidfdGetfdFlags::empty())?;
            // Ours by the protocol, and without the flag that keeps it from our children.
            nix::unistd::close(*number)?;
            *place = Some(fd);
        }
        let (device, state) = match (device, state) {
            (Some(device), Some(state)) => (device, state),
            (None, None) => return Ok(store),
            _ => {
                warn!("half of what was to be kept is missing");
                store.clear();
                return Ok(store);
            }
        };
        match Self::read(device, state) {
            // One that was taken out of the tree is of no use to who wants it mounted.
            Ok((mounted, handshake)) if mounted.is_current() => {
                store.given = Some(Given {
                    mounted,
                    handshake: Some(handshake),
                    placeholder: Placeholder::reserve()?,
                });
            }
            Ok(_) => store.clear(),
            Err(error) => {
                warn!(%error, "what was kept cannot be understood");
                store.clear();
            }
        }
        Ok(store)
    }

    fn read(device: OwnedFd, state: OwnedFd) -> io::Result<(Mounted, Handshake)> {
        let mut file = File::from(state);
        file.rewind()?;
        let mut bytes = Vec::new();
        file.take(LIMIT).read_to_end(&mut bytes)?;
        let state: State = serde_json::from_slice(&bytes)?;
        if state.numbers != NUMBERS {
            let why = format!("it numbers nodes as {}, not as {NUMBERS}", state.numbers);
            return Err(io::Error::other(why));
        }
        match state.held.with_descriptor(device) {
            (mounted, Some(handshake)) => Ok((mounted, handshake)),
            (_, None) => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// What an earlier daemon has left to be served, if that is what is to be mounted on `dir`.
    ///
    /// If not, nobody but this service serves or keeps what a former daemon of it left on `dir`: once
    /// that is dead it is cleared away. Blocks for that.
    pub(super) fn given(&mut self, dir: &Path) -> Option<Given> {
        let given = self.wanted(dir);
        if given.is_none()
            && let Err(error) = unmount::clear_dead(dir, RELEASE)
            && error.kind() != io::ErrorKind::NotFound
        {
            warn!(%error, dir = %dir.display(), "cannot look for a dead mount");
        }
        given
    }

    fn wanted(&mut self, dir: &Path) -> Option<Given> {
        let given = self.given.take()?;
        // The mount itself is not touched: nobody answers yet.
        let same = |a: &Path, b: &Path| {
            let parents = (
                a.parent().map(Path::canonicalize),
                b.parent().map(Path::canonicalize),
            );
            a.file_name() == b.file_name()
                && matches!(parents, (Some(Ok(a)), Some(Ok(b))) if a == b)
        };
        if same(given.mounted.dir(), dir) {
            return Some(given);
        }
        warn!(dir = %given.mounted.dir().display(), "no longer to be mounted");
        let _ = given.mounted.unmount(super::How::Force);
        self.clear();
        None
    }

    /// Has the mount kept.
    ///
    /// # Errors
    ///
    /// When the service manager cannot be reached.
    pub(super) fn keep(&self, mounted: &Mounted, handshake: Handshake) -> io::Result<()> {
        let state = rustix::fs::memfd_create("musherfs", MemfdFlags::CLOEXEC)?;
        let mut state = File::from(state);
        let kept = State {
            numbers: NUMBERS.to_owned(),
            held: Held::new(mounted, Some(handshake)),
        };
        serde_json::to_writer(&state, &kept)?;
        state.flush()?;
        self.clear();
        let message = |name| format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n");
        self.send(&message(STATE), Some(state.as_fd()))?;
        self.send(&message(DEVICE), Some(mounted.as_fd()))
    }

    /// Has nothing kept any more.
    pub(super) fn clear(&self) {
        for name in [DEVICE, STATE] {
            let message = format!("FDSTOREREMOVE=1\nFDNAME={name}\n");
            if let Err(error) = self.send(&message, None) {
                warn!(%error, "the service manager cannot be told");
            }
        }
    }

    fn send(&self, message: &str, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let path = self.manager.socket.as_os_str().as_bytes();
        let address = match path.strip_prefix(b"@") {
            Some(name) => SocketAddrUnix::new_abstract_name(name)?,
            None => SocketAddrUnix::new(path)?,
        };
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::DGRAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        let text = [IoSlice::new(message.as_bytes())];
        sendmsg_addr(&socket, &address, &text, &mut control, SendFlags::NOSIGNAL)?;
        Ok(())
    }
}

/// Whether the service manager is about to start this service again after its end. Blocks for at
/// most [`PATIENCE`]; what cannot be found out counts as no.
pub(super) fn is_restarting() -> bool {
    let groups = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let Some(unit) = unit_of(&groups) else {
        return false;
    };
    let mut systemctl = Command::new("systemctl");
    if groups.contains("/user@") {
        systemctl.arg("--user");
    }
    // Of this unit only: while a machine starts or stops there are thousands. What a unit's property
    // `Job` tells is the number only.
    systemctl.args([
        "list-jobs",
        "--no-legend",
        "--plain",
        "--no-pager",
        "--",
        unit,
    ]);
    output_of(systemctl, PATIENCE).is_some_and(|jobs| has_restart(&jobs, unit))
}

/// The innermost service of a process whose `/proc/PID/cgroup` is `groups`.
fn unit_of(groups: &str) -> Option<&str> {
    let mut parts = groups.lines().flat_map(|line| line.split('/'));
    parts.rfind(|part| part.ends_with(".service"))
}

/// Whether the table of jobs has one that starts `unit`. While it stops, a restart is still called
/// one.
fn has_restart(jobs: &str, unit: &str) -> bool {
    jobs.lines().any(|line| {
        let mut words = line.split_whitespace().skip(1);
        words.next() == Some(unit) && matches!(words.next(), Some("restart" | "start"))
    })
}

/// What `command` prints, or at least the beginning; `None` if it goes on for longer than `patience`.
fn output_of(mut command: Command, patience: Duration) -> Option<String> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .ok()?;
    // Read while it runs: who prints more than a pipe holds waits for its reader.
    let printed = child.stdout.take().and_then(|stdout| {
        touch::bounded(patience, move || {
            let mut bytes = Vec::new();
            stdout.take(LIMIT).read_to_end(&mut bytes).map(|_| bytes)
        })
    });
    let _ = child.kill();
    let _ = child.wait();
    let bytes = printed?.ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes over what is described by `text`.
    fn kept(text: &str) -> io::Result<(Mounted, Handshake)> {
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            OwnedFd::from(file)
        };
        Store::read(file(b""), file(text.as_bytes()))
    }

    #[test]
    fn a_mount_whose_nodes_are_numbered_in_another_way_is_not_gone_on_with() {
        let held = r#""dir":[47,109],"id":{"id":7,"device":{"major":0,"minor":9}},
            "handshake":{"minor":45,"offered":0,"agreed":0}"#;
        for former in [
            format!("{{{held}}}"),
            format!(r#"{{"numbers":"musherfs-1",{held}}}"#),
        ] {
            assert_eq!(kept(&former).unwrap().0.dir(), Path::new("/m"));
        }
        let other = kept(&format!(r#"{{"numbers":"musherfs-2",{held}}}"#));
        assert!(other.unwrap_err().to_string().contains("musherfs-2"));
    }

    #[test]
    fn a_restart_is_told_from_a_stop() {
        let jobs = "  12 other.service    restart waiting\n 340 musherfs.service restart running\n";
        assert!(has_restart(jobs, "musherfs.service"));
        assert!(!has_restart(jobs, "musherfs@x.service"));
        assert!(!has_restart(
            "7 musherfs.service stop running\n",
            "musherfs.service"
        ));
        assert!(!has_restart("No jobs running.\n", "musherfs.service"));
    }

    fn shell(script: &str, patience: Duration) -> Option<String> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", script]);
        output_of(command, patience)
    }

    #[test]
    fn more_than_a_pipe_holds_is_read_while_it_is_printed() {
        let printed = shell("echo first; seq 100000", Duration::from_secs(60)).unwrap();
        assert!(printed.starts_with("first\n"));
        let all = shell("seq 1000; echo last", Duration::from_secs(60)).unwrap();
        assert!(all.ends_with("last\n"));
    }

    #[test]
    fn who_says_nothing_is_not_waited_for() {
        assert_eq!(shell("exec sleep 1000", Duration::from_millis(50)), None);
    }

    #[test]
    fn the_innermost_service_is_ours() {
        assert_eq!(
            unit_of("0::/system.slice/musherfs.service\n"),
            Some("musherfs.service")
        );
        assert_eq!(
            unit_of("0::/user.slice/user@1000.service/app.slice/musherfs.service/sub\n"),
            Some("musherfs.service")
        );
        assert_eq!(unit_of("0::/init.scope\n"), None);
    }
}
