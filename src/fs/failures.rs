//! The requests that failed lately, kept so that they can be explained afterwards.
//!
//! A ring of bounded size. The same failure of a hundred readers, or of one that tries again, is one
//! entry with a number, so that a dead registry does not push out what happened before it.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::SystemTime;

use crate::error::Error;
use crate::sync::lock;

/// Most failures that are kept.
const MOST: usize = 256;

/// A failed request.
#[derive(Debug, Clone)]
pub struct Failure {
    /// What was asked for, as the kernel calls it.
    pub operation: &'static str,
    /// The inode that was asked for; the parent's, for a lookup.
    pub ino: u64,
    /// The name that was looked up.
    pub name: Option<Box<str>>,
    /// When it failed last.
    pub at: SystemTime,
    /// How often it failed in a row.
    pub times: u64,
    /// Why, the last time.
    pub error: Error,
}

/// The last failures.
#[derive(Debug, Default)]
pub struct Failures(Mutex<VecDeque<Failure>>);

impl Failures {
    /// Consistent after every statement, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, VecDeque<Failure>> {
        lock(&self.0)
    }

    /// Keeps a failure.
    pub fn record(&self, operation: &'static str, ino: u64, name: Option<&str>, error: &Error) {
        let mut failures = self.lock();
        let same = |old: &Failure| {
            old.ino == ino && old.operation == operation && old.name.as_deref() == name
        };
        let times = match failures.iter().position(same) {
            Some(at) => failures.remove(at).map_or(0, |old| old.times),
            None => 0,
        };
        if failures.len() == MOST {
            failures.pop_front();
        }
        failures.push_back(Failure {
            operation,
            ino,
            name: name.map(Into::into),
            at: SystemTime::now(),
            times: times + 1,
            error: error.clone(),
        });
    }

    /// Forgets that this request failed: it has succeeded since.
    pub fn clear(&self, operation: &'static str, ino: u64, name: Option<&str>) {
        let mut failures = self.lock();
        if !failures.is_empty() {
            let same = |old: &Failure| {
                old.ino == ino && old.operation == operation && old.name.as_deref() == name
            };
            failures.retain(|old| !same(old));
        }
    }

    /// The last failure about the inode itself.
    pub fn about(&self, ino: u64) -> Option<Failure> {
        self.find(|failure| failure.ino == ino && failure.name.is_none())
    }

    /// The last failure to look `name` up in the directory `parent`.
    pub fn about_name(&self, parent: u64, name: &str) -> Option<Failure> {
        self.find(|failure| failure.ino == parent && failure.name.as_deref() == Some(name))
    }

    fn find(&self, matches: impl Fn(&Failure) -> bool) -> Option<Failure> {
        self.lock().iter().rev().find(|one| matches(one)).cloned()
    }

    /// The last failures, newest first.
    pub fn latest(&self, most: usize) -> Vec<Failure> {
        self.lock().iter().rev().take(most).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_failure_again_is_counted_and_does_not_push_out_others() {
        let failures = Failures::default();
        failures.record("read", 7, None, &Error::not_found("first"));
        for _ in 0..1000 {
            failures.record("lookup", 1, Some("acme"), &Error::not_found("acme"));
        }
        assert_eq!(failures.latest(10).len(), 2);
        let again = failures.about_name(1, "acme").unwrap();
        assert_eq!(again.times, 1000);
        assert_eq!(failures.about(7).unwrap().times, 1);
        assert!(failures.about(1).is_none());
    }

    #[test]
    fn only_the_last_ones_are_kept_and_a_success_clears_its_own() {
        let failures = Failures::default();
        for ino in 0..2 * MOST as u64 {
            failures.record("read", ino, None, &Error::not_found(ino));
        }
        assert!(failures.about(0).is_none());
        let last = 2 * MOST as u64 - 1;
        assert_eq!(failures.latest(1)[0].ino, last);
        failures.clear("lookup", last, None);
        assert!(failures.about(last).is_some());
        failures.clear("read", last, None);
        assert!(failures.about(last).is_none());
        assert_eq!(failures.latest(MOST).len(), MOST - 1);
    }
}
