//! Putting content into the kernel's page cache before somebody asks for it.
//!
//! ```text
//!  FUSE thread ── a window of files, verified ──► helper ── FUSE_NOTIFY_STORE ──► kernel
//!   (a READ)        some in one message             └─ waits for pages that are being read
//! ```
//!
//! The kernel waits for a page that is being read before it takes another content for it, so this is
//! the helper's work, as [`super::invalidate`] says of dropping pages. A FUSE thread must not wait for
//! the helper, either: what does not fit into the socket, or is lost with a helper that is killed, has
//! to be asked for.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send};
use tracing::debug;

use crate::fs::ahead::{LARGE, PageCache};
use crate::sync::lock;

/// The notification that carries content.
const STORE: i32 = 4;

/// How long it is without its content: the header, then which inode, offset, size and padding.
const HEADER: u32 = 40;

/// How many bytes make a message: enough that the helper is not woken for each file, and little enough
/// that it has begun long before a window ends.
const MESSAGE: usize = 32 << 10;

/// The longest message.
const LIMIT: usize = MESSAGE + (HEADER + LARGE) as usize;

/// The way to the helper, of which there may be one after the other, and what waits to be sent.
#[derive(Default)]
struct Way {
    socket: Option<OwnedFd>,
    message: Vec<u8>,
}

/// Where all threads put pages.
#[derive(Clone, Default)]
pub struct Pages(Arc<Mutex<Way>>);

impl Pages {
    /// Opens a way for another helper, which gets the end that is returned.
    pub(super) fn open(&self) -> io::Result<OwnedFd> {
        let flags = SocketFlags::CLOEXEC;
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        lock(&self.0).socket = Some(ours);
        Ok(theirs)
    }
}

impl Way {
    /// Whether the message was taken, if there is one.
    fn send(&mut self) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let sent = match &self.socket {
            _ if self.message.is_empty() => return true,
            Some(socket) => send(socket, &self.message, flags),
            None => Err(Errno::NOTCONN),
        };
        self.message.clear();
        if let Err(error) = sent {
            debug!(%error, "the helper takes no pages");
        }
        sent.is_ok()
    }
}

impl PageCache for Pages {
    fn store(&self, ino: u64, content: &[u8]) -> bool {
        let mut way = lock(&self.0);
        notify(&mut way.message, ino, content);
        way.message.len() < MESSAGE || way.send()
    }

    fn flush(&self) {
        lock(&self.0).send();
    }
}

/// Appends the notification that a file's content is this.
fn notify(message: &mut Vec<u8>, ino: u64, content: &[u8]) {
    let size = u32::try_from(content.len()).expect("at most LARGE");
    message.extend((HEADER + size).to_ne_bytes());
    message.extend(STORE.to_ne_bytes());
    message.extend(0_u64.to_ne_bytes());
    message.extend(ino.to_ne_bytes());
    message.extend(0_u64.to_ne_bytes());
    message.extend(size.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(content);
}

/// The helper's part: gives the kernel what comes from the daemon, as long as there is one. What the
/// kernel does not want is lost: it does not know the inode any more.
///
/// # Errors
///
/// When something else comes.
pub(super) fn store(daemon: &OwnedFd, kernel: &OwnedFd) -> io::Result<()> {
    let mut message = vec![0; LIMIT];
    loop {
        let (length, _) = match recv(daemon, &mut *message, RecvFlags::empty()) {
            Err(Errno::INTR) => continue,
            received => received?,
        };
        if length == 0 {
            return Ok(());
        }
        let mut rest = &message[..length];
        while let Some((first, _)) = rest.split_first_chunk() {
            let whole = u32::from_ne_bytes(*first) as usize;
            let (notification, others) = rest
                .split_at_checked(whole)
                .filter(|_| whole >= HEADER as usize)
                .ok_or(io::ErrorKind::InvalidData)?;
            let _ = rustix::io::write(kernel, notification);
            rest = others;
        }
    }
}
