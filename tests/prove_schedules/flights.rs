//! One computation a key, in every order of its callers.

use std::sync::Arc;

use serde_json::json;
use shuttle::future::{block_on, spawn, yield_now};

use crate::explore;
use crate::prove::Proof;
use crate::single_flight::SingleFlight;
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use crate::sync::between;

/// Counts its own runs, and complains when two run at a time.
#[derive(Default)]
struct Work {
    is_running: AtomicBool,
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Work {
    async fn run(self: Arc<Self>) -> usize {
        assert!(!self.is_running.swap(true, SeqCst), "two at a time");
        let number = self.begun.fetch_add(1, SeqCst);
        yield_now().await;
        self.is_running.store(false, SeqCst);
        self.ended.fetch_add(1, SeqCst);
        number
    }
}

/// Asks, and says what is wrong with the answer.
async fn ask(flights: Arc<SingleFlight<u8, usize>>, work: Arc<Work>) {
    let work_again = Arc::clone(&work);
    let mut seen = None;
    for _ in 0..2 {
        let over = work.ended.load(SeqCst);
        let work = Arc::clone(&work_again);
        let number = flights.run(1, || work.run()).await.unwrap();
        // The last of those that were over may not have left the map yet: its result was not out.
        assert!(number + 1 >= over, "an answer from before the question");
        assert!(
            Some(number) > seen,
            "an answer that was seen is given again"
        );
        seen = Some(number);
    }
}

#[test]
fn whatever_the_order_one_computes_all_are_answered_and_nothing_is_remembered() {
    let proof = Proof::start(
        "many waiters, one download: none is forgotten, none gets an old answer",
        "single_flight's own code under a scheduler; callers join, give up and ask again",
    );
    let schedules = proof.pick(10_000, 200_000);
    explore(&proof, schedules, || {
        let flights = Arc::new(SingleFlight::<u8, usize>::default());
        let work = Arc::new(Work::default());
        block_on(async move {
            let callers: Vec<_> = (0..3)
                .map(|_| spawn(ask(Arc::clone(&flights), Arc::clone(&work))))
                .collect();
            let quitter = spawn(ask(Arc::clone(&flights), Arc::clone(&work)));
            between();
            quitter.abort();
            for caller in callers {
                caller.await.unwrap();
            }
            // Also that of a caller who gave up comes to its end.
            while flights.is_running(&1) {
                yield_now().await;
            }
            let before = work.begun.load(SeqCst);
            let number = flights.run(1, || Arc::clone(&work).run()).await.unwrap();
            assert_eq!(number, before, "a question after all answers is a new one");
        });
    });
    proof.held(json!({"schedules": schedules}));
}
