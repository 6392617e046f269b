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

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Once, PoisonError, RwLock};

use crate::digest::Digest;
use crate::reference::{BundleId, BundleRef, HostId, Namespace, Selector, VersionRef};
use crate::store::journal::Journal;
use crate::store::{Loaded, journal_key};

/// The mount's root.
pub const ROOT: u64 = 1;
/// The unlisted file `/.musherfs`, which exists to be touched after mounting.
pub const PROBE: u64 = 2;

const INDEX_BITS: u32 = 17;
const TAG_BITS: u32 = 35;
const NAME_BIT: u64 = 1 << 52;

/// A version whose files have inode numbers.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Tagged {
    /// The partition it belongs to.
    pub host: HostId,
    /// The version.
    pub version: VersionRef,
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

/// The numbers that were given out.
pub struct Inodes {
    host: HostId,
    journal: Arc<Journal>,
    tags: RwLock<HashMap<u64, Arc<Tagged>>>,
    names: RwLock<HashMap<u64, Arc<Name>>>,
    restored: Once,
}

impl Inodes {
    /// Nothing given out yet, in this process.
    pub fn new(host: HostId, journal: Arc<Journal>) -> Self {
        Self {
            host,
            journal,
            tags: RwLock::default(),
            names: RwLock::default(),
            restored: Once::new(),
        }
    }

    /// The number of the bare name `name`'s node; remembered, so that [`Inodes::node`] knows it.
    pub fn name(&self, name: Name) -> u64 {
        let text = name.text();
        let ino = self.expected_name(&name);
        // A collision of 52 bits would need millions of names; the later one wins the number.
        let known = read(&self.names)
            .get(&ino)
            .is_some_and(|known| **known == name);
        if !known {
            write(&self.names).insert(ino, Arc::new(name));
            self.journal.remember_name(&text);
        }
        ino
    }

    /// The number that `name`'s node has, or would have if somebody asked for it.
    pub fn expected_name(&self, name: &Name) -> u64 {
        NAME_BIT | first_bits(&format!("musherfs-1/{}/{}", self.host, name.text()), 52)
    }

    /// The number of the root of a version; its entries follow.
    pub fn version(&self, loaded: &Loaded) -> u64 {
        let key = Tagged {
            host: loaded.host.clone(),
            version: loaded.manifest.id().clone(),
        };
        let mut text = journal_key(&key.host, &key.version);
        if key.host.is_local() {
            // A pack may be packed again with other content: then it is another node.
            let table = loaded.manifest.table_digest();
            text = format!("{text}/{table}");
            // Those of the registry's own versions are journaled when they are first seen.
            if !self.is_tagged(&text, &key) {
                let _ = self.journal.remember_table(&text, table);
            }
        }
        self.tag(&text, key) << INDEX_BITS
    }

    /// The number that the root of a version will have once its manifest is there.
    pub fn expected_version(&self, version: &VersionRef) -> u64 {
        let text = journal_key(&self.host, version);
        tag_of(&text, self.journal.salt(&text)) << INDEX_BITS
    }

    fn is_tagged(&self, text: &str, key: &Tagged) -> bool {
        let tag = tag_of(text, self.journal.salt(text));
        let tags = read(&self.tags);
        tags.get(&tag).is_some_and(|known| **known == *key)
    }

    /// The number that [`Inodes::version`] gives, without giving it out.
    pub fn expected_version_of(&self, loaded: &Loaded) -> u64 {
        let mut text = journal_key(&loaded.host, loaded.manifest.id());
        if loaded.host.is_local() {
            text = format!("{text}/{}", loaded.manifest.table_digest());
        }
        tag_of(&text, self.journal.salt(&text)) << INDEX_BITS
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
            self.restored.call_once(|| self.restore());
            self.given_out(ino)
        })
    }

    /// The numbers of all mutable names, also those that an earlier process gave out.
    pub fn names(&self) -> Vec<u64> {
        self.restored.call_once(|| self.restore());
        read(&self.names).keys().copied().collect()
    }

    fn given_out(&self, ino: u64) -> Option<Node> {
        match ino {
            ROOT => Some(Node::Root),
            PROBE => Some(Node::Probe),
            _ if ino & NAME_BIT != 0 => read(&self.names).get(&ino).cloned().map(Node::Name),
            _ => {
                let tagged = read(&self.tags).get(&(ino >> INDEX_BITS)).cloned()?;
                let index = u32::try_from(ino & ((1 << INDEX_BITS) - 1)).ok()?;
                Some(Node::Entry(tagged, index))
            }
        }
    }

    fn restore(&self) {
        for text in self.journal.names() {
            if let Some(name) = Name::parse(&text) {
                self.name(name);
            }
        }
        for text in self.journal.versions() {
            let Some((host, version)) = text.split_once('/') else {
                continue;
            };
            let Ok(host) = host.parse::<HostId>() else {
                continue;
            };
            // A pack's key ends with its table.
            let version = match version.rsplit_once('/') {
                Some((version, _)) if host.is_local() => version,
                _ => version,
            };
            if let Ok(version) = version.parse() {
                self.tag(&text, Tagged { host, version });
            }
        }
    }
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
mod tests {
    use super::*;

    fn inodes() -> Inodes {
        let host: HostId = "api.musher.dev".parse().unwrap();
        Inodes::new(host, Arc::new(Journal::in_memory()))
    }

    fn tagged(text: &str) -> (String, Tagged) {
        let host: HostId = "api.musher.dev".parse().unwrap();
        let version: VersionRef = text.parse().unwrap();
        (journal_key(&host, &version), Tagged { host, version })
    }

    #[test]
    fn numbers_are_part_of_the_format() {
        // Computed independently: changing these breaks every bind mount and build cache.
        let inodes = inodes();
        let namespace = inodes.name(Name::Namespace("acme".parse().unwrap()));
        assert_eq!(
            namespace,
            NAME_BIT | first_bits("musherfs-1/api.musher.dev/acme", 52)
        );
        let (text, key) = tagged("acme/kit@1.2.0");
        assert_eq!(text, "api.musher.dev/acme/kit@1.2.0");
        assert_eq!(
            inodes.tag(&text, key),
            tag_of("api.musher.dev/acme/kit@1.2.0", 0)
        );
        assert_eq!(first_bits("", 64), 0xe3b0_c442_98fc_1c14);
        assert_eq!(first_bits("", 35), 0xe3b0_c442_98fc_1c14 >> 29);
    }

    #[test]
    fn numbers_have_at_most_53_bits_and_say_what_they_are() {
        let inodes = inodes();
        let link = inodes.name(Name::Link("acme/kit".parse().unwrap(), Selector::Latest));
        let (text, key) = tagged("acme/kit@1.2.0");
        let root = inodes.tag(&text, key) << INDEX_BITS;
        let file = entry(root, 131_071);
        assert!(link < 1 << 53 && file < 1 << 52);
        assert!(matches!(inodes.node(link), Some(Node::Name(_))));
        let Some(Node::Entry(tagged, index)) = inodes.node(file) else {
            panic!("not an entry")
        };
        assert_eq!(
            (tagged.version.to_string().as_str(), index),
            ("acme/kit@1.2.0", 131_071)
        );
        assert_eq!(version_root(file), root);
        assert!(inodes.node(3).is_none());
    }

    #[test]
    fn colliding_versions_get_different_numbers_that_are_remembered() {
        let inodes = inodes();
        let (text, key) = tagged("acme/kit@1.2.0");
        let (other_text, other) = tagged("acme/other@1.0.0");
        // The other version has the number already.
        write(&inodes.tags).insert(tag_of(&text, 0), Arc::new(other));
        let tag = inodes.tag(&text, key);
        assert_eq!(tag, tag_of(&text, 1));
        assert_eq!(inodes.journal.salt(&text), 1);
        assert_eq!(inodes.tag(&text, tagged("acme/kit@1.2.0").1), tag);
        assert_ne!(inodes.tag(&other_text, tagged("acme/other@1.0.0").1), tag);
    }

    #[test]
    fn another_process_knows_the_numbers_that_were_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("host.jsonl");
        let host: HostId = "api.musher.dev".parse().unwrap();
        let journal = || Arc::new(Journal::open(&path));
        let first = Inodes::new(host.clone(), journal());
        let namespace = first.name(Name::Namespace("acme".parse().unwrap()));
        let link = first.name(Name::Link(
            "acme/kit".parse().unwrap(),
            "^1.2".parse().unwrap(),
        ));
        let (text, key) = tagged("acme/kit@1.2.0");
        first
            .journal
            .remember_table(&text, Digest::of(b""))
            .unwrap();
        let root = first.tag(&text, key) << INDEX_BITS;
        drop(first);
        let second = Inodes::new(host, journal());
        assert!(
            matches!(second.node(namespace), Some(Node::Name(name)) if matches!(*name, Name::Namespace(_)))
        );
        assert!(
            matches!(second.node(link), Some(Node::Name(name)) if matches!(*name, Name::Link(..)))
        );
        assert!(matches!(
            second.node(entry(root, 7)),
            Some(Node::Entry(_, 7))
        ));
    }
}
