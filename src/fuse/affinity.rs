//! Keeps the threads that answer on the CPU of the program that asks.
//!
//! A request costs two wake-ups, of the thread that answers and then of the caller. On a machine
//! with nothing else to do the scheduler spreads the two over two CPUs, and each wake-up then has to
//! fetch a CPU out of its sleep: 30–60 µs a round trip in a virtual machine instead of 6, several
//! times what an answer takes. But a caller that waits leaves its own CPU free. So when one thread
//! alone has sent [`ROW`] requests in a row, the FUSE threads follow it to its CPU, and look again
//! where it is after as many more.
//!
//! They may run anywhere again as soon as somebody else asks too, since several callers are served
//! faster beside each other, and for a large READ, which the kernel sends ahead of the reader: to
//! fill its pages beside the reader is faster than in its place. And when nobody has asked for
//! [`PAUSE`], so that a mount at rest does not depend on what else its last caller's CPU does. They
//! never leave the CPUs that they were allowed when the row began.

use std::cell::Cell;
use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::thread::{CpuSet, Pid, gettid, sched_getaffinity, sched_setaffinity};
use tokio::runtime::Handle;

/// Requests by one caller, with none by others between, before the threads follow it. To ask where
/// it is and to move cost about 20 µs, which a few dozen requests win back.
pub const ROW: u32 = 64;

/// Larger READs are answered beside the caller, in bytes.
pub const SMALL: u32 = 64 << 10;

/// How long threads that have followed a caller wait for its next request there, at least; at most
/// twice as long.
pub const PAUSE: Duration = Duration::from_millis(50);

/// No particular CPU.
const ANYWHERE: u32 = u32::MAX;

/// A FUSE thread that has followed somebody.
#[derive(Debug)]
struct Away {
    thread: Pid,
    /// Where it may run otherwise.
    allowed: CpuSet,
}

#[derive(Debug, Default)]
struct Followers {
    away: Vec<Away>,
    /// Whether a timer runs that will set them free.
    is_timed: bool,
}

/// Where the FUSE threads of one mount are to run.
#[derive(Debug)]
pub struct Affinity {
    /// The thread id of the last caller, and how often in a row it asked. Races between FUSE
    /// threads lose a count, no more.
    caller: AtomicU32,
    times: AtomicU32,
    cpu: AtomicU32,
    /// How often all threads were set free. Whoever followed before that follows nobody now.
    freed: AtomicU32,
    /// Changes with every request.
    requests: AtomicU32,
    followers: Mutex<Followers>,
}

thread_local! {
    /// Whom this thread follows: the value of `freed` when it began, and the CPU.
    static HERE: Cell<(u32, u32)> = const { Cell::new((0, ANYWHERE)) };
}

impl Default for Affinity {
    fn default() -> Self {
        Self {
            caller: AtomicU32::new(0),
            times: AtomicU32::new(0),
            cpu: AtomicU32::new(ANYWHERE),
            freed: AtomicU32::new(0),
            requests: AtomicU32::new(0),
            followers: Mutex::default(),
        }
    }
}

impl Affinity {
    /// Takes note that `caller`, a thread id, asked, and moves the calling FUSE thread accordingly.
    /// 0, what the kernel says of callers that the daemon cannot see, is followed by nobody. The
    /// timer that ends it runs on `runtime`.
    pub fn asked(self: &Arc<Self>, caller: u32, runtime: &Handle) {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let times = self.count(caller);
        if times < ROW {
            self.cpu.store(ANYWHERE, Ordering::Relaxed);
        } else if times.is_multiple_of(ROW) {
            let cpu = cpu_of(caller).unwrap_or(ANYWHERE);
            self.cpu.store(cpu, Ordering::Relaxed);
        }
        let cpu = self.cpu.load(Ordering::Relaxed);
        let freed = self.freed.load(Ordering::Relaxed);
        let (since, here) = HERE.get();
        let here = if since == freed { here } else { ANYWHERE };
        if here != cpu {
            self.go(cpu, runtime);
        }
    }

    /// How often in a row `caller` has asked, this time included.
    fn count(&self, caller: u32) -> u32 {
        let last = self.caller.swap(caller, Ordering::Relaxed);
        let times = match caller {
            0 => 0,
            _ if caller == last => self.times.load(Ordering::Relaxed).wrapping_add(1).max(1),
            _ => 1,
        };
        self.times.store(times, Ordering::Relaxed);
        times
    }

    /// Moves the calling thread. Where that is refused it runs where it does now, which is as right
    /// and only slower.
    fn go(self: &Arc<Self>, cpu: u32, runtime: &Handle) {
        let thread = gettid();
        let mut followers = self.followers();
        let Followers { away, is_timed } = &mut *followers;
        let known = away.iter().position(|one| one.thread == thread);
        HERE.set((self.freed.load(Ordering::Relaxed), cpu));
        if cpu == ANYWHERE {
            if let Some(known) = known {
                let back = away.swap_remove(known);
                let _ = sched_setaffinity(Some(thread), &back.allowed);
            }
            return;
        }
        let allowed = match known {
            Some(known) => away[known].allowed,
            None => match sched_getaffinity(Some(thread)) {
                Ok(allowed) => allowed,
                Err(_) => return,
            },
        };
        let mut there = CpuSet::new();
        match usize::try_from(cpu) {
            Ok(cpu) if cpu < CpuSet::MAX_CPU && allowed.is_set(cpu) => there.set(cpu),
            _ => return,
        }
        if known.is_none() {
            if !std::mem::replace(is_timed, true) {
                runtime.spawn(Arc::clone(self).free_when_quiet());
            }
            away.push(Away { thread, allowed });
        }
        let _ = sched_setaffinity(Some(thread), &there);
    }

    /// Consistent after every statement, so a poisoned lock is still good.
    fn followers(&self) -> MutexGuard<'_, Followers> {
        let followers = self.followers.lock();
        followers.unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets all threads free when nobody has asked for a while, or none is away any more.
    async fn free_when_quiet(self: Arc<Self>) {
        loop {
            let before = self.requests.load(Ordering::Relaxed);
            tokio::time::sleep(PAUSE).await;
            let is_quiet = self.requests.load(Ordering::Relaxed) == before;
            let mut followers = self.followers();
            if is_quiet {
                self.freed.fetch_add(1, Ordering::Relaxed);
                self.times.store(0, Ordering::Relaxed);
                self.cpu.store(ANYWHERE, Ordering::Relaxed);
                for back in followers.away.drain(..) {
                    let _ = sched_setaffinity(Some(back.thread), &back.allowed);
                }
            }
            if followers.away.is_empty() {
                followers.is_timed = false;
                return;
            }
        }
    }
}

/// The CPU on which a thread runs or ran last; `None` if it has ended, or is not to be seen.
fn cpu_of(thread: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    // The second field is a name, in which anything may occur; `processor` is the 39th.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(36)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where this thread may run after it has served `callers`, and some time later.
    async fn after(
        affinity: &Arc<Affinity>,
        callers: impl IntoIterator<Item = u32>,
    ) -> (CpuSet, CpuSet) {
        for caller in callers {
            affinity.asked(caller, &Handle::current());
        }
        let at_once = sched_getaffinity(None).unwrap();
        // There is no other thread to run the timer meanwhile.
        tokio::time::sleep(3 * PAUSE).await;
        (at_once, sched_getaffinity(None).unwrap())
    }

    fn row(caller: u32) -> impl Iterator<Item = u32> {
        std::iter::repeat_n(caller, ROW as usize)
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_that_asks_alone_is_followed_until_another_asks_or_nobody() {
        let everywhere = sched_getaffinity(None).unwrap();
        let me = gettid().as_raw_pid().unsigned_abs();
        let affinity = Arc::default();
        for _ in 0..2 {
            let (at_once, later) = after(&affinity, row(me)).await;
            assert_eq!((at_once.count(), later), (1, everywhere));
        }
        for callers in [
            row(me).skip(1).collect(),
            row(me).chain([me + 1]).collect(),
            row(me).chain([0]).collect(),
            (0..1000).flat_map(|_| [me, me + 1]).collect::<Vec<_>>(),
        ] {
            assert_eq!(after(&affinity, callers).await, (everywhere, everywhere));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_is_followed_who_cannot_be_seen() {
        let everywhere = sched_getaffinity(None).unwrap();
        // No process id is as large as the second.
        for caller in [0, u32::MAX] {
            let (at_once, _) = after(&Arc::default(), row(caller)).await;
            assert_eq!(at_once, everywhere);
        }
    }
}
