//! What is in a namespace.
//!
//! Listings (bundles of a namespace, versions of a bundle, and the [namespaces](super::namespaces)) live for [`LISTING_TTL`]. To
//! what a source says is added what the cache holds; where no source answers, what was listed before
//! stays listed, and is asked for again soon. Where there is nobody to ask, the cache is looked through
//! once in a while, not with every question. A listing that says what the one before it said *is* that
//! one, so that whoever has made something of it can go on using it. A complete, fresh listing also answers for what is
//! *not* in it, and probes (`probe.rs`) cost nothing without one, too.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::StreamExt as _;
use lru::LruCache;
use tokio::time::Instant;
use tracing::debug;

use super::probe::is_probe;
use super::{ABSENCE_TTL, AT_A_TIME, Resolver, Settings, keep_at_most, remember_absence};
use crate::error::{Error, Result};
use crate::manifest::State;
use crate::reference::{BundleId, HostId, Namespace, Selector, Slug, Version, VersionRef};
use crate::single_flight::SingleFlight;
use crate::source::{Deadline, Published};
use crate::sync::lock;

/// How long a listing is answered from memory: the life of a directory's attributes in the kernel.
pub const LISTING_TTL: Duration = Duration::from_secs(60);

/// Most bundles of a namespace whose versions are listed: each costs a request.
pub const MOST_LISTED: usize = 256;

/// Most bundles whose lists of versions are kept in memory, and most namespaces whose listings are
/// where nobody is asked.
const MOST_KEPT: usize = 4096;

/// What a namespace holds: bundles and their listed versions, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Listing {
    /// Every bundle with the versions that may be listed: published, or cached.
    pub bundles: BTreeMap<Slug, Vec<Version>>,
    /// Those of the bundles whose bare name is known to stand for nothing.
    pub unnamed: BTreeSet<Slug>,
    /// Whether a source said that these are all bundles.
    pub complete: bool,
}

impl Listing {
    fn add(&mut self, other: &Self) {
        for (slug, versions) in &other.bundles {
            let known = self.bundles.entry(slug.clone()).or_default();
            known.extend(versions.iter().cloned());
            known.sort();
            known.dedup();
        }
    }
}

pub(super) struct Remembered {
    listing: Arc<Listing>,
    /// Whether the versions were asked for as well, or only the names.
    detailed: bool,
    /// Whether a source ever said that the namespace exists.
    pub(super) confirmed: bool,
    pub(super) expires: Instant,
}

type VersionLists = LruCache<BundleId, (Arc<Vec<Published>>, Instant)>;

/// What the resolver remembers of listings.
pub(super) struct Listed {
    pub(super) namespaces: Mutex<HashMap<Namespace, Remembered>>,
    flights: SingleFlight<(Namespace, bool), Result<Arc<Listing>>>,
    /// What is listed without asking, and until when it is not looked up again.
    unasked: Mutex<LruCache<Namespace, (Arc<Listing>, Instant)>>,
    versions: Mutex<VersionLists>,
}

impl Default for Listed {
    fn default() -> Self {
        Self {
            namespaces: Mutex::default(),
            flights: SingleFlight::default(),
            unasked: Mutex::new(LruCache::unbounded()),
            versions: Mutex::new(LruCache::unbounded()),
        }
    }
}

impl Resolver {
    fn fresh_listing(&self, namespace: &Namespace, detailed: bool) -> Option<Arc<Listing>> {
        let namespaces = lock(&self.listed.namespaces);
        let listed = namespaces.get(namespace)?;
        let serves = listed.expires > Instant::now() && (listed.detailed || !detailed);
        serves.then(|| Arc::clone(&listed.listing))
    }

    /// Whether a bundle that is not known otherwise can be said to be absent without asking: a
    /// complete, fresh listing lacks it, or it is a name that programs look for everywhere, which no
    /// listing ever had.
    pub(super) fn is_unlisted(&self, bundle: &BundleId) -> bool {
        let lacks = |listing: Arc<Listing>| !listing.bundles.contains_key(&bundle.slug);
        if let Some(listing) = self.fresh_listing(&bundle.namespace, false)
            && listing.complete
        {
            return lacks(listing);
        }
        is_probe(bundle.slug.as_str())
            && self.last_listing(&bundle.namespace).is_none_or(lacks)
            && self
                .settings
                .cache
                .versions(&self.settings.host, bundle)
                .is_empty()
    }

    /// The namespace's listing, if it is fresh or nobody can be asked.
    pub fn list_now(&self, namespace: &Namespace) -> Option<Arc<Listing>> {
        if let Some(locked) = self.locked.get() {
            let listing = || locked.listing(namespace);
            return Some(self.list_unasked(namespace, LISTING_TTL, listing));
        }
        if self.is_offline() {
            let listing = || self.with_unnamed(namespace, self.cached_listing(namespace));
            return Some(self.list_unasked(namespace, ABSENCE_TTL, listing));
        }
        self.fresh_listing(namespace, true)
    }

    /// The listing that `look` finds; what it found less than `life` ago is still good.
    fn list_unasked(
        &self,
        namespace: &Namespace,
        life: Duration,
        look: impl FnOnce() -> Listing,
    ) -> Arc<Listing> {
        let known = lock(&self.listed.unasked).get(namespace).cloned();
        if let Some((listing, until)) = &known
            && *until > Instant::now()
        {
            return Arc::clone(listing);
        }
        let before = known.map(|(listing, _)| listing);
        let listing = same_or_new(before.as_ref(), look());
        let now = Instant::now();
        let mut unasked = lock(&self.listed.unasked);
        unasked.put(namespace.clone(), (Arc::clone(&listing), now + life));
        keep_at_most(&mut unasked, MOST_KEPT);
        listing
    }

    /// The namespace's listing as it was last seen, however long ago.
    pub fn last_listing(&self, namespace: &Namespace) -> Option<Arc<Listing>> {
        lock(&self.listed.namespaces)
            .get(namespace)
            .map(|listed| Arc::clone(&listed.listing))
    }

    /// What the namespace holds; asks the sources unless a listing is fresh.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`] if the registry says so and nothing of it is known. Other failures are
    /// answered from memory and the cache, as an incomplete listing.
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

    pub(super) async fn ask_for_listing(
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
            let key = (namespace.clone(), detailed);
            let landed = self.listed.flights.run(key, start).await;
            landed.map_err(|lost| Error::Internal(lost.to_string()))?
        };
        match deadline.run(namespace, flight).await {
            Err(Error::Timeout { .. }) => {
                let known = self.known_listing(namespace);
                Ok(Arc::new(self.with_unnamed(namespace, known)))
            }
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
        match self.ask_for_bundles(namespace, deadline).await {
            Ok(slugs) => {
                let mut listing = self.cached_listing(namespace);
                listing.complete = true;
                for slug in &slugs {
                    listing.bundles.entry(slug.clone()).or_default();
                }
                if detailed {
                    self.list_versions(namespace, slugs, &mut listing, deadline)
                        .await;
                }
                Ok(self.remember_listing(namespace, listing, detailed))
            }
            Err(error) => {
                let gone = error.is_absence();
                let listing = if gone && self.settings.respect_removal {
                    self.cached_listing(namespace)
                } else {
                    self.known_listing(namespace)
                };
                if gone
                    && listing.bundles.is_empty()
                    && !self.settings.namespaces.contains(namespace)
                {
                    remember_absence(&self.namespaces.absent, namespace.clone());
                    lock(&self.listed.namespaces).remove(namespace);
                    return Err(Error::not_found(format_args!("namespace {namespace}")));
                }
                Ok(self.remember_listing(namespace, listing, true))
            }
        }
    }

    /// The names of all bundles.
    async fn ask_for_bundles(
        &self,
        namespace: &Namespace,
        deadline: Deadline,
    ) -> Result<BTreeSet<Slug>> {
        let sources = &self.settings.sources;
        // Whoever looks a namespace up often lists it next.
        if let Some(known) = self.fresh_listing(namespace, false)
            && known.complete
        {
            return Ok(known.bundles.keys().cloned().collect());
        }
        let mut failure = Error::Offline {
            what: namespace.to_string(),
        };
        for (asked, source) in sources.iter().enumerate() {
            let share = deadline.share(sources.len() - asked);
            match share.run(namespace, source.bundles(namespace, share)).await {
                Ok(slugs) => return Ok(slugs.into_iter().collect()),
                Err(error) => {
                    debug!(%namespace, source = source.name(), %error, "no listing");
                    failure = error;
                }
            }
        }
        Err(failure)
    }

    fn remember_listing(
        &self,
        namespace: &Namespace,
        listing: Listing,
        detailed: bool,
    ) -> Arc<Listing> {
        let life = if listing.complete {
            LISTING_TTL
        } else {
            ABSENCE_TTL
        };
        let listing = self.with_unnamed(namespace, listing);
        let now = Instant::now();
        let mut namespaces = lock(&self.listed.namespaces);
        let old = namespaces.get(namespace);
        let listing = same_or_new(old.map(|old| &old.listing), listing);
        // A listing with versions that arrived meanwhile knows more than one without.
        if !detailed && old.is_some_and(|old| old.detailed && old.expires > now) {
            return listing;
        }
        let confirmed = listing.complete || old.is_some_and(|old| old.confirmed);
        // What nobody has confirmed is worth keeping only while it lasts.
        namespaces.retain(|_, other| other.confirmed || other.expires > now);
        namespaces.insert(
            namespace.clone(),
            Remembered {
                listing: Arc::clone(&listing),
                detailed,
                confirmed,
                expires: now + life,
            },
        );
        listing
    }

    /// Fills in the versions of the bundles that a source named, as far as the limit goes.
    async fn list_versions(
        &self,
        namespace: &Namespace,
        slugs: BTreeSet<Slug>,
        listing: &mut Listing,
        deadline: Deadline,
    ) {
        if slugs.len() > MOST_LISTED {
            debug!(%namespace, bundles = slugs.len(), "too many bundles to list all versions");
        }
        let before = self.last_listing(namespace);
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
                let rows = self.ask_for_versions(&bundle, deadline).await;
                (bundle, rows)
            })
            .buffer_unordered(AT_A_TIME);
        while let Some((bundle, rows)) = answers.next().await {
            let versions = listing.bundles.entry(bundle.slug.clone()).or_default();
            match rows {
                Ok(rows) => {
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
                }
                Err(error) => {
                    debug!(%bundle, %error, "no list of versions");
                    let before = before.as_ref();
                    let listed = before.and_then(|before| before.bundles.get(&bundle.slug));
                    versions.extend(listed.into_iter().flatten().cloned());
                }
            }
            versions.sort();
            versions.dedup();
        }
    }

    async fn ask_for_versions(
        &self,
        bundle: &BundleId,
        deadline: Deadline,
    ) -> Result<Arc<Vec<Published>>> {
        if let Some(rows) = self.known_versions(bundle) {
            return Ok(rows);
        }
        let mut failure = Error::Offline {
            what: bundle.to_string(),
        };
        let sources = &self.settings.sources;
        for (asked, source) in sources.iter().enumerate() {
            let share = deadline.share(sources.len() - asked);
            match share.run(bundle, source.versions(bundle, share)).await {
                Ok(rows) => return Ok(self.remember_versions(bundle, rows)),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn known_versions(&self, bundle: &BundleId) -> Option<Arc<Vec<Published>>> {
        let versions = lock(&self.listed.versions);
        let (rows, at) = versions.peek(bundle)?;
        (at.elapsed() < LISTING_TTL).then(|| Arc::clone(rows))
    }

    pub(super) fn remember_versions(
        &self,
        bundle: &BundleId,
        rows: Vec<Published>,
    ) -> Arc<Vec<Published>> {
        for row in &rows {
            self.note_state(bundle, &row.version, row.state);
        }
        let rows = Arc::new(rows);
        let mut versions = lock(&self.listed.versions);
        versions.put(bundle.clone(), (Arc::clone(&rows), Instant::now()));
        keep_at_most(&mut versions, MOST_KEPT);
        rows
    }

    /// What is known of a namespace without asking: what was listed before, and what is cached.
    fn known_listing(&self, namespace: &Namespace) -> Listing {
        let mut listing = self.cached_listing(namespace);
        if let Some(last) = self.last_listing(namespace) {
            listing.add(&last);
        }
        listing
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
            for (bundle, versions) in cache.bundles_with_versions(host, namespace) {
                let listed = bundles.entry(bundle.slug.clone()).or_default();
                let ids = versions.into_iter().map(|version| VersionRef {
                    bundle: bundle.clone(),
                    version,
                });
                let published = ids.filter(|id| cache.state(host, id) == Some(State::Published));
                listed.extend(published.map(|id| id.version));
            }
        }
        for versions in bundles.values_mut() {
            versions.sort();
            versions.dedup();
        }
        Listing {
            bundles,
            ..Listing::default()
        }
    }

    /// The listing, with those of its bundles that have no bare name. Any version that is listed can be
    /// the newest. Where none is, the bare name counts until a source has listed versions that are
    /// all yanked, or nobody can be asked; that a lookup found nothing a moment ago does not count,
    /// since it is forgotten in a moment.
    fn with_unnamed(&self, namespace: &Namespace, mut listing: Listing) -> Listing {
        let stands_for_nothing = |slug: &Slug| {
            let bundle = BundleId {
                namespace: namespace.clone(),
                slug: slug.clone(),
            };
            if self.is_offline() {
                return !matches!(self.peek(&bundle, &Selector::Latest), Some(Ok(_)));
            }
            let versions = lock(&self.listed.versions);
            let last = versions.peek(&bundle).map(|(rows, _)| rows);
            let yanked = |rows: &Arc<Vec<Published>>| {
                !rows.is_empty() && rows.iter().all(|row| row.state == State::Yanked)
            };
            last.is_some_and(yanked)
        };
        let without = listing.bundles.iter().filter(|(_, list)| list.is_empty());
        listing.unnamed = without
            .map(|(slug, _)| slug)
            .filter(|slug| stands_for_nothing(slug))
            .cloned()
            .collect();
        listing
    }
}

/// `old`, if `new` says the same.
pub(super) fn same_or_new<T: PartialEq>(old: Option<&Arc<T>>, new: T) -> Arc<T> {
    match old {
        Some(old) if **old == new => Arc::clone(old),
        _ => Arc::new(new),
    }
}
