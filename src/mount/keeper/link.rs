//! What keeper and daemon say to each other, over a socket that keeps messages apart.
//!
//! ```text
//!  keeper                            daemon
//!    Hello ─────────────────────────►  checks that it understands, reads its settings
//!      ◄───────────────────── Prepared  (or Failed)
//!    Serve, with /dev/fuse ──────────►  if nobody serves, or
//!    Former, with its pidfd ─────────►  if somebody does,
//!    StandBy, with /dev/fuse ────────►  who is told to retire now;
//!    Go ─────────────────────────────►  then, or by itself if the keeper dies and the former one ends
//!      ◄────────────────────── Serving  (or Failed)
//!    Retire ────────────────────────►  ends without unmounting
//!      ◄───────────────────────── Stop  a signal came: unmount, please
//! ```
//!
//! A keeper lives as long as its mount and so talks to daemons of later versions: a message may get
//! new fields, which the other side ignores or does without, and nothing is ever renamed. What cannot
//! be said that way gets another [`PROTOCOL`] number, which a daemon refuses before it is served by.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::mountinfo::MountId;
use super::super::{Failure, Mounted};
use crate::fuse::Handshake;

/// The version of this conversation.
pub(super) const PROTOCOL: u32 = 1;

/// How nodes are numbered: another daemon must number them the same way.
pub(crate) const NUMBERS: &str = "musherfs-1";

/// The longest message.
const LIMIT: usize = 64 * 1024;

/// What a daemon hears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToDaemon {
    /// What it will have to deal with.
    Hello { protocol: u32, numbers: String },
    /// Serve the descriptor that comes with this.
    Serve(Held),
    /// Who serves still: a descriptor of that process comes with this.
    Former,
    /// Be ready to serve the descriptor that comes with this, when the former daemon has ended. So it is
    /// held by somebody at every moment, also if the keeper is killed.
    StandBy(Held),
    /// The former daemon takes no more requests: serve.
    Go,
    /// End at once, leaving the mount alone: somebody else serves it from now on.
    Retire,
}

/// What the keeper hears.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ToKeeper {
    /// Everything that can fail before a mount is served has not failed.
    Prepared {
        version: String,
        /// Whether it knows what standing by is.
        #[serde(default)]
        stands_by: bool,
    },
    /// It has, and the daemon ends.
    Failed(Failure),
    /// The mount is served; with what was agreed on if this daemon was the first.
    Serving { handshake: Option<Handshake> },
    /// The daemon was told to end by somebody who does not know the keeper.
    Stop { signal: String },
}

/// A mount that is held, but for its descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Held {
    /// Where: a path need not be UTF-8.
    dir: Vec<u8>,
    /// Which.
    id: MountId,
    /// What its first daemon agreed on with the kernel; without it the kernel waits for that still.
    pub(crate) handshake: Option<Handshake>,
}

impl Held {
    pub(crate) fn new(mounted: &Mounted, handshake: Option<Handshake>) -> Self {
        Self {
            dir: mounted.dir().as_os_str().as_bytes().to_vec(),
            id: mounted.id(),
            handshake,
        }
    }

    pub(crate) fn with_descriptor(self, fd: OwnedFd) -> (Mounted, Option<Handshake>) {
        let dir = PathBuf::from(OsString::from_vec(self.dir));
        (Mounted::from_parts(fd, dir, self.id), self.handshake)
    }
}

/// One end of the conversation.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

impl Link {
    /// Two ends, the second one to become a process's standard input.
    pub(crate) fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok((Self(ours), theirs))
    }

    /// The end that this process was started with as its standard input.
    ///
    /// # Errors
    ///
    /// When it is no such socket.
    pub(crate) fn from_stdin() -> io::Result<Self> {
        let stdin = rustix::stdio::stdin();
        if rustix::net::sockopt::socket_type(stdin)? != SocketType::SEQPACKET {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(Self::from(stdin.try_clone_to_owned()?))
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends a message, and a descriptor along with it.
    pub(crate) fn send(
        &self,
        message: &impl Serialize,
        fd: Option<BorrowedFd<'_>>,
    ) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let fds = fd.map(|fd| [fd]);
        if let Some(fds) = &fds {
            control.push(SendAncillaryMessage::ScmRights(fds));
        }
        rustix::io::retry_on_intr(|| {
            sendmsg(
                &self.0,
                &[IoSlice::new(&bytes)],
                &mut control,
                SendFlags::NOSIGNAL,
            )
        })?;
        Ok(())
    }

    /// Waits for the next message; `None` when the other end is closed.
    pub(crate) fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Option<OwnedFd>)>> {
        let mut bytes = vec![0; LIMIT];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let received = rustix::io::retry_on_intr(|| {
            recvmsg(
                &self.0,
                &mut [IoSliceMut::new(&mut bytes)],
                &mut control,
                RecvFlags::CMSG_CLOEXEC,
            )
        });
        let length = match received {
            Ok(received) => received.bytes,
            // It died with something unread.
            Err(Errno::CONNRESET) => 0,
            Err(errno) => return Err(errno.into()),
        };
        if length == 0 {
            return Ok(None);
        }
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        Ok(Some((serde_json::from_slice(&bytes[..length])?, fd)))
    }
}

/// An end of [`Link::pair`].
impl From<OwnedFd> for Link {
    fn from(fd: OwnedFd) -> Self {
        Self(fd)
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until one of `fds` can be read or is closed, at most until `end`; which ones can.
pub(super) fn ready<const N: usize>(
    fds: [BorrowedFd<'_>; N],
    end: Option<Instant>,
) -> io::Result<[bool; N]> {
    let mut polled = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN));
    loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map(|left: Duration| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        match poll(&mut polled, left.as_ref()) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
            Ok(_) => return Ok(polled.each_ref().map(|fd| !fd.revents().is_empty())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_one_by_one() {
        let (one, other) = Link::pair().unwrap();
        let other = Link(other);
        let file = tempfile::tempfile().unwrap();
        one.send(&ToDaemon::Retire, Some(file.as_fd())).unwrap();
        let hello = ToDaemon::Hello {
            protocol: 1,
            numbers: "x".to_owned(),
        };
        one.send(&hello, None).unwrap();
        drop(one);
        let (message, fd) = other.receive::<ToDaemon>().unwrap().unwrap();
        assert_eq!(message, ToDaemon::Retire);
        assert!(fd.is_some());
        let (message, fd) = other.receive::<ToDaemon>().unwrap().unwrap();
        assert_eq!(message, hello);
        assert!(fd.is_none());
        assert!(other.receive::<ToDaemon>().unwrap().is_none());
    }

    #[test]
    fn fields_of_a_later_version_are_ignored() {
        let later = r#"{"serving":{"handshake":null,"mood":"good"}}"#;
        let message: ToKeeper = serde_json::from_str(later).unwrap();
        assert_eq!(message, ToKeeper::Serving { handshake: None });
    }
}
