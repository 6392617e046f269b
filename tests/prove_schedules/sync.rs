//! What the compiled files know as `crate::sync`: the same shapes, and every meeting is scheduled.

use std::cell::Cell;
use std::fs::{File, TryLockError};
use std::io;
use std::ops::Add;
use std::sync::Arc;
use std::time::Duration;

use shuttle::rand::{Rng as _, thread_rng};

pub use shuttle::future::spawn;
pub use shuttle::sync::{Mutex, MutexGuard, atomic};
pub use std::sync::PoisonError;

/// The same of a lock that is scheduled.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Here the scheduler may let somebody else go on.
pub fn between() {
    atomic::AtomicBool::new(false).load(atomic::Ordering::SeqCst);
}

/// Nobody knows who wakes first.
pub async fn sleep(_: Duration) {
    shuttle::future::yield_now().await;
}

thread_local! {
    static GIVEN_UP: Cell<usize> = const { Cell::new(0) };
}

/// How many waits have ended without what was waited for, in all schedules of this test.
pub fn given_up() -> usize {
    GIVEN_UP.get()
}

/// Whether whoever waits has done so for long enough: time passes as the schedule has it.
fn has_waited_long() -> bool {
    let has = thread_rng().gen_range(0..8) == 0;
    GIVEN_UP.set(GIVEN_UP.get() + usize::from(has));
    has
}

/// The lock of a file is between processes; here these are tasks of one thread, none of which may
/// wait in the kernel for another.
pub fn lock_file(file: &File, patience: Duration) -> io::Result<()> {
    loop {
        between();
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if patience.is_zero() || has_waited_long() => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(TryLockError::WouldBlock) => shuttle::thread::yield_now(),
            Err(TryLockError::Error(error)) => return Err(error),
            Ok(()) => return Ok(()),
        }
    }
}

/// What the locks know as `crate::source::Deadline`: at every look it may have passed.
#[derive(Clone, Default)]
pub struct Deadline(Arc<std::sync::atomic::AtomicBool>);

impl Deadline {
    pub fn is_over(&self) -> bool {
        use std::sync::atomic::Ordering::Relaxed;
        let is_over = self.0.load(Relaxed) || has_waited_long();
        self.0.store(is_over, Relaxed);
        is_over
    }

    /// Whether somebody has seen that it was over.
    pub fn has_passed(&self) -> bool {
        self.0.load(std::sync::atomic::Ordering::Relaxed)
    }

    pub fn remaining(&self) -> Duration {
        Duration::ZERO
    }
}

/// tokio's channel needs no runtime, and is as good as atomic; what stands around it is scheduled.
pub mod watch {
    pub use tokio::sync::watch::Receiver;
    use tokio::sync::watch::error::SendError;

    pub struct Sender<T>(tokio::sync::watch::Sender<T>);

    impl<T> Sender<T> {
        pub fn send(&self, value: T) -> Result<(), SendError<T>> {
            super::between();
            let sent = self.0.send(value);
            super::between();
            sent
        }
    }

    pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = tokio::sync::watch::channel(value);
        (Sender(sender), receiver)
    }
}

shuttle::lazy_static! {
    static ref NOW: Mutex<Duration> = Mutex::new(Duration::ZERO);
}

/// A moment of a clock that stands still until [`advance`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Instant(Duration);

impl Instant {
    pub fn now() -> Self {
        Self(*NOW.lock().unwrap())
    }

    pub fn saturating_duration_since(&self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

impl Add<Duration> for Instant {
    type Output = Self;

    fn add(self, time: Duration) -> Self {
        Self(self.0 + time)
    }
}

/// Lets time pass.
pub fn advance(by: Duration) {
    *NOW.lock().unwrap() += by;
}
