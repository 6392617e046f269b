//! Read-ahead: whoever reads a second cold file of a version will want its neighbours.
//!
//! One cold file fetches one file. The second starts fetching its siblings, nearest in the sorted
//! table first, within a window: at most the configured bytes fetched or under way but not yet read,
//! and [`MOST_IN_FLIGHT`] requests at a time. The window is refilled by reading on and stays as it is
//! when the readers stop. Where most of a small version is missing and a source can send all of it in
//! one answer (`:pull`), that is asked for once instead, by one of all processes; readers who come
//! meanwhile wait for it.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use tokio::sync::watch;
use tracing::debug;

use super::{Loaded, Store, journal_key, lock};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::Entry;
use crate::metrics::Counter;
use crate::source::{Deadline, Source};

/// Most requests that read-ahead has under way for one version.
const MOST_IN_FLIGHT: usize = 64;

/// Most bytes of a version that is asked for in one answer, and most files among which it is worth
/// finding out how many bytes are missing.
const MOST_PULLED: (u64, u32) = (4 << 20, 8192);

/// Most neighbours that one read looks at: each costs a stat(2) at most once.
const MOST_LOOKED_AT: u32 = 512;

/// Most versions whose progress is remembered; beyond that all of it is forgotten.
const MOST_VERSIONS: usize = 1024;

/// How far the readers of one version are.
#[derive(Default)]
pub(super) struct Progress {
    /// Files that somebody waited for. Two start the read-ahead.
    cold: HashSet<u32>,
    /// Files that were considered: fetched, under way or found in the cache.
    seen: HashSet<u32>,
    /// Bytes of files fetched ahead, or under way, that nobody has read yet.
    unread: HashMap<u32, u64>,
    in_flight: usize,
    /// The one answer with everything, while it is under way; `true` when it is over.
    pull: Option<watch::Receiver<bool>>,
}

impl Progress {
    fn is_active(&self) -> bool {
        self.cold.len() >= 2
    }
}

/// What a read starts.
enum Plan {
    Nothing,
    Pull(watch::Sender<bool>),
    Fetch(Vec<u32>),
}

impl Store {
    /// A reader waits for a file that is not cached.
    pub(super) fn note_cold(self: &Arc<Self>, loaded: &Arc<Loaded>, index: u32) {
        if self.policy.readahead == 0 || self.sources.is_empty() {
            return;
        }
        {
            let mut ahead = lock(&self.ahead);
            if ahead.len() >= MOST_VERSIONS && !ahead.contains_key(loaded.manifest.id()) {
                ahead.clear();
            }
            let progress = ahead.entry(loaded.manifest.id().clone()).or_default();
            if !progress.unread.contains_key(&index) {
                progress.cold.insert(index);
            }
            progress.seen.insert(index);
        }
        self.read_ahead(loaded, index);
    }

    /// A reader got bytes of a file, wherever they came from.
    pub(super) fn note_read(self: &Arc<Self>, loaded: &Arc<Loaded>, index: u32) {
        if self.policy.readahead == 0 || self.sources.is_empty() {
            return;
        }
        let goes_on = lock(&self.ahead)
            .get_mut(loaded.manifest.id())
            .is_some_and(|progress| {
                // Only the first read of a file moves the window.
                let is_new = progress.seen.insert(index);
                let was_ahead = progress.unread.remove(&index).is_some();
                (is_new || was_ahead) && progress.is_active()
            });
        if goes_on {
            self.read_ahead(loaded, index);
        }
    }

    /// Waits for a pull of this version that is under way, here or in another process, if there is
    /// one.
    pub(super) async fn await_pull(&self, loaded: &Loaded, deadline: Deadline) {
        let pull = lock(&self.ahead)
            .get(loaded.manifest.id())
            .and_then(|progress| progress.pull.clone());
        if let Some(mut pull) = pull {
            let over = async {
                // An error means that the task is gone, which also is an end.
                let _ = pull.wait_for(|over| *over).await;
                Ok(())
            };
            let _ = deadline.run("pull", over).await;
        }
        // Whoever holds it may be stopped: then there is time left to do without.
        let patience = deadline.share(3);
        self.locks.released(pull_lock(loaded), patience).await;
    }

    fn read_ahead(self: &Arc<Self>, loaded: &Arc<Loaded>, index: u32) {
        match self.plan(loaded, index) {
            Plan::Nothing => {}
            Plan::Pull(over) => {
                let (store, loaded) = (Arc::clone(self), Arc::clone(loaded));
                tokio::spawn(async move {
                    store.pull(&loaded).await;
                    let _ = over.send(true);
                    store.read_ahead(&loaded, index);
                });
            }
            Plan::Fetch(files) => {
                for file in files {
                    let (store, loaded) = (Arc::clone(self), Arc::clone(loaded));
                    tokio::spawn(async move { store.fetch_ahead(&loaded, file).await });
                }
            }
        }
    }

    fn plan(&self, loaded: &Loaded, index: u32) -> Plan {
        let manifest = &loaded.manifest;
        let mut ahead = lock(&self.ahead);
        let Some(progress) = ahead
            .get_mut(manifest.id())
            .filter(|progress| progress.is_active())
        else {
            return Plan::Nothing;
        };
        match &progress.pull {
            Some(pull) if !*pull.borrow() && pull.has_changed().is_ok() => return Plan::Nothing,
            Some(_) => {}
            None => {
                let (over, pull) = watch::channel(false);
                progress.pull = Some(pull);
                if manifest.len() <= MOST_PULLED.1 {
                    drop(ahead);
                    if self.is_worth_a_pull(loaded, MOST_PULLED.0.min(self.policy.readahead)) {
                        return Plan::Pull(over);
                    }
                    ahead = lock(&self.ahead);
                }
                let _ = over.send(true);
            }
        }
        let Some(progress) = ahead.get_mut(manifest.id()) else {
            return Plan::Nothing;
        };
        let mut room = self
            .policy
            .readahead
            .saturating_sub(progress.unread.values().sum());
        let mut chosen = Vec::new();
        let last = manifest.len().saturating_sub(1);
        let neighbours = (1..=MOST_LOOKED_AT)
            .flat_map(|distance| [index.checked_add(distance), index.checked_sub(distance)])
            .flatten()
            .filter(|&file| (1..=last).contains(&file));
        for file in neighbours {
            if progress.in_flight >= MOST_IN_FLIGHT {
                break;
            }
            let Some(entry) = manifest.entry(file).filter(Entry::is_file) else {
                continue;
            };
            // What would never fit waits for its own reader.
            if progress.seen.contains(&file) || entry.size() > self.policy.readahead {
                continue;
            }
            if entry.size() > room {
                break;
            }
            progress.seen.insert(file);
            if self.is_cached(entry.digest()) {
                continue;
            }
            room -= entry.size();
            progress.unread.insert(file, entry.size());
            progress.in_flight += 1;
            chosen.push(file);
        }
        if chosen.is_empty() {
            Plan::Nothing
        } else {
            Plan::Fetch(chosen)
        }
    }

    async fn fetch_ahead(self: Arc<Self>, loaded: &Arc<Loaded>, file: u32) {
        let deadline = Deadline::after(self.policy.content_timeout);
        let answer = self.fetch_file(loaded, file, deadline).await;
        let mut ahead = lock(&self.ahead);
        let Some(progress) = ahead.get_mut(loaded.manifest.id()) else {
            return;
        };
        progress.in_flight = progress.in_flight.saturating_sub(1);
        match answer {
            Ok(()) => self.metrics.count(Counter::ReadAhead),
            Err(error) => {
                debug!(version = %loaded.manifest.id(), file, %error, "read-ahead failed");
                // Its reader will try for itself.
                progress.unread.remove(&file);
            }
        }
    }

    /// Fetches all content of a version in one answer, if a source can, and nobody else just has;
    /// what it lacks is fetched file by file, by whoever needs it. For what is worth it
    /// ([`Store::is_worth_a_pull`]).
    pub(crate) async fn pull(&self, loaded: &Arc<Loaded>) {
        // Readers who wait for it must have time left to fetch their file themselves.
        let deadline = Deadline::after(self.policy.content_timeout / 3);
        let _lock = self
            .locks
            .acquire(pull_lock(loaded), deadline.share(2))
            .await;
        if !self.is_worth_a_pull(loaded, u64::MAX) {
            return;
        }
        for source in &self.sources {
            if !source.pulls(&loaded.manifest) {
                return;
            }
            match self.pull_from(source, loaded, deadline).await {
                Ok(Some(kept)) => {
                    self.metrics.add(Counter::ReadAhead, kept as u64);
                    debug!(version = %loaded.manifest.id(), kept, source = source.name(), "pulled");
                    return;
                }
                Ok(None) => {}
                Err(error) => {
                    debug!(version = %loaded.manifest.id(), source = source.name(), %error, "no pull")
                }
            }
        }
    }

    async fn pull_from(
        &self,
        source: &Arc<dyn Source>,
        loaded: &Arc<Loaded>,
        deadline: Deadline,
    ) -> Result<Option<usize>, Error> {
        let manifest = &loaded.manifest;
        let pulling = source.pull(manifest, deadline);
        let Some(pulled) = deadline.run(manifest.id(), pulling).await? else {
            return Ok(None);
        };
        Ok(Some(self.keep_pulled(
            loaded,
            pulled,
            &source.name().into(),
        )))
    }
}

/// What a process locks that fetches all of a version in one answer.
fn pull_lock(loaded: &Loaded) -> Digest {
    let what = format!("pull {}", journal_key(&loaded.host, loaded.manifest.id()));
    Digest::of(what.as_bytes())
}
