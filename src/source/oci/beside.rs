//! An OCI registry beside an API: the API says what there is, the registry has the bytes.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tracing::debug;

use super::{Named, OciSource};
use crate::error::{Error, Result};
use crate::manifest::{Document, Entry, Manifest};
use crate::reference::{BundleId, Namespace, Selector, Slug, VersionRef};
use crate::source::breaker::Guarded;
use crate::source::{Deadline, Published, Sink, Source};

/// Has files' content.
#[async_trait]
pub trait Content: Send + Sync + 'static {
    /// See [`Source::name`].
    fn name(&self) -> &str;

    /// See [`Source::is_sending`].
    fn is_sending(&self) -> bool {
        false
    }

    /// Whether it may have the files of a version.
    fn has(&self, manifest: &Manifest) -> bool {
        let _ = manifest;
        true
    }

    /// See [`Source::blob`].
    async fn content(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()>;
}

#[async_trait]
impl Content for Guarded {
    fn name(&self) -> &str {
        Source::name(self)
    }

    fn is_sending(&self) -> bool {
        Source::is_sending(self)
    }

    async fn content(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        self.blob(manifest, file, sink, deadline).await
    }
}

/// A source that is asked for files' content and nothing else.
///
/// To all other questions it answers that it does not know, which is no verdict: the next source is
/// asked. Nor is it a sign of life, so a breaker belongs below it.
pub struct ContentOnly(Arc<dyn Content>);

impl ContentOnly {
    /// The content of `source`.
    pub fn new(source: Arc<dyn Content>) -> Self {
        Self(source)
    }

    fn not_asked(&self, what: impl ToString) -> Error {
        Error::Rejected {
            what: what.to_string(),
            origin: self.0.name().to_owned(),
            reason: "it is asked for content only".into(),
        }
    }
}

#[async_trait]
impl Source for ContentOnly {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn tells_namespaces(&self) -> bool {
        false
    }

    fn is_sending(&self) -> bool {
        self.0.is_sending()
    }

    fn pulls(&self, manifest: &Manifest) -> bool {
        !self.0.has(manifest)
    }

    async fn resolve(&self, bundle: &BundleId, _: &Selector, _: Deadline) -> Result<Document> {
        Err(self.not_asked(bundle))
    }

    async fn manifest(&self, version: &VersionRef, _: Deadline) -> Result<Document> {
        Err(self.not_asked(version))
    }

    async fn blob(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        self.0.content(manifest, file, sink, deadline).await
    }

    async fn pull(&self, _: &Manifest, _: Deadline) -> Result<Option<Vec<(String, Bytes)>>> {
        Ok(None)
    }

    async fn versions(&self, bundle: &BundleId, _: Deadline) -> Result<Vec<Published>> {
        Err(self.not_asked(bundle))
    }

    async fn bundles(&self, namespace: &Namespace, _: Deadline) -> Result<Vec<Slug>> {
        Err(self.not_asked(namespace))
    }

    async fn namespaces(&self, _: Deadline) -> Result<Vec<Namespace>> {
        Ok(Vec::new())
    }
}

/// An API whose answers may name an OCI artifact instead of listing files: the files are then those
/// of the artifact with exactly that digest.
///
/// The artifact is looked for in half of the time that is left, and not at all while its registry is
/// down: what the API says by itself must not wait for somebody else.
pub struct Beside {
    api: Arc<dyn Source>,
    oci: Artifacts,
}

/// Where an API's artifacts are.
pub enum Artifacts {
    /// In this registry, whatever host the API names.
    In {
        /// The registry.
        oci: Arc<OciSource>,
        /// Its breaker.
        guard: Arc<Guarded>,
    },
    /// Where the API says.
    Named(Arc<Named>),
}

impl Beside {
    /// `api`, completed by `oci`.
    pub fn new(api: Arc<dyn Source>, oci: Artifacts) -> Self {
        Self { api, oci }
    }

    /// Adds the list of files to an answer that has none, if it names the artifact.
    async fn complete(
        &self,
        bundle: &BundleId,
        mut document: Document,
        deadline: Deadline,
    ) -> Document {
        let digest = document.info.oci_digest.as_deref();
        let Some(digest) = digest.and_then(|digest| digest.parse().ok()) else {
            return document;
        };
        if document.layers.is_none() {
            let what = format!("{bundle}@{digest}");
            let share = deadline.share(2);
            let files = match (&self.oci, &document.info.oci_ref) {
                (Artifacts::In { oci, guard }, _) => {
                    let asking = oci.files_at(bundle, digest, &what, share);
                    guard.guard(share.run(&what, asking)).await
                }
                (Artifacts::Named(named), Some(image)) => {
                    named.files_at(image, digest, &what, share).await
                }
                (Artifacts::Named(_), None) => return document,
            };
            match files {
                Ok(files) => document.layers = Some(files),
                Err(error) => debug!(%what, %error, "the list of files is not in the OCI registry"),
            }
        }
        document
    }
}

#[async_trait]
impl Source for Beside {
    fn name(&self) -> &str {
        self.api.name()
    }

    fn refusal(&self, namespace: &Namespace) -> Option<String> {
        self.api.refusal(namespace)
    }

    fn tells_namespaces(&self) -> bool {
        self.api.tells_namespaces()
    }

    fn pulls(&self, manifest: &Manifest) -> bool {
        self.api.pulls(manifest)
    }

    async fn resolve(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Document> {
        let document = self.api.resolve(bundle, selector, deadline).await?;
        Ok(self.complete(bundle, document, deadline).await)
    }

    async fn manifest(&self, version: &VersionRef, deadline: Deadline) -> Result<Document> {
        let selector = Selector::Version(version.version.clone());
        let document = self.resolve(&version.bundle, &selector, deadline).await?;
        if document.layers.is_some() {
            return Ok(document);
        }
        self.api.manifest(version, deadline).await
    }

    async fn blob(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        self.api.blob(manifest, file, sink, deadline).await
    }

    async fn pull(
        &self,
        manifest: &Manifest,
        deadline: Deadline,
    ) -> Result<Option<Vec<(String, Bytes)>>> {
        self.api.pull(manifest, deadline).await
    }

    async fn versions(&self, bundle: &BundleId, deadline: Deadline) -> Result<Vec<Published>> {
        self.api.versions(bundle, deadline).await
    }

    async fn bundles(&self, namespace: &Namespace, deadline: Deadline) -> Result<Vec<Slug>> {
        self.api.bundles(namespace, deadline).await
    }

    async fn namespaces(&self, deadline: Deadline) -> Result<Vec<Namespace>> {
        self.api.namespaces(deadline).await
    }
}
