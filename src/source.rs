//! Where bundles come from: one trait for every kind of registry.
//!
//! A source answers questions; it decides nothing about caching, freshness or fallback between
//! sources (see `resolve` and `store`). Its answers are not trusted: whoever asks compares names,
//! digests and sizes. Every call ends within its [`Deadline`], retries included.

pub mod api;
pub mod breaker;
pub mod http;
pub mod layout;
pub mod mirror;
pub mod oci;

use std::hash::Hash;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::manifest::{Document, Entry, Manifest, State};
use crate::metrics::{Counter, Metrics};
use crate::reference::{BundleId, Namespace, Selector, Slug, Version, VersionRef};
use crate::single_flight::SingleFlight;

/// When an answer is no longer of use. Copied along from the request that wants it, so that
/// queueing, connecting and retrying share one budget.
#[derive(Debug, Clone, Copy)]
pub struct Deadline(Instant);

impl Deadline {
    /// A deadline `budget` from now.
    pub fn after(budget: Duration) -> Self {
        Self(Instant::now() + budget)
    }

    /// How much of the budget is left; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// What the first of `parties` may use who are asked one after the other, so that one that is
    /// stuck leaves time for the next.
    pub fn share(self, parties: usize) -> Self {
        let parties = u32::try_from(parties.max(1)).unwrap_or(u32::MAX);
        Self::after(self.remaining() / parties)
    }

    /// Whether the deadline has passed.
    pub fn is_over(self) -> bool {
        self.remaining().is_zero()
    }

    /// Waits for `work`, but no longer than the deadline.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] about `what`, or the error of `work`.
    pub async fn run<T>(
        self,
        what: impl ToString,
        work: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        tokio::time::timeout_at(self.0, work)
            .await
            .unwrap_or_else(|_| Err(Error::timeout(what)))
    }

    /// Waits for the one computation for `key`, starting it if it is not running, but no longer than
    /// the deadline. Counts those who wait for somebody else's computation.
    ///
    /// A computation has a budget of its own, which may end while somebody who joined it late has
    /// time left: then it is started again.
    ///
    /// # Errors
    ///
    /// [`Error::Timeout`] about `what`, or the error of the computation.
    pub async fn join<K, V, F>(
        self,
        flights: &SingleFlight<K, Result<V>>,
        key: &K,
        what: impl ToString,
        metrics: &Metrics,
        compute: impl Fn() -> F,
    ) -> Result<V>
    where
        K: Eq + Hash + Clone + Send + 'static,
        V: Clone + Send + Sync + 'static,
        F: Future<Output = Result<V>> + Send + 'static,
    {
        loop {
            let is_running = flights.is_running(key);
            if is_running {
                metrics.count(Counter::Joined);
            }
            let flight = async {
                let landed = flights.run(key.clone(), &compute).await;
                landed.map_err(|lost| Error::Internal(lost.to_string()))?
            };
            match self.run(what.to_string(), flight).await {
                Err(Error::Timeout { .. }) if is_running && !self.is_over() => {}
                answer => return answer,
            }
        }
    }
}

/// One row of a bundle's list of versions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The version.
    pub version: Version,
    /// Whether a moving name may choose it.
    pub state: State,
    /// The digest of its OCI manifest, as the registry spells it.
    pub oci_digest: Option<String>,
}

/// Takes the bytes of one blob as they arrive. What it has taken is not served before the whole
/// was verified.
pub trait Sink: Send {
    /// Appends `bytes`.
    ///
    /// # Errors
    ///
    /// [`Error::Malformed`] when more arrives than the manifest announced: the source should stop
    /// reading.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;

    /// Forgets everything taken so far, before another attempt.
    fn restart(&mut self);
}

/// A registry, or something that stands in for one.
#[async_trait]
pub trait Source: Send + Sync + 'static {
    /// Who this is, for logs and error messages: a kind and a URL without credentials.
    fn name(&self) -> &str;

    /// What its users should know of it although it answers, such as a key that it does not take.
    fn notice(&self) -> Option<String> {
        None
    }

    /// Why it last showed less of the namespace than there may be: that it did not take the key, of
    /// which this says where it is from.
    fn refusal(&self, _namespace: &Namespace) -> Option<String> {
        None
    }

    /// Whether [`Source::bundles`] is sure of which namespaces exist. Of one that is not, nobody
    /// needs to ask it when only that is the question.
    fn tells_namespaces(&self) -> bool {
        true
    }

    /// Whether bytes of something large that it was asked for are coming at the moment. Then whoever
    /// did not get an answer in time met a slow way, not a source that is down.
    fn is_sending(&self) -> bool {
        false
    }

    /// Whether [`Source::pull`] is worth a try for a version; whoever has it and is better asked file
    /// by file says no. Who does not have it says yes, and leaves it to the next.
    fn pulls(&self, manifest: &Manifest) -> bool {
        let _ = manifest;
        true
    }

    /// What `selector` of `bundle` is at the moment. The answer names a version; it may lack the
    /// list of files.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] only if the source is sure; [`Error::Rejected`] if it does not
    /// understand the selector.
    async fn resolve(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Document>;

    /// The list of files of `version`; always with `layers`.
    async fn manifest(&self, version: &VersionRef, deadline: Deadline) -> Result<Document>;

    /// Writes the content of `file`, which is an entry of `manifest`, into `sink`.
    async fn blob(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()>;

    /// Fetches all content of a version in one request: paths and bytes, nothing verified, possibly
    /// incomplete. `None` if the source cannot.
    async fn pull(
        &self,
        manifest: &Manifest,
        deadline: Deadline,
    ) -> Result<Option<Vec<(String, Bytes)>>>;

    /// All versions of `bundle`, in no particular order.
    async fn versions(&self, bundle: &BundleId, deadline: Deadline) -> Result<Vec<Published>>;

    /// All bundles of `namespace` that the caller may see.
    async fn bundles(&self, namespace: &Namespace, deadline: Deadline) -> Result<Vec<Slug>>;

    /// The namespaces that the source knows to be of interest to the caller; never complete.
    async fn namespaces(&self, deadline: Deadline) -> Result<Vec<Namespace>>;
}
