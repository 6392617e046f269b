//! A source that is down is left alone. In every order: `tests/prove_schedules`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use musherfs::error::{Error, Result};
use musherfs::manifest::{Document, Entry, Manifest};
use musherfs::reference::{BundleId, Namespace, Selector, Slug, VersionRef};
use musherfs::source::breaker::{BreakerState, FIRST_PAUSE, Guarded};
use musherfs::source::{Deadline, Published, Sink, Source};
use tokio::sync::Notify;
use tokio::time::advance;

/// Answers every question about versions with what the test put there.
struct Scripted {
    answer: Mutex<Result<Vec<Published>>>,
    asked: AtomicUsize,
    /// If set, answers wait for it.
    gate: Mutex<Option<Arc<Notify>>>,
}

impl Scripted {
    fn new(answer: Result<Vec<Published>>) -> Arc<Self> {
        Arc::new(Self {
            answer: Mutex::new(answer),
            asked: AtomicUsize::new(0),
            gate: Mutex::new(None),
        })
    }

    fn say(&self, answer: Result<Vec<Published>>) {
        *self.answer.lock().unwrap() = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn elsewhere<T>() -> Result<T> {
    Err(Error::Internal("not asked in these tests".into()))
}

#[async_trait]
impl Source for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn versions(&self, _: &BundleId, _: Deadline) -> Result<Vec<Published>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let gate = self.gate.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.notified().await;
        }
        self.answer.lock().unwrap().clone()
    }

    async fn resolve(&self, _: &BundleId, _: &Selector, _: Deadline) -> Result<Document> {
        elsewhere()
    }

    async fn manifest(&self, _: &VersionRef, _: Deadline) -> Result<Document> {
        elsewhere()
    }

    async fn blob(&self, _: &Manifest, _: Entry<'_>, _: &mut dyn Sink, _: Deadline) -> Result<()> {
        elsewhere()
    }

    async fn pull(&self, _: &Manifest, _: Deadline) -> Result<Option<Vec<(String, Bytes)>>> {
        elsewhere()
    }

    async fn bundles(&self, _: &Namespace, _: Deadline) -> Result<Vec<Slug>> {
        elsewhere()
    }

    async fn namespaces(&self, _: Deadline) -> Result<Vec<Namespace>> {
        elsewhere()
    }
}

fn down() -> Error {
    Error::Unreachable {
        origin: "scripted".into(),
        reason: "connection refused".into(),
    }
}

fn slow() -> Error {
    Error::timeout("the versions")
}

async fn ask(guarded: &Guarded) -> Result<Vec<Published>> {
    let bundle = "acme/tools".parse().unwrap();
    let deadline = Deadline::after(Duration::from_secs(10));
    guarded.versions(&bundle, deadline).await
}

fn retry_in(guarded: &Guarded) -> Duration {
    match guarded.state() {
        BreakerState::Open { retry_in } => retry_in,
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_everybody_is_answered_at_once() {
    for outage in [down(), slow()] {
        let source = Scripted::new(Err(outage.clone()));
        let guarded = Guarded::new(source.clone());
        assert_eq!(guarded.state(), BreakerState::Closed);
        let first = ask(&guarded).await.unwrap_err();
        assert_eq!(first.to_string(), outage.to_string(), "the error itself");
        for _ in 0..10 {
            let error = ask(&guarded).await.unwrap_err();
            assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        }
        assert_eq!(source.asked(), 1);
        assert_eq!(retry_in(&guarded), FIRST_PAUSE);
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_are_answers() {
    let source = Scripted::new(Err(Error::not_found("x")));
    let guarded = Guarded::new(source.clone());
    for error in [
        Error::not_found("x"),
        Error::Denied {
            what: "x".into(),
            reason: "no".into(),
        },
        Error::Malformed {
            what: "x".into(),
            origin: "y".into(),
            reason: "z".into(),
        },
    ] {
        source.say(Err(error));
        ask(&guarded).await.unwrap_err();
        assert_eq!(guarded.state(), BreakerState::Closed);
    }
    assert_eq!(source.asked(), 3);
}

#[tokio::test(start_paused = true)]
async fn the_pause_doubles_to_its_limit_and_starts_over_after_an_answer() {
    let source = Scripted::new(Err(down()));
    let guarded = Guarded::new(source.clone());
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        ask(&guarded).await.unwrap_err();
        assert_eq!(retry_in(&guarded), Duration::from_secs(seconds));
        advance(Duration::from_secs(seconds)).await;
    }
    assert_eq!(source.asked(), 7);
    source.say(Err(Error::not_found("x")));
    ask(&guarded).await.unwrap_err();
    assert_eq!(
        guarded.state(),
        BreakerState::Closed,
        "a refusal is an answer"
    );
    source.say(Err(down()));
    ask(&guarded).await.unwrap_err();
    assert_eq!(retry_in(&guarded), FIRST_PAUSE);
}

#[tokio::test(start_paused = true)]
async fn only_one_probe_is_sent_and_the_next_takes_over_if_it_is_given_up() {
    let source = Scripted::new(Err(down()));
    let guarded = Arc::new(Guarded::new(source.clone()));
    ask(&guarded).await.unwrap_err();
    advance(FIRST_PAUSE).await;

    let gate = Arc::new(Notify::new());
    *source.gate.lock().unwrap() = Some(gate.clone());
    source.say(Ok(Vec::new()));
    let probe = |guarded: Arc<Guarded>| tokio::spawn(async move { ask(&guarded).await });
    let first = probe(guarded.clone());
    while source.asked() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(guarded.state(), BreakerState::Probing);
    ask(&guarded).await.unwrap_err();
    assert_eq!(source.asked(), 2);

    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    assert_eq!(retry_in(&guarded), Duration::ZERO);
    let second = probe(guarded.clone());
    while source.asked() < 3 {
        tokio::task::yield_now().await;
    }
    gate.notify_one();
    assert!(second.await.unwrap().is_ok());
    assert_eq!(guarded.state(), BreakerState::Closed);
}

#[tokio::test(start_paused = true)]
async fn failures_of_requests_sent_before_the_outage_do_not_lengthen_it() {
    let source = Scripted::new(Err(down()));
    let guarded = Arc::new(Guarded::new(source.clone()));
    let gate = Arc::new(Notify::new());
    *source.gate.lock().unwrap() = Some(gate.clone());
    let asked: Vec<_> = (0..8)
        .map(|_| {
            let guarded = guarded.clone();
            tokio::spawn(async move { ask(&guarded).await })
        })
        .collect();
    while source.asked() < 8 {
        tokio::task::yield_now().await;
    }
    gate.notify_waiters();
    for asked in asked {
        asked.await.unwrap().unwrap_err();
    }
    assert_eq!(retry_in(&guarded), FIRST_PAUSE);
}

#[tokio::test(start_paused = true)]
async fn time_in_our_own_queue_says_nothing_about_the_source() {
    let queued = || Error::Timeout {
        what: "the versions".into(),
        queued: true,
    };
    let source = Scripted::new(Err(queued()));
    let guarded = Guarded::new(source.clone());
    ask(&guarded).await.unwrap_err();
    assert_eq!(guarded.state(), BreakerState::Closed);

    source.say(Err(down()));
    ask(&guarded).await.unwrap_err();
    advance(FIRST_PAUSE).await;
    source.say(Err(queued()));
    ask(&guarded).await.unwrap_err();
    assert_eq!(
        retry_in(&guarded),
        Duration::ZERO,
        "the next request is the probe"
    );
}
