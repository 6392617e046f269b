//! From a moving name to a version; [`listing`] says what is in a namespace, and
//! [`namespaces`] which there are.
//!
//! A *ref* (the bare name, a tag, a range) is fresh for [`REF_TTL`]. An expired one is asked for
//! before it is answered; only when that fails is the old answer given, because a name that was
//! answered once is never taken away by an error. Refs asked for within the last TTL are refreshed
//! ahead of their expiry by [`Resolver::refresh_ahead`], so that in use they are always fresh.
//!
//! The sources are asked in order, each within its share of the time. The last one is the registry
//! itself, so its word counts: a name is absent when the registry says so, whatever a mirror lacks,
//! and an outage is never remembered as an absence.
//!
//! A yanked version is not chosen by a ref, whoever proposes it: the registry, its list of versions,
//! or the cache.

mod ask;
pub mod listing;
mod locked;
pub mod namespaces;
mod probe;

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use lru::LruCache;
use tokio::time::Instant;
use tracing::{debug, info};

use crate::cache::{Cache, REF_TTL};
use crate::error::{Error, Result};
use crate::manifest::{Document, State};
use crate::metrics::Metrics;
use crate::reference::{BundleId, HostId, Namespace, Selector, Version, VersionRef};
use crate::single_flight::SingleFlight;
use crate::source::{Deadline, Source};
use crate::sync::lock;

pub use listing::{LISTING_TTL, Listing, MOST_LISTED};
pub use locked::Locked;
pub use namespaces::Presence;

/// How long an absence is remembered, and an old answer given while nobody can be asked.
pub const ABSENCE_TTL: Duration = Duration::from_secs(5);

/// How many refs are refreshed, and lists of versions asked for, at a time.
const AT_A_TIME: usize = 16;

/// A ref is refreshed ahead when less than this is left of its life.
const AHEAD: Duration = Duration::from_secs(60);

/// Most refs in memory; others are read from the cache again.
const MOST_REFS: usize = 16_384;

/// What a [`Resolver`] works with.
pub struct Settings {
    /// The registry's partition of the cache.
    pub host: HostId,
    /// The shared cache.
    pub cache: Arc<Cache>,
    /// Whom to ask, in this order, the registry itself last; empty when offline.
    pub sources: Vec<Arc<dyn Source>>,
    /// Namespaces that the root lists in any case.
    pub namespaces: Vec<Namespace>,
    /// Whether packs of this machine win over the registry.
    pub local_packs: bool,
    /// Whether a ref that the registry answers 404 for disappears.
    pub respect_removal: bool,
    /// How long one question may take.
    pub timeout: Duration,
    /// Where to count.
    pub metrics: Arc<Metrics>,
}

/// What a ref is at the moment.
#[derive(Debug, Clone)]
pub struct Resolution {
    /// The version it points at.
    pub version: Version,
    /// How much longer that counts as fresh.
    pub remaining: Duration,
    /// The version's description, when the answer just came from a source, and that source's name.
    pub document: Option<Arc<(Document, String)>>,
    /// Of two answers for one ref, the one with the higher number was learnt later. Answers may
    /// overtake each other on their way to whoever acts on them.
    pub order: u64,
}

struct RefState {
    version: Version,
    expires: Instant,
    /// When somebody last asked.
    used: Option<Instant>,
    order: u64,
}

type RefKey = (BundleId, Selector);
/// Who wants to know when a ref moves: called after the new target is in memory.
pub type OnMove = Box<dyn Fn(&BundleId, &Selector, &Resolution) + Send + Sync>;

/// Resolves names against one registry, for all mounts of a process.
pub struct Resolver {
    settings: Settings,
    refs: Mutex<LruCache<RefKey, RefState>>,
    absent: Mutex<HashMap<RefKey, Instant>>,
    flights: SingleFlight<RefKey, Result<Resolution>>,
    /// Versions that a source said are yanked, and has not taken back.
    yanked: Mutex<HashSet<VersionRef>>,
    listed: listing::Listed,
    namespaces: namespaces::Namespaces,
    order: AtomicU64,
    on_move: RwLock<Vec<OnMove>>,
    locked: OnceLock<Arc<Locked>>,
}

/// How much the caller of an internal question tells about the ref's use.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Use {
    /// Somebody wants the name: it is refreshed ahead from now on.
    Asked,
    /// It is only looked at.
    Peeked,
}

impl Resolver {
    /// A resolver that has asked nobody anything yet.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            refs: Mutex::new(LruCache::unbounded()),
            absent: Mutex::default(),
            flights: SingleFlight::default(),
            yanked: Mutex::default(),
            listed: listing::Listed::default(),
            namespaces: namespaces::Namespaces::default(),
            order: AtomicU64::new(0),
            on_move: RwLock::default(),
            locked: OnceLock::new(),
        })
    }

    /// Adds somebody who is told about moves, also those that a refresh ahead finds.
    pub fn on_move(&self, told: OnMove) {
        let mut all = self.on_move.write().unwrap_or_else(PoisonError::into_inner);
        all.push(told);
    }

    /// What the lockfile says of a name; `None` if there is no lockfile.
    pub fn locked_now(&self, bundle: &BundleId, selector: &Selector) -> Option<Result<Resolution>> {
        let locked = self.locked.get()?;
        Some(locked.resolve(bundle, selector))
    }

    /// Whether there is a lockfile, and nothing else exists.
    pub fn is_locked(&self) -> bool {
        self.locked.get().is_some()
    }

    /// From now on only these names exist, and they do not move; once.
    pub fn lock_to(&self, locked: Arc<Locked>) {
        let _ = self.locked.set(locked);
    }

    /// Whether there is nobody to ask.
    pub fn is_offline(&self) -> bool {
        self.settings.sources.is_empty()
    }

    /// What a source last said against showing all of a namespace to the key that is used.
    pub fn refusal(&self, namespace: &Namespace) -> Option<String> {
        let mut sources = self.settings.sources.iter();
        sources.find_map(|source| source.refusal(namespace))
    }

    fn resolution(&self, version: Version, remaining: Duration) -> Resolution {
        Resolution {
            version,
            remaining,
            document: None,
            order: self.next_order(),
        }
    }

    fn next_order(&self) -> u64 {
        self.order.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// What the ref is, if that is known and fresh, or known to be absent.
    pub fn resolve_now(
        &self,
        bundle: &BundleId,
        selector: &Selector,
    ) -> Option<Result<Resolution>> {
        self.answer_now(bundle, selector, Use::Asked)
    }

    /// Like [`Resolver::resolve_now`], for somebody who only shows the name to others: the ref does
    /// not count as used.
    pub fn peek(&self, bundle: &BundleId, selector: &Selector) -> Option<Result<Resolution>> {
        self.answer_now(bundle, selector, Use::Peeked)
    }

    fn answer_now(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        usage: Use,
    ) -> Option<Result<Resolution>> {
        if let Some(answer) = self.locked_now(bundle, selector) {
            return Some(answer);
        }
        if let Selector::Version(version) = selector {
            return Some(Ok(self.resolution(version.clone(), Duration::MAX)));
        }
        if let Some(local) = self.local_pack(bundle, selector) {
            return Some(Ok(local));
        }
        let key = (bundle.clone(), selector.clone());
        let absent = || Some(Err(Error::not_found(describe(bundle, selector))));
        let known = self.known_ref(&key, usage);
        if let Some(known) = known {
            // With nobody to ask, an old answer is the answer.
            if !known.remaining.is_zero() || self.is_offline() {
                let remaining = known.remaining.max(ABSENCE_TTL);
                return Some(Ok(Resolution { remaining, ..known }));
            }
            if self.settings.respect_removal && self.is_recently_absent(&key) {
                return absent();
            }
            return None;
        }
        if self.is_offline() {
            return self.best_cached(bundle, selector).map(Ok).or_else(absent);
        }
        if self.is_recently_absent(&key) {
            // What was given instead of the absence is given again.
            let cached = (!self.settings.respect_removal)
                .then(|| self.best_cached(bundle, selector))
                .flatten();
            return cached.map(Ok).or_else(absent);
        }
        if self.is_unlisted(bundle) {
            return absent();
        }
        None
    }

    fn is_recently_absent(&self, key: &RefKey) -> bool {
        let at = lock(&self.absent).get(key).copied();
        at.is_some_and(|at| at.elapsed() < ABSENCE_TTL)
    }

    /// What the ref was last, in memory or on disk, and how much longer that is fresh. Unlike
    /// [`Resolver::resolve_now`] it does not count as a use.
    pub fn last_known(
        &self,
        bundle: &BundleId,
        selector: &Selector,
    ) -> Option<(Version, Duration)> {
        if let Some(answer) = self.locked_now(bundle, selector) {
            return answer.ok().map(|found| (found.version, found.remaining));
        }
        let key = (bundle.clone(), selector.clone());
        if let Some(state) = lock(&self.refs).get(&key) {
            let remaining = state.expires.saturating_duration_since(Instant::now());
            return Some((state.version.clone(), remaining));
        }
        if let Some(local) = self.local_pack(bundle, selector) {
            return Some((local.version, local.remaining));
        }
        let Settings { cache, host, .. } = &self.settings;
        if selector.is_mutable()
            && let Some(cached) = cache.read_ref(host, bundle, &selector.text())
        {
            return Some((cached.version, Duration::ZERO));
        }
        let offline = self
            .is_offline()
            .then(|| self.best_cached(bundle, selector));
        offline.flatten().map(|best| (best.version, Duration::ZERO))
    }

    /// Whether a source said lately that there is no such ref.
    pub fn is_absent(&self, bundle: &BundleId, selector: &Selector) -> bool {
        let key = (bundle.clone(), selector.clone());
        lock(&self.absent)
            .get(&key)
            .is_some_and(|at| at.elapsed() < ABSENCE_TTL)
    }

    /// What the ref is; asks the sources unless [`Resolver::resolve_now`] knows.
    ///
    /// # Errors
    ///
    /// Only when nothing is known of the ref, neither from before nor from the cache; or when the
    /// registry has nothing for it that is not yanked, or has removed it and that is respected.
    pub async fn resolve(
        self: &Arc<Self>,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Resolution> {
        if let Some(answer) = self.resolve_now(bundle, selector) {
            return answer;
        }
        let error = match self.ask(bundle, selector, deadline).await {
            Ok(resolution) => return Ok(resolution),
            Err(error) => error,
        };
        let key = (bundle.clone(), selector.clone());
        let gone = error.is_absence();
        if gone && self.settings.respect_removal {
            lock(&self.refs).pop(&key);
            return Err(error);
        }
        match self
            .keep_stale(&key, gone)
            .or_else(|| self.best_cached(bundle, selector))
        {
            Some(old) => {
                debug!(%bundle, %selector, version = %old.version, %error, "serving the last known version");
                Ok(old)
            }
            None => Err(error),
        }
    }

    /// The last answer for a ref that cannot be had anew, which counts for another moment, so that
    /// a dead registry is not asked with every lookup.
    ///
    /// After a verdict (`gone`) not one that is known to be yanked: that one is forgotten.
    fn keep_stale(&self, key: &RefKey, gone: bool) -> Option<Resolution> {
        let known = self.known_ref(key, Use::Peeked)?;
        if gone && self.is_yanked(&key.0, &known.version) {
            lock(&self.refs).pop(key);
            return None;
        }
        let soon = Instant::now() + ABSENCE_TTL;
        if let Some(state) = lock(&self.refs).peek_mut(key) {
            state.expires = state.expires.max(soon);
        }
        Some(Resolution {
            remaining: known.remaining.max(ABSENCE_TTL),
            ..known
        })
    }

    /// Remembers whether a source says that a version is yanked.
    fn note_state(&self, bundle: &BundleId, version: &Version, state: State) {
        let version = VersionRef {
            bundle: bundle.clone(),
            version: version.clone(),
        };
        let mut yanked = lock(&self.yanked);
        match state {
            State::Yanked => yanked.insert(version),
            State::Published => yanked.remove(&version),
        };
    }

    /// Whether the version is yanked as far as is known without asking: by what a source said in
    /// this session, or else by what the cache says.
    fn is_yanked(&self, bundle: &BundleId, version: &Version) -> bool {
        let Settings { cache, host, .. } = &self.settings;
        let version = VersionRef {
            bundle: bundle.clone(),
            version: version.clone(),
        };
        lock(&self.yanked).contains(&version) || cache.state(host, &version) == Some(State::Yanked)
    }

    /// Keeps a source's answer in memory and on disk, and tells who wants to know that it is new.
    async fn remember(&self, key: &RefKey, resolution: &Resolution) {
        let (bundle, selector) = key;
        let version = &resolution.version;
        let old = {
            let mut refs = lock(&self.refs);
            let used = refs
                .peek(key)
                .map_or_else(|| Some(Instant::now()), |state| state.used);
            let state = RefState {
                version: version.clone(),
                expires: Instant::now() + resolution.remaining,
                used,
                order: resolution.order,
            };
            let old = refs.put(key.clone(), state).map(|state| state.version);
            keep_at_most(&mut refs, MOST_REFS);
            old
        };
        if let Some(old) = old.filter(|old| old != version) {
            info!(%bundle, %selector, from = %old, to = %version, "the ref moved");
            let told = self.on_move.read().unwrap_or_else(PoisonError::into_inner);
            for told in &*told {
                told(bundle, selector, resolution);
            }
        }
        if selector.is_mutable() {
            let (cache, host) = (Arc::clone(&self.settings.cache), self.settings.host.clone());
            let (bundle, alias, version) = (
                bundle.clone(),
                selector.text().into_owned(),
                version.clone(),
            );
            let writing = tokio::task::spawn_blocking(move || {
                cache.write_ref(&host, &bundle, &alias, &version, Timestamp::now())
            });
            if let Ok(Err(error)) = writing.await {
                debug!(%error, "the ref is not cached on disk");
            }
        }
    }

    /// The ref from memory or disk, fresh or not.
    fn known_ref(&self, key: &RefKey, usage: Use) -> Option<Resolution> {
        let now = Instant::now();
        let used = (usage == Use::Asked).then_some(now);
        if let Some(state) = lock(&self.refs).get_mut(key) {
            state.used = used.or(state.used);
            return Some(Resolution {
                version: state.version.clone(),
                remaining: state.expires.saturating_duration_since(now),
                document: None,
                order: state.order,
            });
        }
        let (bundle, selector) = key;
        if !selector.is_mutable() {
            return None;
        }
        let Settings { cache, host, .. } = &self.settings;
        let cached = cache.read_ref(host, bundle, &selector.text())?;
        let id = VersionRef {
            bundle: bundle.clone(),
            version: cached.version.clone(),
        };
        let state = cache.state(host, &id);
        if state == Some(State::Yanked) || lock(&self.yanked).contains(&id) {
            return None;
        }
        let wall = Timestamp::now();
        let remaining = match cached.expires_at {
            // Following it takes the registry anyway; and a damaged ref may name what never was.
            _ if !cached.is_fresh(wall) || state.is_none() => Duration::ZERO,
            Some(at) => Duration::try_from(at.duration_since(wall))
                .unwrap_or_default()
                .min(REF_TTL),
            None => REF_TTL,
        };
        let known = self.resolution(cached.version, remaining);
        let state = RefState {
            version: known.version.clone(),
            expires: now + remaining,
            used,
            order: known.order,
        };
        let mut refs = lock(&self.refs);
        // Unless a source has answered meanwhile.
        if !refs.contains(key) {
            refs.put(key.clone(), state);
            keep_at_most(&mut refs, MOST_REFS);
        }
        Some(known)
    }

    fn local_pack(&self, bundle: &BundleId, selector: &Selector) -> Option<Resolution> {
        if !self.settings.local_packs {
            return None;
        }
        let cache = &self.settings.cache;
        let versions = cache.versions(&HostId::local(), bundle);
        let version = match selector {
            Selector::Latest => cache
                .read_ref(&HostId::local(), bundle, "latest")
                .map(|cached| cached.version)
                .filter(|version| versions.contains(version)),
            _ => None,
        };
        let version = version.or_else(|| newest(versions.iter(), selector).cloned())?;
        Some(self.resolution(version, LISTING_TTL))
    }

    /// The best cached version for a ref that nobody ever resolved on this machine.
    fn best_cached(&self, bundle: &BundleId, selector: &Selector) -> Option<Resolution> {
        let Settings { cache, host, .. } = &self.settings;
        let version = match selector {
            Selector::Digest(digest) => {
                cache.versions(host, bundle).into_iter().find(|version| {
                    let version = VersionRef {
                        bundle: bundle.clone(),
                        version: version.clone(),
                    };
                    let cached = cache.read_manifest(host, &version);
                    let named = cached.and_then(|cached| cached.manifest.info().oci_digest.clone());
                    named.is_some_and(|named| named.parse() == Ok(*digest))
                })?
            }
            _ => {
                let mut versions = cache.versions(host, bundle);
                versions.retain(|version| !self.is_yanked(bundle, version));
                newest(versions.iter(), selector)?.clone()
            }
        };
        Some(self.resolution(version, ABSENCE_TTL))
    }

    /// Refreshes the refs that were asked for within the last TTL and are about to expire.
    ///
    /// Called by a timer, at least once a minute.
    pub async fn refresh_ahead(self: &Arc<Self>) {
        let due: Vec<RefKey> = lock(&self.refs)
            .iter()
            .filter(|(key, state)| {
                key.1.is_mutable()
                    && state.used.is_some_and(|used| used.elapsed() < REF_TTL)
                    && state.expires.saturating_duration_since(Instant::now()) < AHEAD
            })
            .map(|(key, _)| key.clone())
            .collect();
        futures_util::stream::iter(due)
            .for_each_concurrent(AT_A_TIME, |(bundle, selector)| async move {
                let deadline = Deadline::after(self.settings.timeout);
                if let Err(error) = self.ask(&bundle, &selector, deadline).await {
                    debug!(%bundle, %selector, %error, "could not refresh the ref ahead");
                }
            })
            .await;
    }
}

/// Remembers that something is absent, and forgets the absences that no longer count.
fn remember_absence<K: Hash + Eq>(absences: &Mutex<HashMap<K, Instant>>, key: K) {
    const MANY: usize = 4096;
    let mut absences = lock(absences);
    if absences.len() >= MANY {
        absences.retain(|_, at| at.elapsed() < ABSENCE_TTL);
    }
    if absences.len() < MANY {
        absences.insert(key, Instant::now());
    }
}

/// Drops the least recently used. (A cache that is told its bound allocates all of it at once.)
fn keep_at_most<K: Hash + Eq, V>(cache: &mut LruCache<K, V>, most: usize) {
    while cache.len() > most {
        cache.pop_lru();
    }
}

fn describe(bundle: &BundleId, selector: &Selector) -> String {
    format!("{bundle}@{selector}")
}

/// The newest of `versions` that the selector admits. Pre-releases only when the selector asks for
/// them, or when there is nothing else to be the latest.
fn newest<'a>(
    versions: impl Iterator<Item = &'a Version> + Clone,
    selector: &Selector,
) -> Option<&'a Version> {
    match selector {
        Selector::Latest => {
            let releases = versions.clone().filter(|version| !version.is_prerelease());
            releases.max().or_else(|| versions.max())
        }
        // `VersionReq` admits a pre-release only if the range names one of the same numbers.
        Selector::Range { req, .. } => versions
            .filter(|version| req.matches(version.semver()))
            .max(),
        Selector::Version(_) | Selector::Tag(_) | Selector::Digest(_) => None,
    }
}
