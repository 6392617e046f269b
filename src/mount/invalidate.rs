//! Having the kernel drop what it has cached, from a process of its own.
//!
//! ```text
//!  daemon ── drop the body of 7 ──► names ─┬─ FUSE_NOTIFY_INVAL_INODE ──► kernel
//!     │  └─── drop the pages of 8 ──► pages ─┘
//!     ◄───────────── dropped ────────┘
//! ```
//!
//! The kernel waits for pages that are being read, which the daemon has to answer first. Whoever
//! waits there cannot be killed; were it a thread of the daemon, a daemon that is killed at that moment
//! would not end before the next one has answered, and the next one is started when it ends. So a
//! helper waits instead. It ends with its daemon, at the latest when the last page is there.
//!
//! What readers are to see (a symlink that moves, a directory that lists something else) does not queue
//! behind the pages of a file, which may take as long as a download. A symlink's body is a page, too,
//! and may be read at that moment: so one that is stuck does not hold up the others at once.

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
use crate::fs::{Invalidate, What};

/// The hidden subcommand of the helper, which must call [`help`].
pub const SUBCOMMAND: &str = "__invalidate";

/// The notification that an inode's content is to be dropped, and the one that inodes are.
const INVAL_INODE: i32 = 2;
const PRUNE: i32 = 9;

/// How long the header of a notification is.
const HEADER: usize = 16;

/// How often a helper that ended is replaced.
const MOST_HELPERS: u32 = 100;

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Order {
    /// The descriptor comes with this.
    Begin,
    Drop {
        number: u64,
        ino: u64,
        what: What,
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
            while let Some(Invalidate { ino, what, done }) = requests.blocking_recv() {
                number += 1;
                // Whoever waits goes on when `done` is dropped.
                if !helper.order(number, ino, what, done) && started < MOST_HELPERS {
                    started += 1;
                    match Helper::start(program(), &device) {
                        Ok(next) => {
                            helper = next;
                            helper.order(number, ino, what, None);
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
    fn order(&self, number: u64, ino: u64, what: What, done: Option<oneshot::Sender<()>>) -> bool {
        if let Some(done) = done {
            lock(&self.waiting).insert(number, done);
        }
        let order = Order::Drop { number, ino, what };
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
    let answers = Arc::clone(&link);
    let queues = Queues::start(move |number, ino, what| {
        // What it says is of no use here: what was not cached is dropped, too.
        let _ = tell(&device, ino, what);
        answers.send(&Dropped { number }, None).is_ok()
    })?;
    while let Some((Order::Drop { number, ino, what }, _)) = link.receive()? {
        if !queues.add(number, ino, what) {
            break;
        }
    }
    Ok(())
}

/// How many orders of one kind are carried out at a time: how many may be stuck until the next one
/// has to wait.
const AT_A_TIME: usize = 4;

/// What is to be carried out, the pages of files apart from what readers are to see.
struct Queues {
    names: mpsc::Sender<(u64, u64, What)>,
    pages: mpsc::Sender<(u64, u64, What)>,
}

impl Queues {
    /// Queues whose orders `carry_out` carries out. It says whether there is a use in more of them.
    fn start(
        carry_out: impl Fn(u64, u64, What) -> bool + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let carry_out = Arc::new(carry_out);
        let queue = |name: &str| -> io::Result<_> {
            let (queue, orders) = mpsc::channel::<(u64, u64, What)>();
            let orders = Arc::new(Mutex::new(orders));
            for _ in 0..AT_A_TIME {
                let (orders, carry_out) = (Arc::clone(&orders), Arc::clone(&carry_out));
                let work = move || {
                    // Whoever waits for an order has the lock, and the others wait for that.
                    let next = || lock(&orders).recv();
                    while let Ok((number, ino, what)) = next() {
                        if !carry_out(number, ino, what) {
                            return;
                        }
                    }
                };
                thread::Builder::new().name(name.to_owned()).spawn(work)?;
            }
            Ok(queue)
        };
        Ok(Self {
            names: queue("names")?,
            pages: queue("pages")?,
        })
    }

    /// Whether somebody is there to carry it out.
    fn add(&self, number: u64, ino: u64, what: What) -> bool {
        let queue = match what {
            What::Told => &self.names,
            What::Pages | What::Inode => &self.pages,
        };
        queue.send((number, ino, what)).is_ok()
    }
}

fn tell(device: &OwnedFd, ino: u64, what: What) -> Result<(), Errno> {
    rustix::io::write(device, &notification(ino, what)).map(drop)
}

fn notification(ino: u64, what: What) -> Vec<u8> {
    let mut body = Vec::new();
    let code = match what {
        What::Told | What::Pages => {
            body.extend(ino.to_ne_bytes());
            // From the beginning, all of it.
            body.extend([0; 16]);
            INVAL_INODE
        }
        What::Inode => {
            // How many, and reserved.
            body.extend(1_u32.to_ne_bytes());
            body.extend([0; 12]);
            body.extend(ino.to_ne_bytes());
            PRUNE
        }
    };
    let length = u32::try_from(HEADER + body.len()).expect("some dozen bytes");
    let mut notification = Vec::with_capacity(HEADER + body.len());
    notification.extend(length.to_ne_bytes());
    notification.extend(code.to_ne_bytes());
    notification.extend(0_u64.to_ne_bytes());
    notification.extend(body);
    notification
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Long enough on any machine.
    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn what_readers_are_to_see_does_not_wait_for_the_pages_of_files() {
        let (release, stuck) = mpsc::channel::<()>();
        let stuck = Mutex::new(stuck);
        let (started, starts) = mpsc::channel();
        let queues = Queues::start(move |_, ino, what| {
            started.send((ino, what)).unwrap();
            if what == What::Pages || ino == 1 {
                // Until the test ends.
                let _ = lock(&stuck).recv();
            }
            true
        })
        .unwrap();
        let next = || starts.recv_timeout(PATIENCE).unwrap();
        // More files than are invalidated at a time, and a symlink that is being read.
        for ino in 100..200 {
            assert!(queues.add(ino, ino, What::Pages));
        }
        for _ in 0..AT_A_TIME {
            assert_eq!(next().1, What::Pages);
        }
        assert!(queues.add(1, 1, What::Told));
        assert_eq!(next(), (1, What::Told));
        assert!(queues.add(2, 2, What::Told));
        assert_eq!(next(), (2, What::Told));
        drop(release);
    }

    #[test]
    fn notifications_have_the_kernels_layout() {
        let word =
            |bytes: &[u8], at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        let half =
            |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
        let body = notification(7, What::Told);
        assert_eq!((half(&body, 0), half(&body, 4), body.len()), (40, 2, 40));
        assert_eq!(
            (word(&body, 16), word(&body, 24), word(&body, 32)),
            (7, 0, 0)
        );
        assert_eq!(body, notification(7, What::Pages));
        let inode = notification(7, What::Inode);
        assert_eq!((half(&inode, 0), half(&inode, 4), inode.len()), (40, 9, 40));
        assert_eq!((half(&inode, 16), word(&inode, 32)), (1, 7));
    }
}
