//! A request from the question to its one answer: at once, or in a task that its deadline ends.
//!
//! Everything below keeps the deadline by itself. Whatever is lost there all the same is answered
//! here a moment later, and counted: a reader never waits for somebody who has forgotten it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use fuser::{Errno, INodeNo, Request};
use tracing::{Instrument as _, debug, debug_span, warn};

use super::{Fuse, errno};
use crate::error::Error;
use crate::fs::Answer;
use crate::fs::in_flight::Waiting;
use crate::metrics::Counter;
use crate::metrics::requests::{Operation, Outcome};

/// How far beyond its deadline a request is answered at the latest.
const GRACE: Duration = Duration::from_millis(500);

/// A request that may have to wait.
pub(super) struct Asked<'a> {
    operation: Operation,
    ino: u64,
    name: Option<&'a str>,
    pid: u32,
    since: Instant,
}

impl<'a> Asked<'a> {
    pub(super) fn new(operation: Operation, request: &Request, ino: INodeNo) -> Self {
        Self {
            operation,
            ino: ino.0,
            name: None,
            pid: request.pid(),
            since: Instant::now(),
        }
    }

    pub(super) fn named(self, name: &'a str) -> Self {
        Self {
            name: Some(name),
            ..self
        }
    }

    fn waiting(&self) -> Waiting {
        Waiting {
            operation: self.operation.label(),
            ino: self.ino,
            name: self.name.map(Into::into),
            pid: self.pid,
            since: self.since,
        }
    }
}

impl Fuse {
    /// Answers at once, or in a task.
    pub(super) fn answer<T: Send + 'static>(
        &self,
        asked: Asked<'_>,
        answer: impl FnOnce() -> Answer<T>,
        reply: impl FnOnce(&Self, Result<T, Errno>) + Send + 'static,
    ) {
        // The layers below spawn tasks of their own.
        let _runtime = self.runtime.enter();
        match unharmed(answer) {
            Answer::Now(answer) => reply(self, self.settle(&asked, answer)),
            Answer::Later(answer) => {
                let edge = self.clone();
                let waiting = asked.waiting();
                let asked_at = asked.since;
                let guard = self.fs.in_flight().enter(waiting.clone());
                let (kind, operation) = (asked.operation, asked.operation.label());
                let span = debug_span!("request", operation, ino = waiting.ino);
                let most = self.most(kind);
                let task = async move {
                    let answer = tokio::time::timeout(most, answer).await;
                    let asked = Asked {
                        operation: kind,
                        ino: waiting.ino,
                        name: waiting.name.as_deref(),
                        pid: waiting.pid,
                        since: asked_at,
                    };
                    let answer = answer.unwrap_or_else(|_| Err(edge.overdue(&asked, most)));
                    let answer = edge.settle(&asked, answer);
                    reply(&edge, answer);
                    drop(guard);
                };
                self.runtime.spawn(task.instrument(span));
            }
        }
    }

    /// How long a request may take whatever happens: its deadline, which everything below keeps by
    /// itself, and a moment.
    fn most(&self, operation: Operation) -> Duration {
        let deadline = match operation {
            Operation::Read => self.fs.content_timeout(),
            _ => self.fs.metadata_timeout(),
        };
        deadline + GRACE
    }

    /// Somebody below has lost a request: it is answered all the same, and that it came to this is
    /// counted.
    fn overdue(&self, asked: &Asked<'_>, most: Duration) -> Error {
        self.count(Counter::Overdue);
        let operation = asked.operation.label();
        warn!(
            operation,
            ino = asked.ino,
            ?most,
            "a request outlived its deadline"
        );
        Error::timeout(format_args!("{operation} of inode {:#x}", asked.ino))
    }

    /// Counts an answer.
    pub(super) fn settle<T>(
        &self,
        asked: &Asked<'_>,
        answer: Result<T, Error>,
    ) -> Result<T, Errno> {
        match answer {
            Ok(answer) => {
                let requests = self.fs.metrics().requests();
                requests.observe(asked.operation, Outcome::Ok, asked.since.elapsed());
                let operation = asked.operation.label();
                self.fs.failures().clear(operation, asked.ino, asked.name);
                Ok(answer)
            }
            Err(error) => Err(self.failed(asked, &error)),
        }
    }

    /// Counts, keeps and logs a failure. What the user is to see of a failing source is logged by
    /// whoever notices that it changed its state, once.
    pub(super) fn failed(&self, asked: &Asked<'_>, error: &Error) -> Errno {
        let operation = asked.operation.label();
        debug!(operation, ino = asked.ino, %error, "request failed");
        let errno = errno(error);
        let requests = self.fs.metrics().requests();
        requests.observe(asked.operation, outcome(errno), asked.since.elapsed());
        let failures = self.fs.failures();
        failures.record(operation, asked.ino, asked.name, error);
        if errno.code() != libc::ENOENT {
            self.count(Counter::Failed);
        }
        errno
    }
}

/// The answer, or that there is none because of a mistake in this program: a FUSE thread that panics is
/// one fewer from then on.
pub(super) fn unharmed<T>(answer: impl FnOnce() -> Answer<T>) -> Answer<T> {
    catch_unwind(AssertUnwindSafe(answer)).unwrap_or_else(|_| {
        let problem = "a request panicked; the log has where".to_owned();
        Answer::Now(Err(Error::Internal(problem)))
    })
}

/// What the counters call an error number.
fn outcome(errno: Errno) -> Outcome {
    match errno.code() {
        libc::ENOENT => Outcome::Absent,
        libc::EACCES => Outcome::Denied,
        libc::ETIMEDOUT => Outcome::TimedOut,
        libc::EHOSTUNREACH => Outcome::Unreachable,
        _ => Outcome::Damaged,
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use tokio::runtime::Handle;
    use tokio::sync::oneshot;

    use super::*;
    use crate::cache::Cache;
    use crate::fs::{self, Fs};
    use crate::metrics::Metrics;
    use crate::reference::HostId;
    use crate::resolve::{self, Resolver};
    use crate::store::journal::Journal;
    use crate::store::{self, Policy, Store};

    fn edge(cache: &Path, timeout: Duration) -> Fuse {
        let host: HostId = "api.musher.dev".parse().unwrap();
        let cache = Arc::new(Cache::new(cache.to_owned()));
        let (metrics, journal) = (Arc::new(Metrics::default()), Arc::new(Journal::in_memory()));
        let resolver = Resolver::new(resolve::Settings {
            host: host.clone(),
            cache: Arc::clone(&cache),
            sources: Vec::new(),
            namespaces: Vec::new(),
            local_packs: false,
            respect_removal: false,
            timeout,
            metrics: Arc::clone(&metrics),
        });
        let store = Store::new(store::Settings {
            host,
            cache,
            sources: Vec::new(),
            journal: Arc::clone(&journal),
            state_dir: None,
            policy: Policy {
                metadata_timeout: timeout,
                content_timeout: timeout,
                ..Policy::default()
            },
            metrics: Arc::clone(&metrics),
        });
        let fs = Fs::new(fs::Settings {
            resolver,
            store,
            journal,
            user_xattr: false,
            metrics,
        });
        Fuse::new(fs, Handle::current(), (0, 0))
    }

    #[tokio::test]
    async fn a_request_that_panics_is_an_error_and_the_thread_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let edge = edge(dir.path(), Duration::from_secs(10));
        let asked = Asked {
            operation: Operation::Lookup,
            ino: 1,
            name: None,
            pid: 0,
            since: Instant::now(),
        };
        let (sender, mut answered) = oneshot::channel();
        edge.answer(
            asked,
            || -> Answer<()> { panic!("on purpose") },
            move |_, answer| assert!(sender.send(answer).is_ok()),
        );
        let answer = answered.try_recv().unwrap();
        assert_eq!(answer.unwrap_err().code(), libc::EIO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_that_was_lost_below_is_answered_and_counted_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let edge = edge(dir.path(), Duration::from_secs(10));
        for operation in [Operation::Lookup, Operation::Read] {
            let (sender, answered) = oneshot::channel();
            let started = tokio::time::Instant::now();
            edge.answer(
                Asked {
                    operation,
                    ino: 1,
                    name: None,
                    pid: 0,
                    since: Instant::now(),
                },
                || Answer::<()>::Later(Box::pin(std::future::pending())),
                move |_, answer| assert!(sender.send(answer).is_ok()),
            );
            let answer = answered.await.unwrap();
            assert_eq!(answer.unwrap_err().code(), libc::ETIMEDOUT);
            assert_eq!(started.elapsed(), Duration::from_secs(10) + GRACE);
        }
        assert_eq!(edge.fs.metrics().get(Counter::Overdue), 2);
    }
}
