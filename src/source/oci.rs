//! An OCI registry as a source of bundles: GHCR, Harbor, zot, ECR, docker's own.
//!
//! | question | requests |
//! |---|---|
//! | what is there | `_catalog`, where the registry tells |
//! | a bundle's versions, the newest, which are yanked | the list of tags, kept for [`TAGS_LIFE`] |
//! | an alias, a digest | its manifest, and HEAD of the version that it says it is |
//! | a version's files | its manifest and its config |
//! | a file | its blob |
//!
//! Everything but tags is asked for by digest and hashed when it comes. A repository without a
//! version's tag has no version: an alias must point at a manifest that some version has too.
//!
//! What the `oci-client` crate does not offer is said in [`auth`].

pub mod archive;
mod arrivals;
pub mod auth;
mod beside;
pub mod challenge;
pub mod client;
mod content;
pub(super) mod layers;
pub(crate) mod listing;
pub mod model;
mod named;
pub mod reference;

pub use beside::{Artifacts, Beside, Content, ContentOnly};
pub use named::{Named, NamedSettings, is_api_registry};

use std::collections::HashMap;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use tokio::time::Instant;
use tracing::debug;

use super::http::{HttpClient, Lane};
use super::{Deadline, Published, Sink, Source};
use crate::credentials::docker::LoginChain;
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Document, Entry, Info, Layer, Manifest};
use crate::reference::{BundleId, BundleRef, Namespace, Selector, Slug, Version, VersionRef};
use crate::single_flight::SingleFlight;
use crate::sync::lock;
use archive::{Archive, Archives};
use arrivals::Arrivals;
use client::RegistryClient;
use listing::{Catalog, Tags};
use model::{BundleConfig, DESCRIPTION, ImageManifest, MAX_MANIFEST};
use reference::{Endpoint, Repository, StateTag, is_tag, tag_of, version_of};

/// How long a list of tags answers: a walk through a bundle asks for it once.
pub const TAGS_LIFE: Duration = Duration::from_secs(15);
/// How long the catalog answers.
const CATALOG_LIFE: Duration = Duration::from_secs(60);
/// How long the registry may take for what several wait for, whatever their own deadlines are.
const PATIENCE: Duration = Duration::from_secs(30);
/// Most versions that are tried for an alias whose manifest does not say which one it is.
const MOST_TRIED: usize = 32;

/// Which registry, and as whom.
#[derive(Debug)]
pub struct OciSettings {
    /// The registry, and where in it bundles are.
    pub endpoint: Endpoint,
    /// Where to look for the login.
    pub logins: LoginChain,
    /// How to send requests.
    pub http: HttpClient,
}

/// An OCI registry.
pub struct OciSource {
    name: String,
    inner: Arc<Inner>,
    tag_flights: SingleFlight<BundleId, Result<Arc<Tags>>>,
    catalog_flight: SingleFlight<(), Result<Arc<Catalog>>>,
    archive_flights: SingleFlight<(Repository, Digest), Result<Arc<Archive>>>,
}

/// The digests and sizes of a manifest's archives.
type Packed = Arc<[(Digest, u64)]>;

struct Inner {
    client: RegistryClient,
    tags: Mutex<LruCache<BundleId, (Instant, Arc<Tags>)>>,
    catalog: Mutex<Option<(Instant, Arc<Catalog>)>>,
    archives: Archives,
    arrivals: Arrivals,
    /// The archives of the manifests that were seen in this session; most have none.
    packed: Mutex<LruCache<Digest, Packed>>,
}

impl std::fmt::Debug for OciSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("OciSource").field(&self.name).finish()
    }
}

/// A manifest that was fetched and understood.
struct Fetched {
    digest: Digest,
    manifest: ImageManifest,
}

impl OciSource {
    /// Checks the settings; nothing is asked yet.
    ///
    /// # Errors
    ///
    /// [`Error::Config`] for a registry that must not be asked (see [`HttpClient::check`]).
    pub fn new(settings: OciSettings) -> Result<Self> {
        let OciSettings {
            endpoint,
            logins,
            http,
        } = settings;
        let client = RegistryClient::new(endpoint, http.for_source(), logins)?;
        Ok(Self::with_client("OCI registry", client))
    }

    /// A mirror of the registry at `origin`: one that has its repositories, each below `endpoint`'s
    /// own prefix.
    ///
    /// # Errors
    ///
    /// Those of [`OciSource::new`].
    pub fn mirror(settings: OciSettings, origin: &Endpoint) -> Result<Self> {
        let OciSettings {
            endpoint,
            logins,
            http,
        } = settings;
        let client = RegistryClient::new(origin.at(&endpoint), http.impatient(), logins)?;
        Ok(Self::with_client(
            "mirror",
            client.standing_for(origin.host()),
        ))
    }

    /// The source behind `client`, called `kind` in messages.
    fn with_client(kind: &str, client: RegistryClient) -> Self {
        const TAGS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
        let name = format!("{kind} {}", client.endpoint());
        Self {
            name: name.trim_end_matches('/').to_owned(),
            inner: Arc::new(Inner {
                client,
                tags: Mutex::new(LruCache::new(TAGS)),
                catalog: Mutex::default(),
                archives: Archives::default(),
                arrivals: Arrivals::default(),
                packed: Mutex::new(LruCache::new(TAGS)),
            }),
            tag_flights: SingleFlight::default(),
            catalog_flight: SingleFlight::default(),
            archive_flights: SingleFlight::default(),
        }
    }

    fn client(&self) -> &RegistryClient {
        &self.inner.client
    }

    fn malformed(&self, what: &str, reason: impl ToString) -> Error {
        Error::Malformed {
            what: what.to_owned(),
            origin: self.name.clone(),
            reason: reason.to_string(),
        }
    }

    fn repository(&self, bundle: &BundleId) -> Result<Repository> {
        let found = self.client().endpoint().repository(bundle);
        found.ok_or_else(|| {
            Error::not_found(format_args!(
                "{bundle} (repositories are lower case, so it is in no OCI registry)"
            ))
        })
    }

    /// The list of tags, asked for at most once in [`TAGS_LIFE`].
    async fn tags(&self, bundle: &BundleId, deadline: Deadline) -> Result<Arc<Tags>> {
        if let Some((at, tags)) = lock(&self.inner.tags).get(bundle)
            && at.elapsed() < TAGS_LIFE
        {
            return Ok(Arc::clone(tags));
        }
        let repository = self.repository(bundle)?;
        let what = format!("the versions of {bundle}");
        let start = || {
            let (inner, bundle, what) = (Arc::clone(&self.inner), bundle.clone(), what.clone());
            async move {
                let budget = Deadline::after(PATIENCE);
                let asking = inner.client.tags(&repository, &what, budget);
                let tags = Arc::new(budget.run(&what, asking).await?);
                let entry = (Instant::now(), Arc::clone(&tags));
                lock(&inner.tags).put(bundle, entry);
                Ok(tags)
            }
        };
        let flight = async {
            let landed = self.tag_flights.run(bundle.clone(), start).await;
            landed.map_err(|lost| Error::Internal(lost.to_string()))?
        };
        deadline.run(&what, flight).await
    }

    async fn catalog(&self, deadline: Deadline) -> Result<Arc<Catalog>> {
        if let Some((at, catalog)) = &*lock(&self.inner.catalog)
            && at.elapsed() < CATALOG_LIFE
        {
            return Ok(Arc::clone(catalog));
        }
        let what = "the list of bundles";
        let start = || {
            let inner = Arc::clone(&self.inner);
            async move {
                let budget = Deadline::after(PATIENCE);
                let asking = inner.client.catalog(budget);
                let catalog = Arc::new(budget.run(what, asking).await?);
                *lock(&inner.catalog) = Some((Instant::now(), Arc::clone(&catalog)));
                Ok(catalog)
            }
        };
        let flight = async {
            let landed = self.catalog_flight.run((), start).await;
            landed.map_err(|lost| Error::Internal(lost.to_string()))?
        };
        deadline.run(what, flight).await
    }

    /// Fetches a manifest by tag or digest and reads it.
    async fn fetch(
        &self,
        repository: &Repository,
        reference: &str,
        what: &str,
        deadline: Deadline,
    ) -> Result<Fetched> {
        let (digest, bytes) = self
            .client()
            .manifest(repository, reference, what, deadline)
            .await?;
        let manifest = parse(bytes, ImageManifest::parse).await?;
        Ok(Fetched {
            digest,
            manifest: manifest.map_err(|reason| self.malformed(what, reason))?,
        })
    }

    /// The files of the artifact with this manifest.
    async fn files(
        &self,
        repository: &Repository,
        fetched: &Fetched,
        what: &str,
        deadline: Deadline,
    ) -> Result<Vec<Layer>> {
        let Fetched { digest, manifest } = fetched;
        let refused = |reason: String| self.malformed(what, reason);
        let config = if layers::is_bundle(manifest) {
            Some(
                self.config(repository, manifest, what, deadline)
                    .await?
                    .map_err(refused)?,
            )
        } else {
            None
        };
        let needed = layers::needed(manifest, config.as_ref()).map_err(refused)?;
        let packed: Packed = needed.archives.into();
        lock(&self.inner.packed).put(*digest, Arc::clone(&packed));
        let mut archives = HashMap::new();
        let mut unpacked = 0;
        for (layer, size) in packed.iter() {
            let archive = self
                .archive(repository, *layer, *size, what, deadline)
                .await?;
            unpacked += archive.unpacked();
            if unpacked > archive::MAX_UNPACKED {
                return Err(refused("its archives unpack to too much together".into()));
            }
            archives.insert(*layer, archive);
        }
        layers::files(manifest, config, &archives).map_err(refused)
    }

    async fn config(
        &self,
        repository: &Repository,
        manifest: &ImageManifest,
        what: &str,
        deadline: Deadline,
    ) -> Result<Result<BundleConfig, String>> {
        let Some(digest) = manifest.config.sha256() else {
            return Ok(Err("its config is not named by SHA-256".into()));
        };
        if manifest.config.size > MAX_MANIFEST {
            return Ok(Err(format!(
                "its config has more than {MAX_MANIFEST} bytes"
            )));
        }
        let mut bytes = Vec::new();
        self.client()
            .blob(
                Lane::Names,
                repository,
                digest,
                manifest.config.size,
                what,
                &mut bytes,
                deadline,
            )
            .await
            .map_err(|error| self.missing(error, what))?;
        parse(bytes.into(), BundleConfig::parse).await
    }

    /// What a manifest names and the registry does not have makes the answer unusable; the thing
    /// that was asked for is not absent because of that.
    fn missing(&self, error: Error, what: &str) -> Error {
        match error {
            Error::NotFound { .. } => self.malformed(
                what,
                "its manifest names a blob that the registry does not have",
            ),
            other => other,
        }
    }

    /// Which version a manifest is: the one that it says, or one whose tag points at it.
    async fn version_of(
        &self,
        bundle: &BundleId,
        repository: &Repository,
        fetched: &Fetched,
        what: &str,
        deadline: Deadline,
    ) -> Result<Version> {
        let said: Option<Version> = fetched
            .manifest
            .annotation(model::VERSION)
            .and_then(|text| text.parse().ok());
        if let Some(version) = &said {
            let tag = tag_of(version);
            let at = self
                .client()
                .digest_of(repository, &tag, what, deadline)
                .await?;
            if at == Some(fetched.digest) {
                return Ok(version.clone());
            }
        }
        let tags = self.tags(bundle, deadline).await?;
        let others = tags
            .versions
            .keys()
            .rev()
            .filter(|version| Some(*version) != said.as_ref());
        for version in others.take(MOST_TRIED) {
            let tag = tag_of(version);
            let at = self
                .client()
                .digest_of(repository, &tag, what, deadline)
                .await?;
            if at == Some(fetched.digest) {
                return Ok(version.clone());
            }
        }
        Err(Error::not_found(format_args!(
            "{what} (no version's tag points at {}, so it is no version)",
            fetched.digest
        )))
    }

    fn document(&self, version: &VersionRef, fetched: &Fetched, tags: Option<&Tags>) -> Document {
        let repository = self.client().endpoint().repository(&version.bundle);
        let host = self.client().endpoint().host();
        let state = tags.map(|tags| tags.state(&version.version));
        let manifest = &fetched.manifest;
        Document {
            namespace: Some(version.bundle.namespace.as_str().to_owned()),
            slug: Some(version.bundle.slug.as_str().to_owned()),
            version: Some(version.version.as_str().to_owned()),
            info: Info {
                name: manifest
                    .annotation(model::TITLE)
                    .unwrap_or_default()
                    .to_owned(),
                description: manifest.annotation(DESCRIPTION).map(str::to_owned),
                source_type: "registry".to_owned(),
                oci_ref: repository
                    .map(|repository| format!("{host}/{repository}:{}", tag_of(&version.version))),
                oci_digest: Some(fetched.digest.to_string()),
                state: state.unwrap_or_default(),
                ..Info::default()
            },
            layers: None,
        }
    }

    /// The files of the artifact with the manifest `digest`: how an API's word is checked.
    pub(super) async fn files_at(
        &self,
        bundle: &BundleId,
        digest: Digest,
        what: &str,
        deadline: Deadline,
    ) -> Result<Vec<Layer>> {
        let repository = self.repository(bundle)?;
        self.files_in(&repository, digest, what, deadline).await
    }

    /// The same in a repository that somebody named.
    pub(super) async fn files_in(
        &self,
        repository: &Repository,
        digest: Digest,
        what: &str,
        deadline: Deadline,
    ) -> Result<Vec<Layer>> {
        let reference = digest.to_string();
        let fetched = self.fetch(repository, &reference, what, deadline).await?;
        self.files(repository, &fetched, what, deadline).await
    }
}

/// Reads JSON, a large one on a thread that may be kept busy.
async fn parse<T: Send + 'static>(
    json: Bytes,
    read: fn(&[u8]) -> Result<T, String>,
) -> Result<Result<T, String>> {
    const LARGE: usize = 256 << 10;
    if json.len() < LARGE {
        return Ok(read(&json));
    }
    let reading = tokio::task::spawn_blocking(move || read(&json));
    reading
        .await
        .map_err(|error| Error::Internal(format!("reading an answer failed: {error}")))
}

/// The list of tags, which says what is yanked. A registry that keeps it to itself is one thing;
/// one that cannot be asked at the moment, or makes no sense, must not make a yanked version look
/// published.
fn known_state(what: &str, tags: Result<Arc<Tags>>) -> Result<Option<Arc<Tags>>> {
    match tags {
        Ok(tags) => Ok(Some(tags)),
        Err(error @ (Error::NotFound { .. } | Error::Denied { .. } | Error::Rejected { .. })) => {
            debug!(%what, %error, "whether it is yanked is not known");
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[async_trait]
impl Source for OciSource {
    fn name(&self) -> &str {
        &self.name
    }

    fn tells_namespaces(&self) -> bool {
        false
    }

    fn is_sending(&self) -> bool {
        self.inner.arrivals.go_on()
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
        let repository = self.repository(bundle)?;
        let reference = BundleRef {
            bundle: bundle.clone(),
            selector: selector.clone(),
        };
        let what = reference.to_string();
        let named = |version: Version| Document {
            version: Some(version.as_str().to_owned()),
            ..Document::default()
        };
        match selector {
            Selector::Latest => {
                let tags = self.tags(bundle, deadline).await?;
                let newest = tags.newest().cloned();
                newest.map(named).ok_or_else(|| Error::not_found(&what))
            }
            Selector::Version(version) => {
                let version = VersionRef {
                    bundle: bundle.clone(),
                    version: version.clone(),
                };
                self.manifest(&version, deadline).await
            }
            // No registry knows ranges; whoever asks chooses from the versions.
            Selector::Range { .. } => Err(Error::Rejected {
                what,
                origin: self.name.clone(),
                reason: "an OCI registry knows no ranges".into(),
            }),
            Selector::Tag(tag) => {
                if !is_tag(tag) || tag.parse::<StateTag>().is_ok() {
                    return Err(Error::not_found(&what));
                }
                if let Some(version) = version_of(tag) {
                    // `1.0.0_b`, as the registry spells `1.0.0+b`.
                    let tags = self.tags(bundle, deadline).await?;
                    let state = tags.versions.get(&version);
                    let state = *state.ok_or_else(|| Error::not_found(&what))?;
                    let mut document = named(version);
                    document.info.state = state;
                    return Ok(document);
                }
                let fetched = self.fetch(&repository, tag, &what, deadline).await?;
                let version = self
                    .version_of(bundle, &repository, &fetched, &what, deadline)
                    .await?;
                let tags = known_state(&what, self.tags(bundle, deadline).await)?;
                let version = VersionRef {
                    bundle: bundle.clone(),
                    version,
                };
                Ok(self.document(&version, &fetched, tags.as_deref()))
            }
            Selector::Digest(digest) => {
                let reference = digest.to_string();
                let fetched = self.fetch(&repository, &reference, &what, deadline).await?;
                let version = self
                    .version_of(bundle, &repository, &fetched, &what, deadline)
                    .await?;
                let tags = known_state(&what, self.tags(bundle, deadline).await)?;
                let version = VersionRef {
                    bundle: bundle.clone(),
                    version,
                };
                let mut document = self.document(&version, &fetched, tags.as_deref());
                let files = self.files(&repository, &fetched, &what, deadline).await?;
                document.layers = Some(files);
                Ok(document)
            }
        }
    }

    async fn manifest(&self, version: &VersionRef, deadline: Deadline) -> Result<Document> {
        let what = version.to_string();
        let repository = self.repository(&version.bundle)?;
        let tag = tag_of(&version.version);
        let (fetched, tags) = tokio::join!(
            self.fetch(&repository, &tag, &what, deadline),
            self.tags(&version.bundle, deadline),
        );
        let fetched = fetched?;
        let tags = known_state(&what, tags)?;
        let mut document = self.document(version, &fetched, tags.as_deref());
        let files = self.files(&repository, &fetched, &what, deadline).await?;
        document.layers = Some(files);
        Ok(document)
    }

    async fn blob(
        &self,
        manifest: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        deadline: Deadline,
    ) -> Result<()> {
        let repository = self.repository(&manifest.id().bundle)?;
        self.content(&repository, manifest, file, sink, deadline)
            .await
    }

    async fn pull(
        &self,
        _manifest: &Manifest,
        _deadline: Deadline,
    ) -> Result<Option<Vec<(String, Bytes)>>> {
        Ok(None)
    }

    async fn versions(&self, bundle: &BundleId, deadline: Deadline) -> Result<Vec<Published>> {
        Ok(self.tags(bundle, deadline).await?.rows())
    }

    async fn bundles(&self, namespace: &Namespace, deadline: Deadline) -> Result<Vec<Slug>> {
        let catalog = self.catalog(deadline).await?;
        // A catalog without the namespace proves nothing: it may hide what is private.
        let listed = match &*catalog {
            Catalog::Open(bundles) => bundles.get(namespace),
            Catalog::Closed => None,
        };
        let listed = listed.ok_or_else(|| Error::Rejected {
            what: format!("the bundles of {namespace}"),
            origin: self.name.clone(),
            reason: "the registry does not list them".into(),
        })?;
        Ok(listed.iter().cloned().collect())
    }

    async fn namespaces(&self, deadline: Deadline) -> Result<Vec<Namespace>> {
        Ok(match &*self.catalog(deadline).await? {
            Catalog::Open(bundles) => bundles.keys().cloned().collect(),
            Catalog::Closed => Vec::new(),
        })
    }
}
