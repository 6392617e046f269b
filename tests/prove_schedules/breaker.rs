//! The circuit breaker: `src/source/breaker.rs`, in every order of requests, outages and time.

#[path = "../../src/source/breaker.rs"]
#[allow(clippy::module_inception, dead_code, unreachable_pub)]
mod breaker;

// What it imports from its parent.
pub(crate) use musherfs::source::{Deadline, Published, Sink, Source};

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde_json::json;
use shuttle::future::{block_on, spawn, yield_now};

use crate::error::{Error, Result};
use crate::explore;
use crate::manifest::{Document, Entry, Manifest};
use crate::prove::Proof;
use crate::reference::{BundleId, Namespace, Selector, Slug, VersionRef};
use crate::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use crate::sync::{advance, between};
use breaker::{BreakerState, FIRST_PAUSE, Guarded, LONGEST_PAUSE};

/// Is down until it is mended, and then stays up.
#[derive(Default)]
struct Scripted {
    is_up: AtomicBool,
    /// From here on there has been an outage that the breaker knows.
    is_known: AtomicBool,
    asked: AtomicUsize,
}

fn unused<T>() -> Result<T> {
    Err(Error::Internal("not asked".into()))
}

/// Lowers it also for a request that is given up.
struct Asking<'a>(&'a AtomicUsize);

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

#[async_trait]
impl Source for Scripted {
    fn name(&self) -> &str {
        "scripted"
    }

    async fn versions(&self, _: &BundleId, _: Deadline) -> Result<Vec<Published>> {
        let others = self.asked.fetch_add(1, SeqCst);
        let _asking = Asking(&self.asked);
        let is_up = self.is_up.load(SeqCst);
        if !is_up && self.is_known.load(SeqCst) {
            assert_eq!(others, 0, "two probes of a source that is down");
        }
        yield_now().await;
        if is_up {
            Ok(Vec::new())
        } else {
            Err(Error::Unreachable {
                origin: "scripted".into(),
                reason: "refused".into(),
            })
        }
    }

    async fn resolve(&self, _: &BundleId, _: &Selector, _: Deadline) -> Result<Document> {
        unused()
    }

    async fn manifest(&self, _: &VersionRef, _: Deadline) -> Result<Document> {
        unused()
    }

    async fn blob(&self, _: &Manifest, _: Entry<'_>, _: &mut dyn Sink, _: Deadline) -> Result<()> {
        unused()
    }

    async fn pull(&self, _: &Manifest, _: Deadline) -> Result<Option<Vec<(String, Bytes)>>> {
        unused()
    }

    async fn bundles(&self, _: &Namespace, _: Deadline) -> Result<Vec<Slug>> {
        unused()
    }

    async fn namespaces(&self, _: Deadline) -> Result<Vec<Namespace>> {
        unused()
    }
}

async fn ask(guarded: Arc<Guarded>) -> Result<Vec<Published>> {
    let deadline = Deadline::after(Duration::from_secs(10));
    guarded
        .versions(&"acme/kit".parse().unwrap(), deadline)
        .await
}

#[test]
fn whatever_the_order_one_probe_is_sent_and_a_source_that_is_back_is_asked() {
    let proof = Proof::start(
        "a source that is down is asked by one probe at a time, and used again when it is back",
        "the breaker's own code under a scheduler; requests fail and are given up while time passes",
    );
    let schedules = proof.pick(10_000, 200_000);
    explore(&proof, schedules, || {
        let source = Arc::new(Scripted::default());
        let guarded = Arc::new(Guarded::new(source.clone()));
        block_on(async move {
            // Sent before the outage is known: they may be many.
            let early = [(); 2].map(|()| spawn(ask(guarded.clone())));
            for request in early {
                request.await.unwrap().unwrap_err();
            }
            source.is_known.store(true, SeqCst);
            let time = spawn(async {
                for _ in 0..3 {
                    advance(FIRST_PAUSE);
                    yield_now().await;
                }
            });
            let requests = [(); 3].map(|()| spawn(ask(guarded.clone())));
            let quitter = spawn(ask(guarded.clone()));
            between();
            quitter.abort();
            for request in requests {
                request.await.unwrap().unwrap_err();
            }
            time.await.unwrap();
            let _ = quitter.await;
            assert_ne!(guarded.state(), BreakerState::Probing, "nobody is asking");
            assert_ne!(guarded.state(), BreakerState::Closed, "it is down");

            // At most one pause later it is asked, and whoever asks then closes the breaker.
            source.is_up.store(true, SeqCst);
            advance(LONGEST_PAUSE);
            let late = [(); 2].map(|()| spawn(ask(guarded.clone())));
            let mut answered = 0;
            for request in late {
                answered += usize::from(request.await.unwrap().is_ok());
            }
            assert!(answered >= 1, "the probe is answered");
            assert_eq!(guarded.state(), BreakerState::Closed);
            assert!(ask(guarded.clone()).await.is_ok());
        });
    });
    proof.held(json!({"schedules": schedules}));
}
