//! What meets in memory and in locked files, in thousands of orders that a real machine would show
//! once a year: `single_flight`, the locks that do the same between processes, the circuit breaker,
//! the reservations of the quota, and daemons that take over from each other.
//!
//! It is the program's own code: the files below `src/` are compiled a second time here, where
//! `crate::sync` is not the standard library's but [shuttle's](https://docs.rs/shuttle). There is
//! one thread, and at every lock, wait and file operation the seed decides who goes on. A deadlock,
//! a waiter that nobody wakes, and a panic in any of the tasks fail the test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod breaker;
mod care;
mod flights;
mod locks;
#[path = "../support/prove.rs"]
#[allow(dead_code)]
mod prove;
#[path = "../../src/single_flight.rs"]
#[allow(dead_code, unreachable_pub)]
mod single_flight;
#[allow(dead_code, unreachable_pub)]
mod sync;
mod takeover;

// What the compiled files import besides.
use musherfs::{cache, digest, error, manifest, reference};
mod source {
    pub(crate) use crate::sync::Deadline;
}

use prove::Proof;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner};

/// Lets `scenario` happen in so many orders: half of them chosen at random at every step, half with
/// few changes at unexpected places, which is how rare mistakes are found.
fn explore(proof: &Proof, schedules: usize, scenario: impl Fn() + Send + Sync + 'static) {
    let scenario = std::sync::Arc::new(scenario);
    let mut config = Config::new();
    // The seed repeats it.
    config.failure_persistence = FailurePersistence::None;
    let half = schedules / 2;
    let again = std::sync::Arc::clone(&scenario);
    let random = RandomScheduler::new_from_seed(proof.seed, half);
    let mut ran = Runner::new(random, config.clone()).run(move || again());
    let few = PctScheduler::new_from_seed(proof.seed, 3, schedules - half);
    ran += Runner::new(few, config).run(move || scenario());
    assert_eq!(ran, schedules);
}
