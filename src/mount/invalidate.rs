//! Having the kernel drop what it has cached, from a process of its own.
//!
//! ```text
//!  daemon ── drop inode 7 ──► helper ── FUSE_NOTIFY_INVAL_INODE ──► kernel
//!     ◄────── dropped ─────────┘
//! ```
//!
//! The kernel waits for pages that are being read, which the daemon has to answer first. Whoever
//! waits there cannot be killed; were it a thread of the daemon, a daemon that is killed at that moment
//! would not end before the next one has answered, and the next one is started when it ends. So a
//! helper waits instead. It ends with its daemon, at the latest when the last page is there.
//!
//! What somebody waits for (a symlink that moves) does not queue behind what nobody does.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::oneshot;
use tracing::{debug, warn};

use super::Mounted;
use super::keeper::Link;
use crate::fs::Invalidate;

/// The hidden subcommand of the helper, which must call [`help`].
pub const SUBCOMMAND: &str = "__invalidate";

/// The notification, and how long it is: a header of 16 bytes and an inode, an offset, a length.
const INVAL_INODE: i32 = 2;
const LENGTH: u32 = 16 + 24;

/// How often a helper that ended is replaced.
const MOST_HELPERS: u32 = 100;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Order {
    /// The descriptor comes with this.
    Begin,
    Drop {
        number: u64,
        ino: u64,
        urgent: bool,
    },
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct Dropped {
    number: u64,
}

/// Who waits for which order.
type Waiting = Arc<Mutex<HashMap<u64, oneshot::Sender<()>>>>;

/// Carries out `requests` with the help of `program` (usually [`super::touch::this_program`], started
/// again and again if need be), until nobody can send requests any more.
///
/// # Errors
///
/// When no thread or no helper can be started.
pub fn spawn(
    program: impl Fn() -> Command + Send + 'static,
    mounted: &Mounted,
    mut requests: UnboundedReceiver<Invalidate>,
) -> io::Result<()> {
    let device = mounted.duplicate()?;
    let mut helper = Helper::start(program(), &device)?;
    thread::Builder::new()
        .name("invalidate".to_owned())
        .spawn(move || {
            let mut number = 0;
            let mut started = 1;
            while let Some(Invalidate { ino, done }) = requests.blocking_recv() {
                number += 1;
                // Whoever waits goes on when `done` is dropped.
                if !helper.order(number, ino, done) && started < MOST_HELPERS {
                    started += 1;
                    match Helper::start(program(), &device) {
                        Ok(next) => {
                            helper = next;
                            helper.order(number, ino, None);
                        }
                        Err(error) => warn!(%error, "the kernel cannot be told what has moved"),
                    }
                }
            }
        })?;
    Ok(())
}

struct Helper {
    link: Link,
    waiting: Waiting,
    child: Child,
}

impl Helper {
    fn start(mut program: Command, device: &OwnedFd) -> io::Result<Self> {
        let (link, theirs) = Link::pair()?;
        let child = program
            .arg(SUBCOMMAND)
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        drop(program);
        link.send(&Order::Begin, Some(device.as_fd()))?;
        let waiting = Waiting::default();
        let (answers, answered) = (link.try_clone()?, Arc::clone(&waiting));
        thread::Builder::new()
            .name("invalidated".to_owned())
            .spawn(move || {
                while let Ok(Some((Dropped { number }, _))) = answers.receive() {
                    if let Some(done) = lock(&answered).remove(&number) {
                        let _ = done.send(());
                    }
                }
                lock(&answered).clear();
            })?;
        Ok(Self {
            link,
            waiting,
            child,
        })
    }

    /// Whether the helper has heard it.
    fn order(&self, number: u64, ino: u64, done: Option<oneshot::Sender<()>>) -> bool {
        let urgent = done.is_some();
        if let Some(done) = done {
            lock(&self.waiting).insert(number, done);
        }
        let order = Order::Drop {
            number,
            ino,
            urgent,
        };
        let sent = self.link.send(&order, None);
        if let Err(error) = &sent {
            debug!(ino, %error, "the helper is gone");
            lock(&self.waiting).remove(&number);
        }
        sent.is_ok()
    }
}

impl Drop for Helper {
    /// It ends by itself, when it can.
    fn drop(&mut self) {
        let _ = self.child.try_wait();
    }
}

/// The maps are consistent after every statement, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The helper: does what it is told until its daemon is gone. The process ends then.
///
/// # Errors
///
/// When it was not started by a daemon.
pub fn help() -> io::Result<()> {
    super::background::be_known();
    let link = Arc::new(Link::from_stdin()?);
    // The link has a descriptor of its own: this one would keep the conversation open.
    rustix::stdio::dup2_stdin(super::background::null()?.as_fd())?;
    let Some((Order::Begin, Some(device))) = link.receive()? else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let device = Arc::new(device);
    let mut queues = Vec::new();
    for name in ["urgent", "other"] {
        let (queue, orders) = mpsc::channel::<(u64, u64)>();
        let (link, device) = (Arc::clone(&link), Arc::clone(&device));
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                for (number, ino) in orders {
                    // What it says is of no use here: what was not cached is dropped, too.
                    let _ = drop_inode(&device, ino);
                    if link.send(&Dropped { number }, None).is_err() {
                        return;
                    }
                }
            })?;
        queues.push(queue);
    }
    drop(device);
    while let Some((
        Order::Drop {
            number,
            ino,
            urgent,
        },
        _,
    )) = link.receive()?
    {
        let queue = &queues[usize::from(!urgent)];
        if queue.send((number, ino)).is_err() {
            break;
        }
    }
    Ok(())
}

fn drop_inode(device: &OwnedFd, ino: u64) -> Result<(), Errno> {
    let mut notification = Vec::with_capacity(LENGTH as usize);
    notification.extend(LENGTH.to_ne_bytes());
    notification.extend(INVAL_INODE.to_ne_bytes());
    notification.extend(0_u64.to_ne_bytes());
    notification.extend(ino.to_ne_bytes());
    // All of it.
    notification.extend([0; 16]);
    rustix::io::write(device, &notification).map(drop)
}
