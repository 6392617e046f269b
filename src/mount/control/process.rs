//! What the daemon takes of the machine.
//!
//! All of it levels out: whoever watches a daemon for weeks sees here first what it leaks.

use std::io;

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

/// What a daemon takes at a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// Bytes in memory, the program itself included.
    pub resident_bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads of the kernel.
    pub threads: u64,
    /// Tasks that wait or run: one for each request that waits for a source, and a few that stay.
    pub tasks: u64,
}

impl Process {
    /// Of this process. What cannot be found out is 0.
    pub(super) fn current() -> Self {
        let tasks = Handle::try_current().map_or(0, |handle| handle.metrics().num_alive_tasks());
        Self {
            resident_bytes: resident_bytes().unwrap_or(0),
            descriptors: entries("/proc/self/fd").unwrap_or(0),
            threads: entries("/proc/self/task").unwrap_or(0),
            tasks: tasks.try_into().unwrap_or(u64::MAX),
        }
    }
}

fn resident_bytes() -> Option<u64> {
    // In pages: size, resident, shared, text, 0, data, 0.
    let text = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = text.split(' ').nth(1)?.parse().ok()?;
    pages.checked_mul(rustix::param::page_size().try_into().ok()?)
}

fn entries(dir: &str) -> io::Result<u64> {
    let count = std::fs::read_dir(dir)?.count();
    Ok(count.try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_this_process_takes_is_counted() {
        let before = Process::current();
        assert!(before.resident_bytes > 100_000, "{before:?}");
        assert!(before.threads >= 1 && before.descriptors >= 3, "{before:?}");

        let file = std::fs::File::open("/dev/null").unwrap();
        let task = tokio::spawn(std::future::pending::<()>());
        let after = Process::current();
        assert_eq!(after.tasks, before.tasks + 1);
        drop(file);
        task.abort();
    }
}
