//! What the process counts: plain atomics, cheap enough for every request.
//!
//! Names are constants, so that whoever prints them (the statistics file, the control socket) cannot
//! disagree. A counter only ever grows; a test reads two snapshots and subtracts.

pub mod requests;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use requests::Requests;

macro_rules! counters {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// Everything that is counted.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Counter { $($(#[$doc])* $variant,)* }

        impl Counter {
            /// All counters, in the order of their declaration.
            pub const ALL: &'static [Counter] = &[$(Counter::$variant,)*];

            /// The name under which the counter is printed.
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$variant => $name,)* }
            }
        }
    };
}

counters! {
    /// LOOKUP requests from the kernel.
    Lookup = "fuse_lookup",
    /// FORGET and BATCH_FORGET requests; they have no reply.
    Forget = "fuse_forget",
    /// GETATTR requests.
    GetAttr = "fuse_getattr",
    /// READLINK requests.
    ReadLink = "fuse_readlink",
    /// OPEN requests; one a session where the kernel knows `NO_OPEN_SUPPORT`.
    Open = "fuse_open",
    /// READ requests.
    Read = "fuse_read",
    /// OPENDIR requests.
    OpenDir = "fuse_opendir",
    /// READDIR and READDIRPLUS requests.
    ReadDir = "fuse_readdir",
    /// STATFS requests; never cached by the kernel.
    StatFs = "fuse_statfs",
    /// GETXATTR and LISTXATTR requests.
    XAttr = "fuse_xattr",
    /// IOCTL requests (CPython before 3.14 sends one with every `open`).
    Ioctl = "fuse_ioctl",
    /// Requests that would write, all answered EROFS.
    Write = "fuse_write",
    /// Every other request.
    Other = "fuse_other",
    /// Requests answered with an error other than ENOENT, ENOSYS, ENOTTY and EROFS.
    Failed = "fuse_failed",
    /// Requests that were still not answered half a second after their deadline, and then were.
    Overdue = "fuse_overdue",
    /// READs whose bytes were in the cache.
    ReadWarm = "read_warm",
    /// READs that had to wait for a source.
    ReadCold = "read_cold",
    /// Bytes handed to the kernel in answer to READs.
    ReadBytes = "read_bytes",
    /// Callers that waited for somebody else's resolve, manifest or blob.
    Joined = "single_flight_joined",
    /// Requests sent to any source, retries included.
    SourceRequests = "source_requests",
    /// Bytes of content received from sources and verified.
    SourceBytes = "source_bytes",
    /// Cached blobs hashed.
    Verified = "blobs_verified",
    /// Blobs, cached or fetched, whose bytes were not what the manifest names.
    VerifyFailed = "blobs_verify_failed",
    /// Blobs fetched ahead of a reader.
    ReadAhead = "blobs_read_ahead",
}

/// The counters of one process or one mount.
#[derive(Debug)]
pub struct Metrics {
    counters: [AtomicU64; Counter::ALL.len()],
    requests: Requests,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            counters: [const { AtomicU64::new(0) }; Counter::ALL.len()],
            requests: Requests::default(),
        }
    }
}

impl Metrics {
    /// Adds one.
    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    /// Adds `n`.
    pub fn add(&self, counter: Counter, n: u64) {
        self.counters[counter as usize].fetch_add(n, Ordering::Relaxed);
    }

    /// The current value.
    pub fn get(&self, counter: Counter) -> u64 {
        self.counters[counter as usize].load(Ordering::Relaxed)
    }

    /// Requests by kind and result, and their times.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// All values by name. Not one instant: requests go on while it is taken.
    pub fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        Counter::ALL
            .iter()
            .map(|&counter| (counter.name(), self.get(counter)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_names_every_counter_once() {
        let metrics = Metrics::default();
        metrics.add(Counter::ReadBytes, 5);
        let snapshot = metrics.snapshot();
        assert_eq!(snapshot.len(), Counter::ALL.len());
        assert_eq!(snapshot["read_bytes"], 5);
    }
}
