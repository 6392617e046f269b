//! The filesystem's behaviour, without a kernel.
//!
//! Every question has two steps, like those of [`Resolver`] and [`Store`] below it: an [`Answer`] is
//! either there at once, or a future that may wait for the network. Whoever asks on a thread that
//! must not wait spawns the future and goes on. All of it must be called within a tokio runtime.
//!
//! What the kernel has cached for ever has to be called back when it changes: the body of a symlink
//! that moves, the listing of a namespace. The order is: change it here, tell the kernel (from a
//! thread of its own, see [`Invalidate`]), and only then answer.

pub mod inode;
pub mod tree;
mod xattr;

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, oneshot, watch};
use tracing::debug;

use crate::error::{Error, Result};
use crate::metrics::{Counter, Metrics};
use crate::reference::{BundleId, HostId, Namespace, Selector, Slug, Version, VersionRef};
use crate::resolve::{ABSENCE_TTL, LISTING_TTL, Listing, Resolution, Resolver};
use crate::source::Deadline;
use crate::store::journal::Journal;
use crate::store::{Loaded, Store};

use inode::{Inodes, Name, Node, PROBE, ROOT, Tagged};
use tree::{Attr, Directory, FOREVER, Kind, Listed, epoch};

/// What the file `/.musherfs` says.
pub const PROBE_TEXT: &str = concat!("musherfs ", env!("CARGO_PKG_VERSION"), "\n");

/// Most failures that are kept for explanations.
const MOST_FAILURES: usize = 256;

/// How often refs in use are looked over, and the cache's size is taken.
const TICK: Duration = Duration::from_secs(30);

/// How long an answer waits for the kernel to drop what it had cached.
const INVALIDATION: Duration = Duration::from_secs(2);

/// An answer, now or later.
pub enum Answer<T> {
    /// At once.
    Now(Result<T>),
    /// After waiting for somebody, at most until the request's deadline.
    Later(BoxFuture<'static, Result<T>>),
}

/// The answer to a lookup.
#[derive(Debug, Clone, Copy)]
pub enum Found {
    /// It is there: its attributes, how long the name means it, and how long they hold.
    Node(Attr, Duration, Duration),
    /// It is not, and will not be for so long.
    Absent(Duration),
}

/// A request to the kernel to drop what it has cached of an inode, and whom to tell when it has.
pub struct Invalidate {
    /// The inode.
    pub ino: u64,
    /// Told when the kernel has done it.
    pub done: Option<oneshot::Sender<()>>,
}

/// A failed request, kept for explanations.
#[derive(Debug, Clone)]
pub struct Failure {
    /// The inode that was asked for; the parent's, for a lookup.
    pub ino: u64,
    /// When.
    pub at: SystemTime,
    /// Why.
    pub error: Error,
}

/// Numbers for `df`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of content in the cache.
    pub bytes: u64,
    /// Blobs in the cache.
    pub files: u64,
}

/// What an [`Fs`] works with.
pub struct Settings {
    /// Names to versions.
    pub resolver: Arc<Resolver>,
    /// Versions to content.
    pub store: Arc<Store>,
    /// Which names have numbers.
    pub journal: Arc<Journal>,
    /// Whether extended attributes are answered.
    pub user_xattr: bool,
    /// Where to count.
    pub metrics: Arc<Metrics>,
}

/// What the kernel was told about a symlink.
struct Link {
    target: Version,
    mtime: SystemTime,
    /// Becomes `true` when the kernel has dropped the previous body.
    settled: watch::Receiver<bool>,
}

/// What the kernel was told about a mutable directory.
struct Told<T> {
    content: Arc<T>,
    mtime: SystemTime,
}

/// One registry as a tree.
pub struct Fs {
    resolver: Arc<Resolver>,
    store: Arc<Store>,
    inodes: Inodes,
    user_xattr: bool,
    metrics: Arc<Metrics>,
    links: Mutex<HashMap<u64, Link>>,
    directories: Mutex<HashMap<u64, Told<Vec<Box<str>>>>>,
    failures: Mutex<VecDeque<Failure>>,
    kernel: OnceLock<mpsc::UnboundedSender<Invalidate>>,
    usage: (AtomicU64, AtomicU64),
    inherited: OnceLock<Inherited>,
}

/// What an earlier process told the kernel, and this one does not know: the names that it gave
/// numbers to, and since when somebody else answers for them.
struct Inherited {
    names: HashSet<u64>,
    since: SystemTime,
}

/// The maps are consistent after every statement, so a poisoned lock is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fs {
    /// A tree that nobody has looked at yet.
    pub fn new(settings: Settings) -> Arc<Self> {
        let host: HostId = settings.store.host().clone();
        let fs = Arc::new(Self {
            inodes: Inodes::new(host, settings.journal),
            resolver: settings.resolver,
            store: settings.store,
            user_xattr: settings.user_xattr,
            metrics: settings.metrics,
            links: Mutex::default(),
            directories: Mutex::default(),
            failures: Mutex::default(),
            kernel: OnceLock::new(),
            usage: Default::default(),
            inherited: OnceLock::new(),
        });
        let told = Arc::downgrade(&fs);
        fs.resolver
            .on_move(Box::new(move |bundle, selector, version| {
                if let Some(fs) = told.upgrade() {
                    fs.ref_moved(bundle, selector, version);
                }
            }));
        fs
    }

    /// Where requests to drop caches go; they are lost until this is set, once.
    pub fn set_kernel(&self, kernel: mpsc::UnboundedSender<Invalidate>) {
        let _ = self.kernel.set(kernel);
    }

    /// Goes on for a process that served the same kernel and is gone: has the kernel drop the bodies
    /// of all symlinks and the listings that it was given, since nobody knows any more what it was
    /// told. Once, after [`Fs::set_kernel`] and before the first request.
    pub fn inherit(&self) {
        let inherited = Inherited {
            names: self.inodes.names().into_iter().collect(),
            since: SystemTime::now(),
        };
        let names: Vec<u64> = inherited.names.iter().copied().collect();
        if self.inherited.set(inherited).is_ok() {
            for ino in names.into_iter().chain([ROOT]) {
                self.invalidate(ino, None);
            }
        }
    }

    /// Whether an earlier process may have told the kernel something about `ino`.
    fn is_inherited(&self, ino: u64) -> bool {
        let inherited = self.inherited.get();
        inherited.is_some_and(|inherited| inherited.names.contains(&ino))
    }

    /// The time of a mutable node that has not changed in this process. The time that an earlier one
    /// told is older, so whoever compares times looks again.
    fn first_mtime(&self) -> SystemTime {
        let inherited = self.inherited.get();
        inherited.map_or_else(epoch, |inherited| inherited.since)
    }

    /// How long a name or a manifest may take.
    pub fn metadata_timeout(&self) -> Duration {
        self.store.policy().metadata_timeout
    }

    /// How long a file's content may take.
    pub fn content_timeout(&self) -> Duration {
        self.store.policy().content_timeout
    }

    /// What the mount counts.
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Whether extended attributes are answered at all.
    pub fn has_xattrs(&self) -> bool {
        self.user_xattr
    }

    /// The periodic work: refs in use are refreshed ahead, the cache's size is taken. Ends when
    /// nobody holds the tree any more.
    pub async fn tick(self: Arc<Self>) {
        let fs = Arc::downgrade(&self);
        drop(self);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(fs) = fs.upgrade() else { return };
            fs.resolver.refresh_ahead().await;
            let taking = tokio::task::spawn_blocking(move || {
                let usage = fs.store.cache().usage();
                fs.usage.0.store(usage.blob_bytes, Ordering::Relaxed);
                fs.usage.1.store(usage.blobs, Ordering::Relaxed);
            });
            let _ = taking.await;
        }
    }

    /// Numbers for `df`, at most a minute old; never waits.
    pub fn usage(&self) -> Usage {
        Usage {
            bytes: self.usage.0.load(Ordering::Relaxed),
            files: self.usage.1.load(Ordering::Relaxed),
        }
    }

    fn deadline(&self) -> Deadline {
        Deadline::after(self.store.policy().metadata_timeout)
    }

    fn node(&self, ino: u64) -> Result<Node> {
        let node = self.inodes.node(ino);
        node.ok_or_else(|| Error::not_found(format_args!("inode {ino:#x}")))
    }

    // ----- lookup ----------------------------------------------------------------------------

    /// Looks `name` up in the directory `parent`. Absence is an answer, not an error.
    pub fn lookup(self: &Arc<Self>, parent: u64, name: &str) -> Answer<Found> {
        let node = match self.node(parent) {
            Ok(node) => node,
            Err(error) => return Answer::Now(Err(error)),
        };
        match node {
            Node::Root => self.lookup_namespace(name),
            Node::Probe => absent(FOREVER),
            Node::Name(node) => match &*node {
                Name::Namespace(namespace) => self.lookup_bundle(namespace, name),
                Name::Link(..) => absent(FOREVER),
            },
            Node::Entry(tagged, index) => self.lookup_entry(parent, tagged, index, name),
        }
    }

    fn lookup_namespace(self: &Arc<Self>, name: &str) -> Answer<Found> {
        if name == ".musherfs" {
            return Answer::Now(Ok(Found::Node(probe_attr(), FOREVER, FOREVER)));
        }
        let Ok(namespace) = name.parse::<Namespace>() else {
            // Dot-names and what is no name at all.
            return absent(FOREVER);
        };
        match self.resolver.namespace_now(&namespace) {
            Some(true) => Answer::Now(Ok(self.found_namespace(&namespace))),
            Some(false) => absent(ABSENCE_TTL),
            None => {
                let (fs, deadline) = (Arc::clone(self), self.deadline());
                later(async move {
                    let exists = fs.resolver.namespace(&namespace, deadline).await;
                    Ok(if exists {
                        fs.found_namespace(&namespace)
                    } else {
                        Found::Absent(ABSENCE_TTL)
                    })
                })
            }
        }
    }

    fn found_namespace(&self, namespace: &Namespace) -> Found {
        let ino = self.inodes.name(Name::Namespace(namespace.clone()));
        Found::Node(self.directory_attr(ino), FOREVER, LISTING_TTL)
    }

    /// The attributes of the root or a namespace, as of its last listing.
    fn directory_attr(&self, ino: u64) -> Attr {
        let mtime = lock(&self.directories)
            .get(&ino)
            .map_or_else(|| self.first_mtime(), |told| told.mtime);
        Attr::directory(ino, mtime)
    }

    fn lookup_bundle(self: &Arc<Self>, namespace: &Namespace, name: &str) -> Answer<Found> {
        let Some((slug, selector)) = split_name(name) else {
            return absent(FOREVER);
        };
        let bundle = BundleId {
            namespace: namespace.clone(),
            slug,
        };
        match selector {
            Selector::Version(version) => self.lookup_version(VersionRef { bundle, version }),
            selector => self.lookup_link(bundle, selector),
        }
    }

    fn lookup_version(self: &Arc<Self>, version: VersionRef) -> Answer<Found> {
        match self.store.manifest_now(&version) {
            Some(Ok(loaded)) => Answer::Now(Ok(self.found_version(&loaded))),
            Some(Err(error)) => Answer::Now(found_error(error)),
            None => {
                let (fs, deadline) = (Arc::clone(self), self.deadline());
                later(async move {
                    match fs.store.manifest(&version, deadline).await {
                        Ok(loaded) => Ok(fs.found_version(&loaded)),
                        Err(error) => found_error(error),
                    }
                })
            }
        }
    }

    fn found_version(&self, loaded: &Arc<Loaded>) -> Found {
        let root = self.inodes.version(loaded);
        let life = loaded.remaining().clamp(ABSENCE_TTL, FOREVER);
        Found::Node(Attr::directory(root, epoch()), life, FOREVER)
    }

    fn lookup_link(self: &Arc<Self>, bundle: BundleId, selector: Selector) -> Answer<Found> {
        match self.resolver.resolve_now(&bundle, &selector) {
            Some(Ok(resolution)) => self.answer_link(bundle, selector, &resolution),
            Some(Err(error)) => Answer::Now(found_error(error)),
            None => {
                let (fs, deadline) = (Arc::clone(self), self.deadline());
                later(async move {
                    let resolution = match fs.resolver.resolve(&bundle, &selector, deadline).await {
                        Ok(resolution) => resolution,
                        Err(error) => return found_error(error),
                    };
                    fs.learn(&bundle, &resolution).await;
                    match fs.answer_link(bundle, selector, &resolution) {
                        Answer::Now(answer) => answer,
                        Answer::Later(answer) => answer.await,
                    }
                })
            }
        }
    }

    /// A resolve answer usually carries the manifest: whoever follows the link needs it next.
    async fn learn(&self, bundle: &BundleId, resolution: &Resolution) {
        if let Some(answer) = &resolution.document {
            let version = VersionRef {
                bundle: bundle.clone(),
                version: resolution.version.clone(),
            };
            let (document, origin) = &**answer;
            self.store.learn(&version, document.clone(), origin).await;
        }
    }

    fn answer_link(
        self: &Arc<Self>,
        bundle: BundleId,
        selector: Selector,
        resolution: &Resolution,
    ) -> Answer<Found> {
        let life = resolution.remaining.clamp(Duration::from_secs(1), FOREVER);
        let (attr, mut settled) = self.point_link(&bundle, &selector, &resolution.version);
        let found = Found::Node(attr, life, life);
        if *settled.borrow() {
            return Answer::Now(Ok(found));
        }
        later(async move {
            // If the kernel does not answer, the name is still right: only a body may be old.
            let _ = tokio::time::timeout(INVALIDATION, settled.wait_for(|done| *done)).await;
            Ok(found)
        })
    }

    /// Lets a symlink point at `version`, and has the kernel drop the old body if there was one.
    fn point_link(
        &self,
        bundle: &BundleId,
        selector: &Selector,
        version: &Version,
    ) -> (Attr, watch::Receiver<bool>) {
        let ino = self
            .inodes
            .name(Name::Link(bundle.clone(), selector.clone()));
        let (moved, (attr, settled)) = {
            let mut links = lock(&self.links);
            let mut moved = None;
            let link = links.entry(ino).or_insert_with(|| {
                // The kernel may hold a body that an earlier process gave it.
                let (done, settled) = watch::channel(!self.is_inherited(ino));
                moved = (!*settled.borrow()).then_some(done);
                Link {
                    target: version.clone(),
                    mtime: self.first_mtime(),
                    settled,
                }
            });
            if link.target != *version {
                let (done, settled) = watch::channel(false);
                *link = Link {
                    target: version.clone(),
                    mtime: SystemTime::now(),
                    settled,
                };
                moved = Some(done);
            }
            let attr = Attr {
                ino,
                kind: Kind::Symlink,
                size: target_name(bundle, version).len() as u64,
                mtime: link.mtime,
            };
            (moved, (attr, link.settled.clone()))
        };
        if let Some(moved) = moved {
            debug!(%bundle, %selector, %version, "the symlink moves");
            let (done, dropped) = oneshot::channel();
            self.invalidate(ino, Some(done));
            tokio::spawn(async move {
                // An error means that there is no kernel to wait for.
                let _ = dropped.await;
                let _ = moved.send(true);
            });
        }
        (attr, settled)
    }

    fn ref_moved(&self, bundle: &BundleId, selector: &Selector, version: &Version) {
        let ino = self
            .inodes
            .name(Name::Link(bundle.clone(), selector.clone()));
        // A link that the kernel has never seen has nothing to drop.
        if lock(&self.links).contains_key(&ino) {
            self.point_link(bundle, selector, version);
        }
    }

    fn invalidate(&self, ino: u64, done: Option<oneshot::Sender<()>>) {
        if let Some(kernel) = self.kernel.get() {
            let _ = kernel.send(Invalidate { ino, done });
        }
    }

    fn lookup_entry(
        self: &Arc<Self>,
        parent: u64,
        tagged: Arc<Tagged>,
        dir: u32,
        name: &str,
    ) -> Answer<Found> {
        let root = inode::version_root(parent);
        let find = move |loaded: &Loaded, name: &str| {
            let entry = loaded.manifest.lookup(dir, name);
            let attr = entry.and_then(|entry| Attr::entry(loaded, root, entry.index()));
            attr.map_or(Found::Absent(FOREVER), |attr| {
                Found::Node(attr, FOREVER, FOREVER)
            })
        };
        match self.known(root, &tagged) {
            Some(loaded) => Answer::Now(Ok(find(&loaded, name))),
            None => {
                let (fs, name, deadline) = (Arc::clone(self), name.to_owned(), self.deadline());
                later(async move {
                    let loaded = fs.wait_for(root, &tagged, deadline).await?;
                    Ok(find(&loaded, &name))
                })
            }
        }
    }

    /// The manifest behind a number that the kernel holds. Policies decide about names, when they
    /// are looked up; whoever holds a directory keeps it.
    fn known(&self, root: u64, tagged: &Tagged) -> Option<Arc<Loaded>> {
        let loaded = self.store.held_now(&tagged.version)?;
        // A pack that was packed again is another node: the old one's content is gone.
        let is_same = !tagged.host.is_local() || self.inodes.version(&loaded) == root;
        is_same.then_some(loaded)
    }

    /// The manifest behind a number that the kernel holds, when it has to be fetched again.
    async fn wait_for(
        &self,
        root: u64,
        tagged: &Tagged,
        deadline: Deadline,
    ) -> Result<Arc<Loaded>> {
        let loaded = self.store.held(&tagged.version, deadline).await?;
        if self.inodes.version(&loaded) == root {
            Ok(loaded)
        } else {
            Err(Error::not_found(format_args!(
                "the former content of {}",
                tagged.version
            )))
        }
    }

    // ----- attributes ------------------------------------------------------------------------

    /// A node's attributes and how long they hold.
    pub fn getattr(self: &Arc<Self>, ino: u64) -> Answer<(Attr, Duration)> {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return Answer::Now(Err(error)),
        };
        match node {
            Node::Root => {
                if self.was_listed(ino) && self.resolver.root_now().is_none() {
                    let (fs, deadline) = (Arc::clone(self), self.deadline());
                    return later(async move {
                        fs.list_root(deadline).await;
                        Ok((fs.directory_attr(ROOT), LISTING_TTL))
                    });
                }
                Answer::Now(Ok((self.directory_attr(ino), LISTING_TTL)))
            }
            Node::Probe => Answer::Now(Ok((probe_attr(), FOREVER))),
            Node::Name(name) => match &*name {
                Name::Namespace(namespace) => self.getattr_namespace(ino, namespace),
                Name::Link(bundle, selector) => match self
                    .lookup_link(bundle.clone(), selector.clone())
                {
                    Answer::Now(answer) => Answer::Now(answer.and_then(link_attr)),
                    Answer::Later(answer) => later(async move { answer.await.and_then(link_attr) }),
                },
            },
            Node::Entry(tagged, index) => {
                let root = inode::version_root(ino);
                let attr = move |loaded: &Loaded| {
                    let attr = Attr::entry(loaded, root, index).map(|attr| (attr, FOREVER));
                    attr.ok_or_else(|| Error::not_found(format_args!("file {index}")))
                };
                match self.known(root, &tagged) {
                    Some(loaded) => Answer::Now(attr(&loaded)),
                    None => {
                        let (fs, deadline) = (Arc::clone(self), self.deadline());
                        later(async move { attr(&*fs.wait_for(root, &tagged, deadline).await?) })
                    }
                }
            }
        }
    }

    fn was_listed(&self, ino: u64) -> bool {
        lock(&self.directories).contains_key(&ino)
    }

    fn getattr_namespace(
        self: &Arc<Self>,
        ino: u64,
        namespace: &Namespace,
    ) -> Answer<(Attr, Duration)> {
        if !self.was_listed(ino) || self.resolver.list_now(namespace).is_some() {
            return Answer::Now(Ok((self.directory_attr(ino), LISTING_TTL)));
        }
        let (fs, namespace, deadline) = (Arc::clone(self), namespace.clone(), self.deadline());
        later(async move {
            // A directory that existed stays one: what is mounted below it would be detached.
            match fs.resolver.list(&namespace, deadline).await {
                Ok(listing) => drop(fs.namespace_entries(ino, &namespace, &listing)),
                Err(error) => debug!(%namespace, %error, "no fresh listing"),
            }
            Ok((fs.directory_attr(ino), LISTING_TTL))
        })
    }

    /// What a symlink points at: a name in the same directory.
    pub fn readlink(self: &Arc<Self>, ino: u64) -> Answer<String> {
        let (bundle, selector) = match self.node(ino) {
            Ok(Node::Name(name)) => match &*name {
                Name::Link(bundle, selector) => (bundle.clone(), selector.clone()),
                Name::Namespace(_) => return Answer::Now(Err(not_a("symlink", ino))),
            },
            Ok(_) => return Answer::Now(Err(not_a("symlink", ino))),
            Err(error) => return Answer::Now(Err(error)),
        };
        if let Some(target) = self.link_target(ino) {
            return Answer::Now(Ok(target_name(&bundle, &target)));
        }
        // A number from an earlier process.
        let (fs, deadline) = (Arc::clone(self), self.deadline());
        later(async move {
            let resolution = fs.resolver.resolve(&bundle, &selector, deadline).await?;
            fs.point_link(&bundle, &selector, &resolution.version);
            Ok(target_name(&bundle, &resolution.version))
        })
    }

    /// The version that a symlink points at, if the kernel has been told.
    pub fn link_target(&self, ino: u64) -> Option<Version> {
        lock(&self.links).get(&ino).map(|link| link.target.clone())
    }

    // ----- listings --------------------------------------------------------------------------

    /// The directory `ino`, ready to be listed.
    pub fn directory(self: &Arc<Self>, ino: u64) -> Answer<Directory> {
        let node = match self.node(ino) {
            Ok(node) => node,
            Err(error) => return Answer::Now(Err(error)),
        };
        match node {
            Node::Root => match self.resolver.root_now() {
                Some(names) => Answer::Now(Ok(self.root_entries(&names))),
                None => {
                    let (fs, deadline) = (Arc::clone(self), self.deadline());
                    later(async move { Ok(fs.list_root(deadline).await) })
                }
            },
            Node::Name(name) => match &*name {
                Name::Namespace(namespace) => match self.resolver.list_now(namespace) {
                    Some(listing) => {
                        Answer::Now(Ok(self.namespace_entries(ino, namespace, &listing)))
                    }
                    None => {
                        let (fs, namespace, deadline) =
                            (Arc::clone(self), namespace.clone(), self.deadline());
                        later(async move {
                            let listing = fs.resolver.list(&namespace, deadline).await?;
                            Ok(fs.namespace_entries(ino, &namespace, &listing))
                        })
                    }
                },
                Name::Link(..) => Answer::Now(Err(not_a("directory", ino))),
            },
            Node::Probe => Answer::Now(Err(not_a("directory", ino))),
            Node::Entry(tagged, index) => {
                let root = inode::version_root(ino);
                match self.known(root, &tagged) {
                    Some(loaded) => Answer::Now(Ok(Directory::InVersion(loaded, root, index))),
                    None => {
                        let (fs, deadline) = (Arc::clone(self), self.deadline());
                        later(async move {
                            let loaded = fs.wait_for(root, &tagged, deadline).await?;
                            Ok(Directory::InVersion(loaded, root, index))
                        })
                    }
                }
            }
        }
    }

    async fn list_root(&self, deadline: Deadline) -> Directory {
        let names = self.resolver.root(deadline).await;
        self.root_entries(&names)
    }

    fn root_entries(&self, names: &std::collections::BTreeSet<Namespace>) -> Directory {
        let entries: Vec<Listed> = names
            .iter()
            .map(|namespace| {
                let ino = self.inodes.name(Name::Namespace(namespace.clone()));
                Listed {
                    name: namespace.as_str().into(),
                    ino,
                    kind: Kind::Directory,
                    attr: Some((self.directory_attr(ino), LISTING_TTL)),
                }
            })
            .collect();
        self.tell_directory(ROOT, &entries);
        Directory::mutable(ROOT, ROOT, entries)
    }

    fn namespace_entries(&self, ino: u64, namespace: &Namespace, listing: &Listing) -> Directory {
        let mut entries = Vec::new();
        for (slug, versions) in &listing.bundles {
            let bundle = BundleId {
                namespace: namespace.clone(),
                slug: slug.clone(),
            };
            entries.push(self.link_line(&bundle));
            for version in versions {
                let version = VersionRef {
                    bundle: bundle.clone(),
                    version: version.clone(),
                };
                entries.push(self.version_line(&version));
            }
        }
        self.tell_directory(ino, &entries);
        Directory::mutable(ino, ROOT, entries)
    }

    /// The bare name's line; with attributes only where a lookup would be free.
    fn link_line(&self, bundle: &BundleId) -> Listed {
        let known = self.resolver.resolve_now(bundle, &Selector::Latest);
        let attr = known.and_then(Result::ok).and_then(|resolution| {
            let (attr, settled) = self.point_link(bundle, &Selector::Latest, &resolution.version);
            let life = resolution.remaining.clamp(Duration::from_secs(1), FOREVER);
            settled.borrow().then_some((attr, life))
        });
        let ino = attr.map_or_else(
            || {
                self.inodes
                    .name(Name::Link(bundle.clone(), Selector::Latest))
            },
            |(attr, _)| attr.ino,
        );
        Listed {
            name: bundle.slug.as_str().into(),
            ino,
            kind: Kind::Symlink,
            attr,
        }
    }

    fn version_line(&self, version: &VersionRef) -> Listed {
        let loaded = self.store.in_memory(version);
        let attr = loaded.map(|loaded| {
            let life = loaded.remaining().clamp(ABSENCE_TTL, FOREVER);
            (Attr::directory(self.inodes.version(&loaded), epoch()), life)
        });
        let ino = match attr {
            Some((attr, _)) => attr.ino,
            None => self.inodes.expected_version(version),
        };
        Listed {
            name: format!("{}@{}", version.bundle.slug, version.version).into(),
            ino,
            kind: Kind::Directory,
            attr,
        }
    }

    /// Gives a listing that differs from the last one a new time and has the kernel drop the old.
    fn tell_directory(&self, ino: u64, entries: &[Listed]) {
        let names: Vec<Box<str>> = entries.iter().map(|entry| entry.name.clone()).collect();
        let changed = {
            let mut directories = lock(&self.directories);
            match directories.get_mut(&ino) {
                Some(told) if *told.content == names => false,
                Some(told) => {
                    *told = Told {
                        content: Arc::new(names),
                        mtime: SystemTime::now(),
                    };
                    true
                }
                None => {
                    let told = Told {
                        content: Arc::new(names),
                        mtime: self.first_mtime(),
                    };
                    directories.insert(ino, told);
                    false
                }
            }
        };
        if changed {
            self.invalidate(ino, None);
        }
    }

    // ----- content ---------------------------------------------------------------------------

    /// Reads up to `size` bytes at `offset`; fewer only at the end of the file.
    ///
    /// An answer that is there at once is in `buffer`; a later one comes with the future.
    pub fn read(
        self: &Arc<Self>,
        ino: u64,
        offset: u64,
        size: u32,
        buffer: &mut Vec<u8>,
    ) -> Answer<Option<Vec<u8>>> {
        let (tagged, index) = match self.node(ino) {
            Ok(Node::Entry(tagged, index)) => (tagged, index),
            Ok(Node::Probe) => {
                let text = PROBE_TEXT.as_bytes();
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(text.len());
                buffer.clear();
                buffer.extend_from_slice(&text[start..(start + size as usize).min(text.len())]);
                return Answer::Now(Ok(None));
            }
            Ok(_) => return Answer::Now(Err(not_a("file", ino))),
            Err(error) => return Answer::Now(Err(error)),
        };
        let root = inode::version_root(ino);
        let loaded = self.known(root, &tagged);
        if let Some(loaded) = &loaded
            && let Some(answer) = self.store.read_now(loaded, index, offset, size, buffer)
        {
            self.metrics.count(Counter::ReadWarm);
            return Answer::Now(answer.map(|()| None));
        }
        self.metrics.count(Counter::ReadCold);
        let fs = Arc::clone(self);
        let deadline = Deadline::after(self.store.policy().content_timeout);
        later(async move {
            let loaded = match loaded {
                Some(loaded) => loaded,
                None => fs.wait_for(root, &tagged, deadline).await?,
            };
            let answer = fs.store.read(&loaded, index, offset, size, deadline).await;
            if answer.is_err() {
                // The kernel reads ahead less and less after errors; this lets it start over.
                fs.invalidate(ino, None);
            }
            answer.map(Some)
        })
    }

    // ----- explanations ----------------------------------------------------------------------

    /// Keeps a failure for explanations.
    pub fn record_failure(&self, ino: u64, error: &Error) {
        let mut failures = lock(&self.failures);
        if failures.len() == MOST_FAILURES {
            failures.pop_front();
        }
        failures.push_back(Failure {
            ino,
            at: SystemTime::now(),
            error: error.clone(),
        });
    }

    /// The last failure about `ino`.
    pub fn failure(&self, ino: u64) -> Option<Failure> {
        lock(&self.failures)
            .iter()
            .rev()
            .find(|failure| failure.ino == ino)
            .cloned()
    }

    /// The names of the node's extended attributes.
    pub fn list_xattr(&self, ino: u64) -> Result<Vec<String>> {
        let node = self.node(ino)?;
        let all = xattr::all(self, ino, &node);
        Ok(all
            .into_iter()
            .map(|(name, _)| format!("{}{name}", xattr::PREFIX))
            .collect())
    }

    /// One extended attribute; `None` if the node has none of that name.
    pub fn get_xattr(&self, ino: u64, name: &str) -> Result<Option<String>> {
        let node = self.node(ino)?;
        let Some(name) = name.strip_prefix(xattr::PREFIX) else {
            return Ok(None);
        };
        let mut all = xattr::all(self, ino, &node).into_iter();
        Ok(all
            .find(|(other, _)| *other == name)
            .map(|(_, value)| value))
    }
}

fn later<T>(answer: impl Future<Output = Result<T>> + Send + 'static) -> Answer<T> {
    Answer::Later(answer.boxed())
}

fn absent(ttl: Duration) -> Answer<Found> {
    Answer::Now(Ok(Found::Absent(ttl)))
}

/// What a lookup says about an error: absence is an answer that may be remembered for a moment.
fn found_error(error: Error) -> Result<Found> {
    if error.is_absence() {
        Ok(Found::Absent(ABSENCE_TTL))
    } else {
        Err(error)
    }
}

fn link_attr(found: Found) -> Result<(Attr, Duration)> {
    match found {
        Found::Node(attr, _, life) => Ok((attr, life)),
        Found::Absent(_) => Err(Error::not_found("the symlink")),
    }
}

fn not_a(what: &str, ino: u64) -> Error {
    Error::not_found(format_args!("{what} with inode {ino:#x}"))
}

fn probe_attr() -> Attr {
    Attr {
        ino: PROBE,
        kind: Kind::File,
        size: PROBE_TEXT.len() as u64,
        mtime: epoch(),
    }
}

/// `slug` or `slug@selector`.
fn split_name(name: &str) -> Option<(Slug, Selector)> {
    match name.split_once('@') {
        Some((slug, selector)) => Some((slug.parse().ok()?, selector.parse().ok()?)),
        None => Some((name.parse().ok()?, Selector::Latest)),
    }
}

/// The name of a version's directory within its namespace.
fn target_name(bundle: &BundleId, version: &Version) -> String {
    format!("{}@{version}", bundle.slug)
}
