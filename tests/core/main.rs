//! What names resolve to, what versions contain and what is served of them: the promises that can
//! be shown without a kernel and without a network, against a scripted registry and a real cache.

#![allow(clippy::unwrap_used, clippy::panic, unreachable_pub)]

mod breaker;
mod content;
mod fake;
mod journal;
mod links;
mod listings;
mod locks;
mod manifests;
mod readahead;
mod refs;
mod single_flight;
mod tree;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use musherfs::cache::{Cache, HostId};
use musherfs::digest::Digest;
use musherfs::error::{Error, Result};
use musherfs::fs::tree::Attr;
use musherfs::fs::{self, Answer, Found, Fs, Invalidate};
use musherfs::manifest::{Info, Layer, Manifest};
use musherfs::metrics::{Counter, Metrics};
use musherfs::reference::{BundleId, Namespace, Selector, VersionRef};
use musherfs::resolve::{self, Resolution, Resolver};
use musherfs::source::{Deadline, Source};
use musherfs::store::journal::Journal;
use musherfs::store::{self, Loaded, Policy, Store};
use tempfile::TempDir;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use fake::Fake;

const HOST: &str = "registry.example";

/// One user's machine: a cache and a state directory.
struct Machine {
    dir: TempDir,
}

/// One process on it.
struct Process {
    cache: Arc<Cache>,
    store: Arc<Store>,
    resolver: Arc<Resolver>,
    fs: Arc<Fs>,
    metrics: Arc<Metrics>,
    kernel: UnboundedReceiver<Invalidate>,
}

/// How a process differs from the usual.
#[derive(Default)]
struct Options {
    policy: Policy,
    namespaces: Vec<Namespace>,
    cache_root: Option<PathBuf>,
}

fn no_readahead() -> Policy {
    Policy {
        readahead: 0,
        ..Policy::default()
    }
}

impl Machine {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn cache(&self) -> Cache {
        Cache::new(self.dir.path().join("cache"))
    }

    fn blob_path(&self, content: &str) -> PathBuf {
        let hex = Digest::of(content.as_bytes()).hex();
        let blobs = self.dir.path().join("cache/blobs/sha256");
        blobs.join(&hex[..2]).join(hex)
    }

    fn process(&self, sources: &[&Arc<Fake>]) -> Process {
        self.process_with(sources, Options::default())
    }

    fn process_under(&self, sources: &[&Arc<Fake>], policy: Policy) -> Process {
        let options = Options {
            policy,
            ..Options::default()
        };
        self.process_with(sources, options)
    }

    fn process_with(&self, sources: &[&Arc<Fake>], options: Options) -> Process {
        let Options {
            policy,
            namespaces,
            cache_root,
        } = options;
        let sources: Vec<Arc<dyn Source>> = sources
            .iter()
            .map(|fake| Arc::clone(fake) as Arc<dyn Source>)
            .collect();
        let cache = Arc::new(cache_root.map_or_else(|| self.cache(), Cache::new));
        let metrics = Arc::new(Metrics::default());
        let state = self.dir.path().join("state");
        let journal = Arc::new(Journal::open(&state.join("journal.jsonl")));
        let resolver = Resolver::new(resolve::Settings {
            host: host(),
            cache: Arc::clone(&cache),
            sources: sources.clone(),
            namespaces,
            local_packs: policy.local_packs,
            respect_removal: policy.respect_removal,
            timeout: policy.metadata_timeout,
            metrics: Arc::clone(&metrics),
        });
        let store = Store::new(store::Settings {
            host: host(),
            cache: Arc::clone(&cache),
            sources,
            journal: Arc::clone(&journal),
            state_dir: Some(state),
            policy,
            metrics: Arc::clone(&metrics),
        });
        let fs = Fs::new(fs::Settings {
            resolver: Arc::clone(&resolver),
            store: Arc::clone(&store),
            journal,
            user_xattr: true,
            metrics: Arc::clone(&metrics),
        });
        let (requests, kernel) = unbounded_channel();
        fs.set_kernel(requests);
        Process {
            cache,
            store,
            resolver,
            fs,
            metrics,
            kernel,
        }
    }
}

impl Process {
    fn count(&self, counter: Counter) -> u64 {
        self.metrics.get(counter)
    }

    async fn load(&self, id: &str) -> Result<Arc<Loaded>> {
        self.store.manifest(&version(id), soon()).await
    }

    /// The whole of a file, as a reader gets it.
    async fn read(&self, id: &str, path: &str) -> Result<String> {
        let loaded = self.load(id).await?;
        read(&self.store, &loaded, path).await
    }

    async fn resolve(&self, name: &str) -> Result<Resolution> {
        let (bundle, selector) = split(name);
        self.resolver.resolve(&bundle, &selector, soon()).await
    }

    /// What a ref points at.
    async fn target(&self, name: &str) -> Result<String> {
        Ok(self.resolve(name).await?.version.to_string())
    }

    async fn list(&self, name: &str) -> Result<Vec<String>> {
        let listing = self.resolver.list(&namespace(name), soon()).await?;
        let mut names = Vec::new();
        for (slug, versions) in &listing.bundles {
            names.push(slug.to_string());
            names.extend(versions.iter().map(|version| format!("{slug}@{version}")));
        }
        Ok(names)
    }

    /// Looks a path up, following no links.
    async fn find(&self, path: &str) -> Result<Option<Attr>> {
        let mut attr = Attr::directory(fs::inode::ROOT, fs::tree::epoch());
        for name in path.split('/') {
            match answer(self.fs.lookup(attr.ino, name)).await? {
                Found::Node(found, ..) => attr = found,
                Found::Absent(_) => return Ok(None),
            }
        }
        Ok(Some(attr))
    }

    async fn ino(&self, path: &str) -> u64 {
        let found = self.find(path).await.unwrap();
        found.unwrap_or_else(|| panic!("{path} is absent")).ino
    }
}

async fn read(store: &Arc<Store>, loaded: &Arc<Loaded>, path: &str) -> Result<String> {
    let entry = loaded.manifest.find(path).ok_or(Error::not_found(path))?;
    let (index, size) = (entry.index(), 1 << 20);
    let mut buffer = Vec::new();
    let bytes = match store.read_now(loaded, index, 0, size, &mut buffer) {
        Some(answer) => answer.map(|()| buffer)?,
        None => {
            let deadline = Deadline::after(store.policy().content_timeout);
            store.read(loaded, index, 0, size, deadline).await?
        }
    };
    Ok(String::from_utf8(bytes).unwrap())
}

async fn answer<T>(answer: Answer<T>) -> Result<T> {
    match answer {
        Answer::Now(answer) => answer,
        Answer::Later(answer) => answer.await,
    }
}

/// Lets other tasks run until `condition` holds.
async fn eventually(condition: impl Fn() -> bool) {
    // Not tokio's time, which some tests have paused.
    let start = std::time::Instant::now();
    while !condition() {
        assert!(
            start.elapsed() < Duration::from_secs(60),
            "it never happened"
        );
        tokio::task::yield_now().await;
        // Blocking work in other threads wants the processor, too.
        std::thread::yield_now();
    }
}

/// Waits until nobody does anything any more. Only in a test whose time is paused: it goes on when
/// every task waits for something else.
async fn quiet() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

fn host() -> HostId {
    HOST.parse().unwrap()
}

fn version(text: &str) -> VersionRef {
    text.parse().unwrap()
}

fn namespace(text: &str) -> Namespace {
    text.parse().unwrap()
}

fn split(name: &str) -> (BundleId, Selector) {
    let (bundle, selector) = name.split_once('@').unwrap_or((name, "latest"));
    (bundle.parse().unwrap(), selector.parse().unwrap())
}

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(10))
}

/// The manifest of a version with these files.
fn manifest(id: &str, info: Info, files: &[(&str, &str)]) -> Manifest {
    let layers = files.iter().map(|(path, text)| Layer {
        path: (*path).to_owned(),
        digest: Digest::of(text.as_bytes()),
        size: Some(text.len() as u64),
        asset_type: "prompt".to_owned(),
        asset_id: String::new(),
        media_type: None,
    });
    Manifest::new(version(id), info, layers.collect()).unwrap()
}

fn hours_ago(hours: i64) -> Timestamp {
    Timestamp::now() - jiff::SignedDuration::from_hours(hours)
}

/// Puts a version into the cache as another tool would have, so many hours ago.
fn cache_version(cache: &Cache, id: &str, info: Info, files: &[(&str, &str)], hours: i64) {
    let manifest = manifest(id, info, files);
    cache
        .write_manifest(&host(), &manifest, hours_ago(hours))
        .unwrap();
    for (_, text) in files {
        cache_blob(cache, text);
    }
}

fn cache_blob(cache: &Cache, text: &str) {
    let mut writer = cache.blob_writer(text.len() as u64);
    writer.write(text.as_bytes()).unwrap();
    writer.finish(Digest::of(text.as_bytes())).unwrap();
}

fn cache_ref(cache: &Cache, name: &str, target: &str, hours: i64) {
    let (bundle, selector) = split(name);
    let target = target.parse().unwrap();
    cache
        .write_ref(
            &host(),
            &bundle,
            &selector.text(),
            &target,
            hours_ago(hours),
        )
        .unwrap();
}
