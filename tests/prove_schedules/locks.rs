//! One download a digest between processes: `src/store/locks.rs`, whose files come and go with their
//! holders, in every order of those who take one over.

#[path = "../../src/store/locks.rs"]
#[allow(clippy::module_inception, dead_code, unreachable_pub)]
mod locks;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use musherfs::source::Deadline;
use shuttle::future::{block_on, spawn, yield_now};

use crate::care::Machine;
use crate::digest::Digest;
use crate::explore;
use crate::prove::Proof;
use crate::sync::atomic::{AtomicBool, Ordering::SeqCst};
use locks::Locks;

fn files(dir: &Path) -> Vec<std::path::PathBuf> {
    let entries = walkdir::WalkDir::new(dir).into_iter().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().is_file());
    files.map(walkdir::DirEntry::into_path).collect()
}

/// A process that takes the lock twice.
async fn process(state: std::path::PathBuf, is_held: Arc<AtomicBool>) {
    let digest = Digest::of(b"wanted by all");
    for _ in 0..2 {
        let locks = Locks::new(Some(&state), Path::new("/nowhere"));
        let soon = Deadline::after(Duration::from_secs(600));
        let held = locks.acquire(digest, soon).await.unwrap();
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
        "the locks' own code under a scheduler; lock files are removed while others open them",
    );
    let schedules = proof.pick(10_000, 100_000);
    explore(proof, schedules, || {
        let machine = Machine::new();
        let state = machine.state();
        block_on(async {
            let is_held = Arc::<AtomicBool>::default();
            let start = || spawn(process(state.clone(), Arc::clone(&is_held)));
            let processes = [(); 3].map(|()| start());
            // One that only waits for it disturbs nobody.
            let locks = Locks::new(Some(&state), Path::new("/nowhere"));
            let soon = Deadline::after(Duration::from_secs(600));
            locks.released(Digest::of(b"wanted by all"), soon).await;
            assert!(!soon.is_over());
            for process in processes {
                process.await.unwrap();
            }
        });
        assert!(files(&state).is_empty(), "no lock stays behind");
    });
}
