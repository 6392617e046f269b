//! Inode numbers: a content's number is its address.
//!
//! | bits | immutable node | mutable name (namespace, symlink) |
//! |---|---|---|
//! | 52 | 0 | 1 |
//! | 51–17 | 35 bits of SHA-256(`musherfs-1/host-id/ns/slug@version`), never 0 | 52 bits of SHA-256(`musherfs-1/host-id/name`) |
//! | 16–0 | index in the version's table; 0 is its root | |
//!
//! 53 bits, because Node.js rounds larger numbers and then all files look like one. The same numbers
//! on every host and after every restart, so nothing has to be stored to serve a number that the
//! kernel still holds, except which names there are: that is in the [`Journal`]. Two versions whose
//! 35 bits are equal are told apart by a salt, which is journaled too.
//!
//! Of mutable names there are more than can be kept: any name may be a namespace while nobody can be
//! asked, and any range means some version. So a name is *lasting*, and journaled, when something real
//! was found behind it, as long as there is room in the journal. The others are *passing*: the least
//! recently used are forgotten, except those whose inodes the kernel holds ([`Inodes::entered`],
//! [`Inodes::forget`]). A name that was forgotten gets the same number when it is found again.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use lru::LruCache;

use crate::digest::Digest;
use crate::reference::{BundleId, BundleRef, HostId, Namespace, Selector, VersionRef};
use crate::store::journal::Journal;
use crate::store::{Loaded, journal_key};
use crate::sync::lock;

/// The mount's root.
pub const ROOT: u64 = 1;
/// The unlisted file `/.musherfs`, which exists to be touched after mounting.
pub const PROBE: u64 = 2;

const INDEX_BITS: u32 = 17;
const TAG_BITS: u32 = 35;
const NAME_BIT: u64 = 1 << 52;

/// Most passing names that are kept although the kernel does not hold them.
pub const MOST_PASSING: usize = 16_384;

/// How many of the least recently used are looked at when another passing name comes: more than
/// one, so that those that the kernel has let go meanwhile go, too.
const LOOKED_AT: usize = 4;

/// A version whose files have inode numbers.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Tagged {
    /// The partition it belongs to.
    pub host: HostId,
    /// The version.
    pub version: VersionRef,
}

impl Tagged {
    fn of(loaded: &Loaded) -> Self {
        Self {
            host: loaded.host.clone(),
            version: loaded.manifest.id().clone(),
        }
    }

    /// What the tag is made of and journaled by: the version, and of a local pack also the digest of
    /// its list of files. It may be packed again with other content, and is another node then.
    fn text(&self, table: impl FnOnce() -> Digest) -> String {
        let text = journal_key(&self.host, &self.version);
        if self.host.is_local() {
            format!("{text}/{}", table())
        } else {
            text
        }
    }

    /// Whose [`Tagged::text`] this is, whatever the list of files was.
    fn parse(text: &str) -> Option<Self> {
        let (host, version) = text.split_once('/')?;
        let host: HostId = host.parse().ok()?;
        let version = match version.rsplit_once('/') {
            Some((version, _)) if host.is_local() => version,
            _ => version,
        };
        let version = version.parse().ok()?;
        Some(Self { host, version })
    }
}

/// A mutable name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Name {
    /// A directory under the root.
    Namespace(Namespace),
    /// A symlink in a namespace.
    Link(BundleId, Selector),
}

impl Name {
    fn text(&self) -> String {
        match self {
            Self::Namespace(namespace) => namespace.to_string(),
            Self::Link(bundle, selector) => format!("{bundle}@{}", selector.text()),
        }
    }

    fn parse(text: &str) -> Option<Self> {
        if !text.contains('/') {
            return text.parse().ok().map(Self::Namespace);
        }
        let BundleRef { bundle, selector } = text.parse().ok()?;
        Some(Self::Link(bundle, selector))
    }
}

/// What an inode number stands for.
#[derive(Debug, Clone)]
pub enum Node {
    /// The mount's root.
    Root,
    /// The unlisted file that is touched after mounting.
    Probe,
    /// A namespace or a symlink.
    Name(Arc<Name>),
    /// The entry at `index` of a version's table.
    Entry(Arc<Tagged>, u32),
}

/// What is known of a name when its node is given a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Something real is behind it.
    Found,
    /// It may be anything.
    Guessed,
}

/// What more names than can be kept lead to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Crowd {
    /// Numbers that stand for nothing from now on.
    pub forgotten: Vec<u64>,
    /// Numbers that would be forgotten if the kernel did not hold them. Each is told once for as long
    /// as it is held.
    pub held: Vec<u64>,
}

struct Passing {
    name: Arc<Name>,
    /// How often the kernel was told of the number, less what it has forgotten.
    held: u64,
    /// Whether the kernel was asked to let go of it.
    asked: bool,
}

/// The numbers that were given out.
pub struct Inodes {
    host: HostId,
    journal: Arc<Journal>,
    tags: RwLock<HashMap<u64, Arc<Tagged>>>,
    lasting: RwLock<HashMap<u64, Arc<Name>>>,
    passing: Mutex<LruCache<u64, Passing>>,
    /// How many facts of other processes the journal had when its numbers were last taken over.
    restored: Mutex<Option<u64>>,
}

impl Inodes {
    /// Nothing given out yet, in this process.
    pub fn new(host: HostId, journal: Arc<Journal>) -> Self {
        Self {
            host,
            journal,
            tags: RwLock::default(),
            lasting: RwLock::default(),
            passing: Mutex::new(LruCache::unbounded()),
            restored: Mutex::default(),
        }
    }

    /// The number of `name`'s node; remembered, so that [`Inodes::node`] knows it.
    pub fn name(&self, name: Name, known: Known) -> (u64, Crowd) {
        let ino = self.expected_name(&name);
        // A collision of 52 bits would need millions of names; the later one wins the number.
        let lasts = |known: &Arc<Name>| **known == name;
        if read(&self.lasting).get(&ino).is_some_and(lasts) {
            return (ino, Crowd::default());
        }
        if known == Known::Found && self.journal.remember_name(&name.text()) {
            write(&self.lasting).insert(ino, Arc::new(name));
            self.passing().pop(&ino);
            return (ino, Crowd::default());
        }
        let mut passing = self.passing();
        // Somebody may have found it meanwhile, and does not look here again.
        if read(&self.lasting).get(&ino).is_some_and(lasts) {
            return (ino, Crowd::default());
        }
        if let Some(known) = passing.get_mut(&ino) {
            if *known.name != name {
                known.name = Arc::new(name);
            }
            return (ino, Crowd::default());
        }
        let first = Passing {
            name: Arc::new(name),
            held: 0,
            asked: false,
        };
        passing.put(ino, first);
        (ino, make_room(&mut passing))
    }

    /// Notes that the kernel is about to be told of a number, as an entry of a directory.
    pub fn entered(&self, ino: u64) {
        if ino & NAME_BIT != 0
            && let Some(passing) = self.passing().get_mut(&ino)
        {
            passing.held += 1;
        }
    }

    /// Notes that the kernel has forgotten `count` of the times that it was told of a number.
    pub fn forget(&self, ino: u64, count: u64) {
        if ino & NAME_BIT != 0
            && let Some(passing) = self.passing().peek_mut(&ino)
        {
            // What an earlier process has told the kernel is not counted here.
            passing.held = passing.held.saturating_sub(count);
            passing.asked &= passing.held > 0;
        }
    }

    /// Whether the number stands for something, as far as this process has been told.
    pub fn stands_for_something(&self, ino: u64) -> bool {
        self.given_out(ino).is_some()
    }

    /// Consistent after every statement, so a poisoned lock is still good.
    fn passing(&self) -> MutexGuard<'_, LruCache<u64, Passing>> {
        lock(&self.passing)
    }

    /// The number that `name`'s node has, or would have if somebody asked for it.
    pub fn expected_name(&self, name: &Name) -> u64 {
        NAME_BIT | first_bits(&format!("musherfs-1/{}/{}", self.host, name.text()), 52)
    }

    /// The number of the root of a version; its entries follow.
    pub fn version(&self, loaded: &Loaded) -> u64 {
        let key = Tagged::of(loaded);
        let text = key.text(|| loaded.manifest.table_digest());
        // Those of the registry's own versions are journaled when they are first seen.
        if key.host.is_local() && !self.is_tagged(&text, &key) {
            let table = loaded.manifest.table_digest();
            let _ = self.journal.remember_table(&text, table);
        }
        self.tag(&text, key) << INDEX_BITS
    }

    /// The number that [`Inodes::version`] gives, without giving it out.
    pub fn expected_version_of(&self, loaded: &Loaded) -> u64 {
        let text = Tagged::of(loaded).text(|| loaded.manifest.table_digest());
        self.expected_tag(&text) << INDEX_BITS
    }

    /// The number that the root of a version of the registry will have once its manifest is there.
    pub fn expected_version(&self, version: &VersionRef) -> u64 {
        self.expected_tag(&journal_key(&self.host, version)) << INDEX_BITS
    }

    fn expected_tag(&self, text: &str) -> u64 {
        tag_of(text, self.journal.salt(text))
    }

    fn is_tagged(&self, text: &str, key: &Tagged) -> bool {
        let tag = self.expected_tag(text);
        let tags = read(&self.tags);
        tags.get(&tag).is_some_and(|known| **known == *key)
    }

    /// Gives `key` the first tag for `text` that nobody else has.
    fn tag(&self, text: &str, key: Tagged) -> u64 {
        let first_salt = self.journal.salt(text);
        let mut tags = write(&self.tags);
        let mut salt = first_salt;
        loop {
            let tag = tag_of(text, salt);
            match tags.entry(tag) {
                Entry::Occupied(known) if **known.get() == key => return tag,
                Entry::Occupied(_) => salt += 1,
                Entry::Vacant(place) => {
                    place.insert(Arc::new(key));
                    if salt != first_salt {
                        self.journal.remember_salt(text, salt);
                    }
                    return tag;
                }
            }
        }
    }

    /// What the number stands for; numbers that an earlier process gave out are known too.
    pub fn node(&self, ino: u64) -> Option<Node> {
        self.given_out(ino).or_else(|| {
            self.restore();
            self.given_out(ino)
        })
    }

    /// Writes down what could not be before, if that is possible now.
    pub(super) fn flush(&self) {
        self.journal.flush();
    }

    /// The numbers of all lasting names, also those that an earlier process gave out.
    pub fn names(&self) -> Vec<u64> {
        self.restore();
        read(&self.lasting).keys().copied().collect()
    }

    fn name_of(&self, ino: u64) -> Option<Arc<Name>> {
        let lasting = read(&self.lasting).get(&ino).cloned();
        lasting.or_else(|| Some(Arc::clone(&self.passing().get(&ino)?.name)))
    }

    fn given_out(&self, ino: u64) -> Option<Node> {
        match ino {
            ROOT => Some(Node::Root),
            PROBE => Some(Node::Probe),
            _ if ino & NAME_BIT != 0 => self.name_of(ino).map(Node::Name),
            _ => {
                let tagged = read(&self.tags).get(&(ino >> INDEX_BITS)).cloned()?;
                let index = u32::try_from(ino & ((1 << INDEX_BITS) - 1)).ok()?;
                Some(Node::Entry(tagged, index))
            }
        }
    }

    /// Takes over the numbers that other processes gave out, if there are more than the last time: the
    /// one that served this kernel before did so until this one began.
    fn restore(&self) {
        let mut restored = lock(&self.restored);
        let of_others = self.journal.of_others();
        if *restored == Some(of_others) {
            return;
        }
        *restored = Some(of_others);
        for text in self.journal.names() {
            if let Some(name) = Name::parse(&text) {
                self.name(name, Known::Found);
            }
        }
        for text in self.journal.versions() {
            if let Some(key) = Tagged::parse(&text) {
                self.tag(&text, key);
            }
        }
    }
}

fn make_room(passing: &mut LruCache<u64, Passing>) -> Crowd {
    let mut crowd = Crowd::default();
    for _ in 0..LOOKED_AT {
        if passing.len() <= MOST_PASSING {
            break;
        }
        let Some((ino, mut oldest)) = passing.pop_lru() else {
            break;
        };
        if oldest.held == 0 {
            crowd.forgotten.push(ino);
        } else {
            if !oldest.asked {
                oldest.asked = true;
                crowd.held.push(ino);
            }
            passing.put(ino, oldest);
        }
    }
    crowd
}

/// The number of the entry at `index` below the version root `root`.
pub fn entry(root: u64, index: u32) -> u64 {
    root | u64::from(index)
}

/// The number of the root of the version that `ino` lies in.
pub fn version_root(ino: u64) -> u64 {
    ino & !((1 << INDEX_BITS) - 1)
}

fn tag_of(text: &str, salt: u32) -> u64 {
    let salted = match salt {
        0 => format!("musherfs-1/{text}"),
        _ => format!("musherfs-1/{text}#{salt}"),
    };
    first_bits(&salted, TAG_BITS).max(1)
}

/// The first `bits` bits of the SHA-256 of `text`.
fn first_bits(text: &str, bits: u32) -> u64 {
    let digest = Digest::of(text.as_bytes());
    let mut first = [0; 8];
    first.copy_from_slice(&digest.as_bytes()[..8]);
    u64::from_be_bytes(first) >> (64 - bits)
}

/// The maps are consistent after every statement, so a poisoned lock is still good.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
