//! A user's cache, a registry in memory that is always right or always down, and processes that
//! read the one through the other.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use musherfs::cache::{Cache, HostId};
use musherfs::digest::Digest;
use musherfs::error::{Error, Result};
use musherfs::manifest::{Document, Entry, Info, Layer, Manifest, State};
use musherfs::metrics::Metrics;
use musherfs::reference::{BundleId, Namespace, Selector, Slug, VersionRef};
use musherfs::resolve::{self, Resolver};
use musherfs::source::{Deadline, Published, Sink, Source};
use musherfs::store::journal::Journal;
use musherfs::store::{self, Loaded, Policy, Store};
use tempfile::TempDir;

use crate::support::prove::Random;

pub(crate) const VERSIONS: [&str; 4] = ["1.0.0", "1.1.0", "1.2.0", "1.3.0"];
const FILES: usize = 50;

pub(crate) fn host() -> HostId {
    "registry.example".parse().unwrap()
}

pub(crate) fn id(version: &str) -> VersionRef {
    format!("acme/kit@{version}").parse().unwrap()
}

/// Everything that there is, and whether it can be had.
struct Good {
    versions: HashMap<VersionRef, Vec<(String, Vec<u8>)>>,
    contents: HashMap<Digest, Bytes>,
}

pub(crate) struct Machine {
    dir: TempDir,
    good: Arc<Good>,
}

/// One process on the machine.
pub(crate) struct Process {
    pub(crate) store: Arc<Store>,
    pub(crate) resolver: Arc<Resolver>,
}

impl Machine {
    /// A cache that is empty yet.
    pub(crate) fn new(random: &mut Random) -> Self {
        let mut versions = HashMap::new();
        let mut contents = HashMap::new();
        for version in VERSIONS {
            let files: Vec<(String, Vec<u8>)> = (0..FILES)
                .map(|index| {
                    let size = match index {
                        0 => 1,
                        1 => 200_000,
                        2..5 => 5_000 + random.index(20_000),
                        _ => 2 + random.index(700),
                    };
                    let mut bytes = format!("{version} {index} ").into_bytes();
                    bytes.extend((0..size).map(|_| b' ' + u8::try_from(random.below(90)).unwrap()));
                    (format!("dir-{}/file-{index}.md", index % 5), bytes)
                })
                .collect();
            for (_, bytes) in &files {
                contents.insert(Digest::of(bytes), bytes.clone().into());
            }
            versions.insert(id(version), files);
        }
        Self {
            dir: tempfile::tempdir().unwrap(),
            good: Arc::new(Good { versions, contents }),
        }
    }

    /// All files: version, path and content.
    pub(crate) fn files(&self) -> Vec<(&'static str, String, Vec<u8>)> {
        VERSIONS
            .iter()
            .flat_map(|version| {
                let files = &self.good.versions[&id(version)];
                files
                    .iter()
                    .map(|(path, bytes)| (*version, path.clone(), bytes.clone()))
            })
            .collect()
    }

    pub(crate) fn root(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    pub(crate) fn blob(&self, content: &[u8]) -> PathBuf {
        let hex = Digest::of(content).hex();
        let blobs = self.root().join("blobs/sha256");
        blobs.join(&hex[..2]).join(hex)
    }

    /// Puts the right blob in place, whatever is there.
    pub(crate) fn restore(&self, content: &[u8]) {
        let blob = self.blob(content);
        let _ = fs::remove_dir(&blob);
        let new = blob.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::rename(&new, &blob).unwrap();
    }

    /// A process with the good source.
    pub(crate) fn process(&self) -> Process {
        self.start(vec![Arc::clone(&self.good) as Arc<dyn Source>])
    }

    /// A process whose source is down.
    pub(crate) fn process_without_source(&self) -> Process {
        self.start(vec![Arc::new(Down)])
    }

    fn start(&self, sources: Vec<Arc<dyn Source>>) -> Process {
        let cache = Arc::new(Cache::new(self.root()));
        let metrics = Arc::new(Metrics::default());
        let state = self.dir.path().join("state");
        let policy = Policy {
            readahead: 0,
            ..Policy::default()
        };
        let resolver = Resolver::new(resolve::Settings {
            host: host(),
            cache: Arc::clone(&cache),
            sources: sources.clone(),
            namespaces: Vec::new(),
            local_packs: false,
            respect_removal: false,
            timeout: policy.metadata_timeout,
            metrics: Arc::clone(&metrics),
        });
        let store = Store::new(store::Settings {
            host: host(),
            cache,
            sources,
            journal: Arc::new(Journal::open(&state.join("journal.jsonl"))),
            state_dir: Some(state),
            policy,
            metrics,
        });
        Process { store, resolver }
    }
}

fn soon() -> Deadline {
    Deadline::after(std::time::Duration::from_secs(60))
}

impl Process {
    pub(crate) async fn manifest(&self, version: &str) -> Result<Arc<Loaded>> {
        self.store.manifest(&id(version), soon()).await
    }

    /// The whole of a file, as a reader gets it.
    pub(crate) async fn read(&self, version: &str, path: &str) -> Result<Vec<u8>> {
        let loaded = self.manifest(version).await?;
        let entry = loaded.manifest.find(path).ok_or(Error::not_found(path))?;
        let (index, size) = (entry.index(), 1 << 20);
        let mut buffer = Vec::new();
        match self.store.read_now(&loaded, index, 0, size, &mut buffer) {
            Some(answer) => answer.map(|()| buffer),
            None => self.store.read(&loaded, index, 0, size, soon()).await,
        }
    }

    /// What a moving name of the bundle stands for.
    pub(crate) async fn target(&self, selector: &str) -> Result<String> {
        let bundle: BundleId = "acme/kit".parse().unwrap();
        let selector = selector.parse().unwrap();
        let resolved = self.resolver.resolve(&bundle, &selector, soon()).await?;
        Ok(resolved.version.to_string())
    }
}

impl Good {
    fn document(&self, version: &VersionRef) -> Result<Document> {
        let files = self.versions.get(version);
        let files = files.ok_or_else(|| Error::not_found(version))?;
        let layers = files.iter().map(|(path, bytes)| Layer {
            path: path.clone(),
            digest: Digest::of(bytes),
            size: Some(bytes.len() as u64),
            asset_type: "prompt".to_owned(),
            asset_id: String::new(),
            media_type: None,
        });
        Ok(Document {
            namespace: Some("acme".to_owned()),
            slug: Some("kit".to_owned()),
            version: Some(version.version.to_string()),
            info: Info::default(),
            layers: Some(layers.collect()),
        })
    }
}

/// What the moving names stand for: the newest, and a tag that is not.
pub(crate) fn stands_for(selector: &str) -> &'static str {
    match selector {
        "latest" => VERSIONS[3],
        _ => VERSIONS[1],
    }
}

#[async_trait]
impl Source for Good {
    fn name(&self) -> &str {
        "memory"
    }

    async fn resolve(&self, _: &BundleId, selector: &Selector, _: Deadline) -> Result<Document> {
        match selector {
            Selector::Version(version) => self.document(&id(&version.to_string())),
            selector => self.document(&id(stands_for(&selector.text()))),
        }
    }

    async fn manifest(&self, version: &VersionRef, _: Deadline) -> Result<Document> {
        self.document(version)
    }

    async fn blob(
        &self,
        _: &Manifest,
        file: Entry<'_>,
        sink: &mut dyn Sink,
        _: Deadline,
    ) -> Result<()> {
        let content = self.contents.get(&file.digest());
        sink.write(content.ok_or_else(|| Error::not_found(file.path()))?)
    }

    async fn pull(&self, _: &Manifest, _: Deadline) -> Result<Option<Vec<(String, Bytes)>>> {
        Ok(None)
    }

    async fn versions(&self, _: &BundleId, _: Deadline) -> Result<Vec<Published>> {
        let rows = VERSIONS.iter().map(|version| Published {
            version: version.parse().unwrap(),
            state: State::Published,
            oci_digest: None,
        });
        Ok(rows.collect())
    }

    async fn bundles(&self, _: &Namespace, _: Deadline) -> Result<Vec<Slug>> {
        Ok(vec!["kit".parse().unwrap()])
    }

    async fn namespaces(&self, _: Deadline) -> Result<Vec<Namespace>> {
        Ok(Vec::new())
    }
}

/// A source that is not there.
struct Down;

fn down<T>() -> Result<T> {
    Err(Error::Unreachable {
        origin: "nobody".to_owned(),
        reason: "connection refused".to_owned(),
    })
}

#[async_trait]
impl Source for Down {
    fn name(&self) -> &str {
        "nobody"
    }

    async fn resolve(&self, _: &BundleId, _: &Selector, _: Deadline) -> Result<Document> {
        down()
    }

    async fn manifest(&self, _: &VersionRef, _: Deadline) -> Result<Document> {
        down()
    }

    async fn blob(&self, _: &Manifest, _: Entry<'_>, _: &mut dyn Sink, _: Deadline) -> Result<()> {
        down()
    }

    async fn pull(&self, _: &Manifest, _: Deadline) -> Result<Option<Vec<(String, Bytes)>>> {
        down()
    }

    async fn versions(&self, _: &BundleId, _: Deadline) -> Result<Vec<Published>> {
        down()
    }

    async fn bundles(&self, _: &Namespace, _: Deadline) -> Result<Vec<Slug>> {
        down()
    }

    async fn namespaces(&self, _: Deadline) -> Result<Vec<Namespace>> {
        down()
    }
}
