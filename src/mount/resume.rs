//! Serving a live connection: the kernel said INIT to a daemon that is gone, and will not again.
//!
//! ```text
//!  socket pair:  synthetic INIT ──► fuser's handshake ──► its reply, thrown away
//!  then dup2:    /dev/fuse onto the descriptor that the session reads
//!  then:         FUSE_NOTIFY_RESEND, and the kernel hands out again what the dead daemon had taken
//! ```
//!
//! A session of `fuser` begins with a handshake and owns its descriptor for good, so the handshake
//! is held with ourselves, over a socket that stands at the descriptor's number until then. That
//! number is 0: replacing the standard input is what can be done to a descriptor that somebody else
//! owns without unsafe code, it is atomic, and a daemon has no other use for it. So a process can
//! resume once.
//!
//! What is offered in that handshake is what the first daemon and the kernel agreed on, so that a
//! newer program behaves as the kernel expects it to.

use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{Filesystem, Session, SessionACL};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tracing::warn;

use super::device::Mounted;
use super::error::{MountError, Result};
use super::session::{self, Serving};
use crate::fuse::Handshake;

/// Asks the kernel to queue again what was read from the connection and not answered.
const NOTIFY_RESEND: i32 = 7;

/// The opcode of the handshake, and how long its request is: a header of 40 bytes and its body.
const INIT: u32 = 26;
const INIT_LENGTH: u32 = 40 + 64;

/// The protocol's major version, the same since 2006.
const MAJOR: u32 = 7;

/// What the kernel offers at most to read ahead; nobody looks at the answer.
const MAX_READAHEAD: u32 = 1 << 20;

/// Says that the upper half of the flags is there.
const INIT_EXT: u64 = 1 << 30;

/// Starts to answer the requests of `mounted`, whose connection was opened by another process that
/// serves it no more, from `filesystem`.
///
/// Requests that the other process had taken are asked for again; where the kernel cannot do that
/// (before Linux 6.9) those who wait for them wait until the mount is gone.
///
/// # Errors
///
/// [`MountError::Session`], if the handshake fails. Nothing has been read from the connection then.
pub fn resume<F: Filesystem>(
    mounted: &Mounted,
    filesystem: F,
    threads: usize,
    handshake: &Handshake,
    mut placeholder: Placeholder,
) -> Result<Serving> {
    let failed = |source: io::Error| MountError::Session {
        path: mounted.dir().to_owned(),
        source,
    };
    let taken = || failed(io::Error::other("this process serves a mount already"));
    let socket = placeholder.socket.take().ok_or_else(taken)?;
    rustix::io::write(&placeholder.ours, &init_request(handshake))
        .map_err(|errno| failed(errno.into()))?;
    let config = session::config(threads);
    let session = Session::from_fd(filesystem, socket, SessionACL::All, config);
    let session = session.map_err(failed)?;
    let replace = || -> rustix::io::Result<()> {
        rustix::stdio::dup2_stdin(mounted)?;
        let stdin = rustix::stdio::stdin();
        rustix::io::fcntl_setfd(stdin, rustix::io::FdFlags::CLOEXEC)
    };
    replace().map_err(|errno| failed(errno.into()))?;
    drop(placeholder);
    let serving = session::run(session).map_err(failed)?;
    if let Err(error) = resend(mounted) {
        warn!(
            dir = %mounted.dir().display(), %error,
            "this kernel cannot repeat requests: what was under way is not answered"
        );
    }
    Ok(serving)
}

/// The standard input's place, taken by a socket that can be exchanged for `/dev/fuse` later.
#[derive(Debug)]
pub struct Placeholder {
    ours: OwnedFd,
    /// At descriptor 0; `None` once a session has it.
    socket: Option<OwnedFd>,
}

impl Placeholder {
    /// Takes the place. To be called before there are threads, one of which might be quicker.
    ///
    /// # Errors
    ///
    /// When it is taken already, or there is no descriptor left.
    pub fn reserve() -> io::Result<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Err(io::Error::other("this process serves a mount already"));
        }
        // Nobody owns the standard input: what is there was put there for this process.
        nix::unistd::close(rustix::stdio::stdin().as_raw_fd())?;
        let (socket, ours) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        if socket.as_raw_fd() != rustix::stdio::stdin().as_raw_fd() {
            return Err(io::Error::other("the standard input's place is taken"));
        }
        Ok(Self {
            ours,
            socket: Some(socket),
        })
    }
}

/// A place that is not needed becomes an empty standard input again.
impl Drop for Placeholder {
    fn drop(&mut self) {
        if let Some(socket) = self.socket.take()
            && let Ok(null) = super::background::null()
            && rustix::stdio::dup2_stdin(null.as_fd()).is_ok()
        {
            // Not closed: the number is the standard input's.
            let _ = socket.into_raw_fd();
        }
    }
}

/// The request that the kernel would send, as it is read from `/dev/fuse`.
fn init_request(handshake: &Handshake) -> Vec<u8> {
    let flags = (handshake.agreed | INIT_EXT).to_ne_bytes();
    // As in memory: the lower half, which is the older field, comes first.
    let (low, high) = if cfg!(target_endian = "little") {
        (&flags[..4], &flags[4..])
    } else {
        (&flags[4..], &flags[..4])
    };
    let mut request = Vec::with_capacity(INIT_LENGTH as usize);
    request.extend(INIT_LENGTH.to_ne_bytes());
    request.extend(INIT.to_ne_bytes());
    request.extend(1_u64.to_ne_bytes()); // its number
    request.extend([0; 24]); // inode, user, group, process, nothing
    request.extend(MAJOR.to_ne_bytes());
    request.extend(handshake.minor.to_ne_bytes());
    request.extend(MAX_READAHEAD.to_ne_bytes());
    request.extend(low);
    request.extend(high);
    request.resize(INIT_LENGTH as usize, 0);
    request
}

/// Has the kernel hand out again all requests that were taken and not answered.
pub(super) fn resend(mounted: &Mounted) -> Result<(), Errno> {
    let mut notification = Vec::with_capacity(16);
    notification.extend(16_u32.to_ne_bytes());
    notification.extend(NOTIFY_RESEND.to_ne_bytes());
    notification.extend(0_u64.to_ne_bytes());
    rustix::io::write(mounted.as_fd(), &notification).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_kernels_layout() {
        let handshake = Handshake {
            minor: 41,
            offered: u64::MAX,
            agreed: (1 << 37) | (1 << 17),
        };
        let request = init_request(&handshake);
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        assert_eq!(request.len(), 104);
        assert_eq!((word(0), word(4)), (104, 26));
        assert_eq!((word(40), word(44)), (7, 41));
        assert_eq!((word(52), word(56)), ((1 << 17) | (1 << 30), 1 << 5));
    }
}
