//! Many callers, one computation. In every order: `tests/prove_schedules`.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use musherfs::single_flight::{Lost, SingleFlight};
use tokio::sync::Semaphore;

#[tokio::test]
async fn concurrent_callers_share_one_computation() {
    let flights = Arc::new(SingleFlight::<u8, usize>::default());
    let runs = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(Semaphore::new(0));
    let callers: Vec<_> = (0..64)
        .map(|_| {
            let (flights, runs, gate) = (flights.clone(), runs.clone(), gate.clone());
            tokio::spawn(async move {
                flights
                    .run(1, || async move {
                        let _permit = gate.acquire().await;
                        runs.fetch_add(1, Ordering::SeqCst)
                    })
                    .await
            })
        })
        .collect();
    while flights.joined() < 63 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1);
    for caller in callers {
        assert_eq!(caller.await.unwrap(), Ok(0));
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    assert!(!flights.is_running(&1));
}

#[tokio::test]
async fn a_caller_that_gives_up_cancels_nobody() {
    let flights = Arc::new(SingleFlight::<u8, u8>::default());
    let gate = Arc::new(Semaphore::new(0));
    let first = {
        let (flights, gate) = (flights.clone(), gate.clone());
        tokio::spawn(async move {
            flights
                .run(1, || async move {
                    let _permit = gate.acquire().await;
                    7
                })
                .await
        })
    };
    while !flights.is_running(&1) {
        tokio::task::yield_now().await;
    }
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    let second = {
        let flights = flights.clone();
        tokio::spawn(async move { flights.run(1, || async { 8 }).await })
    };
    while flights.joined() < 1 {
        tokio::task::yield_now().await;
    }
    gate.add_permits(1);
    assert_eq!(second.await.unwrap(), Ok(7));
}

#[tokio::test]
async fn a_panic_is_an_answer_and_the_next_call_tries_again() {
    let flights = SingleFlight::<u8, u8>::default();
    let lost = flights.run(1, || async { panic!("on purpose") }).await;
    assert_eq!(lost, Err(Lost));
    assert_eq!(flights.run(1, || async { 2 }).await, Ok(2));
}
