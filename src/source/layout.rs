//! A directory as a registry: an OCI image layout, on a stick or a shared disk.
//!
//! The index says what the list of tags says elsewhere, and means the same: tags that are versions,
//! state tags, aliases. So what is exported from a registry, with skopeo or `musherfs export`, looks
//! as it does there. Artifacts are read as in a registry (`source::oci`), config and layers held
//! against each other, archives as a last resort.
//!
//! A stick that was pulled out is a source that cannot be reached: what is cached stays.

pub mod dir;

pub use dir::{Layout, MAX_INDEX};

use std::collections::{BTreeMap, HashMap};
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use lru::LruCache;
use tokio::io::AsyncReadExt as _;

use super::oci::archive::{Archive, Archives, MAX_PACKED, MAX_UNPACKED};
use super::oci::layers;
use super::oci::listing::Tags;
use super::oci::model::{BundleConfig, DESCRIPTION, Descriptor, ImageManifest, MAX_BLOB, TITLE};
use super::oci::reference::{tag_of, version_of};
use super::{Deadline, Published, Sink, Source};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Document, Entry, Info, Layer, Manifest};
use crate::reference::{
    BundleId, BundleRef, HostId, Namespace, Selector, Slug, Version, VersionRef,
};
use crate::sync::lock;

/// Most manifests of which it is remembered what they are in.
const MOST_MANIFESTS: NonZeroUsize = NonZeroUsize::new(1024).expect("not zero");
/// How much of a file is read at a time.
const PIECE: usize = 256 << 10;

/// The versions in an image layout.
#[derive(Debug)]
pub struct LayoutSource {
    name: String,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    layout: Layout,
    archives: Archives,
    /// The archives of the manifests that were read; most have none.
    packed: Mutex<LruCache<Digest, Packed>>,
}

/// The digests and sizes of a manifest's archives.
type Packed = Arc<[(Digest, u64)]>;

impl LayoutSource {
    /// Opens the layout in `path` and reads its index.
    ///
    /// # Errors
    ///
    /// Those of [`Layout::open`].
    pub fn open(path: &Path) -> Result<Self> {
        let layout = Layout::open(path)?;
        Ok(Self {
            name: format!("OCI layout {}", layout.path().display()),
            shared: Arc::new(Shared {
                layout,
                archives: Archives::default(),
                packed: Mutex::new(LruCache::new(MOST_MANIFESTS)),
            }),
        })
    }

    /// The directory.
    pub fn layout(&self) -> &Layout {
        &self.shared.layout
    }

    /// The layout's partition of the cache, one for each place in the file system: two directories
    /// may call different things the same.
    pub fn host_id(&self) -> HostId {
        let place = self.shared.layout.path();
        let place = place.canonicalize().unwrap_or_else(|_| place.to_owned());
        let digest = Digest::of(place.as_os_str().as_encoded_bytes());
        // Two dots stand in no host's name.
        format!("oci-layout..{}", &digest.hex()[..16])
            .parse()
            .expect("letters, digits, a hyphen and dots are a partition's name")
    }

    /// All versions, sorted.
    ///
    /// # Errors
    ///
    /// [`Error::Unreachable`] if the index cannot be read, [`Error::Malformed`].
    pub async fn all(&self, deadline: Deadline) -> Result<Vec<VersionRef>> {
        let contents = self
            .blocking("the index", deadline, |shared| shared.layout.contents())
            .await?;
        let mut all = Vec::new();
        for (bundle, tags) in &*contents {
            all.extend(
                tags.keys()
                    .filter_map(|tag| version_of(tag))
                    .map(|version| VersionRef {
                        bundle: bundle.clone(),
                        version,
                    }),
            );
        }
        all.sort();
        Ok(all)
    }

    /// The aliases of all bundles and the versions that they mean.
    ///
    /// # Errors
    ///
    /// Those of [`LayoutSource::all`].
    pub async fn aliases(&self, deadline: Deadline) -> Result<Vec<(String, VersionRef)>> {
        let contents = self
            .blocking("the index", deadline, |shared| shared.layout.contents())
            .await?;
        let mut aliases = Vec::new();
        for (bundle, tags) in &*contents {
            for (tag, entry) in tags {
                let is_alias = matches!(tag.parse(), Ok(Selector::Latest | Selector::Tag(_)));
                if is_alias && let Some(version) = version_at(tags, &entry.digest) {
                    let bundle = bundle.clone();
                    aliases.push((tag.clone(), VersionRef { bundle, version }));
                }
            }
        }
        Ok(aliases)
    }

    /// The image manifest of a version and its config, verified.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], and those of reading.
    pub async fn image(&self, version: &VersionRef, deadline: Deadline) -> Result<(Bytes, Bytes)> {
        let wanted = version.clone();
        self.blocking(&version.to_string(), deadline, move |shared| {
            let entry = shared.entry(&wanted.bundle, &tag_of(&wanted.version))?;
            let bytes = shared.layout.manifest(&entry)?;
            let manifest = shared.parse(&bytes, &wanted.to_string())?;
            let config = shared.layout.small(&manifest.config, "a config")?;
            Ok((bytes, config))
        })
        .await
    }

    /// Reads the directory on a thread that may be kept busy.
    async fn blocking<T: Send + 'static>(
        &self,
        what: &str,
        deadline: Deadline,
        work: impl FnOnce(&Shared) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let shared = Arc::clone(&self.shared);
        let task = async {
            let done = tokio::task::spawn_blocking(move || work(&shared)).await;
            done.map_err(|error| Error::Internal(format!("reading a layout failed: {error}")))?
        };
        deadline
            .run(what, task)
            .await
            .map_err(|error| self.unreachable(error))
    }

    /// A directory that cannot be read is a registry that cannot be reached.
    fn unreachable(&self, error: Error) -> Error {
        match error {
            error @ Error::Io { .. } => Error::Unreachable {
                origin: self.shared.layout.origin(),
                reason: error.to_string(),
            },
            error => error,
        }
    }
}

/// The newest version whose tag points at the same manifest.
fn version_at(tags: &BTreeMap<String, Descriptor>, digest: &str) -> Option<Version> {
    tags.iter()
        .filter(|(_, entry)| entry.digest == digest)
        .filter_map(|(tag, _)| version_of(tag))
        .max()
}

impl Shared {
    fn tags(&self, bundle: &BundleId) -> Result<BTreeMap<String, Descriptor>> {
        let contents = self.layout.contents()?;
        let tags = contents.get(bundle).cloned();
        tags.ok_or_else(|| Error::not_found(bundle))
    }

    fn entry(&self, bundle: &BundleId, tag: &str) -> Result<Descriptor> {
        let mut tags = self.tags(bundle)?;
        tags.remove(tag)
            .ok_or_else(|| Error::not_found(format_args!("{bundle}:{tag}")))
    }

    fn malformed(&self, what: &str, reason: String) -> Error {
        Error::Malformed {
            what: what.to_owned(),
            origin: self.layout.origin(),
            reason,
        }
    }

    fn parse(&self, bytes: &[u8], what: &str) -> Result<ImageManifest> {
        ImageManifest::parse(bytes).map_err(|reason| self.malformed(what, reason))
    }

    /// Reads a version's manifest, its config, and archives if it has some.
    fn artifact(&self, version: &VersionRef) -> Result<(Document, Packed)> {
        let what = version.to_string();
        let tags = self.tags(&version.bundle)?;
        let tag = tag_of(&version.version);
        let entry = tags.get(&tag).ok_or_else(|| Error::not_found(version))?;
        let bytes = self
            .layout
            .manifest(entry)
            .map_err(|e| self.missing(e, &what))?;
        let manifest = self.parse(&bytes, &what)?;
        let refused = |reason| self.malformed(&what, reason);
        let config = if layers::is_bundle(&manifest) {
            let config = self.layout.small(&manifest.config, "a config");
            let config = config.map_err(|error| self.missing(error, &what))?;
            Some(BundleConfig::parse(&config).map_err(refused)?)
        } else {
            None
        };
        let needed = layers::needed(&manifest, config.as_ref()).map_err(refused)?;
        let packed: Packed = needed.archives.into();
        if let Some(image) = entry.sha256() {
            self.packed().put(image, Arc::clone(&packed));
        }
        let mut archives = HashMap::new();
        let mut unpacked = 0;
        for (digest, size) in packed.iter() {
            let archive = self.archive(*digest, *size, &what)?;
            unpacked += archive.unpacked();
            if unpacked > MAX_UNPACKED {
                return Err(refused("its archives unpack to too much together".into()));
            }
            archives.insert(*digest, archive);
        }
        let files = layers::files(&manifest, config, &archives).map_err(refused)?;
        let mut document = self.document(version, &tags, entry, &manifest);
        document.layers = Some(files);
        Ok((document, packed))
    }

    /// The map is consistent after every statement, so a poisoned lock is still good.
    fn packed(&self) -> MutexGuard<'_, LruCache<Digest, Packed>> {
        lock(&self.packed)
    }

    /// The archive of a manifest that has a file with this content.
    fn archive_with(
        &self,
        version: &VersionRef,
        image: Option<Digest>,
        content: Digest,
    ) -> Result<Option<Arc<Archive>>> {
        let known = image.and_then(|image| self.packed().get(&image).cloned());
        let packed = match known {
            Some(packed) => packed,
            // Of another session: the cache knows the files, but not what they are in.
            None => self.artifact(version)?.1,
        };
        let what = version.to_string();
        for (digest, size) in packed.iter() {
            let archive = self.archive(*digest, *size, &what)?;
            if archive.has(content) {
                return Ok(Some(archive));
            }
        }
        Ok(None)
    }

    /// What the index names and the directory does not have makes the layout unusable; the version
    /// is not absent because of that.
    fn missing(&self, error: Error, what: &str) -> Error {
        match error {
            Error::NotFound { .. } => self.malformed(
                what,
                "it names a blob that the directory does not have".into(),
            ),
            other => other,
        }
    }

    fn archive(&self, digest: Digest, size: u64, what: &str) -> Result<Arc<Archive>> {
        self.archives.get_or_read(digest, || {
            let limit = size.min(MAX_PACKED);
            let packed = self
                .layout
                .whole(digest, size, limit, "an archive")
                .map_err(|error| self.missing(error, what))?;
            Archive::read(packed).map_err(|reason| self.malformed(what, reason))
        })
    }

    fn document(
        &self,
        version: &VersionRef,
        tags: &BTreeMap<String, Descriptor>,
        entry: &Descriptor,
        manifest: &ImageManifest,
    ) -> Document {
        let state = Tags::of(tags.keys().cloned()).state(&version.version);
        Document {
            namespace: Some(version.bundle.namespace.as_str().to_owned()),
            slug: Some(version.bundle.slug.as_str().to_owned()),
            version: Some(version.version.as_str().to_owned()),
            info: Info {
                name: manifest.annotation(TITLE).unwrap_or_default().to_owned(),
                description: manifest.annotation(DESCRIPTION).map(str::to_owned),
                source_type: "registry".to_owned(),
                oci_digest: Some(entry.digest.clone()),
                state,
                ..Info::default()
            },
            layers: None::<Vec<Layer>>,
        }
    }
}

#[async_trait]
impl Source for LayoutSource {
    fn name(&self) -> &str {
        &self.name
    }

    async fn resolve(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Document> {
        let what = BundleRef {
            bundle: bundle.clone(),
            selector: selector.clone(),
        }
        .to_string();
        if let Selector::Range { .. } = selector {
            return Err(Error::Rejected {
                what,
                origin: self.name.clone(),
                reason: "a layout knows no ranges; whoever asks chooses from the versions".into(),
            });
        }
        let wanted = bundle.clone();
        let tags = self
            .blocking(&what, deadline, move |shared| shared.tags(&wanted))
            .await?;
        let found = match selector {
            Selector::Latest => Tags::of(tags.keys().cloned()).newest().cloned(),
            Selector::Version(version) => Some(version.clone()),
            Selector::Tag(tag) => version_of(tag).or_else(|| {
                let entry = tags.get(&**tag)?;
                version_at(&tags, &entry.digest)
            }),
            Selector::Digest(digest) => version_at(&tags, &digest.to_string()),
            Selector::Range { .. } => None,
        };
        let version = found.ok_or_else(|| Error::not_found(&what))?;
        let version = VersionRef {
            bundle: bundle.clone(),
            version,
        };
        self.manifest(&version, deadline).await
    }

    async fn manifest(&self, version: &VersionRef, deadline: Deadline) -> Result<Document> {
        let wanted = version.clone();
        self.blocking(&version.to_string(), deadline, move |shared| {
            shared.artifact(&wanted).map(|(document, _)| document)
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
        let (digest, size) = (file.digest(), file.size());
        let what = format!("{}/{}", manifest.id(), file.path());
        if size > MAX_BLOB {
            let reason = format!("it has more than {MAX_BLOB} bytes");
            return Err(self.shared.malformed(&what, reason));
        }
        let opened = self
            .blocking(&what, deadline, move |shared| shared.layout.blob(digest))
            .await;
        sink.restart();
        let (opened, found) = match opened {
            Ok(opened) => opened,
            Err(Error::NotFound { .. }) => {
                // The last resort: in an archive.
                let version = manifest.id().clone();
                let image = manifest.info().oci_digest.as_deref();
                let image: Option<Digest> = image.and_then(|image| image.parse().ok());
                let archive = self
                    .blocking(&what, deadline, move |shared| {
                        shared.archive_with(&version, image, digest)
                    })
                    .await?;
                let content = archive.as_ref().and_then(|archive| archive.content(digest));
                return match content {
                    Some(content) => sink.write(content),
                    None => Err(self.shared.missing(Error::not_found(&what), &what)),
                };
            }
            Err(error) => return Err(error),
        };
        if found != size {
            let reason = format!("its blob has {found} bytes instead of {size}");
            return Err(self.shared.malformed(&what, reason));
        }
        let copy = async {
            let mut from = tokio::fs::File::from_std(opened).take(size);
            let mut piece = vec![0; PIECE.min(usize::try_from(size).unwrap_or(PIECE).max(1))];
            loop {
                match from.read(&mut piece).await {
                    Ok(0) => return Ok(()),
                    Ok(n) => sink.write(&piece[..n])?,
                    Err(error) => {
                        return Err(Error::Unreachable {
                            origin: self.shared.layout.origin(),
                            reason: error.to_string(),
                        });
                    }
                }
            }
        };
        deadline.run(&what, copy).await
    }

    async fn pull(
        &self,
        _manifest: &Manifest,
        _deadline: Deadline,
    ) -> Result<Option<Vec<(String, Bytes)>>> {
        Ok(None)
    }

    async fn versions(&self, bundle: &BundleId, deadline: Deadline) -> Result<Vec<Published>> {
        let wanted = bundle.clone();
        let tags = self
            .blocking(&bundle.to_string(), deadline, move |shared| {
                shared.tags(&wanted)
            })
            .await?;
        let mut rows = Tags::of(tags.keys().cloned()).rows();
        for row in &mut rows {
            let entry = tags.get(&tag_of(&row.version));
            row.oci_digest = entry.map(|entry| entry.digest.clone());
        }
        Ok(rows)
    }

    async fn bundles(&self, namespace: &Namespace, deadline: Deadline) -> Result<Vec<Slug>> {
        let what = namespace.to_string();
        let contents = self
            .blocking(&what, deadline, |shared| shared.layout.contents())
            .await?;
        let bundles = contents.keys().filter(|id| id.namespace == *namespace);
        let slugs: Vec<Slug> = bundles.map(|id| id.slug.clone()).collect();
        if slugs.is_empty() {
            return Err(Error::not_found(namespace));
        }
        Ok(slugs)
    }

    async fn namespaces(&self, deadline: Deadline) -> Result<Vec<Namespace>> {
        let contents = self
            .blocking("the index", deadline, |shared| shared.layout.contents())
            .await?;
        let mut all: Vec<Namespace> = contents.keys().map(|id| id.namespace.clone()).collect();
        all.dedup();
        Ok(all)
    }
}
