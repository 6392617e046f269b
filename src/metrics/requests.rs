//! Requests by what was asked and how it ended, and how long they took.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$case:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$case])* $variant,)* }

        impl $name {
            /// All of them, in the order of their declaration.
            pub const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The name under which it is printed.
            pub const fn label(self) -> &'static str {
                match self { $($name::$variant => $label,)* }
            }
        }
    };
}

labels! {
    /// Requests that may have to wait for somebody.
    Operation {
        /// A name in a directory.
        Lookup = "lookup",
        /// Attributes.
        GetAttr = "getattr",
        /// A symlink's target.
        ReadLink = "readlink",
        /// Content.
        Read = "read",
        /// A listing.
        ReadDir = "readdir",
        /// Extended attributes.
        XAttr = "xattr",
    }
}

labels! {
    /// How a request ended, as the error number that its reader saw.
    Outcome {
        /// It was answered; for a lookup also: there is no such name.
        Ok = "ok",
        /// ENOENT.
        Absent = "enoent",
        /// EACCES.
        Denied = "eacces",
        /// ETIMEDOUT.
        TimedOut = "etimedout",
        /// EHOSTUNREACH.
        Unreachable = "ehostunreach",
        /// EIO, and whatever has no name of its own.
        Damaged = "eio",
    }
}

/// Upper bounds of the classes that times are counted in, in microseconds: from a page-cache miss
/// that memory answers to the longest deadline. Longer ones are counted in a last class.
pub const TIME_BOUNDS: [u64; 12] = [
    25, 100, 500, 2_500, 10_000, 50_000, 250_000, 1_000_000, 2_500_000, 10_000_000, 30_000_000,
    60_000_000,
];

/// Times of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Times {
    /// How many took no longer than each of [`TIME_BOUNDS`] and longer than the one before; the
    /// last is for those beyond.
    pub classes: Vec<u64>,
    /// All times together.
    pub total: Duration,
}

/// The requests of one mount.
#[derive(Debug)]
pub struct Requests {
    outcomes: [[AtomicU64; Outcome::ALL.len()]; Operation::ALL.len()],
    times: [[AtomicU64; TIME_BOUNDS.len() + 1]; Operation::ALL.len()],
    micros: [AtomicU64; Operation::ALL.len()],
}

impl Default for Requests {
    fn default() -> Self {
        Self {
            outcomes: [const { [const { AtomicU64::new(0) }; Outcome::ALL.len()] };
                Operation::ALL.len()],
            times: [const { [const { AtomicU64::new(0) }; TIME_BOUNDS.len() + 1] };
                Operation::ALL.len()],
            micros: [const { AtomicU64::new(0) }; Operation::ALL.len()],
        }
    }
}

impl Requests {
    /// Counts an answered request.
    pub fn observe(&self, operation: Operation, outcome: Outcome, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let class = TIME_BOUNDS.partition_point(|bound| *bound < micros);
        let row = operation as usize;
        self.outcomes[row][outcome as usize].fetch_add(1, Ordering::Relaxed);
        self.times[row][class].fetch_add(1, Ordering::Relaxed);
        self.micros[row].fetch_add(micros, Ordering::Relaxed);
    }

    /// How many requests of this kind ended like that.
    pub fn count(&self, operation: Operation, outcome: Outcome) -> u64 {
        self.outcomes[operation as usize][outcome as usize].load(Ordering::Relaxed)
    }

    /// How long requests of this kind took.
    pub fn times(&self, operation: Operation) -> Times {
        let row = operation as usize;
        let classes = self.times[row].iter();
        Times {
            classes: classes.map(|n| n.load(Ordering::Relaxed)).collect(),
            total: Duration::from_micros(self.micros[row].load(Ordering::Relaxed)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_in_the_first_class_that_holds_it() {
        let requests = Requests::default();
        for micros in [0, 25, 26, 60_000_000, 60_000_001] {
            let took = Duration::from_micros(micros);
            requests.observe(Operation::Read, Outcome::Ok, took);
        }
        let times = requests.times(Operation::Read);
        assert_eq!(times.classes[..2], [2, 1]);
        assert_eq!(times.classes[TIME_BOUNDS.len() - 1..], [1, 1]);
        assert_eq!(times.total, Duration::from_micros(120_000_052));
        assert_eq!(requests.count(Operation::Read, Outcome::Ok), 5);
        assert_eq!(requests.count(Operation::Read, Outcome::Absent), 0);
        assert_eq!(requests.count(Operation::Lookup, Outcome::Ok), 0);
    }
}
