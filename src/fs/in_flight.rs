//! The requests that wait for somebody at the moment: who asked, for what, since when.
//!
//! Only requests that could not be answered at once are here, so the table costs nothing where speed
//! counts. An entry goes when its guard does, however the request ends.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crate::sync::lock;

/// A request that waits.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// What was asked for, as the kernel calls it.
    pub operation: &'static str,
    /// The inode; the parent's, for a lookup.
    pub ino: u64,
    /// The name that is looked up.
    pub name: Option<Box<str>>,
    /// The process that asks; 0 if it is in another process namespace.
    pub pid: u32,
    /// Since when.
    pub since: Instant,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    waiting: BTreeMap<u64, Waiting>,
}

/// The requests that wait.
#[derive(Debug, Default)]
pub struct InFlight(Mutex<Table>);

/// Keeps a request in the table.
#[derive(Debug)]
pub struct Guard {
    table: Arc<InFlight>,
    number: u64,
}

impl InFlight {
    /// Consistent after every statement, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Table> {
        lock(&self.0)
    }

    /// Notes a request, until the guard is dropped.
    pub fn enter(self: &Arc<Self>, waiting: Waiting) -> Guard {
        let mut table = self.lock();
        let number = table.next;
        table.next += 1;
        table.waiting.insert(number, waiting);
        Guard {
            table: Arc::clone(self),
            number,
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Those who wait, the longest first.
    pub fn list(&self) -> Vec<Waiting> {
        self.lock().waiting.values().cloned().collect()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.table.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_listed_while_it_waits_the_oldest_first() {
        let table = Arc::new(InFlight::default());
        let waiting = |ino| Waiting {
            operation: "read",
            ino,
            name: None,
            pid: 1,
            since: Instant::now(),
        };
        let first = table.enter(waiting(10));
        let second = table.enter(waiting(20));
        let listed: Vec<u64> = table.list().iter().map(|one| one.ino).collect();
        assert_eq!(listed, [10, 20]);
        drop(first);
        assert_eq!(table.list()[0].ino, 20);
        drop(second);
        assert!(table.is_empty());
    }
}
