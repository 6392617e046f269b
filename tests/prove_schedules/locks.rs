//! One download a digest between processes: `src/store/locks.rs`, whose files come and go with their
//! holders, in every order of those who take one over.

#[path = "../../src/store/locks.rs"]
#[allow(clippy::module_inception, dead_code, unreachable_pub)]
mod locks;

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use shuttle::future::{block_on, spawn, yield_now};

use crate::care::Machine;
use crate::digest::Digest;
use crate::explore;
use crate::prove::Proof;
use crate::sync::atomic::{AtomicBool, Ordering::SeqCst};
use crate::sync::{Deadline, given_up};
use locks::Locks;

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().is_file());
    files.map(walkdir::DirEntry::into_path).collect()
}

/// A process that takes the lock twice, or does without what it does not get in time.
async fn process(state: std::path::PathBuf, is_held: Arc<AtomicBool>) {
    let digest = Digest::of(b"wanted by all");
    for _ in 0..2 {
        let locks = Locks::new(Some(&state), Path::new("/nowhere"));
        let soon = Deadline::default();
        let Some(held) = locks.acquire(digest, soon.clone()).await else {
            assert!(soon.has_passed(), "locks can be had here");
            continue;
        };
        assert!(!is_held.swap(true, SeqCst), "two hold it");
        yield_now().await;
        is_held.store(false, SeqCst);
        drop(held);
    }
}

#[test]
fn whatever_the_order_one_process_holds_a_lock_and_the_next_takes_over() {
    let proof = Proof::start(
        "one download a digest between processes: one holds the lock, the next takes over",
        "the locks' own code under a scheduler; lock files are removed while others open them, and \
         some wait no longer",
    );
    let schedules = proof.pick(10_000, 100_000);
    explore(&proof, schedules, || {
        let machine = Machine::new();
        let state = machine.state();
        let before = given_up();
        block_on(async {
            let is_held = Arc::<AtomicBool>::default();
            let start = || spawn(process(state.clone(), Arc::clone(&is_held)));
            let processes = [(); 3].map(|()| start());
            // One that only waits for it disturbs nobody.
            let locks = Locks::new(Some(&state), Path::new("/nowhere"));
            let soon = Deadline::default();
            locks.released(Digest::of(b"wanted by all"), soon).await;
            for process in processes {
                process.await.unwrap();
            }
        });
        // Whoever makes the file while somebody looks at it, and has no time to try again, leaves it as
        // the killed do: to the next.
        let left = files(&state);
        assert!(
            left.is_empty() || given_up() > before,
            "no lock stays behind"
        );
        let locks = Locks::new(Some(&state), Path::new("/nowhere"));
        let digest = Digest::of(b"wanted by all");
        let next = block_on(locks.acquire(digest, Deadline::default()));
        drop(next.expect("nobody has it"));
        assert!(files(&state).is_empty(), "it is gone with the next");
    });
    assert!(given_up() > 0, "everybody always got the lock");
    proof.held(json!({"schedules": schedules, "locks not had in time": given_up()}));
}
