//! Where threads, tasks and processes meet: locks, tasks, the clock, locked files.
//!
//! Little of its own: the standard library's and tokio's, by one name. What imports them from here
//! is also compiled by `tests/prove_schedules`, file by file, against others of the same shape, whose
//! every meeting is scheduled by the test.

use std::fs::{File, TryLockError};
use std::io;
use std::time::Duration;

pub use std::sync::atomic;
pub use std::sync::{Mutex, MutexGuard, PoisonError};
pub use tokio::spawn;
pub use tokio::sync::watch;
pub use tokio::time::{Instant, sleep};

/// Waits for a lock, also for one that somebody held who panicked.
///
/// For what is consistent after every statement, so that a poisoned lock is still good.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for the lock of a file that other processes lock, too, but not for ever: whoever has it may be
/// stopped.
///
/// # Errors
///
/// [`io::ErrorKind::TimedOut`] after `patience`; others where files cannot be locked.
pub fn lock_file(file: &File, patience: Duration) -> io::Result<()> {
    const PAUSE: Duration = Duration::from_millis(2);
    let begin = std::time::Instant::now();
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::Error(error)) => return Err(error),
            Err(TryLockError::WouldBlock) if begin.elapsed() >= patience => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(TryLockError::WouldBlock) => std::thread::sleep(PAUSE),
        }
    }
}

/// Where another process could come in between.
#[inline]
pub fn between() {}
