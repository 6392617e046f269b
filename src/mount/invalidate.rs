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
//! The helper may be killed, too. What it has not said to be done is then asked of the next one, and
//! whoever waits goes on waiting: a symlink whose old body nobody drops would stay where it was.
//!
//! What readers are to see (a symlink that moves, a directory that lists something else) does not queue
//! behind the pages of a file, which may take as long as a download. A symlink's body is a page, too,
//! and may be read at that moment: so one that is stuck does not hold up the others at once.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::UnboundedReceiver;
use tracing::{debug, warn};

use super::Mounted;
use super::keeper::Link;
use crate::fs::{Invalidate, What};
use crate::sync::lock;

/// The hidden subcommand of the helper, which must call [`help`].
pub const SUBCOMMAND: &str = "__invalidate";

/// The notification that an inode's content is to be dropped, and the one that inodes are.
const INVAL_INODE: i32 = 2;
const PRUNE: i32 = 9;

/// How long the header of a notification is.
const HEADER: usize = 16;

/// How many helpers in a row may end without having done anything; and how much longer the daemon
/// waits before it starts another one each time that one has: two minutes in all.
const MOST_USELESS: u32 = 50;
const PAUSE: Duration = Duration::from_millis(100);

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
    /// The kernel does not know how to do that.
    #[serde(default)]
    unknown: bool,
}

/// Carries out `requests` with the help of `program` (usually [`super::touch::this_program`], started
/// again and again if need be), until nobody can send requests any more.
///
/// # Errors
///
/// When no thread or no helper can be started.
pub fn spawn(
    program: impl Fn() -> Command + Send + 'static,
    mounted: &Mounted,
    requests: UnboundedReceiver<Invalidate>,
) -> io::Result<()> {
    let device = mounted.duplicate()?;
    let mut helpers: Vec<Child> = Vec::new();
    let start = move || {
        // One that was killed may be kept by the kernel until what it waits for is there.
        helpers.retain_mut(|helper| matches!(helper.try_wait(), Ok(None)));
        let (link, theirs) = Link::pair()?;
        let mut command = program();
        let helper = command
            .arg(SUBCOMMAND)
            .current_dir("/")
            .stdin(theirs)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        helpers.push(helper);
        // It has the other end now: closed here, its death is noticed.
        drop(command);
        link.send(&Order::Begin, Some(device.as_fd()))?;
        Ok(link)
    };
    Orders::carry_out(requests, start, PAUSE)
}

/// What is to be done, and who is told to do it.
struct Orders {
    /// By their numbers, until they are done.
    outstanding: Mutex<BTreeMap<u64, Invalidate>>,
    /// `None` when no helper could be kept alive.
    helper: Mutex<Option<Link>>,
    /// Whether the kernel has said that inodes cannot be dropped.
    cannot_prune: AtomicBool,
}

impl Orders {
    fn carry_out(
        mut requests: UnboundedReceiver<Invalidate>,
        mut start: impl FnMut() -> io::Result<Link> + Send + 'static,
        pause: Duration,
    ) -> io::Result<()> {
        let link = start()?;
        let mut answers = link.try_clone()?;
        let orders = Arc::new(Self {
            outstanding: Mutex::default(),
            helper: Mutex::new(Some(link)),
            cannot_prune: AtomicBool::new(false),
        });
        let given = Arc::clone(&orders);
        thread::Builder::new()
            .name("invalidate".to_owned())
            .spawn(move || {
                let mut number = 0;
                while let Some(request) = requests.blocking_recv() {
                    number += 1;
                    given.give(number, request);
                }
            })?;
        thread::Builder::new()
            .name("invalidated".to_owned())
            .spawn(move || {
                let mut useless = 0;
                loop {
                    if orders.hear(&answers) {
                        useless = 0;
                    }
                    match orders.replace(&mut start, &mut useless, pause) {
                        Some(next) => answers = next,
                        None => return,
                    }
                }
            })?;
        Ok(())
    }

    /// Hands an order to the helper. If that is gone it is handed to the next one, which gets all that
    /// is outstanding.
    fn give(&self, number: u64, request: Invalidate) {
        let (ino, what) = (request.ino, request.what);
        if what == What::Inode && self.cannot_prune.load(Ordering::Relaxed) {
            return;
        }
        lock(&self.outstanding).insert(number, request);
        match &*lock(&self.helper) {
            Some(link) => {
                if let Err(error) = link.send(&Order::Drop { number, ino, what }, None) {
                    debug!(ino, %error, "the helper is gone");
                }
            }
            // Whoever waits goes on when it is dropped.
            None => _ = lock(&self.outstanding).remove(&number),
        }
    }

    /// Listens to a helper as long as it lives; whether it has done anything.
    fn hear(&self, answers: &Link) -> bool {
        let mut any = false;
        while let Ok(Some((Dropped { number, unknown }, _))) = answers.receive() {
            any = true;
            let request = lock(&self.outstanding).remove(&number);
            if let Some(Invalidate { what, done, .. }) = request {
                if unknown && what == What::Inode {
                    self.cannot_prune.store(true, Ordering::Relaxed);
                }
                if let Some(done) = done {
                    let _ = done.send(());
                }
            }
        }
        any
    }

    /// Starts the next helper and hands it all that is outstanding; where to listen to it.
    fn replace(
        &self,
        start: &mut impl FnMut() -> io::Result<Link>,
        useless: &mut u32,
        pause: Duration,
    ) -> Option<Link> {
        let started = loop {
            if *useless == MOST_USELESS {
                break Err(io::Error::other("its helper ends again and again"));
            }
            thread::sleep(pause * *useless);
            *useless += 1;
            match start().and_then(|link| Ok((link.try_clone()?, link))) {
                Ok(started) => break Ok(started),
                Err(error) if *useless == MOST_USELESS => break Err(error),
                Err(error) => debug!(%error, "no helper for invalidation"),
            }
        };
        let mut helper = lock(&self.helper);
        match started {
            Ok((answers, link)) => {
                let link = helper.insert(link);
                for (&number, &Invalidate { ino, what, .. }) in &*lock(&self.outstanding) {
                    // If it is gone already, the next one gets them.
                    if link.send(&Order::Drop { number, ino, what }, None).is_err() {
                        break;
                    }
                }
                Some(answers)
            }
            Err(error) => {
                warn!(%error, "the kernel cannot be told any more what has moved: it is seen late, or never");
                *helper = None;
                lock(&self.outstanding).clear();
                None
            }
        }
    }
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
        // Not every error is one: what was not cached is dropped, too.
        let told = tell(&device, ino, what);
        let unknown = matches!(told, Err(Errno::INVAL | Errno::NOSYS));
        answers.send(&Dropped { number, unknown }, None).is_ok()
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
    use std::time::Instant;

    use rustix::net::sockopt::{Timeout, set_socket_timeout};
    use tokio::sync::oneshot;
    use tokio::sync::oneshot::error::TryRecvError;

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

    /// Orders for helpers that the test plays: the other end of the first one's link and of those
    /// that follow.
    fn orders() -> (
        tokio::sync::mpsc::UnboundedSender<Invalidate>,
        mpsc::Receiver<Link>,
    ) {
        let (requests, received) = tokio::sync::mpsc::unbounded_channel();
        let (started, helpers) = mpsc::channel();
        let start = move || {
            let (link, theirs) = Link::pair()?;
            set_socket_timeout(&theirs, Timeout::Recv, Some(PATIENCE))?;
            let _ = started.send(Link::from(theirs));
            Ok(link)
        };
        Orders::carry_out(received, start, Duration::ZERO).unwrap();
        (requests, helpers)
    }

    fn next_order(helper: &Link) -> (u64, u64, What) {
        match helper.receive().unwrap() {
            Some((Order::Drop { number, ino, what }, _)) => (number, ino, what),
            _ => panic!("no order"),
        }
    }

    fn order(ino: u64, what: What) -> (Invalidate, oneshot::Receiver<()>) {
        let (done, dropped) = oneshot::channel();
        let done = Some(done);
        (Invalidate { ino, what, done }, dropped)
    }

    /// Waits until an order is over; whether it was carried out.
    fn is_done(mut dropped: oneshot::Receiver<()>) -> bool {
        let end = Instant::now() + PATIENCE;
        loop {
            match dropped.try_recv() {
                Ok(()) => return true,
                Err(TryRecvError::Closed) => return false,
                Err(TryRecvError::Empty) => {
                    assert!(Instant::now() < end, "somebody waits for ever")
                }
            }
            thread::yield_now();
        }
    }

    #[test]
    fn what_a_helper_that_is_killed_had_under_way_is_done_by_the_next_one() {
        let (requests, helpers) = orders();
        let helper = helpers.recv_timeout(PATIENCE).unwrap();
        let mut waiting = Vec::new();
        for ino in [7, 8, 9] {
            let (request, dropped) = order(ino, What::Told);
            requests.send(request).ok().unwrap();
            waiting.push(dropped);
        }
        let (number, ino, _) = next_order(&helper);
        assert_eq!(ino, 7);
        let unknown = false;
        helper.send(&Dropped { number, unknown }, None).unwrap();
        assert!(is_done(waiting.remove(0)));
        // One is read and one is not.
        assert_eq!(next_order(&helper).1, 8);
        drop(helper);
        let helper = helpers.recv_timeout(PATIENCE).unwrap();
        let (first, second) = (next_order(&helper), next_order(&helper));
        assert_eq!([first.1, second.1], [8, 9]);
        for dropped in &mut waiting {
            assert!(dropped.try_recv().is_err(), "nobody has done it");
        }
        for (number, ..) in [first, second] {
            helper.send(&Dropped { number, unknown }, None).unwrap();
        }
        for dropped in waiting {
            assert!(is_done(dropped));
        }
    }

    #[test]
    fn whoever_waits_goes_on_when_no_helper_lives() {
        let (requests, helpers) = orders();
        let (request, dropped) = order(7, What::Told);
        requests.send(request).ok().unwrap();
        // Each of them ends at once.
        assert!(helpers.iter().take(MOST_USELESS as usize + 1).count() > 1);
        assert!(!is_done(dropped));
        let (request, dropped) = order(8, What::Told);
        requests.send(request).ok().unwrap();
        assert!(!is_done(dropped));
    }

    #[test]
    fn a_kernel_that_cannot_drop_inodes_is_not_asked_again() {
        let (requests, helpers) = orders();
        let helper = helpers.recv_timeout(PATIENCE).unwrap();
        let (request, dropped) = order(7, What::Inode);
        requests.send(request).ok().unwrap();
        let (number, ..) = next_order(&helper);
        let unknown = true;
        helper.send(&Dropped { number, unknown }, None).unwrap();
        assert!(is_done(dropped));
        let (prune, dropped) = order(8, What::Inode);
        requests.send(prune).ok().unwrap();
        assert!(!is_done(dropped));
        let (told, _dropped) = order(9, What::Told);
        requests.send(told).ok().unwrap();
        assert_eq!(next_order(&helper).1, 9);
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
