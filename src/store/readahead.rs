//! Read-ahead: whoever reads a second cold file of a version will want its neighbours.
//!
//! One cold file fetches one file. The second starts fetching its siblings, nearest in the sorted
//! table first, within a window: at most the configured bytes fetched or under way but not yet read,
//! and [`MOST_IN_FLIGHT`] requests at a time. The window is refilled by reading on, and while somebody
//! waits for a file also by whatever else arrives: readers who wait cannot read on, and the way to
//! the registry would be empty until their file comes. It stays as it is when the readers stop. When
//! it is full of what nobody came for, each file that somebody has to wait for lets the oldest of it
//! go: it stays in the cache, and makes room for what is near to where the readers are now. Where
//! most of a small version is missing and a source can send all of it in one answer (`:pull`), that
//! is asked for once instead, by one of all processes; readers who come meanwhile wait for it.

use std::collections::{HashMap, HashSet};
use std::iter::Peekable;
use std::sync::Arc;

use lru::LruCache;
use tokio::sync::watch;
use tracing::debug;

use super::{Loaded, Store, journal_key};
use crate::digest::Digest;
use crate::error::Error;
use crate::manifest::Entry;
use crate::metrics::Counter;
use crate::reference::VersionRef;
use crate::source::{Deadline, Source};
use crate::sync::lock;

/// Most requests that read-ahead has under way for one version.
const MOST_IN_FLIGHT: usize = 64;

/// Most bytes of a version that is asked for in one answer, and most files among which it is worth
/// finding out how many bytes are missing.
const MOST_PULLED: (u64, u32) = (4 << 20, 8192);

/// Most neighbours that one read looks at: each costs a stat(2) at most once.
const MOST_LOOKED_AT: u32 = 512;

/// Most versions whose progress is remembered, besides those for which something is under way; beyond
/// that the ones are forgotten that nobody has read for the longest time.
const MOST_VERSIONS: usize = 1024;

/// A file that was fetched ahead, or is under way.
struct Unread {
    size: u64,
    /// Whether it is there, and as which one since the first.
    arrived: Option<u64>,
}

/// How far the readers of one version are.
#[derive(Default)]
pub(super) struct Progress {
    /// Files that somebody waited for. Two start the read-ahead.
    cold: HashSet<u32>,
    /// Files that were considered: fetched, under way or found in the cache.
    seen: HashSet<u32>,
    /// Bytes of files fetched ahead, or under way, that nobody has read yet.
    unread: HashMap<u32, Unread>,
    arrivals: u64,
    /// Whether the window had no room for the next file when it was last filled.
    is_full: bool,
    in_flight: usize,
    /// The files that readers are waiting for, once for each.
    waited_for: Vec<u32>,
    /// Whose neighbours are next, so that all who wait get some.
    turn: usize,
    /// The one answer with everything, while it is under way; `true` when it is over.
    pull: Option<watch::Receiver<bool>>,
}

impl Progress {
    fn is_active(&self) -> bool {
        self.cold.len() >= 2
    }

    /// Whether forgetting it would lose track of something.
    fn is_busy(&self) -> bool {
        let is_pulling =
            |pull: &watch::Receiver<bool>| !*pull.borrow() && pull.has_changed().is_ok();
        self.in_flight > 0
            || !self.waited_for.is_empty()
            || self.pull.as_ref().is_some_and(is_pulling)
    }

    /// A file that was fetched ahead is there.
    fn arrived(&mut self, file: u32) {
        self.arrivals += 1;
        if let Some(unread) = self.unread.get_mut(&file) {
            unread.arrived = Some(self.arrivals);
        }
    }

    /// Makes room in a full window, at the cost of the file that has waited longest for its reader.
    fn let_oldest_go(&mut self) {
        let there = self.unread.iter();
        let there = there.filter_map(|(&file, unread)| Some((unread.arrived?, file)));
        if let Some((_, oldest)) = there.min() {
            self.unread.remove(&oldest);
        }
    }

    /// One of the files that somebody waits for, another one each time.
    fn next_waited_for(&mut self) -> Option<u32> {
        let next = self.turn.checked_rem(self.waited_for.len())?;
        self.turn = next + 1;
        self.waited_for.get(next).copied()
    }
}

/// How far the readers of all versions are.
pub(super) struct Ahead(LruCache<VersionRef, Progress>);

impl Default for Ahead {
    fn default() -> Self {
        Self(LruCache::unbounded())
    }
}

impl Ahead {
    fn get(&self, version: &VersionRef) -> Option<&Progress> {
        self.0.peek(version)
    }

    fn get_mut(&mut self, version: &VersionRef) -> Option<&mut Progress> {
        self.0.get_mut(version)
    }

    /// That of `version`, in the place of idle ones if there are `limit`.
    fn entry(&mut self, version: &VersionRef, limit: usize) -> &mut Progress {
        while self.0.len() >= limit && !self.0.contains(version) {
            let mut oldest_first = self.0.iter().rev();
            let idle = oldest_first.find(|(_, progress)| !progress.is_busy());
            let Some(idle) = idle.map(|(version, _)| version.clone()) else {
                break;
            };
            self.0.pop(&idle);
        }
        self.0.get_or_insert_mut_ref(version, Progress::default)
    }
}

/// A reader who waits for a file, until this is dropped.
pub(super) struct Waiting {
    store: Arc<Store>,
    version: VersionRef,
    index: u32,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(progress) = lock(&self.store.ahead).get_mut(&self.version) {
            let waited_for = &mut progress.waited_for;
            if let Some(at) = waited_for.iter().position(|&file| file == self.index) {
                waited_for.swap_remove(at);
            }
        }
    }
}

/// What a read starts.
enum Plan {
    Nothing,
    Pull(watch::Sender<bool>),
    Fetch(Vec<u32>),
}

impl Store {
    /// A reader waits for a file that is not cached, as long as the answer is held.
    pub(super) fn note_cold(self: &Arc<Self>, loaded: &Arc<Loaded>, index: u32) -> Option<Waiting> {
        if self.policy.readahead == 0 || self.sources.is_empty() {
            return None;
        }
        {
            let mut ahead = lock(&self.ahead);
            let progress = ahead.entry(loaded.manifest.id(), MOST_VERSIONS);
            if !progress.unread.contains_key(&index) {
                progress.cold.insert(index);
            }
            if progress.is_full {
                progress.let_oldest_go();
            }
            progress.seen.insert(index);
            progress.waited_for.push(index);
        }
        let waiting = Waiting {
            store: Arc::clone(self),
            version: loaded.manifest.id().clone(),
            index,
        };
        self.read_ahead(loaded, index);
        Some(waiting)
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
        drop(ahead);
        let chosen = self.choose_ahead(loaded, index);
        if chosen.is_empty() {
            Plan::Nothing
        } else {
            Plan::Fetch(chosen)
        }
    }

    /// Takes files around `index` that are not cached into the window, as far as there is room.
    ///
    /// Whether a file is cached costs a stat(2), and everybody who reads anything cold needs the lock:
    /// so places are taken first, and those of files that turn out to be there are given back.
    fn choose_ahead(&self, loaded: &Loaded, index: u32) -> Vec<u32> {
        let last = loaded.manifest.len().saturating_sub(1);
        let mut neighbours = (1..=MOST_LOOKED_AT)
            .flat_map(|distance| [index.checked_add(distance), index.checked_sub(distance)])
            .flatten()
            .filter(|&file| (1..=last).contains(&file))
            .peekable();
        let mut chosen = Vec::new();
        loop {
            let taken = self.take_places(loaded, &mut neighbours);
            let is_cached = |&file: &u32| {
                let entry = loaded.manifest.entry(file);
                entry.is_some_and(|entry| self.is_cached(entry.digest()))
            };
            let (cached, missing): (Vec<u32>, Vec<u32>) = taken.into_iter().partition(is_cached);
            chosen.extend(missing);
            if cached.is_empty() {
                return chosen;
            }
            let mut ahead = lock(&self.ahead);
            if let Some(progress) = ahead.get_mut(loaded.manifest.id()) {
                progress.in_flight = progress.in_flight.saturating_sub(cached.len());
                progress.unread.retain(|file, _| !cached.contains(file));
            }
        }
    }

    /// Takes the next of `neighbours` into the window until it is full.
    fn take_places(
        &self,
        loaded: &Loaded,
        neighbours: &mut Peekable<impl Iterator<Item = u32>>,
    ) -> Vec<u32> {
        let mut taken = Vec::new();
        let mut ahead = lock(&self.ahead);
        let Some(progress) = ahead.get_mut(loaded.manifest.id()) else {
            return taken;
        };
        let unread = progress.unread.values().map(|unread| unread.size).sum();
        let mut room = self.policy.readahead.saturating_sub(unread);
        progress.is_full = false;
        while progress.in_flight < MOST_IN_FLIGHT
            && let Some(&file) = neighbours.peek()
        {
            let entry = loaded.manifest.entry(file).filter(Entry::is_file);
            let fits = |size| size <= self.policy.readahead;
            // What would never fit waits for its own reader.
            if let Some(size) = entry.map(|entry| entry.size()).filter(|&size| fits(size))
                && !progress.seen.contains(&file)
            {
                if size > room {
                    progress.is_full = true;
                    break;
                }
                room -= size;
                progress.seen.insert(file);
                let arrived = None;
                progress.unread.insert(file, Unread { size, arrived });
                progress.in_flight += 1;
                taken.push(file);
            }
            neighbours.next();
        }
        taken
    }

    async fn fetch_ahead(self: Arc<Self>, loaded: &Arc<Loaded>, file: u32) {
        let deadline = Deadline::after(self.policy.content_timeout);
        let answer = self.fetch_file(loaded, file, deadline).await;
        let next = {
            let mut ahead = lock(&self.ahead);
            let Some(progress) = ahead.get_mut(loaded.manifest.id()) else {
                return;
            };
            progress.in_flight = progress.in_flight.saturating_sub(1);
            match answer {
                Ok(()) => {
                    self.metrics.count(Counter::ReadAhead);
                    progress.arrived(file);
                    progress.next_waited_for()
                }
                Err(error) => {
                    debug!(version = %loaded.manifest.id(), file, %error, "read-ahead failed");
                    // Its reader will try for itself.
                    progress.unread.remove(&file);
                    None
                }
            }
        };
        if let Some(index) = next {
            self.read_ahead(loaded, index);
        }
    }

    /// Fetches all content of a version in one answer, if a source can, and nobody else just has;
    /// what it lacks is fetched file by file, by whoever needs it. For what is worth it
    /// ([`Store::is_worth_a_pull`]).
    pub(crate) async fn pull(self: &Arc<Self>, loaded: &Arc<Loaded>) {
        // Readers who wait for it must have time left to fetch their file themselves.
        let deadline = Deadline::after(self.policy.content_timeout / 3);
        let _lock = self
            .locks
            .acquire(pull_lock(loaded), deadline.share(2))
            .await;
        if !self.found_worth_a_pull(loaded, u64::MAX).await {
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
        self: &Arc<Self>,
        source: &Arc<dyn Source>,
        loaded: &Arc<Loaded>,
        deadline: Deadline,
    ) -> Result<Option<usize>, Error> {
        let manifest = &loaded.manifest;
        let pulling = source.pull(manifest, deadline);
        let Some(pulled) = deadline.run(manifest.id(), pulling).await? else {
            return Ok(None);
        };
        let (store, loaded) = (Arc::clone(self), Arc::clone(loaded));
        let origin = source.name().into();
        let keeping =
            tokio::task::spawn_blocking(move || store.keep_pulled(&loaded, pulled, &origin));
        let lost = |lost: tokio::task::JoinError| Error::Internal(lost.to_string());
        keeping.await.map(Some).map_err(lost)
    }
}

/// What a process locks that fetches all of a version in one answer.
fn pull_lock(loaded: &Loaded) -> Digest {
    let what = format!("pull {}", journal_key(&loaded.host, loaded.manifest.id()));
    Digest::of(what.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_versions_that_nobody_reads_any_more_are_forgotten_and_none_that_is_busy() {
        let versions: Vec<VersionRef> = (0..6)
            .map(|n| format!("acme/kit@1.0.{n}").parse().unwrap())
            .collect();
        let mut ahead = Ahead::default();
        ahead.entry(&versions[0], 4).in_flight = 1;
        ahead.entry(&versions[1], 4).waited_for.push(7);
        ahead.entry(&versions[2], 4);
        ahead.entry(&versions[3], 4);
        ahead.get_mut(&versions[2]).unwrap();
        ahead.entry(&versions[4], 4);
        let there = |ahead: &Ahead| {
            let there = versions.iter().map(|version| ahead.get(version).is_some());
            there.collect::<Vec<_>>()
        };
        assert_eq!(there(&ahead), [true, true, true, false, true, false]);
        ahead.get_mut(&versions[2]).unwrap().in_flight = 1;
        ahead.get_mut(&versions[4]).unwrap().in_flight = 1;
        ahead.entry(&versions[5], 4);
        assert_eq!(there(&ahead), [true, true, true, false, true, true]);
        for version in &versions {
            if let Some(progress) = ahead.get_mut(version) {
                *progress = Progress::default();
            }
        }
        ahead.entry(&versions[3], 4);
        assert_eq!(there(&ahead), [false, false, true, true, true, true]);
    }
}
