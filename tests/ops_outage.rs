//! A registry that is down for an hour is not what a log is full of.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use musherfs::cache::Cache;
use musherfs::error::{Error, Result};
use musherfs::fs::{self, Answer, Fs};
use musherfs::manifest::{Document, Entry, Manifest};
use musherfs::metrics::Metrics;
use musherfs::reference::{BundleId, HostId, Namespace, Selector, Slug, VersionRef};
use musherfs::resolve::{self, Resolver};
use musherfs::source::breaker::Guarded;
use musherfs::source::{Deadline, Published, Sink, Source};
use musherfs::store::journal::Journal;
use musherfs::store::{self, Policy, Store};

const READERS: usize = 100;
const HOUR: Duration = Duration::from_secs(60 * 60);

/// Everything that this program logs at the level of a daemon.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A registry that refuses connections, and counts them.
#[derive(Default)]
struct Dead(AtomicU64);

impl Dead {
    fn refuse<T>(&self) -> Result<T> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Err(Error::Unreachable {
            origin: "registry https://registry.test".to_owned(),
            reason: "connection refused".to_owned(),
        })
    }
}

#[async_trait]
impl Source for Dead {
    fn name(&self) -> &str {
        "registry https://registry.test"
    }
    async fn resolve(&self, _: &BundleId, _: &Selector, _: Deadline) -> Result<Document> {
        self.refuse()
    }
    async fn manifest(&self, _: &VersionRef, _: Deadline) -> Result<Document> {
        self.refuse()
    }
    async fn blob(&self, _: &Manifest, _: Entry<'_>, _: &mut dyn Sink, _: Deadline) -> Result<()> {
        self.refuse()
    }
    async fn pull(&self, _: &Manifest, _: Deadline) -> Result<Option<Vec<(String, Bytes)>>> {
        self.refuse()
    }
    async fn versions(&self, _: &BundleId, _: Deadline) -> Result<Vec<Published>> {
        self.refuse()
    }
    async fn bundles(&self, _: &Namespace, _: Deadline) -> Result<Vec<Slug>> {
        self.refuse()
    }
    async fn namespaces(&self, _: Deadline) -> Result<Vec<Namespace>> {
        self.refuse()
    }
}

fn tree(source: Arc<dyn Source>, root: &std::path::Path) -> Arc<Fs> {
    let host: HostId = "registry.test".parse().unwrap();
    let cache = Arc::new(Cache::new(root.join("cache")));
    let journal = Arc::new(Journal::in_memory());
    let metrics = Arc::new(Metrics::default());
    let resolver = Resolver::new(resolve::Settings {
        host: host.clone(),
        cache: Arc::clone(&cache),
        sources: vec![Arc::clone(&source)],
        namespaces: vec!["acme".parse().unwrap()],
        local_packs: false,
        respect_removal: false,
        timeout: Duration::from_secs(10),
        metrics: Arc::clone(&metrics),
    });
    let store = Store::new(store::Settings {
        host,
        cache,
        sources: vec![source],
        journal: Arc::clone(&journal),
        state_dir: None,
        policy: Policy::default(),
        metrics: Arc::clone(&metrics),
    });
    Fs::new(fs::Settings {
        resolver,
        store,
        journal,
        user_xattr: false,
        metrics,
    })
}

async fn finish<T>(answer: Answer<T>) -> Result<T> {
    match answer {
        Answer::Now(answer) => answer,
        Answer::Later(answer) => answer.await,
    }
}

#[tokio::test(start_paused = true)]
async fn an_hour_without_a_registry_and_a_hundred_readers_are_a_few_lines() {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::INFO)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    let scratch = tempfile::tempdir().unwrap();
    let dead = Arc::new(Dead::default());
    let guarded: Arc<dyn Source> = Arc::new(Guarded::new(Arc::clone(&dead) as Arc<dyn Source>));
    let fs = tree(guarded, scratch.path());
    let acme = match finish(fs.lookup(1, "acme")).await.unwrap() {
        fs::Found::Node(attr, ..) => attr.ino,
        fs::Found::Absent(_) => panic!("the namespace is configured"),
    };
    let start = tokio::time::Instant::now();
    let failed = Arc::new(AtomicU64::new(0));
    let readers = (0..READERS).map(|reader| {
        let (fs, failed) = (Arc::clone(&fs), Arc::clone(&failed));
        tokio::spawn(async move {
            let names = [
                "kit".to_owned(),
                format!("kit@1.0.{reader}"),
                format!("tool-{reader}"),
            ];
            while start.elapsed() < HOUR {
                for name in &names {
                    if finish(fs.lookup(acme, name)).await.is_err() {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
                let _ = finish(fs.directory(acme)).await;
                tokio::time::sleep(Duration::from_secs(20)).await;
            }
        })
    });
    for reader in readers.collect::<Vec<_>>() {
        reader.await.unwrap();
    }
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let lines = text.lines().count();
    println!(
        "{lines} lines, {} failures, {} requests",
        failed.load(Ordering::Relaxed),
        dead.0.load(Ordering::Relaxed)
    );
    // The readers were told, each time; the log was told once.
    assert!(failed.load(Ordering::Relaxed) > 10_000);
    assert!(text.contains("the source is down"), "{text}");
    assert!(lines <= 20, "{text}");
    // And the registry is not hammered while it is down: a probe every half minute.
    assert!(
        dead.0.load(Ordering::Relaxed) <= 250,
        "{}",
        dead.0.load(Ordering::Relaxed)
    );
}
