//! A source that is down is left alone for a moment.
//!
//! ```text
//! Closed ──outage──► Open (1 s, doubling to 30 s) ──time──► one probe ──answer──► Closed
//!                      ▲                                       │
//!                      └──────────────── outage ───────────────┘
//! ```
//!
//! While it is open everybody gets the last outage's error at once, so that readers of names and
//! files that other sources have, or the cache, do not wait for a dead one. A refusal (404, 401,
//! malformed) is an answer: the source is up. A passed deadline is an outage, whoever set it: a
//! source that is too slow for its callers is as good as down, unless something large is just coming
//! from it ([`Source::is_sending`]) or the time went by in our own queue. Names and content have a
//! circuit each, because often only content comes from elsewhere and is stuck. Of a source that is not
//! trusted ([`Guarded::strict`]), wrong bytes and answers without sense are outages too, and nothing
//! but our own queue excuses that it is late. Each change of the state of both together is logged once.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tracing::{debug, info, warn};

use super::{Deadline, Published, Sink, Source};
use crate::error::{Error, Result};
use crate::manifest::{Document, Entry, Manifest};
use crate::reference::{BundleId, Namespace, Selector, Slug, VersionRef};
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{Instant, Mutex, MutexGuard, lock};

/// How long a source is left alone after its first outage; doubles with each failed probe.
pub const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest time that a source is left alone.
pub const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Whether a guarded source is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// It is.
    Closed,
    /// It is not, until the time is over.
    Open {
        /// Zero if the next request will be the probe.
        retry_in: Duration,
    },
    /// One request is asking whether it is back; the others are answered at once.
    Probing,
}

enum Inner {
    Closed,
    Open {
        until: Instant,
        pause: Duration,
        error: Error,
    },
    Probing {
        pause: Duration,
        error: Error,
    },
}

/// Whether one kind of question is asked.
struct Circuit {
    /// What is asked for.
    kind: &'static str,
    inner: Mutex<Inner>,
}

impl Circuit {
    fn closed(kind: &'static str) -> Self {
        Self {
            kind,
            inner: Mutex::new(Inner::Closed),
        }
    }

    /// Every assignment leaves a consistent state, so a poisoned lock is still good.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn state(&self) -> BreakerState {
        match &*self.lock() {
            Inner::Closed => BreakerState::Closed,
            Inner::Open { until, .. } => BreakerState::Open {
                retry_in: until.saturating_duration_since(Instant::now()),
            },
            Inner::Probing { .. } => BreakerState::Probing,
        }
    }

    fn last_error(&self) -> Option<Error> {
        match &*self.lock() {
            Inner::Closed => None,
            Inner::Open { error, .. } | Inner::Probing { error, .. } => Some(error.clone()),
        }
    }

    /// Lets a request through, as the probe if it is one, or refuses it.
    fn admit(&self) -> Result<Option<Probe<'_>>> {
        let mut inner = self.lock();
        match &*inner {
            Inner::Closed => Ok(None),
            Inner::Open {
                until,
                pause,
                error,
            } if *until <= Instant::now() => {
                *inner = Inner::Probing {
                    pause: *pause,
                    error: error.clone(),
                };
                Ok(Some(Probe {
                    circuit: self,
                    is_over: false,
                }))
            }
            Inner::Open { error, .. } | Inner::Probing { error, .. } => Err(error.clone()),
        }
    }
}

/// A source behind a circuit breaker.
pub struct Guarded {
    source: Arc<dyn Source>,
    names: Circuit,
    content: Circuit,
    /// How many of them are not closed; changed while the circuit's lock is held.
    broken: AtomicUsize,
    strict: bool,
}

/// Hands the probe on when whoever sent it gives up waiting.
struct Probe<'a> {
    circuit: &'a Circuit,
    is_over: bool,
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        let mut inner = self.circuit.lock();
        if let Inner::Probing { pause, error } = &*inner {
            *inner = Inner::Open {
                until: Instant::now(),
                pause: *pause,
                error: error.clone(),
            };
        }
    }
}

impl Guarded {
    /// Guards `inner`, which is taken to be up.
    pub fn new(inner: Arc<dyn Source>) -> Self {
        Self {
            source: inner,
            names: Circuit::closed("names"),
            content: Circuit::closed("content"),
            broken: AtomicUsize::new(0),
            strict: false,
        }
    }

    /// Guards a source that is not trusted, and that others stand in for.
    pub fn strict(inner: Arc<dyn Source>) -> Self {
        Self {
            strict: true,
            ..Self::new(inner)
        }
    }

    /// What the next request would meet: for names, or for content if only that is stuck.
    pub fn state(&self) -> BreakerState {
        match self.names.state() {
            BreakerState::Closed => self.content.state(),
            state => state,
        }
    }

    /// Why the source is left alone, if it is.
    pub fn last_error(&self) -> Option<Error> {
        let of_names = self.names.last_error();
        of_names.or_else(|| self.content.last_error())
    }

    /// What others are told while the source is left alone, if `error` is a reason to.
    fn outage(&self, error: &Error) -> Option<Error> {
        match error {
            Error::Unreachable { .. } => Some(error.clone()),
            Error::Timeout { .. } if !self.strict && self.source.is_sending() => None,
            // The others' own time has not passed: for them it is unreachable.
            Error::Timeout { .. } => Some(self.unreachable(error)),
            Error::WrongBytes { .. } | Error::Malformed { .. } if self.strict => {
                Some(self.unreachable(error))
            }
            _ => None,
        }
    }

    fn unreachable(&self, error: &Error) -> Error {
        Error::Unreachable {
            origin: self.source.name().to_owned(),
            reason: error.to_string(),
        }
    }

    /// Does `work`, which asks the guarded source for names in another way than as a [`Source`], if
    /// the source is not left alone.
    ///
    /// # Errors
    ///
    /// Those of `work`, or the last outage's.
    pub(super) async fn guard<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.guard_on(&self.names, work).await
    }

    async fn guard_content<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        self.guard_on(&self.content, work).await
    }

    async fn guard_on<T>(
        &self,
        circuit: &Circuit,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let mut probe = circuit.admit()?;
        let result = work.await;
        if matches!(result, Err(Error::Timeout { queued: true, .. })) {
            // Nothing is known now that was not before; the next request is the probe, if this was.
            return result;
        }
        let is_probe = probe.is_some();
        if let Some(probe) = &mut probe {
            probe.is_over = true;
        }
        let source = self.source.name();
        let asked_for = circuit.kind;
        let outage = result.as_ref().err().and_then(|error| self.outage(error));
        let mut inner = circuit.lock();
        match outage {
            None => {
                // Of a request sent before the outage as well: whoever answers is up.
                if !matches!(*inner, Inner::Closed) {
                    *inner = Inner::Closed;
                    let is_back = self.broken.fetch_sub(1, Ordering::SeqCst) == 1;
                    drop(inner);
                    if is_back {
                        info!(source, "the source is back");
                    } else {
                        debug!(source, asked_for, "the source is partly back");
                    }
                }
            }
            Some(error) => {
                let pause = match &*inner {
                    Inner::Closed => FIRST_PAUSE,
                    Inner::Probing { pause, .. } if is_probe => (*pause * 2).min(LONGEST_PAUSE),
                    // Sent before the outage was known: nothing new.
                    Inner::Open { .. } | Inner::Probing { .. } => return result,
                };
                let is_new = matches!(*inner, Inner::Closed);
                *inner = Inner::Open {
                    until: Instant::now() + pause,
                    pause,
                    error: error.clone(),
                };
                let is_down = is_new && self.broken.fetch_add(1, Ordering::SeqCst) == 0;
                drop(inner);
                if is_down {
                    warn!(source, asked_for, %error, "the source is down");
                } else {
                    debug!(source, asked_for, %error, ?pause, "the source is still down");
                }
            }
        }
        result
    }
}

#[async_trait]
impl Source for Guarded {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn notice(&self) -> Option<String> {
        self.source.notice()
    }

    fn refusal(&self, namespace: &Namespace) -> Option<String> {
        self.source.refusal(namespace)
    }

    fn tells_namespaces(&self) -> bool {
        self.source.tells_namespaces()
    }

    fn is_sending(&self) -> bool {
        self.source.is_sending()
    }

    fn pulls(&self, manifest: &Manifest) -> bool {
        self.source.pulls(manifest)
    }

    async fn resolve(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Document> {
        self.guard(self.source.resolve(bundle, selector, deadline))
            .await
    }

    async fn manifest(&self, version: &VersionRef, deadline: Deadline) -> Result<Document> {
        self.guard(self.source.manifest(version, deadline)).await
    }

    async fn blob(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        self.guard_content(self.source.blob(manifest, file, sink, deadline))
            .await
    }

    async fn pull(
        &self,
        manifest: &Manifest,
        deadline: Deadline,
    ) -> Result<Option<Vec<(String, Bytes)>>> {
        self.guard_content(self.source.pull(manifest, deadline))
            .await
    }

    async fn versions(&self, bundle: &BundleId, deadline: Deadline) -> Result<Vec<Published>> {
        self.guard(self.source.versions(bundle, deadline)).await
    }

    async fn bundles(&self, namespace: &Namespace, deadline: Deadline) -> Result<Vec<Slug>> {
        self.guard(self.source.bundles(namespace, deadline)).await
    }

    async fn namespaces(&self, deadline: Deadline) -> Result<Vec<Namespace>> {
        self.guard(self.source.namespaces(deadline)).await
    }
}
