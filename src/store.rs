//! Manifests by version and blobs by digest: memory, then disk, then the sources.
//!
//! Two questions, each in two steps. The `…_now` step answers from memory or the cache and never
//! waits for a network; what it cannot answer goes to the asynchronous step, which fetches, verifies
//! and caches. Equal work is done once: in the process by [`SingleFlight`], across the processes of
//! one user by [`locks`].
//!
//! Nothing here is served because somebody said so. A blob is served when its bytes hash to what the
//! manifest names; a manifest is served when its table is the one that this version had when it was
//! first seen ([`journal`]). A version that later answers with another table raises the alarm, and
//! the first stays.

pub mod content;
pub mod journal;
mod kept;
pub mod locks;
mod readahead;

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use lru::LruCache;
use tracing::{debug, error, info, warn};

use crate::cache::{Cache, Effort, MANIFEST_TTL, Slow};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{Document, Manifest, State};
use crate::metrics::Metrics;
use crate::reference::{HostId, VersionRef};
use crate::resolve::Locked;
use crate::single_flight::SingleFlight;
use crate::source::{Deadline, Source};
use crate::sync::lock;

use journal::Journal;
use locks::Locks;

/// How much memory parsed manifests may take before the least recently used are dropped. About two
/// hundred thousand entries; a dropped one is read from disk again.
pub const MANIFEST_MEMORY: usize = 24 << 20;

/// How soon to look again for what could not be refreshed, and for local packs.
const RECHECK: Duration = Duration::from_secs(60);

/// What a mount allows and how long it waits.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Yanked versions are refused instead of served with a warning.
    pub deny_yanked: bool,
    /// A version that its registry answers 404 for disappears, although it is cached.
    pub respect_removal: bool,
    /// Packs that the Musher CLI built on this machine (`_local`) win over the registry.
    pub local_packs: bool,
    /// How many bytes read-ahead may have in flight for one version; 0 turns it off.
    pub readahead: u64,
    /// How much memory parsed manifests may take; one that does not fit is kept alone.
    pub manifest_memory: usize,
    /// How long one request for names or manifests may take.
    pub metadata_timeout: Duration,
    /// How long one request for content may take.
    pub content_timeout: Duration,
    /// The only versions that exist, if they were locked.
    pub locked: Option<Arc<Locked>>,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            deny_yanked: false,
            respect_removal: false,
            local_packs: false,
            readahead: 4 << 20,
            manifest_memory: MANIFEST_MEMORY,
            metadata_timeout: Duration::from_secs(10),
            content_timeout: Duration::from_secs(60),
            locked: None,
        }
    }
}

/// What a [`Store`] works with.
pub struct Settings {
    /// The registry's partition of the cache.
    pub host: HostId,
    /// The shared cache.
    pub cache: Arc<Cache>,
    /// Whom to ask, in this order; empty when offline.
    pub sources: Vec<Arc<dyn Source>>,
    /// What was known before.
    pub journal: Arc<Journal>,
    /// Where locks may live; without it processes do not wait for each other.
    pub state_dir: Option<PathBuf>,
    /// What is allowed.
    pub policy: Policy,
    /// Where to count.
    pub metrics: Arc<Metrics>,
}

/// What was found of a version's manifest, if there was time to look.
type Looked = Result<Option<Arc<Loaded>>, Slow>;

/// Whom a manifest is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum For {
    /// Somebody who holds the version already.
    Holder,
    /// Somebody who looks its name up: a local pack may take its place.
    Lookup,
}

/// A manifest in memory, and where it came from.
#[derive(Debug)]
pub struct Loaded {
    /// The manifest.
    pub manifest: Manifest,
    /// The partition it belongs to: the registry's, or `_local`.
    pub host: HostId,
    /// `cache`, or the name of the source that answered in this session.
    pub origin: Arc<str>,
    /// When it stops counting as fresh, in milliseconds since 1970. Atomic because a refresh that
    /// failed postpones the next one while readers hold the manifest.
    fresh_until: AtomicI64,
}

impl Loaded {
    fn new(manifest: Manifest, host: HostId, origin: Arc<str>, life: Duration) -> Self {
        let loaded = Self {
            manifest,
            host,
            origin,
            fresh_until: AtomicI64::new(0),
        };
        loaded.keep_for(life);
        loaded
    }

    fn keep_for(&self, life: Duration) {
        let life = i64::try_from(life.as_millis()).unwrap_or(i64::MAX);
        let until = Timestamp::now().as_millisecond().saturating_add(life);
        self.fresh_until.store(until, Ordering::Relaxed);
    }

    /// How much longer the manifest counts as fresh; zero when it does not.
    pub fn remaining(&self) -> Duration {
        let left = self.fresh_until.load(Ordering::Relaxed) - Timestamp::now().as_millisecond();
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }

    fn is_fresh(&self) -> bool {
        !self.remaining().is_zero()
    }

    /// Whether the version is withdrawn.
    pub fn is_yanked(&self) -> bool {
        self.manifest.info().state == State::Yanked
    }
}

/// Parsed manifests, bounded by the memory they take.
struct Manifests {
    loaded: LruCache<VersionRef, Arc<Loaded>>,
    memory: usize,
    most: usize,
}

impl Manifests {
    fn insert(&mut self, loaded: Arc<Loaded>) {
        self.memory += loaded.manifest.memory();
        let id = loaded.manifest.id().clone();
        if let Some((_, old)) = self.loaded.push(id, loaded) {
            self.memory -= old.manifest.memory();
        }
        while self.memory > self.most && self.loaded.len() > 1 {
            let Some((_, old)) = self.loaded.pop_lru() else {
                break;
            };
            self.memory -= old.manifest.memory();
        }
    }
}

/// The manifests and blobs of one registry, for all mounts of a process.
pub struct Store {
    host: HostId,
    cache: Arc<Cache>,
    sources: Vec<Arc<dyn Source>>,
    journal: Arc<Journal>,
    locks: Locks,
    policy: Policy,
    metrics: Arc<Metrics>,
    manifests: Mutex<Manifests>,
    fetches: SingleFlight<VersionRef, Result<Arc<Loaded>>>,
    /// Whoever waits for what takes long to read waits for one reader of it.
    slow: SingleFlight<(VersionRef, For), Option<Arc<Loaded>>>,
    /// Versions whose peculiarities (yanked, refused paths, contradictions) have been logged.
    reported: Mutex<HashSet<(VersionRef, &'static str)>>,
    content: content::Content,
    ahead: Mutex<readahead::Ahead>,
    observer: OnceLock<Arc<dyn Observer>>,
}

/// Who wants to know what is used. Called on the threads that serve readers: it must not wait.
pub trait Observer: Send + Sync {
    /// A version's manifest was taken into memory, to be served.
    fn version_used(&self, host: &HostId, version: &VersionRef);

    /// Somebody read from a blob.
    fn blob_read(&self, digest: Digest);
}

impl Store {
    /// A store that has asked nobody anything yet.
    pub fn new(settings: Settings) -> Arc<Self> {
        let Settings {
            host,
            cache,
            sources,
            journal,
            state_dir,
            policy,
            metrics,
        } = settings;
        Arc::new(Self {
            locks: Locks::new(state_dir.as_deref(), cache.root()),
            manifests: Mutex::new(Manifests {
                loaded: LruCache::unbounded(),
                memory: 0,
                most: policy.manifest_memory,
            }),
            fetches: SingleFlight::default(),
            slow: SingleFlight::default(),
            reported: Mutex::default(),
            content: content::Content::default(),
            ahead: Mutex::default(),
            observer: OnceLock::new(),
            host,
            cache,
            sources,
            journal,
            policy,
            metrics,
        })
    }

    /// Tells `observer` from now on what is used. Only the first one counts.
    pub fn observe(&self, observer: Arc<dyn Observer>) {
        let _ = self.observer.set(observer);
    }

    /// What is allowed.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// The registry's partition of the cache.
    pub fn host(&self) -> &HostId {
        &self.host
    }

    /// Returns the manifest without waiting for anybody, if that is possible.
    ///
    /// A stale one is an answer too, since content cannot change: it is refreshed behind the
    /// answer. Under a policy that can take a version away it is asked for first, so `None`. So it is
    /// if reading the cache's entry takes long ([`Slow`]).
    pub fn manifest_now(self: &Arc<Self>, version: &VersionRef) -> Option<Result<Arc<Loaded>>> {
        let loaded = self.looked_up(version, Effort::Quick).ok()??;
        self.answer(version, loaded)
    }

    /// What is known when a name is looked up: from memory or disk.
    fn looked_up(&self, version: &VersionRef, effort: Effort) -> Looked {
        self.prefer_local(version, effort)?;
        self.known(version, effort)
    }

    /// The answer to a lookup that `loaded` is, unless it must be asked for first.
    fn answer(
        self: &Arc<Self>,
        version: &VersionRef,
        loaded: Arc<Loaded>,
    ) -> Option<Result<Arc<Loaded>>> {
        if !loaded.is_fresh() && !self.sources.is_empty() {
            if self.policy.deny_yanked || self.policy.respect_removal {
                return None;
            }
            self.refresh_behind(version);
        }
        Some(self.admit(loaded))
    }

    /// Lets a pack that was made since take the place of what the registry has. Only when a name is
    /// looked up: whoever holds the registry's version keeps it until then.
    fn prefer_local(&self, version: &VersionRef, effort: Effort) -> Result<(), Slow> {
        let may_win = self.policy.local_packs
            && self
                .in_memory(version)
                .is_some_and(|loaded| !loaded.host.is_local());
        if may_win && let Some(local) = self.load_local(version, effort)? {
            self.keep_manifest(&Arc::new(local));
        }
        Ok(())
    }

    /// How long a lookup of the version's name need not be repeated.
    pub fn name_life(&self, loaded: &Loaded) -> Duration {
        let life = loaded.remaining();
        if self.policy.local_packs {
            // A pack may be made at any time.
            life.min(RECHECK)
        } else {
            life
        }
    }

    /// The manifest of a version that somebody holds already: from memory or disk, whatever its age
    /// and whatever the policy says about looking it up now.
    /// `None` if reading it takes long ([`Slow`]).
    pub fn held_now(&self, version: &VersionRef) -> Option<Arc<Loaded>> {
        self.known(version, Effort::Quick).ok()?
    }

    /// Like [`Store::held_now`], however long it takes: not for a thread that serves others.
    pub fn held_on_disk(&self, version: &VersionRef) -> Option<Arc<Loaded>> {
        self.known(version, Effort::Any).ok()?
    }

    /// Like [`Store::held_now`], asking the sources if the cache has lost it.
    ///
    /// # Errors
    ///
    /// Those of [`Store::fetch`].
    pub async fn held(
        self: &Arc<Self>,
        version: &VersionRef,
        deadline: Deadline,
    ) -> Result<Arc<Loaded>> {
        let known = match self.known(version, Effort::Quick) {
            Ok(known) => known,
            Err(Slow) => self.slowly(version, deadline, For::Holder).await?,
        };
        match known {
            Some(loaded) => Ok(loaded),
            None => self.fetch(version, deadline).await,
        }
    }

    /// Looks as [`Store::known`] does, or as [`Store::looked_up`], on a thread that may be kept busy.
    /// Whoever waits gives up at the deadline; what was found is in memory then.
    async fn slowly(
        self: &Arc<Self>,
        version: &VersionRef,
        deadline: Deadline,
        purpose: For,
    ) -> Result<Option<Arc<Loaded>>> {
        let look = || {
            let (store, id) = (Arc::clone(self), version.clone());
            async move {
                let looking = tokio::task::spawn_blocking(move || match purpose {
                    For::Holder => store.known(&id, Effort::Any),
                    For::Lookup => store.looked_up(&id, Effort::Any),
                });
                // A reader that panics has found nothing.
                looking.await.ok().and_then(Result::ok).flatten()
            }
        };
        let flight = async {
            let landed = self.slow.run((version.clone(), purpose), look).await;
            landed.map_err(|lost| Error::Internal(format!("{version}: {lost}")))
        };
        deadline.run(version, flight).await
    }

    /// The manifest if it is in memory.
    pub fn in_memory(&self, version: &VersionRef) -> Option<Arc<Loaded>> {
        lock(&self.manifests).loaded.peek(version).cloned()
    }

    /// Returns the manifest, asking the sources if it is not at hand.
    ///
    /// # Errors
    ///
    /// [`Error::NotFound`], [`Error::Yanked`] and [`Error::Denied`] are verdicts, the others
    /// failures. No failure takes away what is cached.
    pub async fn manifest(
        self: &Arc<Self>,
        version: &VersionRef,
        deadline: Deadline,
    ) -> Result<Arc<Loaded>> {
        let known = match self.looked_up(version, Effort::Quick) {
            Ok(known) => known,
            Err(Slow) => self.slowly(version, deadline, For::Lookup).await?,
        };
        if let Some(answer) = known.and_then(|loaded| self.answer(version, loaded)) {
            return answer;
        }
        let error = match self.fetch(version, deadline).await {
            Ok(loaded) => return self.admit(loaded),
            Err(error) => error,
        };
        let known = match self.known(version, Effort::Quick) {
            Ok(known) => known,
            Err(Slow) => self.slowly(version, deadline, For::Holder).await?,
        };
        match known {
            Some(loaded) if !(error.is_absence() && self.policy.respect_removal) => {
                debug!(%version, %error, "serving the known manifest");
                self.admit(loaded)
            }
            _ => Err(error),
        }
    }

    /// Takes in a version's description that came with the answer to another question.
    ///
    /// Incomplete ones are ignored: whoever needs the manifest will ask for it.
    pub async fn learn(self: &Arc<Self>, version: &VersionRef, document: Document, origin: &str) {
        if document.layers.is_some()
            && let Err(error) = self.accept(version, document, origin).await
        {
            debug!(%version, %error, "not learnt");
        }
    }

    /// Whether the policy lets a manifest be looked up now.
    ///
    /// # Errors
    ///
    /// [`Error::Yanked`], or [`Error::NotFound`] when the registry has removed it.
    pub fn allows(&self, loaded: &Loaded) -> Result<()> {
        let id = loaded.manifest.id();
        if self.policy.respect_removal && self.journal.is_removed(&journal_key(&self.host, id)) {
            return Err(Error::not_found(id));
        }
        if loaded.is_yanked() && self.policy.deny_yanked {
            return Err(Error::Yanked {
                what: id.to_string(),
            });
        }
        Ok(())
    }

    /// Applies the policy to a manifest that is about to be used.
    fn admit(&self, loaded: Arc<Loaded>) -> Result<Arc<Loaded>> {
        self.allows(&loaded)?;
        let id = loaded.manifest.id();
        if loaded.is_yanked() && self.first_report(id, "yanked") {
            warn!(version = %id, "this version is yanked; it is served because it is named exactly");
        }
        Ok(loaded)
    }

    fn first_report(&self, version: &VersionRef, what: &'static str) -> bool {
        lock(&self.reported).insert((version.clone(), what))
    }

    /// The manifest from memory or disk, fresh or not.
    fn known(&self, version: &VersionRef, effort: Effort) -> Looked {
        if !self.is_allowed(version) {
            return Ok(None);
        }
        if let Some(loaded) = lock(&self.manifests).loaded.get(version)
            && (loaded.is_fresh() || !loaded.host.is_local())
        {
            return Ok(Some(Arc::clone(loaded)));
        }
        let loaded = match self.load_local(version, effort)? {
            Some(local) => Some(local),
            None => self.load_cached(version, effort)?,
        };
        let loaded = loaded.map(Arc::new);
        if let Some(loaded) = &loaded {
            self.keep_manifest(loaded);
        }
        Ok(loaded)
    }

    fn is_allowed(&self, version: &VersionRef) -> bool {
        let locked = self.policy.locked.as_ref();
        locked.is_none_or(|locked| locked.allows(version))
    }

    fn keep_manifest(&self, loaded: &Arc<Loaded>) {
        if let Some(observer) = self.observer.get() {
            observer.version_used(&loaded.host, loaded.manifest.id());
        }
        lock(&self.manifests).insert(Arc::clone(loaded));
    }

    fn load_local(&self, version: &VersionRef, effort: Effort) -> Result<Option<Loaded>, Slow> {
        // A lockfile is about what a registry serves.
        if !self.policy.local_packs || self.policy.locked.is_some() {
            return Ok(None);
        }
        let host = HostId::local();
        let Some(cached) = self.cache.look_for_manifest(&host, version, effort)? else {
            return Ok(None);
        };
        self.report_refused(&cached.manifest);
        // A pack never expires, but may be packed again.
        Ok(Some(Loaded::new(
            cached.manifest,
            host,
            "local pack".into(),
            RECHECK,
        )))
    }

    fn load_cached(&self, version: &VersionRef, effort: Effort) -> Result<Option<Loaded>, Slow> {
        let cached = self.cache.look_for_manifest(&self.host, version, effort)?;
        let Some(cached) = cached.filter(|cached| self.check_table(&cached.manifest).is_ok())
        else {
            return Ok(None);
        };
        self.report_refused(&cached.manifest);
        let life = cached.remaining(Timestamp::now());
        Ok(Some(Loaded::new(
            cached.manifest,
            self.host.clone(),
            "cache".into(),
            life,
        )))
    }

    /// Compares a manifest with what the same version was before.
    fn check_table(&self, manifest: &Manifest) -> Result<()> {
        let id = manifest.id();
        let table = manifest.table_digest();
        if let Some(locked) = &self.policy.locked
            && let Some(expected) = locked.table(id)
            && expected != table
        {
            if self.first_report(id, "locked") {
                error!(version = %id, locked = %expected, found = %table, "integrity alarm: this version is not what the lockfile says");
            }
            return Err(Error::Contradiction {
                what: id.to_string(),
                detail: format!(
                    "the lockfile says that its table is {expected}, and it is {table}"
                ),
            });
        }
        self.journal
            .remember_table(&journal_key(&self.host, id), table)
            .map_err(|first| {
                let alarm = Error::Contradiction {
                    what: id.to_string(),
                    detail: format!("its table was {first} and now is {table}"),
                };
                if self.first_report(id, "contradiction") {
                    error!(version = %id, %first, now = %table, "integrity alarm: this version has changed; its first content stays");
                }
                alarm
            })
    }

    /// Compares the artifact that a manifest was read from with the one that is known: a version's
    /// tag in an OCI registry must not move, not even to another artifact with the same files.
    fn check_artifact(&self, manifest: &Manifest) -> Result<()> {
        let id = manifest.id();
        let named = |manifest: &Manifest| -> Option<Digest> {
            manifest.info().oci_digest.as_deref()?.parse().ok()
        };
        let known = self
            .held_on_disk(id)
            .filter(|known| known.host == self.host);
        let first = known.and_then(|known| named(&known.manifest));
        match (first, named(manifest)) {
            (Some(first), Some(now)) if first != now => {
                if self.first_report(id, "contradiction") {
                    error!(version = %id, %first, %now, "integrity alarm: this version has moved to another artifact; the first stays");
                }
                Err(Error::Contradiction {
                    what: id.to_string(),
                    detail: format!("its artifact was {first} and now is {now}"),
                })
            }
            _ => Ok(()),
        }
    }

    fn report_refused(&self, manifest: &Manifest) {
        let mut refused = manifest.refused();
        if let Some((entry, reason)) = refused.next()
            && self.first_report(manifest.id(), "refused")
        {
            let path: String = entry.path().chars().take(200).collect();
            warn!(version = %manifest.id(), count = refused.count() + 1, first = ?path, %reason, "hiding files that cannot be served");
        }
    }

    fn refresh_behind(self: &Arc<Self>, version: &VersionRef) {
        if self.fetches.is_running(version) {
            return;
        }
        let (store, version) = (Arc::clone(self), version.clone());
        tokio::spawn(async move {
            let deadline = Deadline::after(store.policy.metadata_timeout);
            if let Err(error) = store.fetch(&version, deadline).await {
                debug!(%version, %error, "could not refresh the manifest");
                // A dead registry is asked once in a while, not with every lookup.
                if let Some(loaded) = lock(&store.manifests).loaded.peek(&version) {
                    loaded.keep_for(RECHECK);
                }
            }
        });
    }

    /// Asks the sources, however fresh what is known may be.
    ///
    /// # Errors
    ///
    /// What the last source said, which is the registry itself; [`Error::Offline`] without a source.
    pub async fn fetch(
        self: &Arc<Self>,
        version: &VersionRef,
        deadline: Deadline,
    ) -> Result<Arc<Loaded>> {
        if !self.is_allowed(version) {
            return Err(Error::not_found(format_args!(
                "{version} (it is not in the lockfile)"
            )));
        }
        let start = || {
            let (store, version) = (Arc::clone(self), version.clone());
            async move {
                let budget = Deadline::after(store.policy.metadata_timeout);
                store.fetch_now(&version, budget).await
            }
        };
        deadline
            .join(&self.fetches, version, version, &self.metrics, start)
            .await
    }

    async fn fetch_now(
        self: &Arc<Self>,
        version: &VersionRef,
        deadline: Deadline,
    ) -> Result<Arc<Loaded>> {
        let mut failure = Error::Offline {
            what: version.to_string(),
        };
        for (asked, source) in self.sources.iter().enumerate() {
            let share = deadline.share(self.sources.len() - asked);
            let asking = async {
                let document = source.manifest(version, share).await?;
                self.accept(version, document, source.name()).await
            };
            match share.run(version, asking).await {
                Ok(loaded) => return Ok(loaded),
                Err(error) => {
                    debug!(%version, source = source.name(), %error, "no manifest");
                    failure = error;
                }
            }
        }
        if failure.is_absence()
            && self.held_on_disk(version).is_some()
            && self
                .journal
                .remember_removal(&journal_key(&self.host, version), true)
        {
            info!(%version, "the registry no longer has this version");
        }
        Err(failure)
    }

    /// Checks a document, remembers it and writes it to the cache. A large one takes a tenth of a
    /// second, so not on a thread that serves sockets.
    async fn accept(
        self: &Arc<Self>,
        version: &VersionRef,
        document: Document,
        origin: &str,
    ) -> Result<Arc<Loaded>> {
        let (store, id, origin) = (Arc::clone(self), version.clone(), Arc::from(origin));
        let accepting =
            tokio::task::spawn_blocking(move || store.accept_blocking(&id, document, origin));
        accepting
            .await
            .map_err(|lost| Error::Internal(format!("{version}: {lost}")))?
    }

    fn accept_blocking(
        &self,
        version: &VersionRef,
        mut document: Document,
        origin: Arc<str>,
    ) -> Result<Arc<Loaded>> {
        document.fill_sizes(|digest| self.cache.verified_size(digest));
        let manifest =
            document
                .into_manifest(version.clone())
                .map_err(|source| Error::Manifest {
                    what: version.to_string(),
                    source,
                })?;
        self.check_table(&manifest)?;
        self.check_artifact(&manifest)?;
        self.report_refused(&manifest);
        self.journal
            .remember_removal(&journal_key(&self.host, version), false);
        let fetched = Loaded::new(manifest, self.host.clone(), origin, MANIFEST_TTL);
        // A pack of this machine wins over what the registry has under the same name.
        let local = self.load_local(version, Effort::Any).unwrap_or(None);
        let fetched = Arc::new(fetched);
        let loaded = local.map_or_else(|| Arc::clone(&fetched), Arc::new);
        self.keep_manifest(&loaded);
        let written = self
            .cache
            .write_manifest(&self.host, &fetched.manifest, Timestamp::now());
        if let Err(error) = written {
            debug!(%version, %error, "the manifest is not cached on disk");
        }
        Ok(loaded)
    }
}

/// The key of a version in the journal.
pub fn journal_key(host: &HostId, version: &VersionRef) -> String {
    format!("{}/{version}", host.as_str())
}
