//! Mirrors: whoever has the same content, nearer or with more machines.
//!
//! Mirrors are asked before their origin, in the order in which they were given, for content and by
//! digest only: wrong bytes are noticed, so a mirror need not be trusted. Names (tags, versions)
//! are the origin's business, unless a mirror is declared to resolve them; even then what it does not
//! have is not absent. A mirror gets one attempt and half of the reader's remaining time, and one
//! that fails or lies is left alone for a while (see [`Guarded::strict`]).
//!
//! A mirror is shown the login that is filed for its own host, if there is one, and never what was
//! given for the origin: not its key, not its token, not the login on the command line. Only where
//! both are on one host (name and port) is the filed login the same, as it is for `docker`.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use super::breaker::Guarded;
use super::{Deadline, Published, Sink, Source};
use crate::error::{Error, Result};
use crate::manifest::{Document, Entry, Manifest};
use crate::reference::{BundleId, Namespace, Selector, Slug, VersionRef};

/// A source in the part of a mirror.
pub struct Mirror {
    source: Arc<Guarded>,
    resolves: bool,
}

impl Mirror {
    /// `source` as a mirror; `resolves` if it is asked for names as well.
    pub fn new(source: Arc<Guarded>, resolves: bool) -> Self {
        Self { source, resolves }
    }

    fn rejected(&self, what: impl ToString, reason: &str) -> Error {
        Error::Rejected {
            what: what.to_string(),
            origin: self.source.name().to_owned(),
            reason: reason.to_owned(),
        }
    }

    /// Asks for a name, if this mirror knows names.
    async fn ask<T, F: Future<Output = Result<T>> + Send>(
        &self,
        what: impl ToString + Send,
        deadline: Deadline,
        work: impl FnOnce(Deadline) -> F + Send,
    ) -> Result<T> {
        let what = what.to_string();
        if !self.resolves {
            return Err(self.rejected(what, "this mirror is asked for content only"));
        }
        match work(deadline.share(2)).await {
            // Only the origin knows what does not exist.
            Err(Error::NotFound { what }) => {
                Err(self.rejected(what, "the mirror does not have it"))
            }
            answer => answer,
        }
    }
}

#[async_trait]
impl Source for Mirror {
    fn name(&self) -> &str {
        self.source.name()
    }

    fn tells_namespaces(&self) -> bool {
        false
    }

    fn pulls(&self, _: &Manifest) -> bool {
        false
    }

    async fn resolve(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Document> {
        self.ask(bundle, deadline, |deadline| {
            self.source.resolve(bundle, selector, deadline)
        })
        .await
    }

    async fn manifest(&self, version: &VersionRef, deadline: Deadline) -> Result<Document> {
        self.ask(version, deadline, |deadline| {
            self.source.manifest(version, deadline)
        })
        .await
    }

    async fn blob(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        self.source
            .blob(manifest, file, sink, deadline.share(2))
            .await
    }

    async fn pull(&self, _: &Manifest, _: Deadline) -> Result<Option<Vec<(String, Bytes)>>> {
        // File by file, so that what is fetched once is in the mirror.
        Ok(None)
    }

    async fn versions(&self, bundle: &BundleId, deadline: Deadline) -> Result<Vec<Published>> {
        self.ask(bundle, deadline, |deadline| {
            self.source.versions(bundle, deadline)
        })
        .await
    }

    async fn bundles(&self, namespace: &Namespace, _: Deadline) -> Result<Vec<Slug>> {
        // What a mirror lists is what it happens to have.
        Err(self.rejected(namespace, "a mirror's list is not complete"))
    }

    async fn namespaces(&self, _: Deadline) -> Result<Vec<Namespace>> {
        Ok(Vec::new())
    }
}
