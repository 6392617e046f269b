//! Loading: all content of a version, verified and cached before anybody reads it.
//!
//! Many files at a time, and in one answer where little is missing and the source can. What is there
//! already and good is not fetched again, so a load that was interrupted goes on where it was.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::StreamExt as _;
use tracing::debug;

use crate::client::Client;
use crate::error::{Error, Result};
use crate::manifest::State;
use crate::reference::{BundleRef, Selector, VersionRef};
use crate::source::Deadline;
use crate::store::Loaded;

/// How many files are under way at a time.
const AT_A_TIME: usize = 32;

/// A version of up to so many bytes is asked for in one answer.
const MOST_PULLED: u64 = 4 << 20;

/// How a version is loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Ask what the name stands for and what the version contains, however fresh the answers are.
    pub confirm: bool,
    /// Fetch what is cached as well; implies `confirm`.
    pub force: bool,
}

/// Who watches a load. Called from several tasks.
pub trait Progress: Send + Sync {
    /// So many more files and bytes are to be loaded.
    fn expect(&self, files: u64, bytes: u64);

    /// One of them is: fetched, or found.
    fn done(&self, bytes: u64);
}

/// Nobody watches.
impl Progress for () {
    fn expect(&self, _: u64, _: u64) {}
    fn done(&self, _: u64) {}
}

/// A version that is about to be loaded.
#[derive(Debug)]
pub struct Planned {
    loaded: Arc<Loaded>,
    options: Options,
    was_known: bool,
}

/// What loading came to.
#[derive(Debug)]
pub struct Report {
    /// The version.
    pub loaded: Arc<Loaded>,
    /// How many different files were fetched.
    pub fetched_files: u64,
    /// Their bytes.
    pub fetched_bytes: u64,
    /// Whether everything was cached already, the list of files included.
    pub cached: bool,
    /// The files that could not be loaded, and why.
    pub failures: Vec<(String, Error)>,
}

impl Report {
    /// Why the load is not complete: the first failure, if there is one.
    pub fn failure(&self) -> Option<Error> {
        self.failures.first().map(|(_, error)| error.clone())
    }
}

/// Finds out what a reference stands for and what is in it.
///
/// # Errors
///
/// Those of resolving and of fetching the list of files. Without `confirm`, what is known serves
/// when nobody answers.
pub async fn plan(client: &Client, reference: &BundleRef, options: Options) -> Result<Planned> {
    let confirm = options.confirm || options.force;
    if !confirm {
        let loaded = client.manifest(reference).await?;
        let was_known = &*loaded.origin == "cache" || loaded.host.is_local();
        return Ok(Planned {
            loaded,
            options,
            was_known,
        });
    }
    let deadline = Deadline::after(client.store.policy().metadata_timeout);
    let bundle = &reference.bundle;
    let version = match &reference.selector {
        Selector::Version(version) => version.clone(),
        selector => {
            let known = client.resolver.locked_now(bundle, selector);
            match known {
                Some(answer) => answer?.version,
                None => {
                    client
                        .resolver
                        .ask(bundle, selector, deadline)
                        .await?
                        .version
                }
            }
        }
    };
    let id = VersionRef {
        bundle: bundle.clone(),
        version,
    };
    let loaded = client.store.fetch(&id, deadline).await?;
    if loaded.is_yanked() && client.store.policy().deny_yanked {
        return Err(Error::Yanked {
            what: id.to_string(),
        });
    }
    Ok(Planned {
        loaded,
        options,
        was_known: false,
    })
}

/// Loads everything that a reference stands for.
///
/// # Errors
///
/// Those of [`plan`]; files that cannot be loaded are in the report.
pub async fn load(
    client: &Client,
    reference: &BundleRef,
    options: Options,
    progress: &dyn Progress,
) -> Result<Report> {
    let planned = plan(client, reference, options).await?;
    Ok(planned.run(client, progress).await)
}

impl Planned {
    /// The version that the reference stands for.
    pub fn version(&self) -> &VersionRef {
        self.loaded.manifest.id()
    }

    /// The list of its files.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// Loads it.
    pub async fn run(self, client: &Client, progress: &dyn Progress) -> Report {
        let Self {
            loaded,
            options,
            was_known,
        } = self;
        let manifest = &loaded.manifest;
        let mut seen = HashSet::new();
        let files: Vec<(u32, u64)> = manifest
            .files()
            .filter(|file| file.size() > 0 && seen.insert(file.digest()))
            .map(|file| (file.index(), file.size()))
            .collect();
        progress.expect(
            files.len() as u64,
            files.iter().map(|(_, size)| *size).sum(),
        );
        let cache = client.store.cache();
        let is_there = |index: u32, size: u64| {
            let digest = manifest.entry(index).map(|entry| entry.digest());
            digest.and_then(|digest| cache.blob_size(digest)) == Some(size)
        };
        let missing: HashSet<u32> = files
            .iter()
            .filter(|(index, size)| options.force || !is_there(*index, *size))
            .map(|(index, _)| *index)
            .collect();
        if !options.force
            && missing.len() > 1
            && client.store.found_worth_a_pull(&loaded, MOST_PULLED).await
        {
            client.store.pull(&loaded).await;
        }
        // With nobody to ask any more, the rest would only fail one by one.
        let given_up = AtomicBool::new(false);
        let results: Vec<(u32, u64, Result<()>)> =
            futures_util::stream::iter(files.iter().copied())
                .map(|(index, size)| {
                    let (loaded, given_up) = (&loaded, &given_up);
                    async move {
                        if given_up.load(Ordering::Relaxed) {
                            let what = loaded.manifest.id().to_string();
                            return (index, size, Err(Error::Offline { what }));
                        }
                        let answer = one(client, loaded, index, options).await;
                        match &answer {
                            Ok(()) => progress.done(size),
                            Err(error) if error.is_outage() => {
                                given_up.store(true, Ordering::Relaxed)
                            }
                            Err(_) => {}
                        }
                        (index, size, answer)
                    }
                })
                .buffered(AT_A_TIME)
                .collect()
                .await;
        let mut report = Report {
            fetched_files: 0,
            fetched_bytes: 0,
            cached: was_known && missing.is_empty(),
            failures: Vec::new(),
            loaded: Arc::clone(&loaded),
        };
        for (index, size, answer) in results {
            let path = || {
                let entry = manifest.entry(index);
                entry.map_or_else(String::new, |entry| entry.path().to_owned())
            };
            match answer {
                Ok(()) if !is_there(index, size) => report.failures.push((
                    path(),
                    Error::io(
                        cache.root(),
                        std::io::Error::new(
                            std::io::ErrorKind::StorageFull,
                            format!("no room for {}/{}", manifest.id(), path()),
                        ),
                    ),
                )),
                Ok(()) if missing.contains(&index) => {
                    report.fetched_files += 1;
                    report.fetched_bytes += size;
                }
                Ok(()) => {}
                Err(error) => {
                    debug!(version = %manifest.id(), path = path(), %error, "not loaded");
                    report.failures.push((path(), error));
                }
            }
        }
        report
    }
}

async fn one(client: &Client, loaded: &Arc<Loaded>, index: u32, options: Options) -> Result<()> {
    let deadline = Deadline::after(client.store.policy().content_timeout);
    if options.force {
        return client.store.refetch_file(loaded, index, deadline).await;
    }
    client.store.fetch_file(loaded, index, deadline).await
}

/// Whether the version is withdrawn, for a warning.
pub fn is_yanked(loaded: &Loaded) -> bool {
    loaded.manifest.info().state == State::Yanked
}
