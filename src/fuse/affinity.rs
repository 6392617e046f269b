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
//! fill its pages beside the reader is faster than in its place. They never leave the CPUs that they
//! were allowed at their start.

use std::cell::{Cell, OnceCell};
use std::fs;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Requests by one caller, with none by others between, before the threads follow it. To ask where
/// it is and to move cost about 20 µs, which a few dozen requests win back.
pub const ROW: u32 = 64;

/// Larger READs are answered beside the caller, in bytes.
pub const SMALL: u32 = 64 << 10;

/// No particular CPU.
const ANYWHERE: u32 = u32::MAX;

/// Where the FUSE threads of one mount are to run.
#[derive(Debug)]
pub struct Affinity {
    /// The thread id of the last caller (the upper half) and how often in a row it asked. Races
    /// between FUSE threads lose a count, no more.
    row: AtomicU64,
    cpu: AtomicU32,
}

thread_local! {
    /// Where the scheduler may run this thread if it follows nobody; `None` if that is unknown.
    static ALLOWED: OnceCell<Option<CpuSet>> = const { OnceCell::new() };
    static HERE: Cell<u32> = const { Cell::new(ANYWHERE) };
}

impl Default for Affinity {
    fn default() -> Self {
        Self {
            row: AtomicU64::new(0),
            cpu: AtomicU32::new(ANYWHERE),
        }
    }
}

impl Affinity {
    /// Takes note that `caller`, a thread id, asked, and moves the calling FUSE thread accordingly.
    /// 0, what the kernel says of callers that the daemon cannot see, is followed by nobody.
    pub fn asked(&self, caller: u32) {
        let times = self.count(caller);
        if times < ROW {
            self.cpu.store(ANYWHERE, Ordering::Relaxed);
        } else if times.is_multiple_of(ROW) {
            let cpu = cpu_of(caller).unwrap_or(ANYWHERE);
            self.cpu.store(cpu, Ordering::Relaxed);
        }
        move_to(self.cpu.load(Ordering::Relaxed));
    }

    /// How often in a row `caller` has asked, this time included.
    fn count(&self, caller: u32) -> u32 {
        let row = self.row.load(Ordering::Relaxed);
        let times = match row >> 32 {
            _ if caller == 0 => 0,
            last if last == u64::from(caller) => (row as u32).wrapping_add(1).max(1),
            _ => 1,
        };
        let row = u64::from(caller) << 32 | u64::from(times);
        self.row.store(row, Ordering::Relaxed);
        times
    }
}

/// The CPU on which a thread runs or ran last; `None` if it has ended, or is not to be seen.
fn cpu_of(thread: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{thread}/stat")).ok()?;
    // The second field is a name, in which anything may occur; `processor` is the 39th.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(36)?.parse().ok()
}

fn move_to(cpu: u32) {
    if HERE.replace(cpu) == cpu {
        return;
    }
    ALLOWED.with(|allowed| {
        let Some(allowed) = allowed.get_or_init(|| sched_getaffinity(None).ok()) else {
            return;
        };
        let mut set = CpuSet::new();
        match usize::try_from(cpu) {
            Ok(cpu) if cpu < CpuSet::MAX_CPU && allowed.is_set(cpu) => set.set(cpu),
            _ => set = *allowed,
        }
        // Refused, it runs where it does now, which is as right and only slower.
        let _ = sched_setaffinity(None, &set);
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// Where a thread of its own may run after it has served `callers`.
    fn after(callers: impl IntoIterator<Item = u32> + Send) -> CpuSet {
        let serve = || {
            let affinity = Affinity::default();
            callers
                .into_iter()
                .for_each(|caller| affinity.asked(caller));
            sched_getaffinity(None).unwrap()
        };
        thread::scope(|scope| scope.spawn(serve).join().unwrap())
    }

    fn me() -> u32 {
        rustix::thread::gettid().as_raw_pid().unsigned_abs()
    }

    fn row(caller: u32) -> impl Iterator<Item = u32> {
        std::iter::repeat_n(caller, ROW as usize)
    }

    #[test]
    fn a_caller_that_asks_alone_is_followed_until_another_asks() {
        let everywhere = sched_getaffinity(None).unwrap();
        assert_eq!(after(row(me())).count(), 1);
        assert_eq!(after(row(me()).skip(1)), everywhere);
        assert_eq!(after(row(me()).chain([me() + 1])), everywhere);
        assert_eq!(after(row(me()).chain([0])), everywhere);
        let both = (0..1000).flat_map(|_| [me(), me() + 1]);
        assert_eq!(after(both), everywhere);
    }

    #[test]
    fn nobody_is_followed_who_cannot_be_seen() {
        let everywhere = sched_getaffinity(None).unwrap();
        assert_eq!(after(row(0)), everywhere);
        // Larger than the largest process id there may be.
        assert_eq!(after(row(u32::MAX)), everywhere);
    }
}
