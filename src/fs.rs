//! The filesystem's behaviour, without a kernel.
//!
//! Every question has two steps, like those of [`Resolver`] and [`Store`] below it: an [`Answer`] is
//! either there at once, or a future that may wait for the network. Whoever asks on a thread that
//! must not wait spawns the future and goes on. All of it must be called within a tokio runtime.
//!
//! What the kernel has cached for ever has to be called back when it changes: the body of a symlink
//! that moves (`link`), the listing of a namespace (`listing`). The order is: change it here, tell
//! the kernel (from a thread of its own, see [`Invalidate`]), and only then answer.

mod explain;
pub mod failures;
pub mod in_flight;
pub mod inode;
mod link;
mod listing;
pub mod tree;
mod xattr;

pub use explain::{Explanation, Kind as ExplainedKind};

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, SystemTime};

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::Instant;

use crate::error::{Error, Result};
use crate::metrics::{Counter, Metrics};
use crate::reference::{BundleId, HostId, Namespace, Selector, Slug, Version, VersionRef};
use crate::resolve::{ABSENCE_TTL, LISTING_TTL, Presence, Resolver};
use crate::source::Deadline;
use crate::store::content::FAILURE_MEMORY;
use crate::store::journal::Journal;
use crate::store::{Loaded, Store};
use crate::sync::lock;

use failures::Failures;
use in_flight::InFlight;
use inode::{Inodes, Known, Name, Node, PROBE, ROOT, Tagged};
use tree::{Attr, FOREVER, Kind, epoch};

/// What the file `/.musherfs` says.
pub const PROBE_TEXT: &str = concat!("musherfs ", env!("CARGO_PKG_VERSION"), "\n");

/// How many moves somebody who listens may lag behind before the oldest are lost.
const MOVES_KEPT: usize = 256;

/// How often refs in use are looked over, and the cache's size is taken.
const TICK: Duration = Duration::from_secs(30);

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

/// A request to the kernel to drop something of an inode, and whom to tell when it has.
pub struct Invalidate {
    /// The inode.
    pub ino: u64,
    /// What it is to drop.
    pub what: What,
    /// Told when the kernel has done it.
    pub done: Option<oneshot::Sender<()>>,
}

/// What the kernel is to drop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum What {
    /// What it was told of a name that changes: the body of a symlink, the listing of a directory.
    /// Somebody may wait for it, and readers see the old until it is done.
    Told,
    /// The pages of a file. The kernel waits for those that are being read.
    Pages,
    /// The inode itself, unless somebody uses it. Kernels before Linux 6.18 cannot be asked.
    Inode,
}

/// A moving name that points at another version than before, or that somebody asked for the
/// first time in this session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moved {
    /// The bundle.
    pub bundle: BundleId,
    /// The bare name, tag or range.
    pub selector: Selector,
    /// Where it pointed before; `None` the first time.
    pub from: Option<Version>,
    /// Where it points now.
    pub to: Version,
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

/// One registry as a tree.
pub struct Fs {
    resolver: Arc<Resolver>,
    store: Arc<Store>,
    inodes: Inodes,
    user_xattr: bool,
    metrics: Arc<Metrics>,
    links: Mutex<HashMap<u64, link::Link>>,
    directories: Mutex<HashMap<u64, listing::Told>>,
    /// Files whose pages are to go.
    failed_reads: Mutex<HashSet<u64>>,
    failures: Failures,
    in_flight: Arc<InFlight>,
    moves: broadcast::Sender<Moved>,
    kernel: OnceLock<mpsc::UnboundedSender<Invalidate>>,
    usage: (AtomicU64, AtomicU64),
    /// Since when this process answers for an earlier one. What that told the kernel nobody knows: of
    /// the names that it gave numbers to, too many to remember have been forgotten.
    inherited: OnceLock<SystemTime>,
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
            failed_reads: Mutex::default(),
            failures: Failures::default(),
            in_flight: Arc::default(),
            moves: broadcast::channel(MOVES_KEPT).0,
            kernel: OnceLock::new(),
            usage: Default::default(),
            inherited: OnceLock::new(),
        });
        let told = Arc::downgrade(&fs);
        fs.resolver
            .on_move(Box::new(move |bundle, selector, resolution| {
                if let Some(fs) = told.upgrade() {
                    fs.ref_moved(bundle, selector, resolution);
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
        if self.inherited.set(SystemTime::now()).is_ok() {
            for ino in self.inodes.names().into_iter().chain([ROOT]) {
                self.invalidate(ino, What::Told, None);
            }
        }
    }

    /// Whether an earlier process may have told the kernel something.
    fn has_inherited(&self) -> bool {
        self.inherited.get().is_some()
    }

    /// The time of a mutable node that has not changed in this process. The time that an earlier one
    /// told is older, so whoever compares times looks again.
    fn first_mtime(&self) -> SystemTime {
        self.inherited.get().copied().unwrap_or_else(epoch)
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

    /// The requests that wait for somebody at the moment.
    pub fn in_flight(&self) -> &Arc<InFlight> {
        &self.in_flight
    }

    /// The requests that failed lately.
    pub fn failures(&self) -> &Failures {
        &self.failures
    }

    /// The moves of names that were asked for in this session, from now on.
    pub fn moves(&self) -> broadcast::Receiver<Moved> {
        self.moves.subscribe()
    }

    /// The content's cache, and what is known of it.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
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
        let mut next_count = Instant::now();
        loop {
            ticks.tick().await;
            let Some(fs) = fs.upgrade() else { return };
            fs.resolver.refresh_ahead().await;
            fs.inodes.flush();
            let start = Instant::now();
            if start < next_count {
                continue;
            }
            let counting = tokio::task::spawn_blocking(move || {
                let mut usage = Usage::default();
                fs.store.cache().for_each_blob(|blob| {
                    usage.bytes += blob.size;
                    usage.files += 1;
                });
                fs.usage.0.store(usage.bytes, Ordering::Relaxed);
                fs.usage.1.store(usage.files, Ordering::Relaxed);
            });
            let _ = counting.await;
            // A stat a blob: a large cache is counted less often, for a hundredth of the time.
            next_count = start + start.elapsed() * 100;
        }
    }

    /// Numbers for `df`, at most a minute old unless the cache is huge; never waits.
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

    // ----- numbers ---------------------------------------------------------------------------

    /// The number of a mutable name's node. What is kept of names that had to be forgotten goes, and
    /// the kernel is asked to let go of those that it alone keeps.
    fn number(&self, name: Name, known: Known) -> u64 {
        let (ino, crowd) = self.inodes.name(name, known);
        for gone in crowd.forgotten {
            // Whoever finds the name again numbers it first, and then waits for these locks.
            let mut links = lock(&self.links);
            if !self.inodes.stands_for_something(gone) {
                links.remove(&gone);
            }
            drop(links);
            let mut directories = lock(&self.directories);
            if !self.inodes.stands_for_something(gone) {
                directories.remove(&gone);
            }
        }
        for held in crowd.held {
            self.invalidate(held, What::Inode, None);
        }
        ino
    }

    /// Something real was found in a namespace.
    fn found_in(&self, namespace: &Namespace) {
        self.number(Name::Namespace(namespace.clone()), Known::Found);
    }

    /// To be told before the kernel is told of a node as the entry of a directory; it counts that,
    /// too, and says with [`Fs::forget`] when it no longer does.
    pub fn entered(&self, ino: u64) {
        self.inodes.entered(ino);
    }

    /// The kernel has forgotten `count` of the times that it was told of a node.
    pub fn forget(&self, ino: u64, count: u64) {
        self.inodes.forget(ino, count);
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
            Some(presence) => Answer::Now(Ok(self.found_namespace(&namespace, presence))),
            None => {
                let (fs, deadline) = (Arc::clone(self), self.deadline());
                later(async move {
                    let presence = fs.resolver.namespace(&namespace, deadline).await;
                    Ok(fs.found_namespace(&namespace, presence))
                })
            }
        }
    }

    fn found_namespace(&self, namespace: &Namespace, presence: Presence) -> Found {
        let (life, known) = match presence {
            Presence::Known => (FOREVER, Known::Found),
            Presence::Assumed => (ABSENCE_TTL, Known::Guessed),
            Presence::Absent => return Found::Absent(ABSENCE_TTL),
        };
        let ino = self.number(Name::Namespace(namespace.clone()), known);
        Found::Node(self.directory_attr(ino), life, LISTING_TTL.min(life))
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
        self.found_in(&loaded.manifest.id().bundle.namespace);
        let root = self.inodes.version(loaded);
        let life = self.store.name_life(loaded).clamp(ABSENCE_TTL, FOREVER);
        Found::Node(Attr::directory(root, epoch()), life, FOREVER)
    }

    fn invalidate(&self, ino: u64, what: What, done: Option<oneshot::Sender<()>>) {
        if let Some(kernel) = self.kernel.get() {
            let _ = kernel.send(Invalidate { ino, what, done });
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
        // A pack that was packed again is another node: the old one's content is gone. So is a pack
        // that took the place of the registry's version.
        let is_same = loaded.host == tagged.host
            && (!tagged.host.is_local() || self.inodes.version(&loaded) == root);
        is_same.then_some(loaded)
    }

    /// The manifest behind a number that the kernel holds, when it has to be fetched again.
    async fn wait_for(
        &self,
        root: u64,
        tagged: &Tagged,
        deadline: Deadline,
    ) -> Result<Arc<Loaded>> {
        let held = self.store.held(&tagged.version, deadline).await;
        let loaded = held.map_err(|error| {
            if !error.is_absence() {
                return error;
            }
            // It is there, for whoever asks has it. Besides, glibc takes the absence of a directory
            // that is open for its end, and shows it empty.
            Error::Malformed {
                origin: "the registry".to_owned(),
                what: tagged.version.to_string(),
                reason: format!("it is in use, and is said not to be there ({error})"),
            }
        })?;
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
            Node::Root => self.getattr_directory(ino),
            Node::Probe => Answer::Now(Ok((probe_attr(), FOREVER))),
            Node::Name(name) => match &*name {
                Name::Namespace(_) => self.getattr_directory(ino),
                Name::Link(bundle, selector) => {
                    match self.lookup_link(bundle.clone(), selector.clone()) {
                        Answer::Now(answer) => Answer::Now(answer.and_then(link::link_attr)),
                        Answer::Later(answer) => {
                            later(async move { answer.await.and_then(link::link_attr) })
                        }
                    }
                }
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
                fs.start_over(ino);
            }
            answer.map(Some)
        })
    }

    /// The kernel reads ahead less and less after errors; without the file's pages it starts over.
    /// Not at once, because it asks again for a page that goes while its reader is told of the error,
    /// as often as that happens; and once for all who fail meanwhile.
    fn start_over(self: &Arc<Self>, ino: u64) {
        if lock(&self.failed_reads).insert(ino) {
            let fs = Arc::clone(self);
            tokio::spawn(async move {
                tokio::time::sleep(FAILURE_MEMORY).await;
                lock(&fs.failed_reads).remove(&ino);
                fs.invalidate(ino, What::Pages, None);
            });
        }
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
