//! Proof that a mount answers as a model of it does: random sequences of everything that happens to
//! a registry, a cache and a mount, through a real kernel mount; each answer is compared with what a
//! pure model allows.
//!
//! * [`steps`]: what can happen, and how it is chosen. A failing sequence is shortened by proptest.
//! * [`world`]: the registry, whose past is remembered, because a mount may be behind it.
//! * [`model`]: what a mount may answer, given the world's past and what it answered before.
//! * [`rig`]: does the steps and compares.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

#[path = "../keeper_harness/mod.rs"]
mod keeper_harness;
mod model;
mod rig;
mod steps;
#[path = "../support/mod.rs"]
mod support;
mod world;

use std::cell::RefCell;
use std::time::Duration;

use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use serde_json::json;

use keeper_harness::house::can_mount;
use rig::{Rig, Tally};
use support::prove::Proof;

#[test]
fn a_mount_answers_as_its_model_does() {
    if !can_mount() {
        return;
    }
    let proof = Proof::start(
        "every answer is what the semantics say",
        "random publishing, tags moving, yanks, damage to the cache's blobs, manifests, sidecars and \
         refs, outages of all kinds, their ends, kills and remounts; stat, read, list, readlink, \
         getxattr and writes through a real mount, each answer (content, names, attributes, errno, \
         in time) compared with a pure model",
    );
    let (cases, length) = proof.pick((3, 120), (260, 500));
    // What the mount may take, and beyond that a second and whatever a machine takes that does other
    // things, too: the short form runs beside other tests.
    let deadline = proof.pick(Duration::from_secs(5), Duration::from_secs(3));
    let slack = proof.pick(Duration::from_secs(20), Duration::from_secs(3));
    let mut random = proof.random();
    let mut seed = [0; 32];
    for bytes in seed.chunks_mut(8) {
        bytes.copy_from_slice(&random.next().to_le_bytes());
    }
    let config = Config {
        cases,
        failure_persistence: None,
        // Each takes a second or more.
        max_shrink_iters: proof.pick(60, 200),
        ..Config::default()
    };
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let total = RefCell::new(Tally::default());
    let strategy = proptest::collection::vec(steps::step(), length);
    let result = runner.run(&strategy, |steps| {
        let mut rig = Rig::new(deadline, slack);
        for (number, step) in steps.iter().enumerate() {
            rig.step(step).map_err(|difference| {
                let about = format!("step {number}, {step:?}: {difference}");
                eprintln!("{about}\nthe daemon says: {}", rig.failures());
                TestCaseError::fail(about)
            })?;
        }
        let mut total = total.borrow_mut();
        total.add(&rig.end());
        // Every now and then, because the long form takes its time.
        if total.steps % (25 * length as u64) == 0 {
            eprintln!("{} steps", total.steps);
        }
        Ok(())
    });
    match result {
        Ok(()) => {}
        Err(TestError::Fail(why, steps)) => panic!("{why}\nshortest sequence: {steps:#?}"),
        Err(TestError::Abort(why)) => panic!("{why}"),
    }
    let total = total.into_inner();
    assert!(total.answers >= proof.pick(200, 100_000), "{total:?}");
    if proof.is_long() {
        let events = [
            total.faulty,
            total.faults,
            total.recoveries,
            total.damages,
            total.mounts,
            total.kills,
        ];
        assert!(events.iter().all(|count| *count > 0), "{total:?}");
    }
    proof.held(json!({
        "steps": total.steps,
        "answers compared": total.answers,
        "of them under faults and right after": total.faulty,
        "faults": total.faults,
        "recoveries without a remount": total.recoveries,
        "damaged files": total.damages,
        "remounts": total.mounts,
        "kills": total.kills,
        "divergences": 0,
        "ms the slowest answer": total.slowest_ms,
        "ms deadline": u64::try_from(deadline.as_millis()).unwrap(),
    }));
}
