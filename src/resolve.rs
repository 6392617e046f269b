//! From a moving name to a version, and from a namespace to what is in it.
//!
//! A *ref* (the bare name, a tag, a range) is fresh for [`REF_TTL`]. An expired one is asked for
//! before it is answered; only when that fails is the old answer given, because a name that was
//! answered once is never taken away by an error. Refs asked for within the last TTL are refreshed
//! ahead of their expiry by [`Resolver::refresh_ahead`], so that in use they are always fresh.
//!
//! Listings (bundles of a namespace, versions of a bundle) live for [`LISTING_TTL`] and fall back to
//! what the cache holds. A complete, fresh listing also answers for what is *not* in it: programs
//! that probe a directory for well-known names cost no request.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use std::time::Instant;

use futures_util::StreamExt as _;
use jiff::Timestamp;
use tracing::{debug, info, warn};

use crate::cache::{Cache, REF_TTL};
use crate::error::{Error, Result};
use crate::manifest::{Document, State};
use crate::metrics::{Counter, Metrics};
use crate::reference::{BundleId, HostId, Namespace, Selector, Slug, Version};
use crate::single_flight::SingleFlight;
use crate::source::{Deadline, Published, Source};

/// How long a listing is answered from memory: the life of a directory's attributes in the kernel.
pub const LISTING_TTL: Duration = Duration::from_secs(60);

/// How long an absence is remembered.
pub const ABSENCE_TTL: Duration = Duration::from_secs(5);

/// Most bundles of a namespace whose versions are listed: each costs a request.
pub const MOST_LISTED: usize = 256;

/// How many version lists are asked for at a time.
const LISTS_AT_A_TIME: usize = 16;

/// A ref is refreshed ahead when less than this is left of its life.
const AHEAD: Duration = Duration::from_secs(60);

/// What a [`Resolver`] works with.
pub struct Settings {
    /// The registry's partition of the cache.
    pub host: HostId,
    /// The shared cache.
    pub cache: Arc<Cache>,
    /// Whom to ask, in this order; empty when offline.
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
}

/// What a namespace holds: bundles and their listed versions, newest last.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Every bundle with the versions that may be listed: published, or cached.
    pub bundles: BTreeMap<Slug, Vec<Version>>,
    /// Whether a source said that these are all bundles.
    pub complete: bool,
}

struct RefState {
    version: Version,
    /// When it was learnt, for refs of this session; refs from disk carry their own expiry.
    expires: Instant,
    /// When somebody last asked.
    used: Instant,
}

struct Listed {
    listing: Arc<Listing>,
    /// Whether the versions were asked for as well, or only the names.
    detailed: bool,
    expires: Instant,
}

type RefKey = (BundleId, Selector);
/// A bundle's list of versions, and when it was asked for.
type VersionList = (Arc<Vec<Published>>, Instant);
/// Who wants to know when a ref moves: called after the new target is in memory.
pub type OnMove = Box<dyn Fn(&BundleId, &Selector, &Version) + Send + Sync>;

/// Resolves names against one registry, for all mounts of a process.
pub struct Resolver {
    settings: Settings,
    refs: Mutex<HashMap<RefKey, RefState>>,
    absent: Mutex<HashMap<RefKey, Instant>>,
    flights: SingleFlight<RefKey, Result<Resolution>>,
    listings: Mutex<HashMap<Namespace, Listed>>,
    listing_flights: SingleFlight<(Namespace, bool), Result<Arc<Listing>>>,
    absent_namespaces: Mutex<HashMap<Namespace, Instant>>,
    versions: Mutex<HashMap<BundleId, VersionList>>,
    root: Mutex<Option<(Arc<BTreeSet<Namespace>>, Instant)>>,
    root_flight: SingleFlight<(), Arc<BTreeSet<Namespace>>>,
    on_move: std::sync::OnceLock<OnMove>,
}

/// The maps are consistent after every statement, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Resolver {
    /// A resolver that has asked nobody anything yet.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self {
            settings,
            refs: Mutex::default(),
            absent: Mutex::default(),
            flights: SingleFlight::default(),
            listings: Mutex::default(),
            listing_flights: SingleFlight::default(),
            absent_namespaces: Mutex::default(),
            versions: Mutex::default(),
            root: Mutex::default(),
            root_flight: SingleFlight::default(),
            on_move: std::sync::OnceLock::new(),
        })
    }

    /// Sets who is told about moves that a refresh ahead finds; once.
    pub fn on_move(&self, told: OnMove) {
        let _ = self.on_move.set(told);
    }

    /// Whether there is anybody to ask.
    pub fn is_offline(&self) -> bool {
        self.settings.sources.is_empty()
    }

    // ----- refs ------------------------------------------------------------------------------

    /// What the ref is, if that is known and fresh, or known to be absent.
    pub fn resolve_now(
        &self,
        bundle: &BundleId,
        selector: &Selector,
    ) -> Option<Result<Resolution>> {
        if let Selector::Version(version) = selector {
            return Some(Ok(Resolution {
                version: version.clone(),
                remaining: Duration::MAX,
                document: None,
            }));
        }
        let key = (bundle.clone(), selector.clone());
        if let Some(local) = self.local_pack(bundle, selector) {
            return Some(Ok(local));
        }
        let known = self.known_ref(&key);
        if let Some((version, remaining)) = known {
            // With nobody to ask, an old answer is the answer.
            if !remaining.is_zero() || self.is_offline() {
                return Some(Ok(Resolution {
                    version,
                    remaining: remaining.max(ABSENCE_TTL),
                    document: None,
                }));
            }
            return None;
        }
        if self.is_offline() {
            let best = self.best_cached(bundle, selector);
            return Some(best.ok_or_else(|| Error::not_found(describe(bundle, selector))));
        }
        let recently = lock(&self.absent)
            .get(&key)
            .is_some_and(|at| at.elapsed() < ABSENCE_TTL);
        let unlisted = self
            .fresh_listing(&bundle.namespace, false)
            .is_some_and(|listing| listing.complete && !listing.bundles.contains_key(&bundle.slug));
        (recently || unlisted).then(|| Err(Error::not_found(describe(bundle, selector))))
    }

    /// What the ref was last, in memory or on disk, and how much longer that is fresh. Unlike
    /// [`Resolver::resolve_now`] it does not count as a use.
    pub fn last_known(
        &self,
        bundle: &BundleId,
        selector: &Selector,
    ) -> Option<(Version, Duration)> {
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
    /// Only when nothing is known of the ref: neither from before nor from the cache.
    pub async fn resolve(
        self: &Arc<Self>,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Resolution> {
        if let Some(answer) = self.resolve_now(bundle, selector) {
            return answer;
        }
        let answer = self.ask(bundle, selector, deadline).await;
        let error = match answer {
            Ok(resolution) => return Ok(resolution),
            Err(error) => error,
        };
        let key = (bundle.clone(), selector.clone());
        let gone = error.is_absence();
        if gone && self.settings.respect_removal {
            lock(&self.refs).remove(&key);
            return Err(error);
        }
        let known = self.known_ref(&key).map(|(version, _)| Resolution {
            version,
            remaining: ABSENCE_TTL,
            document: None,
        });
        match known.or_else(|| self.best_cached(bundle, selector)) {
            Some(old) => {
                debug!(%bundle, %selector, version = %old.version, %error, "serving the last known version");
                Ok(old)
            }
            None => Err(error),
        }
    }

    /// Asks the sources, however fresh the ref may be.
    async fn ask(
        self: &Arc<Self>,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<Resolution> {
        let key = (bundle.clone(), selector.clone());
        if self.flights.is_running(&key) {
            self.settings.metrics.count(Counter::Joined);
        }
        let start = || {
            let (resolver, key) = (Arc::clone(self), key.clone());
            async move {
                let budget = Deadline::after(resolver.settings.timeout);
                let what = describe(&key.0, &key.1);
                budget.run(what, resolver.ask_now(&key, budget)).await
            }
        };
        let flight = async {
            let landed = self.flights.run(key.clone(), start).await;
            landed.map_err(|lost| Error::Internal(lost.to_string()))?
        };
        deadline.run(describe(bundle, selector), flight).await
    }

    async fn ask_now(&self, key: &RefKey, deadline: Deadline) -> Result<Resolution> {
        let (bundle, selector) = key;
        let mut failure = Error::Offline {
            what: describe(bundle, selector),
        };
        for source in &self.settings.sources {
            match self.ask_source(source, bundle, selector, deadline).await {
                Ok((version, document)) => {
                    lock(&self.absent).remove(key);
                    self.remember(key, &version).await;
                    return Ok(Resolution {
                        version,
                        remaining: REF_TTL,
                        document: document
                            .map(|document| Arc::new((document, source.name().to_owned()))),
                    });
                }
                Err(error) => {
                    debug!(%bundle, %selector, source = source.name(), %error, "not resolved");
                    failure = error;
                    if failure.is_absence() {
                        remember_absence(&self.absent, key.clone());
                        break;
                    }
                }
            }
        }
        Err(failure)
    }

    /// One source's answer, checked against what was asked.
    async fn ask_source(
        &self,
        source: &Arc<dyn Source>,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<(Version, Option<Document>)> {
        let asked = source.resolve(bundle, selector, deadline).await;
        let document = match (asked, selector) {
            (Ok(document), _) => document,
            // A registry that does not know ranges says no to them in one way or another.
            (Err(Error::Rejected { .. } | Error::NotFound { .. }), Selector::Range { .. }) => {
                return self.choose(source, bundle, selector, deadline).await;
            }
            (Err(error), _) => return Err(error),
        };
        let malformed = |reason: &str| Error::Malformed {
            what: describe(bundle, selector),
            origin: source.name().to_owned(),
            reason: reason.to_owned(),
        };
        let version: Version = document
            .version
            .as_deref()
            .ok_or_else(|| malformed("the answer names no version"))?
            .parse()
            .map_err(|_| malformed("the answer's version is not SemVer"))?;
        let yanked = document.info.state == State::Yanked;
        match selector {
            // A registry that ignores ranges answers with whatever is its latest.
            Selector::Range { req, .. } if yanked || !req.matches(version.semver()) => {
                self.choose(source, bundle, selector, deadline).await
            }
            Selector::Latest if yanked => self.choose(source, bundle, selector, deadline).await,
            Selector::Tag(_) if yanked => Err(Error::not_found(format_args!(
                "{} (it points at {version}, which is yanked)",
                describe(bundle, selector)
            ))),
            _ => Ok((version, Some(document))),
        }
    }

    /// Chooses from the list of versions what the registry would not choose.
    async fn choose(
        &self,
        source: &Arc<dyn Source>,
        bundle: &BundleId,
        selector: &Selector,
        deadline: Deadline,
    ) -> Result<(Version, Option<Document>)> {
        let versions = source.versions(bundle, deadline).await?;
        let published = versions
            .iter()
            .filter(|row| row.state == State::Published)
            .map(|row| &row.version);
        let chosen = newest(published, selector).cloned();
        self.remember_versions(bundle, versions);
        let chosen = chosen.ok_or_else(|| Error::not_found(describe(bundle, selector)))?;
        Ok((chosen, None))
    }

    async fn remember(&self, key: &RefKey, version: &Version) {
        let now = Instant::now();
        let old = {
            let mut refs = lock(&self.refs);
            let used = refs.get(key).map_or(now, |state| state.used);
            let state = RefState {
                version: version.clone(),
                expires: now + REF_TTL,
                used,
            };
            refs.insert(key.clone(), state).map(|state| state.version)
        };
        let (bundle, selector) = key;
        if let Some(old) = old.filter(|old| old != version) {
            info!(%bundle, %selector, from = %old, to = %version, "the ref moved");
            if let Some(told) = self.on_move.get() {
                told(bundle, selector, version);
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

    /// The ref from memory or disk and how much longer it is fresh; marks it as used.
    fn known_ref(&self, key: &RefKey) -> Option<(Version, Duration)> {
        let now = Instant::now();
        if let Some(state) = lock(&self.refs).get_mut(key) {
            state.used = now;
            return Some((
                state.version.clone(),
                state.expires.saturating_duration_since(now),
            ));
        }
        let (bundle, selector) = key;
        if !selector.is_mutable() {
            return None;
        }
        let cached = self
            .settings
            .cache
            .read_ref(&self.settings.host, bundle, &selector.text())?;
        let wall = Timestamp::now();
        let remaining = match cached.expires_at {
            _ if !cached.is_fresh(wall) => Duration::ZERO,
            Some(at) => Duration::try_from(at.duration_since(wall))
                .unwrap_or_default()
                .min(REF_TTL),
            None => REF_TTL,
        };
        let state = RefState {
            version: cached.version.clone(),
            expires: now + remaining,
            used: now,
        };
        lock(&self.refs).insert(key.clone(), state);
        Some((cached.version, remaining))
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
        Some(Resolution {
            version,
            remaining: LISTING_TTL,
            document: None,
        })
    }

    /// The best cached version for a ref that nobody ever resolved on this machine.
    fn best_cached(&self, bundle: &BundleId, selector: &Selector) -> Option<Resolution> {
        let Settings { cache, host, .. } = &self.settings;
        let version = match selector {
            Selector::Digest(digest) => {
                cache.versions(host, bundle).into_iter().find(|version| {
                    let version = crate::reference::VersionRef {
                        bundle: bundle.clone(),
                        version: version.clone(),
                    };
                    let cached = cache.read_manifest(host, &version);
                    let named = cached.and_then(|cached| cached.manifest.info().oci_digest.clone());
                    named.is_some_and(|named| named.parse() == Ok(*digest))
                })?
            }
            _ => {
                let versions = cache.versions_with_state(host, bundle);
                let published = versions
                    .iter()
                    .filter(|(_, state)| *state == State::Published)
                    .map(|(version, _)| version);
                newest(published, selector)?.clone()
            }
        };
        Some(Resolution {
            version,
            remaining: ABSENCE_TTL,
            document: None,
        })
    }

    /// Refreshes the refs that were asked for within the last TTL and are about to expire.
    ///
    /// Called by a timer, once in a while less than [`REF_TTL`] minus a minute.
    pub async fn refresh_ahead(self: &Arc<Self>) {
        let due: Vec<RefKey> = lock(&self.refs)
            .iter()
            .filter(|(key, state)| {
                key.1.is_mutable()
                    && state.used.elapsed() < REF_TTL
                    && state.expires.saturating_duration_since(Instant::now()) < AHEAD
            })
            .map(|(key, _)| key.clone())
            .collect();
        futures_util::stream::iter(due)
            .for_each_concurrent(LISTS_AT_A_TIME, |(bundle, selector)| async move {
                let deadline = Deadline::after(self.settings.timeout);
                if let Err(error) = self.ask(&bundle, &selector, deadline).await {
                    debug!(%bundle, %selector, %error, "could not refresh the ref ahead");
                }
            })
            .await;
    }

    // ----- listings --------------------------------------------------------------------------

    /// Whether the namespace is known to exist, or not to, without asking anybody.
    ///
    /// `None`: it may exist. [`Resolver::namespace`] asks.
    pub fn namespace_now(&self, namespace: &Namespace) -> Option<bool> {
        let Settings { cache, host, .. } = &self.settings;
        if self.settings.namespaces.contains(namespace)
            || lock(&self.listings).contains_key(namespace)
            || lock(&self.root)
                .as_ref()
                .is_some_and(|(root, _)| root.contains(namespace))
            || !cache.bundles(host, namespace).is_empty()
            || self.settings.local_packs && !cache.bundles(&HostId::local(), namespace).is_empty()
        {
            return Some(true);
        }
        if self.is_offline() || is_probe(namespace.as_str()) {
            return Some(false);
        }
        let absent = lock(&self.absent_namespaces).get(namespace).copied();
        absent
            .is_some_and(|at| at.elapsed() < ABSENCE_TTL)
            .then_some(false)
    }

    /// Whether the namespace exists: it does unless a source answers that it does not.
    pub async fn namespace(self: &Arc<Self>, namespace: &Namespace, deadline: Deadline) -> bool {
        match self.namespace_now(namespace) {
            Some(known) => known,
            None => match self.ask_for_listing(namespace, false, deadline).await {
                Ok(_) => true,
                Err(error) => !error.is_absence(),
            },
        }
    }

    fn fresh_listing(&self, namespace: &Namespace, detailed: bool) -> Option<Arc<Listing>> {
        let listings = lock(&self.listings);
        let listed = listings.get(namespace)?;
        let serves = listed.expires > Instant::now() && (listed.detailed || !detailed);
        serves.then(|| Arc::clone(&listed.listing))
    }

    /// The namespace's listing, if it is fresh or nobody can be asked.
    pub fn list_now(&self, namespace: &Namespace) -> Option<Arc<Listing>> {
        if let Some(listing) = self.fresh_listing(namespace, true) {
            return Some(listing);
        }
        self.is_offline()
            .then(|| Arc::new(self.cached_listing(namespace)))
    }

    /// The namespace's listing as it was last seen, however long ago.
    pub fn last_listing(&self, namespace: &Namespace) -> Option<Arc<Listing>> {
        lock(&self.listings)
            .get(namespace)
            .map(|listed| Arc::clone(&listed.listing))
    }

    /// What the namespace holds; asks the sources unless a listing is fresh.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if a source says so and nothing of it is cached. Other failures are
    /// answered from the cache, as an incomplete listing.
    pub async fn list(
        self: &Arc<Self>,
        namespace: &Namespace,
        deadline: Deadline,
    ) -> Result<Arc<Listing>> {
        match self.list_now(namespace) {
            Some(listing) => Ok(listing),
            None => self.ask_for_listing(namespace, true, deadline).await,
        }
    }

    async fn ask_for_listing(
        self: &Arc<Self>,
        namespace: &Namespace,
        detailed: bool,
        deadline: Deadline,
    ) -> Result<Arc<Listing>> {
        let start = || {
            let (resolver, namespace) = (Arc::clone(self), namespace.clone());
            async move { resolver.list_from_sources(&namespace, detailed).await }
        };
        let flight = async {
            let landed = self
                .listing_flights
                .run((namespace.clone(), detailed), start)
                .await;
            landed.map_err(|lost| Error::Internal(lost.to_string()))?
        };
        match deadline.run(namespace, flight).await {
            Err(Error::Timeout { .. }) => Ok(Arc::new(self.cached_listing(namespace))),
            answer => answer,
        }
    }

    async fn list_from_sources(
        &self,
        namespace: &Namespace,
        detailed: bool,
    ) -> Result<Arc<Listing>> {
        // A moment less than the caller's budget, so that a partial listing is in time.
        let deadline = Deadline::after(self.settings.timeout.mul_f64(0.9));
        let mut listing = self.cached_listing(namespace);
        let mut absent = false;
        for source in &self.settings.sources {
            match deadline
                .run(namespace, source.bundles(namespace, deadline))
                .await
            {
                Ok(slugs) => {
                    absent = false;
                    listing.complete = true;
                    let slugs: BTreeSet<Slug> = slugs.into_iter().collect();
                    for slug in &slugs {
                        listing.bundles.entry(slug.clone()).or_default();
                    }
                    if detailed {
                        self.list_versions(source, namespace, slugs, &mut listing, deadline)
                            .await;
                    }
                    break;
                }
                Err(error) => {
                    absent = error.is_absence();
                    debug!(%namespace, source = source.name(), %error, "no listing");
                    if absent {
                        break;
                    }
                }
            }
        }
        if absent && listing.bundles.is_empty() && !self.settings.namespaces.contains(namespace) {
            remember_absence(&self.absent_namespaces, namespace.clone());
            lock(&self.listings).remove(namespace);
            return Err(Error::not_found(format_args!("namespace {namespace}")));
        }
        let listing = Arc::new(listing);
        let life = if listing.complete {
            LISTING_TTL
        } else {
            ABSENCE_TTL
        };
        let listed = Listed {
            listing: Arc::clone(&listing),
            detailed,
            expires: Instant::now() + life,
        };
        lock(&self.listings).insert(namespace.clone(), listed);
        Ok(listing)
    }

    /// Fills in the versions of the bundles that a source named, as far as the limit goes.
    async fn list_versions(
        &self,
        source: &Arc<dyn Source>,
        namespace: &Namespace,
        slugs: BTreeSet<Slug>,
        listing: &mut Listing,
        deadline: Deadline,
    ) {
        if slugs.len() > MOST_LISTED {
            debug!(%namespace, bundles = slugs.len(), "too many bundles to list all versions");
        }
        let asked: Vec<BundleId> = slugs
            .iter()
            .take(MOST_LISTED)
            .map(|slug| BundleId {
                namespace: namespace.clone(),
                slug: slug.clone(),
            })
            .collect();
        let mut answers = futures_util::stream::iter(asked)
            .map(|bundle| async move {
                let known = self.known_versions(&bundle);
                let rows = match known {
                    Some(rows) => Ok(rows),
                    None => {
                        let asking = deadline
                            .run(&bundle, source.versions(&bundle, deadline))
                            .await;
                        asking.map(|rows| self.remember_versions(&bundle, rows))
                    }
                };
                (bundle, rows)
            })
            .buffer_unordered(LISTS_AT_A_TIME);
        while let Some((bundle, rows)) = answers.next().await {
            let rows = match rows {
                Ok(rows) => rows,
                Err(error) => {
                    debug!(%bundle, %error, "no list of versions");
                    continue;
                }
            };
            let versions = listing.bundles.entry(bundle.slug).or_default();
            // What the source says of a version wins over what the cache says.
            versions.retain(|version| {
                !rows
                    .iter()
                    .any(|row| row.version == *version && row.state == State::Yanked)
            });
            versions.extend(
                rows.iter()
                    .filter(|row| row.state == State::Published)
                    .map(|row| row.version.clone()),
            );
            versions.sort();
            versions.dedup();
        }
    }

    fn known_versions(&self, bundle: &BundleId) -> Option<Arc<Vec<Published>>> {
        let versions = lock(&self.versions);
        let (rows, at) = versions.get(bundle)?;
        (at.elapsed() < LISTING_TTL).then(|| Arc::clone(rows))
    }

    fn remember_versions(&self, bundle: &BundleId, rows: Vec<Published>) -> Arc<Vec<Published>> {
        let rows = Arc::new(rows);
        lock(&self.versions).insert(bundle.clone(), (Arc::clone(&rows), Instant::now()));
        rows
    }

    /// What the cache holds of a namespace; yanked versions are not listed.
    fn cached_listing(&self, namespace: &Namespace) -> Listing {
        let Settings { cache, host, .. } = &self.settings;
        let mut hosts = vec![host.clone()];
        if self.settings.local_packs {
            hosts.push(HostId::local());
        }
        let mut bundles: BTreeMap<Slug, Vec<Version>> = BTreeMap::new();
        for host in &hosts {
            for slug in cache.bundles(host, namespace) {
                let bundle = BundleId {
                    namespace: namespace.clone(),
                    slug,
                };
                let versions = cache.versions_with_state(host, &bundle);
                let published = versions
                    .into_iter()
                    .filter(|(_, state)| *state == State::Published)
                    .map(|(version, _)| version);
                bundles.entry(bundle.slug).or_default().extend(published);
            }
        }
        for versions in bundles.values_mut() {
            versions.sort();
            versions.dedup();
        }
        Listing {
            bundles,
            complete: false,
        }
    }

    /// The namespaces that the root lists, if that is known and fresh.
    pub fn root_now(&self) -> Option<Arc<BTreeSet<Namespace>>> {
        if self.is_offline() {
            return Some(Arc::new(self.cached_namespaces()));
        }
        let root = lock(&self.root);
        let (names, at) = root.as_ref()?;
        (at.elapsed() < LISTING_TTL).then(|| Arc::clone(names))
    }

    /// The namespaces that the root lists: configured, cached, looked up in this session, and what
    /// the key's identity tells. Never an error: what cannot be asked is left out.
    pub async fn root(self: &Arc<Self>, deadline: Deadline) -> Arc<BTreeSet<Namespace>> {
        if let Some(root) = self.root_now() {
            return root;
        }
        let start = || {
            let resolver = Arc::clone(self);
            async move {
                let deadline = Deadline::after(resolver.settings.timeout.mul_f64(0.9));
                let mut names = resolver.cached_namespaces();
                for source in &resolver.settings.sources {
                    match deadline
                        .run("namespaces", source.namespaces(deadline))
                        .await
                    {
                        Ok(more) => names.extend(more),
                        Err(error) => debug!(source = source.name(), %error, "no namespaces"),
                    }
                }
                let names = Arc::new(names);
                *lock(&resolver.root) = Some((Arc::clone(&names), Instant::now()));
                names
            }
        };
        let flight = async { Ok(self.root_flight.run((), start).await) };
        match deadline.run("namespaces", flight).await {
            Ok(Ok(names)) => names,
            Ok(Err(lost)) => {
                warn!(%lost, "the list of namespaces was lost");
                Arc::new(self.cached_namespaces())
            }
            Err(_) => Arc::new(self.cached_namespaces()),
        }
    }

    fn cached_namespaces(&self) -> BTreeSet<Namespace> {
        let Settings { cache, host, .. } = &self.settings;
        let mut names: BTreeSet<Namespace> = self.settings.namespaces.iter().cloned().collect();
        names.extend(cache.namespaces(host));
        if self.settings.local_packs {
            names.extend(cache.namespaces(&HostId::local()));
        }
        names.extend(lock(&self.listings).keys().cloned());
        names
    }
}

/// Remembers that something is absent, and forgets the absences that no longer count.
fn remember_absence<K: std::hash::Hash + Eq>(absences: &Mutex<HashMap<K, Instant>>, key: K) {
    const MANY: usize = 4096;
    let mut absences = lock(absences);
    if absences.len() >= MANY {
        absences.retain(|_, at| at.elapsed() < ABSENCE_TTL);
    }
    if absences.len() < MANY {
        absences.insert(key, Instant::now());
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

/// Whether a name that is not known to be a namespace is one that programs look for in every
/// directory they pass (`AGENTS.md`, `package.json`, `Makefile`): such a probe must cost nothing.
fn is_probe(name: &str) -> bool {
    const ENDINGS: &[&str] = &[
        "bazel",
        "bzl",
        "cfg",
        "cjs",
        "conf",
        "cs",
        "csproj",
        "css",
        "env",
        "exe",
        "gemspec",
        "go",
        "gradle",
        "html",
        "inf",
        "ini",
        "ipynb",
        "java",
        "js",
        "json",
        "json5",
        "jsonc",
        "kts",
        "lock",
        "lua",
        "md",
        "mdc",
        "mdx",
        "mjs",
        "mod",
        "nix",
        "php",
        "properties",
        "py",
        "rb",
        "rs",
        "sh",
        "sln",
        "so",
        "sum",
        "toml",
        "ts",
        "tsx",
        "txt",
        "work",
        "xml",
        "yaml",
        "yml",
        "zip",
    ];
    const NAMES: &[&str] = &[
        "BUILD",
        "CVS",
        "Dockerfile",
        "Gemfile",
        "GNUmakefile",
        "HEAD",
        "Jenkinsfile",
        "Justfile",
        "LICENSE",
        "Makefile",
        "Pipfile",
        "Podfile",
        "Procfile",
        "RCS",
        "README",
        "SCCS",
        "WORKSPACE",
        "_darcs",
        "autorun",
        "justfile",
        "makefile",
        "node_modules",
        "objects",
        "refs",
    ];
    NAMES.contains(&name)
        || name
            .rsplit_once('.')
            .is_some_and(|(_, ending)| ENDINGS.contains(&ending.to_ascii_lowercase().as_str()))
}
